// The engine under the address and undefined behavior sanitizers: networks of odd sizes, texts of any length,
// several threads, and rows that must be refused. Exits with 1 at the first difference. `make sanitize` runs it.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <stdexcept>
#include <thread>

#include "engine.hpp"

using namespace pertinent;

namespace {

std::mt19937 generator(7);

int below(int n) { return static_cast<int>(generator() % static_cast<unsigned>(n)); }

void expect(bool holds, const char *what) {
    if (holds) return;
    std::fprintf(stderr, "failed: %s\n", what);
    std::exit(1);
}

struct Network {
    Sizes sizes{};
    std::map<std::string, std::vector<float>> arrays;
    std::vector<float> tokens;
    Weights weights;

    void add(const std::string &name, std::size_t rows, std::size_t columns) {
        std::normal_distribution<float> normal(0.0f, 0.3f);
        std::vector<float> values(rows * columns);
        for (float &value : values) value = normal(generator);
        const float *data = (arrays[name] = std::move(values)).data();
        weights[name] = {data, rows, columns};
    }

    explicit Network(const Sizes &wanted) : sizes(wanted) {
        const std::size_t h = sizes.hidden, f = sizes.feed_forward;
        for (std::size_t layer = 0; layer < sizes.layers; ++layer) {
            const std::string at = "encoder.layers." + std::to_string(layer) + ".";
            for (const char *name : {"query", "key", "value", "attention_out"}) add(at + name + ".weight", h, h), add(at + name + ".bias", h, 1);
            add(at + "feed_in.weight", f, h), add(at + "feed_in.bias", f, 1);
            add(at + "feed_out.weight", h, f), add(at + "feed_out.bias", h, 1);
            for (const char *name : {"attention_norm", "feed_norm"}) add(at + name + ".weight", h, 1), add(at + name + ".bias", h, 1);
        }
        add("pooler.weight", h, h), add("pooler.bias", h, 1);
        add("classifier.weight", sizes.labels, h), add("classifier.bias", sizes.labels, 1);
        add("embeddings.norm.weight", h, 1), add("embeddings.norm.bias", h, 1);
        add("embeddings.position.weight", sizes.positions, h), add("embeddings.segment.weight", 2, h);
        if (sizes.classes > 0) add("embeddings.term_class.weight", sizes.classes, h);
        std::normal_distribution<float> normal;
        tokens.resize(sizes.vocabulary * h);
        for (float &value : tokens) value = normal(generator);
    }
};

struct Texts {
    std::vector<std::int32_t> ids;
    std::vector<std::int64_t> offsets{0};
    std::vector<std::int8_t> classes;

    Texts(int count, int longest, int vocabulary) {
        for (int row = 0; row < count; ++row) {
            for (int length = below(longest + 1); length > 0; --length) {
                ids.push_back(below(vocabulary));
                classes.push_back(static_cast<std::int8_t>(below(7)));
            }
            offsets.push_back(static_cast<std::int64_t>(ids.size()));
        }
    }
    Rows rows() const { return {ids.data(), ids.size(), offsets.data(), offsets.size() - 1, classes.data()}; }
};

std::vector<float> scores(Engine &engine, const Texts &queries, const Texts &items, const std::vector<std::int64_t> &q,
                          const std::vector<std::int64_t> &i, std::size_t threads) {
    std::vector<float> out(q.size());
    engine.score(queries.rows(), q.data(), items.rows(), i.data(), q.size(), threads, out.data());
    return out;
}

// States as an index keeps them: half-precision numbers up to 2, a row for each token and for [SEP].
struct Known {
    std::vector<std::uint16_t> values;
    std::vector<std::int64_t> offsets{0};
    std::size_t width;

    Known(int count, int longest, std::size_t of_width) : width(of_width) {
        for (int row = 0; row < count; ++row) offsets.push_back(offsets.back() + 1 + below(longest));
        values.resize(static_cast<std::size_t>(offsets.back()) * width);
        for (std::uint16_t &value : values) value = static_cast<std::uint16_t>(below(0x4000) | (below(2) << 15));
    }
    States states() const { return {values.data(), values.size() / width, width, offsets.data(), offsets.size() - 1}; }
};

std::vector<float> joined(Engine &engine, const Texts &queries, const Known &items, const std::vector<std::int64_t> &q,
                          const std::vector<std::int64_t> &i, std::size_t threads) {
    std::vector<float> out(q.size());
    engine.join(queries.rows(), q.data(), items.states(), i.data(), q.size(), threads, out.data());
    return out;
}

Rounded drawn_parts(std::size_t layers) {
    Rounded parts;
    for (std::size_t part = 0; part < 2 * layers; ++part) parts.push_back(below(3) != 0);
    return parts;
}

Sizes drawn_sizes() {
    Sizes s{};
    s.heads = 1 + static_cast<std::size_t>(below(4));
    s.hidden = s.heads * (1 + static_cast<std::size_t>(below(24)));
    s.layers = 1 + static_cast<std::size_t>(below(4));
    s.feed_forward = 1 + static_cast<std::size_t>(below(70));
    s.vocabulary = 50;
    s.classes = below(2) ? 7 : 0;
    s.labels = 1 + static_cast<std::size_t>(below(2));
    s.query_length = 3 + static_cast<std::size_t>(below(14));
    s.item_length = 2 + static_cast<std::size_t>(below(40));
    s.positions = s.query_length + s.item_length + static_cast<std::size_t>(below(3));
    s.running = below(2) != 0;
    s.join_layer = static_cast<std::size_t>(below(static_cast<int>(s.layers)));
    s.one_way = below(2) != 0;
    s.epsilon = 1e-6f;
    s.cls = below(50), s.sep = below(50);
    return s;
}

// Every instruction set gives the same scores to rounding, and the same bits for any number of threads. Where products
// are rounded to 8 bits, a last bit may turn the rounding of a number.
template <class Run>
void check_scores(const Network &network, const Rounded &parts, const Run &run) {
    std::vector<float> reference;
    const float near = parts.empty() ? 1e-3f : 0.2f;
    for (const char *name : {"portable", "avx2", "avx512", "avx512vnni"}) {
        const Kernels *kernels = find_kernels(name);
        if (kernels == nullptr) continue;
        TokenTable table;
        table.floats = network.tokens.data();
        Engine engine(network.sizes, network.weights, table, *kernels, parts);
        const std::vector<float> found = run(engine, 1);
        if (reference.empty()) reference = found;
        for (std::size_t pair = 0; pair < found.size(); ++pair) {
            expect(std::isfinite(found[pair]), "a score is finite");
            expect(std::fabs(found[pair] - reference[pair]) < near * (1.0f + std::fabs(reference[pair])), "instruction sets agree");
        }
        std::vector<std::thread> callers;
        for (std::size_t threads = 1; threads < 5; ++threads)
            callers.emplace_back([&, threads] { expect(run(engine, threads) == found, "threads agree"); });
        for (std::thread &caller : callers) caller.join();
    }
}

void check_network(const Network &network) {
    const Sizes &s = network.sizes;
    const Texts queries(4, static_cast<int>(s.query_length) - 2, 50), items(30, static_cast<int>(s.item_length) - 1, 50);
    std::vector<std::int64_t> q, i;
    for (int pair = below(60); pair > 0; --pair) q.push_back(below(4)), i.push_back(below(30));
    const Rounded parts = drawn_parts(s.layers);
    for (const Rounded &some : {Rounded(), parts})
        check_scores(network, some, [&](Engine &engine, std::size_t threads) { return scores(engine, queries, items, q, i, threads); });
    TokenTable table;
    table.floats = network.tokens.data();
    const std::size_t width = Engine(s, network.weights, table, *find_kernels("portable")).state_width();
    if (width == 0 || s.running) return;
    const Known known(30, static_cast<int>(s.item_length), width);
    for (const Rounded &some : {Rounded(), parts})
        check_scores(network, some, [&](Engine &engine, std::size_t threads) { return joined(engine, queries, known, q, i, threads); });
}

// The same for states: widths, offsets and row numbers that are not those of the arrays.
int check_wrong_states(const Network &network) {
    TokenTable table;
    table.floats = network.tokens.data();
    Engine engine(network.sizes, network.weights, table, *find_kernels(nullptr), drawn_parts(network.sizes.layers));
    const std::size_t width = engine.state_width();
    int refused = 0;
    for (int round = 0; round < 300; ++round) {
        const Texts queries(3, 1, 50);
        Known items(3, 12, width == 0 ? 5 : width);
        if (below(4) == 0) items.width += 1;
        if (below(2)) items.offsets[static_cast<std::size_t>(below(4))] = below(100) - 50;
        std::vector<std::int64_t> q, i;
        for (int pair = 0; pair < 5; ++pair) q.push_back(below(3)), i.push_back(below(40) == 0 ? below(5) - 1 : below(3));
        try {
            joined(engine, queries, items, q, i, 2);
        } catch (const std::invalid_argument &) {
            ++refused;
        }
    }
    expect(refused > 50, "wrong states are refused");
    return width == 0 || network.sizes.running ? 0 : 300 - refused;
}

// Whatever the rows hold, nothing outside of them is read: the sanitizer sees to that.
void check_wrong_rows(const Network &network) {
    TokenTable table;
    table.floats = network.tokens.data();
    Engine engine(network.sizes, network.weights, table, *find_kernels(nullptr));
    int refused = 0;
    for (int round = 0; round < 300; ++round) {
        Texts queries(3, 8, 50), items(3, 12, 50);
        Texts &broken = below(2) ? queries : items;
        if (!broken.ids.empty() && below(2)) broken.ids[static_cast<std::size_t>(below(static_cast<int>(broken.ids.size())))] = below(200) - 100;
        if (!broken.classes.empty() && below(2)) broken.classes[0] = static_cast<std::int8_t>(below(256) - 128);
        if (below(2)) broken.offsets[static_cast<std::size_t>(below(4))] = below(100) - 50;
        std::vector<std::int64_t> q, i;
        for (int pair = 0; pair < 5; ++pair) q.push_back(below(5) - 1), i.push_back(below(5) - 1);
        try {
            scores(engine, queries, items, q, i, 2);
        } catch (const std::invalid_argument &) {
            ++refused;
        }
    }
    expect(refused > 100, "wrong rows are refused");
}

}  // namespace

int main() {
    int joins = 0;
    for (int round = 0; round < 40; ++round) {
        const Network network(drawn_sizes());
        check_network(network);
        if (round % 10 == 0) check_wrong_rows(network);
        if (round % 4 == 0) joins += check_wrong_states(network);
    }
    expect(joins > 50, "right states are joined");
    std::puts("40 networks, in float32 and in 8 bits: scores agree, wrong rows and states are refused");
    return 0;
}
