"""Score a table of pairs into a file: in this process or on Ray, in constant memory, resumable.

Rows are scored in chunks; each chunk is a part file beside the output, complete or absent. A run
that was killed goes on with the parts that are missing, and the output appears in one rename. On Ray the
chunks are written out first, and each worker takes the next one that nobody has scored.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any

from pydantic import Field

from pertinent.artifact import read_json, sha256, write_json, write_text
from pertinent.config import Config
from pertinent.data.files import check_exists, kind_of
from pertinent.data.readers import read_table_parts
from pertinent.data.tables import Table
from pertinent.engine.backends import available_cores
from pertinent.engine.scorer import Scorer
from pertinent.errors import ArtifactError, ConfigError, DataError, need
from pertinent.folders import model_folder
from pertinent.records import Pair

_PLAN = "plan.json"


class BulkConfig(Config):
    """Score the pairs in ``pairs`` (columns ``query`` and ``title``) into ``out``.

    Formats follow the suffixes: .csv, .tsv, .jsonl or .parquet. ``rename`` maps a column of the file
    to ``query`` or ``title``. ``keep`` lists other columns to copy, as text, where they exist.

    With ``ray`` chunks are scored by ``workers`` processes of ``threads`` each, on this machine or on the cluster
    at ``address``, all of whose machines must have the folders of the model and of the output.
    """

    pairs: str
    out: str
    model: str | None = None
    backend: str | None = None
    threads: int | None = Field(None, ge=1)
    rename: dict[str, str] = {}
    keep: tuple[str, ...] = ("item_id",)
    chunk: int = Field(10_000, ge=1)
    resume: bool = True
    ray: bool = False
    workers: int | None = Field(None, ge=1)
    address: str | None = None
    progress: bool = True


@dataclass(frozen=True, slots=True)
class BulkResult:
    """What was scored: all rows, how many of them were there from an earlier run, seconds of this one."""

    path: Path
    rows: int
    resumed: int
    seconds: float

    def plain(self) -> dict[str, Any]:
        """JSON-able values."""
        rate = (self.rows - self.resumed) / self.seconds if self.seconds > 0 else 0.0
        return {
            "path": str(self.path),
            "rows": self.rows,
            "resumed": self.resumed,
            "seconds": round(self.seconds, 3),
            "pairs_per_second": round(rate, 1),
        }


def score_table(config: BulkConfig, scorer: Scorer | None = None) -> BulkResult:
    """Write ``config.out`` with a column ``score``; ``scorer`` is opened from the config if not given.

    Raises DataError, naming the line, for a table that cannot be read; the parts that were
    complete are kept for the next run, and an older output stays as it was.
    """
    if not config.ray and (config.workers is not None or config.address is not None):
        raise ConfigError(
            "workers and address are of Ray; give --ray, or leave them out (--threads is for one process)"
        )
    source, out = Path(config.pairs), Path(config.out)
    check_exists(source)
    kind_of(source)
    if kind_of(out) not in _WRITERS or out.suffix == ".gz":
        raise DataError("cannot be written in this format", path=out, fix=f"allowed: {' '.join(_WRITERS)}")
    if scorer is None:
        scorer = Scorer.load(config.model, config.backend, config.threads)
    started = time.perf_counter()
    parts = _open_parts(out, source, scorer, config)
    done = {part.name for part in parts.glob("part-*.jsonl")}
    total = resumed = 0
    waiting: list[int] = []
    tables = read_table_parts(source, config.chunk, config.rename)
    try:
        for number, table in enumerate(_shown(tables, config.progress and not config.ray)):
            total += len(table)
            columns = _columns(table, config.keep)
            if _part(number) in done:
                resumed += len(table)
            elif config.ray:
                write_text(parts / _chunk(number), "".join(_lines(columns)))
                waiting.append(number)
            else:
                write_text(parts / _part(number), _scored(columns, scorer))
        if waiting:
            _on_ray(waiting, parts, scorer, config, total - resumed)
    except DataError:
        if not any(parts.glob("part-*.jsonl")):
            shutil.rmtree(parts)
        raise
    _join(parts, out)
    shutil.rmtree(parts)
    return BulkResult(out, total, resumed, time.perf_counter() - started)


class ChunkScorer:
    """A worker on Ray: it holds the model, and turns chunk files into part files."""

    def __init__(self, folder: str, model: str | None, backend: str, threads: int, version: str) -> None:
        self._folder = Path(folder)
        self._scorer = Scorer.load(model, backend, threads)
        if self._scorer.version != version:
            raise ArtifactError(
                f"{model}: is version {self._scorer.version} on this machine, but {version} where the run was started"
            )

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Score the chunks of these numbers; gives how many rows they had."""
        counts = []
        for number in batch["chunk"].tolist():
            chunk, part = self._folder / _chunk(number), self._folder / _part(number)
            # A part is whole or absent. One that is there is of a worker that died before Ray had its count.
            if not part.is_file():
                rows = list(_part_rows([chunk]))
                columns = {name: [row[name] for row in rows] for name in rows[0]}
                write_text(part, _scored(columns, self._scorer))
            counts.append(sum(1 for _ in _part_rows([part])))
            chunk.unlink(missing_ok=True)
        return {"rows": counts}


def _on_ray(waiting: Sequence[int], parts: Path, scorer: Scorer, config: BulkConfig, total: int) -> None:
    """Score the chunks of the given numbers on workers; which one gets which chunk decides nothing."""
    ray: Any = need("ray", extra="scale")
    data: Any = need("ray.data", extra="scale")
    workers = min(config.workers or available_cores(), len(waiting))
    started = not ray.is_initialized()
    if started:
        # On its own machine Ray needs room for the reading tasks beside the workers.
        cores = {} if config.address is not None else {"num_cpus": workers + 2, "include_dashboard": False}
        ray.init(address=config.address, log_to_driver=False, configure_logging=False, **cores)
    try:
        context = data.DataContext.get_current()
        context.enable_progress_bars = False
        chunks = data.from_items([{"chunk": number} for number in waiting], override_num_blocks=len(waiting))
        scored = chunks.map_batches(
            ChunkScorer,
            batch_size=1,
            compute=data.ActorPoolStrategy(size=workers),
            num_cpus=1,
            fn_constructor_kwargs={
                "folder": str(parts.resolve()),
                "model": None if config.model is None else str(model_folder(config.model).resolve()),
                "backend": scorer.backend.name,
                "threads": config.threads or 1,
                "version": scorer.version,
            },
        )
        with _counter(config.progress, total) as count:
            for row in scored.iter_rows():
                count(int(row["rows"]))
    finally:
        if started:
            ray.shutdown()


def _part(number: int) -> str:
    return f"part-{number:06d}.jsonl"


def _chunk(number: int) -> str:
    return f"chunk-{number:06d}.jsonl"


def _columns(table: Table, keep: Sequence[str]) -> dict[str, list[Any]]:
    """What is written of a table besides the scores; the same names in every part."""
    kept: dict[str, list[Any]] = {name: table.texts(name) for name in keep if table.has(name)}
    texts: dict[str, list[Any]] = {name: [text or "" for text in table.texts(name)] for name in ("query", "title")}
    return {**texts, **{name: values for name, values in kept.items() if name not in texts}}


def _scored(columns: Mapping[str, list[Any]], scorer: Scorer) -> str:
    """The lines of a part file: texts, what is kept of the other columns, and the score."""
    pairs = [Pair(*texts) for texts in zip(columns["query"], columns["title"], strict=True)]
    return "".join(_lines({**columns, "score": scorer.score_pairs(pairs).tolist()}))


def _lines(columns: Mapping[str, list[Any]]) -> Iterator[str]:
    for row in zip(*columns.values(), strict=True):
        yield json.dumps(dict(zip(columns, row, strict=True))) + "\n"


def _open_parts(out: Path, source: Path, scorer: Scorer, config: BulkConfig) -> Path:
    """The folder of parts beside the output: that of an earlier run with the same plan, or a new one."""
    folder = out.with_name(f"{out.name}.parts")
    wanted = {
        "input": sha256(source),
        "model": scorer.version,
        "backend": scorer.backend.name,
        "rename": config.rename,
        "keep": list(config.keep),
        "chunk": config.chunk,
    }
    if (folder / _PLAN).is_file() and config.resume and read_json(folder / _PLAN) == wanted:
        for chunk in folder.glob("chunk-*.jsonl"):  # of a run on Ray that was killed
            chunk.unlink()
        return folder
    if folder.exists():
        if not (folder / _PLAN).is_file() and any(folder.iterdir()):
            raise ArtifactError(f"{folder}: is not the folder of an earlier run; remove it, or choose another output")
        shutil.rmtree(folder)
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise ArtifactError(f"{folder}: cannot write here: {error.strerror or error}") from None
    write_json(folder / _PLAN, wanted)
    return folder


def _join(parts: Path, out: Path) -> None:
    aside = out.with_name(f".{out.name}.{os.getpid()}.part")
    try:
        _WRITERS[kind_of(out)](sorted(parts.glob("part-*.jsonl")), aside)
        os.replace(aside, out)
    except OSError as error:
        raise ArtifactError(f"{out}: cannot be written: {error.strerror or error}") from None
    finally:
        aside.unlink(missing_ok=True)


def _write_jsonl(parts: Sequence[Path], out: Path) -> None:
    with open(out, "w", encoding="utf-8") as file:
        for row in _part_rows(parts):
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
        _flush(file)


def _write_csv(parts: Sequence[Path], out: Path, delimiter: str = ",") -> None:
    with open(out, "w", encoding="utf-8", newline="") as file:
        writer = None
        for row in _part_rows(parts):
            if writer is None:
                writer = csv.DictWriter(
                    file, list(row), delimiter=delimiter, lineterminator="\n", extrasaction="ignore"
                )
                writer.writeheader()
            writer.writerow(row)
        _flush(file)


def _write_tsv(parts: Sequence[Path], out: Path) -> None:
    _write_csv(parts, out, "\t")


def _write_parquet(parts: Sequence[Path], out: Path) -> None:
    import duckdb

    names = list(dict.fromkeys(name for row in islice(_part_rows(parts), 1) for name in row))
    columns = {name: "FLOAT" if name == "score" else "VARCHAR" for name in names}
    with duckdb.connect() as connection:
        connection.execute("SET preserve_insertion_order = true")
        files: Any = [str(part) for part in parts]
        read = connection.read_json(files, columns=columns, format="newline_delimited", maximum_object_size=2**28)
        read.write_parquet(str(out))


_WRITERS = {".csv": _write_csv, ".tsv": _write_tsv, ".jsonl": _write_jsonl, ".parquet": _write_parquet}


def _part_rows(parts: Sequence[Path]) -> Iterator[dict[str, Any]]:
    for part in parts:
        with open(part, encoding="utf-8") as file:
            for line in file:
                yield json.loads(line)


def _flush(file: IO[str]) -> None:
    file.flush()
    os.fsync(file.fileno())


def _shown(tables: Iterator[Table], progress: bool) -> Iterator[Table]:
    """The tables; what is through counts."""
    with _counter(progress, None) as count:
        for table in tables:
            yield table
            count(len(table))


@contextmanager
def _counter(progress: bool, total: int | None) -> Iterator[Callable[[int], None]]:
    """A function that counts scored pairs, on stderr where that is wanted."""
    if not progress:
        yield lambda rows: None
        return
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("scoring"), MofNCompleteColumn(), TextColumn("pairs"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("scoring", total=total)
        yield lambda rows: bar.advance(task, rows)
