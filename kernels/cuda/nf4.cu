// NF4 (Dettmers et al., 2023) back to bf16 or f32: two codes a byte, the first in the high half, a scale for 64 values.
#include "common.cuh"

#define BLOCK 64u

// A thread takes W bytes of codes, which are of one block; `values` are the sixteen that a code stands for, and only an
// odd count has an end that is no whole byte.
template <int W, class Scales, class T>
__device__ __forceinline__ void widen(const u8* codes, const float* values, Scales scales, u64 count, T* y,
                                      float* table) {
    if (threadIdx.x < 16) table[threadIdx.x] = values[threadIdx.x];
    __syncthreads();
    for (u64 i = W * first_of_grid(); 2 * i < count; i += W * stride_of_grid()) {
        float scale = scales.of(2 * i / BLOCK), x[2 * W];
        Pack<u8, W> pack = *(const Pack<u8, W>*)(codes + i);
#pragma unroll
        for (int k = 0; k < W; k++) {
            x[2 * k] = table[pack.of[k] >> 4] * scale;
            x[2 * k + 1] = table[pack.of[k] & 15] * scale;
        }
        if (W > 1) {
            store(y + 2 * i, x);
        } else {
            put(y + 2 * i, x[0]);
            if (2 * i + 1 < count) put(y + 2 * i + 1, x[1]);
        }
    }
}

struct Plain {
    const float* scales;
    __device__ __forceinline__ float of(u64 block) const { return scales[block]; }
};

// Scales in 8 bits: `map` holds their 256 values, `largest` an f32 for 256 scales, `mean` what was taken off them.
struct Double {
    const u8* scales;
    const float* map;
    const float* largest;
    float mean;
    // Two roundings, as on the CPU: a fused one would give other bits.
    __device__ __forceinline__ float of(u64 block) const {
        return __fadd_rn(__fmul_rn(map[scales[block]], largest[block / 256]), mean);
    }
};

#define NF4(suffix, W, T)                                                                                              \
    extern "C" __global__ void nf4_plain##suffix(const u8* codes, const float* values, const float* scales, u64 count, \
                                                 T* y) {                                                               \
        __shared__ float table[16];                                                                                    \
        widen<W>(codes, values, Plain{scales}, count, y, table);                                                       \
    }                                                                                                                  \
    extern "C" __global__ void nf4_double##suffix(const u8* codes, const float* values, const u8* scales,              \
                                                  const float* map, const float* largest, float mean, u64 count,       \
                                                  T* y) {                                                              \
        __shared__ float table[16];                                                                                    \
        widen<W>(codes, values, Double{scales, map, largest, mean}, count, y, table);                                  \
    }

NF4(_f32, 1, float)
NF4(_f32_vec, VECTOR, float)
NF4(_bf16, 1, u16)
NF4(_bf16_vec, VECTOR, u16)
