"""Score a table of pairs into a file: in this process, in constant memory, resumable.

Rows are scored in chunks; each chunk is a part file beside the output, complete or absent. A run
that was killed goes on after its last complete part, and the output appears in one rename.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
import time
from collections.abc import Iterator, Sequence
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
from pertinent.engine.scorer import Scorer
from pertinent.errors import ArtifactError, DataError
from pertinent.records import Pair

_PLAN = "plan.json"


class BulkConfig(Config):
    """Score the pairs in ``pairs`` (columns ``query`` and ``title``) into ``out``.

    Formats follow the suffixes: .csv, .tsv, .jsonl or .parquet. ``rename`` maps a column of the file
    to ``query`` or ``title``. ``keep`` lists other columns to copy, as text, where they exist.
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
    progress: bool = True


@dataclass(frozen=True, slots=True)
class BulkResult:
    """What was scored: all rows, how many of them were there from an earlier run, seconds of this one."""

    path: Path
    rows: int
    resumed: int
    seconds: float


def score_table(config: BulkConfig, scorer: Scorer | None = None) -> BulkResult:
    """Write ``config.out`` with a column ``score``; ``scorer`` is opened from the config if not given.

    Raises DataError, naming the line, for a table that cannot be read; the parts that were
    complete are kept for the next run, and an older output stays as it was.
    """
    source, out = Path(config.pairs), Path(config.out)
    check_exists(source)
    kind_of(source)
    if kind_of(out) not in _WRITERS or out.suffix == ".gz":
        raise DataError("cannot be written in this format", path=out, fix=f"allowed: {' '.join(_WRITERS)}")
    if scorer is None:
        scorer = Scorer.load(config.model, config.backend, config.threads)
    started = time.perf_counter()
    parts = _open_parts(out, source, scorer, config)
    done = sorted(parts.glob("part-*.jsonl"))
    resumed = config.chunk * len(done)
    total = 0
    try:
        for number, table in enumerate(_shown(read_table_parts(source, config.chunk, config.rename), config)):
            total += len(table)
            if number >= len(done):
                write_text(parts / f"part-{number:06d}.jsonl", _scored(table, scorer, config.keep))
    except DataError:
        if not any(parts.glob("part-*.jsonl")):
            shutil.rmtree(parts)
        raise
    _join(parts, out)
    shutil.rmtree(parts)
    return BulkResult(out, total, min(resumed, total), time.perf_counter() - started)


def _scored(table: Table, scorer: Scorer, keep: Sequence[str]) -> str:
    """The lines of a part file: texts, what is kept of the other columns, and the score."""
    queries, titles = ([text or "" for text in table.texts(name)] for name in ("query", "title"))
    scores = scorer.score_pairs([Pair(*texts) for texts in zip(queries, titles, strict=True)]).tolist()
    kept = {name: table.texts(name) for name in keep if table.has(name)}  # the same names in every part
    columns = {**kept, "query": queries, "title": titles, "score": scores}
    names = dict.fromkeys(["query", "title", *columns])
    rows = zip(*(columns[name] for name in names), strict=True)
    return "".join(json.dumps(dict(zip(names, row, strict=True))) + "\n" for row in rows)


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


def _shown(tables: Iterator[Table], config: BulkConfig) -> Iterator[Table]:
    if not config.progress:
        yield from tables
        return
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("scoring"), MofNCompleteColumn(), TextColumn("pairs"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("scoring", total=None)
        for table in tables:
            yield table
            bar.advance(task, len(table))
