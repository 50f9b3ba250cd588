"""Files on disk as tables: CSV, TSV, JSONL, JSON and Parquet, also gzipped, chosen by the suffix.

A Parquet table may also be a folder of part files, as Spark writes it; see `part_files`.
"""

from __future__ import annotations

import csv
import difflib
import gzip
import json
import os
import threading
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from pertinent.data.damage import first_unreadable_line, pattern, refuse_damaged
from pertinent.data.tables import MAX_FIELD_CHARACTERS, Table
from pertinent.errors import DataError, shorten

if TYPE_CHECKING:
    import duckdb

DELIMITERS = {".csv": ",", ".tsv": "\t", ".txt": "\t"}
SUFFIXES = (*DELIMITERS, ".jsonl", ".ndjson", ".json", ".parquet")
# csv keeps its limit on field size per process.
_CSV_LIMIT = threading.Lock()
_BATCH_CHARACTERS = 1_000_000
_CUT = "the file ends here, in the middle of a line: if it was cut off, copy it again"


def read_file(path: str | Path, encoding: str = "utf-8") -> Table:
    """The table in a file; its format is told by the suffix.

    Raises DataError for a file that is missing, empty, damaged, binary, in another encoding, or
    of an unknown suffix, and for rows that do not fit the header, each with its line.
    """
    path = Path(path)
    part_files(path)
    suffix = kind_of(path)
    if suffix == ".parquet":
        table = read_parquet(path)
    elif suffix in DELIMITERS:
        table = _read_csv(path, encoding, DELIMITERS[suffix])
    else:
        with open_text(path, encoding) as file:
            rows = _json_rows(file, path) if suffix == ".json" else _jsonl_rows(file, path)
            table = _records(_objects(rows, path), path)
    if not len(table):
        raise _no_rows(path)
    return table


def read_file_parts(path: str | Path, rows: int, encoding: str = "utf-8") -> Iterator[Table]:
    """The table in a file as parts of at most so many rows, one after the other, in constant memory.

    All parts have the columns of the whole file, also those that the first rows of a JSONL file
    leave out: it is gone through once for their names. Raises what `read_file` does, and DataError
    for a JSON list, which cannot be read in parts.
    """
    path = Path(path)
    part_files(path)
    suffix = kind_of(path)
    if suffix == ".json":
        raise DataError("is one JSON value, which cannot be read in parts", path=path, fix="use .jsonl")
    empty = True
    for part in _parts(path, suffix, rows, encoding):
        empty = False
        yield part
    if empty:
        raise _no_rows(path)


def read_records(path: str | Path, encoding: str = "utf-8") -> Iterator[tuple[int, dict[str, Any]]]:
    """Each row of a file as a dictionary, nested values as they are, with its line (see `Table`); in constant memory.

    Raises what `read_file` does, except for a file without rows.
    """
    path = Path(path)
    check_exists(path)
    suffix = kind_of(path)
    if suffix not in DELIMITERS and suffix != ".parquet":
        with open_text(path, encoding) as file:
            yield from _objects(_json_rows(file, path) if suffix == ".json" else _jsonl_rows(file, path), path)
        return
    for part in _parts(path, suffix, 10_000, encoding):
        for row, line in enumerate(part.lines):
            yield line, {name: cells[row] for name, cells in part.columns.items()}


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


def part_files(path: Path) -> list[Path]:
    """The files of a table: the file itself, or the parts of a folder ``NAME.parquet``, in order.

    Raises DataError where there is none; see `check_exists`.
    """
    parts = sorted(path.glob("*.parquet")) if path.suffix == ".parquet" and path.is_dir() else []
    for part in parts or [path]:
        check_exists(part)
    return parts or [path]


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
        line = first_unreadable_line(path) if isinstance(error, (EOFError, zlib.error)) else None
        raise DataError(f"cannot be read: {error}", path=path, line=line, fix="copy the file again") from None


def read_parquet(path: Path) -> Table:
    """The table in a Parquet file, or in a folder of part files."""
    names, rows = query_parquet({"file": path}, _all_of(path))
    return _parquet_table(path, names, rows, 1)


def query_parquet(
    files: Mapping[str, Path], sql: str, parameters: Mapping[str, object] | None = None
) -> tuple[list[str], list[tuple[Any, ...]]]:
    """Column names and rows of a DuckDB query, which may open the given files, or folders of parts, and nothing else.

    The SQL refers to files and parameters alike as ``$name``: ``FROM read_parquet($items)``.
    """
    with _queried(files, sql, parameters or {}) as result:
        return [column[0] for column in result.description], result.fetchall()


@contextmanager
def _queried(
    files: Mapping[str, Path], sql: str, parameters: Mapping[str, object]
) -> Iterator[duckdb.DuckDBPyConnection]:
    import duckdb

    parts = {name: part_files(path) for name, path in files.items()}
    patterns = {name: [pattern(str(part.resolve())) for part in found] for name, found in parts.items()}
    allowed = [str(part.resolve()) for found in parts.values() for part in found]
    with duckdb.connect() as connection:
        try:
            connection.execute(
                "SET allowed_paths = ?", [[*allowed, *(each for found in patterns.values() for each in found)]]
            )
            connection.execute("SET enable_external_access = false")
            yield connection.execute(sql, {**patterns, **parameters})
        except duckdb.Error as error:
            for part in (part for found in parts.values() for part in found):
                refuse_damaged(part)
            first = str(error).partition("\n")[0]
            path = next(iter(files.values()))
            raise DataError(f"cannot be read as Parquet: {first}", path=path, fix="write the file again") from None


def _all_of(path: Path) -> str:
    """SQL for all columns of a Parquet file, which it names ``$file``."""
    described = query_parquet({"file": path}, "DESCRIBE SELECT * FROM read_parquet($file)")[1]
    return f"SELECT {', '.join(_readable(name, kind) for name, kind, *_ in described)} FROM read_parquet($file)"


def _parquet_table(path: Path, names: list[str], rows: list[tuple[Any, ...]], first: int) -> Table:
    columns = {name: list(cells) for name, cells in zip(names, zip(*rows, strict=True), strict=True)} if rows else {}
    return Table(columns, str(path), list(range(first, first + len(rows))))


def _parts(path: Path, suffix: str, rows: int, encoding: str) -> Iterator[Table]:
    if suffix == ".parquet":
        with _queried({"file": path}, _all_of(path), {}) as result:
            names, first = [column[0] for column in result.description], 1
            while cells := result.fetchmany(rows):
                yield _parquet_table(path, names, cells, first)
                first += len(cells)
        return
    with open_text(path, encoding) as file:
        if suffix in DELIMITERS:
            lines = _csv_lines(file, path, DELIMITERS[suffix])
            header = next(lines, (0, []))[1]
            while part := list(islice(lines, rows)):
                yield _csv_table(path, header, part)
            return
        names = list(dict.fromkeys(name for _, record in _objects(_jsonl_rows(file, path), path) for name in record))
        file.seek(0)
        objects = _objects(_jsonl_rows(file, path), path)
        while found := list(islice(objects, rows)):
            yield _records(found, path, names)


def _no_rows(path: Path) -> DataError:
    return DataError("has no rows", path=path, fix="give a file with at least one row of data")


def _readable(name: str, kind: str) -> str:
    """SQL for a column whose values reach Python unchanged: 0.1 as float32 must not become 0.10000000149."""
    quoted = '"' + name.replace('"', '""') + '"'
    if kind == "FLOAT":
        return f"CAST(CAST({quoted} AS VARCHAR) AS DOUBLE) AS {quoted}"
    return f"CAST({quoted} AS VARCHAR) AS {quoted}" if kind == "TIMESTAMP WITH TIME ZONE" else quoted


def _read_csv(path: Path, encoding: str, usual: str) -> Table:
    with open_text(path, encoding) as file:
        lines = _csv_lines(file, path, usual)
        header = next(lines, (0, []))[1]
        return _csv_table(path, header, list(lines))


def _csv_table(path: Path, header: list[str], rows: list[tuple[int, list[str]]]) -> Table:
    columns: dict[str, list[Any]] = {}
    if rows:
        for name, cells in zip(header, zip(*(cells for _, cells in rows), strict=True), strict=True):
            columns[name] = [cell if cell.strip() else None for cell in cells]
    return Table(columns, str(path), [line for line, _ in rows])


def _csv_lines(file: IO[str], path: Path, usual: str) -> Iterator[tuple[int, list[str]]]:
    """The header, then each row, with the line that it begins on; each has as many cells as the header."""
    delimiter = _delimiter(file.readline(MAX_FIELD_CHARACTERS), usual)
    file.seek(0)
    kept: list[str] = []  # the raw lines of the record being read
    reader = csv.reader(_keeping(file, kept, path), delimiter=delimiter)
    names, batch, start, line, last = list[str](), list[tuple[int, list[str]]](), 1, 1, list[str]()
    problem: DataError | None = None
    ended = False
    while not ended:
        batch, size = [], 0
        # The limit is the whole process's, so it is not held while a caller works on the rows.
        with _csv_limit():
            try:
                while size < _BATCH_CHARACTERS:
                    cells = next(reader, None)
                    if cells is None:
                        ended = True
                        break
                    if cells:
                        batch.append((start, cells))
                    start = reader.line_num + 1
                    last, kept[:] = list(kept), []
                    size += sum(map(len, last))
            except csv.Error as error:
                fix = "look for a quote that is never closed"
                problem, ended = DataError(f"cannot be read as CSV: {error}", path=path, line=start, fix=fix), True
        for line, cells in batch:
            if not names:
                names = cells = _header(cells, path)
            elif len(cells) != len(names):
                cut = ended and problem is None and cells is batch[-1][1] and not last[-1].endswith(("\n", "\r"))
                raise _ragged(path, line, cells, names, cut)
            yield line, cells
    if problem is not None:
        raise problem
    # A quote that nothing closes swallows the rest of the file, so only the last record can hold one.
    if names and _is_unclosed(last, delimiter):
        raise DataError("a quote is never closed", path=path, line=line, fix='close it, or double it: ""')


def _keeping(file: Iterable[str], kept: list[str], path: Path) -> Iterator[str]:
    for number, line in enumerate(file, 1):
        if "\0" in line:
            raise DataError("holds a NUL character", path=path, line=number, fix="save the file as UTF-8 text again")
        kept.append(line)
        yield line


def _is_unclosed(record: list[str], delimiter: str) -> bool:
    try:
        list(csv.reader(record, delimiter=delimiter, strict=True))
    except csv.Error as error:
        return "unexpected end" in str(error)
    return False


def _ragged(path: Path, line: int, cells: list[str], names: list[str], cut: bool) -> DataError:
    quotes = "put a cell that holds the delimiter, a quote or a line break into quotes"
    return DataError(
        f"has {len(cells)} cells, the header has {len(names)}",
        path=path,
        line=line,
        value=cells[0],
        fix=_CUT if cut and len(cells) < len(names) else quotes,
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
        fix = None if line is None or text.endswith("\n") else _CUT
        problem = f"is not JSON: {error.msg}, at character {error.colno}"
        raise DataError(problem, path=path, line=at, fix=fix) from None
    except RecursionError:
        raise DataError("is JSON nested too deep", path=path, line=line) from None
    except ValueError:  # Python reads no more than some thousands of digits
        raise DataError(
            "has a whole number of too many digits", path=path, line=line, fix='put it into quotes: "123"'
        ) from None


def _objects(rows: Iterable[tuple[int, Any]], path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for line, row in rows:
        if not isinstance(row, dict):
            raise DataError(
                "is not an object", path=path, line=line, value=row, fix='write {"query": ...} on each line'
            )
        yield line, row


def _records(rows: Iterable[tuple[int, dict[str, Any]]], path: Path, names: Iterable[str] | None = None) -> Table:
    """A table of objects; ``names`` are its columns where they are more than the objects have."""
    lines, records = list[int](), list[dict[str, Any]]()
    for line, record in rows:
        lines.append(line)
        records.append(record)
    if names is None:
        names = dict.fromkeys(name for record in records for name in record)
    empty = ("", None)
    columns = {name: [None if (v := r.get(name)) in empty else v for r in records] for name in names}
    return Table(columns, str(path), lines)


def _undecodable_line(path: Path, encoding: str) -> int | None:
    opener = gzip.open if path.suffix.lower() == ".gz" else open
    try:
        with opener(path, "rb") as file:
            for number, line in enumerate(file, 1):
                try:
                    line.decode(encoding)
                except UnicodeDecodeError:
                    return number
    except (EOFError, zlib.error):
        return first_unreadable_line(path)
    return None


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a table as CSV, folders and all; it is there as a whole or not at all."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(aside, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(header)
            writer.writerows(rows)
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)
