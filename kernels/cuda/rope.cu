// Rotary embedding in halves, in place, q and k at once: the pair (i, i + d/2) of a head turns by the angle of its
// row's position; `sign` −1 turns back, which is the gradient. A block takes a row.
#include "common.cuh"

__device__ __forceinline__ void turn(float* row, u32 heads, u32 d, const float* cos, const float* sin, float sign) {
    u32 half = d / 2;
    for (u32 i = threadIdx.x; i < heads * half; i += blockDim.x) {
        float* low = row + i / half * d + i % half;
        float x = low[0], y = low[half], c = cos[i % half], s = sin[i % half] * sign;
        low[0] = x * c - y * s;
        low[half] = y * c + x * s;
    }
}

extern "C" __global__ void rope(float* q, float* k, const u32* positions, const float* cos, const float* sin,
                                u32 heads, u32 kv_heads, u32 d, float sign) {
    u64 row = blockIdx.x;
    u64 angle = (u64)positions[row] * (d / 2);
    turn(q + row * heads * d, heads, d, cos + angle, sin + angle, sign);
    turn(k + row * kv_heads * d, kv_heads, d, cos + angle, sin + angle, sign);
}
