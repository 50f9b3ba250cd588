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
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any

from pydantic import Field

from pertinent.artifact import read_json, sha256, write_json, write_text
from pertinent.config import Config
from pertinent.data.files import DELIMITERS, check_exists, kind_of, open_text, query_parquet
from pertinent.data.tables import MAX_FIELD_CHARACTERS, nearest, plain
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
    rows = table_rows(source, config.rename)
    keep: list[str] | None = None
    for number, chunk in enumerate(_shown(_chunks(rows, config.chunk), config)):
        total += len(chunk)
        if keep is None:  # the first row tells which columns there are
            keep = [name for name in config.keep if name in chunk[0][1]]
        if number < len(done):
            continue
        scores = scorer.score_pairs([Pair(plain(row["query"]), plain(row["title"])) for _, row in chunk])
        lines = []
        for (_, row), score in zip(chunk, scores, strict=True):
            kept = {name: None if row.get(name) is None else plain(row[name]) for name in keep}
            texts = {"query": plain(row["query"]), "title": plain(row["title"])}
            lines.append(json.dumps({**texts, **kept, "score": float(score)}, ensure_ascii=True))
        write_text(parts / f"part-{number:06d}.jsonl", "\n".join(lines) + "\n")
    if not total:
        shutil.rmtree(parts)
        raise DataError("has no rows", path=source, fix="give a file with at least one pair")
    _join(parts, out)
    shutil.rmtree(parts)
    return BulkResult(out, total, min(resumed, total), time.perf_counter() - started)


def table_rows(path: Path, rename: Mapping[str, str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Rows of a table with their lines, one at a time; each has ``query`` and ``title``."""
    kind = kind_of(path)
    if kind == ".json":
        raise DataError("is one JSON value, which cannot be read in parts", path=path, fix="use .jsonl")
    read = _parquet_rows if kind == ".parquet" else _csv_rows if kind in DELIMITERS else _jsonl_rows
    for line, row in read(path):
        row = {rename.get(name, name): value for name, value in row.items()}
        for name in ("query", "title"):
            if name not in row:
                near = nearest(name, row)
                fix = f"did you mean {near!r}? give it in 'rename'" if near else "name it in 'rename'"
                raise DataError(f"has no column {name!r}; it has {', '.join(row)}", path=path, line=line, fix=fix)
            row[name] = row[name] if row[name] is not None else ""
        yield line, row


def _csv_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    csv.field_size_limit(max(csv.field_size_limit(), MAX_FIELD_CHARACTERS))
    with open_text(path) as file:
        header = file.readline(MAX_FIELD_CHARACTERS)
        delimiter = max([DELIMITERS[kind_of(path)], "\t", ";", ",", "|"], key=header.count)
        file.seek(0)
        reader = csv.reader(file, delimiter=delimiter)
        names: list[str] = []
        line = 1
        try:
            for cells in reader:
                if cells and not names:
                    names = [cell.strip() for cell in cells]
                elif cells:
                    if len(cells) != len(names):
                        problem = f"has {len(cells)} cells, the header has {len(names)}"
                        raise DataError(problem, path=path, line=line, fix="put a cell with a delimiter into quotes")
                    yield line, dict(zip(names, cells, strict=True))
                line = reader.line_num + 1
        except csv.Error as error:
            raise DataError(f"is not readable as CSV: {error}", path=path, line=line, fix="look for a quote") from None


def _jsonl_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with open_text(path) as file:
        for line, text in enumerate(file, start=1):
            if not text.strip():
                continue
            try:
                row = json.loads(text)
            except (json.JSONDecodeError, RecursionError) as error:
                raise DataError(f"is not JSON: {error}", path=path, line=line, fix="give one object a line") from None
            if not isinstance(row, dict):
                raise DataError("is not an object", path=path, line=line, fix='give {"query": ..., "title": ...}')
            yield line, row


def _parquet_rows(path: Path, at_once: int = 50_000) -> Iterator[tuple[int, dict[str, Any]]]:
    sql = (
        "SELECT * FROM read_parquet($file, file_row_number = true) "
        "WHERE file_row_number >= $start AND file_row_number < $stop ORDER BY file_row_number"
    )
    start = 0
    while True:
        names, rows = query_parquet({"file": path}, sql, {"start": start, "stop": start + at_once})
        for number, cells in enumerate(rows, start=start + 1):
            row = dict(zip(names, cells, strict=True))
            row.pop("file_row_number")
            yield number, row
        if len(rows) < at_once:
            return
        start += at_once


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


def _chunks(rows: Iterator[tuple[int, dict[str, Any]]], size: int) -> Iterator[list[tuple[int, dict[str, Any]]]]:
    while chunk := list(islice(rows, size)):
        yield chunk


def _shown(chunks: Iterator[Any], config: BulkConfig) -> Iterator[Any]:
    if not config.progress:
        yield from chunks
        return
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("scoring"), MofNCompleteColumn(), TextColumn("pairs"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("scoring", total=None)
        for chunk in chunks:
            yield chunk
            bar.advance(task, len(chunk))
