// What both ways of attention share: which keys a row sees, and what a product of query and key is worth.
//
// Row i sees keys max(starts[i], i + 1 − window) … i, where starts[i] is the first row of its segment, and i + 1 where
// it belongs to none. starts never falls, so a tile's first row has its lowest key.
#pragma once
#include "common.cuh"

#define THREADS 128

struct Heads {
    u32 rows;     // N
    u32 heads;    // H
    u32 kv_heads; // K
    u32 d;
    float scale;
    float softcap; // 0 = none
    u32 window;    // 0 = none
};

// The first key that row i sees.
__device__ __forceinline__ u32 lowest(const Heads& of, const u32* starts, u32 i) {
    u32 start = starts[i];
    u32 reach = of.window && i + 1 > of.window ? i + 1 - of.window : 0;
    return start > reach ? start : reach;
}

// The score of a product and its slope.
__device__ __forceinline__ float score_of(const Heads& of, float product, float* slope) {
    float score = product * of.scale;
    *slope = of.scale;
    if (of.softcap > 0.0f) {
        float t = tanhf(score / of.softcap);
        *slope *= 1.0f - t * t;
        score = of.softcap * t;
    }
    return score;
}

// along[row, head] = Σ dO·O. A warp takes a head of a row.
template <class T>
__device__ __forceinline__ void sum_along(const T* out, const float* d_out, u64 count, u32 d, float* along) {
    u64 at = (u64)blockIdx.x * (THREADS / LANES) + threadIdx.x / LANES;
    if (at >= count) return;
    float sum = 0.0f;
    for (u32 i = threadIdx.x % LANES; i < d; i += LANES) sum += get(out + at * d + i) * d_out[at * d + i];
    sum = warp_sum(sum);
    if (threadIdx.x % LANES == 0) along[at] = sum;
}
