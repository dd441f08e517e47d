// NF4 (Dettmers et al., 2023) back to bf16: two codes a byte, the first in the high half, a scale for 64 values.
#include "common.cuh"

#define BLOCK 64u

__device__ __forceinline__ void pair(const float* values, u8 codes, float scale, u64 at, u64 count, u16* y) {
    y[at] = narrow(values[codes >> 4] * scale);
    if (at + 1 < count) y[at + 1] = narrow(values[codes & 15] * scale);
}

// `values` are the sixteen that a code stands for.
extern "C" __global__ void nf4_plain(const u8* codes, const float* values, const float* scales, u64 count, u16* y) {
    for (u64 i = first_of_grid(); 2 * i < count; i += stride_of_grid())
        pair(values, codes[i], scales[2 * i / BLOCK], 2 * i, count, y);
}

// Scales in 8 bits: `map` holds their 256 values, `largest` an f32 for 256 scales, `mean` what was taken off them.
extern "C" __global__ void nf4_double(const u8* codes, const float* values, const u8* scales, const float* map,
                                      const float* largest, float mean, u64 count, u16* y) {
    for (u64 i = first_of_grid(); 2 * i < count; i += stride_of_grid()) {
        u64 block = 2 * i / BLOCK;
        pair(values, codes[i], map[scales[block]] * largest[block / 256] + mean, 2 * i, count, y);
    }
}
