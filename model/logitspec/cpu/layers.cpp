// The decoder layers of a Llama-family model on a CPU, for the few rows that verification of a
// draft tree has. layers.py compiles this file, lays the weights out and calls it.
//
// One parallel region runs all layers: its threads meet at barriers instead of being started and
// stopped for every operator. The matrix products are in vectors.h.
//
// What a row comes to does not depend on how many rows are computed together with it, only on the
// slots that its keys and values are in.

#include <initializer_list>
#include <omp.h>

#include "vectors.h"

extern "C" {

struct Layer {  // matrices in blocks, vectors as they are; what the model lacks is null
    const void *qkv, *qkv_bias, *output, *output_bias;
    const void *gate_up, *gate_up_bias, *down, *down_bias;
    const void *input_norm, *post_norm, *q_norm, *k_norm;
};

struct Model {
    int64_t layers, hidden, heads, kv_heads, head_dim, intermediate;
    double eps;
    const Layer* layer;
};

struct Step {
    int64_t rows, length, capacity;  // new tokens, slots committed before, slots of the cache
    int64_t threads;
    const void *cos, *sin;           // [rows][head_dim]; the first half of sin is negated
    const uint8_t* sees;             // [rows][rows], which new tokens a row sees; null: causal
    void* cache;                     // [layers][2][kv_heads][capacity][head_dim]
    float* x;                        // [rows][hidden], in and out
    char* workspace;                 // null: only tell its size
};
}

namespace {

constexpr int QUERIES = 48;  // rows of attention that share a packed block of keys or values

template <class T> void norm(const float* x, const void* weight, const Model& m, T* out) {
    float scale = scale_of(x, m.hidden, m.eps);
    for (int64_t i = 0; i < m.hidden; i += LANES)
        store(load(x + i) * scale * load((const T*)weight + i), out + i);
}

// One head of one token: normalized where the model does, turned to its position, scaled.
template <class T>
void turn(const float* x, const void* weight, const Model& m, const T* cos, const T* sin,
          float factor, T* out) {
    int64_t half = m.head_dim / 2;
    float scale = weight ? scale_of(x, m.head_dim, m.eps) : 1;
    for (int64_t d = 0; d < m.head_dim; d += LANES) {
        int64_t other = d < half ? d + half : d - half;
        floats here = load(x + d) * scale, there = load(x + other) * scale;
        if (weight) {
            here *= load((const T*)weight + d);
            there *= load((const T*)weight + other);
        }
        store((here * load(cos + d) + there * load(sin + d)) * factor, out + d);
    }
}

template <int S> inline void exchange(ints* m) {  // one stage of the transposition
    constexpr auto low = [](int j) { return j & S ? LANES + (j ^ S) : j; };
    constexpr auto high = [](int j) { return j & S ? LANES + j : j ^ S; };
    const ints lows = {low(0), low(1), low(2), low(3), low(4), low(5), low(6), low(7),
                       low(8), low(9), low(10), low(11), low(12), low(13), low(14), low(15)};
    const ints highs = {high(0), high(1), high(2), high(3), high(4), high(5), high(6), high(7),
                        high(8), high(9), high(10), high(11), high(12), high(13), high(14), high(15)};
#pragma GCC unroll 16
    for (int i = 0; i < LANES; i++)
        if (!(i & S)) {
            ints a = m[i], b = m[i | S];
            m[i] = __builtin_shuffle(a, b, lows);
            m[i | S] = __builtin_shuffle(a, b, highs);
        }
}

// The block whose columns are 64 keys [count][size]; missing ones are zero.
template <class T> void pack_keys(const T* keys, int64_t count, int64_t size, T* block) {
    for (int64_t c = 0; c < COLUMNS; c++)
        for (int64_t d = 0; d < size; d += LANES * PAIR<T>) {
            ints m[LANES];
            for (int64_t k = 0; k < LANES; k++) {
                int64_t key = c * LANES + k;
                m[k] = key < count ? *(const ints_anywhere*)(keys + key * size + d) : ints{};
            }
            exchange<1>(m);
            exchange<2>(m);
            exchange<4>(m);
            exchange<8>(m);
            for (int64_t i = 0; i < LANES; i++)
                *(ints_anywhere*)(block + d * BLOCK + (i * BLOCK + c * LANES) * PAIR<T>) = m[i];
        }
}

// The block whose inputs are 64 values [count][size], its columns 64 of their dimensions.
template <class T> void pack_values(const T* values, int64_t count, int64_t size, T* block) {
    static const T nothing[BLOCK] = {};
    for (int64_t k = 0; k < BLOCK; k += PAIR<T>) {
        const T* first = k < count ? values + k * size : nothing;
        const T* second = k + 1 < count ? values + (k + 1) * size : nothing;
        for (int64_t d = 0; d < BLOCK; d++) {
            block[k * BLOCK + d * PAIR<T>] = first[d];
            if (PAIR<T> == 2) block[k * BLOCK + d * 2 + 1] = second[d];
        }
    }
}

// softmax of scores [seen], whole blocks
template <class T> void softmax(float* scores, int64_t seen, T* shares) {
    floats best = load(scores);
    for (int64_t t = LANES; t < seen; t += LANES) {
        floats s = load(scores + t);
        best = s > best ? s : best;
    }
    float top = best[0];
    for (int i = 1; i < LANES; i++) top = best[i] > top ? best[i] : top;
    floats sums = {};
    for (int64_t t = 0; t < seen; t += LANES) {
        floats e = exponential(load(scores + t) - top);
        sums += e;
        store(e, scores + t);
    }
    float scale = 1 / total(sums);
    for (int64_t t = 0; t < seen; t += LANES) store(load(scores + t) * scale, shares + t);
}

template <class T> struct Workspace {
    float* qkv;     // [rows][heads + 2 kv_heads][head_dim]
    T* input;       // [rows][hidden], behind a norm
    T* queries;     // [kv_heads][rows][groups][head_dim]
    T* attended;    // [rows][heads][head_dim]
    T* activated;   // [rows][intermediate]
    float* scores;  // of each thread, [QUERIES][seen]
    T* shares;      // of each thread, [QUERIES][seen]: the scores' softmax
    T* block;       // of each thread, [the larger of head_dim and 64][64]
    int64_t seen, block_size, bytes = 0;

    Workspace(const Model& m, const Step& s) {
        seen = (s.length + s.rows + BLOCK - 1) / BLOCK * BLOCK;
        block_size = BLOCK * (m.head_dim > BLOCK ? m.head_dim : BLOCK);
        auto take = [&](auto*& pointer, int64_t count) {
            pointer = (decltype(pointer + 0))(s.workspace + bytes);
            bytes += (count * int64_t(sizeof(*pointer)) + 63) / 64 * 64;
        };
        take(qkv, s.rows * (m.heads + 2 * m.kv_heads) * m.head_dim);
        take(input, s.rows * m.hidden);
        take(queries, s.rows * m.heads * m.head_dim);
        take(attended, s.rows * m.heads * m.head_dim);
        take(activated, s.rows * m.intermediate);
        take(scores, s.threads * QUERIES * seen);
        take(shares, s.threads * QUERIES * seen);
        take(block, s.threads * block_size);
    }
};

// One task of attention: all query heads of one key head, for the rows [first, last).
template <class T>
void attend(const Model& m, const Step& s, const Workspace<T>& w, int64_t head, int64_t first,
            int64_t last, const T* keys, const T* values) {
    int64_t me = omp_get_thread_num(), size = m.head_dim, groups = m.heads / m.kv_heads;
    int64_t queries = (last - first) * groups;
    int64_t seen = s.length + (s.sees ? s.rows : last);
    int64_t padded = (seen + BLOCK - 1) / BLOCK * BLOCK;
    float* scores = w.scores + me * QUERIES * w.seen;
    T* shares = w.shares + me * QUERIES * w.seen;
    T* block = w.block + me * w.block_size;

    const T* q = w.queries + (head * s.rows + first) * groups * size;
    for (int64_t t = 0; t < seen; t += BLOCK) {
        pack_keys(keys + t * size, seen - t, size, block);
        times_block(q, size, queries, block, size, [&](int64_t query, const float* sums) {
            memcpy(scores + query * w.seen + t, sums, BLOCK * sizeof(float));
        });
    }
    for (int64_t query = 0; query < queries; query++) {
        int64_t row = first + query / groups;
        float* line = scores + query * w.seen;
        for (int64_t t = s.length; t < padded; t++) {
            int64_t node = t - s.length;
            bool visible = node < s.rows && (s.sees ? s.sees[row * s.rows + node] : node <= row);
            if (!visible) line[t] = -INFINITY;
        }
        softmax(line, padded, shares + query * w.seen);
    }
    for (int64_t d = 0; d < size; d += BLOCK) {
        for (int64_t t = 0; t < seen; t += BLOCK) {
            pack_values(values + t * size + d, seen - t, size, block);
            times_block(shares + t, w.seen, queries, block, BLOCK,
                        [&](int64_t query, const float* sums) {
                float* sum = scores + query * w.seen;  // the scores are not needed any more
                for (int64_t i = 0; i < BLOCK; i += LANES)
                    store(t ? load(sum + i) + load(sums + i) : load(sums + i), sum + i);
            });
        }
        for (int64_t query = 0; query < queries; query++) {
            int64_t row = first + query / groups, of = head * groups + query % groups;
            T* out = w.attended + (row * m.heads + of) * size + d;
            for (int64_t i = 0; i < BLOCK; i += LANES)
                store(load(scores + query * w.seen + i), out + i);
        }
    }
}

template <class T> int64_t forward(const Model& m, const Step& s) {
    Workspace<T> w(m, s);
    if (!s.workspace) return w.bytes;
    int64_t size = m.head_dim, groups = m.heads / m.kv_heads, all_heads = m.heads + 2 * m.kv_heads;
    int64_t rows_per_task = QUERIES / groups;
    int64_t tasks_per_head = (s.rows + rows_per_task - 1) / rows_per_task;

#pragma omp parallel num_threads(int(s.threads))
    for (int64_t l = 0; l < m.layers; l++) {
        const Layer& layer = m.layer[l];
        T* keys = (T*)s.cache + l * 2 * m.kv_heads * s.capacity * size;
        T* values = keys + m.kv_heads * s.capacity * size;
        Share mine(s.rows);
        auto add_to_x = [&](const void* bias) {
            return [&s, &m, bias](int64_t row, int64_t b, const float* sums) {
                for (int64_t i = 0; i < BLOCK; i += LANES) {
                    float* x = s.x + row * m.hidden + b * BLOCK + i;
                    store(load(x) + with_bias<T>(sums + i, bias, b * BLOCK + i), x);
                }
            };
        };

        for (int64_t row = mine.begin; row < mine.end; row++)
            norm(s.x + row * m.hidden, layer.input_norm, m, w.input + row * m.hidden);
#pragma omp barrier
        product(w.input, s.rows, layer.qkv, m.hidden, all_heads * size / BLOCK,
                [&](int64_t row, int64_t b, const float* sums) {
            float* out = w.qkv + row * all_heads * size + b * BLOCK;
            for (int64_t i = 0; i < BLOCK; i += LANES)
                store(with_bias<T>(sums + i, layer.qkv_bias, b * BLOCK + i), out + i);
        });
#pragma omp barrier
        Share heads(s.rows * all_heads);
        for (int64_t i = heads.begin; i < heads.end; i++) {
            int64_t row = i / all_heads, head = i % all_heads;
            const float* x = w.qkv + i * size;
            const T *cos = (const T*)s.cos + row * size, *sin = (const T*)s.sin + row * size;
            int64_t slot = s.length + row;
            if (head < m.heads) {
                int64_t at = (head / groups * s.rows + row) * groups + head % groups;
                float factor = 1 / std::sqrt(float(size));
                turn(x, layer.q_norm, m, cos, sin, factor, w.queries + at * size);
            } else if (head < m.heads + m.kv_heads) {
                T* key = keys + ((head - m.heads) * s.capacity + slot) * size;
                turn(x, layer.k_norm, m, cos, sin, 1.0f, key);
            } else {
                T* value = values + ((head - m.heads - m.kv_heads) * s.capacity + slot) * size;
                for (int64_t d = 0; d < size; d += LANES) store(load(x + d), value + d);
            }
        }
#pragma omp barrier
#pragma omp for schedule(dynamic)
        for (int64_t task = 0; task < m.kv_heads * tasks_per_head; task++) {
            int64_t head = task / tasks_per_head, part = task % tasks_per_head;
            attend(m, s, w, head, s.rows * part / tasks_per_head,
                   s.rows * (part + 1) / tasks_per_head, keys + head * s.capacity * size,
                   values + head * s.capacity * size);
        }
        product(w.attended, s.rows, layer.output, m.heads * size, m.hidden / BLOCK,
                add_to_x(layer.output_bias));
#pragma omp barrier
        for (int64_t row = mine.begin; row < mine.end; row++)
            norm(s.x + row * m.hidden, layer.post_norm, m, w.input + row * m.hidden);
#pragma omp barrier
        // A block holds 32 columns of the gate, then the same 32 of up.
        product(w.input, s.rows, layer.gate_up, m.hidden, 2 * m.intermediate / BLOCK,
                [&](int64_t row, int64_t b, const float* sums) {
            for (int64_t i = 0; i < BLOCK / 2; i += LANES) {
                int64_t at = b * BLOCK + i;
                floats gate = with_bias<T>(sums + i, layer.gate_up_bias, at);
                floats up = with_bias<T>(sums + BLOCK / 2 + i, layer.gate_up_bias, at + BLOCK / 2);
                store(gate / (1.0f + exponential(-gate)) * up,
                      w.activated + row * m.intermediate + b * BLOCK / 2 + i);
            }
        });
#pragma omp barrier
        product(w.activated, s.rows, layer.down, m.intermediate, m.hidden / BLOCK,
                add_to_x(layer.down_bias));
#pragma omp barrier
    }
    return w.bytes;
}

// out [rows][outputs] = x [rows][inputs] times a matrix whose last block may be padded
template <class T>
void multiply(const T* x, int64_t rows, const void* matrix, int64_t inputs, int64_t outputs, T* out,
              int64_t threads) {
#pragma omp parallel num_threads(int(threads))
    product(x, rows, matrix, inputs, (outputs + BLOCK - 1) / BLOCK,
            [&](int64_t row, int64_t b, const float* sums) {
        alignas(64) T narrow[BLOCK];
        for (int64_t i = 0; i < BLOCK; i += LANES) store(load(sums + i), narrow + i);
        int64_t left = outputs - b * BLOCK;
        memcpy(out + row * outputs + b * BLOCK, narrow, sizeof(T) * (left < BLOCK ? left : BLOCK));
    });
}

// The `count` best of each row of logits [rows][vocab], best first; of equal ones the first.
template <class T>
void best(const T* logits, int64_t rows, int64_t vocab, int64_t count, int64_t* out,
          int64_t threads) {
#pragma omp parallel for num_threads(int(threads)) if (rows > 1)
    for (int64_t row = 0; row < rows; row++) {
        const T* line = logits + row * vocab;
        int64_t* found = out + row * count;  // sorted; most blocks hold nothing that gets in
        float least = -INFINITY;             // the value of the last one, once there are enough
        int64_t held = 0;
        for (int64_t start = 0; start < vocab; start += BLOCK) {
            int64_t end = start + BLOCK < vocab ? start + BLOCK : vocab;
            if (held == count && end - start == BLOCK) {
                floats top = load(line + start);
                for (int64_t i = LANES; i < BLOCK; i += LANES) {
                    floats x = load(line + start + i);
                    top = x > top ? x : top;
                }
                ints better = top > least;
                bool any = false;
                for (int i = 0; i < LANES; i++) any |= better[i] != 0;
                if (!any) continue;
            }
            for (int64_t token = start; token < end; token++) {
                float value = widen(line[token]);
                if (held == count && !(value > least)) continue;
                int64_t place = held < count ? held++ : count - 1;
                for (; place > 0 && value > widen(line[found[place - 1]]); place--)
                    found[place] = found[place - 1];
                found[place] = token;
                least = held == count ? widen(line[found[count - 1]]) : -INFINITY;
            }
        }
    }
}

}  // namespace

extern "C" {

// Runs all layers over s.rows new tokens, or tells the bytes of workspace that this takes.
int64_t forward_float32(const Model* m, const Step* s) { return forward<float>(*m, *s); }
int64_t forward_bfloat16(const Model* m, const Step* s) { return forward<bfloat16>(*m, *s); }

void multiply_float32(const float* x, int64_t rows, const void* matrix, int64_t inputs,
                      int64_t outputs, float* out, int64_t threads) {
    multiply(x, rows, matrix, inputs, outputs, out, threads);
}
void multiply_bfloat16(const bfloat16* x, int64_t rows, const void* matrix, int64_t inputs,
                       int64_t outputs, bfloat16* out, int64_t threads) {
    multiply(x, rows, matrix, inputs, outputs, out, threads);
}
void best_float32(const float* logits, int64_t rows, int64_t vocab, int64_t count, int64_t* out,
                  int64_t threads) {
    best(logits, rows, vocab, count, out, threads);
}
void best_bfloat16(const bfloat16* logits, int64_t rows, int64_t vocab, int64_t count,
                   int64_t* out, int64_t threads) {
    best(logits, rows, vocab, count, out, threads);
}
}
