// ggml's block formats, as GGUF files hold them, back to bf16 or f32: the operations of the CPU's (cpu/quantised/ggml)
// in their order, each rounded by itself.
#include "common.cuh"

// Half precision from its bits.
__device__ __forceinline__ float half_at(const u8* at) {
    u32 bits = (u32)at[0] | (u32)at[1] << 8;
    float magnitude = __uint_as_float((bits & 0x7fffu) << 13) * __uint_as_float((127u + 112u) << 23);
    u32 special = (bits & 0x7c00u) == 0x7c00u ? 0xffu << 23 : 0u;
    return __uint_as_float(__float_as_uint(magnitude) | special | (bits & 0x8000u) << 16);
}

// a·b + c in two roundings.
__device__ __forceinline__ float scaled(float a, float b, float c) { return __fadd_rn(__fmul_rn(a, b), c); }

struct F16 {
    enum { VALUES = 1, BYTES = 2 };
    static __device__ __forceinline__ float value(const u8* block, u32) { return half_at(block); }
};

// Code j of 32 in halves of 16 bytes: the low halves are the first 16.
__device__ __forceinline__ u32 half_code(const u8* bytes, u32 j) {
    return j < 16u ? bytes[j] & 15u : bytes[j - 16u] >> 4;
}

// Bit j of four bytes, as the fifth of a code.
__device__ __forceinline__ u32 fifth(const u8* bits, u32 j) { return (bits[j / 8u] >> (j % 8u) & 1u) << 4; }

struct Q4_0 {
    enum { VALUES = 32, BYTES = 18 };
    static __device__ __forceinline__ float value(const u8* block, u32 j) {
        return half_at(block) * ((float)half_code(block + 2, j) - 8.0f);
    }
};

struct Q4_1 {
    enum { VALUES = 32, BYTES = 20 };
    static __device__ __forceinline__ float value(const u8* block, u32 j) {
        return scaled(half_at(block), (float)half_code(block + 4, j), half_at(block + 2));
    }
};

struct Q5_0 {
    enum { VALUES = 32, BYTES = 22 };
    static __device__ __forceinline__ float value(const u8* block, u32 j) {
        return half_at(block) * ((float)(half_code(block + 6, j) | fifth(block + 2, j)) - 16.0f);
    }
};

struct Q5_1 {
    enum { VALUES = 32, BYTES = 24 };
    static __device__ __forceinline__ float value(const u8* block, u32 j) {
        float code = (float)(half_code(block + 8, j) | fifth(block + 4, j));
        return scaled(half_at(block), code, half_at(block + 2));
    }
};

struct Q8_0 {
    enum { VALUES = 32, BYTES = 34 };
    static __device__ __forceinline__ float value(const u8* block, u32 j) {
        return (float)(signed char)block[2 + j] * half_at(block);
    }
};

// First byte and shift of group i of 16 among quarters: 128 values take 32 bytes, 32 of them at each shift.
__device__ __forceinline__ u32 quarter_at(u32 i) { return i / 8u * 32u + i % 2u * 16u; }
__device__ __forceinline__ u32 quarter_shift(u32 i) { return i % 8u / 2u * 2u; }

struct Q2_K {
    enum { VALUES = 256, BYTES = 84 };
    static __device__ __forceinline__ float value(const u8* block, u32 j) {
        u32 i = j / 16u, code = block[16u + quarter_at(i) + j % 16u] >> quarter_shift(i) & 3u;
        float scale = half_at(block + 80) * (float)(block[i] & 15u);
        return scaled(scale, (float)code, -(half_at(block + 82) * (float)(block[i] >> 4)));
    }
};

struct Q3_K {
    enum { VALUES = 256, BYTES = 110 };
    static __device__ __forceinline__ float value(const u8* block, u32 j) {
        const u8* scales = block + 96;
        u32 i = j / 16u, at = quarter_at(i) + j % 16u;
        u32 low = scales[i % 8u] >> (4u * (i / 8u)) & 15u, high = scales[8u + i % 4u] >> (2u * (i / 4u)) & 3u;
        float scale = half_at(block + 108) * ((float)(low | high << 4) - 32.0f);
        // A bit that is not set takes four away.
        u32 missing = 4u * (~((u32)block[at % 32u] >> (i / 2u)) & 1u);
        return scale * ((float)(block[32u + at] >> quarter_shift(i) & 3u) - (float)missing);
    }
};

// A value of group i of 32, by its code: d, dmin, then a scale and a least value for each group, six bits each in twelve
// bytes.
__device__ __forceinline__ float in_group(const u8* block, u32 i, u32 code) {
    const u8* bytes = block + 4;
    u32 scale = i < 4u ? bytes[i] & 63u : (bytes[i + 4u] & 15u) | (u32)(bytes[i - 4u] >> 6) << 4;
    u32 least = i < 4u ? bytes[i + 4u] & 63u : bytes[i + 4u] >> 4 | (u32)(bytes[i] >> 6) << 4;
    return scaled(half_at(block) * (float)scale, (float)code, -(half_at(block + 2) * (float)least));
}

// Four bits of value j: the low halves of 32 bytes are a group, the high ones the next.
__device__ __forceinline__ u32 group_code(const u8* halves, u32 j) {
    return halves[j / 64u * 32u + j % 32u] >> (j / 32u % 2u * 4u) & 15u;
}

struct Q4_K {
    enum { VALUES = 256, BYTES = 144 };
    static __device__ __forceinline__ float value(const u8* block, u32 j) {
        return in_group(block, j / 32u, group_code(block + 16, j));
    }
};

struct Q5_K {
    enum { VALUES = 256, BYTES = 176 };
    static __device__ __forceinline__ float value(const u8* block, u32 j) {
        u32 i = j / 32u, fifth = (block[16u + j % 32u] >> i & 1u) << 4;
        return in_group(block, i, group_code(block + 48, j) | fifth);
    }
};

struct Q6_K {
    enum { VALUES = 256, BYTES = 210 };
    static __device__ __forceinline__ float value(const u8* block, u32 j) {
        u32 i = j / 16u, e = j % 16u;
        float scale = half_at(block + 208) * (float)(signed char)block[192u + i];
        // 128 values take 64 bytes of halves: the low ones of all, then the high ones.
        u32 low = block[i / 8u * 64u + i % 4u * 16u + e] >> (i % 8u / 4u * 4u) & 15u;
        u32 high = block[128u + quarter_at(i) + e] >> quarter_shift(i) & 3u;
        return scale * ((float)(low | high << 4) - 32.0f);
    }
};

// `count` values of rows of `width`: the rows `ids`, or all in their order. W neighbours are of one row, and of one block
// where blocks have so many.
template <int W, typename Format, typename T>
__device__ __forceinline__ void each(const u8* blocks, const u32* ids, u32 width, u64 count, T* y) {
    for (u64 i = W * first_of_grid(); i < count; i += W * stride_of_grid()) {
        u64 at = ids ? (u64)ids[i / width] * width + i % width : i;
        constexpr u32 TOGETHER = W < Format::VALUES ? W : Format::VALUES;
        float values[W];
#pragma unroll
        for (u32 k = 0; k < W; k++) {
            const u8* block = blocks + (at + k / TOGETHER * TOGETHER) / Format::VALUES * Format::BYTES;
            values[k] = Format::value(block, (u32)(at % Format::VALUES) + k % TOGETHER);
        }
        store(y + i, values);
    }
}

// By ggml's numbers of its types.
template <int W, typename T>
__device__ __forceinline__ void widen(const u8* blocks, u32 type, const u32* ids, u32 width, u64 count, T* y) {
    switch (type) {
    case 1: return each<W, F16>(blocks, ids, width, count, y);
    case 2: return each<W, Q4_0>(blocks, ids, width, count, y);
    case 3: return each<W, Q4_1>(blocks, ids, width, count, y);
    case 6: return each<W, Q5_0>(blocks, ids, width, count, y);
    case 7: return each<W, Q5_1>(blocks, ids, width, count, y);
    case 8: return each<W, Q8_0>(blocks, ids, width, count, y);
    case 10: return each<W, Q2_K>(blocks, ids, width, count, y);
    case 11: return each<W, Q3_K>(blocks, ids, width, count, y);
    case 12: return each<W, Q4_K>(blocks, ids, width, count, y);
    case 13: return each<W, Q5_K>(blocks, ids, width, count, y);
    case 14: return each<W, Q6_K>(blocks, ids, width, count, y);
    }
}

#define GGML(suffix, W, T)                                                                                             \
    extern "C" __global__ void ggml##suffix(const u8* blocks, u32 type, const u32* ids, u32 width, u64 count, T* y) {  \
        widen<W>(blocks, type, ids, width, count, y);                                                                  \
    }

GGML(_f32, 1, float)
GGML(_f32_vec, VECTOR, float)
GGML(_bf16, 1, u16)
GGML(_bf16_vec, VECTOR, u16)
