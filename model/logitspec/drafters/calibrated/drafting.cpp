// The drafting of the method calibrated: the same as evidence.py, growth.py and foresight.py do in
// Python, which say what all of it means. compiled.py compiles this file and calls it. A test holds
// that both grow the same trees. One handle serves one generation at a time; handles of several may
// share what they keep.

#include <memory>
#include <queue>
#include <tuple>

#include "corrections.h"
#include "foresight.h"

extern "C" {

struct Settings {
    int64_t capacity, max_ngram_size, lengths, row_width, ranks, last_width;
    int64_t most_followers, most_earlier;
    int64_t keep_rows, keep_ngrams;
    double pruning, patience;
    double chain_least;  // path probability where a chain ends; 0: trees are drafted, not chains
    int64_t grade_count;         // of all sources
    const int64_t* last_grades;  // [last_width] of the ranks of the last logits
    const int64_t* firsts;       // [SOURCES] where the grades of each begin
    const uint8_t* named;        // [grade_count] whether a source names tokens of the grade
};

struct Costs {  // of a tree that sizes itself, by its nodes; see budget.py
    const double *curve, *cheapest;
    double least, weight, lesson, given;
    int64_t plain_nodes;  // found: of the tree without lessons
};

struct Tree {  // room for `capacity` nodes
    int64_t *tokens, *parents;
    Grades* grades;
    double* paths;
};
}

namespace {

constexpr int64_t ANSWERS = 0, ROWS = 1, SCORED = 2;  // what is kept

struct Kept {  // from prompt to prompt
    Ngrams ngrams;                            // of the answers
    std::vector<std::vector<Token>> answers;  // to earlier prompts
    int64_t tokens = 0;                       // of these
    Rows rows;
    ScoredRows scored;  // of samples

    explicit Kept(int64_t row_width) : rows(row_width) {}

    void forget_answers() {
        ngrams.clear();
        answers.clear();
        tokens = 0;
    }
};

struct Drafting {
    Settings set;
    std::vector<int64_t> last_grades;
    Grades firsts;
    std::shared_ptr<Kept> kept;
    Ngrams own;
    std::vector<Token> prompt;
    std::vector<std::vector<Token>> answers{{}};  // to the prompt
    std::vector<int64_t> listed;                  // the last list
    std::vector<float> listed_logs;
    std::vector<Token> context;  // the last committed tokens
    Rows single, pairs;          // by token; by a token and the next one
    ScoredRows scored, scored_pairs;  // of samples; found as these two are
    int64_t committed = 0;                          // tokens of prompt and answer
    Corrections corrections;
    std::vector<Below> below;      // the nodes of the last tree
    std::vector<Guesses> guessed;  // the same of samples
    int64_t looked = 0;            // at so many of its first nodes
    int64_t awaited = -1;  // the last accepted node, if what followed it is to be learnt
    double least = 0;      // what the last tree's last node was worth

    // `other` shares what is kept; null: nobody does.
    Drafting(const Settings& s, const Drafting* other)
        : set(s), last_grades(s.last_grades, s.last_grades + s.last_width),
          kept(other ? other->kept : std::make_shared<Kept>(s.row_width)), single(s.row_width),
          pairs(s.row_width),
          corrections(s.named, s.grade_count), below(s.capacity), guessed(s.capacity) {
        std::copy_n(s.firsts, SOURCES, firsts.begin());
        set.last_grades = set.firsts = nullptr;
        set.named = nullptr;
    }

    void commit(Ngrams& ngrams, std::vector<Token>& before, Token token) const {
        auto last = [&](int64_t n) { return before[before.size() - n]; };
        ngrams.add(last, std::min<int64_t>(before.size(), set.max_ngram_size), token);
        if (int64_t(before.size()) == std::max<int64_t>(set.max_ngram_size, 2))
            before.erase(before.begin());
        before.push_back(token);
    }

    // The prompt may be the last one again: what is known of that answer holds for the next one.
    void begin(const int64_t* ids, int64_t count) {
        std::vector<Token> next(ids, ids + count);
        bool again = count && next == prompt;
        prompt = std::move(next);
        committed = count;
        awaited = -1;
        least = 0;
        if (!again || !set.keep_rows || pairs.count() > MOST_ROWS) {
            if (set.keep_rows) {
                single.add_to(kept->rows);
                scored.add_to(kept->scored);
            }
            single.clear();
            pairs.clear();
            scored.clear();
            scored_pairs.clear();
        }
        if (again && set.keep_ngrams && own.count() <= set.most_earlier) {
            answers.emplace_back();
            int64_t longest = std::max<int64_t>(set.max_ngram_size, 2);
            context.assign(prompt.end() - std::min(count, longest), prompt.end());
            return;
        }
        if (std::max(kept->ngrams.count(), kept->tokens) > set.most_earlier)
            kept->forget_answers();
        if (set.keep_ngrams)
            for (auto& answer : answers) take_in(std::move(answer));
        answers.assign(1, {});
        own.clear();
        context.clear();
        for (Token token : prompt) commit(own, context, token);
        if (!count) {  // nothing follows for now: give memory back
            own = Ngrams();
            single = pairs = Rows(set.row_width);
            scored = scored_pairs = ScoredRows();
        }
    }

    void take_in(std::vector<Token> answer) {
        std::vector<Token> before;
        for (Token token : answer) commit(kept->ngrams, before, token);
        kept->tokens += answer.size();
        if (!answer.empty()) kept->answers.push_back(std::move(answer));
    }

    // What begin() keeps, as evidence.py lists it.
    void list(int64_t what) {
        listed.clear();
        listed_logs.clear();
        if (what == ANSWERS && set.keep_ngrams) {
            for (const auto* some : {&kept->answers, &answers})
                for (const auto& answer : *some) {
                    if (answer.empty()) continue;
                    listed.insert(listed.end(), answer.begin(), answer.end());
                    listed.push_back(-1);
                }
        } else if (what == ROWS && set.keep_rows) {
            Rows all = kept->rows;
            single.add_to(all);
            listed = all.listed();
        } else if (what == SCORED && set.keep_rows) {
            ScoredRows all = kept->scored;
            scored.add_to(all);
            std::tie(listed, listed_logs) = all.listed();
        }
    }

    void take(int64_t what, const int64_t* list, int64_t count, const float* logs) {
        const int64_t* end = list + count;
        while (list < end) {
            if (what == ANSWERS) {
                const int64_t* stop = std::find(list, end, -1);
                take_in({list, stop});
                list = stop + 1;
                continue;
            }
            Token token = Token(list[0]);
            int64_t width = list[1];
            if (what == ROWS) kept->rows.set(token, list + 2, width);
            else kept->scored.set(token, list + 2, logs, width);
            list += 2 + width;
            logs += what == ROWS ? 0 : width;
        }
    }

    void forget() {
        answers.assign(1, {});
        kept->forget_answers();
        single.clear();
        kept->rows.clear();
        scored.clear();
        kept->scored.clear();
        begin(nullptr, 0);
    }

    void name(std::vector<Candidate>& named, Token token, size_t source, int64_t grade) const {
        auto same = [=](const Candidate& known) { return known.token == token; };
        auto at = std::find_if(named.begin(), named.end(), same);
        if (at == named.end()) at = named.insert(at, {token, {UNNAMED, UNNAMED, UNNAMED, UNNAMED}});
        at->grades[source] = firsts[source] + grade;
    }

    // Names what followed the longest n-gram; returns the grade of tokens that are not named.
    template <class Before>
    int64_t look_into(const Ngrams& ngrams, Before before, int64_t most, size_t source,
                      std::vector<Candidate>& named) const {
        auto [matched, found] = ngrams.match(before, most);
        if (!matched) return 0;
        int64_t base = 1 + (std::min(matched, set.lengths) - 1) * SHARES;
        if (found->size() == 1) {
            bool once = found->front().times == 1;
            name(named, found->front().token, source, base + (once ? ONCE : ALWAYS));
        } else {
            int64_t total = 0;
            for (const Follower& f : *found) total += f.times;
            size_t first = std::max<int64_t>(0, int64_t(found->size()) - set.most_followers);
            for (size_t i = first; i < found->size(); i++) {
                int64_t times = 3 * (*found)[i].times;
                int64_t share = times <= total ? 1 : times <= 2 * total ? 2 : 3;
                name(named, (*found)[i].token, source, base + share);
            }
        }
        return base;
    }

    // The candidates below a node. before(n) is the n-th last token up to it. Returns the grades of
    // tokens that are not named.
    template <class Before>
    Grades look(Before before, int64_t length, const int64_t* top, int64_t tops,
                std::vector<Candidate>& named) const {
        named.clear();
        Grades base = firsts;  // where nothing is known
        Token token = before(1);

        int64_t most = std::min(length, set.max_ngram_size);
        base[OF_NGRAMS] += look_into(own, before, most, OF_NGRAMS, named);

        const Kept& old = *kept;
        auto row = pairs.get(key(length > 1 ? before(2) : -1, token));
        int64_t kind = 0;
        for (const Rows* rows : {&single, &old.rows})
            if (!row.first) {
                kind++;
                row = rows->get(token);
            }
        if (row.first) {
            int64_t first = 1 + kind * (set.ranks + 1);  // then the other ranks', then that of none
            base[OF_ROWS] += first + set.ranks;
            for (int64_t rank = 0; rank < row.second; rank++)
                name(named, row.first[rank], OF_ROWS, first + std::min(rank, set.ranks - 1));
        }

        base[OF_EARLIER] += look_into(kept->ngrams, before, most, OF_EARLIER, named);

        if (top) {
            base[OF_LAST] += 1;  // none of the ranks
            for (int64_t rank = 0; rank < std::min(tops, set.last_width); rank++)
                if (top[rank] != token) name(named, Token(top[rank]), OF_LAST, last_grades[rank]);
        }
        for (Candidate& candidate : named)
            for (size_t i = 0; i < SOURCES; i++)
                if (candidate.grades[i] == UNNAMED) candidate.grades[i] = base[i];
        return base;
    }

    // What both estimates say of the candidates below a node, and the share of the acceptance table.
    template <class Before>
    double weigh(Before before, int64_t length, int64_t depth, const std::vector<Candidate>& named,
                 const Grades& base, const Foresight& f, Guesses& guesses) const {
        guesses.all.clear();
        guesses.mixture = -1;
        double share = 1;
        Token token = before(1);
        const Kept& old = *kept;
        ScoredRows::Row row = scored_pairs.get(key(length > 1 ? before(2) : -1, token));
        int64_t kind = 0;
        for (const ScoredRows* rows : {&scored, &old.scored})
            if (!row.tokens) {
                kind++;
                row = rows->get(token);
            }
        auto known = [&](Token its) {
            auto same = [=](const Candidate& c) { return c.token == its; };
            auto at = std::find_if(named.begin(), named.end(), same);
            return at == named.end() ? nullptr : &*at;
        };
        if (row.tokens) {
            double highest = 0;
            for (const Candidate& c : named) highest = std::max(highest, c.probability);
            kind = 2 * kind + (depth == 0);
            guesses.mixture = kind * LEVELS + std::min(LEVELS - 1, int64_t(LEVELS * highest));
            share = f.share[guesses.mixture] / f.count[guesses.mixture];
            for (auto [its, place] : foresee(row, state_of(f.stream, committed + depth + 1))) {
                int64_t bin = kind * BINS + place;
                const Candidate* c = known(its);
                guesses.all.push_back({its, c ? c->grades : base, c ? c->probability : 0, bin,
                                       probability(f, bin)});
            }
        }
        size_t foreseen = guesses.all.size();
        for (const Candidate& c : named) {
            auto same = [&](const Guess& guess) { return guess.token == c.token; };
            auto end = guesses.all.begin() + foreseen;
            if (std::find_if(guesses.all.begin(), end, same) == end)
                guesses.all.push_back({c.token, c.grades, c.probability, -1, 0});
        }
        return share;
    }

    void learn_below(int64_t node, Token right, const Table& t, const Foresight* f) const {
        for (const Candidate& c : below[node].all) corrections.count(c, c.token == right, t);
        corrections.learn(below[node], right, t);
        if (!f) return;
        for (const Guess& g : guessed[node].all)
            Corrections::learn_at(g.weight, (g.token == right) - g.probability, t);
        learn(guessed[node], right, *f);
    }

    // Grows a tree into `tree`, counts its nodes; `whole` tells whether it is the tree that would
    // have grown without a floor.
    int64_t grow(Token root, const int64_t* top, int64_t tops, double floor, const Table& table,
                 Costs* costs, const Foresight* f, Tree& tree, bool& whole) {
        using Open = std::tuple<double, int64_t, Token, Grades, double>;
        std::priority_queue<Open, std::vector<Open>, std::greater<Open>> open;
        // -worth, parent, token, grades, path probability
        double worth = 1, expected = 0, best_rate = 0, patience = costs ? 1 : set.patience;
        double plain_rate = 0;
        int64_t nodes = 0, best_nodes = 0, plain_nodes = 0;
        looked = 0;
        auto add = [&](int64_t parent, Token token, const Grades& grades, double path) {
            tree.tokens[nodes] = token;
            tree.parents[nodes] = parent;
            tree.grades[nodes] = grades;
            tree.paths[nodes++] = path;
            if (!costs) return;
            expected += nodes > 1 ? worth * costs->weight : 1;
            double seconds = costs->curve[nodes], plain = expected / seconds;
            if (plain > plain_rate) {
                plain_rate = plain;
                plain_nodes = nodes;
            }
            double rate = (expected + costs->lesson * double(nodes - 1)) / seconds;
            if (rate > best_rate && plain >= (1 - costs->given) * plain_rate) {
                best_rate = rate;
                best_nodes = nodes;
            }
        };
        add(0, root, {}, 1);
        whole = true;
        int64_t most = std::max<int64_t>(set.max_ngram_size, 2);
        std::vector<Token> last(most);  // tokens up to a node, its own first
        while (true) {
            least = worth;
            if (worth > floor) {
                int64_t node = nodes - 1, depth = 0;
                for (int64_t up = node; up; up = tree.parents[up]) depth++;
                int64_t own = depth + 1;  // tokens of the tree
                int64_t length = std::min<int64_t>(most, own + context.size());
                for (int64_t up = node, n = 0; n < length; n++) {
                    if (n >= own) {
                        last[n] = context[context.size() - 1 - (n - own)];
                        continue;
                    }
                    last[n] = Token(tree.tokens[up]);
                    up = tree.parents[up];
                }
                auto& named = below[node].all;
                auto before = [&](int64_t n) { return last[n - 1]; };
                Grades base = look(before, length, node ? nullptr : top, tops, named);
                looked = nodes;
                corrections.weigh(below[node], table);
                auto push = [&](Token token, const Grades& grades, double probability) {
                    double its = worth * patience * probability;
                    if (its > floor)
                        open.emplace(-its, node, token, grades, tree.paths[node] * probability);
                };
                if (f) {
                    auto& guesses = guessed[node];
                    double share = weigh(before, length, depth, named, base, *f, guesses);
                    for (Guess& g : guesses.all) {
                        double mixed = share * g.known + (1 - share) * g.foreseen;
                        int64_t by = g.bin < 0 ? 2 : g.known ? 0 : 1;
                        std::tie(g.probability, g.weight) =
                            corrections.correct_mixture(mixed, by, table);
                        push(g.token, g.grades, g.probability);
                    }
                } else if (set.chain_least > 0) {
                    auto less = [](const Candidate& a, const Candidate& b) {
                        return a.probability < b.probability;
                    };
                    auto best = std::max_element(named.begin(), named.end(), less);
                    if (best != named.end()) push(best->token, best->grades, best->probability);
                } else {
                    for (const Candidate& c : named) push(c.token, c.grades, c.probability);
                }
            }
            if (nodes == set.capacity) break;
            if (open.empty()) {
                whole = floor == 0;
                break;
            }
            auto [minus, parent, token, grades, path] = open.top();
            open.pop();
            worth = -minus;
            if (costs) {
                double its = worth * costs->weight, cheapest = costs->cheapest[nodes];
                if (its <= plain_rate * cheapest && its + costs->lesson <= best_rate * cheapest) break;
            }
            add(parent, token, grades, path);
        }
        if (!costs) return nodes;
        costs->plain_nodes = plain_nodes;
        return best_nodes;
    }

    void learn_awaited(Token token, const Table& table, const Foresight* f) {
        if (awaited >= 0) learn_below(awaited, token, table, f);
        awaited = -1;
    }

    void enter(Token token) {
        commit(own, context, token);
        answers.back().push_back(token);
        committed++;
    }

    int64_t draft(Token root, const int64_t* top, int64_t tops, const Table& table,
                  Costs* costs, const Foresight* f, Tree& tree) {
        learn_awaited(root, table, f);
        bool whole;
        if (costs) return grow(root, top, tops, costs->least, table, costs, f, tree, whole);
        if (set.chain_least > 0)
            return grow(root, top, tops, set.chain_least, table, costs, f, tree, whole);
        int64_t nodes = grow(root, top, tops, least * set.pruning, table, costs, f, tree, whole);
        return whole ? nodes : grow(root, top, tops, 0, table, costs, f, tree, whole);
    }

    void learn_row(Token before, Token token, const int64_t* row, int64_t width) {
        single.set(token, row, width);
        pairs.set(key(before, token), row, width);
    }

    void observe(const Tree& tree, int64_t nodes, const int64_t* path, int64_t accepted,
                 const int64_t* rows, const float* logs, int64_t width, const Table& table,
                 const Foresight* f) {
        for (int64_t i = 0; i + 1 < accepted; i++)
            if (path[i] < looked)
                learn_below(path[i], Token(tree.tokens[path[i + 1]]), table, f);
        awaited = path[accepted - 1] < looked ? path[accepted - 1] : -1;
        Token before = context.empty() ? -1 : context.back();
        auto row_of = [&](int64_t node) {
            const int64_t* row = rows + node * width;
            int64_t known = std::find(row, row + width, -1) - row;
            if (!known) return;
            Token parent = node ? Token(tree.tokens[tree.parents[node]]) : before;
            Token token = Token(tree.tokens[node]);
            learn_row(parent, token, row, known);
            if (!f) return;
            const float* its = logs + node * width;  // those that are filtered out come last
            int64_t count = std::find(its, its + known, -INFINITY) - its;
            if (scored_pairs.count() >= MOST_ROWS) scored_pairs.clear();
            scored.set(token, row, its, count);
            scored_pairs.set(key(parent, token), row, its, count);
        };
        for (int64_t node = nodes - 1; node >= 0; node--) row_of(node);
        for (int64_t i = 0; i < accepted; i++) row_of(path[i]);
        for (int64_t i = 0; i < accepted; i++) enter(Token(tree.tokens[path[i]]));
    }
};

}  // namespace

extern "C" {

// `other` is a handle of the same settings that shares what it keeps, or null.
void* drafting_new(const Settings* settings, const void* other) {
    return new Drafting(*settings, (const Drafting*)other);
}
void drafting_delete(void* handle) { delete (Drafting*)handle; }

// `f` is null where nothing is known of samples; `logs` is read where it is not.
// These return -1 where they are given what is no token, and have done nothing.

int64_t drafting_begin(void* handle, const int64_t* prompt, int64_t count) {
    if (!valid(prompt, count)) return -1;
    ((Drafting*)handle)->begin(prompt, count);
    return 0;
}

void drafting_forget(void* handle) { ((Drafting*)handle)->forget(); }

// Lists what is kept, of one of the three kinds. Returns how many numbers it takes.
int64_t drafting_list(void* handle, int64_t what) {
    ((Drafting*)handle)->list(what);
    return int64_t(((Drafting*)handle)->listed.size());
}

const int64_t* drafting_listed(void* handle) { return ((Drafting*)handle)->listed.data(); }
int64_t drafting_listed_tokens(void* handle) {
    return int64_t(((Drafting*)handle)->listed_logs.size());
}
const float* drafting_listed_logs(void* handle) { return ((Drafting*)handle)->listed_logs.data(); }

// Takes such a list in, which has been checked; `logs` is read for scored rows only.
void drafting_take(void* handle, int64_t what, const int64_t* list, int64_t count,
                   const float* logs) {
    ((Drafting*)handle)->take(what, list, count, logs);
}

int64_t drafting_draft(void* handle, int64_t root, const int64_t* top, int64_t tops,
                       const Table* table, Costs* costs, const Foresight* f, Tree* tree) {
    if (!valid(&root, 1) || !valid(top, tops)) return -1;
    auto& drafting = *(Drafting*)handle;
    return drafting.draft(Token(root), top, tops, *table, costs, f, *tree);
}

int64_t drafting_skip(void* handle, int64_t token, const Table* table, const Foresight* f) {
    if (!valid(&token, 1)) return -1;
    auto& drafting = *(Drafting*)handle;
    drafting.learn_awaited(Token(token), *table, f);
    drafting.enter(Token(token));
    return 0;
}

int64_t drafting_observe(void* handle, const Tree* tree, int64_t nodes, const int64_t* path,
                         int64_t accepted, const int64_t* rows, const float* logs, int64_t width,
                         const Table* table, const Foresight* f) {
    if (!valid(tree->tokens, nodes) || !valid(rows, nodes * width, -1)) return -1;
    ((Drafting*)handle)->observe(*tree, nodes, path, accepted, rows, logs, width, *table, f);
    return 0;
}
}
