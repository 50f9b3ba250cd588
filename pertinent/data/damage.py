"""Which row of a damaged file is the first that cannot be read: Parquet by its parts, gzipped text by its lines."""

from __future__ import annotations

import gzip
import zlib
from itertools import accumulate
from pathlib import Path

from pertinent.errors import DataError

_MAGIC = b"PAR1"
# What stands at the end of every Parquet file: the length of the table of contents before it, and the magic.
_TAIL = 4 + len(_MAGIC)
_AGAIN = "write or copy the file again"


def refuse_damaged(path: Path) -> None:
    """Raises DataError with the first row of a Parquet file that cannot be read; a file without damage passes.

    Where the table of contents is missing or broken, that is row 1: it says where each column of each
    part begins, and it stands at the end, so nothing can be read of a file that was cut off.
    """
    refuse_without_contents(path)
    found = _first_broken_part(path)
    if found is not None:
        row, problem = found
        raise DataError(f"is damaged from about this row on ({problem})", path=path, line=row, fix=_AGAIN)


def refuse_without_contents(path: Path) -> None:
    """Raises DataError for a file that does not begin and end as a Parquet file does."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        head = file.read(len(_MAGIC))
        file.seek(max(size - _TAIL, 0))
        tail = file.read()
    if head != _MAGIC:
        fix = "give it the suffix of what it holds, or write it again"
        raise DataError(f"is not Parquet: no row can be read, it begins with {head!r}", path=path, line=1, fix=fix)
    length = int.from_bytes(tail[:4], "little")
    if size >= len(_MAGIC) + _TAIL and tail[4:] == _MAGIC and length <= size - len(_MAGIC) - _TAIL:
        return
    raise DataError(
        "no row can be read, as the table of contents at the end of the file is missing: it was cut off after "
        f"{size:,} bytes, or is still being written",
        path=path,
        line=1,
        fix=_AGAIN,
    )


def first_unreadable_line(path: Path) -> int:
    """The line of a gzipped text, from 1, in which what can be unzipped ends."""
    lines = 0
    try:
        with gzip.open(path, "rb") as file:
            for line in file:
                lines += line.endswith(b"\n")
    except (OSError, EOFError, zlib.error):
        pass
    return lines + 1


def pattern(path: str) -> str:
    """A path for DuckDB, which reads ``* ? [`` as patterns; in brackets they stand for themselves.

    >>> pattern("log[1].parquet")
    'log[[]1].parquet'
    """
    return "".join(f"[{c}]" if c in "*?[" else c for c in path)


def _first_broken_part(path: Path) -> tuple[int, str] | None:
    """The first row of the first part that cannot be read, and what the engine says of it."""
    import duckdb

    name = pattern(str(path.resolve()))
    with duckdb.connect(config={"threads": 1}) as connection:  # one thread reads parts in order, and none ahead
        try:
            groups = "SELECT DISTINCT row_group_id, row_group_num_rows FROM parquet_metadata(?) ORDER BY ALL"
            rows = [count for _, count in connection.execute(groups, [name]).fetchall()]
        except duckdb.Error as error:
            return 1, f"its table of contents cannot be read: {_first_line(error)}"
        ends = list(accumulate(rows, initial=0))
        whole, problem = 0, ""
        broken = len(ends)
        while broken - whole > 1:  # parts up to `whole` can be read, those up to `broken` cannot
            middle = (whole + broken) // 2
            part = f"SELECT max(hash(t)) FROM (SELECT * FROM read_parquet(?) LIMIT {ends[middle]}) AS t"
            try:
                connection.execute(part, [name]).fetchall()
                whole = middle
            except duckdb.Error as error:
                broken, problem = middle, _first_line(error)
    return (ends[whole] + 1, problem) if problem else None


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
