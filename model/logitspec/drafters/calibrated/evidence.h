// What followed n-grams, and the best tokens after tokens: the stores of evidence.py in C++.

#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <iterator>
#include <unordered_map>
#include <utility>
#include <vector>

namespace {

using Token = int32_t;
constexpr int64_t MOST_TOKENS = 1 << 24;  // of a vocabulary: rows are found by token

// The grades of a token's share among what followed an n-gram; 0 to 3 are nothing to most.
constexpr int64_t SHARES = 6, ONCE = 4, ALWAYS = 5;

// Whether all are tokens; `least` -1 lets one stand for a row that is not known.
bool valid(const int64_t* tokens, int64_t count, int64_t least = 0) {
    return std::all_of(tokens, tokens + count,
                       [=](int64_t token) { return token >= least && token < MOST_TOKENS; });
}

using Key = uint64_t;  // two numbers of 32 bits

Key key(uint32_t first, uint32_t second) { return Key(first) << 32 | second; }

constexpr size_t SOURCES = 4;
constexpr size_t OF_NGRAMS = 0, OF_ROWS = 1, OF_EARLIER = 2, OF_LAST = 3;
constexpr int64_t UNNAMED = -1;
using Grades = std::array<int64_t, SOURCES>;  // by each source, as its place among all grades

struct Candidate {
    Token token;
    Grades grades;  // UNNAMED until all sources have been asked
    double probability = 0;
    int64_t choice = 0, level = 0;  // weights: who names it, its log-odds before all corrections
};

struct Follower {
    Token token;
    int64_t times;
};

// n-grams of a text, each with what followed it, the latest last. An n-gram is found from the
// n-gram of its last n - 1 tokens and the token before them.
class Ngrams {
  public:
    Ngrams() { clear(); }

    void clear() {
        longer_.clear();
        followers_.assign(1, {});
    }

    int64_t count() const { return int64_t(followers_.size()) - 1; }

    // before(n) is the n-th last token of the context, n from 1 to `length`.
    template <class Before> void add(Before before, int64_t length, Token token) {
        uint32_t gram = 0;
        for (int64_t n = 1; n <= length; n++) {
            auto [at, is_new] = longer_.try_emplace(key(gram, before(n)), followers_.size());
            if (is_new) followers_.emplace_back();
            gram = at->second;
            auto& known = followers_[gram];
            int64_t times = 1;
            for (auto it = known.begin(); it != known.end(); ++it)
                if (it->token == token) {
                    times += it->times;
                    known.erase(it);
                    break;
                }
            known.push_back({token, times});
        }
    }

    // The length of the longest n-gram that ends the context, and what followed it.
    template <class Before>
    std::pair<int64_t, const std::vector<Follower>*> match(Before before, int64_t length) const {
        uint32_t gram = 0;
        for (int64_t n = 1; n <= length; n++) {
            auto at = longer_.find(key(gram, before(n)));
            if (at == longer_.end()) return {n - 1, &followers_[gram]};
            gram = at->second;
        }
        return {length, &followers_[gram]};
    }

  private:
    std::unordered_map<Key, uint32_t> longer_;  // (n-gram, token before it) -> n-gram
    std::vector<std::vector<Follower>> followers_;
};

// Rows of best tokens by a key.
class Rows {
  public:
    explicit Rows(int64_t width) : width_(width) {}

    void set(Key key, const int64_t* row, int64_t count) {
        Token* place = room(key, count);
        std::copy_n(row, place[0], place + 1);
    }

    // A row and its length; null if there is none.
    std::pair<const Token*, int64_t> get(Key key) const {
        auto at = places_.find(key);
        if (at == places_.end()) return {nullptr, 0};
        const Token* row = rows_.data() + at->second;
        return {row + 1, row[0]};
    }

    int64_t count() const { return int64_t(places_.size()); }

    void clear() {
        places_.clear();
        rows_.clear();
    }

    void add_to(Rows& other) const {
        for (auto [key, place] : places_) {
            const Token* row = rows_.data() + place;
            Token* to = other.room(key, row[0]);
            std::copy_n(row + 1, to[0], to + 1);
        }
    }

    // All rows by ascending key: key, number of best tokens, these.
    std::vector<int64_t> listed() const {
        std::vector<Key> keys;
        for (auto& [key, place] : places_) keys.push_back(key);
        std::sort(keys.begin(), keys.end());
        std::vector<int64_t> list;
        for (Key key : keys) {
            auto [row, count] = get(key);
            list.insert(list.end(), {int64_t(key), count});
            list.insert(list.end(), row, row + count);
        }
        return list;
    }

  private:
    // Where a row is to be written, its length already.
    Token* room(Key key, int64_t count) {
        auto [at, is_new] = places_.try_emplace(key, rows_.size());
        if (is_new) rows_.resize(rows_.size() + 1 + width_);
        Token* place = rows_.data() + at->second;
        place[0] = Token(std::min(count, width_));
        return place;
    }

    int64_t width_;
    std::unordered_map<Key, size_t> places_;
    std::vector<Token> rows_;  // of each its length, then room for the widest
};

}  // namespace
