// Rotary embedding in halves, in place, q and k at once: the pair (i, i + d/2) of a head turns by the angle of its
// row's position; `sign` −1 turns back, which is the gradient. A block takes a row.
#include "common.cuh"

template <int W>
__device__ __forceinline__ void turn(float* row, u32 heads, u32 d, const float* cos, const float* sin, float sign) {
    u32 half = d / 2;
    for (u32 i = W * threadIdx.x; i < heads * half; i += W * blockDim.x) {
        float* low = row + i / half * d + i % half;
        float x[W], y[W], c[W], s[W];
        load(low, x);
        load(low + half, y);
        load(cos + i % half, c);
        load(sin + i % half, s);
#pragma unroll
        for (int k = 0; k < W; k++) {
            float before = x[k], along = s[k] * sign;
            x[k] = before * c[k] - y[k] * along;
            y[k] = y[k] * c[k] + before * along;
        }
        store(low, x);
        store(low + half, y);
    }
}

template <int W>
__device__ __forceinline__ void turn_both(float* q, float* k, const u32* positions, const float* cos, const float* sin,
                                          u32 heads, u32 kv_heads, u32 d, float sign) {
    u64 row = blockIdx.x;
    u64 angle = (u64)positions[row] * (d / 2);
    turn<W>(q + row * heads * d, heads, d, cos + angle, sin + angle, sign);
    turn<W>(k + row * kv_heads * d, kv_heads, d, cos + angle, sin + angle, sign);
}

#define ROPE(suffix, W)                                                                                                \
    extern "C" __global__ void rope##suffix(float* q, float* k, const u32* positions, const float* cos,                \
                                            const float* sin, u32 heads, u32 kv_heads, u32 d, float sign) {            \
        turn_both<W>(q, k, positions, cos, sin, heads, kv_heads, d, sign);                                             \
    }

ROPE(, 1)
ROPE(_vec, VECTOR)
