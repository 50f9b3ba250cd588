// The kernels, once, over vectors of LANES floats and tiles of ROWS rows by two vectors. Included by one
// translation unit for each instruction set. Everything has internal linkage, and nothing of the
// standard library is used: an inline function compiled here must never serve the others.

#include <cstddef>
#include <cstdint>

#include "kernels.hpp"

namespace pertinent {
namespace {

using std::size_t;

typedef float Vec __attribute__((vector_size(LANES * 4), aligned(4), may_alias));
typedef std::int32_t Ints __attribute__((vector_size(LANES * 4), aligned(4), may_alias));
typedef float Four __attribute__((vector_size(16), aligned(4), may_alias));
typedef float Reg __attribute__((vector_size(LANES * 4)));
typedef std::int32_t IntReg __attribute__((vector_size(LANES * 4)));

constexpr size_t PANEL = 2 * LANES;

#define INLINE inline __attribute__((always_inline))

INLINE Reg load(const float *p) { return *reinterpret_cast<const Vec *>(p); }
INLINE void store(float *p, Reg x) { *reinterpret_cast<Vec *>(p) = x; }
INLINE Reg spread(float x) { return x - Reg{}; }
INLINE Reg bigger(Reg a, Reg b) { return a > b ? a : b; }
INLINE Reg smaller(Reg a, Reg b) { return a < b ? a : b; }
INLINE size_t rounded_up(size_t n, size_t step) { return (n + step - 1) / step * step; }

template <class T>
INLINE float halves(T x) {
    float sum = 0.0f;
    for (size_t i = 0; i < sizeof(T) / 4; ++i) sum += x[i];
    return sum;
}

INLINE float sum_of(Reg x) {
    Four total{};
#pragma GCC unroll 4
    for (size_t i = 0; i < LANES / 4; ++i) {
        Four part;
        __builtin_memcpy(&part, reinterpret_cast<const char *>(&x) + 16 * i, 16);
        total += part;
    }
    return (total[0] + total[2]) + (total[1] + total[3]);
}

INLINE float largest_of(Reg x) {
    Four most;
    __builtin_memcpy(&most, &x, 16);
#pragma GCC unroll 4
    for (size_t i = 1; i < LANES / 4; ++i) {
        Four part;
        __builtin_memcpy(&part, reinterpret_cast<const char *>(&x) + 16 * i, 16);
        most = most > part ? most : part;
    }
    const float a = most[0] > most[1] ? most[0] : most[1], b = most[2] > most[3] ? most[2] : most[3];
    return a > b ? a : b;
}

// 2^x to 2e-7 of its value, for |x| up to 126; beyond that the value at the limit.
INLINE Reg power_of_two(Reg x) {
    x = bigger(smaller(x, spread(126.0f)), spread(-126.0f));
    const Reg shifted = x + 12582912.0f;  // adding 1.5 * 2^23 rounds to a whole number
    const Reg whole = shifted - 12582912.0f;
    const Reg f = x - whole;
    Reg p = spread(1.535336188319500e-4f);
    p = p * f + 1.339887440266574e-3f;
    p = p * f + 9.618437357674640e-3f;
    p = p * f + 5.550332471162809e-2f;
    p = p * f + 2.402264791363012e-1f;
    p = p * f + 6.931472028550421e-1f;
    p = p * f + 1.0f;
    // The low bits of `shifted` are the whole number; moved into the exponent they scale by 2^whole.
    return (Reg)((IntReg)p + ((IntReg)shifted << 23));
}

// x times the normal distribution function: GELU with erf as a ratio of polynomials, to 3e-7 absolute.
INLINE Reg gelu_of(Reg x) {
    const Reg z = bigger(smaller(x * 0.70710678118654752f, spread(4.0f)), spread(-4.0f));
    const Reg s = z * z;
    Reg p = spread(-2.72614225801306e-10f);
    p = p * s + 2.77068142495902e-08f;
    p = p * s + -2.10102402082508e-06f;
    p = p * s + -5.69250639462346e-05f;
    p = p * s + -7.34990630326855e-04f;
    p = p * s + -2.95459980854025e-03f;
    p = p * s + -1.60960333262415e-02f;
    Reg q = spread(-1.45660718464996e-05f);
    q = q * s + -2.13374055278905e-04f;
    q = q * s + -1.68282697438203e-03f;
    q = q * s + -7.37332916720468e-03f;
    q = q * s + -1.42647390514189e-02f;
    const Reg half = x * 0.5f;
    return half + half * (z * p / q);
}

INLINE Reg tanh_of(Reg x) {
    x = bigger(smaller(x, spread(15.0f)), spread(-15.0f));
    return 1.0f - 2.0f / (power_of_two(x * 2.885390081777927f) + 1.0f);
}

template <Reg (*F)(Reg)>
INLINE void each(float *x, size_t count) {
    size_t i = 0;
    for (; i + LANES <= count; i += LANES) store(x + i, F(load(x + i)));
    if (i < count) {
        float rest[LANES] = {};
        for (size_t j = 0; i + j < count; ++j) rest[j] = x[i + j];
        store(rest, F(load(rest)));
        for (size_t j = 0; i + j < count; ++j) x[i + j] = rest[j];
    }
}

void tanh_each(float *x, size_t count) { each<tanh_of>(x, count); }
void exp2_each(float *x, size_t count) { each<power_of_two>(x, count); }
void gelu_each(float *x, size_t count) { each<gelu_of>(x, count); }

float dot(const float *a, const float *b, size_t count) {
    Reg sum{}, other{};
    size_t i = 0;
    for (; i + 2 * LANES <= count; i += 2 * LANES) {
        sum += load(a + i) * load(b + i);
        other += load(a + i + LANES) * load(b + i + LANES);
    }
    float total = sum_of(sum + other);
    for (; i < count; ++i) total += a[i] * b[i];
    return total;
}

// acc[r][v] = sum_k a(r, k) * b[k][v], a(r, k) = a[r * rows + k * STEP or step], b rows `ldb` apart. Rows are
// reached from every third one, which x86 addresses without further arithmetic.
template <int M, int V, bool NEAR>
INLINE void products(const float *a, size_t rows, size_t step, const float *b, size_t ldb, size_t count,
                     Reg (&acc)[M][V]) {
    constexpr int GROUPS = (M + 2) / 3;
    const float *start[GROUPS];
#pragma GCC unroll 8
    for (int g = 0; g < GROUPS; ++g) start[g] = a + 3 * g * rows;
#pragma GCC unroll 16
    for (int r = 0; r < M; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) acc[r][v] = Reg{};
    const size_t stride = NEAR ? 1 : step;
    auto once = [&](size_t at, const float *row) __attribute__((always_inline)) {
        Reg col[V];
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) col[v] = load(row + v * LANES);
#pragma GCC unroll 16
        for (int r = 0; r < M; ++r) {
            const Reg x = spread(start[r / 3][(r % 3) * rows + at]);
#pragma GCC unroll 4
            for (int v = 0; v < V; ++v) acc[r][v] += x * col[v];
        }
    };
    size_t k = 0;
    for (; k + 4 <= count; k += 4) {
#pragma GCC unroll 4
        for (size_t u = 0; u < 4; ++u) once(u * stride, b + u * ldb);
#pragma GCC unroll 8
        for (int g = 0; g < GROUPS; ++g) start[g] += 4 * stride;
        b += 4 * ldb;
    }
    for (; k < count; ++k) {
        once(0, b);
#pragma GCC unroll 8
        for (int g = 0; g < GROUPS; ++g) start[g] += stride;
        b += ldb;
    }
}

// One tile of a linear layer; `columns` of PANEL are real.
template <int M>
void linear_tile(const float *a, size_t lda, const float *panel, const float *bias, size_t inputs, float *c,
                 size_t ldc, size_t columns, Epilogue epilogue) {
    Reg acc[M][2];
    products<M, 2, true>(a, lda, 1, panel, PANEL, inputs, acc);
    float narrow[M * PANEL];
    float padded[PANEL];
    const bool whole = columns == PANEL;
    float *to = whole ? c : narrow;
    const size_t ld = whole ? ldc : PANEL;
    if (!whole) {
        for (size_t j = 0; j < PANEL; ++j) padded[j] = bias != nullptr && j < columns ? bias[j] : 0.0f;
        for (size_t r = 0; r < M; ++r)
            for (size_t j = 0; j < PANEL; ++j)
                narrow[r * PANEL + j] = epilogue == Epilogue::add && j < columns ? c[r * ldc + j] : 0.0f;
        bias = padded;
    }
    const Reg low = bias != nullptr ? load(bias) : Reg{}, high = bias != nullptr ? load(bias + LANES) : Reg{};
    if (epilogue == Epilogue::add) {
#pragma GCC unroll 16
        for (int r = 0; r < M; ++r) {
            store(to + r * ld, acc[r][0] + low + load(to + r * ld));
            store(to + r * ld + LANES, acc[r][1] + high + load(to + r * ld + LANES));
        }
    } else {
#pragma GCC unroll 16
        for (int r = 0; r < M; ++r) {
            store(to + r * ld, acc[r][0] + low);
            store(to + r * ld + LANES, acc[r][1] + high);
        }
        if (epilogue == Epilogue::gelu)
            for (int r = 0; r < M; ++r) {
                store(to + r * ld, gelu_of(load(to + r * ld)));
                store(to + r * ld + LANES, gelu_of(load(to + r * ld + LANES)));
            }
    }
    if (!whole)
        for (size_t r = 0; r < M; ++r)
            for (size_t j = 0; j < columns; ++j) c[r * ldc + j] = narrow[r * PANEL + j];
}

using LinearTile = void (*)(const float *, size_t, const float *, const float *, size_t, float *, size_t, size_t,
                            Epilogue);

template <int M>
INLINE LinearTile tile_of(size_t rows) {
    if constexpr (M == 1)
        return linear_tile<1>;
    else
        return rows == M ? linear_tile<M> : tile_of<M - 1>(rows);
}

void linear(const float *a, size_t lda, const Linear &w, float *c, size_t ldc, size_t m, Epilogue epilogue) {
    for (size_t start = 0; start < w.outputs; start += PANEL) {
        const float *panel = w.packed + start * w.inputs;
        const float *bias = w.bias != nullptr ? w.bias + start : nullptr;
        const size_t columns = w.outputs - start < PANEL ? w.outputs - start : PANEL;
        size_t row = 0;
        for (; row + ROWS <= m; row += ROWS)
            linear_tile<ROWS>(a + row * lda, lda, panel, bias, w.inputs, c + row * ldc + start, ldc, columns, epilogue);
        if (row < m)
            tile_of<ROWS>(m - row)(a + row * lda, lda, panel, bias, w.inputs, c + row * ldc + start, ldc, columns,
                                   epilogue);
    }
}

void layer_norm(float *x, size_t ld, size_t rows, size_t width, const float *gain, const float *shift, float epsilon) {
    const size_t whole = width / LANES * LANES;
    for (size_t r = 0; r < rows; ++r, x += ld) {
        Reg sum{};
        for (size_t i = 0; i < whole; i += LANES) sum += load(x + i);
        float total = sum_of(sum);
        for (size_t i = whole; i < width; ++i) total += x[i];
        const float mean = total / static_cast<float>(width);
        sum = Reg{};
        for (size_t i = 0; i < whole; i += LANES) {
            const Reg d = load(x + i) - mean;
            sum += d * d;
        }
        total = sum_of(sum);
        for (size_t i = whole; i < width; ++i) total += (x[i] - mean) * (x[i] - mean);
        const float scale = 1.0f / __builtin_sqrtf(total / static_cast<float>(width) + epsilon);
        for (size_t i = 0; i < whole; i += LANES) store(x + i, (load(x + i) - mean) * scale * load(gain + i) + load(shift + i));
        for (size_t i = whole; i < width; ++i) x[i] = (x[i] - mean) * scale * gain[i] + shift[i];
    }
}

// Plain tiles with strides on both sides, for attention: c(r, :) = scale[r] * sum_k a(r, k) b[k].
template <int M, int V, bool NEAR>
INLINE void small_tile(const float *a, size_t rows, size_t step, const float *b, size_t ldb, size_t count, float *c,
                       size_t ldc, const float *scale) {
    Reg acc[M][V];
    products<M, V, NEAR>(a, rows, step, b, ldb, count, acc);
#pragma GCC unroll 16
    for (int r = 0; r < M; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) store(c + r * ldc + v * LANES, scale != nullptr ? acc[r][v] * scale[r] : acc[r][v]);
}

template <int M, int V, bool NEAR>
INLINE void small_rows(size_t m, const float *a, size_t rows, size_t step, const float *b, size_t ldb, size_t count,
                       float *c, size_t ldc, const float *scale) {
    size_t r = 0;
    for (; r + M <= m; r += M)
        small_tile<M, V, NEAR>(a + r * rows, rows, step, b, ldb, count, c + r * ldc, ldc,
                               scale != nullptr ? scale + r : nullptr);
    if constexpr (M > 1)
        if (r < m)
            small_rows<M / 2, V, NEAR>(m - r, a + r * rows, rows, step, b, ldb, count, c + r * ldc, ldc,
                                       scale != nullptr ? scale + r : nullptr);
}

// `columns` is a multiple of LANES.
template <bool NEAR>
void small_product(size_t m, size_t columns, size_t count, const float *a, size_t rows, size_t step, const float *b,
                   size_t ldb, float *c, size_t ldc, const float *scale) {
    size_t j = 0;
    for (; j + 2 * LANES <= columns; j += 2 * LANES)
        small_rows<8, 2, NEAR>(m, a, rows, step, b + j, ldb, count, c + j, ldc, scale);
    for (; j < columns; j += LANES) small_rows<8, 1, NEAR>(m, a, rows, step, b + j, ldb, count, c + j, ldc, scale);
}

// Scores are kept with one row a key and one lane a query, so that the softmax needs no sums across lanes.
void attention(const float *q, size_t queries, const float *k, const float *v, size_t keys, size_t ld, size_t width,
               float *out, size_t ldo, float *scratch) {
    const size_t lanes = rounded_up(queries, LANES), wide = rounded_up(width, LANES);
    float *turned = scratch, *scores = turned + width * lanes, *inverse = scores + keys * lanes;
    float *values = inverse + lanes, *padded = values + keys * wide;
    for (size_t d = 0; d < width; ++d) {
        for (size_t i = 0; i < queries; ++i) turned[d * lanes + i] = q[i * ld + d];
        for (size_t i = queries; i < lanes; ++i) turned[d * lanes + i] = 0.0f;
    }
    small_product<true>(keys, lanes, width, k, ld, 1, turned, lanes, scores, lanes, nullptr);
    for (size_t i = 0; i < lanes; i += LANES) {
        Reg most = load(scores + i);
        for (size_t j = 1; j < keys; ++j) most = bigger(most, load(scores + j * lanes + i));
        Reg sum{};
        for (size_t j = 0; j < keys; ++j) {
            const Reg e = power_of_two(load(scores + j * lanes + i) - most);
            store(scores + j * lanes + i, e);
            sum += e;
        }
        store(inverse + i, 1.0f / sum);
    }
    if (wide == width) {
        small_product<false>(queries, width, keys, scores, 1, lanes, v, ld, out, ldo, inverse);
        return;
    }
    for (size_t j = 0; j < keys; ++j)
        for (size_t d = 0; d < wide; ++d) values[j * wide + d] = d < width ? v[j * ld + d] : 0.0f;
    small_product<false>(queries, wide, keys, scores, 1, lanes, values, wide, padded, wide, inverse);
    for (size_t i = 0; i < queries; ++i)
        for (size_t d = 0; d < width; ++d) out[i * ldo + d] = padded[i * wide + d];
}

void pooled_attention(const float *qk, size_t heads, const float *x, size_t rows, size_t ld, size_t width, float *out,
                      float *scratch) {
    const size_t whole = width / LANES * LANES;
    for (size_t h = 0; h < heads; ++h) {
        float *p = scratch + h * rows;
        float most = -3.4e38f;
        for (size_t j = 0; j < rows; ++j) {
            p[j] = dot(qk + h * width, x + j * ld, width);
            most = p[j] > most ? p[j] : most;
        }
        for (size_t j = 0; j < rows; ++j) p[j] -= most;
        exp2_each(p, rows);
        float sum = 0.0f;
        for (size_t j = 0; j < rows; ++j) sum += p[j];
        for (size_t j = 0; j < rows; ++j) p[j] /= sum;
    }
    small_product<true>(heads, whole, rows, scratch, rows, 1, x, ld, out, width, nullptr);
    for (size_t h = 0; h < heads; ++h)
        for (size_t i = whole; i < width; ++i) {
            float sum = 0.0f;
            for (size_t j = 0; j < rows; ++j) sum += scratch[h * rows + j] * x[j * ld + i];
            out[h * width + i] = sum;
        }
}

void embed(const float *const *parts, size_t count, const EmbedSizes &sizes, const float *gain, const float *shift,
           const float *gain_sums, const float *shifts, float *x, float *projected) {
    const size_t width = sizes.width, whole = width / LANES * LANES;
    Reg sum{};
    float rest = 0.0f;
    for (size_t i = 0; i < whole; i += LANES) {
        Reg value = load(parts[0] + i);
        for (size_t p = 1; p < count; ++p) value += load(parts[p] + i);
        store(x + i, value);
        sum += value;
    }
    for (size_t i = whole; i < width; ++i) {
        float value = parts[0][i];
        for (size_t p = 1; p < count; ++p) value += parts[p][i];
        x[i] = value;
        rest += value;
    }
    const float mean = (sum_of(sum) + rest) / static_cast<float>(width);
    sum = Reg{};
    rest = 0.0f;
    for (size_t i = 0; i < whole; i += LANES) {
        const Reg d = load(x + i) - mean;
        sum += d * d;
    }
    for (size_t i = whole; i < width; ++i) rest += (x[i] - mean) * (x[i] - mean);
    const float scale = 1.0f / __builtin_sqrtf((sum_of(sum) + rest) / static_cast<float>(width) + sizes.epsilon);
    for (size_t i = 0; i < whole; i += LANES) store(x + i, (load(x + i) - mean) * scale * load(gain + i) + load(shift + i));
    for (size_t i = whole; i < width; ++i) x[i] = (x[i] - mean) * scale * gain[i] + shift[i];
    if (projected == nullptr) return;
    const size_t vectors = sizes.projected / LANES * LANES;
    for (size_t i = 0; i < vectors; i += LANES) {
        Reg value = load(parts[0] + width + i);
        for (size_t p = 1; p < count; ++p) value += load(parts[p] + width + i);
        store(projected + i, (value - mean * load(gain_sums + i)) * scale + load(shifts + i));
    }
    for (size_t i = vectors; i < sizes.projected; ++i) {
        float value = parts[0][width + i];
        for (size_t p = 1; p < count; ++p) value += parts[p][width + i];
        projected[i] = (value - mean * gain_sums[i]) * scale + shifts[i];
    }
}

const Kernels table = {NAME,  PANEL,     linear,    layer_norm, attention, pooled_attention,
                       embed, tanh_each, exp2_each, gelu_each,  dot};

}  // namespace
}  // namespace pertinent
