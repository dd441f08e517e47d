// Rows of the embedding gathered forward and added back by token. The host sorts the tokens, so that each row of the
// gradient is summed by one block, in the order of the batch, and nobody walks all tokens.
#include "common.cuh"

template <int W, class T>
__device__ __forceinline__ void gather(const T* table, const u32* ids, u32 width, float* y) {
    const T* row = table + (u64)ids[blockIdx.x] * width;
    for (u32 i = W * threadIdx.x; i < width; i += W * blockDim.x) {
        float values[W];
        load(row + i, values);
        store(y + (u64)blockIdx.x * width + i, values);
    }
}

// Run b of equal tokens: rows order[starts[b]] … order[starts[b + 1] − 1] of dy belong to row ids[b] of the sum.
template <int W>
__device__ __forceinline__ void scatter(const float* dy, const u32* ids, const u32* starts, const u32* order, u32 width,
                                        float* sum) {
    u32 from = starts[blockIdx.x], to = starts[blockIdx.x + 1];
    float* row = sum + (u64)ids[blockIdx.x] * width;
    for (u32 i = W * threadIdx.x; i < width; i += W * blockDim.x) {
        float total[W], values[W];
        load(row + i, total);
        for (u32 at = from; at < to; at++) {
            load(dy + (u64)order[at] * width + i, values);
#pragma unroll
            for (int k = 0; k < W; k++) total[k] += values[k];
        }
        store(row + i, total);
    }
}

#define EMBEDDING(suffix, W)                                                                                           \
    extern "C" __global__ void gather_f32##suffix(const float* table, const u32* ids, u32 width, float* y) {           \
        gather<W>(table, ids, width, y);                                                                               \
    }                                                                                                                  \
    extern "C" __global__ void gather_bf16##suffix(const u16* table, const u32* ids, u32 width, float* y) {            \
        gather<W>(table, ids, width, y);                                                                               \
    }                                                                                                                  \
    extern "C" __global__ void scatter_sorted##suffix(const float* dy, const u32* ids, const u32* starts,              \
                                                      const u32* order, u32 width, float* sum) {                       \
        scatter<W>(dy, ids, starts, order, width, sum);                                                                \
    }

EMBEDDING(, 1)
EMBEDDING(_vec, VECTOR)
