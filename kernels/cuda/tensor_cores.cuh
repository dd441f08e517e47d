// The tensor cores' product of a warp, in bf16 with sums in f32, and what feeds it (PTX ISA, "Matrix fragments for
// mma.m16n8k16"). Lane l has group g = l / 4 and place t = l % 4 in it. A fragment's word holds two neighbours:
//   A [16, 16]  words 0 … 3: (g, 2t), (g + 8, 2t), (g, 2t + 8), (g + 8, 2t + 8), pairs along its columns
//   B [16, 8]   words 0, 1: (2t, g), (2t + 8, g), pairs along its rows
//   C [16, 8]   values 0 … 3: (g, 2t), (g, 2t + 1), (g + 8, 2t), (g + 8, 2t + 1)
// So the C of one product, rounded, is half of the A of the next.
#pragma once
#include "common.cuh"

#ifdef __CUDACC__

// c += a·b
__device__ __forceinline__ void mma(float (&c)[4], const u32 (&a)[4], const u32 (&b)[2]) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// The B of a [16, 8] part of a matrix in shared memory whose rows are B's rows: lane l gives the address of row l % 16,
// which is a multiple of 16 bytes.
__device__ __forceinline__ void load_b(u32 (&b)[2], const u16* row) {
    u32 at = (u32)__cvta_generic_to_shared(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0,%1}, [%2];" : "=r"(b[0]), "=r"(b[1]) : "r"(at));
}

// Two neighbours, rounded.
__device__ __forceinline__ u32 pair(float first, float second) {
    u32 both;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(second), "f"(first));
    return both;
}

#else

void mma(float (&c)[4], const u32 (&a)[4], const u32 (&b)[2]);
void load_b(u32 (&b)[2], const u16* row);
inline u32 pair(float first, float second) { return narrow(first) | (u32)narrow(second) << 16; }

#endif

// Two neighbours in shared memory.
__device__ __forceinline__ u32 word(const u16* at) { return *(const u32*)at; }

// The A of rows 0 … 15 and columns `column` … + 15 of a matrix in shared memory with `stride` values a row.
__device__ __forceinline__ void load_a(u32 (&a)[4], const u16* matrix, u32 stride, u32 column) {
    u32 g = threadIdx.x % LANES / 4, t = threadIdx.x % 4;
    const u16* at = matrix + g * stride + column + 2 * t;
    a[0] = word(at);
    a[1] = word(at + 8 * stride);
    a[2] = word(at + 8);
    a[3] = word(at + 8 * stride + 8);
}

// The B of a [16, 8] part of the transpose of a matrix in shared memory: its rows 0 … 7 are B's columns, and its columns
// `column` … + 15 are B's rows.
__device__ __forceinline__ void load_b_of_rows(u32 (&b)[2], const u16* matrix, u32 stride, u32 column) {
    u32 g = threadIdx.x % LANES / 4, t = threadIdx.x % 4;
    const u16* at = matrix + g * stride + column + 2 * t;
    b[0] = word(at);
    b[1] = word(at + 8);
}
