// Vectors of floats as wide as the instruction set's registers, and the arithmetic on them.

#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <utility>
#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace {

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__)
constexpr int LANES = 16, REGISTERS = 32;
#elif defined(__AVX2__)
constexpr int LANES = 8, REGISTERS = 16;
#elif defined(__aarch64__)
constexpr int LANES = 4, REGISTERS = 32;
#else
constexpr int LANES = 4, REGISTERS = 16;
#endif
#if defined(__AVX512BF16__)
constexpr bool HAS_DOT = true;  // sums of products of bfloat16 pairs
#else
constexpr bool HAS_DOT = false;
#endif

typedef float floats __attribute__((vector_size(LANES * 4)));
typedef int32_t ints __attribute__((vector_size(LANES * 4)));
typedef uint32_t uints __attribute__((vector_size(LANES * 4)));
typedef uint16_t shorts __attribute__((vector_size(LANES * 2)));
// Memory is written as one type and read as another.
typedef float floats_anywhere __attribute__((vector_size(LANES * 4), aligned(4), may_alias));
typedef int32_t ints_anywhere __attribute__((vector_size(LANES * 4), aligned(2), may_alias));
typedef uint16_t shorts_anywhere __attribute__((vector_size(LANES * 2), aligned(2), may_alias));

struct bfloat16 {
    uint16_t bits;
};
struct float16 {
    uint16_t bits;
};

inline float widen(float x) { return x; }
inline float widen(bfloat16 x) {
    uint32_t bits = uint32_t(x.bits) << 16;
    float wide;
    memcpy(&wide, &bits, 4);
    return wide;
}
inline floats all(float x) { return x - floats{}; }
inline ints load_ints(const void* p) { return *(const ints_anywhere*)p; }
inline floats load(const float* p) { return *(const floats_anywhere*)p; }
inline floats load(const bfloat16* p) {
    return (floats)(__builtin_convertvector(*(const shorts_anywhere*)p, ints) << 16);
}
inline floats load(const float16* p) {
#if defined(__AVX512F__)
    return (floats)_mm512_cvtph_ps((__m256i)*(const shorts_anywhere*)p);
#elif defined(__F16C__) && defined(__AVX2__)
    return (floats)_mm256_cvtph_ps((__m128i)*(const shorts_anywhere*)p);
#elif defined(__aarch64__)
    return (floats)vcvt_f32_f16((float16x4_t)*(const shorts_anywhere*)p);
#else  // exponent and fraction moved to their places; subnormal numbers by the multiplication
    ints bits = __builtin_convertvector(*(const shorts_anywhere*)p, ints);
    floats size = (floats)((bits & 0x7fff) << 13) * 0x1p112f;
    ints infinite = (bits & 0x7c00) == 0x7c00;
    return (floats)((ints)size | (infinite & 0x7f800000) | ((bits & 0x8000) << 16));
#endif
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

// The same vector, which the compiler would else read or compute again for each use.
template <class V> V in_register(V x) {
#if defined(__x86_64__)
    asm("" : "+v"(x));
#elif defined(__aarch64__)
    asm("" : "+w"(x));
#endif
    return x;
}

inline float total(floats x) {
    float sum = 0;
    for (int i = 0; i < LANES; i++) sum += x[i];
    return sum;
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

// 1 / root mean square
inline float scale_of(const float* x, int64_t size, double eps) {
    floats squares = {};
    for (int64_t i = 0; i < size; i += LANES) squares += load(x + i) * load(x + i);
    return 1 / std::sqrt(total(squares) / float(size) + float(eps));
}

template <int S, int... J> inline void exchange(ints* m, std::integer_sequence<int, J...>) {
#if defined(__clang__)
    auto lows = [](ints a, ints b) {
        return __builtin_shufflevector(a, b, (J & S ? LANES + (J ^ S) : J)...);
    };
    auto highs = [](ints a, ints b) {
        return __builtin_shufflevector(a, b, (J & S ? LANES + J : J ^ S)...);
    };
#else  // GCC has the other one from version 12 on
    auto lows = [](ints a, ints b) {
        return __builtin_shuffle(a, b, ints{(J & S ? LANES + (J ^ S) : J)...});
    };
    auto highs = [](ints a, ints b) {
        return __builtin_shuffle(a, b, ints{(J & S ? LANES + J : J ^ S)...});
    };
#endif
#pragma GCC unroll 16
    for (int i = 0; i < LANES; i++)
        if (!(i & S)) {
            ints a = m[i], b = m[i | S];
            m[i] = lows(a, b);
            m[i | S] = highs(a, b);
        }
}

// Transposes LANES vectors of 4-byte numbers.
inline void transpose(ints* m) {
    constexpr auto lanes = std::make_integer_sequence<int, LANES>();
    exchange<1>(m, lanes);
    exchange<2>(m, lanes);
    if constexpr (LANES > 4) exchange<4>(m, lanes);
    if constexpr (LANES > 8) exchange<8>(m, lanes);
}

}  // namespace
