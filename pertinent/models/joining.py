"""Where query and title of a network meet, and which states of a title can be computed ahead. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def kept_layers(layers: int, join_layer: int, one_way: bool) -> range:
    """The layers whose input states of a title belong to the title alone and are worth keeping.

    A network that joins late needs those that enter the join. One-way, titles never read the query,
    so those of every later layer are known ahead too. The exact network has none.

    >>> kept_layers(3, 2, False), kept_layers(3, 1, True), kept_layers(3, 0, False)
    (range(2, 3), range(1, 3), range(0, 0))
    """
    if one_way:
        return range(join_layer, layers)
    return range(join_layer, join_layer + 1) if join_layer else range(0)


def state_width(network: Mapping[str, Any]) -> int:
    """Numbers kept for each token of a title, from the settings of a network; 0 where nothing is kept.

    >>> state_width({"layers": 3, "hidden_size": 128, "join_layer": 2}), state_width({"layers": 3, "hidden_size": 128})
    (128, 0)
    """
    if "layers" not in network or "hidden_size" not in network:
        return 0
    kept = kept_layers(network["layers"], network.get("join_layer", 0), network.get("one_way", False))
    return len(kept) * int(network["hidden_size"])
