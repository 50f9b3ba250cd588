"""Columns of a table of your own as those of RAW_EVENTS, each cell checked; what cannot be read is named by row."""

from __future__ import annotations

import datetime
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import ibis

from pertinent.errors import DataError, need
from pertinent.mining.engines import read_parquet
from pertinent.mining.formats import NEGATIVE, POSITIONS, UNITS, micros, word
from pertinent.mining.schema import LEVEL_NUMBERS, LEVELS
from pertinent.mining.sources import LogConfig

if TYPE_CHECKING:
    import ibis.expr.datatypes as dt
    import ibis.expr.types as ir
    import pyarrow.parquet as pq

# Beyond this a number was surely read in the wrong unit: the year 2200.
TOO_LATE = 7_258_118_400 * 1_000_000
_QUARTER = 900 * 1_000_000
# No time is further from 1970 than this, in microseconds.
_TIMES = 2**62
# The first and the last second that a calendar has: years 1 to 9999.
_CALENDAR = (-62_135_596_800, 253_402_300_799)
_PER_SECOND = MappingProxyType({"s": 1, "ms": 1000, "us": 10**6, "ns": 10**9})
_UNIT_NAMES = MappingProxyType({"s": "seconds", "ms": "milliseconds", "us": "microseconds", "ns": "nanoseconds"})
_INFINITE = ("inf", "-inf", "infinity", "-infinity")


def text_column(table: ibis.Table, name: str, source: str) -> ibis.Column:
    """Ids or texts of a column, null where they are empty; whole numbers become text, so that 12 and "12" are one.

    Raises DataError for a column that holds neither, and for the first row whose id is infinite.
    """
    column, kind = table[name], table[name].type()
    if kind.is_string():
        return _trimmed(column).nullif("")
    if kind.is_integer() or (kind.is_decimal() and kind.scale == 0):
        return column.cast("string")
    if kind.is_floating():  # whole numbers with a gap among them arrive as floats: 12.0 is the id 12
        text = _lower(column)
        first = _first(table, text.isin(_INFINITE), name)
        if first is not None:
            fix = "store ids as text, and leave the cell empty where there is none"
            raise DataError(
                "is no id", path=first["file"], line=first["row"], column=name, value=first["value"], fix=fix
            )
        whole = column.try_cast("int64").cast("string")
        return _is_whole(column).ifelse(whole, (text == "nan").ifelse(ibis.null("string"), column.cast("string")))
    if _is_empty(kind):
        return ibis.null("string")
    raise DataError(f"holds {kind}, not text", path=source, column=name, fix="store text")


def _is_empty(kind: dt.DataType) -> bool:
    """Whether a column has nulls only, and so no type; Ibis has no name for DuckDB's."""
    return kind.is_null() or 'kind="NULL"' in str(kind)


def _is_whole(column: ibis.Column) -> ir.BooleanValue:
    """Whether a number has no part behind the point; not so for what 64 bits cannot hold."""
    return (column.try_cast("int64").cast("float64") == column.cast("float64")).fill_null(False)


@ibis.udf.scalar.builtin(name="trim", signature=((ibis.dtype("string"),), ibis.dtype("string")))
def _trimmed(text):  # type: ignore[no-untyped-def]
    """A text without blanks around it. Ibis' own ``strip`` takes the letter v away on Spark ("tv" becomes "t")."""


def refuse_far_times(path: Path, column: str) -> None:
    """Raise DataError for the first timestamp of a Parquet file that is in no year from 1 to 9999.

    An engine counts in microseconds and ends at the first timestamp that does not fit, without its row.
    What a part of the file says of its smallest and largest value is believed; other parts are read.
    """
    pa, pc, pq = need("pyarrow", "logs"), need("pyarrow.compute", "logs"), need("pyarrow.parquet", "logs")
    row = 1
    with pq.ParquetFile(path, coerce_int96_timestamp_unit="ms") as file:
        names = file.schema_arrow.names
        kind = file.schema_arrow.field(column).type if names.count(column) == 1 else None
        kind = kind.value_type if kind is not None and pa.types.is_dictionary(kind) else kind
        if kind is None or not pa.types.is_timestamp(kind):
            return
        low, high = (bound * _PER_SECOND[kind.unit] for bound in _CALENDAR)
        place = file.schema.names.index(column) if column in file.schema.names else None
        for part in range(file.num_row_groups):
            known = None if place is None else file.metadata.row_group(part).column(place).statistics
            if known is None or not known.has_min_max or not _within(known, low, high):
                cells = pc.cast(pc.cast(file.read_row_group(part, columns=[column]).column(0), kind), pa.int64())
                far = pc.or_(pc.less(cells, low), pc.greater(cells, high + _PER_SECOND[kind.unit] - 1))
                first = pc.index(far, pa.scalar(True)).as_py()
                if first >= 0:
                    value = f"{cells[first].as_py()} {_UNIT_NAMES[kind.unit]} since 1970"
                    raise _no_year(value, path, row + first)
            row += file.metadata.row_group(part).num_rows


def _within(known: pq.Statistics, low: int, high: int) -> bool:
    """Whether the smallest and largest value of a part are whole numbers within bounds."""
    ends = (known.min_raw, known.max_raw)
    return all(isinstance(end, int) and low <= end <= high for end in ends)


def _no_year(value: str, path: Path, line: int) -> DataError:
    fix = "mend the row, or leave the cell empty where no time is known"
    problem = "is in no year from 1 to 9999"
    return DataError(problem, path=path, line=line, column="time", value=value, fix=fix)


def micros_of(connection: ibis.BaseBackend, table: ibis.Table, config: LogConfig, source: str) -> ibis.Column:
    time = table.time
    kind = time.type()
    if kind.is_timestamp():
        return _since_1970(connection)(time if connection.name == "duckdb" else time.cast("timestamp('UTC')"))
    if "TIMESTAMPTZ_NS" in str(kind):  # Ibis has no name for this kind of DuckDB's
        return _since_1970(connection)(time.cast("timestamp('UTC')"))
    if _is_empty(kind):
        return ibis.null("int64")
    if not kind.is_numeric() or kind.is_boolean():
        fix = "store a timestamp with a zone, or a number since 1970 (such as --set log.time_unit=milliseconds)"
        raise DataError(f"holds {kind}, not times", path=source, column="time", fix=fix)
    unit = UNITS[config.unit()]
    wrong = _first(table, _not_finite(time) | _beyond(time, -_TIMES // unit, TOO_LATE // unit), "time")
    if wrong is not None:
        raise no_time(wrong["value"], config.unit(), wrong["file"], wrong["row"])
    return time.cast("int64") * unit if kind.is_integer() else (time * unit).round().cast("int64")


def number(value: object) -> float | None:
    """A cell of text or of JSON as a number, None where it is none."""
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None


def no_time(value: object, unit: str, path: str | Path | None = None, line: int | None = None) -> DataError:
    """The error of a number that is no time in this unit."""
    late = TOO_LATE < (number(value) or 0) * UNITS[unit] < math.inf
    problem = f"is after the year 2200 when read as {unit}" if late else f"is not a time in {unit}"
    unit = "--set log.time_unit=milliseconds"
    fix = (
        f"if it counts others: {unit} (or microseconds)" if late else f"leave the cell empty, or name the unit: {unit}"
    )
    return DataError(problem, path=path, line=line, column="time", value=value, fix=fix)


def _not_finite(column: ibis.Column) -> ir.BooleanValue:
    """Whether a number is NaN or infinite; whole numbers and decimals never are.

    It is told from the text: DuckDB finds no NaN by ``isnan`` where a file's statistics, which leave NaN
    out, seem to rule it out.
    """
    if not column.type().is_floating():
        return ibis.literal(False)
    return _lower(column).isin(["nan", *_INFINITE])


def _lower(column: ibis.Column) -> ir.StringValue:
    return column.cast("string").lower()


def _beyond(column: ibis.Column, low: int, high: int) -> ir.BooleanValue:
    """Whether a number is below the first bound, which is negative, or above the second one."""
    above = column > high
    return above if column.type().is_unsigned_integer() else above | (column < low)


def _first(table: ibis.Table, where: ir.BooleanValue, column: str) -> dict[str, Any] | None:
    """``file`` and ``row`` of the first row of the log where this is so, and the ``value`` of a column as text.

    As text, because what comes from Spark has no NaN.
    """
    found = table.filter(where).select("file", "row", value=table[column].cast("string")).order_by("file", "row")
    rows = found.limit(1).to_pyarrow().to_pylist()
    return rows[0] if rows else None


def _since_1970(connection: ibis.BaseBackend) -> Callable[[ibis.Column], ibis.Column]:
    """The engine's own function from timestamps to microseconds; Ibis has none that is exact on both."""
    name = "epoch_us" if connection.name == "duckdb" else "unix_micros"
    kinds = ((ibis.dtype("timestamp"),), ibis.dtype("int64"))

    @ibis.udf.scalar.builtin(name=name, signature=kinds)
    def since_1970(time):  # type: ignore[no-untyped-def]
        ...

    return since_1970


def in_utc(connection: ibis.BaseBackend, table: ibis.Table, config: LogConfig, work: Path) -> ibis.Table:
    """Times of the configured zone as times in UTC: Python's zone rules for each quarter of an hour that occurs."""
    pa, pq = need("pyarrow", "logs"), need("pyarrow.parquet", "logs")
    quarter = (table.time / _QUARTER).floor().cast("int64")
    table = table.mutate(quarter=quarter)
    quarters = sorted(
        q for q in table.select("quarter").distinct().to_pyarrow()["quarter"].to_pylist() if q is not None
    )
    zone, epoch = config.zone(), datetime.datetime(1970, 1, 1)
    utc = [
        micros(epoch + datetime.timedelta(microseconds=q * _QUARTER), zone, "seconds") - q * _QUARTER for q in quarters
    ]
    shifts = pa.table({"quarter": pa.array(quarters, pa.int64()), "shift": pa.array(utc, pa.int64())})
    pq.write_table(shifts, work / "zone.parquet")
    joined = table.left_join(read_parquet(connection, work / "zone.parquet"), "quarter")
    return joined.select(
        *[(joined.time + joined["shift"]).name("time") if c == "time" else joined[c] for c in table.columns]
    )


def levels(table: ibis.Table, config: LogConfig, source: str) -> ibis.Column:
    """Numbers of LEVELS, or NEGATIVE, for the words of a log. Raises DataError with the row of an unknown one."""
    text = text_column(table, "level", source)
    meanings = {
        **{name: name for name in LEVELS},
        "negative": "negative",
        # Where words are mapped, numbers are taken for words: what 1 means in such a log is not ours to guess.
        **({} if config.levels else {str(number): name for name, number in LEVEL_NUMBERS.items()}),
        **{word(k): v for k, v in config.levels.items()},
    }
    numbers = {**LEVEL_NUMBERS, "negative": NEGATIVE}
    found = table.select(level=text).distinct().limit(1000).to_pyarrow()["level"].to_pylist()
    cases = []
    for value in sorted(value for value in found if value is not None):
        meaning = meanings.get(word(value))
        if meaning is None:
            raise _unknown_level(table, text == value, value, meanings)
        cases.append(
            (text == value, ibis.null("int64") if meaning == "ignore" else ibis.literal(numbers[meaning], "int64"))
        )
    if None in found:
        raise _unknown_level(table, text.isnull(), None, meanings)
    return ibis.cases(*cases, else_=ibis.null("int64")) if cases else ibis.null("int64")


def _unknown_level(table: ibis.Table, where: Any, value: str | None, meanings: Mapping[str, str]) -> DataError:
    first = _first(table, where, "level")
    assert first is not None
    return DataError(
        "is empty" if value is None else "is not a level",
        path=first["file"],
        line=first["row"],
        column="level",
        value=value,
        fix=f"allowed: {', '.join(sorted(meanings))}; map others with --set log.levels='{{{value or 'yours'}: click}}'",
    )


def position_column(table: ibis.Table, config: LogConfig, source: str) -> ibis.Column:
    if "position" not in table.columns:
        return ibis.null("int32")
    position, kind = table.position, table.position.type()
    if _is_empty(kind):
        return ibis.null("int32")
    if not kind.is_numeric() or kind.is_boolean():
        raise DataError(f"holds {kind}, not whole numbers", path=source, column="position")
    wrong = _not_finite(position) | _beyond(position, 1 - POSITIONS, POSITIONS - 1)
    if not kind.is_integer():
        wrong = wrong | (position.notnull() & ~_is_whole(position))
    first = _first(table, wrong, "position")
    if first is not None:
        raise no_position(first["value"], first["file"], first["row"])
    return (position.cast("int64") - (config.position_base or 0)).cast("int32")


def no_position(value: object, path: str | Path | None = None, line: int | None = None) -> DataError:
    """The error of a position that is no whole number, or too large."""
    found = number(value)
    large = found is not None and found.is_integer()
    problem = f"is a whole number of {POSITIONS} or more" if large else "is not a whole number"
    fix = "positions count from 0 or 1; leave unknown ones empty"
    return DataError(problem, path=path, line=line, column="position", value=value, fix=fix)
