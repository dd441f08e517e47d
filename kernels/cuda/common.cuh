// What all kernels share: sums over a warp and a block, and bf16 by its bits. Blocks are one-dimensional and made of
// whole warps; every thread of a block takes part in a sum.
#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

#define LANES 32
#define ALL_LANES 0xffffffffu
#define LOWEST (-3.402823466e38f)

// Sums and maxima are the same for every lane.
__device__ __forceinline__ float warp_sum(float x) {
    for (int apart = LANES / 2; apart > 0; apart /= 2) x += __shfl_xor_sync(ALL_LANES, x, apart);
    return x;
}

__device__ __forceinline__ float warp_max(float x) {
    for (int apart = LANES / 2; apart > 0; apart /= 2) x = fmaxf(x, __shfl_xor_sync(ALL_LANES, x, apart));
    return x;
}

// `room` holds a float for each warp of the block.
__device__ __forceinline__ float block_sum(float x, float* room) {
    x = warp_sum(x);
    __syncthreads(); // An earlier sum may still be read.
    if (threadIdx.x % LANES == 0) room[threadIdx.x / LANES] = x;
    __syncthreads();
    x = 0.0f;
    for (u32 warp = 0; warp < blockDim.x / LANES; warp++) x += room[warp];
    return x;
}

__device__ __forceinline__ float block_max(float x, float* room) {
    x = warp_max(x);
    __syncthreads();
    if (threadIdx.x % LANES == 0) room[threadIdx.x / LANES] = x;
    __syncthreads();
    x = room[0];
    for (u32 warp = 1; warp < blockDim.x / LANES; warp++) x = fmaxf(x, room[warp]);
    return x;
}

// A bf16 is the upper half of an f32.
__device__ __forceinline__ float wide(u16 bits) { return __uint_as_float((u32)bits << 16); }

// To the nearest, ties to even; NaN stays NaN.
__device__ __forceinline__ u16 narrow(float x) {
    u32 bits = __float_as_uint(x);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return (u16)((bits >> 16) | 0x40u);
    return (u16)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

// A value as either type has it.
__device__ __forceinline__ void put(u16* y, float x) { *y = narrow(x); }
__device__ __forceinline__ void put(float* y, float x) { *y = x; }
__device__ __forceinline__ float get(const u16* x) { return wide(*x); }
__device__ __forceinline__ float get(const float* x) { return *x; }

// Kernels that memory bounds come in two forms: one that takes values one by one, and `_vec`, whose threads take W
// neighbours at once, in loads and stores of up to 16 bytes; the launch says which (launch.rs), or of many tensors in one
// launch the kernel. Where W is 1 a body is the plain form.
#define VECTOR 4

template <class T, int W>
struct __align__(sizeof(T) * W < 16 ? sizeof(T) * W : 16) Pack {
    T of[W];
};

template <int W, class T>
__device__ __forceinline__ void load(const T* from, float (&x)[W]) {
    Pack<T, W> pack = *(const Pack<T, W>*)from;
#pragma unroll
    for (int k = 0; k < W; k++) x[k] = get(pack.of + k);
}

template <int W, class T>
__device__ __forceinline__ void store(T* to, const float (&x)[W]) {
    Pack<T, W> pack;
#pragma unroll
    for (int k = 0; k < W; k++) put(pack.of + k, x[k]);
    *(Pack<T, W>*)to = pack;
}

// The first element of this thread and the distance to its next one, over a grid of any size.
__device__ __forceinline__ u64 first_of_grid() { return (u64)blockIdx.x * blockDim.x + threadIdx.x; }
__device__ __forceinline__ u64 stride_of_grid() { return (u64)gridDim.x * blockDim.x; }
