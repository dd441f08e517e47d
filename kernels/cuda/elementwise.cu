// Sums and conversions of single values.
#include "common.cuh"

// to += x, where x has `period` values that are taken again and again, or as many as `to` where that is 0.
template <int W>
__device__ __forceinline__ void add_repeated(float* to, const float* x, u64 count, u32 period) {
    for (u64 i = W * first_of_grid(); i < count; i += W * stride_of_grid()) {
        float sums[W], values[W];
        load(to + i, sums);
        load(x + (period ? i % period : i), values);
#pragma unroll
        for (int k = 0; k < W; k++) sums[k] += values[k];
        store(to + i, sums);
    }
}

template <int W, class From, class To>
__device__ __forceinline__ void convert(const From* x, u64 count, To* y) {
    for (u64 i = W * first_of_grid(); i < count; i += W * stride_of_grid()) {
        float values[W];
        load(x + i, values);
        store(y + i, values);
    }
}

#define ELEMENTWISE(suffix, W)                                                                                         \
    extern "C" __global__ void add##suffix(float* to, const float* x, u64 count) { add_repeated<W>(to, x, count, 0); } \
    extern "C" __global__ void add_to_rows##suffix(float* y, const float* bias, u64 count, u32 width) {                \
        add_repeated<W>(y, bias, count, width);                                                                        \
    }                                                                                                                  \
    extern "C" __global__ void narrow_bf16##suffix(const float* x, u64 count, u16* y) { convert<W>(x, count, y); }     \
    extern "C" __global__ void widen_bf16##suffix(const u16* x, u64 count, float* y) { convert<W>(x, count, y); }

ELEMENTWISE(, 1)
ELEMENTWISE(_vec, VECTOR)
