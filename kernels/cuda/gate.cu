// The gated activation act = silu(gate)·up, silu(x) = x·σ(x); the backward pass makes σ again. Gate and up are kept in f32
// or in bf16, and act is of their type; gradients are f32.
#include "common.cuh"

__device__ __forceinline__ float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

template <class T>
__device__ __forceinline__ void forward(const T* gate, const T* up, u64 count, T* act) {
    for (u64 i = first_of_grid(); i < count; i += stride_of_grid()) {
        float g = get(gate + i);
        put(act + i, g * sigmoid(g) * get(up + i));
    }
}

// dg = da·u·σ(g)·(1 + g·(1 − σ(g))), du = da·silu(g).
template <class T>
__device__ __forceinline__ void backward(const T* gate, const T* up, const float* d_act, u64 count, float* d_gate,
                                         float* d_up) {
    for (u64 i = first_of_grid(); i < count; i += stride_of_grid()) {
        float g = get(gate + i), s = sigmoid(g), da = d_act[i];
        d_gate[i] = da * get(up + i) * s * (1.0f + g * (1.0f - s));
        d_up[i] = da * g * s;
    }
}

extern "C" __global__ void gate_forward(const float* gate, const float* up, u64 count, float* act) {
    forward(gate, up, count, act);
}

extern "C" __global__ void gate_forward_bf16(const u16* gate, const u16* up, u64 count, u16* act) {
    forward(gate, up, count, act);
}

extern "C" __global__ void gate_backward(const float* gate, const float* up, const float* d_act, u64 count,
                                         float* d_gate, float* d_up) {
    backward(gate, up, d_act, count, d_gate, d_up);
}

extern "C" __global__ void gate_backward_bf16(const u16* gate, const u16* up, const float* d_act, u64 count,
                                              float* d_gate, float* d_up) {
    backward(gate, up, d_act, count, d_gate, d_up);
}
