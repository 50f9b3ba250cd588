"""Laws that every network in MODELS, late joins too, keeps on every backend in BACKENDS; new ones join unasked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pertinent.artifact import Artifact, open_artifact, write_artifact, write_json
from pertinent.correlation import spearman
from pertinent.engine.backends import BACKENDS, open_backend
from pertinent.engine.export import write_graph, write_int8_graph
from pertinent.engine.native_backend import NATIVE_GATE_FILE, usable
from pertinent.engine.scorer import Scorer
from pertinent.lexicon.pairs import PairConfig, PairTokenizer
from pertinent.models import MODELS
from pertinent.models.store import load_network, save_network

QUERY = "wireless earbuds"
TITLES = [
    "Wireless Bluetooth Earbuds, noise cancelling",
    "usb cable 2 m",
    "",
    "ＵＳＢ　Kabel für Telefon – größe 3",
    "日本語 無線 イヤホン \U0001f3a7",
    "наушники беспроводные",
    "coffee mug " * 200,
    "coffee mug",
    "coffee mug",
    "[SEP] [CLS] [MASK]",
    "\x00\ud800\u200b",
]
# int8 scales follow the largest value of a batch, so its logits move with the batch: up to so much of how far
# logits lie apart (at least 1), no law.
INT8_BOUND = 0.08
NAMES = sorted(name for name in BACKENDS if name != "cuda")  # it needs a GPU, and has tests of its own
EXACT = [name for name in NAMES if not name.endswith("-int8")]


# A kind of network, and settings that change what it computes.
KINDS: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in sorted(MODELS)),
    ("ei_src", {"join_layer": 1}),
    ("ei_src", {"layers": 3, "join_layer": 1, "one_way": True}),
]


def kind_name(kind: tuple[str, dict[str, Any]]) -> str:
    return "-".join([kind[0], *(f"{key}={value}" for key, value in kind[1].items())])


@pytest.fixture(scope="session", params=KINDS, ids=kind_name)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tiny_pairs: PairTokenizer) -> Any:
    """Network and model folder, with all graph files, of each kind of network."""
    name, settings = request.param
    network = request.getfixturevalue("network_maker")(name, tiny_pairs.vocabulary_size, **settings)
    folder = tmp_path_factory.mktemp(name) / "model"
    with write_artifact(folder, "model", {}) as aside:
        save_network(aside, network, tiny_pairs)
        write_graph(network, aside)
        write_int8_graph(aside)
        parts = (
            [f"layer {n} {part}" for n in range(network.config.layers) for part in ("attention", "feed-forward")]
            if name == "ei_src"
            else []
        )
        write_json(aside / NATIVE_GATE_FILE, {"passed": True, "cheap": parts, "reasons": []})
    return network, open_artifact(folder)


def opened(artifact: Artifact, name: str) -> Scorer:
    """The scorer with a backend; skips where the native engine was not built or does not know the network."""
    if name.startswith("native") and not usable(artifact):
        pytest.skip("the native engine is not built, or does not compute this kind of network")
    return Scorer.load(artifact.path, name, threads=2)


@pytest.fixture(params=NAMES)
def scorer(request: pytest.FixtureRequest, model: Any) -> Scorer:
    return opened(model[1], request.param)


@pytest.fixture(params=EXACT)
def exact(request: pytest.FixtureRequest, model: Any) -> Scorer:
    return opened(model[1], request.param)


def test_score_does_not_depend_on_batch_mates(exact: Scorer) -> None:
    together = exact.logits(QUERY, TITLES)
    alone = np.concatenate([exact.logits(QUERY, [title]) for title in TITLES])
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_permuting_titles_permutes_scores(exact: Scorer) -> None:
    order = np.random.default_rng(0).permutation(len(TITLES))
    permuted = exact.logits(QUERY, [TITLES[i] for i in order])
    np.testing.assert_allclose(permuted, exact.logits(QUERY, TITLES)[order], atol=1e-5)


def test_trimmed_batches_score_as_full_width_ones(exact: Scorer) -> None:
    titles = TITLES[:-1]
    queries = [QUERY, "tea"] * (len(titles) // 2)
    trimmed = exact.backend.forward(exact.pairs.pair(queries, titles, trim=True))
    full = exact.backend.forward(exact.pairs.pair(queries, titles, trim=False))
    assert trimmed.dtype == full.dtype == np.float32
    np.testing.assert_allclose(trimmed, full, atol=1e-5)


def test_int8_moves_with_batch_mates_within_a_bound(model: Any) -> None:
    one, two = (Scorer.load(model[1].path, "onnx-int8", threads=threads) for threads in (1, 2))
    alone = np.concatenate([one.logits(QUERY, [title]) for title in TITLES])
    bound = INT8_BOUND * max(1.0, float(alone.std()))
    order = np.random.default_rng(0).permutation(len(TITLES))
    for scorer in (one, two):
        together = scorer.logits(QUERY, TITLES)
        np.testing.assert_allclose(together, alone, atol=bound)
        permuted = scorer.logits(QUERY, [TITLES[i] for i in order])
        np.testing.assert_allclose(permuted, together[order], atol=bound)
        pairs = [(query, title) for query in (QUERY, "tea pot", "") for title in TITLES]
        np.testing.assert_allclose(scorer.pair_logits(pairs)[: len(TITLES)], alone, atol=bound)


def test_any_text_gets_a_finite_probability(scorer: Scorer) -> None:
    for query in (QUERY, "", "日本語", "x" * 100_000, "\ud800"):
        scores = scorer.score(query, TITLES)
        assert scores.dtype == np.float32
        assert scores.shape == (len(TITLES),)
        assert ((scores >= 0) & (scores <= 1)).all()


def test_empty_and_one(scorer: Scorer) -> None:
    assert scorer.score(QUERY, []).shape == (0,)
    assert scorer.score(QUERY, []).dtype == np.float32
    assert scorer.score(QUERY, ["tea"]).shape == (1,)
    assert scorer.score_pairs([]).shape == (0,)
    assert scorer.rank(QUERY, []) == []


def test_equal_titles_tie_and_keep_their_order(exact: Scorer) -> None:
    logits = exact.logits(QUERY, ["coffee mug"] * 5)
    # Rows of one product of matrices may differ in the last bits where a kernel of ONNX Runtime or of torch ends.
    np.testing.assert_allclose(logits, logits[0], rtol=1e-6, atol=1e-6)
    if not exact.backend.name.startswith("native") and len(set(logits.tolist())) > 1:
        return
    assert len(set(logits.tolist())) == 1
    assert [s.item.item_id for s in exact.rank(QUERY, ["coffee mug"] * 5)] == list("01234")


def test_pairs_score_as_query_with_titles(exact: Scorer) -> None:
    pairs = [(query, title) for query in (QUERY, "tea pot", "") for title in TITLES]
    wanted = np.concatenate([exact.logits(query, TITLES) for query in (QUERY, "tea pot", "")])
    np.testing.assert_allclose(exact.pair_logits(pairs), wanted, atol=1e-5)


def test_every_exact_backend_equals_torch(model: Any, exact: Scorer) -> None:
    torch_logits = Scorer.load(model[1].path, "torch").logits(QUERY, TITLES)
    assert torch_logits.std() > 0.01
    np.testing.assert_allclose(exact.logits(QUERY, TITLES), torch_logits, atol=1e-4)


def test_int8_is_near_float(model: Any) -> None:
    exact, rounded = (Scorer.load(model[1].path, name).logits(QUERY, TITLES) for name in ("onnx", "onnx-int8"))
    assert spearman(exact, rounded) > 0.9


def test_saved_and_loaded_scores_are_equal(model: Any) -> None:
    network, artifact = model
    loaded, pairs = load_network(artifact)
    batch = pairs.pair([QUERY] * len(TITLES), TITLES)
    from pertinent.engine.torch_backend import TorchBackend

    np.testing.assert_array_equal(TorchBackend(network, 1).forward(batch), TorchBackend(loaded, 1).forward(batch))


def test_float16_on_disk_scores_close_and_the_graph_equals_torch_on_it(
    model: Any, tiny_pairs: PairTokenizer, tmp_path: Path
) -> None:
    network, artifact = model
    with write_artifact(tmp_path / "half", "model", {}) as aside:
        save_network(aside, network, tiny_pairs, "float16")
        # The graph knows no weights: one graph serves every stored precision.
        (aside / "graph.onnx").write_bytes(artifact.file("graph.onnx").read_bytes())
    exact = Scorer.load(artifact.path, "torch").logits(QUERY, TITLES)
    names = [name for name in EXACT if name != "native" or usable(artifact)]
    half = {name: Scorer.load(tmp_path / "half", name).logits(QUERY, TITLES) for name in names}
    for name in names:
        np.testing.assert_allclose(half[name], half["torch"], atol=1e-4)
    np.testing.assert_allclose(half["torch"], exact, atol=2e-2)
    assert (half["torch"] != exact).any()


def test_running_positions_score_alike_on_all_exact_backends(model: Any, tiny_tokenizer: Any, tmp_path: Path) -> None:
    network, artifact = model
    pairs = PairTokenizer(tiny_tokenizer, PairConfig(positions="running"))
    with write_artifact(tmp_path / "running", "model", {}) as aside:
        save_network(aside, network, pairs)
        (aside / "graph.onnx").write_bytes(artifact.file("graph.onnx").read_bytes())
    reference = Scorer.load(tmp_path / "running", "torch").logits(QUERY, TITLES)
    for name in EXACT:
        if name == "torch" or (name == "native" and not usable(artifact)):
            continue
        scorer = Scorer.load(tmp_path / "running", name)
        np.testing.assert_allclose(scorer.logits(QUERY, TITLES), reference, atol=1e-4)
        alone = np.concatenate([scorer.logits(QUERY, [title]) for title in TITLES])
        np.testing.assert_allclose(alone, reference, atol=1e-4)


def test_large_weights_are_stored_once(model: Any) -> None:
    _, artifact = model
    files = artifact.manifest["files"]
    assert files["graph.onnx"]["bytes"] < 40_000
    assert b".py" not in artifact.file("graph.onnx").read_bytes()  # no names of source files


def test_every_backend_opens_by_name(model: Any) -> None:
    artifact: Artifact = model[1]
    for name in NAMES:
        if name.startswith("native") and not usable(artifact):
            continue
        backend = open_backend(artifact, name, threads=1)
        assert backend.name == name
        assert backend.workers >= 1
