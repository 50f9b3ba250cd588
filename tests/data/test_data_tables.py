import pytest

from pertinent.data.tables import ITEM_COLUMNS, JUDGMENT_COLUMNS, Table, nearest, plain
from pertinent.errors import DataError


def table(**columns):
    size = len(next(iter(columns.values())))
    return Table(columns, "t.csv", list(range(2, 2 + size)))


def test_columns_are_those_of_the_records():
    assert [n for n, required in JUDGMENT_COLUMNS.items() if required] == ["query", "item_id", "grade"]
    assert ITEM_COLUMNS["title"]
    assert not ITEM_COLUMNS["attributes"]


def test_a_missing_column_is_named_with_the_nearest_there_is():
    with pytest.raises(DataError, match=r"t.csv: has no column 'title'; it has qid, product_title; rename.*'product_"):
        table(qid=["1"], product_title=["a"]).column("title")
    with pytest.raises(DataError, match=r"holds, or: --columns product_title=title$"):
        table(qid=["1"], product_title=["a"]).column("title")
    with pytest.raises(DataError, match=r"it has price; say which one it is: --columns yours=title$"):
        table(price=["1"]).column("title")
    # What only the file's own maker names cannot be renamed to.
    with pytest.raises(DataError, match=r"has no column 'weight'; it has price$"):
        table(price=["1"]).column("weight")


def test_empty_columns_read_as_none():
    assert table(a=["x", "y"]).column_or_none("b") == [None, None]
    assert table(a=["x", "y"]).column_or_none("a") == ["x", "y"]


@pytest.mark.parametrize("value", [10**400, -(10**400), "1e400", 1e300])
def test_numbers_beyond_all_range_are_refused_in_one_line(value):
    with pytest.raises(DataError, match=r"line 2, column 'grade', .* is not from 0 to 1; fix$") as caught:
        table(grade=[value]).number(0, "grade", 0.0, 1.0, "fix")
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (b"\xff", "not UTF-8"),
        (["a"], "is a list"),
        ({"a": 1}, "is a dict"),
        ("x" * 10_000_001, r"has 10,000,001 characters, 100,000 are allowed; shorten it"),
    ],
)
def test_a_cell_that_is_no_text_is_refused_with_its_line(value, message):
    with pytest.raises(DataError, match=message) as caught:
        table(title=["ok", value]).text(1, "title")
    assert (caught.value.line, caught.value.column) == (3, "title")
    assert len(str(caught.value)) < 300


def test_bytes_of_utf8_are_text():
    assert table(title=["é".encode()]).text(0, "title") == "é"


@pytest.mark.parametrize("value", ["", None, "   "])
def test_an_empty_cell_is_none_and_refused_where_text_is_needed(value):
    assert table(title=[value]).text(0, "title") is None
    with pytest.raises(DataError, match="is empty; give every row a title"):
        table(title=[value]).need_text(0, "title")


@pytest.mark.parametrize(
    ("value", "text"), [(3, "3"), (3.0, "3"), (2.33, "2.33"), (False, "false"), (" a ", "a"), (float("nan"), "nan")]
)
def test_scalars_read_as_a_person_writes_them(value, text):
    assert plain(value) == text


def test_nearest_prefers_the_like_name_over_the_longer_one():
    assert nearest("title", ["titel", "product_title"]) == "titel"
    assert nearest("item_id", ["product_id"]) == "product_id"
