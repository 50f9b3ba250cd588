// Products of 8-bit numbers, for one instruction set. Both sides are whole numbers from -127 to 127, so that no sum of
// two products leaves 16 bits, and every instruction set finds the very same sums.
#pragma once

#include "vectors.inl"

namespace pertinent {
namespace {

// With VNNI one instruction multiplies bytes without sign by bytes with sign, so rows are moved by 128.
#if defined(__AVX512VNNI__) && LANES == 16
constexpr std::int32_t BYTE_OFFSET = 128;
#else
constexpr std::int32_t BYTE_OFFSET = 0;
#endif

#if LANES == 16
constexpr int BYTE_ROWS = 12;
typedef __m512i Bytes;  // LANES groups of four numbers
INLINE Bytes load_bytes(const void *p) { return _mm512_loadu_si512(p); }
INLINE Bytes spread_group(const std::uint8_t *p) {
    std::int32_t four;
    __builtin_memcpy(&four, p, 4);
    return _mm512_set1_epi32(four);
}
#if defined(__AVX512VNNI__)
INLINE void add_products(IntReg &sum, Bytes row, Bytes weights) {
    sum = (IntReg)_mm512_dpbusd_epi32((__m512i)sum, row, weights);
}
#else
// |a| times the weight with the sign of a: the instruction wants one side without sign.
INLINE void add_products(IntReg &sum, Bytes row, Bytes weights) {
    const Bytes turned = _mm512_mask_sub_epi8(weights, _mm512_movepi8_mask(row), _mm512_setzero_si512(), weights);
    const Bytes pairs = _mm512_maddubs_epi16(_mm512_abs_epi8(row), turned);
    sum += (IntReg)_mm512_madd_epi16(pairs, _mm512_set1_epi16(1));
}
#endif
#elif LANES == 8
constexpr int BYTE_ROWS = 4;
typedef __m256i Bytes;
INLINE Bytes load_bytes(const void *p) { return _mm256_loadu_si256(static_cast<const __m256i *>(p)); }
INLINE Bytes spread_group(const std::uint8_t *p) {
    std::int32_t four;
    __builtin_memcpy(&four, p, 4);
    return _mm256_set1_epi32(four);
}
INLINE void add_products(IntReg &sum, Bytes row, Bytes weights) {
    const Bytes pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(row), _mm256_sign_epi8(weights, row));
    sum += (IntReg)_mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
}
#else
constexpr int BYTE_ROWS = 4;
typedef std::int8_t Bytes __attribute__((vector_size(LANES * 4)));
INLINE Bytes load_bytes(const void *p) {
    Bytes found;
    __builtin_memcpy(&found, p, sizeof found);
    return found;
}
INLINE Bytes spread_group(const std::uint8_t *p) {
    Bytes found;
    for (size_t i = 0; i < 4 * LANES; ++i) found[i] = static_cast<std::int8_t>(p[i % 4]);
    return found;
}
INLINE void add_products(IntReg &sum, Bytes row, Bytes weights) {
    for (size_t i = 0; i < LANES; ++i)
        for (size_t j = 0; j < 4; ++j) sum[i] += std::int32_t{row[4 * i + j]} * weights[4 * i + j];
}
#endif

#if LANES == 16
INLINE std::int32_t largest_of(IntReg x) { return _mm512_reduce_max_epi32((__m512i)x); }
#else
INLINE std::int32_t largest_of(IntReg x) {
    std::int32_t largest = x[0];
    for (size_t i = 1; i < LANES; ++i) largest = x[i] > largest ? x[i] : largest;
    return largest;
}
#endif

typedef std::int8_t Narrow __attribute__((vector_size(LANES), aligned(1), may_alias));

// The byte of each whole number in float form: adding 1.5 * 2^23 leaves it in the low bits.
INLINE Narrow bytes_of(Reg x) {
    const IntReg bits = (IntReg)(x + 12582912.0f) + BYTE_OFFSET;
    typedef std::int8_t Plain __attribute__((vector_size(LANES)));
    return (Narrow)__builtin_convertvector(bits, Plain);
}

void round_rows(const float *x, size_t ld, size_t rows, size_t width, std::uint8_t *bytes, size_t stride, float *scales) {
    constexpr std::int32_t MAGNITUDE = 0x7fffffff, INFINITE = 0x7f800000;
    const size_t whole = width / LANES * LANES, filled = rounded_up(width, 4);
    for (size_t r = 0; r < rows; ++r, x += ld, bytes += stride) {
        // Bits of numbers without sign are ordered as the numbers, and what is no number comes last.
        IntReg most{};
        for (size_t i = 0; i < whole; i += LANES) {
            const IntReg size = (IntReg)load(x + i) & MAGNITUDE;
            most = size > most ? size : most;
        }
        std::int32_t largest = largest_of(most);
        for (size_t i = whole; i < width; ++i) {
            std::int32_t size;
            __builtin_memcpy(&size, x + i, 4);
            size &= MAGNITUDE;
            largest = size > largest ? size : largest;
        }
        float peak;
        __builtin_memcpy(&peak, &largest, 4);
        const bool usable = largest < INFINITE && peak > 1e-30f;
        const float up = usable ? 127.0f / peak : 0.0f;
        scales[r] = usable ? peak / 127.0f : largest < INFINITE ? 0.0f : __builtin_nanf("");
        for (size_t i = 0; i < whole; i += LANES)
            *reinterpret_cast<Narrow *>(bytes + i) = bytes_of(load(x + i) * up);
        if (whole < filled) {
            float rest[LANES] = {};
            for (size_t i = whole; i < width; ++i) rest[i - whole] = x[i];
            const Narrow last = bytes_of(load(rest) * up);
            __builtin_memcpy(bytes + whole, &last, filled - whole);
        }
    }
}

// One tile; rows are reached from every third one, as in `products`.
template <int M>
void tile_int8(const std::uint8_t *a, size_t stride, const float *a_scales, const Linear8 &w, size_t first, float *c,
               size_t ldc, size_t columns, Epilogue epilogue) {
    constexpr int GROUPS = (M + 2) / 3;
    const std::uint8_t *start[GROUPS];
#pragma GCC unroll 8
    for (int g = 0; g < GROUPS; ++g) start[g] = a + 3 * g * stride;
    IntReg low = *reinterpret_cast<const Ints *>(w.starts + first);
    IntReg high = *reinterpret_cast<const Ints *>(w.starts + first + LANES);
    IntReg sum[M][2];
#pragma GCC unroll 16
    for (int r = 0; r < M; ++r) sum[r][0] = low, sum[r][1] = high;
    const size_t groups = (w.inputs + 3) / 4;
    const std::int8_t *panel = w.packed + first * groups * 4;
    for (size_t k = 0; k < groups; ++k) {
        const Bytes left = load_bytes(panel), right = load_bytes(panel + 4 * LANES);
#pragma GCC unroll 16
        for (int r = 0; r < M; ++r) {
            const Bytes row = spread_group(start[r / 3] + (r % 3) * stride);
            add_products(sum[r][0], row, left);
            add_products(sum[r][1], row, right);
        }
        panel += 4 * PANEL;
#pragma GCC unroll 8
        for (int g = 0; g < GROUPS; ++g) start[g] += 4;
    }
    const Reg left = load(w.scales + first), right = load(w.scales + first + LANES);
    Reg acc[M][2];
#pragma GCC unroll 16
    for (int r = 0; r < M; ++r) {
        const Reg scale = spread(a_scales[r]);
        acc[r][0] = __builtin_convertvector(sum[r][0], Reg) * left * scale;
        acc[r][1] = __builtin_convertvector(sum[r][1], Reg) * right * scale;
    }
    write_tile<M>(acc, w.bias + first, c, ldc, columns, epilogue);
}

using TileInt8 = void (*)(const std::uint8_t *, size_t, const float *, const Linear8 &, size_t, float *, size_t, size_t,
                          Epilogue);

template <int M>
INLINE TileInt8 tile_int8_of(size_t rows) {
    if constexpr (M == 1)
        return tile_int8<1>;
    else
        return rows == M ? tile_int8<M> : tile_int8_of<M - 1>(rows);
}

void linear_int8(const std::uint8_t *a, size_t stride, const float *a_scales, const Linear8 &w, float *c, size_t ldc,
                 size_t m, Epilogue epilogue) {
    for (size_t first = 0; first < w.outputs; first += PANEL) {
        const size_t columns = w.outputs - first < PANEL ? w.outputs - first : PANEL;
        for (size_t row = 0, tiles = (m + BYTE_ROWS - 1) / BYTE_ROWS; tiles > 0; --tiles) {
            const size_t rows = (m - row + tiles - 1) / tiles;
            tile_int8_of<BYTE_ROWS>(rows)(a + row * stride, stride, a_scales + row, w, first, c + row * ldc + first, ldc,
                                          columns, epilogue);
            row += rows;
        }
    }
}

}  // namespace
}  // namespace pertinent
