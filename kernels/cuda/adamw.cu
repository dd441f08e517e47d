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

// Whether threads take values by VECTOR: a tensor of one launch may lie otherwise than the next.
__device__ __forceinline__ bool by_vectors(const Tensor& t) {
    return (t.count % VECTOR | ((u64)t.param | (u64)t.m | (u64)t.v | (u64)t.grad) % 16) == 0;
}

template <int W>
__device__ __forceinline__ double squares(const Tensor& t, u64 first, u64 end) {
    double sum = 0.0;
    for (u64 i = first + W * threadIdx.x; i < end; i += W * 256) {
        float g[W];
        load(t.grad + i, g);
#pragma unroll
        for (int k = 0; k < W; k++) sum += (double)g[k] * (double)g[k];
    }
    return sum;
}

// parts[block] = Σ g² in f64: NaN and infinities come through.
extern "C" __global__ void norm_parts(const Tensor* tensors, const Piece* pieces, double* parts) {
    __shared__ double room[256];
    Piece piece = pieces[blockIdx.x];
    Tensor t = tensors[piece.tensor];
    u64 end = piece.first + CHUNK < t.count ? piece.first + CHUNK : t.count;
    room[threadIdx.x] = by_vectors(t) ? squares<VECTOR>(t, piece.first, end) : squares<1>(t, piece.first, end);
    for (u32 half = 128; half > 0; half /= 2) {
        __syncthreads();
        if (threadIdx.x < half) room[threadIdx.x] += room[threadIdx.x + half];
    }
    if (threadIdx.x == 0) parts[blockIdx.x] = room[0];
}

// What all tensors of an update share.
struct Update {
    float new_m, old_v, new_v, eps, correction1, correction2_sqrt, grad_scale;
};

template <int W>
__device__ __forceinline__ void update(const Tensor& t, u64 first, u64 end, const Update& by) {
    float keep = 1.0f - t.lr * t.weight_decay, step = t.lr / by.correction1;
    for (u64 i = first + W * threadIdx.x; i < end; i += W * blockDim.x) {
        float g[W], m[W], v[W], p[W];
        load(t.grad + i, g);
        load(t.m + i, m);
        load(t.v + i, v);
        load(t.param + i, p);
#pragma unroll
        for (int k = 0; k < W; k++) {
            g[k] *= by.grad_scale;
            m[k] += by.new_m * (g[k] - m[k]);
            v[k] = v[k] * by.old_v + g[k] * g[k] * by.new_v;
            p[k] = p[k] * keep - step * (m[k] / (sqrtf(v[k]) / by.correction2_sqrt + by.eps));
        }
        store(t.m + i, m);
        store(t.v + i, v);
        store(t.param + i, p);
    }
}

// p ← p·(1 − lr·wd) − lr/c₁ · m/(√v/√c₂ + ε), as torch computes it; `grad_scale` clips.
extern "C" __global__ void adamw(const Tensor* tensors, const Piece* pieces, float new_m, float old_v, float new_v,
                                 float eps, float correction1, float correction2_sqrt, float grad_scale) {
    Piece piece = pieces[blockIdx.x];
    Tensor t = tensors[piece.tensor];
    u64 end = piece.first + CHUNK < t.count ? piece.first + CHUNK : t.count;
    Update by = {new_m, old_v, new_v, eps, correction1, correction2_sqrt, grad_scale};
    if (by_vectors(t))
        update<VECTOR>(t, piece.first, end, by);
    else
        update<1>(t, piece.first, end, by);
}
