// The kernels, once, over vectors of LANES floats and tiles of ROWS rows by two vectors. Included by one
// translation unit for each instruction set.

#include "int8.inl"
#include "vectors.inl"

namespace pertinent {
namespace {

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

// Inputs that weights are fetched ahead of their use.
constexpr size_t AHEAD = 8;

// acc[r][v] = sum_k a(r, k) * b[k][v], a(r, k) = a[r * rows + k * STEP or step], b rows `ldb` apart. Rows are
// reached from every third one, which x86 addresses without further arithmetic.
template <int M, int V, bool NEAR, bool FETCH>
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
        if constexpr (FETCH)  // from the second cache: a panel is rarely in the first one as a whole
#pragma GCC unroll 8
            for (size_t line = 0; line < 4 * V * LANES; line += 16) __builtin_prefetch(b + AHEAD * ldb + line);
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
    products<M, 2, true, true>(a, lda, 1, panel, PANEL, inputs, acc);
    write_tile<M>(acc, bias, c, ldc, columns, epilogue);
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
        for (size_t row = 0, tiles = (m + ROWS - 1) / ROWS; tiles > 0; --tiles) {
            const size_t rows = (m - row + tiles - 1) / tiles;  // as even as can be: a tile of one row is slow
            tile_of<ROWS>(rows)(a + row * lda, lda, panel, bias, w.inputs, c + row * ldc + start, ldc, columns, epilogue);
            row += rows;
        }
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
void small_tile(const float *a, size_t rows, size_t step, const float *b, size_t ldb, size_t count, float *c,
                       size_t ldc, const float *scale) {
    Reg acc[M][V];
    products<M, V, NEAR, false>(a, rows, step, b, ldb, count, acc);
#pragma GCC unroll 16
    for (int r = 0; r < M; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) store(c + r * ldc + v * LANES, scale != nullptr ? acc[r][v] * scale[r] : acc[r][v]);
}

template <int M, int V, bool NEAR>
INLINE void small_rows(size_t tile, const float *a, size_t rows, size_t step, const float *b, size_t ldb, size_t count,
                       float *c, size_t ldc, const float *scale) {
    if constexpr (M > 1)
        if (tile != M) return small_rows<M - 1, V, NEAR>(tile, a, rows, step, b, ldb, count, c, ldc, scale);
    small_tile<M, V, NEAR>(a, rows, step, b, ldb, count, c, ldc, scale);
}

template <int V, bool NEAR>
void small_columns(size_t m, const float *a, size_t rows, size_t step, const float *b, size_t ldb, size_t count,
                   float *c, size_t ldc, const float *scale) {
    for (size_t r = 0, tiles = (m + ROWS - 1) / ROWS; tiles > 0; --tiles) {
        const size_t tile = (m - r + tiles - 1) / tiles;
        small_rows<ROWS, V, NEAR>(tile, a + r * rows, rows, step, b, ldb, count, c + r * ldc, ldc,
                                  scale != nullptr ? scale + r : nullptr);
        r += tile;
    }
}

// `columns` is a multiple of LANES.
template <bool NEAR>
void small_product(size_t m, size_t columns, size_t count, const float *a, size_t rows, size_t step, const float *b,
                   size_t ldb, float *c, size_t ldc, const float *scale) {
    size_t j = 0;
    for (; j + 2 * LANES <= columns; j += 2 * LANES)
        small_columns<2, NEAR>(m, a, rows, step, b + j, ldb, count, c + j, ldc, scale);
    for (; j < columns; j += LANES) small_columns<1, NEAR>(m, a, rows, step, b + j, ldb, count, c + j, ldc, scale);
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

float widened(std::uint16_t half) {
    const std::uint32_t sign = (half & 0x8000u) << 16, rest = half & 0x7fffu;
    std::uint32_t bits;
    if (rest >= 0x7c00u) {
        bits = sign | 0x7f800000u | (rest & 0x3ffu) << 13;  // infinity, or no number
    } else if (rest >= 0x400u) {
        bits = sign | ((rest << 13) + 0x38000000u);
    } else {
        const float small = static_cast<float>(rest) * 5.9604644775390625e-8f;  // 2^-24
        return sign != 0 ? -small : small;
    }
    float value;
    __builtin_memcpy(&value, &bits, 4);
    return value;
}

void widen(const std::uint16_t *x, size_t count, float *out) {
    size_t i = 0;
#if LANES == 16
    for (; i + 16 <= count; i += 16)
        store(out + i, _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(x + i))));
#elif LANES == 8
    for (; i + 8 <= count; i += 8)
        store(out + i, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i *>(x + i))));
#endif
    for (; i < count; ++i) out[i] = widened(x[i]);
}

const Kernels table = {NAME,  PANEL, BYTE_OFFSET, linear,    round_rows, linear_int8, layer_norm, attention,
                       pooled_attention, embed, widen, tanh_each, exp2_each, gelu_each, dot};

}  // namespace
}  // namespace pertinent
