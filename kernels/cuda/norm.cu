// RMSNorm over rows of width d: y = x·rstd·w, rstd = 1/√(mean(x²) + ε) (Zhang & Sennrich, 2019). A block takes a row.
#include "common.cuh"

extern "C" __global__ void norm_forward(const float* x, const float* w, float eps, u32 d, float* y, float* rstd) {
    __shared__ float room[LANES];
    const float* row = x + (u64)blockIdx.x * d;
    float squares = 0.0f;
    for (u32 i = threadIdx.x; i < d; i += blockDim.x) squares += row[i] * row[i];
    float r = 1.0f / sqrtf(block_sum(squares, room) / (float)d + eps);
    if (threadIdx.x == 0) rstd[blockIdx.x] = r;
    for (u32 i = threadIdx.x; i < d; i += blockDim.x) y[(u64)blockIdx.x * d + i] = row[i] * r * w[i];
}

// dx = rstd·(dy·w − x·rstd²·mean(dy·w·x)), added to what stands in dx where `adds`.
extern "C" __global__ void norm_backward(const float* x, const float* w, const float* rstd, const float* dy, u32 d,
                                         u32 adds, float* dx) {
    __shared__ float room[LANES];
    u64 at = (u64)blockIdx.x * d;
    float r = rstd[blockIdx.x];
    float products = 0.0f;
    for (u32 i = threadIdx.x; i < d; i += blockDim.x) products += dy[at + i] * w[i] * x[at + i];
    float along = block_sum(products, room) * r * r / (float)d;
    for (u32 i = threadIdx.x; i < d; i += blockDim.x) {
        float g = r * (dy[at + i] * w[i] - along * x[at + i]);
        dx[at + i] = adds ? dx[at + i] + g : g;
    }
}

// dw += Σ dy·x·rstd over rows; with x null, dw += Σ dy, a bias's gradient. A block takes 32 columns, each of its warps
// every eighth row, so that the sum has one order.
extern "C" __global__ void column_sums(const float* dy, const float* x, const float* rstd, u32 rows, u32 d,
                                       float* dw) {
    __shared__ float room[8 * LANES];
    u32 column = blockIdx.x * LANES + threadIdx.x % LANES;
    float sum = 0.0f;
    if (column < d) {
        for (u32 row = threadIdx.x / LANES; row < rows; row += 8) {
            u64 at = (u64)row * d + column;
            sum += x ? dy[at] * x[at] * rstd[row] : dy[at];
        }
    }
    room[threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.x < LANES && column < d) {
        for (u32 warp = 1; warp < 8; warp++) sum += room[warp * LANES + threadIdx.x];
        dw[column] += sum;
    }
}
