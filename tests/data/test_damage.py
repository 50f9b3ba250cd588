"""A file that is cut off, or damaged within, is named with the first row or line that cannot be read."""

from __future__ import annotations

import gzip
from pathlib import Path

import duckdb
import pytest

from pertinent.data.damage import refuse_damaged
from pertinent.data.files import read_file, read_file_parts, read_records
from pertinent.errors import DataError

ROWS = 5000
CUT = r"row 1: no row can be read, as the table of contents at the end of the file is missing: it was cut off after"


@pytest.fixture(scope="module")
def parquet(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A Parquet file of three parts."""
    path = tmp_path_factory.mktemp("whole") / "größe.parquet"
    rows = f"SELECT 'query ' || hash(range) AS query, 'größe 日本' AS title FROM range({ROWS})"
    duckdb.execute(f"COPY ({rows}) TO '{path}' (FORMAT parquet, COMPRESSION zstd, ROW_GROUP_SIZE 2048)")
    refuse_damaged(path)
    return path.read_bytes()


@pytest.fixture(scope="module")
def lines() -> list[str]:
    return ["query,title\n", *(f"größe {hash_of},日本 {hash_of * 7919 % 104729}\n" for hash_of in range(ROWS))]


def every_reader_refuses(path: Path, told: str) -> None:
    for read in (read_file, lambda p: list(read_file_parts(p, 100)), lambda p: list(read_records(p))):
        with pytest.raises(DataError, match=told) as caught:
            read(path)
        assert str(caught.value).startswith(f"{path}: ")
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kept", [5, 11, 12, 1000, 0.5, -300, -8, -1])
def test_parquet_that_is_cut_off_anywhere_names_row_1_and_how_much_is_there(
    parquet: bytes, tmp_path: Path, kept: float
) -> None:
    content = parquet[: int(len(parquet) * kept) if isinstance(kept, float) else kept]
    path = tmp_path / "log.parquet"
    path.write_bytes(content)
    every_reader_refuses(path, rf"log\.parquet: {CUT} {len(content):,} bytes, or is still being written; write or copy")


def test_parquet_whose_end_was_never_filled_is_cut_off_too(parquet: bytes, tmp_path: Path) -> None:
    path = tmp_path / "log.parquet"
    path.write_bytes(parquet[:2000] + bytes(len(parquet) - 2000))
    every_reader_refuses(path, CUT)


def test_parquet_with_a_broken_table_of_contents_names_row_1(parquet: bytes, tmp_path: Path) -> None:
    length = int.from_bytes(parquet[-8:-4], "little")
    path = tmp_path / "log.parquet"
    path.write_bytes(parquet[: -8 - length] + b"\xff" * length + parquet[-8:])
    every_reader_refuses(path, r"row 1: is damaged .*its table of contents cannot be read: ")


def test_other_content_under_the_name_of_parquet_is_said_to_be_that(tmp_path: Path) -> None:
    path = tmp_path / "log.parquet"
    path.write_text("query,title\na,b\n")
    every_reader_refuses(path, r"row 1: is not Parquet: .* begins with b'quer'; give it the suffix of what it holds")


@pytest.mark.parametrize("part", [0, 1, 2])
def test_parquet_with_bytes_missing_in_the_middle_names_a_row_at_or_before_the_damage(
    parquet: bytes, tmp_path: Path, part: int
) -> None:
    path = tmp_path / "log.parquet"
    path.write_bytes(parquet)
    start = "coalesce(dictionary_page_offset, data_page_offset) + total_compressed_size - 500"
    found = duckdb.execute(f"SELECT {start} FROM parquet_metadata('{path}') WHERE row_group_id = {part}").fetchall()[0][
        0
    ]
    path.write_bytes(parquet[:found] + parquet[found + 400 :])
    every_reader_refuses(path, rf"row {part * 2048 + 1}: is damaged from about this row on")


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_a_gzipped_text_that_is_cut_off_names_its_last_line(lines: list[str], tmp_path: Path, share: float) -> None:
    packed = gzip.compress("".join(lines).encode(), mtime=0)
    path = tmp_path / "log.csv.gz"
    path.write_bytes(packed[: int(len(packed) * share)])
    with pytest.raises(DataError, match=r"log\.csv\.gz: line \d+: cannot be read: .*; copy the file again") as caught:
        read_file(path)
    assert caught.value.line is not None
    assert abs(caught.value.line / ROWS - share) < 0.1
    every_reader_refuses(path, rf"line {caught.value.line}: cannot be read")


def test_a_gzipped_text_that_is_damaged_within_names_a_line(lines: list[str], tmp_path: Path) -> None:
    packed = bytearray(gzip.compress("".join(lines).encode(), mtime=0))
    middle = len(packed) // 2
    packed[middle : middle + 40] = b"\xff" * 40
    path = tmp_path / "log.csv.gz"
    path.write_bytes(packed)
    every_reader_refuses(path, r"line \d+(, value '.*')?: ")


def test_csv_that_is_cut_off_within_a_row_names_the_line_and_says_so(lines: list[str], tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("".join(lines[:100]) + "größe", encoding="utf-8")
    every_reader_refuses(path, r"line 101, value 'größe': has 1 cells, the header has 2; the file ends here, in the")
    path.write_text("".join(lines[:100]) + "größe\n", encoding="utf-8")
    every_reader_refuses(path, r"line 101, value 'größe': has 1 cells, the header has 2; put a cell that holds")


def test_json_lines_that_are_cut_off_within_a_row_name_the_line_and_say_so(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text('{"query": "größe"}\n' * 3 + '{"query": "gr', encoding="utf-8")
    every_reader_refuses(path, r"line 4: is not JSON: .*; the file ends here, in the middle of a line: if it was cut")
    path.write_text('{"query": "größe"}\n' * 3 + '{"query": "gr\n', encoding="utf-8")
    every_reader_refuses(path, r"line 4: is not JSON: [^;]*$")


def test_text_that_is_cut_off_within_a_character_names_the_line(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_bytes("query,title\na,b\nc,größe".encode()[:-2])
    every_reader_refuses(path, r"line 3: is not UTF-8 text \(unexpected end of data\)")
