"""Queries in the form that the one normalizer gives them, on every engine."""

from __future__ import annotations

from pathlib import Path

import ibis

from pertinent.errors import need
from pertinent.mining.engines import ROWS, read_parquet, stage
from pertinent.text import normalize


def with_normalized_queries(connection: ibis.BaseBackend, table: ibis.Table, work: Path) -> ibis.Table:
    """The table with ``query`` as `pertinent.text.normalize` gives it, "" for none.

    The distinct texts go through Python in parts and are joined back, so the one normalizer serves
    every engine and memory holds a part at a time.
    """
    pa, pq = need("pyarrow", "logs"), need("pyarrow.parquet", "logs")
    stage(connection, table.filter(table.query.notnull()).select("query").distinct(), work / "queries.parquet")
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
