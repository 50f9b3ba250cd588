"""``pertinent serve`` that keeps some bytes of every request: the negative control of the soak.

python benchmarks/serving_leak.py BYTES MODEL --port 8080
"""

from __future__ import annotations

import sys
from typing import Any

from pertinent.cli import main
from pertinent.serving.app import App

KEPT: list[bytes] = []


def leak(size: int) -> None:
    """Make every scoring request leave so many bytes behind."""
    answer = App._body

    async def keeping(self: App, exchange: Any) -> bytes:
        KEPT.append(bytes(bytearray(1) * size))
        return await answer(self, exchange)

    App._body = keeping  # type: ignore[method-assign]


if __name__ == "__main__":
    leak(int(sys.argv[1]))
    raise SystemExit(main(["serve", *sys.argv[2:]]))
