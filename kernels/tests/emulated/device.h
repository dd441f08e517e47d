// A CUDA device of one multiprocessor on the host, for running kernels where there is no GPU: blocks one after the other,
// the threads of a block as fibers that give way at barriers. It finds what a GPU may hide: a thread that misses a barrier
// or a shuffle that others wait at, values read from shared memory that nothing wrote (it begins as NaN), and, by running
// the threads in either order, reads that no barrier keeps behind their writes; a vector that does not lie at a multiple of its size ends the test. Products of tensor cores are made of what
// the lanes of a warp give, by the same layout of fragments (tensor_cores.cuh).
#pragma once
#include <cmath>
#include <cstdio>
#include <cstring>
#include <tuple>
#include <utility>

struct Index {
    unsigned x, y, z;
};
extern Index threadIdx, blockIdx, blockDim, gridDim;

#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(threads)
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __shared__ static __attribute__((section("shared_memory")))

void __syncthreads();
// What the lane `lane ^ apart` of this warp gives.
float __shfl_xor_sync(unsigned lanes, float value, int apart);

inline float __uint_as_float(unsigned bits) {
    float x;
    memcpy(&x, &bits, 4);
    return x;
}

inline unsigned __float_as_uint(float x) {
    unsigned bits;
    memcpy(&bits, &x, 4);
    return bits;
}

inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }

// Kernels by name; each file adds its own.
struct Registered {
    Registered(const char* name, unsigned arguments, void (*call)(void**));
};

// Unpacks arguments as a launch passes them: an address of each.
template <auto KERNEL, class... A, size_t... I>
void unpack(void** arguments, void (*)(A...), std::index_sequence<I...>) {
    KERNEL(*static_cast<std::remove_cv_t<A>*>(arguments[I])...);
}

template <class... A>
constexpr unsigned count_of(void (*)(A...)) {
    return sizeof...(A);
}

template <auto KERNEL>
void call(void** arguments) {
    unpack<KERNEL>(arguments, KERNEL, std::make_index_sequence<count_of(KERNEL)>());
}

#define REGISTER(kernel) static Registered registered_##kernel(#kernel, count_of(&kernel), call<&kernel>);
