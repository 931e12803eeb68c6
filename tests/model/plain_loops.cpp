// Compares layers.cpp with plain loops, on small matrices of every form and on a layer, and says
// where they differ. test_matrices.py compiles it for an instruction set that is emulated.

#include <algorithm>
#include <bit>
#include <cstdio>
#include <random>

#include "layers.cpp"

namespace {

using Numbers = std::vector<float>;
std::mt19937 rng(7);
int failures = 0;

Numbers draw(int64_t count, float size = 1) {
    std::normal_distribution<float> normal(0, size);
    Numbers found(count);
    for (float& x : found) x = normal(rng);
    return found;
}

uint16_t half(float x) {  // cut, not rounded
    uint32_t bits = std::bit_cast<uint32_t>(std::abs(x) * 0x1p-112f) >> 13;
    return uint16_t(bits | (x < 0 ? 0x8000 : 0));
}
float whole(uint16_t x) {
    float size = std::bit_cast<float>((x & 0x7fffu) << 13) * 0x1p112f;
    return x & 0x8000 ? -size : size;
}

// A matrix in a form, and its weights [outputs][inputs].
struct Stored {
    Matrix m;
    Numbers weights, scales, minima;
    std::vector<char> values;

    Stored(int64_t form, int64_t outputs, int64_t inputs, int64_t group, bool with_minima)
        : m{form, inputs, outputs, group, nullptr, nullptr, nullptr},
          weights(draw(outputs * inputs, 0.1f)) {
        int64_t padded = (outputs + BLOCK - 1) / BLOCK * BLOCK;
        if (form >= WHOLE4) {
            lay_out(padded, with_minima);
            return;
        }
        values.resize(padded * inputs * (form == FLOAT32 ? 4 : 2));
        for (int64_t o = 0; o < outputs; o++)
            for (int64_t i = 0; i < inputs; i++) {
                float& weight = weights[o * inputs + i];
                int64_t at = (o / BLOCK * inputs + i) * BLOCK + o % BLOCK;
                if (form == FLOAT32) ((float*)values.data())[at] = weight;
                uint16_t bits = std::bit_cast<uint32_t>(weight) >> 16;
                if (form == FLOAT16) bits = half(weight);
                if (form == FLOAT16) weight = whole(bits);
                if (form == BFLOAT16) weight = widen(bfloat16{bits});
                if (form == BFLOAT16)
                    at = (o / BLOCK * inputs + i / 2 * 2) * BLOCK + o % BLOCK * 2 + i % 2;
                if (form != FLOAT32) ((uint16_t*)values.data())[at] = bits;
            }
        m.values = values.data();
    }

    void lay_out(int64_t padded, bool with_minima) {
        int bits = m.form == WHOLE4 ? 4 : m.form == WHOLE6 ? 6 : 8;
        int64_t groups = m.inputs / m.group;
        std::vector<int8_t> q(m.outputs * m.inputs);
        values.resize(padded * m.inputs * bits / 8);
        scales = draw(padded * groups, 0.1f / float(1 << bits));
        minima = draw(padded * groups, 0.1f);
        for (int64_t o = 0; o < m.outputs; o++)
            for (int64_t i = 0; i < m.inputs; i++) {
                int64_t at = (o / BLOCK * groups + i / m.group) * BLOCK + o % BLOCK;
                int number = int(rng() % (1u << bits)) - (1 << (bits - 1));
                q[o * m.inputs + i] = int8_t(number);
                weights[o * m.inputs + i] =
                    float(number) * scales[at] + (with_minima ? minima[at] : 0);
            }
        lay_out_wholes(q.data(), m.outputs, m.inputs, bits, values.data(), 2);
        int offset = m.form == WHOLE8 ? 0 : 1 << (bits - 1);  // Wholes::OFFSET
        for (size_t at = 0; at < minima.size(); at++) minima[at] -= float(offset) * scales[at];
        m.values = values.data();
        m.scales = scales.data();
        m.minima = with_minima ? minima.data() : nullptr;
    }

    Numbers times(const Numbers& x, const float* bias = nullptr) const {
        Numbers found;
        for (size_t row = 0; row < x.size() / m.inputs; row++)
            for (int64_t o = 0; o < m.outputs; o++) {
                double sum = bias ? bias[o] : 0;
                for (int64_t i = 0; i < m.inputs; i++)
                    sum += double(x[row * m.inputs + i]) * weights[o * m.inputs + i];
                found.push_back(float(sum));
            }
        return found;
    }
};

void compare(const char* what, const Numbers& found, const Numbers& wanted, float tolerance) {
    float most = 0, largest = 0;
    for (size_t i = 0; i < wanted.size(); i++) {
        float gap = std::abs(found[i] - wanted[i]);
        most = gap <= most ? most : gap;  // not a number is kept
        largest = std::max(largest, std::abs(wanted[i]));
    }
    if (most <= tolerance * largest) return;
    printf("%s: off by %g of %g\n", what, most, largest);
    failures++;
}

Numbers normalized(const Numbers& x, const Numbers& weight) {
    int64_t size = weight.size();
    Numbers found(x.size());
    for (size_t row = 0; row < x.size() / size; row++) {
        double squares = 0;
        for (int64_t i = 0; i < size; i++) squares += double(x[row * size + i]) * x[row * size + i];
        for (int64_t i = 0; i < size; i++)
            found[row * size + i] =
                float(x[row * size + i] / std::sqrt(squares / size + 1e-5) * weight[i]);
    }
    return found;
}

void check_products() {
    for (int64_t inputs : {32, 1568})
        for (int64_t outputs : {3, 35})
            for (int64_t form = FLOAT32; form <= WHOLE8; form++)
                for (int64_t kind = 0; kind < (form < WHOLE4 ? 1 : 4); kind++) {
                    int64_t group = form < WHOLE4 ? 0 : 16 << kind % 2;
                    Stored stored(form, outputs, inputs, group, kind > 1);
                    Numbers norm = draw(inputs), all = draw(13 * inputs);
                    for (int64_t rows : {0, 1, 2, 3, 4, 5, 6, 7, 13}) {
                        Numbers x(all.begin(), all.begin() + rows * inputs);
                        Numbers out(rows * outputs);
                        char what[99];
                        snprintf(what, 99, "form %d.%d, %d rows, %d x %d", int(form), int(kind),
                                 int(rows), int(outputs), int(inputs));
                        multiply_float32(x.data(), rows, nullptr, 0, &stored.m, out.data(), 2);
                        compare(what, out, stored.times(x), 1e-5f);
                        if (rows != 5) continue;
                        multiply_float32(
                            x.data(), rows, norm.data(), 1e-5, &stored.m, out.data(), 1);
                        compare(what, out, stored.times(normalized(x, norm)), 1e-5f);
                    }
                    int64_t last = outputs - 1;
                    Numbers row(inputs);
                    Numbers wanted(stored.weights.end() - inputs, stored.weights.end());
                    rows_float32(&stored.m, &last, 1, row.data(), 1);
                    compare("a row", row, wanted, 1e-6f);
                }
}

// A layer of plain loops. Tokens are behind `length` committed ones; causal.
struct Plain {
    int64_t hidden = 128, heads = 6, kv_heads = 2, size, intermediate = 160, length = 21;

    std::vector<Stored> matrices(const int64_t* forms) const {
        std::vector<Stored> found;
        int64_t shapes[7][2] = {{heads * size, hidden}, {kv_heads * size, hidden},
                                {kv_heads * size, hidden}, {hidden, heads * size},
                                {intermediate, hidden}, {intermediate, hidden},
                                {hidden, intermediate}};
        for (int i = 0; i < 7; i++)
            found.emplace_back(
                forms[i], shapes[i][0], shapes[i][1], forms[i] < WHOLE4 ? 0 : 32, i % 2);
        return found;
    }

    // of [tokens][count * size]
    Numbers turned(Numbers x, int64_t count, const Numbers& turns, int64_t first) const {
        Numbers found = x;
        for (size_t at = 0; at < x.size(); at++) {
            int64_t d = at % size, token = at / (count * size);
            int64_t other = d < size / 2 ? size / 2 : -size / 2;
            const float* cos = turns.data() + (first + token) * 2 * size;
            found[at] = x[at] * cos[d] + x[at + other] * cos[size + d];
        }
        return found;
    }

    Numbers run(Numbers x, const std::vector<Stored>& m, const Numbers& bias, const Numbers& norm,
                const Numbers& turns, const Numbers& cache, int64_t capacity) const {
        int64_t rows = x.size() / hidden, groups = heads / kv_heads;
        Numbers normal = normalized(x, norm), attended;
        Numbers q = turned(m[0].times(normal, bias.data()), heads, turns, length);
        Numbers k = turned(m[1].times(normal), kv_heads, turns, length), v = m[2].times(normal);
        for (int64_t row = 0; row < rows; row++)
            for (int64_t head = 0; head < heads; head++) {
                int64_t kv = head / groups;
                auto slot = [&](const Numbers& fresh, int64_t t, int64_t values) {
                    if (t >= length) return fresh.data() + ((t - length) * kv_heads + kv) * size;
                    return cache.data() + ((values * kv_heads + kv) * capacity + t) * size;
                };
                std::vector<double> sums(size);
                double whole = 0;
                for (int64_t t = 0; t <= length + row; t++) {
                    double score = 0;
                    for (int64_t d = 0; d < size; d++)
                        score += double(q[(row * heads + head) * size + d]) * slot(k, t, 0)[d];
                    double share = std::exp(score / std::sqrt(double(size)));
                    whole += share;
                    for (int64_t d = 0; d < size; d++) sums[d] += share * slot(v, t, 1)[d];
                }
                for (double sum : sums) attended.push_back(float(sum / whole));
            }
        Numbers more = m[3].times(attended);
        for (size_t i = 0; i < x.size(); i++) x[i] += more[i];
        normal = normalized(x, norm);
        Numbers gate = m[4].times(normal, bias.data()), up = m[5].times(normal);
        for (size_t i = 0; i < gate.size(); i++)
            gate[i] = gate[i] / (1 + std::exp(-gate[i])) * up[i];
        more = m[6].times(gate, bias.data());
        for (size_t i = 0; i < x.size(); i++) x[i] += more[i];
        return x;
    }
};

template <class T> std::vector<T> narrowed(const Numbers& x) {
    std::vector<T> found(x.size());
    for (size_t i = 0; i < x.size(); i += LANES) store(load(x.data() + i), found.data() + i);
    return found;
}

template <class T>
void check_layer(int64_t size, const int64_t* forms, int64_t rows, int threads, float tolerance) {
    Plain plain{.size = size};
    int64_t capacity = 300;
    std::vector<Stored> m = plain.matrices(forms);
    Numbers x = draw(rows * plain.hidden), turns = draw(capacity * 2 * size, 0.7f);
    Numbers cache = draw(2 * plain.kv_heads * capacity * size);
    Numbers bias = draw(6 * size), norm = draw(plain.hidden);
    Layer layer{m[0].m, m[1].m, m[2].m, m[3].m, m[4].m, m[5].m, m[6].m};
    layer.q_bias = layer.gate_bias = layer.down_bias = bias.data();
    layer.input_norm = layer.post_norm = norm.data();
    Model model{1,    plain.hidden,       plain.heads, plain.kv_heads,
                size, plain.intermediate, 1e-5,        &layer};
    auto narrow_turns = narrowed<T>(turns), narrow_cache = narrowed<T>(cache);
    auto narrow_x = narrowed<T>(x);
    std::vector<int64_t> positions(rows);
    for (int64_t row = 0; row < rows; row++) positions[row] = plain.length + row;
    Step step{rows, plain.length, capacity, threads, narrow_turns.data(), positions.data(), nullptr,
              narrow_cache.data(), narrow_x.data(), nullptr};
    std::vector<char> workspace(forward<T>(model, step));
    step.workspace = workspace.data();
    forward<T>(model, step);
    Numbers found(x.size());
    for (size_t i = 0; i < x.size(); i++) found[i] = widen(narrow_x[i]);
    char what[99];
    snprintf(what, 99, "a layer, heads of %d, %d rows, %d bytes", int(size), int(rows),
             int(sizeof(T)));
    compare(what, found, plain.run(x, m, bias, norm, turns, cache, capacity), tolerance);
}

}  // namespace

int main() {
    check_products();
    const int64_t mixed[] = {WHOLE6, FLOAT16, WHOLE4, FLOAT32, WHOLE8, BFLOAT16, WHOLE4};
    const int64_t halves[] = {1, 1, 1, 1, 1, 1, 1};
    for (int64_t size : {64, 128, 192})
        for (int64_t rows : {1, 5, 17}) {
            check_layer<float>(size, mixed, rows, 3, 1e-4f);
            check_layer<bfloat16>(size, halves, rows, 2, 0.05f);
        }
    if (!failures) printf("all as plain loops\n");
    return failures != 0;
}
