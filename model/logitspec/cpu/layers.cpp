// The decoder layers of a Llama-family model on a CPU, for the few rows that verification of a
// draft tree has. layers.py compiles this file, lays the weights out and calls it.
//
// All layers are one job of the crew (crew.h), a few phases a layer. The matrix products are in
// matrices.h.

#include "crew.h"
#include "vectors.h"

namespace {

// Numbers of a step are rounded to T, its dtype, and held as X, which products take.
template <class T, class X> void put(floats x, X* p) {
    if constexpr (std::is_same_v<T, X>) {
        store(x, p);
    } else {
        T narrow[LANES];
        store(x, narrow);
        store(load(narrow), p);
    }
}

}  // namespace

#include "attention.h"
#include "best.h"
#include "samples.h"

extern "C" {

struct Layer {  // vectors are float32; what the model lacks is null
    Matrix q, k, v, output, gate, up, down;
    const float *q_bias, *k_bias, *v_bias, *output_bias, *gate_bias, *up_bias, *down_bias;
    const float *input_norm, *post_norm, *q_norm, *k_norm;
};

struct Model {
    int64_t layers, hidden, heads, kv_heads, head_dim, intermediate;
    double eps;
    const Layer* layer;
};

struct Step {
    int64_t rows, length, capacity;  // new tokens, slots committed before, slots of the cache
    int64_t threads;
    const void* turns;               // [positions][cos, sin][head_dim]; sin's first half is negated
    const int64_t* positions;        // [rows]
    const uint8_t* sees;             // [rows][rows], which new tokens a row sees; null: causal
    void* cache;                     // [layers][2][kv_heads][capacity][head_dim]
    void* x;                         // [rows][hidden], in and out
    char* workspace;                 // null: only tell its size
};
}

namespace {

constexpr int FEW = 16;  // rows that every thread normalizes for itself, sooner than wait for others

template <class T, class X>
void norm(const float* x, const float* weight, int64_t size, double eps, X* out) {
    float scale = scale_of(x, size, eps);
    for (int64_t i = 0; i < size; i += LANES)
        put<T>(load(x + i) * scale * load(weight + i), out + i);
}

// One head of one token: normalized where the model does, turned to its position, scaled.
template <class T, class X>
void turn(const float* x, const float* weight, const Model& m, const T* cos, const T* sin,
          float factor, X* out) {
    int64_t half = m.head_dim / 2;
    float scale = weight ? scale_of(x, m.head_dim, m.eps) : 1;
    for (int64_t d = 0; d < m.head_dim; d += LANES) {
        int64_t other = d < half ? d + half : d - half;
        floats here = load(x + d) * scale, there = load(x + other) * scale;
        if (weight) {
            here *= load(weight + d);
            there *= load(weight + other);
        }
        put<T>((here * load(cos + d) + there * load(sin + d)) * factor, out + d);
    }
}

inline floats with_bias(const float* sums, const float* bias, int64_t at) {
    return bias ? load(sums) + load(bias + at) : load(sums);
}

inline int64_t largest(std::initializer_list<int64_t> numbers) {
    int64_t most = 0;
    for (int64_t number : numbers) most = number > most ? number : most;
    return most;
}

// What a job's threads share, and what each has of its own.
template <class X> struct Workspace {
    float* x;       // [rows][hidden], the residual stream
    X* normal;      // [rows][hidden], behind a norm; of each thread where rows are few
    X* queries;     // [kv_heads][rows][groups][head_dim]
    X* attended;    // [rows][heads][head_dim]
    X* activated;   // [rows][intermediate]
    float* head;    // of each thread, [rows][head_dim]
    float* room;    // of each thread, for what matrices want of inputs
    float* out;     // of each thread, [2][rows or QUERIES][BLOCK]
    float* widened; // of each thread, [PANEL][BLOCK]
    float* scores;  // of each thread, [QUERIES][seen]
    X* shares;      // of each thread, [QUERIES][seen]: the scores' softmax
    char* block;    // of each thread, [the larger of head_dim and BLOCK][BLOCK]
    int64_t seen, room_size, out_size, block_size, bytes = 0;

    Workspace(const Model& m, const Step& s) {
        seen = (s.length + s.rows + BLOCK - 1) / BLOCK * BLOCK;
        room_size = room_of(s.rows, largest({m.hidden, m.heads * m.head_dim, m.intermediate}));
        out_size = largest({s.rows, QUERIES}) * BLOCK;
        block_size = 4 * BLOCK * largest({m.head_dim, BLOCK});
        auto take = [&](auto*& pointer, int64_t count) {
            pointer = (decltype(pointer + 0))(s.workspace + bytes);
            bytes += (count * int64_t(sizeof(*pointer)) + 63) / 64 * 64;
        };
        take(x, s.rows * m.hidden);
        take(normal, (s.rows > FEW ? 1 : s.threads) * s.rows * m.hidden);
        take(queries, s.rows * m.heads * m.head_dim);
        take(attended, s.rows * m.heads * m.head_dim);
        take(activated, s.rows * m.intermediate);
        take(head, s.threads * s.rows * m.head_dim);
        take(room, s.threads * room_size);
        take(out, s.threads * 2 * out_size);
        take(widened, s.threads * PANEL * BLOCK);
        take(scores, s.threads * QUERIES * seen);
        take(shares, s.threads * QUERIES * seen);
        take(block, s.threads * block_size);
    }
};

constexpr int PHASES = 7;  // of a layer, at most

// One thread's part in a step. T: of the cache; X: of the inputs of products.
template <class T, class X> struct Runner {
    const Model m;
    const Step s;
    const Workspace<X> w;
    Worker worker;
    float* out = w.out + worker.me * 2 * w.out_size;
    float* widened = w.widened + worker.me * PANEL * BLOCK;
    int64_t size = m.head_dim, groups = m.heads / m.kv_heads;

    // A phase of products: piece(rows of input, its number). The input is made by the threads that
    // get a piece; behind a norm if there is a weight for that.
    template <class Piece>
    void products(int64_t pieces, const float* Layer::* norm_weight, const X* x, int64_t inputs,
                  std::initializer_list<Matrix Layer::*> matrices, int64_t l, Piece piece) {
        if (norm_weight && s.rows > FEW) {
            worker.share(s.rows, [&](int64_t row) {
                norm<T>(w.x + row * m.hidden, m.layer[l].*norm_weight, inputs, m.eps, w.normal + row * inputs);
            });
        }
        Rows<X> rows{};
        worker.share(pieces, [&](int64_t number) {
            const Layer& layer = m.layer[l];
            if (!rows.x) {
                if (norm_weight) {
                    X* normal = w.normal + (s.rows > FEW ? 0 : worker.me * s.rows * m.hidden);
                    for (int64_t row = 0; row < (s.rows > FEW ? 0 : s.rows); row++)
                        norm<T>(w.x + row * m.hidden, layer.*norm_weight, inputs, m.eps, normal + row * inputs);
                    x = normal;
                }
                std::vector<const Matrix*> of_layer;
                for (auto matrix : matrices) of_layer.push_back(&(layer.*matrix));
                rows = prepared(Rows<X>{x, s.rows, inputs}, inputs, of_layer,
                                w.room + worker.me * w.room_size);
            }
            piece(layer, rows, number);
        });
    }

    // One head of queries, keys or values: the product, turned, to where attention reads it.
    void project(int64_t l, const Rows<X>& rows, int64_t head) {
        const Layer& layer = m.layer[l];
        bool query = head < m.heads, key = !query && head < m.heads + m.kv_heads;
        int64_t of = query ? head : key ? head - m.heads : head - m.heads - m.kv_heads;
        const Matrix& matrix = query ? layer.q : key ? layer.k : layer.v;
        const float* bias = query ? layer.q_bias : key ? layer.k_bias : layer.v_bias;
        float* product = w.head + worker.me * s.rows * size;
        for (int64_t d = 0; d < size; d += BLOCK) {
            int64_t b = (of * size + d) / BLOCK;
            times_block(rows, matrix, b, b + 1, out, widened);
            for (int64_t row = 0; row < s.rows; row++)
                for (int64_t i = 0; i < BLOCK; i += LANES)
                    store(with_bias(out + row * BLOCK + i, bias, of * size + d + i),
                          product + row * size + d + i);
        }
        T* cache = slots(l, !key, of) + s.length * size;
        for (int64_t row = 0; row < s.rows; row++) {
            const float* x = product + row * size;
            const T *cos = (const T*)s.turns + s.positions[row] * 2 * size, *sin = cos + size;
            if (query) {
                int64_t at = (of / groups * s.rows + row) * groups + of % groups;
                turn<T>(x, layer.q_norm, m, cos, sin, 1 / std::sqrt(float(size)),
                        w.queries + at * size);
            } else if (key) {
                turn<T>(x, layer.k_norm, m, cos, sin, 1.0f, cache + row * size);
            } else {
                for (int64_t d = 0; d < size; d += LANES) store(load(x + d), cache + row * size + d);
            }
        }
    }

    // The keys or values of a key head: [capacity][head_dim].
    T* slots(int64_t l, bool values, int64_t head) const {
        return (T*)s.cache + ((l * 2 + values) * m.kv_heads + head) * s.capacity * size;
    }

    void attend(int64_t l, int64_t task, int64_t tasks_per_head) {
        int64_t head = task / tasks_per_head, part = task % tasks_per_head, me = worker.me;
        Attention<T, X> attention{
            slots(l, false, head), slots(l, true, head), w.queries + head * s.rows * groups * size,
            size, groups, s.rows, s.length, s.rows * part / tasks_per_head,
            s.rows * (part + 1) / tasks_per_head, s.sees, w.scores + me * QUERIES * w.seen,
            w.shares + me * QUERIES * w.seen, w.seen, w.block + me * w.block_size, out};
        attention.run([&](int64_t row, int64_t group, int64_t d, const float* sums) {
            X* attended = w.attended + (row * m.heads + head * groups + group) * size + d;
            for (int64_t i = 0; i < BLOCK; i += LANES) put<T>(load(sums + i), attended + i);
        });
    }

    void add_to_x(const Rows<X>& rows, const Matrix& matrix, const float* bias, int64_t b) {
        times_block(rows, matrix, b, b + 1, out, widened);
        for (int64_t row = 0; row < s.rows; row++)
            for (int64_t i = 0; i < BLOCK; i += LANES) {
                float* x = w.x + row * m.hidden + b * BLOCK + i;
                store(load(x) + with_bias(out + row * BLOCK + i, bias, b * BLOCK + i), x);
            }
    }

    void activate(const Layer& layer, const Rows<X>& rows, int64_t b) {
        float* ups = out + w.out_size;
        times_block(rows, layer.gate, b, b + 1, out, widened);
        times_block(rows, layer.up, b, b + 1, ups, widened);
        for (int64_t row = 0; row < s.rows; row++)
            for (int64_t i = 0; i < BLOCK; i += LANES) {
                int64_t at = b * BLOCK + i;
                if (at >= m.intermediate) break;
                floats gate = with_bias(out + row * BLOCK + i, layer.gate_bias, at);
                floats up = with_bias(ups + row * BLOCK + i, layer.up_bias, at);
                put<T>(gate / (1.0f + exponential(-gate)) * up,
                       w.activated + row * m.intermediate + at);
            }
    }

    void run() {
        int64_t rows_per_task = QUERIES / groups, width = m.heads * size;
        int64_t tasks_per_head = (s.rows + rows_per_task - 1) / rows_per_task;
        for (int64_t l = 0; l < m.layers; l++) {
            products(m.heads + 2 * m.kv_heads, &Layer::input_norm, nullptr, m.hidden,
                     {&Layer::q, &Layer::k, &Layer::v}, l,
                     [&](const Layer&, const Rows<X>& rows, int64_t head) { project(l, rows, head); });
            worker.share(m.kv_heads * tasks_per_head,
                         [&](int64_t task) { attend(l, task, tasks_per_head); });
            products(m.hidden / BLOCK, nullptr, w.attended, width, {&Layer::output}, l,
                     [&](const Layer& layer, const Rows<X>& rows, int64_t b) {
                         add_to_x(rows, layer.output, layer.output_bias, b);
                     });
            products((m.intermediate + BLOCK - 1) / BLOCK, &Layer::post_norm, nullptr, m.hidden,
                     {&Layer::gate, &Layer::up}, l,
                     [&](const Layer& layer, const Rows<X>& rows, int64_t b) {
                         activate(layer, rows, b);
                     });
            products(m.hidden / BLOCK, nullptr, w.activated, m.intermediate, {&Layer::down}, l,
                     [&](const Layer& layer, const Rows<X>& rows, int64_t b) {
                         add_to_x(rows, layer.down, layer.down_bias, b);
                     });
        }
    }
};

template <class T> int64_t forward(const Model& model, const Step& step) {
    using X = std::conditional_t<HAS_DOT, T, float>;
    Workspace<X> workspace(model, step);
    if (!step.workspace) return workspace.bytes;
    T* x = (T*)step.x;
    for (int64_t i = 0; i < step.rows * model.hidden; i += LANES) store(load(x + i), workspace.x + i);
    Crew::run(int(step.threads), PHASES * model.layers, [=](Worker worker) {
        Runner<T, X>{model, step, workspace, worker}.run();
    });
    for (int64_t i = 0; i < step.rows * model.hidden; i += LANES) store(load(workspace.x + i), x + i);
    return workspace.bytes;
}

// out [rows][outputs] = x [rows][inputs], behind a norm if there is a weight for that, times a matrix
template <class T>
void multiply(const T* x, int64_t rows, const float* norm_weight, double eps, const Matrix& m, T* out,
              int threads) {
    if (!rows) return;
    using X = std::conditional_t<HAS_DOT, T, float>;
    std::vector<X> inputs(rows * m.inputs);
    std::vector<float> wide(m.inputs);
    for (int64_t row = 0; row < rows; row++) {
        for (int64_t i = 0; i < m.inputs; i += LANES)
            store(load(x + row * m.inputs + i), wide.data() + i);
        X* to = inputs.data() + row * m.inputs;
        if (norm_weight) norm<T>(wide.data(), norm_weight, m.inputs, eps, to);
        else for (int64_t i = 0; i < m.inputs; i += LANES) put<T>(load(wide.data() + i), to + i);
    }
    std::vector<float> room(room_of(rows, m.inputs));
    Rows<X> input = prepared(Rows<X>{inputs.data(), rows, m.inputs}, m.inputs,
                             std::initializer_list<const Matrix*>{&m}, room.data());
    Crew::run(threads, 1, [m, input, out](Worker worker) {
        worker.share((m.outputs + BLOCK - 1) / BLOCK, [&](int64_t b) {
            static thread_local std::vector<float> room;
            room.resize(input.count * BLOCK + PANEL * BLOCK);
            times_block(input, m, b, b + 1, room.data(), room.data() + input.count * BLOCK);
            int64_t left = m.outputs - b * BLOCK, count = left < BLOCK ? left : BLOCK;
            for (int64_t row = 0; row < input.count; row++) {
                alignas(64) T narrow[BLOCK];
                for (int64_t i = 0; i < BLOCK; i += LANES)
                    store(load(room.data() + row * BLOCK + i), narrow + i);
                memcpy(out + row * m.outputs + b * BLOCK, narrow, sizeof(T) * count);
            }
        });
    });
}

// out [count][inputs]: the weights of some outputs of a matrix; false if it lacks one of them
template <class T>
bool rows(const Matrix& m, const int64_t* outputs, int64_t count, T* out, int threads) {
    for (int64_t row = 0; row < count; row++)
        if (outputs[row] < 0 || outputs[row] >= m.outputs) return false;
    Crew::run(count > FEW ? threads : 1, 1, [=](Worker worker) {
        worker.share(count, [&](int64_t row) {
            std::vector<float> wide(m.inputs);
            row_of(m, outputs[row], wide.data());
            for (int64_t i = 0; i < m.inputs; i += LANES)
                store(load(wide.data() + i), out + row * m.inputs + i);
        });
    });
    return true;
}

// values [blocks][inputs / 16][…] of q [outputs][inputs], which start out as zeros
template <int BITS>
void lay_out(const int8_t* q, int64_t outputs, int64_t inputs, char* values, int threads) {
    using V = Wholes<BITS>;
    Crew::run(threads, 1, [=](Worker worker) {
        worker.share((outputs + BLOCK - 1) / BLOCK, [&](int64_t b) {
            for (int64_t column = 0; column < BLOCK && b * BLOCK + column < outputs; column++) {
                const int8_t* line = q + (b * BLOCK + column) * inputs;
                for (int64_t i = 0; i < inputs; i++) {
                    char* chunk = values + (b * (inputs / CHUNK) + i / CHUNK) * V::CHUNK_BYTES;
                    int32_t* words = (int32_t*)chunk + column / LANES * V::WORDS * LANES;
                    V::set(words + column % LANES, int(i % CHUNK), line[i]);
                }
            }
        });
    });
}

}  // namespace

extern "C" {

int64_t block_columns() { return BLOCK; }

// Runs all layers over s.rows new tokens, or tells the bytes of workspace that this takes.
int64_t forward_float32(const Model* m, const Step* s) { return forward<float>(*m, *s); }
int64_t forward_bfloat16(const Model* m, const Step* s) { return forward<bfloat16>(*m, *s); }

void multiply_float32(const float* x, int64_t rows, const float* norm, double eps, const Matrix* m,
                      float* out, int64_t threads) {
    multiply(x, rows, norm, eps, *m, out, int(threads));
}
void multiply_bfloat16(const bfloat16* x, int64_t rows, const float* norm, double eps,
                       const Matrix* m, bfloat16* out, int64_t threads) {
    multiply(x, rows, norm, eps, *m, out, int(threads));
}
void best_float32(const float* logits, int64_t rows, int64_t vocab, int64_t count, int64_t* out,
                  int64_t threads) {
    best(logits, rows, vocab, count, out, int(threads));
}
void best_bfloat16(const bfloat16* logits, int64_t rows, int64_t vocab, int64_t count,
                   int64_t* out, int64_t threads) {
    best(logits, rows, vocab, count, out, int(threads));
}
void winners_float32(const float* scores, const uint64_t* states, int64_t rows, int64_t vocab,
                     int64_t* out, int64_t threads) {
    winners(scores, states, rows, vocab, out, int(threads));
}
void log_probabilities_float32(const float* logits, int64_t rows, int64_t vocab,
                               const int64_t* best, int64_t count, const Filters* filters,
                               float* out, int64_t threads) {
    log_probabilities(logits, rows, vocab, best, count, *filters, out, int(threads));
}
void log_probabilities_bfloat16(const bfloat16* logits, int64_t rows, int64_t vocab,
                                const int64_t* best, int64_t count, const Filters* filters,
                                float* out, int64_t threads) {
    log_probabilities(logits, rows, vocab, best, count, *filters, out, int(threads));
}
void lay_out_wholes(const int8_t* q, int64_t outputs, int64_t inputs, int64_t bits, char* values,
                    int64_t threads) {
    if (bits == 4) lay_out<4>(q, outputs, inputs, values, int(threads));
    if (bits == 6) lay_out<6>(q, outputs, inputs, values, int(threads));
    if (bits == 8) lay_out<8>(q, outputs, inputs, values, int(threads));
}
bool rows_float32(const Matrix* m, const int64_t* outputs, int64_t count, float* out, int64_t threads) {
    return rows(*m, outputs, count, out, int(threads));
}
bool rows_bfloat16(
    const Matrix* m, const int64_t* outputs, int64_t count, bfloat16* out, int64_t threads) {
    return rows(*m, outputs, count, out, int(threads));
}
}
