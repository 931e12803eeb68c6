// Matrices in the form that they are stored in, and the one kernel of all matrix products: a tile of
// a few rows of input times a few vectors of columns. What is stored in fewer bits is widened in
// registers, once for all rows of a tile. Sums are float32.
//
// A matrix is cut into blocks of BLOCK columns. A block's values follow one another 16 inputs (a
// chunk) after 16 inputs, in whichever way its form wants them. Where the columns of a block have a
// scale for every group of 16 or 32 inputs, the values are whole numbers: what comes out of a group
// is times its scale, plus the sum of the group's inputs times its minimum.
//
// What a row comes to does not depend on how many rows are computed together with it, up to MANY.

#pragma once

#include "forms.h"

extern "C" {
struct Matrix {
    int64_t form, inputs, outputs, group;  // group: 0 where there are no scales
    const char* values;                    // [blocks][inputs / 16][…]
    const float *scales, *minima;          // [blocks][inputs / group][BLOCK]; minima: or null
};
}

namespace {

constexpr int ROWS = 6;  // most rows of a tile
// Vectors of columns that a tile of so many rows has its sums of in registers.
constexpr int width_of(int rows) { return REGISTERS < 32 && rows > 2 ? 2 : COLUMNS; }
constexpr int PANEL = 768;  // most inputs after which the rows of many tiles take turns
constexpr int DIRECT = 2 * ROWS;  // most rows that are multiplied with values as they are stored
constexpr int MANY = 128;  // most rows whose sums are scaled, group by group, and not the weights

// Rows of input, [count][stride]. Where a matrix of whole numbers wants them: the sums of every 16
// inputs, [count][sum_stride], and up to DIRECT rows as its tiles take them (Wholes::place).
template <class X> struct Rows {
    const X* x;
    int64_t count, stride;
    const float* sums = nullptr;
    int64_t sum_stride = 0;
    const X *placed4 = nullptr, *placed6 = nullptr;
};

// The part of a block that a tile is multiplied with.
struct Part {
    const char* values;
    int64_t chunks, group_chunks;  // the second is the first where there are no scales
    const float *scales, *minima;
    float offset;        // what values are more than they stand for, where there are no minima
    const char* next;   // values that are needed next
    int64_t next_step;  // bytes of them to ask for with each chunk of each tile
};

// out [R][BLOCK] += R rows of x times C vectors of columns from vector `c0` on.
template <class V, bool SCALED, int R, int C, class X>
void tile(const X* x, int64_t stride, const float* sums, int64_t sum_stride, Part part, int c0,
          float* out) {
    out += c0 * LANES;
    const char* p = part.values;
    const X* rows[R];
    for (int r = 0; r < R; r++) rows[r] = x + r * stride;
    for (int64_t chunk = 0; chunk < part.chunks;) {
        floats sum[R][C];
        for (int r = 0; r < R; r++)
            for (int c = 0; c < C; c++)
                sum[r][c] = SCALED ? floats{} : load(out + r * BLOCK + c * LANES);
        int64_t end = chunk + part.group_chunks;
        for (int64_t k = chunk; k < end; k++, p += V::CHUNK_BYTES) {
            for (int64_t at = 0; at < part.next_step; at += 64)
                __builtin_prefetch(part.next + at, 0, 2);
            part.next += part.next_step;
            for (int from = 0; from < CHUNK; from += V::SPAN)
#pragma GCC unroll 16
            for (int i = from; i < from + V::SPAN; i += V::STEP) {
                decltype(V::get(p, i, 0)) weights[C];
#pragma GCC unroll 4
                for (int c = 0; c < C; c++) {
                    weights[c] = V::get(p, i, c0 + c);
                    if (R > 1) weights[c] = in_register(weights[c]);
                }
#pragma GCC unroll 6
                for (int r = 0; r < R; r++)
#pragma GCC unroll 4
                    for (int c = 0; c < C; c++)
                        sum[r][c] = V::add(sum[r][c], rows[r] + i, weights[c]);
            }
            for (int r = 0; r < R; r++) rows[r] += CHUNK;
        }
        if constexpr (SCALED) {
            const float* scales = part.scales + c0 * LANES;
            const float* minima = part.minima ? part.minima + c0 * LANES : nullptr;
            for (int c = 0; c < C; c++) {
                floats scale = load(scales + c * LANES);
                for (int r = 0; r < R; r++)
                    sum[r][c] = load(out + r * BLOCK + c * LANES) + sum[r][c] * scale;
                if (part.minima || part.offset) {
                    floats minimum = part.minima ? load(minima + c * LANES) : scale * -part.offset;
                    for (int r = 0; r < R; r++) {
                        float of_x = sums[r * sum_stride];
                        if (part.group_chunks == 2) of_x += sums[r * sum_stride + 1];
                        sum[r][c] += minimum * of_x;
                    }
                }
            }
            part.scales += BLOCK;
            if (part.minima) part.minima += BLOCK;
            sums += part.group_chunks;
        }
        for (int r = 0; r < R; r++)
            for (int c = 0; c < C; c++) store(sum[r][c], out + r * BLOCK + c * LANES);
        chunk = end;
    }
}

template <class V, bool SCALED, int R, class X>
void tile_of(const Rows<X>& rows, int64_t first, Part& part, float* out) {
    const X* x = rows.x + first * rows.stride;
    const float* sums = rows.sums + first * rows.sum_stride;
    for (int c = 0; c < COLUMNS; c += width_of(R)) {
        tile<V, SCALED, R, width_of(R)>(
            x, rows.stride, sums, rows.sum_stride, part, c, out + first * BLOCK);
        part.next += part.chunks * part.next_step;
    }
}

// How many tiles so many rows take, of about equal height. Whole numbers want registers of their own.
template <class V, bool SCALED> int64_t tiles_of(int64_t rows) {
    constexpr bool few = REGISTERS < 32 && SCALED && !std::is_same_v<V, Floats>;
    constexpr int64_t most = few ? 4 : ROWS;
    return (rows + most - 1) / most;
}

// out [rows][BLOCK] += all rows times a part of a block.
template <class V, bool SCALED, class X>
void times_part(const Rows<X>& rows, Part part, float* out) {
    int64_t tiles = tiles_of<V, SCALED>(rows.count);
    for (int64_t t = 0; t < tiles; t++) {
        int64_t first = rows.count * t / tiles, height = rows.count * (t + 1) / tiles - first;
        switch (height) {
            case 1: tile_of<V, SCALED, 1>(rows, first, part, out); break;
            case 2: tile_of<V, SCALED, 2>(rows, first, part, out); break;
            case 3: tile_of<V, SCALED, 3>(rows, first, part, out); break;
            case 4: tile_of<V, SCALED, 4>(rows, first, part, out); break;
            case 5: tile_of<V, SCALED, 5>(rows, first, part, out); break;
            case 6: tile_of<V, SCALED, 6>(rows, first, part, out); break;
        }
    }
}

// The values of a part as Floats.
template <class V> void widen_part(const char* p, int64_t chunks, float* out) {
    for (int64_t k = 0; k < chunks; k++, p += V::CHUNK_BYTES, out += CHUNK * BLOCK)
#pragma GCC unroll 16
        for (int i = 0; i < CHUNK; i++)
            for (int c = 0; c < COLUMNS; c++)
                store(V::get(p, i, c) * (1.0f / (1 << V::place(i))), out + i * BLOCK + c * LANES);
}

// Whole numbers of a part, widened, times their scales: the weights.
inline void scale_part(const Part& part, float* values) {
    for (int64_t group = 0; group < part.chunks / part.group_chunks; group++)
        for (int c = 0; c < COLUMNS; c++) {
            int64_t at = group * BLOCK + c * LANES;
            floats scale = load(part.scales + at);
            floats minimum = part.minima ? load(part.minima + at) : scale * -part.offset;
            float* column = values + group * part.group_chunks * CHUNK * BLOCK + c * LANES;
            for (int64_t i = 0; i < part.group_chunks * CHUNK; i++, column += BLOCK)
                store(load(column) * scale + minimum, column);
        }
}

// out [rows][BLOCK] = all rows times a block. next: the block that this thread will probably ask for
// after it; widened: room for PANEL * BLOCK floats.
template <class V, bool SCALED, class X>
void times_block_of(const Rows<X>& rows, const Matrix& m, int64_t block, int64_t next, float* out,
                    float* widened) {
    memset(out, 0, rows.count * BLOCK * sizeof(float));
    int64_t chunks = m.inputs / CHUNK;
    int64_t groups = SCALED ? m.inputs / m.group : 0;
    const char* values = m.values + block * chunks * V::CHUNK_BYTES;
    Part part{};
    if constexpr (SCALED) part.offset = V::OFFSET;
    if (SCALED) {
        part.scales = m.scales + block * groups * BLOCK;
        if (m.minima) part.minima = m.minima + block * groups * BLOCK;
        for (int64_t at = next * groups * BLOCK; at < (next + 1) * groups * BLOCK; at += 16) {
            __builtin_prefetch(m.scales + at, 0, 2);
            if (m.minima) __builtin_prefetch(m.minima + at, 0, 2);
        }
    }
    // Many tiles take a panel of the block after another, so that it stays in the cache.
    int64_t tiles = tiles_of<V, SCALED>(rows.count);
    int64_t panels = tiles > 1 ? (m.inputs + PANEL - 1) / PANEL : 1;
    int64_t step = ((chunks + panels - 1) / panels + 1) / 2 * 2;  // whole groups
    for (int64_t first = 0; first < chunks; first += step) {
        part.values = values + first * V::CHUNK_BYTES;
        part.chunks = first + step < chunks ? step : chunks - first;
        part.group_chunks = SCALED ? m.group / CHUNK : part.chunks;
        part.next = first + step < chunks ? part.values + step * V::CHUNK_BYTES
                                          : m.values + next * chunks * V::CHUNK_BYTES;
        // Where little is computed for each byte, the processor is ahead by itself.
        int64_t height = rows.count / tiles, per_line = CHUNK * COLUMNS / V::STEP * 64 / V::CHUNK_BYTES;
        int64_t passes = tiles * (COLUMNS / width_of(int(height)));
        if (V::STEP == 1 ? height * per_line >= 4 : tiles > 1) part.next_step = (V::CHUNK_BYTES / passes + 63) / 64 * 64;
        Rows<X> here = rows;
        here.x += first * CHUNK;
        if (rows.sums) here.sums += first;
        if constexpr (std::is_same_v<X, float> && !std::is_same_v<V, Floats>) {
            if (rows.count > DIRECT) {
                widen_part<V>(part.values, part.chunks, widened);
                part.values = (const char*)widened;
                if (SCALED && rows.count > MANY) {
                    scale_part(part, widened);
                    Part weights = part;
                    weights.group_chunks = part.chunks;
                    times_part<Floats, false>(here, weights, out);
                } else {
                    times_part<Floats, SCALED>(here, part, out);
                }
            } else {
                if (std::is_same_v<V, Wholes<4>>) here.x = rows.placed4 + first * CHUNK;
                if (std::is_same_v<V, Wholes<6>>) here.x = rows.placed6 + first * CHUNK;
                times_part<V, SCALED>(here, part, out);
            }
        } else {
            times_part<V, SCALED>(here, part, out);
        }
        if (SCALED) part.scales += part.chunks / part.group_chunks * BLOCK;
        if (part.minima) part.minima += part.chunks / part.group_chunks * BLOCK;
    }
}

inline void times_block(
    const Rows<float>& rows, const Matrix& m, int64_t block, int64_t next, float* out,
    float* widened) {
    switch (m.form) {
        case FLOAT32: return times_block_of<Floats, false>(rows, m, block, next, out, widened);
        case BFLOAT16: return times_block_of<Bfloat16s, false>(rows, m, block, next, out, widened);
        case FLOAT16: return times_block_of<Float16s, false>(rows, m, block, next, out, widened);
        case WHOLE4: return times_block_of<Wholes<4>, true>(rows, m, block, next, out, widened);
        case WHOLE6: return times_block_of<Wholes<6>, true>(rows, m, block, next, out, widened);
        case WHOLE8: return times_block_of<Wholes<8>, true>(rows, m, block, next, out, widened);
    }
}
inline void times_block(
    const Rows<bfloat16>& rows, const Matrix& m, int64_t block, int64_t next, float* out,
    float* widened) {
    times_block_of<Bfloat16Pairs, false>(rows, m, block, next, out, widened);  // no other form has these
}

inline bool needs_sums(const Matrix& m) {
    return m.minima || m.form == WHOLE4 || m.form == WHOLE6;
}

// The sums of every 16 inputs of a row.
inline void sum_inputs(const float* x, int64_t inputs, float* sums) {
    for (int64_t chunk = 0; chunk < inputs / CHUNK; chunk++) {
        floats sum = {};
        for (int i = 0; i < CHUNK; i += LANES) sum += load(x + chunk * CHUNK + i);
        sums[chunk] = total(sum);
    }
}

// A row's inputs as a tile takes them that multiplies with whole numbers.
template <class V> void place_inputs(const float* x, int64_t inputs, float* placed) {
    float factors[CHUNK];
    for (int i = 0; i < CHUNK; i++) factors[i] = 1.0f / (1 << V::place(i));
    for (int64_t i = 0; i < inputs; i += LANES)
        store(load(x + i) * load(factors + i % CHUNK), placed + i);
}

// Rows of input with what some matrices want of them. room: for [count][inputs] numbers that hold
// sums, and for twice up to DIRECT rows.
template <class X, class Matrices>
Rows<X> prepared(Rows<X> rows, int64_t inputs, const Matrices& matrices, float* room) {
    if constexpr (std::is_same_v<X, float>) {
        bool sums = false, placed4 = false, placed6 = false;
        for (const Matrix* m : matrices) {
            sums |= needs_sums(*m);
            placed4 |= m->form == WHOLE4 && rows.count <= DIRECT;
            placed6 |= m->form == WHOLE6 && rows.count <= DIRECT;
        }
        float* place4 = room + rows.count * inputs / CHUNK;
        float* place6 = place4 + (placed4 ? rows.count * inputs : 0);
        rows.sum_stride = inputs / CHUNK;
        for (int64_t row = 0; row < rows.count; row++) {
            const float* x = rows.x + row * rows.stride;
            if (sums) sum_inputs(x, inputs, room + row * rows.sum_stride);
            if (placed4) place_inputs<Wholes<4>>(x, inputs, place4 + row * inputs);
            if (placed6) place_inputs<Wholes<6>>(x, inputs, place6 + row * inputs);
        }
        rows.sums = room, rows.placed4 = place4, rows.placed6 = place6;
    }
    return rows;
}
// Floats of room that prepared() wants.
inline int64_t room_of(int64_t rows, int64_t inputs) {
    return rows * inputs / CHUNK + 2 * (rows < DIRECT ? rows : DIRECT) * inputs;
}

// The weights of one output of a matrix, [inputs].
template <class V> void row_of(const Matrix& m, int64_t output, float* out) {
    int64_t block = output / BLOCK, column = output % BLOCK;
    const char* p = m.values + block * (m.inputs / CHUNK) * V::CHUNK_BYTES;
    for (int64_t chunk = 0; chunk < m.inputs; chunk += CHUNK, p += V::CHUNK_BYTES)
#pragma GCC unroll 16
        for (int i = 0; i < CHUNK; i++)
            out[chunk + i] = V::get(p, i, int(column / LANES))[column % LANES] / (1 << V::place(i));
    if (!m.scales) return;
    for (int64_t i = 0; i < m.inputs; i++) {
        int64_t at = (block * (m.inputs / m.group) + i / m.group) * BLOCK + column;
        float scale = m.scales[at];
        out[i] = m.minima ? out[i] * scale + m.minima[at] : (out[i] - V::OFFSET) * scale;
    }
}
inline void row_of(const Matrix& m, int64_t output, float* out) {
    switch (m.form) {
        case FLOAT32: return row_of<Floats>(m, output, out);
        case BFLOAT16: return row_of<Bfloat16s>(m, output, out);
        case FLOAT16: return row_of<Float16s>(m, output, out);
        case WHOLE4: return row_of<Wholes<4>>(m, output, out);
        case WHOLE6: return row_of<Wholes<6>>(m, output, out);
        case WHOLE8: return row_of<Wholes<8>>(m, output, out);
    }
}

}  // namespace
