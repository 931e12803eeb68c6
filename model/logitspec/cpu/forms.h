// The forms that matrices are stored in: how a tile gets weights out of them.

#pragma once

#include "vectors.h"

namespace {

constexpr int COLUMNS = 4, BLOCK = LANES * COLUMNS;  // vectors and columns of a block
constexpr int CHUNK = 16;                            // inputs

// Forms. CHUNK_BYTES: of a block's values of 16 inputs. get(): the weights of inputs i, …,
// i + STEP - 1 of a chunk, and of a vector of columns. add(): times as many inputs, added to sums.

constexpr int nowhere(int) { return 0; }

template <int STRIDE> struct FloatRows {  // STRIDE numbers apart
    static constexpr int OFFSET = 0;
    static constexpr auto place = nowhere;
    static constexpr int CHUNK_BYTES = CHUNK * STRIDE * 4, STEP = 1, SPAN = 4;
    static floats get(const char* p, int i, int c) {
        return load((const float*)p + i * STRIDE + c * LANES);
    }
    static floats add(floats sum, const float* x, floats weights) {
        return sum + all(*x) * weights;
    }
};
using Floats = FloatRows<BLOCK>;

struct Float16s {
    static constexpr int OFFSET = 0;
    static constexpr auto place = nowhere;
    static constexpr int CHUNK_BYTES = CHUNK * BLOCK * 2, STEP = 1, SPAN = 4;
    static floats get(const char* p, int i, int c) {
        return load((const float16*)p + i * BLOCK + c * LANES);
    }
    static constexpr auto add = Floats::add;
};

struct Bfloat16s {  // two inputs side by side
    static constexpr int OFFSET = 0;
    static constexpr auto place = nowhere;
    static constexpr int CHUNK_BYTES = CHUNK * BLOCK * 2, STEP = 1, SPAN = 4;
    static ints pair(const char* p, int i, int c) {
        return load_ints((const ints*)p + i / 2 * COLUMNS + c);
    }
    static floats get(const char* p, int i, int c) {
        ints both = pair(p, i, c);
        return (floats)(i % 2 ? both & int32_t(0xffff0000) : both << 16);
    }
    static constexpr auto add = Floats::add;
};

struct Bfloat16Pairs {  // the same, for inputs that are bfloat16 too, where the CPU multiplies pairs
    static constexpr int CHUNK_BYTES = Bfloat16s::CHUNK_BYTES, STEP = 2, SPAN = 2;
    static constexpr auto get = Bfloat16s::pair;
    static floats add(floats sum, const bfloat16* x, ints weights) {
        int32_t pair;
        memcpy(&pair, x, 4);
#if defined(__AVX512BF16__)
        return (floats)_mm512_dpbf16_ps(
            (__m512)sum, (__m512bh)_mm512_set1_epi32(pair), (__m512bh)weights);
#else
        return sum;  // not called: HAS_DOT is false
#endif
    }
};

// Whole numbers of so many bits. A lane's chunk is BITS / 2 words. Of 4 and 8 bits a word holds as
// many as fit, of 6 bits 5 and two bits of a sixteenth number. Of 4 and 6 bits they are stored
// without a sign, OFFSET more than they are, and are not shifted to their place in the word: what
// comes out is 2^place times as much, and a tile's inputs are to be as much less (place()).
template <int BITS> struct Wholes {
    static constexpr int WORDS = BITS / 2, CHUNK_BYTES = WORDS * BLOCK * 4, STEP = 1, SPAN = 16;
    static constexpr int PER_WORD = 32 / BITS, FIRST = 32 % BITS, OFFSET = BITS == 8 ? 0 : 1 << (BITS - 1);
    static constexpr int bit(int i) { return FIRST + i % PER_WORD * BITS; }
    static constexpr int place(int i) {
        return BITS == 8 || i == PER_WORD * WORDS || bit(i) + BITS == 32 ? 0 : bit(i);
    }
    static floats get(const char* p, int i, int c) {
        auto word = [&](int w) { return load_ints((const ints*)p + c * WORDS + w); };
        ints q;
        if (i == PER_WORD * WORDS) {  // the sixteenth of 6 bits
            q = (word(2) & 3) << 4 | (word(1) & 3) << 2 | (word(0) & 3);
        } else if (BITS == 8) {
            q = word(i / PER_WORD) << (32 - BITS - bit(i)) >> (32 - BITS);
        } else if (bit(i) + BITS == 32) {
            q = (ints)((uints)word(i / PER_WORD) >> (32 - BITS));
        } else {
            q = word(i / PER_WORD) & (((1 << BITS) - 1) << bit(i));
        }
        return __builtin_convertvector(q, floats);
    }
    // The reverse, for one lane: sets the chunk's i-th number in words, LANES apart.
    static void set(int32_t* words, int i, int q) {
        uint32_t bits = uint32_t(q + OFFSET) & ((1u << BITS) - 1);
        if (i == PER_WORD * WORDS) {
            for (int w = 0; w < 3; w++) words[w * LANES] |= int32_t(bits >> 2 * w & 3);
        } else {
            words[i / PER_WORD * LANES] |= int32_t(bits << bit(i));
        }
    }
    static constexpr auto add = Floats::add;
};

enum Form : int64_t { FLOAT32, BFLOAT16, FLOAT16, WHOLE4, WHOLE6, WHOLE8 };

}  // namespace
