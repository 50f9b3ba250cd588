"""Queries in the form that the one normalizer gives them, on every engine."""

from __future__ import annotations

from pathlib import Path

import ibis

from pertinent.data.tables import MAX_TEXT_CHARACTERS
from pertinent.errors import DataError, need
from pertinent.mining.engines import ROWS, read_parquet, stage
from pertinent.text import normalize


def with_normalized_queries(connection: ibis.BaseBackend, table: ibis.Table, work: Path) -> ibis.Table:
    """The table with ``query`` as `pertinent.text.normalize` gives it, "" for none.

    The distinct texts go through Python in parts and are joined back, so the one normalizer serves
    every engine and memory holds a part at a time. Raises DataError for a query of more than 100,000 characters.
    """
    pa, pq = need("pyarrow", "logs"), need("pyarrow.parquet", "logs")
    texts = table.filter(table.query.notnull()).select("query").distinct()
    _refuse_long(table, stage(connection, texts, work / "queries.parquet"))
    schema = pa.schema([("raw", pa.string()), ("normalized", pa.string())])
    with pq.ParquetWriter(work / "normalized.parquet", schema) as writer:
        source = work / "queries.parquet"
        for path in sorted(source.glob("*.parquet")) if source.is_dir() else [source]:
            with pq.ParquetFile(path) as file:
                for batch in file.iter_batches(ROWS, columns=["query"]):
                    raw = batch.column(0).to_pylist()
                    writer.write_table(pa.table([raw, [normalize(text) for text in raw]], schema=schema))
    known = read_parquet(connection, work / "normalized.parquet")
    joined = table.left_join(known, table.query == known.raw)
    return joined.select(
        *[joined.normalized.fill_null("").name(c) if c == "query" else joined[c] for c in table.columns]
    )


def _refuse_long(table: ibis.Table, texts: ibis.Table) -> None:
    """Raise DataError that names the first row of the table whose query is too long; ``texts`` are its queries."""
    longest = texts.agg(longest=texts.query.length().max()).to_pyarrow()["longest"][0].as_py() or 0
    if longest <= MAX_TEXT_CHARACTERS:
        return
    long = table.filter(table.query.length() > MAX_TEXT_CHARACTERS)
    first = long.select("file", "row", "query").order_by("file", "row").limit(1).to_pyarrow().to_pylist()[0]
    raise DataError(
        f"has {len(first['query']):,} characters, {MAX_TEXT_CHARACTERS:,} are allowed",
        path=first["file"],
        line=first["row"],
        column="query",
        value=first["query"],
        fix="shorten it; this may be a quote that is not closed",
    )
