// Cross-entropy of rows of logits, which become their gradient in place. A block takes a row: one pass for the largest
// logit and the sum below it, one that writes.
#include "common.cuh"

// losses[row] = log Σ exp(l) − l[target]; with `writes`, logits become (softmax(l) − onehot(target))·scale. NaN or +∞
// in a row give a loss that is not finite.
template <int W>
__device__ __forceinline__ void row_of_logits(float* logits, const u32* targets, u32 vocabulary, u32 writes,
                                              float scale, float* losses, float* room) {
    float* row = logits + (u64)blockIdx.x * vocabulary;
    u32 target = targets[blockIdx.x];
    float x[W], top = LOWEST, sum = 0.0f;
    for (u32 i = W * threadIdx.x; i < vocabulary; i += W * blockDim.x) {
        load(row + i, x);
        float here = x[0];
#pragma unroll
        for (int k = 1; k < W; k++) here = fmaxf(here, x[k]);
        if (here > top) {
            sum *= expf(top - here);
            top = here;
        }
#pragma unroll
        for (int k = 0; k < W; k++) sum += expf(x[k] - top); // NaN comes through here.
    }
    float highest = block_max(top, room);
    float total = block_sum(sum * expf(top - highest), room);
    float at_target = row[target];
    __syncthreads(); // All have read it before it is overwritten.
    if (threadIdx.x == 0) losses[blockIdx.x] = logf(total) + highest - at_target;
    if (!writes) return;
    float by = scale / total;
    for (u32 i = W * threadIdx.x; i < vocabulary; i += W * blockDim.x) {
        load(row + i, x);
#pragma unroll
        for (int k = 0; k < W; k++) x[k] = expf(x[k] - highest) * by - (i + k == target ? scale : 0.0f);
        store(row + i, x);
    }
}

#define CROSS_ENTROPY(suffix, W)                                                                                       \
    extern "C" __global__ void cross_entropy##suffix(float* logits, const u32* targets, u32 vocabulary, u32 writes,    \
                                                     float scale, float* losses) {                                     \
        __shared__ float room[LANES];                                                                                  \
        row_of_logits<W>(logits, targets, vocabulary, writes, scale, losses, room);                                    \
    }

CROSS_ENTROPY(, 1)
CROSS_ENTROPY(_vec, VECTOR)

// sum[0] += Σ values, in f64 and in one order; one block.
extern "C" __global__ void sum_losses(const float* values, u32 count, double* sum) {
    __shared__ double room[256];
    double mine = 0.0;
    for (u32 i = threadIdx.x; i < count; i += 256) mine += (double)values[i];
    room[threadIdx.x] = mine;
    for (u32 half = 128; half > 0; half /= 2) {
        __syncthreads();
        if (threadIdx.x < half) room[threadIdx.x] += room[threadIdx.x + half];
    }
    if (threadIdx.x == 0) sum[0] += room[0];
}
