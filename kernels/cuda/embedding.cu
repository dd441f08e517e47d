// Rows of the embedding gathered forward and added back by token. The host sorts the tokens, so that each row of the
// gradient is summed by one block, in the order of the batch, and nobody walks all tokens.
#include "common.cuh"

extern "C" __global__ void gather_f32(const float* table, const u32* ids, u32 width, float* y) {
    const float* row = table + (u64)ids[blockIdx.x] * width;
    for (u32 i = threadIdx.x; i < width; i += blockDim.x) y[(u64)blockIdx.x * width + i] = row[i];
}

extern "C" __global__ void gather_bf16(const u16* table, const u32* ids, u32 width, float* y) {
    const u16* row = table + (u64)ids[blockIdx.x] * width;
    for (u32 i = threadIdx.x; i < width; i += blockDim.x) y[(u64)blockIdx.x * width + i] = wide(row[i]);
}

// Run b of equal tokens: rows order[starts[b]] … order[starts[b + 1] − 1] of dy belong to row ids[b] of the sum.
extern "C" __global__ void scatter_sorted(const float* dy, const u32* ids, const u32* starts, const u32* order,
                                          u32 width, float* sum) {
    u32 from = starts[blockIdx.x], to = starts[blockIdx.x + 1];
    float* row = sum + (u64)ids[blockIdx.x] * width;
    for (u32 i = threadIdx.x; i < width; i += blockDim.x) {
        float total = row[i];
        for (u32 at = from; at < to; at++) total += dy[(u64)order[at] * width + i];
        row[i] = total;
    }
}
