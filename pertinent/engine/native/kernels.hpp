// The arithmetic that depends on the processor, behind one table of functions. Each instruction set
// has a translation unit with its own compiler flags; nothing in them may be shared by the linker.
#pragma once

#include <cstddef>
#include <cstdint>

namespace pertinent {

enum class Epilogue { store, add, gelu };

// Weights of a linear layer in panels of `Kernels::panel` output columns: [panels][inputs][panel].
struct Linear {
    const float *packed = nullptr;
    const float *bias = nullptr;  // [outputs], or none
    std::size_t outputs = 0;
    std::size_t inputs = 0;
};

// The same rounded to 8 bits, a scale an output: [panels][inputs / 4][panel][4], zeros where there is no input or
// output. Arrays of outputs reach to the end of the last panel.
struct Linear8 {
    const std::int8_t *packed = nullptr;
    const float *scales = nullptr;
    const std::int32_t *starts = nullptr;  // what undoes `Kernels::byte_offset`: sums begin there
    const float *bias = nullptr;
    std::size_t outputs = 0;
    std::size_t inputs = 0;
};

// The word table's share of a row, and what a position or class adds to it: raw [width], then its
// products with the first layer's projections [projected].
struct EmbedSizes {
    std::size_t width;
    std::size_t projected;
    float epsilon;
};

struct Kernels {
    const char *name;
    std::size_t panel;
    std::int32_t byte_offset;  // what `round_rows` adds to each number

    // c[m, outputs] (row stride ldc) = a[m, inputs] (row stride lda) times weights, plus bias; `add` adds
    // what c holds, `gelu` applies the exact GELU.
    void (*linear)(const float *a, std::size_t lda, const Linear &weights, float *c, std::size_t ldc, std::size_t m,
                   Epilogue epilogue);

    // Rows of numbers as bytes from -127 to 127, plus `byte_offset`, each row with a scale of its own: x = scale * byte.
    // `stride` is a multiple of 4; what lies between `width` and the next multiple is set too.
    void (*round_rows)(const float *x, std::size_t ld, std::size_t rows, std::size_t width, std::uint8_t *bytes,
                       std::size_t stride, float *scales);

    // As `linear`, from rounded rows and weights; the sums are exact whole numbers.
    void (*linear_int8)(const std::uint8_t *a, std::size_t stride, const float *a_scales, const Linear8 &weights,
                        float *c, std::size_t ldc, std::size_t m, Epilogue epilogue);

    // Each of `rows` rows in place: (x - mean) / sqrt(variance + epsilon) * gain + shift.
    void (*layer_norm)(float *x, std::size_t ld, std::size_t rows, std::size_t width, const float *gain,
                       const float *shift, float epsilon);

    // One head: out[queries, width] = softmax2(q k^T) v, the softmax to base 2. `scratch` holds
    // attention_scratch(queries, keys, width) floats.
    void (*attention)(const float *q, std::size_t queries, const float *k, const float *v, std::size_t keys,
                      std::size_t ld, std::size_t width, float *out, std::size_t ldo, float *scratch);

    // For each of `heads` vectors qk[width]: out = sum_j softmax2_j(qk . x_j) x_j over the rows of x.
    void (*pooled_attention)(const float *qk, std::size_t heads, const float *x, std::size_t rows, std::size_t ld,
                             std::size_t width, float *out, float *scratch);

    // Normalized sum of `parts` rows of the embedding tables, and its projections by the affine rule:
    // projected = (sum of products - mean * gain_sums) / deviation + shifts.
    void (*embed)(const float *const *parts, std::size_t count, const EmbedSizes &sizes, const float *gain,
                  const float *shift, const float *gain_sums, const float *shifts, float *x, float *projected);

    // Half-precision numbers as floats.
    void (*widen)(const std::uint16_t *x, std::size_t count, float *out);

    void (*tanh)(float *x, std::size_t count);
    void (*exp2)(float *x, std::size_t count);
    void (*gelu)(float *x, std::size_t count);
    float (*dot)(const float *a, const float *b, std::size_t count);
};

std::size_t attention_scratch(std::size_t queries, std::size_t keys, std::size_t width);

const Kernels &portable_kernels();
#if defined(__x86_64__) || defined(_M_X64)
const Kernels &avx2_kernels();
const Kernels &avx512_kernels();
const Kernels &avx512vnni_kernels();
#endif

// The best table that this processor can run; `wanted` names one, and gives none where it cannot run here.
const Kernels *find_kernels(const char *wanted);

}  // namespace pertinent
