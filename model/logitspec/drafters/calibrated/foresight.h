// Drafts of samples whose noise is known: what foresight.py does in Python, and says why.

#pragma once

#include <cmath>
#include <tuple>

#include "../../noise.h"
#include "evidence.h"

extern "C" {

struct Foresight {  // of a generation, and what was learnt; see ForesightTable
    uint64_t stream;
    const double* prior;
    double *seen, *right, *share, *count;
};
}

namespace {

constexpr int64_t FORESEEN = 32, BINS = 24, LEVELS = 8, MOST_ROWS = 1 << 16;
constexpr double LEAST = -8.0, WIDTH = 0.5, STRENGTH = 20.0, REST = 1e-3;
constexpr double EULER = 0.5772156649015329;

struct Guess {
    Token token;
    Grades grades;
    double known;
    int64_t bin;
    double foreseen;
    double probability = 0;
    int64_t weight = 0;  // which corrected that
};

struct Guesses {
    std::vector<Guess> all;
    int64_t mixture = -1;
};

// Tokens and their log-probabilities, by a key.
class ScoredRows {
  public:
    struct Row {
        const Token* tokens = nullptr;
        const float* logs;
        int64_t count;
    };

    void set(Key key, const int64_t* tokens, const float* logs, int64_t count) {
        Token* place = room(key, count);
        float* beside = logs_.data() + (place - tokens_.data());
        for (int64_t i = 0; i < count; i++) {
            place[i] = Token(tokens[i]);
            beside[i] = logs[i];
        }
    }

    Row get(Key key) const {
        auto at = places_.find(key);
        if (at == places_.end()) return {};
        const Place& place = at->second;
        return {tokens_.data() + place.start, logs_.data() + place.start, place.count};
    }

    int64_t count() const { return int64_t(places_.size()); }

    void clear() {
        places_.clear();
        tokens_.clear();
        logs_.clear();
    }

    void add_to(ScoredRows& other) const {
        for (auto& [key, place] : places_) {
            Token* to = other.room(key, place.count);
            float* beside = other.logs_.data() + (to - other.tokens_.data());
            std::copy_n(tokens_.data() + place.start, place.count, to);
            std::copy_n(logs_.data() + place.start, place.count, beside);
        }
    }

    // All rows by ascending key: key, number of tokens, these; and their log-probabilities.
    std::pair<std::vector<int64_t>, std::vector<float>> listed() const {
        std::vector<Key> keys;
        for (auto& [key, place] : places_) keys.push_back(key);
        std::sort(keys.begin(), keys.end());
        std::vector<int64_t> list;
        std::vector<float> logs;
        for (Key key : keys) {
            Row row = get(key);
            list.insert(list.end(), {int64_t(key), row.count});
            list.insert(list.end(), row.tokens, row.tokens + row.count);
            logs.insert(logs.end(), row.logs, row.logs + row.count);
        }
        return {list, logs};
    }

  private:
    // Where a row of so many tokens is to be written.
    Token* room(Key key, int64_t count) {
        Place& place = places_[key];
        if (place.most < count) {
            place = {tokens_.size(), count};
            tokens_.resize(place.start + count);
            logs_.resize(place.start + count);
        }
        place.count = count;
        return tokens_.data() + place.start;
    }

    struct Place {
        size_t start = 0;
        int64_t most = 0, count = 0;  // tokens that it has room for, and holds
    };
    std::unordered_map<Key, Place> places_;
    std::vector<Token> tokens_;
    std::vector<float> logs_;
};

// The tokens of a row that win most likely, with the bin of each's odds.
inline std::vector<std::pair<Token, int64_t>> foresee(ScoredRows::Row row, uint64_t state) {
    std::vector<std::tuple<double, int64_t, Token>> sums;
    double held = 0;
    for (int64_t i = 0; i < row.count; i++) {
        held += std::exp(double(row.logs[i]));
        sums.emplace_back(-(row.logs[i] + noise(state, row.tokens[i])), i, row.tokens[i]);
    }
    size_t most = std::min<size_t>(sums.size(), FORESEEN);
    std::partial_sort(sums.begin(), sums.begin() + most, sums.end());
    sums.resize(most);
    double best = -std::get<0>(sums[0]);
    double whole = std::exp(std::log(std::max(REST, 1 - held)) + EULER - best);
    std::vector<double> weights;
    for (auto& [minus, place, token] : sums) weights.push_back(std::exp(-minus - best));
    for (double weight : weights) whole += weight;
    std::vector<std::pair<Token, int64_t>> found;
    for (size_t i = 0; i < most; i++) {
        double rest = whole - weights[i];
        double place = rest > 0 ? (std::log(weights[i] / rest) - LEAST) / WIDTH : BINS;
        found.emplace_back(std::get<2>(sums[i]),
                           place < 0 ? 0 : place >= BINS ? BINS - 1 : int64_t(place));
    }
    return found;
}

inline double probability(const Foresight& f, int64_t bin) {
    return (f.right[bin] + STRENGTH * f.prior[bin]) / (f.seen[bin] + STRENGTH);
}

inline void learn(const Guesses& guesses, Token right, const Foresight& f) {
    for (const Guess& guess : guesses.all) {
        if (guess.bin >= 0) {
            f.seen[guess.bin]++;
            f.right[guess.bin] += guess.token == right;
        }
        if (guess.token != right || guesses.mixture < 0) continue;
        double& share = f.share[guesses.mixture];
        double& count = f.count[guesses.mixture];
        double known = share / count * guess.known, foreseen = (1 - share / count) * guess.foreseen;
        share += known / (known + foreseen);
        count++;
    }
}

}  // namespace
