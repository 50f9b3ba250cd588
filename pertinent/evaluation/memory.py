"""Whether a process grows: its resident memory against the work it did."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np


def resident_bytes() -> int:
    """Memory that this process holds now, in bytes; 0 where the system does not tell."""
    try:
        return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return 0


def slope(work: Sequence[float], held: Sequence[float]) -> float:
    """Bytes held for each unit of work: the median of the slopes between all samples (Theil and Sen).

    One sample that stands out does not count as growth that goes on.

    >>> slope([0, 1, 2, 3], [100, 110, 120, 130])
    10.0
    >>> slope([0, 1, 2, 3, 4, 5, 6], [5, 5, 5, 90, 5, 5, 5])
    0.0
    """
    x, y = np.asarray(work, dtype=np.float64), np.asarray(held, dtype=np.float64)
    first, second = np.triu_indices(len(x), 1)
    apart = x[second] - x[first]
    steep = (y[second] - y[first])[apart > 0] / apart[apart > 0]
    return float(np.median(steep)) if len(steep) else 0.0


def growth(step: Callable[[], int], warm_up: int, samples: int, steps: int) -> tuple[float, list[int], list[int]]:
    """Bytes a unit of work that the process goes on to hold: slope, work and memory of each sample.

    ``step`` does some work and says how much; ``warm_up`` steps come first, then ``samples`` times ``steps``.
    """
    for _ in range(warm_up):
        step()
    work, held, done = [], [], 0
    for _ in range(samples):
        done += sum(step() for _ in range(steps))
        work.append(done)
        held.append(resident_bytes())
    return slope(work, held), work, held
