"""The engines that mining runs on, and how tables enter and leave them.

Every step is an Ibis expression, so DuckDB (embedded, the default) and Spark give the same rows.
Memory is bounded; what does not fit is spilled to a folder beside the work.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from pertinent.config import Config
from pertinent.errors import DataError, need

if TYPE_CHECKING:
    import ibis
    import pyarrow as pa

# Rows go through Python in parts of this size.
ROWS = 50_000


class DuckDBEngine(Config):
    """DuckDB in this process. ``memory`` bounds its buffers (the process needs some more)."""

    type: Literal["duckdb"] = "duckdb"
    memory: str = Field("4GB", pattern=r"^\d+(\.\d+)?\s?(MB|GB|TB)$")
    threads: int | None = Field(None, ge=1)


class SparkEngine(Config):
    """Spark: ``local[2]`` runs in this machine, any other master URL on a cluster.

    Inside ``spark-submit`` leave ``master`` empty. ``options`` are Spark's own settings.
    """

    type: Literal["spark"] = "spark"
    master: str | None = "local[2]"
    memory: str = Field("2g", pattern=r"^\d+[mgt]$")
    partitions: int = Field(8, ge=1)
    options: dict[str, str] = {}


EngineConfig = Annotated[DuckDBEngine | SparkEngine, Field(discriminator="type")]


@contextmanager
def open_engine(config: DuckDBEngine | SparkEngine, work: str | Path) -> Iterator[ibis.BaseBackend]:
    """A connection that spills into ``work`` and is closed at the end of the block.

    Raises MissingExtraError where Ibis or PySpark is not installed, DataError where Java is missing.
    """
    work = Path(work)
    work.mkdir(parents=True, exist_ok=True)
    connection = _duckdb(config, work) if isinstance(config, DuckDBEngine) else _spark(config, work)
    try:
        yield connection
    finally:
        connection.disconnect()


def read_parquet(connection: ibis.BaseBackend, path: str | Path) -> ibis.Table:
    """A table from a Parquet file, or from a folder of part files as Spark writes it."""
    path = Path(path)
    source = str(path / "*.parquet") if path.is_dir() else str(path)
    return connection.read_parquet(source)


def write_parquet(connection: ibis.BaseBackend, table: ibis.Table, path: str | Path, order: list[str]) -> None:
    """Write a table in the order of the given columns, nulls last: the same rows give the same file.

    Without columns the order is left to the engine, which is quicker.
    DuckDB writes one file; Spark writes a folder of part files, in order, under the same name.
    """
    path = Path(path)
    if order:
        table = table.order_by([table[name].asc(nulls_first=False) for name in order])
    if connection.name == "duckdb":
        connection.to_parquet(_as_declared(table), path, compression="zstd")
        return
    connection.to_parquet(table, path, mode="overwrite", compression="zstd")
    for leftover in [*path.glob("_*"), *path.glob(".*")]:
        leftover.unlink()
    for number, part in enumerate(sorted(path.glob("part-*.parquet"))):
        part.rename(path / f"part-{number:05}.parquet")


def stage(connection: ibis.BaseBackend, table: ibis.Table, path: Path) -> ibis.Table:
    """The table, computed once and kept in a Parquet file (a folder on Spark), in no order."""
    if connection.name == "duckdb":
        connection.to_parquet(table, path, compression="snappy")
    else:
        frame = connection._session.sql(connection.compile(table))
        frame.write.mode("overwrite").option("compression", "snappy").parquet(str(path))
    return read_parquet(connection, path)


def write_rows(rows: Iterator[tuple[Any, ...]], schema: pa.Schema, path: Path) -> None:
    """Write tuples to a Parquet file, a part at a time."""
    pa, pq = need("pyarrow", "logs"), need("pyarrow.parquet", "logs")
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        part: list[tuple[Any, ...]] = []

        def write() -> None:
            columns = list(zip(*part, strict=True)) or [()] * len(schema)
            arrays = [pa.array(column, f.type) for column, f in zip(columns, schema, strict=True)]
            writer.write_table(pa.table(arrays, schema=schema))
            part.clear()

        for row in rows:
            part.append(row)
            if len(part) == ROWS:
                write()
        write()


def _as_declared(table: ibis.Table) -> ibis.Table:
    """A table whose whole numbers have in DuckDB the types that Ibis says they have.

    DuckDB sums into 128 bits, which its Parquet writer makes floats of, and Ibis drops a cast to the
    type it believes in already; a detour through decimals is not dropped.
    """
    whole = [name for name, kind in table.schema().items() if kind.is_integer()]
    return table.mutate(**{name: table[name].cast("decimal(38, 0)").cast(table[name].type()) for name in whole})


def _duckdb(config: DuckDBEngine, work: Path) -> ibis.BaseBackend:
    ibis = need("ibis", "logs")
    spill = work / "spill"
    spill.mkdir(exist_ok=True)
    connection = ibis.duckdb.connect(
        memory_limit=config.memory, temp_directory=str(spill), **({"threads": config.threads} if config.threads else {})
    )
    connection.raw_sql("SET preserve_insertion_order = true")
    connection.raw_sql("SET enable_progress_bar = false")
    return connection


def _spark(config: SparkEngine, work: Path) -> ibis.BaseBackend:
    ibis = need("ibis", "scale")
    sql = need("pyspark.sql", "scale")
    if config.master is not None and config.master.startswith("local") and shutil.which("java") is None:
        raise DataError(
            "Spark needs Java 17 or later, and no java was found; on Debian: apt install default-jre-headless"
        )
    settings: dict[str, Any] = {
        "spark.driver.memory": config.memory,
        "spark.sql.shuffle.partitions": str(config.partitions),
        "spark.sql.session.timeZone": "UTC",
        "spark.ui.enabled": "false",
        "spark.sql.warehouse.dir": str(work / "warehouse"),
        "spark.local.dir": str(work / "spill"),
        **config.options,
    }
    builder = sql.SparkSession.builder.appName("pertinent")
    if config.master is not None:
        builder = builder.master(config.master)
        if config.master.startswith("local"):
            settings = {"spark.driver.bindAddress": "127.0.0.1", "spark.driver.host": "127.0.0.1", **settings}
    for key, value in settings.items():
        builder = builder.config(key, value)
    session = builder.getOrCreate()
    session.sparkContext.setLogLevel("ERROR")
    return ibis.pyspark.connect(session)
