// The gated activation act = silu(gate)·up, silu(x) = x·σ(x); the backward pass makes σ again.
#include "common.cuh"

__device__ __forceinline__ float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

extern "C" __global__ void gate_forward(const float* gate, const float* up, u64 count, float* act) {
    for (u64 i = first_of_grid(); i < count; i += stride_of_grid()) act[i] = gate[i] * sigmoid(gate[i]) * up[i];
}

// dg = da·u·σ(g)·(1 + g·(1 − σ(g))), du = da·silu(g).
extern "C" __global__ void gate_backward(const float* gate, const float* up, const float* d_act, u64 count,
                                         float* d_gate, float* d_up) {
    for (u64 i = first_of_grid(); i < count; i += stride_of_grid()) {
        float g = gate[i], s = sigmoid(g), da = d_act[i];
        d_gate[i] = da * up[i] * s * (1.0f + g * (1.0f - s));
        d_up[i] = da * g * s;
    }
}
