// What corrects the acceptance table: what corrections.py does in Python, and says why.

#pragma once

#include <array>
#include <cmath>
#include <iterator>

#include "evidence.h"

extern "C" {

struct Table {  // of acceptance, a number for every cell; then what corrects it
    double* probability;
    int64_t *seen, *right;
    const double* prior;
    double *weights, *squares, *any_right, *nodes;
    double strength;
};
}

namespace {

constexpr double EDGES[] = {-3, -1, 0, 1, 2, 3};
constexpr double SUMS[] = {0.2, 0.4, 0.6, 0.8, 0.9, 1.0, 1.1, 1.25, 1.5};
constexpr int64_t ODDS_LEVELS = std::size(EDGES) + 1;
constexpr double MOST = 30, RATE = 0.2, BELIEF = 20;

template <class Number, size_t N> int64_t bin_of(const Number (&edges)[N], Number value) {
    return std::upper_bound(edges, edges + N, value) - edges;
}

double log_odds(double probability) {
    double kept = std::min(1 - 1e-12, std::max(1e-12, probability));
    return std::log(kept / (1 - kept));
}

struct Below {  // a node
    std::vector<Candidate> all;
    int64_t bin = -1;  // of the sum of what each would be alone; -1: there is none
};

class Corrections {
  public:
    // Of four sources of evidence; strides are those of the second, the third and the fourth.
    Corrections(std::array<int64_t, 3> strides, int64_t last_count) {
        int64_t stride = 1, begin = ODDS_LEVELS;
        for (size_t i = 0; i < sources_.size(); i++) {
            int64_t count = i < strides.size() ? strides[i] / stride : last_count;
            sources_[i] = {uint32_t(stride), uint32_t(count), begin};
            begin += count;
            stride *= count;
        }
        mixed_ = begin;
    }

    // How likely each candidate is right.
    void weigh(Below& below, const Table& table) const {
        double total = 0, whole = 0;
        for (Candidate& c : below.all) {
            double logit = log_odds(table.probability[c.cell]);
            c.level = bin_of(EDGES, logit);
            logit += table.weights[c.level];
            for (const Grades& source : sources_) logit += table.weights[source.at(c.cell)];
            c.probability = std::exp(std::min(MOST, std::max(-MOST, logit)));
            total += c.probability;
            whole += c.probability / (1 + c.probability);
        }
        below.bin = -1;
        if (below.all.empty()) return;
        below.bin = bin_of(SUMS, whole);
        double believed = whole / std::sqrt(std::sqrt(1 + whole * whole * whole * whole));
        double any_right =
            (table.any_right[below.bin] + BELIEF * believed) / (table.nodes[below.bin] + BELIEF);
        for (Candidate& c : below.all) c.probability = any_right * c.probability / total;
    }

    void learn(const Below& below, Token right, const Table& table) const {
        if (below.bin < 0) return;
        table.nodes[below.bin]++;
        for (const Candidate& c : below.all) {
            table.any_right[below.bin] += c.token == right;
            double error = (c.token == right) - c.probability;
            learn_at(c.level, error, table);
            for (const Grades& source : sources_) learn_at(source.at(c.cell), error, table);
        }
    }

    static void learn_at(int64_t at, double error, const Table& table) {
        table.squares[at] += error * error;
        table.weights[at] += RATE * error / std::sqrt(table.squares[at]);
    }

    // The probability of a token of a sample, and which weight was added to its log-odds. `guess`
    // is 0 by both estimates, 1 by the noise alone, 2 by the table alone.
    std::pair<double, int64_t> correct_mixture(double mixed, int64_t guess,
                                               const Table& table) const {
        double logit = log_odds(mixed);
        int64_t at = mixed_ + guess * ODDS_LEVELS + bin_of(EDGES, logit);
        logit = std::min(MOST, std::max(-MOST, logit + table.weights[at]));
        return {1 / (1 + std::exp(-logit)), at};
    }

  private:
    struct Grades {
        uint32_t stride, count;
        int64_t begin;  // of its weights
        int64_t at(int64_t cell) const { return begin + uint32_t(cell) / stride % count; }
    };

    std::array<Grades, 4> sources_;
    int64_t mixed_;  // where the weights of mixtures begin
};

}  // namespace
