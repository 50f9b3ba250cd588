// The exact schedule of a cross-encoder over token rows: pairs in, one logit a pair out. No Python here.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <map>
#include <memory>
#include <mutex>
#include <new>
#include <string>
#include <vector>

#include "kernels.hpp"

namespace pertinent {

struct Sizes {
    std::size_t vocabulary, hidden, layers, heads, feed_forward, positions, classes, labels;
    std::size_t query_length, item_length;  // of the layout, special tokens included
    bool running;                           // positions of the item go on after those of the query
    std::size_t join_layer;                 // below it query and item do not see each other
    bool one_way;                           // item tokens never see the query
    float epsilon;
    std::int32_t cls, sep;
};

// A float32 array by name; `columns` is 1 for a vector.
struct Weight {
    const float *data;
    std::size_t rows, columns;
};
using Weights = std::map<std::string, Weight>;

// One row a token: float32, or int8 with one scale a row. Not owned: it must outlive the engine.
struct TokenTable {
    const float *floats = nullptr;
    const std::int8_t *steps = nullptr;
    const float *scales = nullptr;
};

// Token ids end to end: row i is ids[offsets[i]..offsets[i + 1]). Classes may be absent.
struct Rows {
    const std::int32_t *ids = nullptr;
    std::size_t tokens = 0;
    const std::int64_t *offsets = nullptr;
    std::size_t count = 0;
    const std::int8_t *classes = nullptr;
};

// What a late join knows of items ahead: half-precision rows end to end, `width` numbers each, a row for each token
// and for [SEP]; item i has rows offsets[i]..offsets[i + 1].
struct States {
    const std::uint16_t *values = nullptr;
    std::size_t rows = 0, width = 0;
    const std::int64_t *offsets = nullptr;
    std::size_t count = 0;
};

class Buffer {
  public:
    // At least `count` floats, aligned to a cache line; what was there before is lost when it grows.
    float *get(std::size_t count) {
        if (count > held_) {
            data_.reset();
            held_ = 0;
            const std::size_t bytes = (count * sizeof(float) + 63) / 64 * 64;
            data_.reset(static_cast<float *>(std::aligned_alloc(64, bytes)));
            if (!data_) throw std::bad_alloc();
            held_ = count;
        }
        return data_.get();
    }

  private:
    struct Free {
        void operator()(float *p) const { std::free(p); }
    };
    std::unique_ptr<float, Free> data_;
    std::size_t held_ = 0;
};

// Rows of one pair that go through the layers: its query block, then its item block.
struct Span {
    std::size_t query_rows, item_rows;
    std::size_t rows() const { return query_rows + item_rows; }
};

struct Workspace;

// A linear layer as it is computed: in float32, or rounded where `rounded.packed` is there.
struct Product {
    Linear exact;
    Linear8 rounded;
};

// Which parts of the network are computed in 8 bits: for each layer its attention, then its feed-forward part; all
// that is missing is computed in float32.
using Rounded = std::vector<bool>;

// Weights [outputs][inputs] in panels of `panel` columns, zeros behind the last.
void pack_panels(const float *weights, std::size_t outputs, std::size_t inputs, std::size_t panel, float *packed);

// Weights [outputs][inputs] rounded to bytes, one scale an output; arrays as `Linear8` wants them.
void pack_bytes(const float *weights, std::size_t outputs, std::size_t inputs, const Kernels &kernels,
                std::int8_t *packed, float *scales, std::int32_t *starts);

class Engine {
  public:
    // Throws std::invalid_argument where weights and sizes do not fit together.
    Engine(const Sizes &sizes, const Weights &weights, const TokenTable &tokens, const Kernels &kernels,
           const Rounded &rounded = {});
    ~Engine();
    Engine(const Engine &) = delete;
    Engine &operator=(const Engine &) = delete;

    // The logit of pair i = (query row query_rows[i], item row item_rows[i]) into out[i]. Throws
    // std::invalid_argument for anything out of range, before anything is read. May be called from several
    // threads at once.
    void score(const Rows &queries, const std::int64_t *query_rows, const Rows &items, const std::int64_t *item_rows,
               std::size_t pairs, std::size_t threads, float *out);

    // The same for items whose states were computed ahead.
    void join(const Rows &queries, const std::int64_t *query_rows, const States &items, const std::int64_t *item_rows,
              std::size_t pairs, std::size_t threads, float *out);

    // Numbers that a state has; 0 where the network joins early.
    std::size_t state_width() const;

    const Kernels &kernels() const { return kernels_; }

  private:
    struct Norm {
        const float *gain, *shift;
    };
    struct Layer {
        Product projections;  // of query, key and value at once; all but the last layer have it
        Product key_value;    // of key and value alone, where titles do not read the query
        Linear query;         // the last layer's
        std::vector<Linear> key_back, value;  // the last layer's, a head each
        Product attention_out, feed_in, feed_out;
        Norm attention_norm, feed_norm;
    };
    struct Pair {
        std::size_t query, item, place;
    };

    float *room(std::size_t count);
    Linear pack(const float *weights, std::size_t outputs, std::size_t inputs, const float *bias);
    Product product(const float *weights, std::size_t outputs, std::size_t inputs, const float *bias, bool rounded);
    void apply(const Product &product, const float *a, std::size_t lda, float *c, std::size_t ldc, std::size_t rows,
               Epilogue epilogue, Workspace &work) const;
    Norm norm(const Weights &weights, const std::string &name);
    void load_layer(const Weights &weights, std::size_t number, bool rounded_attention, bool rounded_feed);
    void load_embeddings(const Weights &weights);
    void project(float *rows, std::size_t count) const;
    std::size_t table_row() const { return sizes_.hidden + projected_; }
    void fill_row(std::int32_t id, float *to) const;
    void fill_table(std::vector<std::int32_t> ids, std::size_t threads);
    std::vector<std::int32_t> missing(const Rows &rows, const std::int64_t *chosen, std::size_t count) const;

    void check(const Rows &rows, const std::int64_t *chosen, std::size_t count, std::size_t side,
               const char *what) const;
    void check(const States &states, const std::int64_t *chosen, std::size_t count) const;
    void score_blocks(const Rows &queries, const Rows *items, const States *states, std::vector<Pair> &order,
                      std::size_t threads, float *out);
    std::vector<Pair> ordered(const std::int64_t *query_rows, const std::int64_t *item_rows, std::size_t pairs) const;
    void join_block(const Rows &queries, const States &items, const Pair *pairs, std::size_t count, Workspace &work,
                    float *out) const;
    void read_one_way(Workspace &work, const std::vector<Span> &spans, const float *states, float *query_rows) const;
    std::size_t text_rows(const Rows &rows, std::size_t row, std::size_t side) const;
    void embed_row(std::int32_t id, std::size_t side, std::size_t position, std::size_t term_class, float *x,
                   float *projected) const;
    void embed_text(const Rows &rows, std::size_t row, std::size_t side, std::size_t position, float *x,
                    float *projected) const;
    void attend(Workspace &work, const Span &span, const float *projected, float *seen, bool one_way) const;
    void run_layers(Workspace &work, float *x, const std::vector<Span> &spans, std::size_t from, std::size_t to,
                    float *given, bool one_way) const;
    void feed_forward(const Layer &layer, float *x, const float *seen, std::size_t rows, Workspace &work) const;
    void finish(Workspace &work, const float *x, const std::vector<Span> &spans, float *logits) const;
    void prepare_query(const Rows &queries, std::size_t row, Workspace &work) const;
    void block(const Rows &queries, const Rows &items, const Pair *pairs, std::size_t count, Workspace &work,
               float *out) const;
    std::unique_ptr<Workspace> take_workspace();

    Sizes sizes_;
    const Kernels &kernels_;
    TokenTable tokens_;
    std::size_t projected_;  // width of the first layer's projections in the word table; 0 with one layer
    std::vector<std::unique_ptr<Buffer>> owned_;
    std::vector<Layer> layers_;
    Linear pooler_;
    const float *head_ = nullptr;  // the classifier's one row, or the difference of its two
    float head_bias_ = 0.0f;
    Norm embedding_norm_;
    const float *gain_sums_ = nullptr, *shifts_ = nullptr;       // of the affine rule
    const float *position_parts_[2] = {}, *class_parts_ = nullptr;  // rows like those of the word table
    std::size_t part_positions_ = 0;
    Buffer table_;
    const float *table_rows_ = nullptr;
    std::unique_ptr<std::atomic<std::uint8_t>[]> ready_;  // which rows of the word table are filled
    std::mutex fill_;
    std::mutex idle_lock_;
    std::vector<std::unique_ptr<Workspace>> idle_;
};

}  // namespace pertinent
