"""The work folder of a mining run: results of its steps, so that a run that was killed goes on after the last one.

A result is there complete or not at all. The folder belongs to one plan (settings and inputs); a run
with another plan begins anew, and two runs at a time are refused.
"""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pertinent.artifact import read_json, write_json
from pertinent.errors import ArtifactError, PertinentError
from pertinent.mining.engines import read_parquet, write_parquet

if TYPE_CHECKING:
    import ibis
    import pyarrow as pa

PLAN, LOCK = "plan.json", "lock"
_log = logging.getLogger(__name__)


@contextmanager
def work_folder(out: Path, plan: Mapping[str, Any]) -> Iterator[Path]:
    """The folder beside ``out`` for results of this plan; gone at the end, kept where the run is killed.

    Also gone after an error that a user must mend, as the next run will have other inputs.
    Raises ArtifactError where another run writes to the same place, or something else stands there.
    """
    folder = out.with_name(f"{out.name}.work")
    if folder.exists() and any(folder.iterdir()) and not (folder / LOCK).exists():
        raise ArtifactError(
            f"{folder}: is not the work folder of an earlier run; move it away, or choose another output"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(folder / LOCK, "w")  # noqa: SIM115  (closed below, when the folder is gone)
    except OSError as error:
        raise ArtifactError(f"{folder}: cannot write here: {error.strerror or error}") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ArtifactError(f"{out}: another run is mining into it; wait for its end") from None
        _begin(folder, plan)
        try:
            yield folder
        except PertinentError:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        shutil.rmtree(folder, ignore_errors=True)


class Stages:
    """Runs the steps of a plan in order, each result a file in the work folder, and shows where it is."""

    def __init__(self, connection: ibis.BaseBackend, folder: Path, labels: Sequence[str], progress: bool) -> None:
        self.connection = connection
        self.folder = folder
        self.labels = list(labels)
        self.progress = progress
        self._bar: Any = None
        self._stack = ExitStack()

    def __enter__(self) -> Stages:
        if self.progress and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

            columns = (TextColumn("mining"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"))
            self._bar = self._stack.enter_context(Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True)))
            self._bar.add_task("", total=len(self.labels))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @contextmanager
    def step(self, label: str) -> Iterator[None]:
        """Around the work of one step, one of the labels: tells its name before, and counts it after."""
        number = self.labels.index(label) + 1
        text = f"[{number}/{len(self.labels)}] {label}"
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], description=label)
        elif self.progress:
            sys.stderr.write(text + "\n")
            sys.stderr.flush()
        started = time.perf_counter()
        yield
        _log.info("%s: %.1f s", text, time.perf_counter() - started)
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=number)

    def table(self, name: str, make: Callable[[], ibis.Table], order: list[str]) -> ibis.Table:
        """The table of this name: written now, or found from an earlier run of the same plan."""
        path = self.folder / f"{name}.parquet"
        if not path.exists():
            self._write(path, lambda aside: write_parquet(self.connection, make(), aside, order))
        return read_parquet(self.connection, path)

    def arrow(self, name: str, make: Callable[[], pa.Table]) -> ibis.Table:
        """As `table`, for a small result that is made in this process."""
        import pyarrow.parquet as pq

        path = self.folder / f"{name}.parquet"
        if not path.exists():
            self._write(path, lambda aside: pq.write_table(make(), aside, compression="zstd"))
        return read_parquet(self.connection, path)

    def json(self, name: str, make: Callable[[], Any]) -> Any:
        """As `table`, for values that JSON holds."""
        path = self.folder / f"{name}.json"
        if not path.exists():
            write_json(path, make())
        return read_json(path)

    def has(self, name: str) -> bool:
        """Whether a result is there."""
        return (self.folder / name).exists()

    def _write(self, path: Path, write: Callable[[Path], None]) -> None:
        aside = path.with_name(f"unfinished-{path.name}")
        if aside.is_dir():
            shutil.rmtree(aside)
        write(aside)
        os.rename(aside, path)


def _begin(folder: Path, plan: Mapping[str, Any]) -> None:
    """Empty the folder unless it is of the same plan."""
    if (folder / PLAN).exists() and read_json(folder / PLAN) == plan:
        return
    for entry in folder.iterdir():
        if entry.name != LOCK:
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    write_json(folder / PLAN, plan)
