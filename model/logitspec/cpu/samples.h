// What sampling.py finds of rows of scores and logits: which token wins once Gumbel noise is added,
// and the log-probabilities of the best.

#pragma once

#include <limits>

#include "../noise.h"
#include "crew.h"
#include "vectors.h"

namespace {

struct Winner {
    double sum = -std::numeric_limits<double>::infinity();
    int64_t token = -1;
    void enter(double other, int64_t its) {  // of equal ones the first that was entered stays
        if (other > sum) sum = other, token = its;
    }
};

// The first token of the largest score from `start` up to `end`.
inline int64_t best_score(const float* scores, int64_t start, int64_t end) {
    float top = scores[start];
    int64_t i = start;
    if (end - start >= LANES) {
        floats tops = load(scores + start);
        for (; i + LANES <= end; i += LANES) {
            floats x = load(scores + i);
            tops = x > tops ? x : tops;
        }
        for (int lane = 0; lane < LANES; lane++) top = std::max(top, tops[lane]);
    }
    for (; i < end; i++) top = std::max(top, scores[i]);
    return std::find(scores + start, scores + end - 1, top) - scores;
}

// The winner of the tokens from `start` up to `end`; no token where no score is a number.
//
// A token beats a sum that is d over its score if its uniform number u is over exp(-exp(-d)), for
// which 1 - u < exp(-d) must be so. That is looked at without logarithms: the bits of a float, read
// as a whole number, are its logarithm to base 2 or a little less. Few tokens are left.
inline Winner winner(const float* scores, uint64_t state, int64_t start, int64_t end) {
    constexpr int64_t SOME = 64;
    constexpr float TO_BASE_2 = 1.44269504f, ROUNDING = 1e-3f;
    int64_t top = best_score(scores, start, end);
    Winner best;
    best.enter(scores[top] + noise(state, top), top);
    for (; start < end; start += SOME) {
        int64_t stop = start + SOME < end ? start + SOME : end;
        if (stop - start == SOME) {
            float least = float(best.sum);
            int32_t any = 0;
            for (int64_t i = 0; i < SOME; i++) {
                uint64_t x = mixed(state, start + i + 1);
                float rest = float(int32_t(uint32_t(~x >> 32) >> 1));  // at most 2^31 (1 - u)
                int32_t bits;
                __builtin_memcpy(&bits, &rest, 4);
                float log_of_rest = float(bits) * 0x1p-23f - (127 + 31);
                any |= log_of_rest <= (scores[start + i] - least) * TO_BASE_2 + ROUNDING;
            }
            if (!any) continue;
        }
        for (int64_t token = start; token < stop; token++)
            if (scores[token] > -std::numeric_limits<float>::infinity())
                best.enter(scores[token] + noise(state, token), token);
    }
    return best;
}

// The winner of each row of scores [rows][vocab], with the noise of a state each.
inline void winners(const float* scores, const uint64_t* states, int64_t rows, int64_t vocab,
                    int64_t* out, int threads) {
    std::vector<Winner> found(rows * threads);
    Crew::run(threads, 1, [=, &found](Worker worker) {
        worker.share(rows * threads, [&](int64_t piece) {
            int64_t row = piece / threads, part = piece % threads;
            found[piece] = winner(scores + row * vocab, states[row], vocab * part / threads,
                                  vocab * (part + 1) / threads);
        });
    });
    for (int64_t row = 0; row < rows; row++) {
        Winner best = found[row * threads];
        for (int64_t part = 1; part < threads; part++) {
            const Winner& other = found[row * threads + part];
            best.enter(other.sum, other.token);
        }
        out[row] = best.token < 0 ? 0 : best.token;
    }
}

// The logarithm of the sum of exp(logit / temperature) of a row's logits; `top` is the largest.
template <class T>
float log_sum(const T* line, int64_t vocab, float temperature, float top) {
    int64_t whole = vocab - vocab % LANES;
    floats sums = {};
    float per_temperature = 1 / temperature;
    for (int64_t i = 0; i < whole; i += LANES)
        sums += exponential((load(line + i) - top) * per_temperature);
    float sum = total(sums);
    for (int64_t i = whole; i < vocab; i++) sum += std::exp((widen(line[i]) - top) / temperature);
    return top / temperature + std::log(sum);
}

struct Filters {
    double temperature, top_p, min_p;
    int64_t top_k;
};

// Filters the log-probabilities of a row's best tokens, best first, as sampling.Foresight does.
inline void filter(float* logs, int64_t count, const Filters& f) {
    auto divide = [&](int64_t kept) {  // by what the first so many have together
        double whole = 0;
        for (int64_t i = 0; i < kept; i++) whole += std::exp(double(logs[i]));
        for (int64_t i = 0; i < kept; i++) logs[i] -= float(std::log(whole));
        std::fill(logs + kept, logs + count, -std::numeric_limits<float>::infinity());
    };
    if (f.top_k && f.top_k < count) {
        divide(f.top_k);
        count = f.top_k;
    }
    double before = 0, least = f.min_p * std::exp(double(logs[0]));
    for (int64_t i = 0; i < count; i++) {
        double odds = std::exp(double(logs[i]));
        if (odds < least || (f.top_p < 1 && before >= f.top_p)) return divide(i);
        before += odds;
    }
}

// The log-probabilities, after the filters, of the best tokens [rows][count] of rows of logits.
template <class T>
void log_probabilities(const T* logits, int64_t rows, int64_t vocab, const int64_t* best,
                       int64_t count, const Filters& f, float* out, int threads) {
    Crew::run(threads, 1, [=, &f](Worker worker) {
        worker.share(rows, [&](int64_t row) {
            const T* line = logits + row * vocab;
            const int64_t* its = best + row * count;
            float temperature = float(f.temperature);
            float sum = log_sum(line, vocab, temperature, widen(line[its[0]]));
            float* logs = out + row * count;
            for (int64_t i = 0; i < count; i++) logs[i] = widen(line[its[i]]) / temperature - sum;
            filter(logs, count, f);
        });
    });
}

}  // namespace
