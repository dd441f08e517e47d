// Causal attention inside segments on tensor cores (Dao, 2023): what the f32 kernels of attention.cu do, with q, k, v and
// out kept in bf16, the weights and their slopes rounded to it, and every sum and gradient in f32. A warp has 16 rows of
// a tile of 64, and the scores of its rows never leave its registers.
//
// Tiles lie in shared memory with 8 values of padding a row: the 32 words of a fragment then lie in 32 banks.
#include "attention.cuh"
#include "tensor_cores.cuh"

#define WARPS (THREADS / LANES)
#define TILE (16 * WARPS) // rows of a block
#define LOG2_E 1.44269504f

__device__ __forceinline__ u32 two(const float* at) { return pair(at[0], at[1]); }
__device__ __forceinline__ u32 two(const u16* at) { return word(at); }

// Rows first … first + ROWS − 1 of one head of x `[N, width]` into `tile`; what lies outside is 0. d is even.
template <int ROWS, int DIM, class T>
__device__ __forceinline__ void load(u16* tile, const T* x, u32 rows, u32 width, u32 column, u32 d, u32 first) {
    for (u32 i = threadIdx.x; i < ROWS * DIM / 2; i += THREADS) {
        u32 r = i / (DIM / 2), c = 2 * (i % (DIM / 2));
        const T* at = x + (u64)(first + r) * width + column + c;
        bool inside = first + r < rows && c < d;
        *(u32*)(tile + r * (DIM + 8) + c) = inside ? two(at) : 0;
    }
}

// c [16, 8·COLUMNS] += a·b, where a [16, DIM] stands in fragments and b's columns are the rows of `matrix`.
template <int COLUMNS, int DIM>
__device__ __forceinline__ void multiply_rows(float (&c)[COLUMNS][4], const u32 (&a)[DIM / 16][4], const u16* matrix) {
#pragma unroll
    for (int j = 0; j < COLUMNS; j++)
#pragma unroll
        for (int k = 0; k < DIM / 16; k++) {
            u32 b[2];
            load_b_of_rows(b, matrix + 8 * j * (DIM + 8), DIM + 8, 16 * k);
            mma(c[j], a[k], b);
        }
}

// The same with a in shared memory: its 16 rows begin at `rows`.
template <int COLUMNS, int DIM>
__device__ __forceinline__ void multiply_rows(float (&c)[COLUMNS][4], const u16* rows, const u16* matrix) {
#pragma unroll
    for (int k = 0; k < DIM / 16; k++) {
        u32 a[4], b[2];
        load_a(a, rows, DIM + 8, 16 * k);
#pragma unroll
        for (int j = 0; j < COLUMNS; j++) {
            load_b_of_rows(b, matrix + 8 * j * (DIM + 8), DIM + 8, 16 * k);
            mma(c[j], a, b);
        }
    }
}

// c [16, DIM] += a·matrix, where a [16, 8·COLUMNS] are the values of an earlier product and `matrix` has 8·COLUMNS rows.
template <int COLUMNS, int DIM>
__device__ __forceinline__ void multiply(float (&c)[DIM / 8][4], const float (&a)[COLUMNS][4], const u16* matrix) {
    const u16* row = matrix + threadIdx.x % 16 * (DIM + 8);
#pragma unroll
    for (int k = 0; k < COLUMNS / 2; k++) {
        const float(&left)[4] = a[2 * k], (&right)[4] = a[2 * k + 1];
        u32 both[4] = {pair(left[0], left[1]), pair(left[2], left[3]), pair(right[0], right[1]), pair(right[2], right[3])};
#pragma unroll
        for (int j = 0; j < DIM / 8; j++) {
            u32 b[2];
            load_b(b, row + 16 * k * (DIM + 8) + 8 * j);
            mma(c[j], both, b);
        }
    }
}

template <int COLUMNS>
__device__ __forceinline__ void clear(float (&c)[COLUMNS][4]) {
#pragma unroll
    for (int j = 0; j < COLUMNS; j++) c[j][0] = c[j][1] = c[j][2] = c[j][3] = 0.0f;
}

// A row of a product lies in four neighbouring lanes.
__device__ __forceinline__ float row_max(float x) {
    x = fmaxf(x, __shfl_xor_sync(ALL_LANES, x, 1));
    return fmaxf(x, __shfl_xor_sync(ALL_LANES, x, 2));
}

__device__ __forceinline__ float row_sum(float x) {
    x += __shfl_xor_sync(ALL_LANES, x, 1);
    return x + __shfl_xor_sync(ALL_LANES, x, 2);
}

// Writes a row's two values a lane has of each eight columns.
template <int DIM, class T>
__device__ __forceinline__ void store(T* to, const float (&c)[DIM / 8][4], int half, u32 d, float by) {
    u32 t = threadIdx.x % 4;
#pragma unroll
    for (int j = 0; j < DIM / 8; j++)
        if (8 * j + 2 * t < d) {
            put(to + 8 * j + 2 * t, by * c[j][2 * half]);
            put(to + 8 * j + 2 * t + 1, by * c[j][2 * half + 1]);
        }
}

// A block takes TILE queries of one head.
template <int DIM>
__device__ __forceinline__ void forward(const Heads& of, const u16* q, const u16* k, const u16* v,
                                        const u32* starts, u16* out, float* lse, u16* keys, u16* values) {
    constexpr int COLUMNS = TILE / 8;
    u32 head = blockIdx.y, kv = head / (of.heads / of.kv_heads), first = blockIdx.x * TILE;
    u32 warp = threadIdx.x / LANES, g = threadIdx.x % LANES / 4, t = threadIdx.x % 4;
    u32 q_width = of.heads * of.d, kv_width = of.kv_heads * of.d;
    // The queries go through the keys' place into registers.
    load<TILE, DIM>(keys, q, of.rows, q_width, head * of.d, of.d, first);
    __syncthreads();
    u32 queries[DIM / 16][4];
#pragma unroll
    for (int i = 0; i < DIM / 16; i++) load_a(queries[i], keys + 16 * warp * (DIM + 8), DIM + 8, 16 * i);
    u32 row[2] = {first + 16 * warp + g, first + 16 * warp + g + 8}, low[2];
    float top[2] = {LOWEST, LOWEST}, total[2] = {0.0f, 0.0f}, sums[DIM / 8][4];
    for (int half = 0; half < 2; half++) low[half] = row[half] < of.rows ? lowest(of, starts, row[half]) : row[half] + 1;
    clear(sums);
    u32 end = first + TILE < of.rows ? first + TILE : of.rows;
    for (u32 at = lowest(of, starts, first) / TILE * TILE; at < end; at += TILE) {
        __syncthreads();
        load<TILE, DIM>(keys, k, of.rows, kv_width, kv * of.d, of.d, at);
        load<TILE, DIM>(values, v, of.rows, kv_width, kv * of.d, of.d, at);
        __syncthreads();
        float scores[COLUMNS][4], here[2] = {LOWEST, LOWEST}, slope;
        clear(scores);
        multiply_rows<COLUMNS, DIM>(scores, queries, keys);
#pragma unroll
        for (int j = 0; j < COLUMNS; j++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                u32 key = at + 8 * j + 2 * t + i % 2;
                scores[j][i] = score_of(of, scores[j][i], &slope);
                if (low[i / 2] <= key && key <= row[i / 2]) here[i / 2] = fmaxf(here[i / 2], scores[j][i]);
            }
        float shrink[2], added[2] = {0.0f, 0.0f};
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float new_top = fmaxf(top[half], row_max(here[half]));
            shrink[half] = exp2f((top[half] - new_top) * LOG2_E);
            top[half] = new_top;
        }
#pragma unroll
        for (int j = 0; j < COLUMNS; j++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                u32 key = at + 8 * j + 2 * t + i % 2;
                bool sees = low[i / 2] <= key && key <= row[i / 2];
                scores[j][i] = sees ? exp2f((scores[j][i] - top[i / 2]) * LOG2_E) : 0.0f;
                added[i / 2] += scores[j][i];
            }
#pragma unroll
        for (int half = 0; half < 2; half++) total[half] = total[half] * shrink[half] + row_sum(added[half]);
#pragma unroll
        for (int j = 0; j < DIM / 8; j++)
#pragma unroll
            for (int i = 0; i < 4; i++) sums[j][i] *= shrink[i / 2];
        multiply<COLUMNS, DIM>(sums, scores, values);
    }
#pragma unroll
    for (int half = 0; half < 2; half++) {
        if (row[half] >= of.rows) continue;
        float by = total[half] == 0.0f ? 0.0f : 1.0f / total[half];
        store<DIM>(out + (u64)row[half] * q_width + head * of.d, sums, half, of.d, by);
        float saved = total[half] == 0.0f ? 0.0f : top[half] + logf(total[half]);
        if (t == 0) lse[(u64)row[half] * of.heads + head] = saved;
    }
}

// The weight p and the gradient ds of one score, in the places of its product and of its weight's gradient.
__device__ __forceinline__ void gradient(const Heads& of, float& product, float& d_weight, float lse, float along,
                                         bool sees) {
    float slope, score = score_of(of, product, &slope);
    product = sees ? exp2f((score - lse) * LOG2_E) : 0.0f;
    d_weight = sees ? product * (d_weight - along) * slope : 0.0f;
}

// A block takes TILE keys of one key/value head and gathers from all queries that see them, STEP at a time. A warp's rows
// are keys here, so that the weights, keys by queries, are the left side of the products that gather.
template <int STEP, int DIM>
__device__ __forceinline__ void backward_kv(const Heads& of, const u16* q, const u16* k, const u16* v,
                                            const u32* starts, const float* d_out, const float* lse,
                                            const float* along, float* dk, float* dv, u16* keys, u16* values,
                                            u16* queries, u16* d_outs) {
    constexpr int COLUMNS = STEP / 8;
    u32 kv = blockIdx.y, group = of.heads / of.kv_heads, first = blockIdx.x * TILE;
    u32 warp = threadIdx.x / LANES, g = threadIdx.x % LANES / 4, t = threadIdx.x % 4;
    u32 q_width = of.heads * of.d, kv_width = of.kv_heads * of.d;
    u32 key[2] = {first + 16 * warp + g, first + 16 * warp + g + 8};
    const u16 *my_keys = keys + 16 * warp * (DIM + 8), *my_values = values + 16 * warp * (DIM + 8);
    load<TILE, DIM>(keys, k, of.rows, kv_width, kv * of.d, of.d, first);
    load<TILE, DIM>(values, v, of.rows, kv_width, kv * of.d, of.d, first);
    float sum_k[DIM / 8][4], sum_v[DIM / 8][4];
    clear(sum_k);
    clear(sum_v);
    for (u32 head = kv * group; head < (kv + 1) * group; head++) {
        for (u32 at = first; at < of.rows && lowest(of, starts, at) < first + TILE; at += STEP) {
            __syncthreads();
            load<STEP, DIM>(queries, q, of.rows, q_width, head * of.d, of.d, at);
            load<STEP, DIM>(d_outs, d_out, of.rows, q_width, head * of.d, of.d, at);
            __syncthreads();
            float weights[COLUMNS][4], slopes[COLUMNS][4];
            clear(weights);
            clear(slopes);
            multiply_rows<COLUMNS, DIM>(weights, my_keys, queries);
            multiply_rows<COLUMNS, DIM>(slopes, my_values, d_outs);
#pragma unroll
            for (int j = 0; j < COLUMNS; j++)
#pragma unroll
                for (int i = 0; i < 2; i++) {
                    u32 row = at + 8 * j + 2 * t + i, low = row < of.rows ? lowest(of, starts, row) : row + 1;
                    u64 saved = row < of.rows ? (u64)row * of.heads + head : 0;
                    float my_lse = lse[saved], my_along = along[saved];
#pragma unroll
                    for (int half = 0; half < 2; half++) {
                        bool sees = low <= key[half] && key[half] <= row;
                        gradient(of, weights[j][2 * half + i], slopes[j][2 * half + i], my_lse, my_along, sees);
                    }
                }
            multiply<COLUMNS, DIM>(sum_v, weights, d_outs);
            multiply<COLUMNS, DIM>(sum_k, slopes, queries);
        }
    }
#pragma unroll
    for (int half = 0; half < 2; half++) {
        if (key[half] >= of.rows) continue;
        u64 to = (u64)key[half] * kv_width + kv * of.d;
        store<DIM>(dk + to, sum_k, half, of.d, 1.0f);
        store<DIM>(dv + to, sum_v, half, of.d, 1.0f);
    }
}

// A block takes TILE queries of one head and gathers from all keys that they see, STEP at a time. `room` holds TILE rows.
template <int STEP, int DIM>
__device__ __forceinline__ void backward_q(const Heads& of, const u16* q, const u16* k, const u16* v,
                                           const u32* starts, const float* d_out, const float* lse,
                                           const float* along, float* dq, u16* room) {
    constexpr int COLUMNS = STEP / 8;
    static_assert(2 * STEP <= TILE, "keys and values lie where a tile of queries was");
    u32 head = blockIdx.y, kv = head / (of.heads / of.kv_heads), first = blockIdx.x * TILE;
    u32 warp = threadIdx.x / LANES, g = threadIdx.x % LANES / 4, t = threadIdx.x % 4;
    u32 q_width = of.heads * of.d, kv_width = of.kv_heads * of.d;
    u32 queries[DIM / 16][4], d_outs[DIM / 16][4];
    const u16* mine = room + 16 * warp * (DIM + 8);
    load<TILE, DIM>(room, q, of.rows, q_width, head * of.d, of.d, first);
    __syncthreads();
#pragma unroll
    for (int i = 0; i < DIM / 16; i++) load_a(queries[i], mine, DIM + 8, 16 * i);
    __syncthreads();
    load<TILE, DIM>(room, d_out, of.rows, q_width, head * of.d, of.d, first);
    __syncthreads();
#pragma unroll
    for (int i = 0; i < DIM / 16; i++) load_a(d_outs[i], mine, DIM + 8, 16 * i);
    u32 row[2] = {first + 16 * warp + g, first + 16 * warp + g + 8}, low[2];
    float my_lse[2], my_along[2], sums[DIM / 8][4];
#pragma unroll
    for (int half = 0; half < 2; half++) {
        bool inside = row[half] < of.rows;
        u64 saved = inside ? (u64)row[half] * of.heads + head : 0;
        low[half] = inside ? lowest(of, starts, row[half]) : row[half] + 1;
        my_lse[half] = lse[saved];
        my_along[half] = along[saved];
    }
    clear(sums);
    u16 *keys = room, *values = room + STEP * (DIM + 8);
    u32 end = first + TILE < of.rows ? first + TILE : of.rows;
    for (u32 at = lowest(of, starts, first) / STEP * STEP; at < end; at += STEP) {
        __syncthreads();
        load<STEP, DIM>(keys, k, of.rows, kv_width, kv * of.d, of.d, at);
        load<STEP, DIM>(values, v, of.rows, kv_width, kv * of.d, of.d, at);
        __syncthreads();
        float weights[COLUMNS][4], slopes[COLUMNS][4];
        clear(weights);
        clear(slopes);
        multiply_rows<COLUMNS, DIM>(weights, queries, keys);
        multiply_rows<COLUMNS, DIM>(slopes, d_outs, values);
#pragma unroll
        for (int j = 0; j < COLUMNS; j++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                u32 key = at + 8 * j + 2 * t + i % 2;
                bool sees = low[i / 2] <= key && key <= row[i / 2];
                gradient(of, weights[j][i], slopes[j][i], my_lse[i / 2], my_along[i / 2], sees);
            }
        multiply<COLUMNS, DIM>(sums, slopes, keys);
    }
#pragma unroll
    for (int half = 0; half < 2; half++)
        if (row[half] < of.rows) store<DIM>(dq + (u64)row[half] * q_width + head * of.d, sums, half, of.d, 1.0f);
}

extern "C" __global__ void attention_bf16_along(const u16* out, const float* d_out, u64 count, u32 d, float* along) {
    sum_along(out, d_out, count, d, along);
}

#define FORWARD(DIM)                                                                                                  \
    extern "C" __global__ void __launch_bounds__(THREADS) attention_bf16_forward_##DIM(                               \
        u32 rows, u32 heads, u32 kv_heads, u32 d, float scale, float softcap, u32 window, const u16* q,             \
        const u16* k, const u16* v, const u32* starts, u16* out, float* lse) {                                  \
        __shared__ __align__(16) u16 keys[TILE * (DIM + 8)], values[TILE * (DIM + 8)];                                \
        Heads of = {rows, heads, kv_heads, d, scale, softcap, window};                                                \
        forward<DIM>(of, q, k, v, starts, out, lse, keys, values);                                                    \
    }

#define BACKWARD(STEP, DIM)                                                                                           \
    extern "C" __global__ void __launch_bounds__(THREADS) attention_bf16_backward_kv_##DIM(                           \
        u32 rows, u32 heads, u32 kv_heads, u32 d, float scale, float softcap, u32 window, const u16* q,             \
        const u16* k, const u16* v, const u32* starts, const float* d_out, const float* lse, const float* along,  \
        float* dk, float* dv) {                                                                                       \
        __shared__ __align__(16) u16 keys[TILE * (DIM + 8)], values[TILE * (DIM + 8)];                                \
        __shared__ __align__(16) u16 queries[STEP * (DIM + 8)], d_outs[STEP * (DIM + 8)];                             \
        Heads of = {rows, heads, kv_heads, d, scale, softcap, window};                                                \
        backward_kv<STEP, DIM>(of, q, k, v, starts, d_out, lse, along, dk, dv, keys, values, queries, d_outs);        \
    }                                                                                                                 \
    extern "C" __global__ void __launch_bounds__(THREADS) attention_bf16_backward_q_##DIM(                            \
        u32 rows, u32 heads, u32 kv_heads, u32 d, float scale, float softcap, u32 window, const u16* q,             \
        const u16* k, const u16* v, const u32* starts, const float* d_out, const float* lse, const float* along,  \
        float* dq) {                                                                                                  \
        __shared__ __align__(16) u16 room[TILE * (DIM + 8)];                                                          \
        Heads of = {rows, heads, kv_heads, d, scale, softcap, window};                                                \
        backward_q<32, DIM>(of, q, k, v, starts, d_out, lse, along, dq, room);                                        \
    }

// A block has 48 KiB of shared memory without asking for more.
FORWARD(64)
FORWARD(128)
BACKWARD(32, 64)
BACKWARD(16, 128)
