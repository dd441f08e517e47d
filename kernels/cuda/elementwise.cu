// Sums, conversions and scalings of single values.
#include "common.cuh"

extern "C" __global__ void add(float* to, const float* x, u64 count) {
    for (u64 i = first_of_grid(); i < count; i += stride_of_grid()) to[i] += x[i];
}

extern "C" __global__ void add_to_rows(float* y, const float* bias, u64 count, u32 width) {
    for (u64 i = first_of_grid(); i < count; i += stride_of_grid()) y[i] += bias[i % width];
}

extern "C" __global__ void narrow_bf16(const float* x, u64 count, u16* y) {
    for (u64 i = first_of_grid(); i < count; i += stride_of_grid()) y[i] = narrow(x[i]);
}

extern "C" __global__ void widen_bf16(const u16* x, u64 count, float* y) {
    for (u64 i = first_of_grid(); i < count; i += stride_of_grid()) y[i] = wide(x[i]);
}
