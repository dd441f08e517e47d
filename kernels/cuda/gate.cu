// The gated activation act = silu(gate)·up, silu(x) = x·σ(x); the backward pass makes σ again. Gate and up are kept in f32
// or in bf16, and act and their gradients are of their type; the gradient of act is f32.
#include "common.cuh"

__device__ __forceinline__ float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

template <int W, class T>
__device__ __forceinline__ void forward(const T* gate, const T* up, u64 count, T* act) {
    for (u64 i = W * first_of_grid(); i < count; i += W * stride_of_grid()) {
        float g[W], u[W];
        load(gate + i, g);
        load(up + i, u);
#pragma unroll
        for (int k = 0; k < W; k++) g[k] = g[k] * sigmoid(g[k]) * u[k];
        store(act + i, g);
    }
}

// dg = da·u·σ(g)·(1 + g·(1 − σ(g))), du = da·silu(g).
template <int W, class T>
__device__ __forceinline__ void backward(const T* gate, const T* up, const float* d_act, u64 count, T* d_gate,
                                         T* d_up) {
    for (u64 i = W * first_of_grid(); i < count; i += W * stride_of_grid()) {
        float g[W], u[W], da[W], dg[W], du[W];
        load(gate + i, g);
        load(up + i, u);
        load(d_act + i, da);
#pragma unroll
        for (int k = 0; k < W; k++) {
            float s = sigmoid(g[k]);
            dg[k] = da[k] * u[k] * s * (1.0f + g[k] * (1.0f - s));
            du[k] = da[k] * g[k] * s;
        }
        store(d_gate + i, dg);
        store(d_up + i, du);
    }
}

#define GATE(suffix, W, T)                                                                                             \
    extern "C" __global__ void gate_forward##suffix(const T* gate, const T* up, u64 count, T* act) {                   \
        forward<W>(gate, up, count, act);                                                                              \
    }                                                                                                                  \
    extern "C" __global__ void gate_backward##suffix(const T* gate, const T* up, const float* d_act, u64 count,        \
                                                     T* d_gate, T* d_up) {                                             \
        backward<W>(gate, up, d_act, count, d_gate, d_up);                                                             \
    }

GATE(, 1, float)
GATE(_vec, VECTOR, float)
GATE(_bf16, 1, u16)
GATE(_bf16_vec, VECTOR, u16)
