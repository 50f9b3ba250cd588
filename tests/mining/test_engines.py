import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pertinent.errors import ConfigError
from pertinent.mining.engines import DuckDBEngine, read_parquet, write_parquet


def rows(count: int) -> pa.Table:
    return pa.table({"number": pa.array(range(count), pa.int64()), "word": [f"wort-ü-{n % 7}" for n in range(count)]})


@pytest.mark.parametrize("count", [0, 1, 1000])
def test_what_is_written_is_read_again_in_the_order_asked_for(engine, tmp_path, count):
    pq.write_table(rows(count), tmp_path / "in.parquet")
    table = read_parquet(engine, tmp_path / "in.parquet")
    write_parquet(engine, table, tmp_path / "out.parquet", ["word", "number"])
    back = read_parquet(engine, tmp_path / "out.parquet").to_pyarrow()
    expected = sorted(rows(count).to_pylist(), key=lambda row: (row["word"], row["number"]))
    assert back.to_pylist() == expected


def test_the_same_rows_give_the_same_bytes(duckdb_engine, tmp_path):
    pq.write_table(rows(5000), tmp_path / "in.parquet")
    for name in ("a", "b"):
        table = read_parquet(duckdb_engine, tmp_path / "in.parquet")
        write_parquet(duckdb_engine, table, tmp_path / f"{name}.parquet", ["word", "number"])
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()


def test_groups_are_the_same_on_every_engine(engine, tmp_path):
    pq.write_table(rows(1000), tmp_path / "in.parquet")
    table = read_parquet(engine, tmp_path / "in.parquet")
    found = table.group_by("word").agg(total=table.number.sum(), count=table.count()).order_by("word").to_pyarrow()
    assert found["total"].to_pylist()[0] == sum(range(0, 1000, 7))


def test_sums_and_cases_are_written_with_the_types_they_have_in_ibis(engine, tmp_path):
    pq.write_table(rows(1000), tmp_path / "in.parquet")
    table = read_parquet(engine, tmp_path / "in.parquet")
    small = (table.number > 4).cast("int8")
    sums = table.group_by("word").agg(total=table.number.sum(), small=small.max())
    write_parquet(engine, sums, tmp_path / "out.parquet", ["word"])
    back = read_parquet(engine, tmp_path / "out.parquet").schema()
    assert [str(back[name]) for name in ("total", "small")] == ["int64", "int8"]


def test_memory_without_a_unit_is_refused():
    with pytest.raises(ConfigError, match="memory"):
        DuckDBEngine.build({"memory": "4"})
