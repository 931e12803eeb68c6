// The best tokens of rows of logits.

#pragma once

#include "crew.h"
#include "vectors.h"

namespace {

// Enters a token into the best of a row of logits, [held] of most `count`, best first; of equal ones
// the first that was entered stays first.
template <class T>
void enter(const T* line, int64_t token, int64_t count, int64_t* found, int64_t& held) {
    float value = widen(line[token]);
    if (held == count && !(value > widen(line[found[count - 1]]))) return;
    int64_t place = held < count ? held++ : count - 1;
    for (; place > 0 && value > widen(line[found[place - 1]]); place--)
        found[place] = found[place - 1];
    found[place] = token;
}

// The best of the tokens from `start` up to `end`; returns how many there are.
template <class T>
int64_t best_of(const T* line, int64_t start, int64_t end, int64_t count, int64_t* found) {
    constexpr int64_t SOME = 8 * LANES;  // most of so many hold nothing that gets in
    int64_t held = 0;
    for (; start < end; start += SOME) {
        int64_t stop = start + SOME < end ? start + SOME : end;
        if (held == count && stop - start == SOME) {
            floats top = load(line + start);
            for (int64_t i = LANES; i < SOME; i += LANES) {
                floats x = load(line + start + i);
                top = x > top ? x : top;
            }
            ints better = top > widen(line[found[count - 1]]);
            bool any = false;
            for (int i = 0; i < LANES; i++) any |= better[i] != 0;
            if (!any) continue;
        }
        for (int64_t token = start; token < stop; token++) enter(line, token, count, found, held);
    }
    return held;
}

// The `count` best of each row of logits [rows][vocab], best first; of equal ones the first.
template <class T>
void best(const T* logits, int64_t rows, int64_t vocab, int64_t count, int64_t* out, int threads) {
    int64_t parts = rows < threads ? threads : 1;
    std::vector<int64_t> found(rows * parts * count), held(rows * parts);
    Crew::run(threads, 1, [=, &found, &held](Worker worker) {
        worker.share(rows * parts, [&](int64_t piece) {
            const T* line = logits + piece / parts * vocab;
            int64_t part = piece % parts;
            held[piece] = best_of(line, vocab * part / parts, vocab * (part + 1) / parts, count,
                                  found.data() + piece * count);
        });
    });
    for (int64_t row = 0; row < rows; row++) {
        int64_t entered = 0;
        for (int64_t piece = row * parts; piece < (row + 1) * parts; piece++)
            for (int64_t i = 0; i < held[piece]; i++)
                enter(logits + row * vocab, found[piece * count + i], count, out + row * count, entered);
    }
}

}  // namespace
