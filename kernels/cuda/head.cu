// Cross-entropy of rows of logits and its gradient. A block takes a row: one pass for the largest logit and the sum below
// it, one that writes.
#include "common.cuh"

// losses[row] = log Σ exp(l) − l[target]; slopes = (softmax(l) − onehot(target))·scale where there are any, of f32 in the
// logits' own place or elsewhere, or of bf16. NaN or +∞ in a row give a loss that is not finite.
template <int W, class T>
__device__ __forceinline__ void row_of_logits(const float* logits, const u32* targets, u32 vocabulary, float scale,
                                              T* slopes, float* losses, float* room) {
    const float* row = logits + (u64)blockIdx.x * vocabulary;
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
    if (!slopes) return;
    float by = scale / total;
    for (u32 i = W * threadIdx.x; i < vocabulary; i += W * blockDim.x) {
        load(row + i, x);
#pragma unroll
        for (int k = 0; k < W; k++) x[k] = expf(x[k] - highest) * by - (i + k == target ? scale : 0.0f);
        store(slopes + (u64)blockIdx.x * vocabulary + i, x);
    }
}

#define CROSS_ENTROPY(suffix, W, T)                                                                                    \
    extern "C" __global__ void cross_entropy##suffix(const float* logits, const u32* targets, u32 vocabulary,          \
                                                     float scale, T* slopes, float* losses) {                          \
        __shared__ float room[LANES];                                                                                  \
        row_of_logits<W>(logits, targets, vocabulary, scale, slopes, losses, room);                                    \
    }

CROSS_ENTROPY(, 1, float)
CROSS_ENTROPY(_vec, VECTOR, float)
CROSS_ENTROPY(_bf16, 1, u16)
CROSS_ENTROPY(_bf16_vec, VECTOR, u16)

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
