"""One test body, two engines: a test that takes ``engine`` runs on DuckDB and on Spark."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest

from pertinent.mining.engines import DuckDBEngine, SparkEngine, open_engine


@pytest.fixture(scope="session")
def duckdb_engine(tmp_path_factory) -> Iterator[object]:
    with open_engine(DuckDBEngine(memory="1GB", threads=2), tmp_path_factory.mktemp("duckdb")) as connection:
        yield connection


@pytest.fixture(scope="session")
def spark_engine(tmp_path_factory) -> Iterator[object]:
    pytest.importorskip("pyspark", reason="PySpark is not installed")
    if shutil.which("java") is None:
        pytest.skip("Spark needs a Java runtime")
    config = SparkEngine(memory="1g", partitions=2)
    with open_engine(config, tmp_path_factory.mktemp("spark")) as connection:
        yield connection


@pytest.fixture(params=["duckdb", pytest.param("spark", marks=pytest.mark.spark)])
def engine(request) -> object:
    """An Ibis connection; tables made in it are dropped with it, so give them their own names."""
    return request.getfixturevalue(f"{request.param}_engine")
