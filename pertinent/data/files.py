"""Files on disk as tables: CSV, TSV, JSONL, JSON and Parquet, also gzipped, chosen by the suffix."""

from __future__ import annotations

import csv
import difflib
import gzip
import json
import threading
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from pertinent.data.tables import MAX_FIELD_CHARACTERS, Table
from pertinent.errors import DataError, shorten

DELIMITERS = {".csv": ",", ".tsv": "\t", ".txt": "\t"}
SUFFIXES = (*DELIMITERS, ".jsonl", ".ndjson", ".json", ".parquet")
# csv keeps its limit on field size per process.
_CSV_LIMIT = threading.Lock()


def read_file(path: str | Path, encoding: str = "utf-8") -> Table:
    """The table in a file; its format is told by the suffix.

    Raises DataError for a file that is missing, empty, damaged, binary, in another encoding, or
    of an unknown suffix, and for rows that do not fit the header, each with its line.
    """
    path = Path(path)
    check_exists(path)
    suffix = kind_of(path)
    if suffix == ".parquet":
        table = read_parquet(path)
    elif suffix in DELIMITERS:
        table = _read_csv(path, encoding, DELIMITERS[suffix])
    else:
        with open_text(path, encoding) as file:
            table = _records(_json_rows(file, path) if suffix == ".json" else _jsonl_rows(file, path), path)
    if not len(table):
        raise DataError("has no rows", path=path, fix="give a file with at least one row of data")
    return table


def kind_of(path: Path) -> str:
    """The suffix that tells the format, lower case, without ``.gz``."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    gzipped = bool(suffixes) and suffixes[-1] == ".gz"
    suffix = suffixes[-2] if gzipped and len(suffixes) > 1 else (suffixes[-1] if suffixes and not gzipped else "")
    if suffix not in SUFFIXES or (gzipped and suffix == ".parquet"):
        raise DataError(
            f"the format of {path.name!r} is not known", path=path, fix=f"allowed: {' '.join(SUFFIXES)}, text also .gz"
        )
    return suffix


def check_exists(path: Path) -> None:
    """Raises DataError for a missing file, with the nearest name there is, for a folder, and for no bytes."""
    if path.is_dir():
        raise DataError("is a folder", path=path, fix="give a file")
    if not path.is_file():
        names = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        near = difflib.get_close_matches(path.name, names, n=1)
        raise DataError("no such file", path=path, fix=f"did you mean {path.parent / near[0]}?" if near else None)
    if path.stat().st_size == 0:
        raise DataError("is empty", path=path, fix="give a file with at least one row of data")


@contextmanager
def open_text(path: Path, encoding: str = "utf-8") -> Iterator[IO[str]]:
    """A text file, opened, unzipped if it ends in ``.gz``, without its byte order mark."""
    opener = gzip.open if path.suffix.lower() == ".gz" else open
    try:
        with opener(path, "rb") as binary:
            if b"\0" in binary.read(4096):
                raise DataError("is binary, or UTF-16", path=path, fix="save it as UTF-8 text, or name it .parquet")
        chosen = "utf-8-sig" if encoding == "utf-8" else encoding
        with opener(path, "rt", encoding=chosen, newline="") as text:
            yield text
    except UnicodeDecodeError as error:
        line = _undecodable_line(path, encoding)
        raise DataError(
            f"is not {encoding.upper()} text ({error.reason})", path=path, line=line, fix="save it as UTF-8"
        ) from None
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"cannot be read: {error}", path=path, fix="copy the file again") from None


def read_parquet(path: Path) -> Table:
    """The table in a Parquet file."""
    described = query_parquet({"file": path}, "DESCRIBE SELECT * FROM read_parquet($file)")[1]
    columns_sql = ", ".join(_readable(name, kind) for name, kind, *_ in described)
    names, rows = query_parquet({"file": path}, f"SELECT {columns_sql} FROM read_parquet($file)")
    columns = {name: list(cells) for name, cells in zip(names, zip(*rows, strict=True), strict=True)} if rows else {}
    return Table(columns, str(path), list(range(1, len(rows) + 1)))


def query_parquet(
    files: Mapping[str, Path], sql: str, parameters: Mapping[str, object] | None = None
) -> tuple[list[str], list[tuple[Any, ...]]]:
    """Column names and rows of a DuckDB query, which may open the given files and nothing else.

    The SQL refers to files and parameters alike as ``$name``: ``FROM read_parquet($items)``.
    """
    import duckdb

    for path in files.values():
        check_exists(path)
    # DuckDB reads * ? [ in a path as patterns; in brackets they stand for themselves.
    exact = {name: str(path.resolve()) for name, path in files.items()}
    patterns = {name: "".join(f"[{c}]" if c in "*?[" else c for c in path) for name, path in exact.items()}
    with duckdb.connect() as connection:
        try:
            connection.execute("SET allowed_paths = ?", [[*exact.values(), *patterns.values()]])
            connection.execute("SET enable_external_access = false")
            result = connection.execute(sql, {**patterns, **(parameters or {})})
            return [column[0] for column in result.description], result.fetchall()
        except duckdb.Error as error:
            first = str(error).partition("\n")[0]
            path = next(iter(files.values()))
            raise DataError(f"cannot be read as Parquet: {first}", path=path, fix="write the file again") from None


def _readable(name: str, kind: str) -> str:
    """SQL for a column whose values reach Python unchanged: 0.1 as float32 must not become 0.10000000149."""
    quoted = '"' + name.replace('"', '""') + '"'
    if kind == "FLOAT":
        return f"CAST(CAST({quoted} AS VARCHAR) AS DOUBLE) AS {quoted}"
    return f"CAST({quoted} AS VARCHAR) AS {quoted}" if kind == "TIMESTAMP WITH TIME ZONE" else quoted


def _read_csv(path: Path, encoding: str, usual: str) -> Table:
    with open_text(path, encoding) as file, _csv_limit():
        delimiter = _delimiter(file.readline(MAX_FIELD_CHARACTERS), usual)
        file.seek(0)
        kept: list[str] = []  # the raw lines of the record being read
        reader = csv.reader(_keeping(file, kept), delimiter=delimiter)
        names, rows, lines, start, last = list[str](), list[list[str]](), list[int](), 1, list[str]()
        try:
            for cells in reader:
                if cells and not names:
                    names = _header(cells, path)
                elif cells:
                    if len(cells) != len(names):
                        raise _ragged(path, start, cells, names)
                    rows.append(cells)
                    lines.append(start)
                start = reader.line_num + 1
                last, kept[:] = list(kept), []
        except csv.Error as error:
            raise DataError(
                f"cannot be read as CSV: {error}", path=path, line=start, fix="look for a quote that is never closed"
            ) from None
        # A quote that nothing closes swallows the rest of the file, so only the last record can hold one.
        if rows and _is_unclosed(last, delimiter):
            raise DataError("a quote is never closed", path=path, line=lines[-1], fix='close it, or double it: ""')
    columns: dict[str, list[Any]] = (
        {
            name: [cell if cell.strip() else None for cell in cells]
            for name, cells in zip(names, zip(*rows, strict=True), strict=True)
        }
        if rows
        else {}
    )
    return Table(columns, str(path), lines)


def _keeping(file: Iterable[str], kept: list[str]) -> Iterator[str]:
    for line in file:
        kept.append(line)
        yield line


def _is_unclosed(record: list[str], delimiter: str) -> bool:
    try:
        list(csv.reader(record, delimiter=delimiter, strict=True))
    except csv.Error as error:
        return "unexpected end" in str(error)
    return False


def _ragged(path: Path, line: int, cells: list[str], names: list[str]) -> DataError:
    return DataError(
        f"has {len(cells)} cells, the header has {len(names)}",
        path=path,
        line=line,
        value=cells[0],
        fix="put a cell that holds the delimiter, a quote or a line break into quotes",
    )


def _header(cells: list[str], path: Path) -> list[str]:
    names = [cell.strip() or f"column {number}" for number, cell in enumerate(cells, 1)]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError("is in the header twice", path=path, line=1, column=twice[0], fix="rename one of them")
    return names


def _delimiter(line: str, usual: str) -> str:
    """The delimiter that the header has most of; many files named .csv hold tabs or semicolons."""
    return max([usual, "\t", ";", ",", "|"], key=line.count)


@contextmanager
def _csv_limit() -> Iterator[None]:
    with _CSV_LIMIT:
        before = csv.field_size_limit(MAX_FIELD_CHARACTERS)
        try:
            yield
        finally:
            csv.field_size_limit(before)


def _jsonl_rows(file: IO[str], path: Path) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(file, 1):
        if line.strip():
            yield number, _json(line, path, number)


def _json_rows(file: IO[str], path: Path) -> Iterator[tuple[int, Any]]:
    rows = _json(file.read(), path, None)
    if not isinstance(rows, list):
        raise DataError(f"holds {shorten(rows)}, not a list", path=path, fix="give a list of objects, or use .jsonl")
    yield from enumerate(rows, 1)


def _json(text: str, path: Path, line: int | None) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        at = error.lineno if line is None else line
        raise DataError(f"is not JSON: {error.msg}, at character {error.colno}", path=path, line=at) from None
    except RecursionError:
        raise DataError("is JSON nested too deep", path=path, line=line) from None
    except ValueError:  # Python reads no more than some thousands of digits
        raise DataError(
            "has a whole number of too many digits", path=path, line=line, fix='put it into quotes: "123"'
        ) from None


def _records(rows: Iterable[tuple[int, Any]], path: Path) -> Table:
    lines: list[int] = []
    records: list[dict[str, Any]] = []
    for line, row in rows:
        if not isinstance(row, dict):
            raise DataError(
                "is not an object", path=path, line=line, value=row, fix='write {"query": ...} on each line'
            )
        lines.append(line)
        records.append(row)
    names = list(dict.fromkeys(name for record in records for name in record))
    empty = ("", None)
    columns = {name: [None if (v := r.get(name)) in empty else v for r in records] for name in names}
    return Table(columns, str(path), lines)


def _undecodable_line(path: Path, encoding: str) -> int | None:
    opener = gzip.open if path.suffix.lower() == ".gz" else open
    with opener(path, "rb") as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode(encoding)
            except UnicodeDecodeError:
                return number
    return None
