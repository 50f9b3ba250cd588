"""Scorers of set speed, and servers on the loopback."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from pertinent.artifact import Artifact
from pertinent.engine.scorer import Scorer
from pertinent.lexicon.pairs import PairTokenizer
from pertinent.records import TokenBatch


class SetSpeed:
    """A backend that takes a set time a token; the logit of a pair follows from its tokens alone."""

    name = "set-speed"

    def __init__(self, seconds: float = 0.0, workers: int = 2) -> None:
        self.seconds, self.workers = seconds, workers
        self.batches: list[tuple[int, int]] = []
        self.hold = threading.Event()
        self.hold.set()

    def forward(self, batch: TokenBatch) -> Any:
        self.hold.wait(20)
        self.batches.append(batch.token_ids.shape)
        time.sleep(self.seconds * batch.token_ids.size)
        sums = (batch.token_ids * batch.mask * (1 + batch.position_ids)).sum(axis=1)
        return np.sin(sums).astype(np.float32)


@pytest.fixture
def speed_scorer(tiny_pairs: PairTokenizer) -> Callable[..., Scorer]:
    """``speed_scorer(seconds, workers)``: a scorer over a backend of set speed."""

    def make(seconds: float = 0.0, workers: int = 2) -> Scorer:
        return Scorer(SetSpeed(seconds, workers), tiny_pairs, name="set-speed", version="0")

    return make


@pytest.fixture(scope="module")
def tiny_scorer(tiny_artifact: Artifact) -> Iterator[Scorer]:
    scorer = Scorer.load(tiny_artifact.path, threads=2)
    yield scorer
    scorer.close()
