// RMSNorm over rows of width d: y = x·rstd·w, rstd = 1/√(mean(x²) + ε) (Zhang & Sennrich, 2019). A block takes a row.
// y is f32, or bf16 where nothing but products of bf16 reads it.
#include "common.cuh"

template <int W, class T>
__device__ __forceinline__ void forward(const float* x, const float* w, float eps, u32 d, T* y, float* rstd,
                                        float* room) {
    const float* row = x + (u64)blockIdx.x * d;
    float values[W], weights[W], squares = 0.0f;
    for (u32 i = W * threadIdx.x; i < d; i += W * blockDim.x) {
        load(row + i, values);
#pragma unroll
        for (int k = 0; k < W; k++) squares += values[k] * values[k];
    }
    float r = 1.0f / sqrtf(block_sum(squares, room) / (float)d + eps);
    if (threadIdx.x == 0) rstd[blockIdx.x] = r;
    for (u32 i = W * threadIdx.x; i < d; i += W * blockDim.x) {
        load(row + i, values);
        load(w + i, weights);
#pragma unroll
        for (int k = 0; k < W; k++) values[k] *= r * weights[k];
        store(y + (u64)blockIdx.x * d + i, values);
    }
}

// dx = rstd·(dy·w − x·rstd²·mean(dy·w·x)), added to what stands in dx where `adds`.
template <int W>
__device__ __forceinline__ void backward(const float* x, const float* w, const float* rstd, const float* dy, u32 d,
                                         u32 adds, float* dx, float* room) {
    u64 row = (u64)blockIdx.x * d;
    float r = rstd[blockIdx.x], values[W], weights[W], grads[W], products = 0.0f;
    for (u32 i = W * threadIdx.x; i < d; i += W * blockDim.x) {
        load(x + row + i, values);
        load(w + i, weights);
        load(dy + row + i, grads);
#pragma unroll
        for (int k = 0; k < W; k++) products += grads[k] * weights[k] * values[k];
    }
    float along = block_sum(products, room) * r * r / (float)d;
    for (u32 i = W * threadIdx.x; i < d; i += W * blockDim.x) {
        float sums[W] = {};
        load(x + row + i, values);
        load(w + i, weights);
        load(dy + row + i, grads);
        if (adds) load(dx + row + i, sums);
#pragma unroll
        for (int k = 0; k < W; k++) sums[k] += r * (grads[k] * weights[k] - along * values[k]);
        store(dx + row + i, sums);
    }
}

// Σ dy·x·rstd over rows; with x null, Σ dy, a bias's gradient. A block takes 32·W columns of `rows_each` rows, each of
// its warps every eighth one, and writes row blockIdx.y of `sums`, or adds to it: the order of a sum is that of the grid.
template <int W>
__device__ __forceinline__ void sum_columns(const float* dy, const float* x, const float* rstd, u32 rows, u32 rows_each,
                                            u32 d, u32 adds, float* sums, float* room) {
    u32 column = (blockIdx.x * LANES + threadIdx.x % LANES) * W, first = blockIdx.y * rows_each;
    u32 end = first + rows_each < rows ? first + rows_each : rows;
    float total[W] = {}, grads[W], values[W];
    if (column < d) {
        for (u32 row = first + threadIdx.x / LANES; row < end; row += 8) {
            u64 at = (u64)row * d + column;
            load(dy + at, grads);
            if (x) load(x + at, values);
#pragma unroll
            for (int k = 0; k < W; k++) total[k] += x ? grads[k] * values[k] * rstd[row] : grads[k];
        }
    }
#pragma unroll
    for (int k = 0; k < W; k++) room[k * 256 + threadIdx.x] = total[k];
    __syncthreads();
    if (threadIdx.x < LANES && column < d) {
        float* to = sums + (u64)blockIdx.y * d + column;
        float before[W] = {};
        if (adds) load(to, before);
#pragma unroll
        for (int k = 0; k < W; k++) {
            for (u32 warp = 1; warp < 8; warp++) total[k] += room[k * 256 + warp * LANES + threadIdx.x];
            total[k] += before[k];
        }
        store(to, total);
    }
}

#define NORM_FORWARD(suffix, W, T)                                                                                     \
    extern "C" __global__ void norm_forward##suffix(const float* x, const float* w, float eps, u32 d, T* y,            \
                                                    float* rstd) {                                                     \
        __shared__ float room[LANES];                                                                                  \
        forward<W>(x, w, eps, d, y, rstd, room);                                                                       \
    }

#define NORM(suffix, W)                                                                                                \
    extern "C" __global__ void norm_backward##suffix(const float* x, const float* w, const float* rstd,                \
                                                     const float* dy, u32 d, u32 adds, float* dx) {                    \
        __shared__ float room[LANES];                                                                                  \
        backward<W>(x, w, rstd, dy, d, adds, dx, room);                                                                \
    }                                                                                                                  \
    extern "C" __global__ void column_sums##suffix(const float* dy, const float* x, const float* rstd, u32 rows,       \
                                                   u32 rows_each, u32 d, u32 adds, float* sums) {                      \
        __shared__ float room[W * 256];                                                                                \
        sum_columns<W>(dy, x, rstd, rows, rows_each, d, adds, sums, room);                                             \
    }

NORM_FORWARD(, 1, float)
NORM_FORWARD(_vec, VECTOR, float)
NORM_FORWARD(_bf16, 1, u16)
NORM_FORWARD(_bf16_vec, VECTOR, u16)
NORM(, 1)
NORM(_vec, VECTOR)
