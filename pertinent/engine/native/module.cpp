// The engine as a Python module. Every array is checked here or in the engine before it is read, and the
// interpreter's lock is released while scores are computed.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <optional>

#include "engine.hpp"

namespace nb = nanobind;
using namespace pertinent;

template <class T, std::size_t N>
using Array = nb::ndarray<const T, nb::ndim<N>, nb::c_contig, nb::device::cpu>;
using Floats = nb::ndarray<nb::numpy, float, nb::ndim<1>>;

namespace {

// The array as it lies in memory. A conversion would be a copy that is gone when the caller returns, while the
// engine goes on reading it, so what does not fit is refused.
template <class A> A as_it_lies(const nb::handle &value, const std::string &name, const char *wanted) {
    A array;
    if (!nb::try_cast(value, array, false))
        throw nb::type_error((name + " must be a numpy array of " + wanted + " in C order").c_str());
    return array;
}

Weight weight_of(const nb::handle &value, const std::string &name) {
    auto array = as_it_lies<nb::ndarray<const float, nb::c_contig, nb::device::cpu>>(value, name, "float32");
    if (array.ndim() != 1 && array.ndim() != 2) throw nb::value_error("a weight must have one or two dimensions");
    return {array.data(), array.shape(0), array.ndim() == 2 ? array.shape(1) : 1};
}

Rows rows_of(const Array<std::int32_t, 1> &ids, const Array<std::int64_t, 1> &offsets,
             const std::optional<Array<std::int8_t, 1>> &classes) {
    if (offsets.shape(0) < 1) throw nb::value_error("offsets are empty; give one more than there are rows");
    if (classes && classes->shape(0) != ids.shape(0)) throw nb::value_error("there must be one term class for each token");
    return {ids.data(), ids.shape(0), offsets.data(), offsets.shape(0) - 1, classes ? classes->data() : nullptr};
}

Floats owned(std::vector<float> &&values) {
    auto *held = new std::vector<float>(std::move(values));
    nb::capsule owner(held, [](void *p) noexcept { delete static_cast<std::vector<float> *>(p); });
    return Floats(held->data(), {held->size()}, owner);
}

// Keeps the word vectors alive, which the engine reads where they lie.
class PyEngine {
  public:
    PyEngine(const nb::dict &sizes, const nb::dict &weights, const nb::object &token_rows,
             const std::optional<Array<float, 1>> &token_scales, const std::optional<std::string> &instructions,
             const Rounded &rounded)
        : token_rows_(token_rows) {
        auto size = [&](const char *name) { return nb::cast<std::size_t>(sizes[name]); };
        Sizes s{};
        s.vocabulary = size("vocabulary");
        s.hidden = size("hidden");
        s.layers = size("layers");
        s.heads = size("heads");
        s.feed_forward = size("feed_forward");
        s.positions = size("positions");
        s.classes = size("classes");
        s.labels = size("labels");
        s.query_length = size("query_length");
        s.item_length = size("item_length");
        s.join_layer = size("join_layer");
        s.running = nb::cast<bool>(sizes["running"]);
        s.one_way = nb::cast<bool>(sizes["one_way"]);
        s.epsilon = nb::cast<float>(sizes["epsilon"]);
        s.cls = nb::cast<std::int32_t>(sizes["cls"]);
        s.sep = nb::cast<std::int32_t>(sizes["sep"]);
        TokenTable tokens;
        std::size_t count, width;
        if (token_scales) {
            auto steps = as_it_lies<Array<std::int8_t, 2>>(token_rows, "token_rows", "int8 [tokens, width]");
            scales_ = *token_scales;
            tokens.steps = steps.data();
            tokens.scales = scales_.data();
            count = steps.shape(0), width = steps.shape(1);
            if (scales_.shape(0) != count) throw nb::value_error("there must be one scale for each token row");
        } else {
            auto floats = as_it_lies<Array<float, 2>>(token_rows, "token_rows", "float32 [tokens, width]");
            tokens.floats = floats.data();
            count = floats.shape(0), width = floats.shape(1);
        }
        if (count != s.vocabulary || width != s.hidden) throw nb::value_error("the token rows do not have the network's shape");
        Weights found;
        for (auto [key, value] : weights) {
            const auto name = nb::cast<std::string>(key);
            found[name] = weight_of(value, name);
        }
        const Kernels *kernels = find_kernels(instructions ? instructions->c_str() : nullptr);
        if (kernels == nullptr) throw nb::value_error("this processor has not the instructions that were asked for");
        engine_ = std::make_unique<Engine>(s, found, tokens, *kernels, rounded);
    }

    Floats score(const Array<std::int32_t, 1> &query_ids, const Array<std::int64_t, 1> &query_offsets,
                 const std::optional<Array<std::int8_t, 1>> &query_classes, const Array<std::int64_t, 1> &query_rows,
                 const Array<std::int32_t, 1> &item_ids, const Array<std::int64_t, 1> &item_offsets,
                 const std::optional<Array<std::int8_t, 1>> &item_classes, const Array<std::int64_t, 1> &item_rows,
                 std::size_t threads) {
        if (query_rows.shape(0) != item_rows.shape(0)) throw nb::value_error("there must be one item row for each query row");
        const Rows queries = rows_of(query_ids, query_offsets, query_classes);
        const Rows items = rows_of(item_ids, item_offsets, item_classes);
        std::vector<float> logits(query_rows.shape(0));
        {
            nb::gil_scoped_release release;
            engine_->score(queries, query_rows.data(), items, item_rows.data(), logits.size(), threads, logits.data());
        }
        return owned(std::move(logits));
    }

    Floats join(const Array<std::int32_t, 1> &query_ids, const Array<std::int64_t, 1> &query_offsets,
                const std::optional<Array<std::int8_t, 1>> &query_classes, const Array<std::int64_t, 1> &query_rows,
                const Array<std::uint16_t, 2> &states, const Array<std::int64_t, 1> &state_offsets,
                const Array<std::int64_t, 1> &item_rows, std::size_t threads) {
        if (query_rows.shape(0) != item_rows.shape(0)) throw nb::value_error("there must be one item row for each query row");
        if (state_offsets.shape(0) < 1) throw nb::value_error("offsets are empty; give one more than there are rows");
        const Rows queries = rows_of(query_ids, query_offsets, query_classes);
        const States items{states.data(), states.shape(0), states.shape(1), state_offsets.data(), state_offsets.shape(0) - 1};
        std::vector<float> logits(query_rows.shape(0));
        {
            nb::gil_scoped_release release;
            engine_->join(queries, query_rows.data(), items, item_rows.data(), logits.size(), threads, logits.data());
        }
        return owned(std::move(logits));
    }

    std::size_t state_width() const { return engine_->state_width(); }

    std::string instructions() const { return engine_->kernels().name; }

  private:
    nb::object token_rows_;
    Array<float, 1> scales_;
    std::unique_ptr<Engine> engine_;
};

// ---------------------------------------------------------------- single kernels, for the tests

const Kernels &chosen(const std::string &instructions) {
    const Kernels *kernels = find_kernels(instructions.c_str());
    if (kernels == nullptr) throw nb::value_error("this processor has not these instructions");
    return *kernels;
}

using Matrix = Array<float, 2>;
using Vector = Array<float, 1>;

Floats linear(const std::string &instructions, const Matrix &a, const Matrix &weights, const Vector &bias,
              const std::optional<Matrix> &add, bool gelu) {
    const Kernels &kernels = chosen(instructions);
    const std::size_t m = a.shape(0), inputs = a.shape(1), outputs = weights.shape(0), panel = kernels.panel;
    if (weights.shape(1) != inputs || bias.shape(0) != outputs) throw nb::value_error("shapes do not fit");
    if (add && (add->shape(0) != m || add->shape(1) != outputs)) throw nb::value_error("shapes do not fit");
    Buffer packed;
    pack_panels(weights.data(), outputs, inputs, panel, packed.get((outputs + panel - 1) / panel * panel * inputs));
    std::vector<float> c(m * outputs);
    if (add) std::copy(add->data(), add->data() + c.size(), c.begin());
    kernels.linear(a.data(), inputs, {packed.get(0), bias.data(), outputs, inputs}, c.data(), outputs, m,
                   add ? Epilogue::add : gelu ? Epilogue::gelu : Epilogue::store);
    return owned(std::move(c));
}

// Rows and weights rounded as the engine does it, then their product; the scales of the rows are behind it.
Floats linear_int8(const std::string &instructions, const Matrix &a, const Matrix &weights, const Vector &bias,
                   const std::optional<Matrix> &add, bool gelu) {
    const Kernels &kernels = chosen(instructions);
    const std::size_t m = a.shape(0), inputs = a.shape(1), outputs = weights.shape(0), panel = kernels.panel;
    if (weights.shape(1) != inputs || bias.shape(0) != outputs) throw nb::value_error("shapes do not fit");
    if (add && (add->shape(0) != m || add->shape(1) != outputs)) throw nb::value_error("shapes do not fit");
    const std::size_t all = (outputs + panel - 1) / panel * panel, stride = (inputs + 3) / 4 * 4;
    std::vector<std::int8_t> packed(all * stride);
    std::vector<float> scales(all), own(all), a_scales(m), c(m * outputs);
    std::vector<std::int32_t> starts(all);
    std::vector<std::uint8_t> bytes(m * stride);
    pack_bytes(weights.data(), outputs, inputs, kernels, packed.data(), scales.data(), starts.data());
    std::copy(bias.data(), bias.data() + outputs, own.begin());
    if (add) std::copy(add->data(), add->data() + c.size(), c.begin());
    kernels.round_rows(a.data(), inputs, m, inputs, bytes.data(), stride, a_scales.data());
    kernels.linear_int8(bytes.data(), stride, a_scales.data(), {packed.data(), scales.data(), starts.data(), own.data(), outputs, inputs},
                        c.data(), outputs, m, add ? Epilogue::add : gelu ? Epilogue::gelu : Epilogue::store);
    c.insert(c.end(), a_scales.begin(), a_scales.end());
    return owned(std::move(c));
}

Floats layer_norm(const std::string &instructions, const Matrix &x, const Vector &gain, const Vector &shift, float epsilon) {
    if (gain.shape(0) != x.shape(1) || shift.shape(0) != x.shape(1)) throw nb::value_error("shapes do not fit");
    std::vector<float> rows(x.data(), x.data() + x.size());
    chosen(instructions).layer_norm(rows.data(), x.shape(1), x.shape(0), x.shape(1), gain.data(), shift.data(), epsilon);
    return owned(std::move(rows));
}

Floats attention(const std::string &instructions, const Matrix &q, const Matrix &k, const Matrix &v) {
    const std::size_t width = q.shape(1), ld = 3 * width, rows = std::max(q.shape(0), k.shape(0));
    if (k.shape(1) != width || v.shape(1) != width || v.shape(0) != k.shape(0) || q.shape(0) == 0 || k.shape(0) == 0)
        throw nb::value_error("shapes do not fit");
    std::vector<float> joined(rows * ld), out(q.shape(0) * width);
    for (std::size_t i = 0; i < rows; ++i)
        for (std::size_t d = 0; d < width; ++d) {
            if (i < q.shape(0)) joined[i * ld + d] = q(i, d);
            if (i < k.shape(0)) joined[i * ld + width + d] = k(i, d), joined[i * ld + 2 * width + d] = v(i, d);
        }
    Buffer scratch;
    chosen(instructions).attention(joined.data(), q.shape(0), joined.data() + width, joined.data() + 2 * width, k.shape(0), ld,
                                   width, out.data(), width, scratch.get(attention_scratch(q.shape(0), k.shape(0), width)));
    return owned(std::move(out));
}

Floats pooled_attention(const std::string &instructions, const Matrix &qk, const Matrix &x) {
    if (qk.shape(1) != x.shape(1) || x.shape(0) == 0) throw nb::value_error("shapes do not fit");
    std::vector<float> out(qk.size()), scratch(qk.shape(0) * x.shape(0));
    chosen(instructions).pooled_attention(qk.data(), qk.shape(0), x.data(), x.shape(0), x.shape(1), x.shape(1), out.data(),
                                          scratch.data());
    return owned(std::move(out));
}

Floats each(const std::string &instructions, const std::string &name, const Vector &x) {
    const Kernels &kernels = chosen(instructions);
    std::vector<float> values(x.data(), x.data() + x.size());
    (name == "gelu" ? kernels.gelu : name == "tanh" ? kernels.tanh : kernels.exp2)(values.data(), values.size());
    return owned(std::move(values));
}

}  // namespace

NB_MODULE(_native, m) {
    m.doc() = "The native scoring engine.";
    m.def("instructions", [] {
        std::vector<std::string> names;
        for (const char *name : {"portable", "avx2", "avx512", "avx512vnni"})
            if (find_kernels(name) != nullptr) names.emplace_back(name);
        return names;
    }, "The instruction sets that this processor runs, best last.");
    nb::module_ single = m.def_submodule("kernels", "Single kernels, flat results, for the tests.");
    single.def("linear", &linear, nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg("add").none() = nb::none(),
               nb::arg("gelu") = false);
    single.def("linear_int8", &linear_int8, nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg("add").none() = nb::none(),
               nb::arg("gelu") = false);
    single.def("layer_norm", &layer_norm);
    single.def("attention", &attention);
    single.def("pooled_attention", &pooled_attention);
    single.def("each", &each);
    nb::class_<PyEngine>(m, "Engine")
        .def(nb::init<const nb::dict &, const nb::dict &, const nb::object &, const std::optional<Array<float, 1>> &,
                      const std::optional<std::string> &, const Rounded &>(),
             nb::arg("sizes"), nb::arg("weights"), nb::arg("token_rows"), nb::arg("token_scales").none() = nb::none(),
             nb::arg("instructions").none() = nb::none(), nb::arg("rounded") = Rounded())
        .def("score", &PyEngine::score, nb::arg("query_ids"), nb::arg("query_offsets"), nb::arg("query_classes").none(),
             nb::arg("query_rows"), nb::arg("item_ids"), nb::arg("item_offsets"), nb::arg("item_classes").none(),
             nb::arg("item_rows"), nb::arg("threads"))
        .def("join", &PyEngine::join, nb::arg("query_ids"), nb::arg("query_offsets"), nb::arg("query_classes").none(),
             nb::arg("query_rows"), nb::arg("states"), nb::arg("state_offsets"), nb::arg("item_rows"), nb::arg("threads"))
        .def_prop_ro("state_width", &PyEngine::state_width)
        .def_prop_ro("instructions", &PyEngine::instructions);
}
