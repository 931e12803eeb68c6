// Vectors of 16 floats, and the one kernel of all matrix products, attention's included: a few rows
// of input times a block of 64 columns. A block is laid out input by input, in bfloat16 two inputs
// at a time: the pairs that the CPU's dot product instruction takes. Sums are float32.

#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <omp.h>
#if defined(__AVX512BF16__)
#include <immintrin.h>
#endif

namespace {

constexpr int LANES = 16, COLUMNS = 4, BLOCK = LANES * COLUMNS;
#if defined(__AVX512F__)
constexpr int ROWS = 6;  // ROWS x COLUMNS sums in 32 registers
#else
constexpr int ROWS = 1;  // a vector of 16 floats takes two of 16 registers
#endif

typedef float floats __attribute__((vector_size(64)));
typedef int32_t ints __attribute__((vector_size(64)));
typedef uint16_t shorts __attribute__((vector_size(32)));
// Blocks are written as one type and read as another.
typedef float floats_anywhere __attribute__((vector_size(64), aligned(4), may_alias));
typedef int32_t ints_anywhere __attribute__((vector_size(64), aligned(2), may_alias));
typedef uint16_t shorts_anywhere __attribute__((vector_size(32), aligned(2), may_alias));

struct bfloat16 {
    uint16_t bits;
};

template <class T> constexpr int PAIR = 4 / sizeof(T);  // inputs side by side in a lane

inline float widen(float x) { return x; }
inline float widen(bfloat16 x) {
    uint32_t bits = uint32_t(x.bits) << 16;
    float wide;
    memcpy(&wide, &bits, 4);
    return wide;
}
inline floats all(float x) { return x - floats{}; }
inline floats load(const float* p) { return *(const floats_anywhere*)p; }
inline floats load(const bfloat16* p) {
    return (floats)(__builtin_convertvector(*(const shorts_anywhere*)p, ints) << 16);
}
inline void store(floats x, float* p) { *(floats_anywhere*)p = x; }
inline void store(floats x, bfloat16* p) {  // rounds to nearest, ties to even
#if defined(__AVX512BF16__)
    _mm256_storeu_si256((__m256i*)p, (__m256i)_mm512_cvtneps_pbh((__m512)x));
#else
    ints bits = (ints)x;
    bits = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    *(shorts_anywhere*)p = __builtin_convertvector(bits, shorts);
#endif
}

// sum += x[0] * w[0] (+ x[1] * w[1]), for 16 columns
inline floats multiply_add(floats sum, const float* x, const float* w) {
    return sum + all(*x) * load(w);
}
inline floats multiply_add(floats sum, const bfloat16* x, const bfloat16* w) {
    int32_t pair;
    memcpy(&pair, x, 4);
    ints weights = *(const ints_anywhere*)w;
#if defined(__AVX512BF16__)
    return (floats)_mm512_dpbf16_ps(
        (__m512)sum, (__m512bh)_mm512_set1_epi32(pair), (__m512bh)weights);
#else
    float first, second;
    int32_t low = pair << 16, high = pair & int32_t(0xffff0000);
    memcpy(&first, &low, 4);
    memcpy(&second, &high, 4);
    sum += all(first) * (floats)(weights << 16);
    return sum + all(second) * (floats)(weights & int32_t(0xffff0000));
#endif
}

// out[r][0..64) = sum over i of x[r][i] * block[i][0..64)
template <int R, class T>
void rows_times_block(const T* x, int64_t stride, const T* block, int64_t inputs, float* out) {
    floats sum[R][COLUMNS] = {};
    for (int64_t i = 0; i < inputs; i += PAIR<T>) {
        const T* w = block + i * BLOCK;
#pragma GCC unroll 6
        for (int r = 0; r < R; r++)
#pragma GCC unroll 4
            for (int c = 0; c < COLUMNS; c++)
                sum[r][c] = multiply_add(sum[r][c], x + r * stride + i, w + c * LANES * PAIR<T>);
    }
    for (int r = 0; r < R; r++)
        for (int c = 0; c < COLUMNS; c++) store(sum[r][c], out + r * BLOCK + c * LANES);
}

// The same for any number of rows, in tiles of about equal height. give(row, 64 sums) takes them.
template <class T, class Give>
void times_block(
    const T* x, int64_t stride, int64_t rows, const T* block, int64_t inputs, Give give) {
    alignas(64) float out[ROWS * BLOCK];
    int64_t tiles = (rows + ROWS - 1) / ROWS;
    for (int64_t tile = 0; tile < tiles; tile++) {
        int64_t first = rows * tile / tiles, height = rows * (tile + 1) / tiles - first;
        const T* top = x + first * stride;
        switch (height) {
            case 1: rows_times_block<1>(top, stride, block, inputs, out); break;
#if defined(__AVX512F__)
            case 2: rows_times_block<2>(top, stride, block, inputs, out); break;
            case 3: rows_times_block<3>(top, stride, block, inputs, out); break;
            case 4: rows_times_block<4>(top, stride, block, inputs, out); break;
            case 5: rows_times_block<5>(top, stride, block, inputs, out); break;
            case 6: rows_times_block<6>(top, stride, block, inputs, out); break;
#endif
        }
        for (int64_t r = 0; r < height; r++) give(first + r, out + r * BLOCK);
    }
}

struct Share {  // this thread's part of [0, count)
    int64_t begin, end;
    explicit Share(int64_t count) {
        int64_t threads = omp_get_num_threads(), me = omp_get_thread_num();
        begin = count * me / threads;
        end = count * (me + 1) / threads;
    }
};

// x [rows][inputs] times a matrix of `blocks` blocks. give(row, block, 64 sums) takes the products.
template <class T, class Give>
void product(const T* x, int64_t rows, const void* matrix, int64_t inputs, int64_t blocks,
             Give give) {
    Share share(blocks);
    for (int64_t b = share.begin; b < share.end; b++)
        times_block(x, inputs, rows, (const T*)matrix + b * BLOCK * inputs, inputs,
                    [&](int64_t row, const float* sums) { give(row, b, sums); });
}

// 16 of the 64 sums of a block, plus the bias if there is one
template <class T> floats with_bias(const float* sums, const void* bias, int64_t at) {
    return bias ? load(sums) + load((const T*)bias + at) : load(sums);
}

// exp within about 1e-7 of it; 0 below -87
inline floats exponential(floats x) {
    ints counts = x > -87.0f;
    x = x > 88.0f ? all(88.0f) : x;
    x = counts ? x : all(0.0f);
    floats n = x * 1.44269504f + 12582912.0f;  // leaves the rounded quotient in the low bits
    ints exponent = (ints)n - 0x4b400000;
    n -= 12582912.0f;
    floats r = x - n * 0.693145752f - n * 1.42860677e-6f;  // ln 2 in two parts
    floats p = all(1.0f / 5040);
    for (float c : {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f}) p = p * r + c;
    return counts ? p * (floats)((exponent + 127) << 23) : all(0.0f);
}

inline float total(floats x) {
    float sum = 0;
    for (int i = 0; i < LANES; i++) sum += x[i];
    return sum;
}

// 1 / root mean square
inline float scale_of(const float* x, int64_t size, double eps) {
    floats squares = {};
    for (int64_t i = 0; i < size; i += LANES) squares += load(x + i) * load(x + i);
    return 1 / std::sqrt(total(squares) / float(size) + float(eps));
}

}  // namespace
