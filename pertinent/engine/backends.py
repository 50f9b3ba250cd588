"""The backends that run a network, by name, and the rule that picks one.

A backend gets a ``TokenBatch`` and gives one number a pair: the log odds of relevance. It knows
no text and no calibration; the scorer does.
"""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from pertinent.artifact import Artifact
from pertinent.engine.arrays import Ragged
from pertinent.engine.graph import GRAPH_FILE
from pertinent.errors import ConfigError
from pertinent.records import TokenBatch, TokenRows


class Backend(Protocol):
    """Runs a network. ``forward`` may be called from ``workers`` threads at once."""

    name: str
    workers: int

    def forward(self, batch: TokenBatch) -> NDArray[np.float32]:
        """The relevance logit of each pair, ``[batch]``."""
        ...


@runtime_checkable
class RowBackend(Protocol):
    """A backend that takes token rows as they are stored and spreads them over the cores by itself."""

    def forward_rows(
        self,
        queries: TokenRows,
        query_rows: NDArray[np.int64],
        items: TokenRows,
        item_rows: NDArray[np.int64],
        threads: int | None = None,
    ) -> NDArray[np.float32]:
        """The relevance logit of each pair of rows, ``[n]``; ``threads`` None takes all it was opened with."""
        ...

    def join_rows(
        self,
        queries: TokenRows,
        query_rows: NDArray[np.int64],
        states: Ragged,
        item_rows: NDArray[np.int64],
        threads: int | None = None,
    ) -> NDArray[np.float32]:
        """The same for a late join and items whose states are known ahead."""
        ...


# Each has a class method ``open(artifact, threads)``.
BACKENDS = {
    "native": "pertinent.engine.native_backend:NativeBackend",
    "native-int8": "pertinent.engine.native_backend:NativeInt8Backend",
    "torch": "pertinent.engine.torch_backend:TorchBackend",
    "onnx": "pertinent.engine.onnx_backend:OnnxBackend",
    "onnx-int8": "pertinent.engine.onnx_backend:OnnxInt8Backend",
    "cuda": "pertinent.engine.cuda_backend:CudaBackend",
}


def open_backend(artifact: Artifact, name: str | None = None, threads: int | None = None) -> Backend:
    """The backend called ``name`` over a model; ``None`` takes the best that there is here.

    That is ``native`` where it was built and knows the network, else ``onnx`` where the model has a graph,
    else ``torch``.
    ``threads`` is the number of cores to use; ``None`` takes all that this process may use, or
    ``OMP_NUM_THREADS`` where that is fewer.
    """
    if name is None:
        name = best_backend(artifact)
    if name not in BACKENDS:
        raise ConfigError(f"backend {name!r} is not known; allowed: {', '.join(BACKENDS)}")
    if threads is None:
        threads = default_threads()
    if threads < 1:
        raise ConfigError(f"threads is {threads}; give 1 or more, or leave it out for all cores")
    module, _, attribute = BACKENDS[name].partition(":")
    backend: Any = getattr(importlib.import_module(module), attribute)
    opened: Backend = backend.open(artifact, threads)
    return opened


def best_backend(artifact: Artifact) -> str:
    """The name of the backend that a model gets where none is asked for."""
    from pertinent.engine.native_backend import usable

    if usable(artifact):
        return "native"
    return "onnx" if artifact.has(GRAPH_FILE) else "torch"


def default_threads() -> int:
    """The cores this process may use, or as many as ``OMP_NUM_THREADS`` says where that is fewer."""
    asked = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()  # a list names nested levels
    return min(available_cores(), int(asked)) if asked.isdecimal() and int(asked) > 0 else available_cores()


def available_cores(quota_file: str | Path = "/sys/fs/cgroup/cpu.max") -> int:
    """The cores this process may use: its affinity, cut to the quota of its container if there is one."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # not on every system
        cores = os.cpu_count() or 1
    try:
        quota, _, period = Path(quota_file).read_text(encoding="ascii").partition(" ")
        cores = min(cores, max(1, int(quota) // int(period)))
    except (OSError, ValueError):
        pass  # no container, or no limit: the file says "max"
    return cores
