// Attention of the rows of a step to the cache: all query heads that share a key head are rows of one
// product with a block of keys, then of one with a block of values.

#pragma once

#include "matrices.h"

namespace {

constexpr int QUERIES = 48;  // rows that share a transposed block of keys

// The block whose columns are keys [count][size]; missing ones are zero.
template <class T> void pack_keys(const T* keys, int64_t count, int64_t size, char* block) {
    constexpr int PER_WORD = 4 / sizeof(T);
    for (int64_t c = 0; c < COLUMNS; c++)
        for (int64_t d = 0; d < size; d += LANES * PER_WORD) {
            ints m[LANES];
            for (int64_t k = 0; k < LANES; k++) {
                int64_t key = c * LANES + k;
                m[k] = key < count ? load_ints(keys + key * size + d) : ints{};
            }
            transpose(m);
            for (int64_t i = 0; i < LANES; i++)
                *((ints_anywhere*)block + (d / PER_WORD + i) * COLUMNS + c) = m[i];
        }
}

// The block whose inputs are values [count][size], count up to BLOCK; its columns are BLOCK of their
// dimensions. Missing inputs are zero.
template <class T> void pack_values(const T* values, int64_t count, int64_t size, char* block) {
    if constexpr (sizeof(T) == 4) {
        for (int64_t k = 0; k < BLOCK; k++) {
            char* line = block + k * BLOCK * sizeof(T);
            if (k < count) memcpy(line, values + k * size, BLOCK * sizeof(T));
            else memset(line, 0, BLOCK * sizeof(T));
        }
    } else {
        static const T nothing[BLOCK] = {};
        T* pairs = (T*)block;
        for (int64_t k = 0; k < BLOCK; k += 2) {
            const T* first = k < count ? values + k * size : nothing;
            const T* second = k + 1 < count ? values + (k + 1) * size : nothing;
            for (int64_t d = 0; d < BLOCK; d++) {
                pairs[k * BLOCK + d * 2] = first[d];
                pairs[k * BLOCK + d * 2 + 1] = second[d];
            }
        }
    }
}

// softmax of scores [seen], whole vectors
template <class T, class X> void softmax(float* scores, int64_t seen, X* shares) {
    floats best = load(scores);
    for (int64_t t = LANES; t < seen; t += LANES) {
        floats s = load(scores + t);
        best = s > best ? s : best;
    }
    float top = best[0];
    for (int i = 1; i < LANES; i++) top = best[i] > top ? best[i] : top;
    floats sums = {};
    for (int64_t t = 0; t < seen; t += LANES) {
        floats e = exponential(load(scores + t) - top);
        sums += e;
        store(e, scores + t);
    }
    float scale = 1 / total(sums);
    for (int64_t t = 0; t < seen; t += LANES) put<T>(load(scores + t) * scale, shares + t);
}

// What one task of attention reads and writes; T: of the cache, X: of the inputs of products.
template <class T, class X> struct Attention {
    const T *keys, *values;   // of one key head, [slots][size]
    const X* queries;         // [rows][groups][size]
    int64_t size, groups, rows, length, first, last;  // rows of the step; of the task
    const uint8_t* sees;      // [rows][rows]; null: causal
    float* scores;            // [QUERIES][stride]
    X* shares;                // the same
    int64_t stride;
    char* block;
    float* sums;              // [QUERIES][BLOCK]

    // give(row, group, d, BLOCK sums from dimension d on)
    template <class Give> void run(Give give) {
        using V = std::conditional_t<sizeof(T) == 4, Floats,
                                     std::conditional_t<sizeof(X) == 2, Bfloat16Pairs, Bfloat16s>>;
        int64_t count = (last - first) * groups, seen = length + (sees ? rows : last);
        int64_t padded = (seen + BLOCK - 1) / BLOCK * BLOCK;
        auto times = [&](const X* x, int64_t x_stride, const char* values, int64_t inputs, auto form) {
            Part part{values, inputs / CHUNK, inputs / CHUNK};
            times_part<decltype(form), false>(Rows<X>{x, count, x_stride}, part, sums);
        };
        for (int64_t t = 0; t < seen; t += BLOCK) {
            pack_keys(keys + t * size, seen - t, size, block);
            memset(sums, 0, count * BLOCK * sizeof(float));
            times(queries + first * groups * size, size, block, size, V());
            for (int64_t query = 0; query < count; query++)
                memcpy(scores + query * stride + t, sums + query * BLOCK, BLOCK * sizeof(float));
        }
        for (int64_t query = 0; query < count; query++) {
            int64_t row = first + query / groups;
            float* line = scores + query * stride;
            for (int64_t t = length; t < padded; t++) {
                int64_t node = t - length;
                bool visible = node < rows && (sees ? sees[row * rows + node] : node <= row);
                if (!visible) line[t] = -INFINITY;
            }
            softmax<T>(line, padded, shares + query * stride);
        }
        for (int64_t d = 0; d < size; d += BLOCK) {
            memset(sums, 0, count * BLOCK * sizeof(float));
            int64_t t = 0;
            if constexpr (sizeof(T) == 4) {  // float32 is laid out as products take it
                int64_t whole = seen / CHUNK * CHUNK;
                const char* here = (const char*)(values + d);
                if (size == 64) times(shares, stride, here, whole, FloatRows<64>()), t = whole;
                if (size == 128) times(shares, stride, here, whole, FloatRows<128>()), t = whole;
            }
            for (; t < seen; t += BLOCK) {
                int64_t chunks = (seen - t + CHUNK - 1) / CHUNK;
                pack_values(values + t * size + d, seen - t, size, block);
                times(shares + t, stride, block, chunks * CHUNK < BLOCK ? chunks * CHUNK : BLOCK, V());
            }
            for (int64_t query = 0; query < count; query++)
                give(first + query / groups, query % groups, d, sums + query * BLOCK);
        }
    }
};

}  // namespace
