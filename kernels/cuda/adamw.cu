// AdamW (Loshchilov & Hutter, 2019) and the norm that clipping needs, over all tensors in one launch each: a block
// takes a chunk of CHUNK values of one tensor.
#include "common.cuh"

#define CHUNK 4096u

// A trained tensor; addresses are the device's.
struct Tensor {
    float* param;
    float* m;
    float* v;
    const float* grad;
    u64 count;
    float lr;
    float weight_decay;
};

// A block's work: values `first` … of tensor `tensor`.
struct Piece {
    u64 first;
    u32 tensor;
    u32 unused;
};

// parts[block] = Σ g² in f64: NaN and infinities come through.
extern "C" __global__ void norm_parts(const Tensor* tensors, const Piece* pieces, double* parts) {
    __shared__ double room[256];
    Piece piece = pieces[blockIdx.x];
    Tensor t = tensors[piece.tensor];
    u64 end = piece.first + CHUNK < t.count ? piece.first + CHUNK : t.count;
    double mine = 0.0;
    for (u64 i = piece.first + threadIdx.x; i < end; i += 256) mine += (double)t.grad[i] * (double)t.grad[i];
    room[threadIdx.x] = mine;
    for (u32 half = 128; half > 0; half /= 2) {
        __syncthreads();
        if (threadIdx.x < half) room[threadIdx.x] += room[threadIdx.x + half];
    }
    if (threadIdx.x == 0) parts[blockIdx.x] = room[0];
}

// p ← p·(1 − lr·wd) − lr/c₁ · m/(√v/√c₂ + ε), as torch computes it; `grad_scale` clips.
extern "C" __global__ void adamw(const Tensor* tensors, const Piece* pieces, float new_m, float old_v, float new_v,
                                 float eps, float correction1, float correction2_sqrt, float grad_scale) {
    Piece piece = pieces[blockIdx.x];
    Tensor t = tensors[piece.tensor];
    u64 end = piece.first + CHUNK < t.count ? piece.first + CHUNK : t.count;
    float keep = 1.0f - t.lr * t.weight_decay, step = t.lr / correction1;
    for (u64 i = piece.first + threadIdx.x; i < end; i += blockDim.x) {
        float g = t.grad[i] * grad_scale;
        float m = t.m[i] + new_m * (g - t.m[i]);
        float v = t.v[i] * old_v + g * g * new_v;
        t.m[i] = m;
        t.v[i] = v;
        t.param[i] = t.param[i] * keep - step * (m / (sqrtf(v) / correction2_sqrt + eps));
    }
}
