"""What scoring costs, counted: floating-point operations of a pair, of a schedule, of a batch plan.

Operations are those of matrix products, a multiplication and an addition each (ei-SRC, section 7,
with the standard count: ``8 l d^2`` projections, ``4 l^2 d`` attention, ``4 l d f`` feed-forward).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from pertinent.errors import ConfigError

Schedule = Literal["full", "first_only", "absorbed", "late"]
SCHEDULES: dict[str, str] = {
    "full": "every layer for every token, as in the paper's formula",
    "first_only": "the last layer for [CLS] alone: what the exact network computes",
    "absorbed": "the same, without keys and values of the last layer: what an engine may compute",
    "late": "joined in the last layer only, the titles' states known ahead; the query's own layers not counted",
}
Numbers = NDArray[np.int64] | NDArray[np.float64] | float | int


@dataclass(frozen=True, slots=True)
class Sizes:
    """The sizes of an encoder that decide its cost."""

    layers: int
    width: int
    feed_forward: int
    heads: int
    labels: int = 2

    @classmethod
    def of(cls, network: Mapping[str, Any]) -> Self:
        """Those of a network's settings, as ``model.json`` has them.

        >>> Sizes.of({"layers": 3, "hidden_size": 128, "feed_forward_size": 512, "heads": 4}).width
        128
        """
        names = ("layers", "hidden_size", "feed_forward_size", "heads")
        missing = [name for name in names if name not in network]
        if missing:
            raise ConfigError(f"a {network.get('type', 'network')} has no {missing[0]}: it is no Transformer to count")
        layers, width, feed_forward, heads = (int(network[name]) for name in names)
        return cls(layers, width, feed_forward, heads, int(network.get("labels", 2)))


def pair_flops(sizes: Sizes, length: Numbers, schedule: Schedule = "first_only") -> Any:
    """Operations of pairs of ``length`` tokens, special ones included; arrays give arrays.

    >>> mini = Sizes(layers=3, width=128, feed_forward=512, heads=4)
    >>> round(float(1 - pair_flops(mini, 34, "full") / pair_flops(mini, 52, "full")), 3)  # section 7: 36 %
    0.36
    """
    if schedule not in SCHEDULES:
        raise ConfigError(f"schedule {schedule!r} is not known; allowed: {', '.join(SCHEDULES)}")
    length = np.asarray(length, dtype=np.float64)
    width = sizes.width
    whole = layer_flops(sizes, length)
    head = 2 * width * width + 2 * width * sizes.labels
    if schedule == "full":
        return sizes.layers * whole + head
    below = 0.0 if schedule == "late" else (sizes.layers - 1) * whole
    after = 2 * width * width + 4 * width * sizes.feed_forward  # of [CLS]: output projection, feed-forward
    if schedule == "first_only":
        last = 4 * length * width * width + 2 * width * width + 4 * length * width + after
    else:  # q, q W_k^T and the values' product of [CLS]; every head reads whole states
        last = 6 * width * width + 4 * length * width * sizes.heads + after
    return below + last + head


def layer_flops(sizes: Sizes, length: Numbers) -> Any:
    """Operations of one whole layer: ``8 l d^2 + 4 l^2 d + 4 l d f``.

    >>> int(layer_flops(Sizes(1, 128, 512, 4), 52))
    21831680
    """
    length = np.asarray(length, dtype=np.float64)
    width = sizes.width
    return 8 * length * width**2 + 4 * length**2 * width + 4 * length * width * sizes.feed_forward


def plan_flops(
    sizes: Sizes,
    batches: Sequence[NDArray[np.int64]],
    query_lengths: NDArray[np.int64],
    item_lengths: NDArray[np.int64],
    schedule: Schedule = "first_only",
) -> float:
    """Operations of batches in which each block is as wide as its longest row, padding included.

    Lengths ``[pairs]`` have the special tokens; batches are places in them, as ``plan`` gives them.

    >>> sizes, rows = Sizes(1, 4, 16, 1), [np.array([0, 1])]
    >>> plan_flops(sizes, rows, np.array([3, 3]), np.array([4, 9])) == float(2 * pair_flops(sizes, 12))
    True
    """
    return float(
        sum(
            len(rows) * pair_flops(sizes, int(query_lengths[rows].max() + item_lengths[rows].max()), schedule)
            for rows in batches
            if len(rows)
        )
    )


def saving(before: float, after: float) -> float:
    """The share of the work that is gone.

    >>> saving(100.0, 64.0)
    0.36
    """
    return 1.0 - after / before


def compounded(savings: Sequence[float]) -> float:
    """What savings make together where each is a share of what the one before left.

    >>> round(compounded([0.36, 0.25]), 3)
    0.52
    """
    left = 1.0
    for share in savings:
        left *= 1.0 - share
    return 1.0 - left
