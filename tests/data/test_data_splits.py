import hashlib
import random

import duckdb
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pertinent.data.samples import read_sample
from pertinent.data.splits import bucket, leaks, refuse_leaks, split_by_query, split_by_time
from pertinent.errors import DataError
from pertinent.records import Judgment

TEXTS = st.lists(st.text(max_size=12), max_size=30)


@given(TEXTS, st.randoms())
def test_a_split_does_not_depend_on_the_other_queries_or_their_order(queries, dice):
    alone = {query: split_by_query([query])[0] for query in queries}
    shuffled = random.Random(dice.random()).sample(queries, len(queries))
    assert split_by_query(shuffled) == [alone[query] for query in shuffled]


@given(st.text(max_size=12))
def test_spellings_that_differ_in_case_and_spacing_stay_together(query):
    assert split_by_query([query]) == split_by_query([f"  {query}\t"])
    assert split_by_query(["straße tv"]) == split_by_query(["Straße  TV"])


def test_splits_never_change_between_releases():
    queries = ["wireless earbuds", "tv", "ふちなしメガネ", "sofá", ""]
    assert split_by_query(queries) == ["valid", "train", "train", "valid", "valid"]
    assert split_by_query(queries, salt="2") == ["train", "train", "train", "train", "train"]


def test_a_query_has_the_same_bucket_in_sql():
    sql = "SELECT ('0x' || md5(?)[:8])::BIGINT / 4294967296.0"
    for text in ["tv", "sofá", "ふちなしメガネ", ""]:
        assert bucket(text, salt="s") == duckdb.execute(sql, ["s" + text]).fetchall()[0][0]
        assert bucket(text, salt="s") == int(hashlib.md5(("s" + text).encode()).hexdigest()[:8], 16) / 2**32


def test_fractions_are_met_on_real_queries():
    queries = sorted({judgment.query for judgment in read_sample("esci")[1]})
    splits = split_by_query(queries, (0.5, 0.25, 0.25), salt="x")
    for split, fraction in (("train", 0.5), ("valid", 0.25), ("test", 0.25)):
        assert abs(splits.count(split) / len(splits) - fraction) < 0.03
    assert set(split_by_query(queries, (1.0, 0.0, 0.0))) == {"train"}
    assert split_by_query([]) == []


@pytest.mark.parametrize("fractions", [(0.8, 0.1, 0.2), (1.1, -0.1, 0.0), (0.0, 0.0, 0.0)])
def test_fractions_that_do_not_add_to_one_are_refused(fractions):
    with pytest.raises(DataError, match="three numbers from 0 that add to 1; such as"):
        split_by_query(["a"], fractions)


@given(st.lists(st.integers(0, 9).map(float), max_size=40))
def test_times_are_split_in_order_and_equal_times_stay_together(times):
    order = {"train": 0, "valid": 1, "test": 2}
    splits = [order[split] for split in split_by_time(times, (0.6, 0.2, 0.2))]
    pairs = sorted(zip(times, splits, strict=True))
    assert [split for _, split in pairs] == sorted(splits)
    assert len(dict(pairs)) == len(set(pairs))


def test_a_time_that_is_nan_is_refused():
    with pytest.raises(DataError, match="a time is NaN"):
        split_by_time([1.0, float("nan")])
    assert split_by_time([]) == []
    assert split_by_time([1.0, 2.0], (1.0, 0.0, 0.0)) == ["train", "train"]


def test_leaks_are_found_through_case_spacing_and_width():
    assert leaks(["Wireless Earbuds", "ｔｖ"], ["TV", "wireless  earbuds", "lamp"]) == ["TV", "wireless  earbuds"]
    assert leaks([], ["a"]) == leaks(["a"], []) == []


@given(TEXTS)
def test_a_split_by_query_never_leaks(queries):
    splits = split_by_query(queries, (0.4, 0.3, 0.3))
    refuse_leaks([Judgment(q, "1", 1.0, split=s) for q, s in zip(queries, splits, strict=True)])
    parts = {s: [q for q, of in zip(queries, splits, strict=True) if of == s] for s in ("train", "test")}
    assert leaks(parts["train"], parts["test"]) == []


def test_a_query_in_two_splits_is_refused():
    rows = [Judgment("TV", "1", 1.0, split="train"), Judgment("x", "1", 1.0), Judgment("tv ", "1", 1.0, split="test")]
    with pytest.raises(DataError, match="query 'tv ' is in test and, as 'TV', in train; split by query"):
        refuse_leaks(rows)
    refuse_leaks(rows[:2])
