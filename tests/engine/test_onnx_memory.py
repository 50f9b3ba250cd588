"""ONNX Runtime keeps what it has taken for one shape: memory must not grow with the number of shapes."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from numpy.typing import NDArray

from pertinent.artifact import open_artifact
from pertinent.engine.onnx_backend import OnnxBackend
from pertinent.lexicon.pairs import PairTokenizer
from pertinent.records import TokenBatch

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(platform.system() != "Linux", reason="the size of a process is told in another way"),
]
MB = 2**20
ROWS, WARM, BATCHES, ROOM = 48, 400, 3_000, 12


def batches(pairs: PairTokenizer, count: int) -> Iterator[TokenBatch]:
    """Batches of ever other shapes, the largest among the first of them."""
    random = np.random.default_rng(5)
    words = ["usb", "cable", "tea", "pot", "green", "wireless", "earbuds", "mug"]
    queries = pairs.encode_queries([" ".join(random.choice(words, n)) for n in range(1, 12)])
    items = pairs.encode_items([" ".join(random.choice(words, n)) for n in range(1, 40)])
    for number in range(count):
        rows = ROWS if number % 50 == 0 else int(random.integers(1, ROWS + 1))
        longest = len(items) if number % 50 == 0 else int(random.integers(1, len(items) + 1))
        query = int(random.integers(len(queries)))
        yield pairs.assemble(queries, np.full(rows, query), items, random.integers(0, longest, rows))


def growth(forward: Callable[[TokenBatch], NDArray[np.float32]], pairs: PairTokenizer, count: int = BATCHES) -> float:
    """Megabytes that the process has gained by batches after the first ones."""
    process, before, shapes = psutil.Process(), 0, set()
    for number, batch in enumerate(batches(pairs, count)):
        if number == WARM:
            before = process.memory_info().rss
        shapes.add(batch.token_ids.shape)
        assert np.isfinite(forward(batch)).all()
    assert len(shapes) > min(count, 1_000) / 2
    return (process.memory_info().rss - before) / MB


@pytest.fixture(scope="module")
def backend(
    tiny_pairs: PairTokenizer, network_maker: Any, artifact_maker: Any, tmp_path_factory: pytest.TempPathFactory
) -> OnnxBackend:
    """A session wide enough for the largest batch to take megabytes."""
    folder: Path = tmp_path_factory.mktemp("wide") / "model"
    network = network_maker("ei_src", tiny_pairs.vocabulary_size, hidden_size=64, feed_forward_size=256)
    artifact_maker(folder, network, tiny_pairs)
    return OnnxBackend.open(open_artifact(folder), 1)


def test_memory_does_not_grow_with_the_shapes_that_were_scored(backend: OnnxBackend, tiny_pairs: PairTokenizer) -> None:
    assert growth(backend.forward, tiny_pairs) < ROOM


def test_a_backend_that_kept_something_of_each_batch_would_be_noticed(
    backend: OnnxBackend, tiny_pairs: PairTokenizer
) -> None:
    kept = []

    def forward(batch: TokenBatch) -> NDArray[np.float32]:
        kept.append(np.ones(16_384, dtype=np.float32))  # 64 KB
        return backend.forward(batch)

    assert growth(forward, tiny_pairs, WARM + 400) > ROOM
