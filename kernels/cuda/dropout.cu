// Dropout with the mask of the CPU: a function of (stream, row, column), so that the backward pass makes it again and
// micro-batches have no part in it.
#include "common.cuh"

// The finaliser of SplitMix64 (Steele, Lea & Flood, 2014) after its increment.
__device__ __forceinline__ u64 mix(u64 x) {
    x += 0x9e3779b97f4a7c15ull;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
    return x ^ (x >> 31);
}

// x `[N, width]`; a value goes where its 32 bits lie below `threshold`, the others are multiplied by `keep`.
extern "C" __global__ void dropout(const float* x, u64 count, u32 width, u64 stream, u64 first_row, u64 threshold,
                                   float keep, float* y) {
    for (u64 i = first_of_grid(); i < count; i += stride_of_grid()) {
        u64 row = i / width, column = i % width;
        u64 bits = mix(mix(stream ^ (first_row + row)) ^ (column / 2));
        bool drops = ((bits >> (32 * (column % 2))) & 0xffffffffull) < threshold;
        y[i] = drops ? 0.0f : x[i] * keep;
    }
}
