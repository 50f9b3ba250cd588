#include "engine.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <exception>
#include <functional>
#include <limits>
#include <stdexcept>
#include <system_error>
#include <thread>

namespace pertinent {

namespace {

using std::size_t;

// Tokens that go through the layers together, so that their states stay in the second cache. From a hidden size
// of WIDE on the weights of a layer do not fit beside them, and more tokens share a reading of the weights.
constexpr size_t BLOCK_TOKENS = 48, WIDE_BLOCK_TOKENS = 256, WIDE = 256;
// Items whose last layer is computed together, and the tokens beyond which there are fewer.
constexpr size_t BLOCK_ITEMS = 24;
constexpr size_t MOST_TOKENS = 1536;
// The same of the last blocks of a call that has many.
constexpr size_t LAST_ITEMS = 4;
// Rows that go through a rounded feed-forward part together: its weights are few bytes, its inner rows many.
constexpr size_t FEED_ROWS = 48;
// The most inputs whose sum of byte products stays in 32 bits.
constexpr size_t MOST_INPUTS = 1 << 16;
// Rows of the word table computed at once.
constexpr size_t FILL_ROWS = 48;
constexpr double LOG2_E = 1.4426950408889634;

[[noreturn]] void refuse(const std::string &what) { throw std::invalid_argument(what); }

const float *find(const Weights &weights, const std::string &name, size_t rows, size_t columns) {
    const auto found = weights.find(name);
    if (found == weights.end()) refuse("there is no weight " + name);
    if (found->second.rows != rows || found->second.columns != columns)
        refuse("weight " + name + " has shape (" + std::to_string(found->second.rows) + ", " +
               std::to_string(found->second.columns) + "), expected (" + std::to_string(rows) + ", " +
               std::to_string(columns) + ")");
    return found->second.data;
}

// Runs task(0..tasks-1, worker) on up to `threads` threads, this one among them.
void parallel(size_t tasks, size_t threads, const std::function<void(size_t, size_t)> &task) {
    threads = std::min(threads, tasks);
    std::atomic<size_t> next{0};
    std::mutex lock;
    std::exception_ptr failure;
    auto work = [&](size_t worker) {
        try {
            for (size_t i; (i = next.fetch_add(1)) < tasks;) task(i, worker);
        } catch (...) {
            next = tasks;
            const std::lock_guard<std::mutex> hold(lock);
            failure = std::current_exception();
        }
    };
    std::vector<std::thread> helpers;
    helpers.reserve(threads);
    for (size_t worker = 1; worker < threads; ++worker) {
        try {
            helpers.emplace_back(work, worker);
        } catch (const std::system_error &) {
            break;  // no more threads to be had: those that run do all
        }
    }
    work(0);
    for (auto &helper : helpers) helper.join();
    if (failure) std::rethrow_exception(failure);
}

}  // namespace

size_t attention_scratch(size_t queries, size_t keys, size_t width) {
    const size_t lanes = (queries + 15) / 16 * 16, wide = (width + 15) / 16 * 16;
    return width * lanes + keys * lanes + lanes + keys * wide + lanes * wide;
}

namespace {

size_t state_rows(const States &states, size_t item) {
    return static_cast<size_t>(states.offsets[item + 1] - states.offsets[item]);
}

}  // namespace

// What one thread needs while it scores; kept between calls.
struct Workspace {
    Buffer states, alone, given, projected, seen, fed, scratch, logits;
    Buffer query_states, query_projected;
    Buffer first, wanted, keys, pooled, joined, widened, queries;
    Buffer bytes, scales;  // of the rows of a rounded product
    std::vector<Span> spans, part;
    size_t query = SIZE_MAX;  // the query row whose states are held
};

// ---------------------------------------------------------------- weights

Engine::~Engine() = default;

float *Engine::room(size_t count) {
    owned_.push_back(std::make_unique<Buffer>());
    return owned_.back()->get(std::max<size_t>(count, 1));
}

void pack_panels(const float *weights, size_t outputs, size_t inputs, size_t panel, float *packed) {
    for (size_t start = 0; start < outputs; start += panel)
        for (size_t k = 0; k < inputs; ++k)
            for (size_t row = start; row < start + panel; ++row)
                *packed++ = row < outputs ? weights[row * inputs + k] : 0.0f;
}

Linear Engine::pack(const float *weights, size_t outputs, size_t inputs, const float *bias) {
    const size_t panel = kernels_.panel;
    float *packed = room((outputs + panel - 1) / panel * panel * inputs), *own = nullptr;
    pack_panels(weights, outputs, inputs, panel, packed);
    if (bias != nullptr) {
        own = room(outputs);
        std::copy(bias, bias + outputs, own);
    }
    return {packed, own, outputs, inputs};
}

void pack_bytes(const float *weights, size_t outputs, size_t inputs, const Kernels &kernels, std::int8_t *packed,
                float *scales, std::int32_t *starts) {
    const size_t panel = kernels.panel, all = (outputs + panel - 1) / panel * panel, groups = (inputs + 3) / 4;
    std::memset(packed, 0, all * groups * 4);
    for (size_t row = 0; row < all; ++row) {
        float largest = 0.0f;
        bool finite = true;
        std::int32_t sum = 0;
        const float *from = weights + row * inputs;
        for (size_t k = 0; row < outputs && k < inputs; ++k) {
            finite = finite && std::isfinite(from[k]);
            largest = std::max(largest, std::fabs(from[k]));
        }
        const bool usable = finite && largest > 1e-30f;
        for (size_t k = 0; row < outputs && usable && k < inputs; ++k) {
            const auto value = static_cast<std::int8_t>(std::lrintf(std::clamp(from[k] / largest * 127.0f, -127.0f, 127.0f)));
            packed[((row / panel * groups + k / 4) * panel + row % panel) * 4 + k % 4] = value;
            sum += value;
        }
        // A damaged weight must not be hidden.
        scales[row] = finite ? largest / 127.0f : std::numeric_limits<float>::quiet_NaN();
        starts[row] = -kernels.byte_offset * sum;
    }
}

Product Engine::product(const float *weights, size_t outputs, size_t inputs, const float *bias, bool rounded) {
    if (!rounded) return {pack(weights, outputs, inputs, bias), {}};
    if (inputs > MOST_INPUTS) refuse("a layer with " + std::to_string(inputs) + " inputs cannot be computed in 8 bits");
    const size_t panel = kernels_.panel, all = (outputs + panel - 1) / panel * panel, bytes = all * ((inputs + 3) / 4) * 4;
    auto *packed = reinterpret_cast<std::int8_t *>(room((bytes + 3) / 4));
    float *scales = room(all), *own = room(all);
    auto *starts = reinterpret_cast<std::int32_t *>(room(all));
    pack_bytes(weights, outputs, inputs, kernels_, packed, scales, starts);
    std::copy(bias, bias + outputs, own);
    return {{}, {packed, scales, starts, own, outputs, inputs}};
}

void Engine::apply(const Product &product, const float *a, size_t lda, float *c, size_t ldc, size_t rows,
                   Epilogue epilogue, Workspace &work) const {
    if (product.rounded.packed == nullptr) return kernels_.linear(a, lda, product.exact, c, ldc, rows, epilogue);
    const size_t inputs = product.rounded.inputs, stride = (inputs + 3) / 4 * 4;
    auto *bytes = reinterpret_cast<std::uint8_t *>(work.bytes.get(rows * stride / 4));
    float *scales = work.scales.get(rows);
    kernels_.round_rows(a, lda, rows, inputs, bytes, stride, scales);
    kernels_.linear_int8(bytes, stride, scales, product.rounded, c, ldc, rows, epilogue);
}

Engine::Norm Engine::norm(const Weights &weights, const std::string &name) {
    float *both = room(2 * sizes_.hidden);
    for (int part = 0; part < 2; ++part) {
        const float *from = find(weights, name + (part ? ".bias" : ".weight"), sizes_.hidden, 1);
        std::copy(from, from + sizes_.hidden, both + part * sizes_.hidden);
    }
    return {both, both + sizes_.hidden};
}

namespace {

void check_sizes(const Sizes &s) {
    if (s.vocabulary == 0 || s.hidden == 0 || s.layers == 0 || s.heads == 0 || s.feed_forward == 0)
        refuse("a size of the network is 0");
    if (s.hidden % s.heads != 0) refuse("hidden size is not a multiple of heads");
    if (s.labels != 1 && s.labels != 2) refuse("labels must be 1 or 2");
    if (s.query_length < 3 || s.item_length < 2) refuse("the layout has no room for a query and an item");
    if (s.query_length + s.item_length > s.positions) refuse("the layout is longer than the network's positions");
    if (s.join_layer >= s.layers) refuse("the join layer must be below the number of layers");
    for (const std::int32_t id : {s.cls, s.sep})
        if (id < 0 || static_cast<size_t>(id) >= s.vocabulary) refuse("a special token is not in the vocabulary");
}

}  // namespace

Engine::Engine(const Sizes &sizes, const Weights &weights, const TokenTable &tokens, const Kernels &kernels,
               const Rounded &rounded)
    : sizes_(sizes), kernels_(kernels), tokens_(tokens), projected_(sizes.layers > 1 ? 3 * sizes.hidden : 0) {
    check_sizes(sizes);
    auto in_bytes = [&](size_t part) { return part < rounded.size() && rounded[part]; };
    for (size_t number = 0; number < sizes.layers; ++number)
        load_layer(weights, number, in_bytes(2 * number), in_bytes(2 * number + 1));
    const size_t hidden = sizes.hidden;
    pooler_ = pack(find(weights, "pooler.weight", hidden, hidden), hidden, hidden, find(weights, "pooler.bias", hidden, 1));
    const float *rows = find(weights, "classifier.weight", sizes.labels, hidden);
    const float *bias = find(weights, "classifier.bias", sizes.labels, 1);
    float *head = room(hidden);
    for (size_t i = 0; i < hidden; ++i) head[i] = sizes.labels == 2 ? rows[hidden + i] - rows[i] : rows[i];
    head_ = head;
    head_bias_ = sizes.labels == 2 ? bias[1] - bias[0] : bias[0];
    load_embeddings(weights);
}

void Engine::load_layer(const Weights &weights, size_t number, bool rounded_attention, bool rounded_feed) {
    const size_t hidden = sizes_.hidden, width = hidden / sizes_.heads, fed = sizes_.feed_forward;
    const std::string at = "encoder.layers." + std::to_string(number) + ".";
    auto matrix = [&](const char *name, size_t rows, size_t columns) {
        return find(weights, at + name + ".weight", rows, columns);
    };
    auto vector = [&](const char *name, size_t rows) { return find(weights, at + name + ".bias", rows, 1); };
    Layer layer{};
    // The scale of the scores and the change to base 2 go into the query's weights.
    const float scale = static_cast<float>(LOG2_E / std::sqrt(static_cast<double>(width)));
    std::vector<float> joined(3 * hidden * hidden), biases(3 * hidden);
    const char *names[] = {"query", "key", "value"};
    for (size_t part = 0; part < 3; ++part) {
        const float *w = matrix(names[part], hidden, hidden), *b = vector(names[part], hidden);
        const float factor = part == 0 ? scale : 1.0f;
        for (size_t i = 0; i < hidden * hidden; ++i) joined[part * hidden * hidden + i] = w[i] * factor;
        for (size_t i = 0; i < hidden; ++i) biases[part * hidden + i] = b[i] * factor;
    }
    const float *key = joined.data() + hidden * hidden, *value = key + hidden * hidden;
    if (number + 1 < sizes_.layers) {
        // Those of the first layer come from the word table, in float32.
        const bool rounded = rounded_attention && number > 0;
        layer.projections = product(joined.data(), 3 * hidden, hidden, biases.data(), rounded);
        if (sizes_.one_way && number >= sizes_.join_layer)
            layer.key_value = product(key, 2 * hidden, hidden, biases.data() + hidden, rounded);
    } else {
        layer.query = pack(joined.data(), hidden, hidden, biases.data());
        std::vector<float> turned(hidden * width);
        for (size_t head = 0; head < sizes_.heads; ++head) {
            for (size_t i = 0; i < hidden; ++i)
                for (size_t d = 0; d < width; ++d) turned[i * width + d] = key[(head * width + d) * hidden + i];
            // The key's bias adds the same to every score of a query: the softmax does not see it.
            layer.key_back.push_back(pack(turned.data(), hidden, width, nullptr));
            layer.value.push_back(pack(value + head * width * hidden, width, hidden, biases.data() + 2 * hidden + head * width));
        }
    }
    auto part = [&](const char *name, size_t outputs, size_t inputs, bool rounded) {
        return product(matrix(name, outputs, inputs), outputs, inputs, vector(name, outputs), rounded);
    };
    layer.attention_out = part("attention_out", hidden, hidden, rounded_attention);
    layer.feed_in = part("feed_in", fed, hidden, rounded_feed);
    layer.feed_out = part("feed_out", hidden, fed, rounded_feed);
    layer.attention_norm = norm(weights, at + "attention_norm");
    layer.feed_norm = norm(weights, at + "feed_norm");
    layers_.push_back(layer);
}

// Tables for x W = (sum of (part * gain) W - mean * gain W) / deviation + (shift W + bias).
void Engine::load_embeddings(const Weights &weights) {
    const size_t hidden = sizes_.hidden, row = table_row();
    embedding_norm_ = norm(weights, "embeddings.norm");
    part_positions_ = sizes_.query_length + sizes_.item_length;
    const float *positions = find(weights, "embeddings.position.weight", sizes_.positions, hidden);
    const float *segments = find(weights, "embeddings.segment.weight", 2, hidden);
    for (size_t side = 0; side < 2; ++side) {
        float *parts = room(part_positions_ * row);
        for (size_t p = 0; p < part_positions_; ++p)
            for (size_t i = 0; i < hidden; ++i) parts[p * row + i] = positions[p * hidden + i] + segments[side * hidden + i];
        project(parts, part_positions_);
        position_parts_[side] = parts;
    }
    if (sizes_.classes > 0) {
        const float *classes = find(weights, "embeddings.term_class.weight", sizes_.classes, hidden);
        float *parts = room(sizes_.classes * row);
        for (size_t c = 0; c < sizes_.classes; ++c) std::copy(classes + c * hidden, classes + (c + 1) * hidden, parts + c * row);
        project(parts, sizes_.classes);
        class_parts_ = parts;
    }
    if (projected_ > 0) {
        const Linear &first = layers_[0].projections.exact;
        float *sums = room(projected_), *shifts = room(projected_);
        for (size_t j = 0; j < projected_; ++j) {
            double gains = 0.0, shifted = 0.0;
            for (size_t i = 0; i < hidden; ++i) {
                const double w = first.packed[(j / kernels_.panel * hidden + i) * kernels_.panel + j % kernels_.panel];
                gains += embedding_norm_.gain[i] * w;
                shifted += embedding_norm_.shift[i] * w;
            }
            sums[j] = static_cast<float>(gains);
            shifts[j] = static_cast<float>(shifted + first.bias[j]);
        }
        gain_sums_ = sums;
        shifts_ = shifts;
    }
    table_rows_ = table_.get(sizes_.vocabulary * row);  // pages that are never written take no memory
    ready_ = std::make_unique<std::atomic<std::uint8_t>[]>(sizes_.vocabulary);
}

// The products of rows of a table, behind their raw values.
void Engine::project(float *rows, size_t count) const {
    if (projected_ == 0) return;
    const size_t hidden = sizes_.hidden, row = table_row();
    std::vector<float> scaled(FILL_ROWS * hidden);
    Linear first = layers_[0].projections.exact;
    first.bias = nullptr;
    for (size_t start = 0; start < count; start += FILL_ROWS) {
        const size_t some = std::min(FILL_ROWS, count - start);
        for (size_t r = 0; r < some; ++r)
            for (size_t i = 0; i < hidden; ++i)
                scaled[r * hidden + i] = rows[(start + r) * row + i] * embedding_norm_.gain[i];
        kernels_.linear(scaled.data(), hidden, first, rows + start * row + hidden, row, some, Epilogue::store);
    }
}

// ---------------------------------------------------------------- the word table

void Engine::fill_row(std::int32_t id, float *to) const {
    const size_t hidden = sizes_.hidden, at = static_cast<size_t>(id) * hidden;
    for (size_t i = 0; i < hidden; ++i)
        to[i] = tokens_.floats != nullptr ? tokens_.floats[at + i]
                                          : static_cast<float>(tokens_.steps[at + i]) * tokens_.scales[id];
}

void Engine::fill_table(std::vector<std::int32_t> ids, size_t threads) {
    const std::lock_guard<std::mutex> hold(fill_);
    const size_t row = table_row();
    std::sort(ids.begin(), ids.end());
    ids.erase(std::unique(ids.begin(), ids.end()), ids.end());
    // Another call may have filled some while this one waited.
    std::erase_if(ids, [&](std::int32_t id) { return ready_[id].load(std::memory_order_acquire) != 0; });
    float *table = table_.get(sizes_.vocabulary * row);
    parallel((ids.size() + FILL_ROWS - 1) / FILL_ROWS, threads, [&](size_t task, size_t) {
        const size_t start = task * FILL_ROWS, some = std::min(FILL_ROWS, ids.size() - start);
        std::vector<float> rows(some * row);
        for (size_t r = 0; r < some; ++r) fill_row(ids[start + r], rows.data() + r * row);
        project(rows.data(), some);
        for (size_t r = 0; r < some; ++r) {
            const std::int32_t id = ids[start + r];
            std::memcpy(table + id * row, rows.data() + r * row, row * sizeof(float));
            ready_[id].store(1, std::memory_order_release);
        }
    });
}

void Engine::embed_row(std::int32_t id, size_t side, size_t position, size_t term_class, float *x,
                       float *projected) const {
    const size_t row = table_row();
    const float *parts[3] = {table_rows_ + static_cast<size_t>(id) * row, position_parts_[side] + position * row,
                             class_parts_ != nullptr ? class_parts_ + term_class * row : nullptr};
    const EmbedSizes sizes{sizes_.hidden, projected != nullptr ? projected_ : 0, sizes_.epsilon};
    kernels_.embed(parts, class_parts_ != nullptr ? 3 : 2, sizes, embedding_norm_.gain, embedding_norm_.shift,
                   gain_sums_, shifts_, x, projected);
}

// The rows of a text: [CLS] first where there is room for it, [SEP] last.
void Engine::embed_text(const Rows &rows, size_t row, size_t side, size_t position, float *x, float *projected) const {
    auto fetch = [&](std::int32_t id) {
        const char *next = reinterpret_cast<const char *>(table_rows_ + static_cast<size_t>(id) * table_row());
        for (size_t i = 0; i < table_row() * sizeof(float); i += 64) __builtin_prefetch(next + i);
    };
    auto put = [&](std::int32_t id, size_t term_class) {
        embed_row(id, side, position, term_class, x, projected);
        ++position;
        x += sizes_.hidden;
        if (projected != nullptr) projected += projected_;
    };
    if (side == 0) put(sizes_.cls, 0);
    for (std::int64_t t = rows.offsets[row]; t < rows.offsets[row + 1]; ++t) {
        if (t + 1 < rows.offsets[row + 1]) fetch(rows.ids[t + 1]);
        put(rows.ids[t], rows.classes != nullptr ? static_cast<size_t>(rows.classes[t]) : 0);
    }
    put(sizes_.sep, 0);
}

// ---------------------------------------------------------------- layers

// Softmax attention of one pair's rows in one layer; `seen` gets the rows of all heads.
void Engine::attend(Workspace &work, const Span &span, const float *projected, float *seen, bool one_way) const {
    const size_t hidden = sizes_.hidden, width = hidden / sizes_.heads, ld = 3 * hidden, rows = span.rows();
    float *scratch = work.scratch.get(attention_scratch(rows, rows, width));
    const size_t apart = one_way ? span.query_rows : 0;
    for (size_t head = 0; head < sizes_.heads; ++head) {
        const float *q = projected + head * width, *k = q + hidden, *v = k + hidden;
        float *out = seen + head * width;
        const size_t first = one_way ? span.query_rows : rows;  // rows that see all
        if (first > 0) kernels_.attention(q, first, k, v, rows, ld, width, out, hidden, scratch);
        if (rows > first)
            kernels_.attention(q + apart * ld, rows - first, k + apart * ld, v + apart * ld, rows - first, ld, width,
                               out + apart * hidden, hidden, scratch);
    }
}

// Layers from..to-1 over the rows of the spans, in place. `given` holds the first layer's projections if any.
void Engine::run_layers(Workspace &work, float *x, const std::vector<Span> &spans, size_t from, size_t to,
                        float *given, bool one_way) const {
    const size_t hidden = sizes_.hidden;
    size_t rows = 0;
    for (const Span &span : spans) rows += span.rows();
    float *seen = work.seen.get(rows * hidden);
    for (size_t number = from; number < to; ++number) {
        const Layer &layer = layers_[number];
        float *projected = given;
        if (number > from || projected == nullptr) {
            projected = work.projected.get(rows * 3 * hidden);
            apply(layer.projections, x, hidden, projected, 3 * hidden, rows, Epilogue::store, work);
        }
        size_t row = 0;
        for (const Span &span : spans) {
            attend(work, span, projected + row * 3 * hidden, seen + row * hidden, one_way);
            row += span.rows();
        }
        feed_forward(layer, x, seen, rows, work);
    }
}

// What follows attention in a layer: x becomes the layer's output.
void Engine::feed_forward(const Layer &layer, float *x, const float *seen, size_t rows, Workspace &work) const {
    const size_t hidden = sizes_.hidden, inner = sizes_.feed_forward;
    apply(layer.attention_out, seen, hidden, x, hidden, rows, Epilogue::add, work);
    kernels_.layer_norm(x, hidden, rows, hidden, layer.attention_norm.gain, layer.attention_norm.shift, sizes_.epsilon);
    const size_t most = layer.feed_in.rounded.packed != nullptr ? std::min(rows, FEED_ROWS) : rows;
    float *fed = work.fed.get(most * inner);
    for (size_t row = 0; row < rows; row += most) {
        const size_t some = std::min(most, rows - row);
        float *part = x + row * hidden;
        apply(layer.feed_in, part, hidden, fed, inner, some, Epilogue::gelu, work);
        apply(layer.feed_out, fed, inner, part, hidden, some, Epilogue::add, work);
    }
    kernels_.layer_norm(x, hidden, rows, hidden, layer.feed_norm.gain, layer.feed_norm.shift, sizes_.epsilon);
}

// The last layer for [CLS] alone, with key and value weights taken into the query and behind the sum, then the head.
void Engine::finish(Workspace &work, const float *x, const std::vector<Span> &spans, float *logits) const {
    const size_t hidden = sizes_.hidden, heads = sizes_.heads, width = hidden / heads, count = spans.size();
    const Layer &layer = layers_.back();
    float *first = work.first.get(count * hidden), *query = work.wanted.get(count * hidden);
    float *keys = work.keys.get(count * heads * hidden), *pooled = work.pooled.get(count * heads * hidden);
    float *seen = work.seen.get(count * hidden);
    size_t row = 0, longest = 0;
    for (size_t i = 0; i < count; ++i) {
        std::memcpy(first + i * hidden, x + row * hidden, hidden * sizeof(float));
        row += spans[i].rows();
        longest = std::max(longest, spans[i].rows());
    }
    kernels_.linear(first, hidden, layer.query, query, hidden, count, Epilogue::store);
    for (size_t head = 0; head < heads; ++head)
        kernels_.linear(query + head * width, hidden, layer.key_back[head], keys + head * hidden, heads * hidden, count,
                        Epilogue::store);
    float *scratch = work.scratch.get(heads * longest);
    row = 0;
    for (size_t i = 0; i < count; ++i) {
        kernels_.pooled_attention(keys + i * heads * hidden, heads, x + row * hidden, spans[i].rows(), hidden, hidden,
                                  pooled + i * heads * hidden, scratch);
        row += spans[i].rows();
    }
    for (size_t head = 0; head < heads; ++head)
        kernels_.linear(pooled + head * hidden, heads * hidden, layer.value[head], seen + head * width, hidden, count,
                        Epilogue::store);
    feed_forward(layer, first, seen, count, work);
    kernels_.linear(first, hidden, pooler_, query, hidden, count, Epilogue::store);
    kernels_.tanh(query, count * hidden);
    for (size_t i = 0; i < count; ++i) logits[i] = kernels_.dot(query + i * hidden, head_, hidden) + head_bias_;
}

// ---------------------------------------------------------------- the schedule

// States of a query at the join, and with an early join the first layer's projections, kept for its next items.
void Engine::prepare_query(const Rows &queries, size_t row, Workspace &work) const {
    if (work.query == row) return;
    const size_t count = text_rows(queries, row, 0);
    float *x = work.query_states.get(count * sizes_.hidden);
    float *projected = projected_ > 0 ? work.query_projected.get(count * projected_) : nullptr;
    embed_text(queries, row, 0, 0, x, projected);
    if (sizes_.join_layer > 0) {
        work.part.assign(1, Span{count, 0});
        run_layers(work, x, work.part, 0, sizes_.join_layer, projected, false);
    }
    work.query = row;
}

size_t Engine::text_rows(const Rows &rows, size_t row, size_t side) const {
    return static_cast<size_t>(rows.offsets[row + 1] - rows.offsets[row]) + (side == 0 ? 2 : 1);
}

// The pairs of one block through all layers.
void Engine::block(const Rows &queries, const Rows &items, const Pair *pairs, size_t count, Workspace &work,
                   float *out) const {
    const size_t hidden = sizes_.hidden, join = sizes_.join_layer, last = sizes_.layers - 1;
    std::vector<Span> &spans = work.spans;
    spans.clear();
    size_t total = 0;
    for (size_t i = 0; i < count; ++i) {
        spans.push_back({text_rows(queries, pairs[i].query, 0), text_rows(items, pairs[i].item, 1)});
        total += spans.back().rows();
    }
    float *x = work.states.get(total * hidden);
    const size_t together = hidden < WIDE ? BLOCK_TOKENS : WIDE_BLOCK_TOKENS;
    for (size_t start = 0; start < count;) {
        size_t stop = start, rows = 0;
        do rows += spans[stop++].rows();
        while (stop < count && rows + spans[stop].rows() <= together);
        std::vector<Span> &part = work.part;
        if (join > 0) {
            // Items first, each on its own; then they take their places behind the query.
            size_t alone = 0;
            for (size_t i = start; i < stop; ++i) alone += spans[i].item_rows;
            float *states = work.alone.get(alone * hidden), *projected = work.given.get(alone * projected_);
            alone = 0;
            for (size_t i = start; i < stop; ++i) {
                const size_t place = sizes_.running ? spans[i].query_rows : sizes_.query_length;
                embed_text(items, pairs[i].item, 1, place, states + alone * hidden, projected + alone * projected_);
                alone += spans[i].item_rows;
            }
            part.clear();
            for (size_t i = start; i < stop; ++i) part.push_back({0, spans[i].item_rows});
            run_layers(work, states, part, 0, join, projected, false);
            float *to = x;
            const float *from = states;
            for (size_t i = start; i < stop; ++i) {
                prepare_query(queries, pairs[i].query, work);
                const size_t query = spans[i].query_rows * hidden, item = spans[i].item_rows * hidden;
                std::memcpy(to, work.query_states.get(0), query * sizeof(float));
                std::memcpy(to + query, from, item * sizeof(float));
                to += query + item;
                from += item;
            }
        } else {
            float *projected = projected_ > 0 ? work.given.get(rows * projected_) : nullptr;
            float *to = x, *behind = projected;
            for (size_t i = start; i < stop; ++i) {
                prepare_query(queries, pairs[i].query, work);
                const size_t query = spans[i].query_rows, item = spans[i].item_rows;
                const size_t place = sizes_.running ? query : sizes_.query_length;
                std::memcpy(to, work.query_states.get(0), query * hidden * sizeof(float));
                if (projected != nullptr)
                    std::memcpy(behind, work.query_projected.get(0), query * projected_ * sizeof(float));
                embed_text(items, pairs[i].item, 1, place, to + query * hidden,
                           projected != nullptr ? behind + query * projected_ : nullptr);
                to += (query + item) * hidden;
                behind += (query + item) * projected_;
            }
        }
        part.assign(spans.begin() + static_cast<std::ptrdiff_t>(start), spans.begin() + static_cast<std::ptrdiff_t>(stop));
        if (last > join) run_layers(work, x, part, join, last, join > 0 ? nullptr : work.given.get(0), sizes_.one_way);
        x += rows * hidden;
        start = stop;
    }
    float *logits = work.logits.get(count);
    finish(work, work.states.get(0), spans, logits);
    for (size_t i = 0; i < count; ++i) out[pairs[i].place] = logits[i];
}

void Engine::check(const Rows &rows, const std::int64_t *chosen, size_t count, size_t side, const char *what) const {
    const std::string name = what;
    std::vector<bool> seen(rows.count, false);
    const size_t limit = side == 0 ? sizes_.query_length - 2 : sizes_.item_length - 1;
    for (size_t i = 0; i < count; ++i) {
        const std::int64_t row = chosen[i];
        if (row < 0 || static_cast<size_t>(row) >= rows.count)
            refuse(name + " row " + std::to_string(row) + " is outside of " + std::to_string(rows.count) + " rows");
        if (seen[static_cast<size_t>(row)]) continue;
        seen[static_cast<size_t>(row)] = true;
        const std::int64_t first = rows.offsets[row], end = rows.offsets[row + 1];
        if (first < 0 || end < first || static_cast<size_t>(end) > rows.tokens)
            refuse(name + " row " + std::to_string(row) + " has offsets " + std::to_string(first) + " to " +
                   std::to_string(end) + " in " + std::to_string(rows.tokens) + " tokens");
        if (static_cast<size_t>(end - first) > limit)
            refuse(name + " row " + std::to_string(row) + " has " + std::to_string(end - first) +
                   " tokens, the layout has room for " + std::to_string(limit));
        for (std::int64_t t = first; t < end; ++t) {
            if (rows.ids[t] < 0 || static_cast<size_t>(rows.ids[t]) >= sizes_.vocabulary)
                refuse(name + " row " + std::to_string(row) + " has the token id " + std::to_string(rows.ids[t]) +
                       ", the vocabulary has " + std::to_string(sizes_.vocabulary));
            if (sizes_.classes > 0 && rows.classes != nullptr &&
                (rows.classes[t] < 0 || static_cast<size_t>(rows.classes[t]) >= sizes_.classes))
                refuse(name + " row " + std::to_string(row) + " has the term class " + std::to_string(rows.classes[t]) +
                       ", the model has " + std::to_string(sizes_.classes));
        }
    }
}

std::vector<std::int32_t> Engine::missing(const Rows &rows, const std::int64_t *chosen, size_t count) const {
    std::vector<std::int32_t> ids;
    for (const std::int32_t id : {sizes_.cls, sizes_.sep})
        if (ready_[id].load(std::memory_order_acquire) == 0) ids.push_back(id);
    for (size_t i = 0; i < count; ++i)
        for (std::int64_t t = rows.offsets[chosen[i]]; t < rows.offsets[chosen[i] + 1]; ++t)
            if (ready_[rows.ids[t]].load(std::memory_order_acquire) == 0) ids.push_back(rows.ids[t]);
    return ids;
}

std::unique_ptr<Workspace> Engine::take_workspace() {
    const std::lock_guard<std::mutex> hold(idle_lock_);
    if (idle_.empty()) return std::make_unique<Workspace>();
    std::unique_ptr<Workspace> work = std::move(idle_.back());
    idle_.pop_back();
    work->query = SIZE_MAX;
    return work;
}

std::vector<Engine::Pair> Engine::ordered(const std::int64_t *query_rows, const std::int64_t *item_rows,
                                          size_t pairs) const {
    std::vector<Pair> order(pairs);
    for (size_t i = 0; i < pairs; ++i)
        order[i] = {static_cast<size_t>(query_rows[i]), static_cast<size_t>(item_rows[i]), i};
    // Pairs of one query stand together: its side is computed once for each thread.
    std::stable_sort(order.begin(), order.end(), [](const Pair &a, const Pair &b) { return a.query < b.query; });
    return order;
}

void Engine::score(const Rows &queries, const std::int64_t *query_rows, const Rows &items,
                   const std::int64_t *item_rows, size_t pairs, size_t threads, float *out) {
    check(queries, query_rows, pairs, 0, "query");
    check(items, item_rows, pairs, 1, "item");
    if (pairs == 0) return;
    std::vector<std::int32_t> ids = missing(queries, query_rows, pairs), more = missing(items, item_rows, pairs);
    ids.insert(ids.end(), more.begin(), more.end());
    if (!ids.empty()) fill_table(std::move(ids), std::max<size_t>(threads, 1));
    std::vector<Pair> order = ordered(query_rows, item_rows, pairs);
    score_blocks(queries, &items, nullptr, order, std::max<size_t>(threads, 1), out);
}

void Engine::join(const Rows &queries, const std::int64_t *query_rows, const States &items,
                  const std::int64_t *item_rows, size_t pairs, size_t threads, float *out) {
    if (state_width() == 0) refuse("the network joins query and item in its first layer: no states can be kept");
    if (sizes_.running) refuse("with running positions the states of an item depend on the query");
    check(queries, query_rows, pairs, 0, "query");
    check(items, item_rows, pairs);
    if (pairs == 0) return;
    std::vector<std::int32_t> ids = missing(queries, query_rows, pairs);
    if (!ids.empty()) fill_table(std::move(ids), 1);
    std::vector<Pair> order = ordered(query_rows, item_rows, pairs);
    score_blocks(queries, nullptr, &items, order, std::max<size_t>(threads, 1), out);
}

void Engine::score_blocks(const Rows &queries, const Rows *items, const States *states, std::vector<Pair> &order,
                          size_t threads, float *out) {
    const size_t pairs = order.size();
    // The last blocks are smaller and smaller, so that no thread waits long for another.
    const size_t least = std::clamp<size_t>(pairs / (4 * threads), 1, LAST_ITEMS);
    std::vector<size_t> starts{0};
    for (size_t i = 0, rows = 0; i < pairs; ++i) {
        const size_t share = (pairs - starts.back()) / (2 * threads);
        const size_t most = threads == 1 ? BLOCK_ITEMS : std::clamp(share, least, BLOCK_ITEMS);
        const size_t item = order[i].item;
        const size_t more = text_rows(queries, order[i].query, 0) +
                            (items != nullptr ? text_rows(*items, item, 1) : state_rows(*states, item));
        if (i > starts.back() && (i - starts.back() >= most || rows + more > MOST_TOKENS)) {
            starts.push_back(i);
            rows = 0;
        }
        rows += more;
    }
    starts.push_back(pairs);
    std::vector<std::unique_ptr<Workspace>> works(std::min(threads, starts.size() - 1));
    for (auto &work : works) work = take_workspace();
    parallel(starts.size() - 1, threads, [&](size_t task, size_t worker) {
        const Pair *first = order.data() + starts[task];
        const size_t count = starts[task + 1] - starts[task];
        if (items != nullptr)
            block(queries, *items, first, count, *works[worker], out);
        else
            join_block(queries, *states, first, count, *works[worker], out);
    });
    const std::lock_guard<std::mutex> hold(idle_lock_);
    for (auto &work : works) idle_.push_back(std::move(work));
}

// ---------------------------------------------------------------- states known ahead

size_t Engine::state_width() const {
    if (sizes_.one_way) return (sizes_.layers - sizes_.join_layer) * sizes_.hidden;
    return sizes_.join_layer > 0 ? sizes_.hidden : 0;
}

void Engine::check(const States &states, const std::int64_t *chosen, size_t count) const {
    if (states.width != state_width())
        refuse("item states are " + std::to_string(states.width) + " wide, those of the model " +
               std::to_string(state_width()));
    for (size_t i = 0; i < count; ++i) {
        const std::int64_t row = chosen[i];
        if (row < 0 || static_cast<size_t>(row) >= states.count)
            refuse("item row " + std::to_string(row) + " is outside of " + std::to_string(states.count) + " rows");
        const std::int64_t first = states.offsets[row], end = states.offsets[row + 1];
        if (first < 0 || end <= first || static_cast<size_t>(end) > states.rows)
            refuse("item row " + std::to_string(row) + " has state offsets " + std::to_string(first) + " to " +
                   std::to_string(end) + " in " + std::to_string(states.rows) + " states");
        if (static_cast<size_t>(end - first) > sizes_.item_length)
            refuse("item row " + std::to_string(row) + " has " + std::to_string(end - first) +
                   " states, the layout has room for " + std::to_string(sizes_.item_length));
    }
}

void Engine::join_block(const Rows &queries, const States &items, const Pair *pairs, size_t count, Workspace &work,
                        float *out) const {
    const size_t hidden = sizes_.hidden, join = sizes_.join_layer, last = sizes_.layers - 1, width = items.width;
    std::vector<Span> &spans = work.spans;
    spans.clear();
    size_t total = 0, states = 0;
    for (size_t i = 0; i < count; ++i) {
        spans.push_back({text_rows(queries, pairs[i].query, 0), state_rows(items, pairs[i].item)});
        total += spans.back().rows();
        states += spans.back().item_rows;
    }
    float *known = work.widened.get(states * width), *query_rows = work.queries.get((total - states) * hidden);
    for (size_t i = 0, row = 0, asked = 0; i < count; ++i) {
        const size_t first = static_cast<size_t>(items.offsets[pairs[i].item]), rows = spans[i].item_rows;
        kernels_.widen(items.values + first * width, rows * width, known + row * width);
        row += rows;
        prepare_query(queries, pairs[i].query, work);
        std::memcpy(query_rows + asked * hidden, work.query_states.get(0), spans[i].query_rows * hidden * sizeof(float));
        asked += spans[i].query_rows;
    }
    if (sizes_.one_way) read_one_way(work, spans, known, query_rows);
    // The rows of both, as they enter the last layer, or the join where titles read the query too.
    float *x = work.states.get(total * hidden), *to = x;
    const float *asked = query_rows, *item = known + (width - hidden);
    for (const Span &span : spans) {
        std::memcpy(to, asked, span.query_rows * hidden * sizeof(float));
        asked += span.query_rows * hidden;
        to += span.query_rows * hidden;
        for (size_t row = 0; row < span.item_rows; ++row, to += hidden, item += width)
            std::memcpy(to, item, hidden * sizeof(float));
    }
    if (!sizes_.one_way && last > join) run_layers(work, x, spans, join, last, nullptr, false);
    float *logits = work.logits.get(count);
    finish(work, x, spans, logits);
    for (size_t i = 0; i < count; ++i) out[pairs[i].place] = logits[i];
}

// Layers from the join up to the last for the rows of queries, which read titles whose states are all known.
void Engine::read_one_way(Workspace &work, const std::vector<Span> &spans, const float *states, float *query_rows) const {
    const size_t hidden = sizes_.hidden, heads = sizes_.heads, width = hidden / heads, ld = 3 * hidden;
    const size_t state = state_width();
    size_t asked = 0, longest = 0;
    for (const Span &span : spans) {
        asked += span.query_rows;
        longest = std::max(longest, span.rows());
    }
    float *own = work.given.get(asked * ld), *seen = work.seen.get(asked * hidden);
    float *projected = work.projected.get(longest * ld), *scratch = work.scratch.get(attention_scratch(longest, longest, width));
    for (size_t number = sizes_.join_layer; number + 1 < sizes_.layers; ++number) {
        const Layer &layer = layers_[number];
        apply(layer.projections, query_rows, hidden, own, ld, asked, Epilogue::store, work);
        const float *from = own, *item = states + (number - sizes_.join_layer) * hidden;
        float *to = seen;
        for (const Span &span : spans) {
            std::memcpy(projected, from, span.query_rows * ld * sizeof(float));
            apply(layer.key_value, item, state, projected + span.query_rows * ld + hidden, ld, span.item_rows,
                  Epilogue::store, work);
            for (size_t head = 0; head < heads; ++head) {
                const float *q = projected + head * width;
                kernels_.attention(q, span.query_rows, q + hidden, q + 2 * hidden, span.rows(), ld, width,
                                   to + head * width, hidden, scratch);
            }
            from += span.query_rows * ld;
            item += span.item_rows * state;
            to += span.query_rows * hidden;
        }
        feed_forward(layer, query_rows, seen, asked, work);
    }
}

// ---------------------------------------------------------------- the choice of kernels

const Kernels *find_kernels(const char *wanted) {
    const std::string name = wanted != nullptr ? wanted : "";
#if defined(__x86_64__) || defined(_M_X64)
    __builtin_cpu_init();
    const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    if ((name.empty() || name == "avx512vnni") && avx512 && __builtin_cpu_supports("avx512vnni"))
        return &avx512vnni_kernels();
    if ((name.empty() || name == "avx512") && avx512) return &avx512_kernels();
    if ((name.empty() || name == "avx2") && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
        __builtin_cpu_supports("f16c"))
        return &avx2_kernels();
#endif
    return name.empty() || name == "portable" ? &portable_kernels() : nullptr;
}

}  // namespace pertinent
