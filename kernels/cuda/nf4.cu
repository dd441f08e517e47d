// NF4 (Dettmers et al., 2023) back to bf16 or f32: two codes a byte, the first in the high half, a scale for 64 values.
#include "common.cuh"

#define BLOCK 64u

template <typename T>
__device__ __forceinline__ void pair(const float* values, u8 codes, float scale, u64 at, u64 count, T* y) {
    put(y + at, values[codes >> 4] * scale);
    if (at + 1 < count) put(y + at + 1, values[codes & 15] * scale);
}

// `values` are the sixteen that a code stands for.
template <typename T>
__device__ __forceinline__ void plain(const u8* codes, const float* values, const float* scales, u64 count, T* y) {
    for (u64 i = first_of_grid(); 2 * i < count; i += stride_of_grid())
        pair(values, codes[i], scales[2 * i / BLOCK], 2 * i, count, y);
}

// Scales in 8 bits: `map` holds their 256 values, `largest` an f32 for 256 scales, `mean` what was taken off them.
template <typename T>
__device__ __forceinline__ void twice(const u8* codes, const float* values, const u8* scales, const float* map,
                                      const float* largest, float mean, u64 count, T* y) {
    for (u64 i = first_of_grid(); 2 * i < count; i += stride_of_grid()) {
        u64 block = 2 * i / BLOCK;
        // Two roundings, as on the CPU: a fused one would give other bits.
        float scale = __fadd_rn(__fmul_rn(map[scales[block]], largest[block / 256]), mean);
        pair(values, codes[i], scale, 2 * i, count, y);
    }
}

extern "C" __global__ void nf4_plain_bf16(const u8* codes, const float* values, const float* scales, u64 count,
                                          u16* y) {
    plain(codes, values, scales, count, y);
}

extern "C" __global__ void nf4_plain_f32(const u8* codes, const float* values, const float* scales, u64 count,
                                         float* y) {
    plain(codes, values, scales, count, y);
}

extern "C" __global__ void nf4_double_bf16(const u8* codes, const float* values, const u8* scales, const float* map,
                                           const float* largest, float mean, u64 count, u16* y) {
    twice(codes, values, scales, map, largest, mean, count, y);
}

extern "C" __global__ void nf4_double_f32(const u8* codes, const float* values, const u8* scales, const float* map,
                                          const float* largest, float mean, u64 count, float* y) {
    twice(codes, values, scales, map, largest, mean, count, y);
}
