// What corrects the acceptance table: what corrections.py does in Python, and says why.

#pragma once

#include <array>
#include <cmath>
#include <iterator>

#include "evidence.h"

extern "C" {

struct Table {  // of acceptance, a number for every grade; then what corrects it
    double* probability;
    int64_t *seen, *right;
    const double* prior;
    double *weights, *squares, *any_right, *nodes;
    double strength;
};
}

namespace {

constexpr double EDGES[] = {-3, -1, 0, 1, 2, 3};
constexpr double SUMS[] = {0.25, 0.67, 1.5, 4, 9, 19, 49, 99, 199};
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
    int64_t bin = -1;  // of the sum of their odds; -1: there is none
};

class Corrections {
  public:
    // `named` tells of all grades whether the source names a token of it.
    Corrections(const uint8_t* named, int64_t grades)
        : named_(named, named + grades), levels_(grades + (1 << SOURCES)) {}

    // How likely each candidate is right.
    void weigh(Below& below, const Table& table) const {
        double total = 0;
        for (Candidate& c : below.all) {
            double wrong = 1;
            int64_t choice = 0;
            for (size_t i = 0; i < SOURCES; i++) {
                if (!named_[c.grades[i]]) continue;
                wrong *= 1 - table.probability[c.grades[i]];
                choice |= int64_t(1) << i;
            }
            double logit = log_odds(1 - wrong);
            c.choice = int64_t(named_.size()) + choice;
            c.level = levels_ + bin_of(EDGES, logit);
            for (int64_t at : c.grades) logit += table.weights[at];
            logit += table.weights[c.choice];
            logit += table.weights[c.level];
            c.probability = std::exp(std::min(MOST, std::max(-MOST, logit)));
            total += c.probability;
        }
        below.bin = -1;
        if (below.all.empty()) return;
        below.bin = bin_of(SUMS, total);
        double believed = total / (1 + total);
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
            for (int64_t at : c.grades) learn_at(at, error, table);
            learn_at(c.choice, error, table);
            learn_at(c.level, error, table);
        }
    }

    // Counts a candidate in the table, for every source that names it.
    void count(const Candidate& c, bool right, const Table& t) const {
        for (int64_t at : c.grades) {
            if (!named_[at]) continue;
            t.seen[at]++;
            t.right[at] += right;
            t.probability[at] =
                (t.right[at] + t.strength * t.prior[at]) / (t.seen[at] + t.strength);
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
        int64_t at = levels_ + (1 + guess) * ODDS_LEVELS + bin_of(EDGES, logit);
        logit = std::min(MOST, std::max(-MOST, logit + table.weights[at]));
        return {1 / (1 + std::exp(-logit)), at};
    }

  private:
    std::vector<uint8_t> named_;
    int64_t levels_;  // where the weights of the levels begin; those of mixtures follow
};

}  // namespace
