"""A log that is a table of your own: Parquet is read by the engine itself, text goes through Python once."""

from __future__ import annotations

import datetime as dt
import glob
from collections import Counter
from collections.abc import Collection, Iterator
from itertools import takewhile
from pathlib import Path
from typing import Any

import ibis

from pertinent.data.damage import refuse_damaged
from pertinent.data.files import check_exists, read_records
from pertinent.data.tables import nearest
from pertinent.errors import DataError, need
from pertinent.mining.cells import (
    TOO_LATE,
    in_utc,
    levels,
    micros_of,
    no_position,
    no_time,
    number,
    position_column,
    refuse_far_times,
    text_column,
)
from pertinent.mining.engines import read_parquet, write_rows
from pertinent.mining.formats import micros, text_of, whole
from pertinent.mining.sources import OUR_COLUMNS, TABLE_COLUMNS, WHO, LogConfig, files_of

# Where a row of a Parquet log came from.
_PLACE = ("file", "row", "source_file", "file_row_number")


def own_table(connection: ibis.BaseBackend, config: LogConfig, work: Path, notes: Counter[str]) -> ibis.Table:
    """The log with the columns of RAW_EVENTS, as they are in the log; what was met goes into ``notes``."""
    (source,) = config.sources()
    scanned = _scan(connection, source, config)
    if scanned is None:
        table = read_parquet(connection, _text_rows(config, work, notes))
        naive = False
    else:
        table, naive = scanned
    if scanned is not None:
        _require([name for name in table.columns if name not in _PLACE], source)
    known = {
        name: text_column(table, name, source)
        for name in (*WHO, "item_id", "query", "event_id", "agent")
        if name in table.columns
    }
    absent = {name: ibis.null("string") for name in (*WHO, "event_id", "agent") if name not in table.columns}
    time = table.time if scanned is None else micros_of(connection, table, config, source)
    level = levels(table, config, source)
    table = table.mutate(**known, **absent, time=time, level=level, position=position_column(table, config, source))
    if "ignore" in config.levels.values():
        notes["ignore_actions"] = int(table.filter(table.level.isnull()).count().to_pyarrow().as_py())
        table = table.filter(table.level.notnull())
    if naive and config.time_zone not in (None, "UTC"):
        table = in_utc(connection, table, config, work)
    missing, below, first, positions = (
        int(value or 0)
        for value in table.agg(
            missing=table.time.isnull().sum(),
            below=(table.position < 0).sum(),
            first=(table.position == 0).sum(),
            known=table.position.count(),
        )
        .to_pyarrow()
        .to_pylist()[0]
        .values()
    )
    notes["rows_without_time"], notes["negative_positions"] = missing, below
    notes["no_first_position"] = positions if config.position_base is None and positions and not first else 0
    position = (table.position < 0).fill_null(False).ifelse(ibis.null("int32"), table.position)
    return table.mutate(time=table.time.fill_null(0), position=position)


def _scan(connection: ibis.BaseBackend, source: str, config: LogConfig) -> tuple[ibis.Table, bool] | None:
    """The engine's own view of a Parquet log and whether its times lack a zone; None where it is text."""
    found = [source] if "://" in source else [str(path) for path in files_of(source)]
    if any(not name.lower().endswith(".parquet") for name in found if "://" not in name):
        return None
    back = {ours: yours for yours, ours in config.columns.items()}
    if "://" not in source:
        for name in found:
            _refuse_broken(Path(name), back.get("time", "time"))
    try:
        if connection.name == "duckdb":
            table = connection.read_parquet(found, filename="source_file", file_row_number=True, union_by_name=True)
            kind = table.schema().get(back.get("time", "time"))
            naive = kind is not None and kind.is_timestamp() and kind.timezone is None
        else:
            reader = connection._session.read.option("mergeSchema", "true")
            # A folder's name such as level=view is a column, as it is on DuckDB; it counts from here on.
            reader = reader if "://" in source else reader.option("basePath", str(_base_folder(source)))
            frame = reader.parquet(*found)
            kinds = dict(frame.dtypes)
            naive = kinds.get(back.get("time", "time")) == "timestamp_ntz"
            place = (
                "replace(replace(_metadata.file_path, 'file://', ''), 'file:', '') AS source_file",
                "_metadata.row_index AS file_row_number",
            )
            frame = frame.selectExpr("*", *place)
            name = ibis.util.gen_name("log")
            frame.createOrReplaceTempView(name)
            table = connection.table(name)
    except Exception as error:
        first = str(error).partition("\n")[0]
        raise DataError(f"cannot be read as Parquet: {first}", path=source, fix="write the file again") from None
    _require_mapped(config, [name for name in table.columns if name not in _PLACE], source)
    kept = [name for name in table.columns if name not in config.columns and name not in back]
    table = table.select(*kept, **back)
    table = table.mutate(file=table.source_file, row=table.file_row_number.cast("int64") + 1)
    if "time" in table.columns and table.time.type().is_string():
        if "://" in source:
            fix = "store timestamps with a zone, or numbers since 1970"
            raise DataError("times of a log in remote storage cannot be text", path=source, column="time", fix=fix)
        return None
    if naive and config.time_zone is None:
        raise DataError(
            "times have no time zone",
            path=source,
            column="time",
            fix="name the zone that the log is written in, such as --set log.time_zone=Europe/Berlin",
        )
    return table, naive


def _refuse_broken(path: Path, time: str) -> None:
    """Raise DataError for a file that is no Parquet, or that has a time which no calendar has."""
    pa = need("pyarrow", "logs")
    check_exists(path)
    try:
        refuse_far_times(path, time)
    except (OSError, pa.ArrowException) as error:
        refuse_damaged(path)
        first = str(error).partition("\n")[0]
        raise DataError(f"cannot be read as Parquet: {first}", path=path, fix="write the file again") from None


def _base_folder(source: str) -> Path:
    """The folder below which folders may be named for a column and its value.

    >>> _base_folder("logs/day=*/part-?.parquet").as_posix()
    'logs'
    """
    path = Path(source)
    if path.is_dir():
        return path
    if path.exists():
        return path.parent
    fixed = list(takewhile(lambda part: not glob.has_magic(part), path.parts))
    return Path(*fixed)


def _require(there: Collection[str], source: str) -> None:
    """Raise DataError where a column of ours is missing among those of a log, after mapping."""
    own = [name for name in there if name not in OUR_COLUMNS]
    has = f"it has {', '.join(list(there)[:20])}"
    for name in TABLE_COLUMNS:
        if name not in there:
            fix = f"say which one it is: --columns {nearest(name, own) or 'yours'}={name}"
            raise DataError(f"has no column {name!r}; {has}", path=source, fix=fix)
    if not set(WHO) & set(there):
        fix = "one of them is enough; say which column it is: --columns yours=session_id"
        raise DataError(f"has none of {', '.join(WHO)}; {has}", path=source, fix=fix)


def _require_mapped(config: LogConfig, there: Collection[str], source: str) -> None:
    """Raise DataError where a column that is mapped to one of ours is not in the log."""
    for yours, ours in config.columns.items():
        if yours not in there:
            if ours in there:
                problem = f"has no column {yours!r}, and has a column {ours!r} already"
                raise DataError(problem, path=source, fix=f"leave {yours}={ours} out")
            near = nearest(yours, there)
            fix = f"did you mean --columns {near}={ours}?" if near else f"name the column that is {ours}"
            has = ", ".join(list(there)[:20])
            raise DataError(f"has no column {yours!r}, which is mapped to {ours!r}; it has {has}", path=source, fix=fix)


def _text_rows(config: LogConfig, work: Path, notes: Counter[str]) -> Path:
    """A Parquet file of a log in CSV or JSON lines, or with times in text: each cell checked, times in microseconds."""
    pa = need("pyarrow", "logs")
    (source,) = config.sources()
    paths = files_of(source)
    there = list(dict.fromkeys(n for path in paths for n in _names(path)))
    if not there:
        raise DataError("has no rows", path=source, fix="give a file with at least one row of data")
    _require_mapped(config, there, source)
    names = list(dict.fromkeys(config.columns.get(n, n) for n in there))
    _require(names, source)
    texts = [n for n in (*WHO, "query", "item_id", "level", "event_id", "agent") if n in names]
    schema = pa.schema(
        [
            *[(name, pa.string()) for name in texts],
            *([("position", pa.int64())] if "position" in names else []),
            *([("time", pa.int64())] if "time" in names else []),
            ("file", pa.string()),
            ("row", pa.int64()),
        ]
    )
    write_rows(_text_cells(config, paths, texts, names), schema, work / "table.parquet")
    return work / "table.parquet"


def _names(path: Path) -> list[str]:
    """The columns of a file: of JSON, those of its records."""
    if path.name.lower().removesuffix(".gz").endswith((".jsonl", ".ndjson", ".json")):
        return list(dict.fromkeys(name for _, record in read_records(path) for name in record))
    return list(next(read_records(path), (0, {}))[1])


def _text_cells(config: LogConfig, paths: list[Path], texts: list[str], names: list[str]) -> Iterator[tuple[Any, ...]]:
    zone, unit = config.zone(), config.unit()
    back = {ours: yours for yours, ours in config.columns.items()}
    wanted = [*texts, *(name for name in ("position", "time") if name in names)]
    for path in paths:
        for line, record in read_records(path):
            cells = list[Any]()
            for name in wanted:
                value = record.get(back.get(name, name))
                try:
                    cells.append(_text_cell(name, value, zone, unit))
                except DataError as error:
                    raise DataError(error.problem, path=path, line=line, column=name, value=value) from None
            yield (*cells, str(path), line)


def _text_cell(name: str, value: object, zone: dt.tzinfo | None, unit: str) -> str | int | None:
    """A cell as its column holds it. Raises DataError, without the place, for one that cannot be that."""
    text = text_of(value)
    if text is None or name not in ("position", "time"):
        return text
    if name == "position":
        position = whole(value)
        if position is None:
            raise no_position(value)
        return position
    time = micros(value, zone, unit)
    if time > TOO_LATE and number(value) is not None:
        raise no_time(value, unit)
    return time
