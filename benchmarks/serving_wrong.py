"""``pertinent serve`` with one score in some answers a thousandth off: the negative control of the chaos.

python benchmarks/serving_wrong.py EVERY MODEL --port 8080
"""

from __future__ import annotations

import itertools
import sys
from typing import Any

from pertinent.cli import main
from pertinent.serving.app import App


def spoil(every: int) -> None:
    """Change the first score of each so manieth answer."""
    right, turn = App._scores, itertools.count(1)

    def wrong(self: App, *given: Any) -> Any:
        scores, logits = right(self, *given)
        if len(scores) and next(turn) % every == 0:
            scores = scores.copy()
            scores[0] += -0.001 if scores[0] > 0.5 else 0.001
        return scores, logits

    App._scores = wrong  # type: ignore[assignment,method-assign]


spoil(int(sys.argv[1]))  # outside of the block below: workers read this file too, but not as the main one

if __name__ == "__main__":
    raise SystemExit(main(["serve", *sys.argv[2:]]))
