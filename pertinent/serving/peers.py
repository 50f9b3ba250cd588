"""The metrics of all worker processes, whichever of them is asked.

Each worker answers on a socket of its own, in a folder that the parent made for this run and only its user may enter.
Who is asked for metrics asks all others, and tells each one's under the label ``worker``: its process id. Nothing is
summed up here, so counters of a worker that is started again begin anew as those of any process do.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path

_log = logging.getLogger(__name__)

# How long a worker may take to tell its metrics: one that hangs is left out.
_PATIENCE = 1.0
_SUFFIX = ".metrics"
# Every worker tells the same: it is there once, without a label.
_OF_ALL = ("pertinent_worker_restarts",)


def metrics_socket(folder: Path, pid: int) -> Path:
    """Where the worker of this number tells its metrics."""
    return folder / f"{pid}{_SUFFIX}"


class Peers:
    """A worker among others; ``start`` it in its event loop, and ``close`` it there."""

    def __init__(self, folder: Path, render: Callable[[], bytes]) -> None:
        self._folder, self._render = folder, render
        self._own = metrics_socket(folder, os.getpid())
        self._server: asyncio.AbstractServer | None = None

    async def start(self) -> None:
        """Answer others. Where that cannot be, each worker tells its own metrics only, and the log says so."""
        try:
            self._own.unlink(missing_ok=True)  # of a process that had this number before
            self._server = await asyncio.start_unix_server(self._answer, self._own)
        except OSError as error:
            _log.warning("metrics are those of the worker that is asked: %s: %s", self._own, error.strerror or error)

    async def render(self) -> bytes:
        """The metrics of all workers in the Prometheus text format."""
        own = await asyncio.to_thread(self._render)
        others = sorted(path for path in self._folder.glob(f"*{_SUFFIX}") if path != self._own)
        found = await asyncio.gather(*(_ask(path) for path in others))
        told = {path.name.removesuffix(_SUFFIX): text for path, text in zip(others, found, strict=True) if text}
        return await asyncio.to_thread(together, {str(os.getpid()): own, **told})

    async def close(self) -> None:
        """Answer no more."""
        if self._server is not None:
            self._server.close()
            with contextlib.suppress(OSError):
                self._own.unlink(missing_ok=True)

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with contextlib.suppress(OSError):
                writer.write(await asyncio.to_thread(self._render))
                await writer.drain()
        finally:
            writer.close()


def together(texts: Mapping[str, bytes]) -> bytes:
    """One text of the metrics of several workers, given by their labels.

    >>> text = b"# HELP a_total Some.\\n# TYPE a_total counter\\na_total 1.0\\n"
    >>> print(together({"7": text, "8": text}).decode(), end="")
    # HELP a_total Some.
    # TYPE a_total counter
    a_total{worker="7"} 1.0
    a_total{worker="8"} 1.0
    """
    heads: dict[str, list[str]] = {}
    samples: dict[str, list[str]] = {}
    for number, (worker, text) in enumerate(texts.items()):
        family = ""
        for line in text.decode("utf-8").removesuffix("\n").split("\n"):  # names may hold other ends of lines
            if line.startswith("# HELP "):
                family = line.split(" ", 3)[2]
                heads.setdefault(family, [])
                samples.setdefault(family, [])
            if line.startswith("#"):
                if line not in heads[family]:
                    heads[family].append(line)
            elif not family.startswith(_OF_ALL):
                samples[family].append(_labeled(line, worker))
            elif number == 0:
                samples[family].append(line)
    lines = [line for family, head in heads.items() for line in (*head, *samples[family])]
    return "\n".join([*lines, ""]).encode("utf-8")


def _labeled(line: str, worker: str) -> str:
    """A sample with one more label.

    >>> _labeled('a_total{route="/x"} 2.0', "7")
    'a_total{worker="7",route="/x"} 2.0'
    """
    name, brace, rest = line.partition("{")
    if brace:
        return f'{name}{{worker="{worker}",{rest}'
    name, _, value = line.partition(" ")
    return f'{name}{{worker="{worker}"}} {value}'


async def _ask(path: Path) -> bytes | None:
    """What another worker tells; None where it is gone or does not answer in time."""
    try:
        async with asyncio.timeout(_PATIENCE):
            reader, writer = await asyncio.open_unix_connection(path)
            try:
                told = await reader.read()
                return told if told.endswith(b"\n") else None  # it ended in the middle of telling
            finally:
                writer.close()
    except (OSError, TimeoutError):
        return None
