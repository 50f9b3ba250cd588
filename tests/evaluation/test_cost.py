"""The cost model counts what torch computes."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from pertinent.engine.batching import plan
from pertinent.errors import ConfigError
from pertinent.evaluation.cost import Sizes, compounded, pair_flops, plan_flops, saving
from pertinent.lexicon.pairs import PairTokenizer

QUERIES = ["red mug", "wireless earbuds", "tea"]
TITLES = ["coffee mug for men", "bluetooth headphones, noise cancelling", "tea pot green"]


def counted(network: Any, batch: Any) -> int:
    """Operations of the matrix products that torch runs."""
    inputs = {name: torch.from_numpy(value) for name, value in batch.inputs().items()}
    counter = FlopCounterMode(display=False)
    with torch.inference_mode(), sdpa_kernel(SDPBackend.MATH), counter:
        network(**inputs)
    return counter.get_total_flops()


@pytest.mark.parametrize("settings", [{}, {"layers": 1}, {"layers": 3, "feed_forward_size": 24, "labels": 1}])
def test_the_exact_schedule_is_what_the_network_computes(
    network_maker: Any, tiny_pairs: PairTokenizer, settings: dict[str, Any]
) -> None:
    network = network_maker("ei_src", tiny_pairs.vocabulary_size, **settings)
    sizes = Sizes.of(network.config.plain())
    for trim in (True, False):
        batch = tiny_pairs.pair(QUERIES, TITLES, trim=trim)
        wanted = len(batch) * pair_flops(sizes, batch.token_ids.shape[1])
        assert counted(network, batch) == pytest.approx(float(wanted), rel=1e-9)


def test_schedules_cost_less_from_one_to_the_next() -> None:
    sizes = Sizes(3, 128, 512, 4)
    for length in (5, 20, 52):
        costs = [pair_flops(sizes, length, name) for name in ("full", "first_only", "absorbed", "late")]
        assert costs == sorted(costs, reverse=True)
        assert costs[0] > costs[3] > 0
    lengths = np.array([10, 20])
    assert pair_flops(sizes, lengths).tolist() == [pair_flops(sizes, 10), pair_flops(sizes, 20)]
    with pytest.raises(ConfigError, match="allowed: full, first_only"):
        pair_flops(sizes, 10, "fast")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="a dssm has no layers"):
        Sizes.of({"type": "dssm"})


def test_a_plan_costs_its_padding_and_no_more() -> None:
    sizes, random = Sizes(3, 128, 512, 4), np.random.default_rng(0)
    queries, items = random.integers(3, 16, 200), random.integers(5, 36, 200)
    alone = float(pair_flops(sizes, queries + items).sum())
    together = plan_flops(sizes, plan(queries, items), queries, items)
    padded = 200 * float(pair_flops(sizes, 52))
    assert alone <= together < padded
    assert plan_flops(sizes, [np.array([row]) for row in range(200)], queries, items) == pytest.approx(alone)
    assert plan_flops(sizes, [], queries, items) == 0.0


def test_savings_compound() -> None:
    assert compounded([]) == 0.0
    assert compounded([0.5, 0.5]) == 0.75
    steps = [100.0, 64.0, 48.0, 40.0]
    shares = [saving(before, after) for before, after in pairwise(steps)]
    assert compounded(shares) == pytest.approx(saving(steps[0], steps[-1]))
