"""The packed schedule for GPUs: equal to torch in float32 wherever it runs, near it in bfloat16 on a GPU."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from pertinent.artifact import Artifact
from pertinent.engine.backends import open_backend
from pertinent.engine.cuda_backend import CudaBackend, packed_pairs, rounded
from pertinent.engine.torch_backend import TorchBackend
from pertinent.errors import ConfigError
from pertinent.lexicon.pairs import PairConfig, PairTokenizer
from pertinent.models.packed import PackedEiSRC, Shape
from pertinent.records import TokenRows

NETWORKS = {
    "one label": {"labels": 1},
    "term classes": {"term_classes": True},
    "one layer": {"layers": 1},
    "four layers": {"layers": 4},
}


def token_rows(seed: int, count: int, longest: int, vocabulary: int) -> TokenRows:
    random = np.random.default_rng(seed)
    lengths = random.integers(0, longest + 1, count)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    ids = random.integers(0, vocabulary, offsets[-1]).astype(np.int32)
    return TokenRows(ids, offsets, np.zeros(count, np.bool_), random.integers(0, 7, offsets[-1]).astype(np.int8))


@pytest.mark.parametrize("positions", ["block", "running"])
@pytest.mark.parametrize("name", NETWORKS)
def test_scores_equal_those_of_torch(name: str, positions: Any, network_maker: Any, tiny_tokenizer: Any) -> None:
    pairs = PairTokenizer(tiny_tokenizer, PairConfig(positions=positions))
    network = network_maker("ei_src", pairs.vocabulary_size, **NETWORKS[name])
    queries, items = token_rows(0, 5, 14, pairs.vocabulary_size), token_rows(1, 40, 35, pairs.vocabulary_size)
    random = np.random.default_rng(2)
    query_rows, item_rows = random.integers(0, 5, 1_500), random.integers(0, 40, 1_500)
    wanted = TorchBackend(network, 1).forward(pairs.assemble(queries, query_rows, items, item_rows))
    backend = CudaBackend(PackedEiSRC(network), pairs)
    found = backend.forward_rows(queries, query_rows, items, item_rows)
    assert wanted.std() > 0.01
    np.testing.assert_allclose(found, wanted, atol=1e-4)
    few = slice(0, 7)
    batch = pairs.assemble(queries, query_rows[few], items, item_rows[few])
    np.testing.assert_allclose(backend.forward(batch), wanted[few], atol=1e-4)
    assert backend.forward_rows(queries, query_rows[:0], items, item_rows[:0]).shape == (0,)


def test_a_query_and_an_item_are_laid_out_once(tiny_pairs: PairTokenizer) -> None:
    queries, items = tiny_pairs.encode_queries(["usb cable"]), tiny_pairs.encode_items(["tea pot", "usb", "tea"])
    zeros = np.zeros(30, np.int64)
    pairs = packed_pairs(tiny_pairs, queries, zeros, items, np.arange(30) % 3)
    assert len(pairs.ids) == len(queries.ids) + 2 + len(items.ids) + 3
    assert pairs.shape.pairs == 30
    whole = tiny_pairs.assemble(queries, zeros, items, np.arange(30) % 3)
    assert pairs.shape.tokens == whole.mask.sum()


@pytest.mark.parametrize("tokens", [1, 7, 255, 256, 257, 5_000, 30_001])
def test_a_rounded_shape_has_room_for_the_pairs_that_fill_it(tokens: int) -> None:
    for pairs in {1, min(33, tokens), min(1_024, tokens)}:
        shape = Shape(rows=tokens, pairs=pairs, tokens=tokens, length=36)
        room = rounded(shape)
        assert all(had >= needed for had, needed in zip(room, shape, strict=True))
        needed = tokens + room.pairs - pairs
        assert needed <= room.tokens <= needed + max(255, needed / 8)
        assert rounded(Shape(room.rows, room.pairs, room.tokens, room.length)) == room


def test_late_joins_are_refused(
    network_maker: Any, artifact_maker: Any, tiny_pairs: PairTokenizer, tmp_path: Any
) -> None:
    network = network_maker("ei_src", tiny_pairs.vocabulary_size, join_layer=1)
    with pytest.raises(ValueError, match="read each other"):
        PackedEiSRC(network)
    with pytest.raises(ConfigError, match="exact ei_src networks"):
        open_backend(artifact_maker(tmp_path / "late", network, tiny_pairs, graph=False), "cuda")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_message_says_so(tiny_artifact: Artifact) -> None:
    with pytest.raises(ConfigError, match="needs a GPU"):
        open_backend(tiny_artifact, "cuda")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_on_a_gpu_replayed_graphs_give_the_scores_of_torch(tiny_artifact: Artifact, tiny_pairs: PairTokenizer) -> None:
    backend = open_backend(tiny_artifact, "cuda")
    assert isinstance(backend, CudaBackend)
    queries = token_rows(0, 5, 14, tiny_pairs.vocabulary_size)
    items = token_rows(1, 40, 35, tiny_pairs.vocabulary_size)
    for seed in range(3):
        random = np.random.default_rng(seed)
        query_rows, item_rows = random.integers(0, 5, 300), random.integers(0, 40, 300)
        batch = tiny_pairs.assemble(queries, query_rows, items, item_rows)
        wanted = TorchBackend.open(tiny_artifact, 1).forward(batch)
        found = backend.forward_rows(queries, query_rows, items, item_rows)
        np.testing.assert_allclose(found, wanted, atol=0.1)
        np.testing.assert_array_equal(backend.forward_rows(queries, query_rows, items, item_rows), found)
