"""One test body, two engines: a test that takes ``engine`` runs on DuckDB and on Spark."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ibis
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pertinent.mining.engines import DuckDBEngine, SparkEngine, open_engine, read_parquet, write_parquet

# Compiling and replanning each step takes most of the time on tables of a few rows.
SMALL_TABLES = {
    "spark.sql.codegen.wholeStage": "false",
    "spark.sql.codegen.factoryMode": "NO_CODEGEN",
    "spark.sql.adaptive.enabled": "false",
    "spark.driver.extraJavaOptions": "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC",
}


@pytest.fixture(scope="session")
def duckdb_engine(tmp_path_factory) -> Iterator[object]:
    with open_engine(DuckDBEngine(memory="1GB", threads=2), tmp_path_factory.mktemp("duckdb")) as connection:
        yield connection


@pytest.fixture(scope="session")
def spark_engine(tmp_path_factory) -> Iterator[object]:
    pytest.importorskip("pyspark", reason="PySpark is not installed")
    if shutil.which("java") is None:
        pytest.skip("Spark needs a Java runtime")
    config = SparkEngine(master="local[1]", memory="1g", partitions=1, options=SMALL_TABLES)
    with open_engine(config, tmp_path_factory.mktemp("spark")) as connection:
        yield connection


@pytest.fixture(params=["duckdb", pytest.param("spark", marks=pytest.mark.spark)])
def engine(request) -> object:
    """An Ibis connection; tables made in it are dropped with it, so give them their own names."""
    return request.getfixturevalue(f"{request.param}_engine")


class Bench:
    """Tables in and out of an engine through Parquet files, as ``pertinent mine`` moves them."""

    def __init__(self, connection: Any, folder: Path) -> None:
        self.connection, self.folder, self.files = connection, folder, 0

    def table(self, columns: dict[str, str], rows: list[tuple[Any, ...]]) -> ibis.Table:
        """A table of these rows; ``columns`` are names and Ibis types."""
        schema = ibis.schema(columns).to_pyarrow()
        values = list(zip(*rows, strict=True)) if rows else [[] for _ in schema]
        arrays = [pa.array(list(column), field.type) for column, field in zip(values, schema, strict=True)]
        self.files += 1
        path = self.folder / f"in-{self.files}.parquet"
        pq.write_table(pa.Table.from_arrays(arrays, schema=schema), path)
        return read_parquet(self.connection, path)

    def rows(self, table: ibis.Table, order: list[str]) -> list[tuple[Any, ...]]:
        """The rows that are written for a table, in their order."""
        return [tuple(row.values()) for row in self._written(table, order).to_pylist()]

    def types(self, table: ibis.Table, order: list[str]) -> dict[str, str]:
        """Names and types of the columns that are written for a table."""
        return {field.name: str(field.type) for field in self._written(table, order).schema}

    def _written(self, table: ibis.Table, order: list[str]) -> pa.Table:
        self.files += 1
        path = self.folder / f"out-{self.files}.parquet"
        write_parquet(self.connection, table, path, order)
        return pq.read_table(path)


@pytest.fixture
def bench(engine, tmp_path) -> Bench:
    """Tables in and out of either engine."""
    return Bench(engine, tmp_path)


@pytest.fixture
def duckdb_bench(duckdb_engine, tmp_path) -> Bench:
    """Tables in and out of DuckDB."""
    return Bench(duckdb_engine, tmp_path)
