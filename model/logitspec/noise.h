// The noise of sampling.py, one number at a time.

#pragma once

#include <cmath>
#include <cstdint>

namespace {

// splitmix64's output for the state that is `count` strides behind `state`.
inline uint64_t mixed(uint64_t state, uint64_t count = 1) {
    uint64_t x = state + count * 0x9E3779B97F4A7C15;
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9;
    x = (x ^ x >> 27) * 0x94D049BB133111EB;
    return x ^ x >> 31;
}

inline uint64_t state_of(uint64_t stream, int64_t position) {
    return mixed(stream ^ mixed(uint64_t(position)));
}

inline double noise(uint64_t state, int64_t token) {
    double uniform = (double(mixed(state, token + 1) >> 12) + 0.5) * 0x1p-52;
    return -std::log(-std::log(uniform));
}

}  // namespace
