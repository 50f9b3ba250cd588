"""The native engine as a whole: equal to torch, the same bits in any company, no wrong input read."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pertinent.artifact import Artifact
from pertinent.engine import native_backend
from pertinent.engine.arrays import Ragged
from pertinent.engine.late import item_states, join_logits
from pertinent.engine.native_backend import (
    NATIVE_GATE_FILE,
    NativeBackend,
    NativeInt8Backend,
    native_module,
    native_parts,
)
from pertinent.engine.torch_backend import TorchBackend
from pertinent.errors import ArtifactError, ConfigError, DataError
from pertinent.lexicon.pairs import PairConfig, PairTokenizer
from pertinent.models.store import load_pairs, model_settings
from pertinent.records import TokenRows

native: Any = native_module()
pytestmark = pytest.mark.skipif(native is None, reason="the native engine is not built")
SETS = native.instructions() if native is not None else []

NETWORKS = {
    "one label": {"labels": 1},
    "term classes": {"term_classes": True},
    "one layer": {"layers": 1},
    "four layers, odd sizes": {"layers": 4, "hidden_size": 36, "heads": 3, "feed_forward_size": 50},
    "one head": {"hidden_size": 20, "heads": 1},
    "join in the last layer": {"layers": 3, "join_layer": 2},
    "join in layer 1": {"layers": 3, "join_layer": 1, "term_classes": True},
    "one way": {"layers": 3, "one_way": True},
    "one way, joined late": {"layers": 4, "join_layer": 1, "one_way": True},
}


def token_rows(seed: int, count: int, longest: int, vocabulary: int, classes: bool = True) -> TokenRows:
    random = np.random.default_rng(seed)
    lengths = random.integers(0, longest + 1, count)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    ids = random.integers(0, vocabulary, offsets[-1]).astype(np.int32)
    given = random.integers(0, 7, offsets[-1]).astype(np.int8) if classes else None
    return TokenRows(ids, offsets, np.zeros(count, np.bool_), given)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, network_maker: Any, artifact_maker: Any, tiny_tokenizer: Any) -> Any:
    """Model folders by network and positions, each made once."""
    known: dict[tuple[str, str], Artifact] = {}

    def make(name: str, positions: Any = "block") -> Artifact:
        if (name, positions) not in known:
            pairs = PairTokenizer(tiny_tokenizer, PairConfig(positions=positions))
            network = network_maker("ei_src", pairs.vocabulary_size, **NETWORKS[name])
            folder = tmp_path_factory.mktemp("native") / "model"
            known[name, positions] = artifact_maker(folder, network, pairs, graph=False)
        return known[name, positions]

    return make


@pytest.fixture(scope="module")
def backend(made: Any) -> NativeBackend:
    return NativeBackend.open(made("term classes"), 2)


@pytest.mark.parametrize("instructions", SETS)
@pytest.mark.parametrize("positions", ["block", "running"])
@pytest.mark.parametrize("name", NETWORKS)
def test_scores_equal_those_of_torch(name: str, positions: str, instructions: str, made: Any) -> None:
    artifact = made(name, positions)
    pairs = load_pairs(artifact)
    queries, items = token_rows(0, 5, 14, pairs.vocabulary_size), token_rows(1, 40, 35, pairs.vocabulary_size)
    query_rows = np.random.default_rng(2).integers(0, 5, 60)
    item_rows = np.random.default_rng(3).integers(0, 40, 60)
    found = NativeBackend.open(artifact, 2, instructions).forward_rows(queries, query_rows, items, item_rows)
    batch = pairs.assemble(queries, query_rows, items, item_rows)
    wanted = TorchBackend.open(artifact, 1).forward(batch)
    assert wanted.std() > 0.01
    np.testing.assert_allclose(found, wanted, atol=1e-4)
    np.testing.assert_array_equal(NativeBackend.open(artifact, 1, instructions).forward(batch), found)


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("instructions", SETS)
def test_a_score_is_the_same_bits_for_any_threads_order_and_company(instructions: str, int8: bool, made: Any) -> None:
    artifact = made("term classes")
    queries, items = token_rows(0, 2, 14, 40), token_rows(1, 150, 35, 40)
    backend = rounded(artifact, 3, instructions) if int8 else NativeBackend.open(artifact, 3, instructions)
    places = np.arange(150)
    all_at_once = backend.forward_rows(queries, places % 2, items, places)
    order = np.random.default_rng(0).permutation(150)
    np.testing.assert_array_equal(backend.forward_rows(queries, order % 2, items, order), all_at_once[order])
    for threads in (1, 2, 7):
        some = places[:: threads + 1]
        found = backend.forward_rows(queries, some % 2, items, some, threads=threads)
        np.testing.assert_array_equal(found, all_at_once[some])


def rounded(artifact: Artifact, threads: int = 2, instructions: str | None = None) -> NativeInt8Backend:
    return NativeInt8Backend.open_rounded(artifact, threads, native_parts(artifact), instructions)


@pytest.mark.parametrize("instructions", SETS)
@pytest.mark.parametrize("name", NETWORKS)
def test_int8_is_near_float_on_every_instruction_set(name: str, instructions: str, made: Any) -> None:
    artifact = made(name)
    queries, items = token_rows(0, 5, 14, 40), token_rows(1, 40, 35, 40)
    random = np.random.default_rng(2)
    query_rows, item_rows = random.integers(0, 5, 60), random.integers(0, 40, 60)
    exact = NativeBackend.open(artifact, 2).forward_rows(queries, query_rows, items, item_rows)
    found = rounded(artifact, 2, instructions).forward_rows(queries, query_rows, items, item_rows)
    assert (found != exact).any()
    assert np.corrcoef(found, exact)[0, 1] > 0.99
    np.testing.assert_allclose(found, exact, atol=0.6 * exact.std())
    portable = rounded(artifact, 2, SETS[0]).forward_rows(queries, query_rows, items, item_rows)
    np.testing.assert_allclose(found, portable, atol=0.1 * exact.std())  # a last bit may turn a rounding


def test_each_part_of_a_network_can_stay_float32(made: Any) -> None:
    artifact = made("join in the last layer")
    queries, items, places = token_rows(0, 1, 14, 40), token_rows(1, 40, 35, 40), np.arange(40)

    def scores(parts: list[str]) -> Any:
        backend = NativeInt8Backend.open_rounded(artifact, 1, parts)
        return backend.forward_rows(queries, 0 * places, items, places)

    parts = native_parts(artifact)
    assert parts == [f"layer {n} {part}" for n in range(3) for part in ("attention", "feed-forward")]
    exact = NativeBackend.open(artifact, 1).forward_rows(queries, 0 * places, items, places)
    np.testing.assert_array_equal(scores([]), exact)
    assert len({scores([part]).tobytes() for part in parts} | {exact.tobytes()}) == 7  # each changes something
    with pytest.raises(ArtifactError, match="no part 'layer 3 attention'"):
        scores(["layer 3 attention"])


def test_int8_opens_only_what_has_passed_its_gate(
    tiny_network: Any, tiny_pairs: Any, artifact_maker: Any, tmp_path: Any
) -> None:
    artifact = artifact_maker(tmp_path / "model", tiny_network, tiny_pairs, graph=False)
    with pytest.raises(ArtifactError, match=r"has no native_int8\.json; run: pertinent export "):
        NativeInt8Backend.open(artifact, 1)
    queries, items, places = token_rows(0, 1, 14, 40), token_rows(1, 20, 35, 40), np.arange(20)
    for content, words in (
        ({"passed": False, "cheap": [], "reasons": ["too harmful"]}, r"did not pass the gate \(too harmful\)"),
        ({"passed": True, "cheap": ["head"], "reasons": []}, "no part 'head'"),
        ({"passed": True}, "not the outcome of a gate"),
        ([], "not the outcome of a gate"),
    ):
        (artifact.path / NATIVE_GATE_FILE).write_text(json.dumps(content))
        made = replace(
            artifact, manifest={**artifact.manifest, "files": {**artifact.manifest["files"], NATIVE_GATE_FILE: {}}}
        )
        with pytest.raises(ArtifactError, match=words):
            NativeInt8Backend.open(made, 1)
    passed = {"passed": True, "cheap": ["layer 0 attention"], "reasons": []}
    (artifact.path / NATIVE_GATE_FILE).write_text(json.dumps(passed))
    backend = NativeInt8Backend.open(made, 1)
    assert backend.name == "native-int8"
    wanted = NativeInt8Backend.open_rounded(artifact, 1, ["layer 0 attention"])
    arguments = (queries, 0 * places, items, places)
    np.testing.assert_array_equal(backend.forward_rows(*arguments), wanted.forward_rows(*arguments))


@pytest.mark.parametrize("name", ["join in the last layer", "join in layer 1", "one way", "one way, joined late"])
def test_int8_scores_from_states_equal_those_from_tokens(name: str, made: Any) -> None:
    artifact = made(name)
    pairs = load_pairs(artifact)
    queries, items = token_rows(0, 5, 14, pairs.vocabulary_size), token_rows(1, 40, 35, pairs.vocabulary_size)
    random = np.random.default_rng(2)
    query_rows, item_rows = random.integers(0, 5, 60), random.integers(0, 40, 60)
    states = item_states(TorchBackend.open(artifact, 1), pairs, items)
    backend = rounded(artifact)
    found = backend.join_rows(queries, query_rows, states, item_rows)
    wanted = NativeBackend.open(artifact, 1).join_rows(queries, query_rows, states, item_rows)
    assert np.corrcoef(found, wanted)[0, 1] > 0.99
    for threads in (1, 3):
        again = backend.join_rows(queries, query_rows, states, item_rows, threads=threads)
        np.testing.assert_array_equal(again, found)


JOINED = [name for name in NETWORKS if name.startswith(("join", "one way"))]


@pytest.mark.parametrize("instructions", SETS)
@pytest.mark.parametrize("name", JOINED)
def test_scores_from_states_known_ahead_equal_those_from_tokens(name: str, instructions: str, made: Any) -> None:
    artifact = made(name)
    pairs = load_pairs(artifact)
    queries, items = token_rows(0, 5, 14, pairs.vocabulary_size), token_rows(1, 40, 35, pairs.vocabulary_size)
    random = np.random.default_rng(2)
    query_rows, item_rows = random.integers(0, 5, 60), random.integers(0, 40, 60)
    states = item_states(TorchBackend.open(artifact, 1), pairs, items)
    backend = NativeBackend.open(artifact, 2, instructions)
    assert states.values.shape[1] == backend.state_width
    found = backend.join_rows(queries, query_rows, states, item_rows)
    late = TorchBackend.open(artifact, 1)
    for row in range(5):
        one, asked = queries.take(np.array([row])), query_rows == row
        wanted = join_logits(late, pairs, one, states, item_rows[asked])
        np.testing.assert_allclose(found[asked], wanted, atol=1e-4)
    # From tokens the same, but for the half precision that states are kept in.
    np.testing.assert_allclose(found, backend.forward_rows(queries, query_rows, items, item_rows), atol=2e-2)
    np.testing.assert_array_equal(backend.join_rows(queries, query_rows, states, item_rows, threads=1), found)
    for wrong in (40, -1):
        with pytest.raises(DataError, match="outside of 40 rows"):
            backend.join_rows(queries, query_rows[:1], states, np.array([wrong]))
    with pytest.raises(DataError, match="wide"):
        backend.join_rows(queries, query_rows, replace(states, values=states.values[:, :-1]), item_rows)
    with pytest.raises(DataError, match="state offsets"):
        backend.join_rows(queries, query_rows, replace(states, values=states.values[:9]), item_rows)


def test_an_early_join_has_no_states(made: Any) -> None:
    backend = NativeBackend.open(made("one label"), 1)
    rows, zero = token_rows(0, 1, 5, 40), np.zeros(1, np.int64)
    states = Ragged(np.zeros((3, 32), np.float16), np.array([0, 3]))
    assert backend.state_width == 0
    with pytest.raises(DataError, match="joins query and item in its first layer"):
        backend.join_rows(rows, zero, states, zero)


def test_calls_from_several_threads_agree(made: Any) -> None:
    backend = NativeBackend.open(made("one label"), 2)
    queries, items = token_rows(0, 1, 14, 40), token_rows(1, 60, 35, 40)
    places, zeros = np.arange(60), np.zeros(60, np.int64)
    found: list[Any] = []
    threads = [
        threading.Thread(target=lambda: found.append(backend.forward_rows(queries, zeros, items, places)))
        for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 6
    for other in found[1:]:
        np.testing.assert_array_equal(other, found[0])


def test_no_pairs_give_no_scores(made: Any) -> None:
    backend = NativeBackend.open(made("one label"), 2)
    nothing = np.zeros(0, np.int64)
    found = backend.forward_rows(token_rows(0, 0, 1, 40), nothing, token_rows(0, 0, 1, 40), nothing)
    assert found.shape == (0,) and found.dtype == np.float32


def test_stored_int8_and_float16_weights_score_as_in_torch(
    tiny_network: Any, tiny_pairs: Any, artifact_maker: Any, tmp_path: Any
) -> None:
    queries, items, places = token_rows(0, 1, 14, 40), token_rows(1, 20, 35, 40), np.arange(20)
    for dtype in ("int8", "float16"):
        artifact = artifact_maker(tmp_path / dtype, tiny_network, tiny_pairs, dtype, graph=False)
        batch = load_pairs(artifact).assemble(queries, 0 * places, items, places)
        found = NativeBackend.open(artifact, 1).forward_rows(queries, 0 * places, items, places)
        np.testing.assert_allclose(found, TorchBackend.open(artifact, 1).forward(batch), atol=1e-4)


BROKEN = {
    "an id beyond the vocabulary": (lambda rows: replace(rows, ids=rows.ids + 1_000_000), "token id"),
    "a negative id": (lambda rows: replace(rows, ids=rows.ids - 1_000), "token id -"),
    "a class beyond the model's": (lambda rows: replace(rows, term_classes=rows.term_classes + 7), "term class"),
    "a negative class": (lambda rows: replace(rows, term_classes=rows.term_classes - 9), "term class -"),
    "offsets beyond the tokens": (lambda rows: replace(rows, offsets=rows.offsets + 10_000), "offsets"),
    "offsets before the tokens": (lambda rows: replace(rows, offsets=rows.offsets - 10_000), "offsets -"),
    "offsets that fall": (lambda rows: replace(rows, offsets=rows.offsets[::-1].copy()), "offsets"),
    "a text longer than the layout": (lambda rows: token_rows(9, 9, 3_000, 40), "has room for"),
    "fewer classes than tokens": (lambda rows: replace(rows, term_classes=rows.term_classes[:-1]), "term class"),
    "no offsets": (lambda rows: replace(rows, offsets=rows.offsets[:0]), "offsets"),
}


@pytest.mark.parametrize("name", BROKEN)
@pytest.mark.parametrize("side", ["query", "item"])
def test_wrong_rows_are_refused_before_anything_is_read(side: str, name: str, backend: NativeBackend) -> None:
    rows, places = token_rows(4, 9, 12, 40), np.arange(9)
    break_it, said = BROKEN[name]
    queries, items = (break_it(rows), rows) if side == "query" else (rows, break_it(rows))
    with pytest.raises(DataError, match=said):
        backend.forward_rows(queries, places, items, places)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(data=st.data())
def test_any_arrays_are_scored_or_refused(data: Any, backend: NativeBackend) -> None:
    whole = st.integers(-3, 60)

    def rows() -> TokenRows:
        ids = np.array(data.draw(st.lists(whole, max_size=30)), np.int32)
        classes = np.array(data.draw(st.lists(st.integers(-2, 8), min_size=len(ids), max_size=len(ids))), np.int8)
        offsets = np.array(data.draw(st.lists(st.integers(-5, 40), min_size=1, max_size=6)), np.int64)
        return TokenRows(ids, np.sort(offsets), np.zeros(len(offsets) - 1, np.bool_), classes)

    count = data.draw(st.integers(0, 6))
    chosen = [np.array(data.draw(st.lists(whole, min_size=count, max_size=count)), np.int64) for _ in range(2)]
    try:
        found = backend.forward_rows(rows(), chosen[0], rows(), chosen[1])
    except DataError:
        return
    assert found.shape == (count,) and np.isfinite(found).all()


def test_row_numbers_of_different_counts_are_refused(made: Any) -> None:
    backend = NativeBackend.open(made("one label"), 1)
    rows = token_rows(0, 3, 5, 40)
    with pytest.raises(DataError, match="one item row for each query row"):
        backend.forward_rows(rows, np.arange(3), rows, np.arange(2))
    for wrong in (np.array([3]), np.array([-1])):
        with pytest.raises(DataError, match="outside of 3 rows"):
            backend.forward_rows(rows, wrong, rows, np.array([0]))


def test_instructions_that_are_not_there_are_refused(made: Any) -> None:
    with pytest.raises(ArtifactError, match="instructions"):
        NativeBackend.open(made("one label"), 1, "quantum")
    assert NativeBackend.open(made("one label"), 1).instructions == SETS[-1]


def test_weights_of_another_shape_are_refused(
    tiny_network: Any, tiny_pairs: Any, artifact_maker: Any, tmp_path: Any
) -> None:
    artifact = artifact_maker(tmp_path / "model", tiny_network, tiny_pairs, graph=False)
    path = tmp_path / "model" / "model.json"
    for field, wrong in (("layers", 3), ("feed_forward_size", 7), ("heads", 5), ("max_positions", 3), ("labels", 1)):
        text = path.read_text()
        settings_of = artifact.json("model.json")
        settings_of["network"][field] = wrong
        path.write_text(json.dumps(settings_of))
        with pytest.raises(ArtifactError, match="does not fit"):
            NativeBackend.open(artifact, 1)
        path.write_text(text)


@pytest.mark.parametrize("what", ["weight", "rows", "int8 rows"])
@pytest.mark.parametrize("change", [lambda a: a.astype(np.float64), np.asfortranarray, lambda a: a.tolist()])
def test_arrays_that_would_have_to_be_copied_are_refused(
    what: str, change: Any, made: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights, rows, scales = native_backend._weights(made("one label"))
    sizes = native_backend._sizes(model_settings(made("one label")), weights, rows)
    if what == "weight":
        name = next(name for name, weight in weights.items() if weight.ndim == 2 and min(weight.shape) > 1)
        weights[name] = change(weights[name])
    elif what == "rows":
        rows = change(rows)
    else:
        rows, scales = change(rows.astype(np.int8)), np.ones(len(rows), np.float32)
    monkeypatch.setattr(native_backend, "_weights", lambda artifact: (weights, rows, scales))
    monkeypatch.setattr(native_backend, "_sizes", lambda *_: sizes)
    with pytest.raises(ArtifactError, match="C order"):
        NativeBackend.open(made("one label"), 1)


def test_other_networks_are_refused_with_what_to_use(
    network_maker: Any, tiny_pairs: Any, artifact_maker: Any, tmp_path: Any
) -> None:
    artifact = artifact_maker(tmp_path / "towers", network_maker("sbert", 60), tiny_pairs, graph=False)
    with pytest.raises(ConfigError, match="computes ei_src, not sbert; score with the backend 'onnx'"):
        NativeBackend.open(artifact, 1)
