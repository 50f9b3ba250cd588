// Vectors of LANES floats, and the curves over them. Included by every translation unit of kernels; everything has
// internal linkage, and nothing of the standard library is used: an inline function compiled here must never serve
// the others.
#pragma once

#include <cstddef>
#include <cstdint>

#if LANES > 4
#include <immintrin.h>
#endif

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
// Where b is no number, neither is what these give: damage must not be hidden.
#if LANES == 16
INLINE Reg bigger(Reg a, Reg b) { return _mm512_max_ps(a, b); }
INLINE Reg smaller(Reg a, Reg b) { return _mm512_min_ps(a, b); }
#elif LANES == 8
INLINE Reg bigger(Reg a, Reg b) { return _mm256_max_ps(a, b); }
INLINE Reg smaller(Reg a, Reg b) { return _mm256_min_ps(a, b); }
#else
INLINE Reg bigger(Reg a, Reg b) { return a > b ? a : b; }
INLINE Reg smaller(Reg a, Reg b) { return a < b ? a : b; }
#endif
INLINE size_t rounded_up(size_t n, size_t step) { return (n + step - 1) / step * step; }

#if LANES == 16
INLINE float sum_of(Reg x) { return _mm512_reduce_add_ps(x); }
#else
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
#endif

// 2^x to 2e-7 of its value, for |x| up to 126; beyond that the value at the limit.
INLINE Reg power_of_two(Reg x) {
    x = bigger(spread(-126.0f), smaller(spread(126.0f), x));
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

// GELU, x times the normal distribution function: max(x, 0) less |x| times the upper tail, which is less than 2e-7
// beyond 5.4.
#if LANES == 16
// The tail in 16 pieces of degree 4 up to 5.4, to 3e-7: an instruction finds the coefficients of each lane's piece.
alignas(64) constexpr float TAIL[5][16] = {
    {-1.541212824e-09f, 1.272596568e-01f, 1.694045365e-01f, 1.540175080e-01f, 1.127246097e-01f, 6.974386424e-02f,
     3.722582757e-02f, 1.731225848e-02f, 7.053126581e-03f, 2.525217598e-03f, 7.960664225e-04f, 2.212461986e-04f,
     5.425494601e-05f, 1.174592853e-05f, 2.245917358e-06f, 3.793879841e-07f},
    {1.753248125e-01f, 8.113437146e-02f, 7.988172583e-03f, -3.328139335e-02f, -4.519020393e-02f, -3.879237920e-02f,
     -2.597993799e-02f, -1.441176981e-02f, -6.791905966e-03f, -2.755022841e-03f, -9.691797313e-04f, -2.970982459e-04f,
     -7.961576921e-05f, -1.869278094e-05f, -3.851518613e-06f, -6.972741744e-07f},
    {-4.905415326e-02f, -4.329098016e-02f, -2.892567031e-02f, -1.260071248e-02f, -3.004729224e-04f, 5.663517397e-03f,
     6.507493556e-03f, 4.854159430e-03f, 2.814847743e-03f, 1.342353644e-03f, 5.399300135e-04f, 1.857017778e-04f,
     5.507021706e-05f, 1.415840416e-05f, 3.167820068e-06f, 6.185219377e-07f},
    {1.106837135e-05f, 3.634706372e-03f, 5.476656370e-03f, 4.994054325e-03f, 3.055595327e-03f, 1.014066162e-03f,
     -2.671867842e-04f, -6.926241331e-04f, -6.063831388e-04f, -3.716176434e-04f, -1.796991855e-04f, -7.166773139e-05f,
     -2.409320950e-05f, -6.913709967e-06f, -1.707039701e-06f, -3.646361222e-07f},
    {9.861980798e-04f, 7.411084953e-04f, 1.580389217e-04f, -3.599332704e-04f, -5.504757282e-04f, -4.346247879e-04f,
     -2.039204410e-04f, -2.455250251e-05f, 5.235654316e-05f, 5.755011080e-05f, 3.717581421e-05f, 1.802022962e-05f,
     7.033003385e-06f, 2.280307626e-06f, 6.247879014e-07f, 1.461941963e-07f},
};

INLINE Reg gelu_of(Reg x) {
    const Reg place = smaller(spread(5.4f), bigger(x, -x)) * (15.4f / 5.4f);
    const Reg shifted = place + 12582912.0f;  // adding 1.5 * 2^23 rounds to a whole number: the low bits are the piece
    const Reg f = place - (shifted - 12582912.0f);
    auto coefficient = [&](int power) __attribute__((always_inline)) {
        return (Reg)_mm512_permutexvar_ps((__m512i)shifted, _mm512_load_ps(TAIL[power]));
    };
    Reg tail = coefficient(4);
    tail = tail * f + coefficient(3);
    tail = tail * f + coefficient(2);
    tail = tail * f + coefficient(1);
    tail = tail * f + coefficient(0);
    return bigger(Reg{}, x) - tail;
}
#else
// The tail is a polynomial of degree 16 up to 5.4, in two chains, to 4e-7.
INLINE Reg gelu_of(Reg x) {
    const Reg t = smaller(spread(5.4f), bigger(x, -x)) * (2.0f / 5.4f) - 1.0f;
    const Reg s = t * t;
    Reg even = spread(-1.357188635e-02f), odd = spread(2.404971514e-03f);
    even = even * s + 8.338505775e-02f;
    odd = odd * s + -4.689817131e-02f;
    even = even * s + -2.080026269e-01f;
    odd = odd * s + 2.312611490e-01f;
    even = even * s + 1.925221980e-01f;
    odd = odd * s + -4.977933466e-01f;
    even = even * s + 2.069105655e-01f;
    odd = odd * s + 3.780476451e-01f;
    even = even * s + -6.127207875e-01f;
    odd = odd * s + 3.031818271e-01f;
    even = even * s + 1.411833912e-01f;
    odd = odd * s + -3.035947084e-01f;
    even = even * s + 2.009332925e-01f;
    odd = odd * s + -6.660935283e-02f;
    even = even * s + 9.360852651e-03f;
    return bigger(Reg{}, x) - (odd * t + even);
}
#endif

INLINE Reg tanh_of(Reg x) {
    x = bigger(spread(-15.0f), smaller(spread(15.0f), x));
    return 1.0f - 2.0f / (power_of_two(x * 2.885390081777927f) + 1.0f);
}

// What a tile of sums becomes: bias and epilogue, and only `columns` of PANEL are written.
template <int M>
INLINE void write_tile(const Reg (&acc)[M][2], const float *bias, float *c, size_t ldc, size_t columns,
                       Epilogue epilogue) {
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

}  // namespace
}  // namespace pertinent
