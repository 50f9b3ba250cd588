import csv
import gzip
import io
import json
import logging

import duckdb
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pertinent.data.files import query_parquet, read_file, read_file_parts
from pertinent.data.readers import read_items, read_judgments, read_table, read_table_parts
from pertinent.data.samples import sample_path
from pertinent.errors import DataError
from pertinent.records import Item

GOOD = "query,item_id,title,grade\ntv,1,A TV,1\ntv,2,A hat,0\n"


@pytest.fixture
def file(tmp_path):
    def write(content, name="j.csv"):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def parquet(path, sql):
    duckdb.execute(f"COPY ({sql}) TO '{path}' (FORMAT parquet)")
    return path


# Formats


def test_all_formats_give_the_same_judgments(file, tmp_path):
    rows = [
        {"query": "tv", "item_id": "1", "title": 'A TV, 40"', "grade": 1},
        {"query": "sofá", "item_id": "2", "title": "line one\nline two", "grade": 0.7},
        {"query": "ふちなしメガネ", "item_id": "3", "title": "眼鏡", "grade": 0},
    ]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    tabs = io.StringIO()
    writer = csv.DictWriter(tabs, list(rows[0]), delimiter="\t", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    values = ", ".join(f"('{r['query']}', {r['item_id']}, '{r['title']}', {r['grade']}::FLOAT)" for r in rows)
    files = [
        file(text.getvalue()),
        file("\ufeff" + text.getvalue(), "bom.csv"),
        file(gzip.compress(text.getvalue().encode()), "j.csv.gz"),
        file(tabs.getvalue(), "j.tsv"),
        file(tabs.getvalue(), "tabs.csv"),
        file(lines, "j.jsonl"),
        file(gzip.compress(lines.encode()), "j.ndjson.gz"),
        file(json.dumps(rows, indent=1), "j.json"),
        parquet(tmp_path / "j.parquet", f"SELECT * FROM (VALUES {values}) t(query, item_id, title, grade)"),
    ]
    first = read_judgments(files[0])
    assert [j.grade for j in first] == [1.0, 0.7, 0.0]
    assert first[1].title == "line one\nline two"
    for path in files[1:]:
        assert read_judgments(path) == first, path.name


def test_a_row_knows_the_line_on_which_it_begins(file):
    table = read_table(file('query,title\n"a\nb",x\n\nc,y\n'))
    assert (table.lines, table.column("query")) == ([2, 5], ["a\nb", "c"])


def test_columns_can_be_renamed(file):
    path = file("q,sku,name,score\ntv,1,A TV,1\n")
    renamed = {"q": "query", "sku": "item_id", "name": "title", "score": "grade"}
    assert read_judgments(path, rename=renamed)[0].title == "A TV"
    told = "has no column 'nam', which is mapped to 'title'; it has q, sku, name, score; did you mean name=title"
    with pytest.raises(DataError, match=told):
        read_table(path, rename={"nam": "title"})
    with pytest.raises(DataError, match="did you mean name=title, the other way round"):
        read_table(path, rename={"title": "name"})
    with pytest.raises(DataError, match="same name after renaming"):
        read_table(path, rename={"q": "name"})


def test_parquet_names_with_quotes_and_paths_with_patterns_are_only_names(tmp_path):
    folder = tmp_path / "it's [a] *"
    folder.mkdir()
    path = folder / "x?.parquet"
    source = tmp_path / "plain.parquet"
    parquet(source, 'SELECT 1 AS "a""; DROP TABLE x; --", 0.1::FLOAT AS "f""", now() AS t')
    path.write_bytes(source.read_bytes())
    other = parquet(tmp_path / "other.parquet", "SELECT 2 AS other")
    (folder / "xy.parquet").write_bytes(other.read_bytes())
    table = read_table(path)
    assert list(table.columns) == ['a"; DROP TABLE x; --', 'f"', "t"]
    assert table.column('f"') == [0.1]
    assert isinstance(table.column("t")[0], str)


def test_a_query_over_parquet_opens_nothing_but_its_files(tmp_path):
    path = parquet(tmp_path / "a.parquet", "SELECT 1 AS a")
    other = parquet(tmp_path / "b.parquet", "SELECT 2 AS a")
    assert query_parquet({"file": path}, "SELECT a + $n FROM read_parquet($file)", {"n": 1})[1] == [(2,)]
    with pytest.raises(DataError, match="Permission"):
        query_parquet({"file": path}, f"SELECT * FROM read_parquet('{other}'), read_parquet($file)")


# Files that cannot be read


@pytest.mark.parametrize(("group", "line"), [(0, 1), (1, 2049), (2, 4097)])
def test_a_parquet_file_that_is_damaged_within_names_the_first_row_of_the_damage(tmp_path, group, line):
    rows = "SELECT 'query ' || hash(range) AS query, 'größe' AS title FROM range(5000)"
    good, path = parquet(tmp_path / "good.parquet", rows), tmp_path / "j.parquet"
    duckdb.execute(f"COPY ({rows}) TO '{path}' (FORMAT parquet, COMPRESSION zstd, ROW_GROUP_SIZE 2048)")
    place = "coalesce(dictionary_page_offset, data_page_offset) + total_compressed_size - 99"
    found = duckdb.execute(f"SELECT {place} FROM parquet_metadata('{path}') WHERE row_group_id = {group}").fetchall()[
        0
    ][0]
    data = bytearray(path.read_bytes())
    data[found : found + 90] = b"\xff" * 90
    path.write_bytes(data)
    told = rf"j\.parquet: row {line}: is damaged from about this row on \(.*\); write or copy the file again"
    with pytest.raises(DataError, match=told):
        read_table(path)
    with pytest.raises(DataError, match=told):
        list(read_table_parts(path, 2))
    with pytest.raises(DataError, match=told):
        query_parquet({"other": good, "file": path}, "SELECT * FROM read_parquet($file)")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("j.csv", b"", "j.csv: is empty; give a file with at least one row"),
        ("j.csv", b"query,title\n", "has no rows; give a file with at least one row"),
        ("j.jsonl", b"\n \n", "has no rows"),
        ("j.json", b"[]", "has no rows"),
        ("j.csv", b"query\0title", "is binary, or UTF-16; save it as UTF-8"),
        ("j.csv", b"query,title\ncaf\xe9,x\n", "line 2: is not UTF-8 text"),
        ("j.csv.gz", gzip.compress(b"query,title\ncaf\xe9,x\n", mtime=0), "line 2: is not UTF-8 text"),
        ("j.csv.gz", b"query,title\n", "cannot be read: Not a gzipped file"),
        ("j.csv.gz", gzip.compress(GOOD.encode() * 50, mtime=0)[:-20], r"line \d+: cannot be read: .*; copy the file"),
        ("j.parquet", b"PAR1 but not really, PAR1", "row 1: no row can be read, as the table of contents"),
        ("j.xlsx", b"x", "format of 'j.xlsx' is not known; allowed: .csv"),
        ("j.gz", b"x", "format of 'j.gz' is not known"),
        ("j.parquet.gz", b"x", "format of 'j.parquet.gz' is not known"),
        ("noname", b"x", "format of 'noname' is not known"),
        ("j.csv", b"a,b\n1,2\n3\n", "line 3, value '3': has 1 cells, the header has 2; put a cell"),
        ("j.csv", b"a,b\n1,2,3\n", "line 2, value '1': has 3 cells, the header has 2"),
        ("j.csv", b'a,b\n1,2\n3,"4\n5,6\n', "line 3: a quote is never closed"),
        ("j.csv", b"a,b,a\n1,2,3\n", "line 1, column 'a': is in the header twice; rename"),
        ("j.jsonl", b'{"a": 1}\n{"a": \n', "line 2: is not JSON: Expecting value"),
        ("j.jsonl", b'{"a": 1}\n[1]\n', r"line 2, value \[1\]: is not an object; write"),
        ("j.json", b'{"a": 1}', "not a list; give a list of objects"),
        ("j.json", b'[{"a": 1},\n {"b" 2}]', "line 2: is not JSON: Expecting ':'"),
        ("j.jsonl", b"[" * 200_000, "is JSON nested too deep"),
        ("j.jsonl", b'{"a": 1}\n{"a": %s}\n' % (b"1" * 5000), "line 2: has a whole number of too many digits; put it"),
        ("j.json", b'[{"a": -%s}]' % (b"1" * 5000), "j.json: has a whole number of too many digits"),
    ],
)
def test_a_file_that_cannot_be_read_says_why_and_where(file, name, content, message):
    with pytest.raises(DataError, match=message) as caught:
        read_table(file(content, name))
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(str(file(content, name)))


def test_a_missing_file_names_the_nearest(file, tmp_path):
    file(GOOD, "judgments.csv")
    with pytest.raises(DataError, match=r"judgment.csv: no such file; did you mean .*judgments.csv\?"):
        read_table(tmp_path / "judgment.csv")
    with pytest.raises(DataError, match=r"x.csv: no such file$"):
        read_table(tmp_path / "no" / "x.csv")
    with pytest.raises(DataError, match="is a folder; give a file"):
        read_table(tmp_path)


def test_parquet_without_rows_is_refused(tmp_path):
    with pytest.raises(DataError, match="has no rows"):
        read_items(parquet(tmp_path / "i.parquet", "SELECT 'a' AS item_id WHERE false"))


def test_other_encodings_are_read_when_named(file):
    path = file("a,b\ncafé,½\n".encode("latin-1"))
    assert read_table(path, encoding="latin-1").column("a") == ["café"]


def test_reading_leaves_the_limit_of_the_csv_module_alone(file):
    before = csv.field_size_limit()
    read_file(file(GOOD))
    with pytest.raises(DataError, match="field larger than field limit"):
        read_file(file(b"a,b\n1," + b"x" * 10_000_001 + b"\n"))
    assert csv.field_size_limit() == before


def test_quotes_inside_a_cell_and_unnamed_columns_are_read(file):
    table = read_table(file(',title\n0,5" pipe\n1,"6" pipe\n2,"7"" pipe"\n'))
    assert table.column("title") == ['5" pipe', "6 pipe", '7" pipe']
    assert table.column("column 1") == ["0", "1", "2"]


def test_quotes_inside_a_cell_do_not_part_the_last_row(file):
    assert len(read_table(file('q,t\n1,"6" pipe\n'))) == 1


# Items


def test_items_have_texts_and_attributes(file):
    rows = [
        {"item_id": 7, "title": " A ", "brand": "B", "color": "red", "price": 3.0, "tags": ["x"], "stock": True},
        {"item_id": "8", "title": "é", "attributes": {"size": [1, 2], "none": None}, "description": ""},
        {"item_id": "9", "title": "c", "attributes": '{"color": "blue"}', "color": "red"},
    ]
    items = read_items(file("".join(json.dumps(row) + "\n" for row in rows), "i.jsonl"))
    assert items[0] == Item("7", "A", brand="B", attributes={"color": "red", "price": "3", "stock": "true"})
    assert items[1] == Item("8", "é", attributes={"size": "1, 2"})
    assert items[2].attributes == {"color": "blue"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("item_id,name\n1,x\n", "has no column 'title'; it has item_id, name"),
        (
            "product_id,title\n1,x\n",
            "has no column 'item_id'; it has product_id, title; rename the column 'product_id'",
        ),
        (
            "item_id,title\n1,x\n2,y\n1,z\n",
            "line 4, column 'item_id', value '1': is on line 2 already; give every item",
        ),
        ("item_id,title\n1,\n", "line 2, column 'title': is empty; give every row a title"),
        ("item_id,title\n ,x\n", "line 2, column 'item_id': is empty"),
        (
            "item_id,title,attributes\n1,x,red\n",
            "line 2, column 'attributes', value 'red': is not JSON; give an object",
        ),
        ("item_id,title,attributes\n1,x,3\n", "column 'attributes', value '3': is not an object"),
        ("item_id,title,attributes\n1,x," + "1" * 5000 + "\n", "column 'attributes', value '1111.*: is not JSON"),
    ],
)
def test_a_wrong_item_is_named_by_file_line_and_column(file, content, message):
    with pytest.raises(DataError, match=message) as caught:
        read_items(file(content))
    assert "j.csv" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_ids_stay_text_when_a_table_made_them_numbers(tmp_path):
    path = parquet(tmp_path / "i.parquet", "SELECT 12::DOUBLE AS item_id, 'x'::BLOB AS title, '007' AS ean")
    assert read_items(path) == [Item("12", "x", attributes={"ean": "007"})]


def test_a_long_title_is_read_and_one_of_a_megabyte_is_refused(file):
    assert len(read_items(file("item_id,title\n1," + "x" * 100_000 + "\n"))[0].title) == 100_000
    with pytest.raises(DataError, match=r"line 2, column 'title', .* has 1,000,000 characters, 100,000 are allowed"):
        read_items(file("item_id,title\n1," + "x" * 1_000_000 + "\n"))
    with pytest.raises(DataError, match=r"column 'query', .* has 100,001 characters, 100,000 are allowed"):
        read_judgments(file("query,title,grade\n" + "x" * 100_001 + ",tea,1\n"))
    assert len(read_items(file("item_id,title,description\n1,x," + "x" * 200_000 + "\n"))) == 1


# Judgments


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("qeury,title,grade\ntv,x,1\n", "has no column 'query'; it has qeury, title, grade; rename the column 'qeury'"),
        ("query,grade\ntv,1\n", "has no column 'title'.*or a column 'item_id' together with a file of items"),
        ("query,item_id,grade\ntv,1,1\n", "has no column 'title'.*give the file of items too"),
        ("query,title\ntv,x\n", "has no column 'grade'.*or a column 'label' with words of a grade scale"),
        ("query,title,grade\ntv,x,nan\n", "line 2, column 'grade', value 'nan': is NaN; give a number from 0 to 1"),
        ("query,title,grade\ntv,x,inf\n", "value 'inf': is not from 0 to 1"),
        ("query,title,grade\ntv,x,1\ntv,x,3\n", "line 3, column 'grade', value '3': is not from 0 to 1; .*grade scale"),
        ("query,title,grade\ntv,x,-0.1\n", "value '-0.1': is not from 0 to 1"),
        (
            "query,title,grade\ntv,x,good\n",
            "value 'good': is not a number; give a number from 0 to 1, or name the grade",
        ),
        ("query,title,grade\ntv,x,\n", "line 2, column 'grade': is empty; give a number"),
        ("query,title,grade\n,x,1\n", "line 2, column 'query': is empty"),
        ("query,title,grade\ntv,,1\n", "line 2, column 'title': is empty"),
        ("query,title,grade,split\ntv,x,1,tets\n", "column 'split', value 'tets': is not a split; allowed: train"),
        ("query,title,grade,frequency\ntv,x,1,-1\n", "column 'frequency', value '-1': is not from 0"),
        (
            "query,title,label\ntv,x,Nice\n",
            r"column 'label': the grade scale of its labels \['Nice'\] is not known; name",
        ),
        (
            "query,title,label\ntv,x,Substitute\ntv,y,Exat\ntv,z,Irrelevant\n",
            "line 3, column 'label', value 'Exat': is not on the grade scale 'esci', as most others are; allowed: ",
        ),
        (
            "query,title,label\ntv,w,\ntv,x,Good\ntv,y,Fair\ntv,z,Bad\ntv,a,Excelent\n",
            "line 6, column 'label', value 'Excelent': is not on the grade scale 'good_fair_bad' or 'five_level', as ",
        ),
        ("query,title,label\ntv,w,\ntv,x,Good\ntv,y,Fair\n", r"labels \['Fair', 'Good'\] is not known; name"),
        ("query,title,label\ntv,x,1\n", "name it with --scale NAME .*: esci, "),
    ],
)
def test_a_wrong_judgment_is_named_by_file_line_and_column(file, content, message):
    with pytest.raises(DataError, match=message) as caught:
        read_judgments(file(content))
    assert "j.csv" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_grade_word_names_line_and_words(file):
    path = file("query,title,label\ntv,x,E\ntv,y,X\n")
    with pytest.raises(
        DataError, match="line 3, column 'label', value 'X': is not on the grade scale 'esci'; allowed: e"
    ):
        read_judgments(path, scale="esci")
    with pytest.raises(DataError, match="no grade scale 'ESCI!'; allowed: esci"):
        read_judgments(path, scale="ESCI!")
    with pytest.raises(DataError, match="line 2, column 'label': is empty"):
        read_judgments(file('query,title,label\ntv,x,""\n'), scale="esci")


def test_a_grade_of_hundreds_of_digits_is_refused_in_one_line(file):
    path = file('{"query": "tv", "title": "x", "grade": 1%s}\n' % ("0" * 400), "j.jsonl")
    with pytest.raises(
        DataError, match=r"line 1, column 'grade', value 10+\.\.\..* is not from 0 to 1; give"
    ) as caught:
        read_judgments(path)
    assert len(str(caught.value)) < 300


def test_nan_in_a_parquet_or_json_file_is_refused_as_well(file, tmp_path):
    path = parquet(tmp_path / "j.parquet", "SELECT 'tv' AS query, 'x' AS title, 'nan'::FLOAT AS grade")
    with pytest.raises(DataError, match="row 1, column 'grade', value nan: is NaN"):
        read_judgments(path)
    with pytest.raises(DataError, match="is NaN"):
        read_judgments(file('{"query": "tv", "title": "x", "grade": NaN}\n', "j.jsonl"))


def test_labels_are_graded_on_a_named_or_recognized_scale(file):
    path = file("query,title,label\ntv,x,exact\ntv,y,Partial\n")
    assert [(j.grade, j.label) for j in read_judgments(path)] == [(1.0, "exact"), (0.5, "Partial")]
    numbers = file("query,title,grade\ntv,x,3\ntv,y,1\n", "n.csv")
    assert [j.grade for j in read_judgments(numbers, scale="icecat")] == [1.0, pytest.approx(1 / 3)]
    both = file("query,title,grade,label\ntv,x,0.4,S\n", "b.csv")
    assert read_judgments(both)[0].grade == 0.4
    assert read_judgments(both, scale="esci")[0].grade == 0.1


def test_titles_come_from_the_items_where_the_file_has_none(file):
    items = [Item("1", "A TV"), Item("2", "A hat")]
    path = file("query,item_id,grade\ntv,1,1\ntv,2,0\n")
    assert [j.title for j in read_judgments(path, items)] == ["A TV", "A hat"]
    partly = file("query,item_id,title,grade\ntv,1,,1\ntv,9,Own,0\n", "p.csv")
    assert [j.title for j in read_judgments(partly, items)] == ["A TV", "Own"]
    with pytest.raises(DataError, match="line 3, column 'item_id', value '2': is not among the 1 items; add the item"):
        read_judgments(path, items[:1])


def test_without_ids_items_are_told_apart_by_title(file):
    rows = read_judgments(file("query,title,grade\ntv,x,1\nhat,x,0\ntv,y,1\ntv,x,0\n"))
    ids = [j.item_id for j in rows]
    assert ids[0] == ids[1] != ids[2]
    assert ids[3] == ids[0] + "-2"
    assert [j.grade for j in rows] == [1, 0, 1, 0]


def test_without_ids_titles_of_different_grades_are_reported(file, caplog):
    read_judgments(file("query,title,grade\ntv,x,1\ntv,y,1\ntv,y,1\n"))
    assert not caplog.messages
    read_judgments(file("query,title,grade\ntv,x,1\ntv,y,1\ntv,x,0\n"))
    assert "1 titles have different grades for one query" in caplog.text


def test_optional_columns_are_read(file):
    path = file("query,title,grade,split,rater,category,frequency\ntv,x,1,Validation,r1,Electronics,30\ntv,y,1,,,,\n")
    first, second = read_judgments(path)
    assert (first.split, first.rater, first.segment, first.frequency) == ("valid", "r1", "Electronics", 30.0)
    assert (second.split, second.rater, second.segment, second.frequency) == (None, None, None, None)


def test_conflicting_grades_are_reported_or_averaged_never_dropped(file):
    path = file("query,item_id,title,grade\ntv,1,x,1\ntv,2,y,0\ntv,1,x,0\n")
    with pytest.raises(
        DataError,
        match="line 4, column 'grade', value '0': disagrees with line 2 about query 'tv' and item '1'; remove",
    ):
        read_judgments(path)
    assert [(j.item_id, j.grade) for j in read_judgments(path, conflicts="mean")] == [("1", 0.5), ("2", 0.0)]


def test_a_judgment_that_merely_occurs_twice_counts_once_and_is_told(file, caplog):
    with caplog.at_level(logging.WARNING):
        rows = read_judgments(file(GOOD + "tv,1,A TV,1.0\n"))
    assert len(rows) == 2
    assert "1 judgments are repeated and count once" in caplog.text


def test_two_raters_may_disagree(file):
    path = file("query,item_id,title,grade,rater\ntv,1,x,1,a\ntv,1,x,0,b\n")
    assert [j.grade for j in read_judgments(path)] == [1.0, 0.0]


CELL = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(st.lists(st.tuples(CELL, CELL, CELL), min_size=1, max_size=8))
def test_whatever_a_csv_writer_writes_is_read_back(file, rows):
    text = io.StringIO(newline="")
    csv.writer(text).writerows([("query", "title", "note"), *rows])
    table = read_table(file(text.getvalue()))
    back = zip(table.column("query"), table.column("title"), table.column("note"), strict=True)
    assert list(back) == [tuple(cell if cell.strip() else None for cell in row) for row in rows]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=100)
@given(st.binary(max_size=200), st.sampled_from(["x.csv", "x.jsonl", "x.json", "x.tsv", "x.csv.gz"]))
def test_any_bytes_are_a_table_or_a_data_error(file, content, name):
    try:
        table = read_table(file(content, name))
    except DataError:
        return
    assert all(len(values) == len(table) for values in table.columns.values())


@pytest.mark.parametrize("size", [1, 7, 100_000])
def test_parts_of_a_file_are_the_file(tmp_path, size):
    whole = read_file(sample_path("icecat") / "judgments.parquet")
    rows = [dict(zip(whole.columns, cells, strict=True)) for cells in zip(*whole.columns.values(), strict=True)][:40]
    (tmp_path / "j.jsonl.gz").write_bytes(gzip.compress("".join(json.dumps(row) + "\n\n" for row in rows).encode()))
    with open(tmp_path / "j.csv", "w", encoding="utf-8-sig", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    for path in (tmp_path / "j.jsonl.gz", tmp_path / "j.csv", sample_path("icecat") / "judgments.parquet"):
        if size == 1 and path.suffix == ".parquet":
            continue  # thousands of parts
        table, parts = read_file(path), list(read_file_parts(path, size))
        assert [len(part) for part in parts[:-1]] == [size] * (len(parts) - 1)
        assert [line for part in parts for line in part.lines] == table.lines
        for name in table.columns:
            assert [cell for part in parts for cell in part.columns[name]] == table.columns[name], name


def test_all_parts_have_the_columns_of_the_whole_file(tmp_path):
    path = tmp_path / "j.jsonl"
    path.write_text('\ufeff{"query": "a"}\n{"query": "b", "title": "日本語"}\n{}\n', encoding="utf-8")
    parts = list(read_table_parts(path, 2, {"query": "words"}))
    assert [part.columns for part in parts] == [
        {"words": ["a", "b"], "title": [None, "日本語"]},
        {"words": [None], "title": [None]},
    ]
    assert [part.lines for part in parts] == [[1, 2], [3]]


@pytest.mark.parametrize("text", ["query,title\n", "\n\n", "query,title\n\n"])
def test_a_file_without_rows_is_refused_in_parts_too(tmp_path, text):
    (tmp_path / "j.csv").write_text(text)
    for read in (read_file, lambda path: list(read_file_parts(path, 2))):
        with pytest.raises(DataError, match="has no rows"):
            read(tmp_path / "j.csv")


def test_rows_before_a_broken_one_are_given_and_other_files_can_be_read_meanwhile(tmp_path):
    broken, other = tmp_path / "broken.csv", tmp_path / "other.csv"
    broken.write_text("query,title\na,b\nc\n")
    other.write_text("query,title\nx,y\n")
    parts = read_file_parts(broken, 1)
    assert next(parts).columns == {"query": ["a"], "title": ["b"]}
    assert len(read_file(other)) == 1
    with pytest.raises(DataError, match="line 3, value 'c': has 1 cells"):
        next(parts)
