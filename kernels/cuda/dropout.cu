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

// x `[N, width]` in f32 or bf16; a value goes where its 32 bits lie below `threshold`, the others are multiplied by `keep`.
template <int W, class T>
__device__ __forceinline__ void drop(const T* x, u64 count, u32 width, u64 stream, u64 first_row, u64 threshold,
                                     float keep, T* y) {
    for (u64 i = W * first_of_grid(); i < count; i += W * stride_of_grid()) {
        u64 of_row = mix(stream ^ (first_row + i / width)), column = i % width, bits = 0;
        float values[W];
        load(x + i, values);
#pragma unroll
        for (int k = 0; k < W; k++) {
            // Two columns share 64 bits, and W begins at an even one or is 1.
            if (k % 2 == 0) bits = mix(of_row ^ ((column + k) / 2));
            u64 mine = bits >> (32 * ((column + k) % 2)) & 0xffffffffull;
            values[k] = mine < threshold ? 0.0f : values[k] * keep;
        }
        store(y + i, values);
    }
}

#define DROPOUT(suffix, W, T)                                                                                          \
    extern "C" __global__ void dropout##suffix(const T* x, u64 count, u32 width, u64 stream, u64 first_row,            \
                                               u64 threshold, float keep, T* y) {                                      \
        drop<W>(x, count, width, stream, first_row, threshold, keep, y);                                               \
    }

DROPOUT(, 1, float)
DROPOUT(_vec, VECTOR, float)
DROPOUT(_bf16, 1, u16)
DROPOUT(_bf16_vec, VECTOR, u16)
