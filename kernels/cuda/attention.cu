// Causal attention inside segments, tiled in f32 (Dao et al., 2022): no matrix of scores is ever whole, and the
// backward pass makes them again from the saved log-sums. Query heads share key/value heads.
//
// Each kernel is compiled for heads of up to 64 and up to 128 values; TILE rows and columns stand in shared memory,
// each with one float of padding, so that neighbours in a column lie in different banks.
#include "attention.cuh"

// Rows first … first + TILE − 1 of one head of x `[N, width]` into `tile`; what lies outside is 0.
template <int TILE, int DIM>
__device__ __forceinline__ void load(float* tile, const float* x, u32 rows, u32 width, u32 column, u32 d, u32 first) {
    for (u32 i = threadIdx.x; i < TILE * DIM; i += THREADS) {
        u32 r = i / DIM, c = i % DIM;
        bool inside = first + r < rows && c < d;
        tile[r * (DIM + 1) + c] = inside ? x[(u64)(first + r) * width + column + c] : 0.0f;
    }
}

template <int DIM>
__device__ __forceinline__ float dot(const float* a, const float* b) {
    float sum = 0.0f;
    for (int i = 0; i < DIM; i++) sum += a[i] * b[i];
    return sum;
}

// A block takes TILE queries of one head; SHARE threads a query, each with every SHARE-th key and column.
template <int TILE, int DIM>
__device__ __forceinline__ void forward(const Heads& of, const float* q, const float* k, const float* v,
                                        const u32* starts, float* out, float* lse, float* queries, float* keys,
                                        float* weights) {
    constexpr int SHARE = THREADS / TILE, MINE = TILE / SHARE, COLUMNS = DIM / SHARE;
    u32 head = blockIdx.y, kv = head / (of.heads / of.kv_heads), first = blockIdx.x * TILE;
    u32 r = threadIdx.x / SHARE, part = threadIdx.x % SHARE, row = first + r;
    u32 q_width = of.heads * of.d, kv_width = of.kv_heads * of.d;
    load<TILE, DIM>(queries, q, of.rows, q_width, head * of.d, of.d, first);
    u32 low = row < of.rows ? lowest(of, starts, row) : row + 1;
    float top = LOWEST, total = 0.0f, sums[COLUMNS];
#pragma unroll
    for (int j = 0; j < COLUMNS; j++) sums[j] = 0.0f;
    u32 end = first + TILE < of.rows ? first + TILE : of.rows;
    for (u32 at = lowest(of, starts, first) / TILE * TILE; at < end; at += TILE) {
        __syncthreads();
        load<TILE, DIM>(keys, k, of.rows, kv_width, kv * of.d, of.d, at);
        __syncthreads();
        float scores[MINE], here = LOWEST, slope;
#pragma unroll
        for (int j = 0; j < MINE; j++) {
            u32 c = part + j * SHARE;
            scores[j] = score_of(of, dot<DIM>(queries + r * (DIM + 1), keys + c * (DIM + 1)), &slope);
            if (low <= at + c && at + c <= row) here = fmaxf(here, scores[j]);
        }
        // The threads of a query are neighbours in a warp.
        for (int apart = SHARE / 2; apart > 0; apart /= 2) here = fmaxf(here, __shfl_xor_sync(ALL_LANES, here, apart));
        float new_top = fmaxf(top, here), shrink = expf(top - new_top), added = 0.0f;
#pragma unroll
        for (int j = 0; j < MINE; j++) {
            u32 c = part + j * SHARE;
            float p = low <= at + c && at + c <= row ? expf(scores[j] - new_top) : 0.0f;
            weights[r * (TILE + 1) + c] = p;
            added += p;
        }
        for (int apart = SHARE / 2; apart > 0; apart /= 2) added += __shfl_xor_sync(ALL_LANES, added, apart);
        total = total * shrink + added;
        top = new_top;
        __syncthreads();
        load<TILE, DIM>(keys, v, of.rows, kv_width, kv * of.d, of.d, at); // Values take the keys' place.
        __syncthreads();
#pragma unroll
        for (int j = 0; j < COLUMNS; j++) {
            float sum = sums[j] * shrink;
            for (int c = 0; c < TILE; c++) sum += weights[r * (TILE + 1) + c] * keys[c * (DIM + 1) + part + j * SHARE];
            sums[j] = sum;
        }
    }
    if (row >= of.rows) return;
#pragma unroll
    for (int j = 0; j < COLUMNS; j++) {
        u32 c = part + j * SHARE;
        if (c < of.d) out[(u64)row * q_width + head * of.d + c] = total == 0.0f ? 0.0f : sums[j] / total;
    }
    if (part == 0) lse[(u64)row * of.heads + head] = total == 0.0f ? 0.0f : top + logf(total);
}

// The weight p and the gradient ds of one score.
__device__ __forceinline__ void gradient(const Heads& of, float product, float d_weight, float lse, float along,
                                         bool sees, float* p, float* ds) {
    float slope, score = score_of(of, product, &slope);
    *p = sees ? expf(score - lse) : 0.0f;
    *ds = *p * (d_weight - along) * slope;
}

// A block takes TILE keys of one key/value head and gathers from all queries that see them.
template <int TILE, int DIM>
__device__ __forceinline__ void backward_kv(const Heads& of, const float* q, const float* k, const float* v,
                                            const u32* starts, const float* d_out, const float* lse,
                                            const float* along, float* dk, float* dv, float* queries, float* keys,
                                            float* values, float* d_outs, float* weights, float* slopes) {
    constexpr int SHARE = THREADS / TILE, MINE = TILE / SHARE, COLUMNS = DIM / SHARE;
    u32 kv = blockIdx.y, group = of.heads / of.kv_heads, first = blockIdx.x * TILE;
    u32 r = threadIdx.x / SHARE, part = threadIdx.x % SHARE, key = first + r;
    u32 q_width = of.heads * of.d, kv_width = of.kv_heads * of.d;
    load<TILE, DIM>(keys, k, of.rows, kv_width, kv * of.d, of.d, first);
    load<TILE, DIM>(values, v, of.rows, kv_width, kv * of.d, of.d, first);
    float sum_k[COLUMNS], sum_v[COLUMNS];
#pragma unroll
    for (int j = 0; j < COLUMNS; j++) sum_k[j] = sum_v[j] = 0.0f;
    for (u32 head = kv * group; head < (kv + 1) * group; head++) {
        for (u32 at = first; at < of.rows && lowest(of, starts, at) < first + TILE; at += TILE) {
            __syncthreads();
            load<TILE, DIM>(queries, q, of.rows, q_width, head * of.d, of.d, at);
            load<TILE, DIM>(d_outs, d_out, of.rows, q_width, head * of.d, of.d, at);
            __syncthreads();
#pragma unroll
            for (int j = 0; j < MINE; j++) {
                u32 c = part + j * SHARE, row = at + c;
                float product = dot<DIM>(queries + c * (DIM + 1), keys + r * (DIM + 1));
                float d_weight = dot<DIM>(d_outs + c * (DIM + 1), values + r * (DIM + 1));
                bool sees = row < of.rows && key <= row && lowest(of, starts, row) <= key;
                u64 saved = sees ? (u64)row * of.heads + head : 0;
                gradient(of, product, d_weight, lse[saved], along[saved], sees, weights + c * (TILE + 1) + r,
                         slopes + c * (TILE + 1) + r);
            }
            __syncthreads();
#pragma unroll
            for (int j = 0; j < COLUMNS; j++) {
                u32 column = part + j * SHARE;
                for (int c = 0; c < TILE; c++) {
                    sum_v[j] += weights[c * (TILE + 1) + r] * d_outs[c * (DIM + 1) + column];
                    sum_k[j] += slopes[c * (TILE + 1) + r] * queries[c * (DIM + 1) + column];
                }
            }
        }
    }
    if (key >= of.rows) return;
#pragma unroll
    for (int j = 0; j < COLUMNS; j++) {
        u32 c = part + j * SHARE;
        if (c >= of.d) continue;
        dk[(u64)key * kv_width + kv * of.d + c] = sum_k[j];
        dv[(u64)key * kv_width + kv * of.d + c] = sum_v[j];
    }
}

// A block takes TILE queries of one head and gathers from all keys that they see.
template <int TILE, int DIM>
__device__ __forceinline__ void backward_q(const Heads& of, const float* q, const float* k, const float* v,
                                           const u32* starts, const float* d_out, const float* lse,
                                           const float* along, float* dq, float* queries, float* keys, float* values,
                                           float* d_outs, float* slopes) {
    constexpr int SHARE = THREADS / TILE, MINE = TILE / SHARE, COLUMNS = DIM / SHARE;
    u32 head = blockIdx.y, kv = head / (of.heads / of.kv_heads), first = blockIdx.x * TILE;
    u32 r = threadIdx.x / SHARE, part = threadIdx.x % SHARE, row = first + r;
    u32 q_width = of.heads * of.d, kv_width = of.kv_heads * of.d;
    load<TILE, DIM>(queries, q, of.rows, q_width, head * of.d, of.d, first);
    load<TILE, DIM>(d_outs, d_out, of.rows, q_width, head * of.d, of.d, first);
    u32 low = row < of.rows ? lowest(of, starts, row) : row + 1;
    u64 saved = row < of.rows ? (u64)row * of.heads + head : 0;
    float sums[COLUMNS], my_lse = lse[saved], my_along = along[saved];
#pragma unroll
    for (int j = 0; j < COLUMNS; j++) sums[j] = 0.0f;
    u32 end = first + TILE < of.rows ? first + TILE : of.rows;
    for (u32 at = lowest(of, starts, first) / TILE * TILE; at < end; at += TILE) {
        __syncthreads();
        load<TILE, DIM>(keys, k, of.rows, kv_width, kv * of.d, of.d, at);
        load<TILE, DIM>(values, v, of.rows, kv_width, kv * of.d, of.d, at);
        __syncthreads();
#pragma unroll
        for (int j = 0; j < MINE; j++) {
            u32 c = part + j * SHARE;
            float product = dot<DIM>(queries + r * (DIM + 1), keys + c * (DIM + 1)), p;
            float d_weight = dot<DIM>(d_outs + r * (DIM + 1), values + c * (DIM + 1));
            bool sees = row < of.rows && low <= at + c && at + c <= row;
            gradient(of, product, d_weight, my_lse, my_along, sees, &p, slopes + r * (TILE + 1) + c);
        }
        __syncthreads();
#pragma unroll
        for (int j = 0; j < COLUMNS; j++)
            for (int c = 0; c < TILE; c++)
                sums[j] += slopes[r * (TILE + 1) + c] * keys[c * (DIM + 1) + part + j * SHARE];
    }
    if (row >= of.rows) return;
#pragma unroll
    for (int j = 0; j < COLUMNS; j++) {
        u32 c = part + j * SHARE;
        if (c < of.d) dq[(u64)row * q_width + head * of.d + c] = sums[j];
    }
}

extern "C" __global__ void attention_along(const float* out, const float* d_out, u64 count, u32 d, float* along) {
    sum_along(out, d_out, count, d, along);
}

#define FORWARD(TILE, DIM)                                                                                            \
    extern "C" __global__ void __launch_bounds__(THREADS) attention_forward_##DIM(                                    \
        u32 rows, u32 heads, u32 kv_heads, u32 d, float scale, float softcap, u32 window, const float* q,             \
        const float* k, const float* v, const u32* starts, float* out, float* lse) {                                  \
        __shared__ float queries[TILE * (DIM + 1)], keys[TILE * (DIM + 1)], weights[TILE * (TILE + 1)];               \
        Heads of = {rows, heads, kv_heads, d, scale, softcap, window};                                                \
        forward<TILE, DIM>(of, q, k, v, starts, out, lse, queries, keys, weights);                                    \
    }

#define BACKWARD(TILE, DIM)                                                                                           \
    extern "C" __global__ void __launch_bounds__(THREADS) attention_backward_kv_##DIM(                                \
        u32 rows, u32 heads, u32 kv_heads, u32 d, float scale, float softcap, u32 window, const float* q,             \
        const float* k, const float* v, const u32* starts, const float* d_out, const float* lse, const float* along,  \
        float* dk, float* dv) {                                                                                       \
        __shared__ float queries[TILE * (DIM + 1)], keys[TILE * (DIM + 1)], values[TILE * (DIM + 1)];                 \
        __shared__ float d_outs[TILE * (DIM + 1)], weights[TILE * (TILE + 1)], slopes[TILE * (TILE + 1)];             \
        Heads of = {rows, heads, kv_heads, d, scale, softcap, window};                                                \
        backward_kv<TILE, DIM>(of, q, k, v, starts, d_out, lse, along, dk, dv, queries, keys, values, d_outs,         \
                               weights, slopes);                                                                      \
    }                                                                                                                 \
    extern "C" __global__ void __launch_bounds__(THREADS) attention_backward_q_##DIM(                                 \
        u32 rows, u32 heads, u32 kv_heads, u32 d, float scale, float softcap, u32 window, const float* q,             \
        const float* k, const float* v, const u32* starts, const float* d_out, const float* lse, const float* along,  \
        float* dq) {                                                                                                  \
        __shared__ float queries[TILE * (DIM + 1)], keys[TILE * (DIM + 1)], values[TILE * (DIM + 1)];                 \
        __shared__ float d_outs[TILE * (DIM + 1)], slopes[TILE * (TILE + 1)];                                         \
        Heads of = {rows, heads, kv_heads, d, scale, softcap, window};                                                \
        backward_q<TILE, DIM>(of, q, k, v, starts, d_out, lse, along, dq, queries, keys, values, d_outs, slopes);     \
    }

// A block has 48 KiB of shared memory without asking for more.
FORWARD(32, 64)
FORWARD(32, 128)
BACKWARD(32, 64)
BACKWARD(16, 128)
