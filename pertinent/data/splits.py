"""Splits by query or by time that come out the same on every machine and engine, and the leak check."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from itertools import accumulate

from pertinent.errors import DataError, shorten
from pertinent.records import Judgment, Split
from pertinent.text import normalize

SPLITS: tuple[Split, Split, Split] = ("train", "valid", "test")


def bucket(text: str, salt: str) -> float:
    """A number from 0 up to 1 that depends on the text alone: for sampling and splitting.

    It is the first 8 hexadecimal digits of the MD5 of ``salt + text`` over 2^32, which every SQL
    engine can compute; engines' own hash functions and random samples differ.

    >>> round(bucket("tv", salt=""), 4), bucket("tv", salt="") == bucket("tv", salt="other")
    (0.7876, False)
    """
    digest = hashlib.md5((salt + text).encode("utf-8", "replace"), usedforsecurity=False).hexdigest()
    return int(digest[:8], 16) / 2**32


def split_by_query(
    queries: Sequence[str], fractions: tuple[float, float, float] = (0.8, 0.1, 0.1), salt: str = ""
) -> list[Split]:
    """The split of each query: train, valid or test, in about these fractions of distinct queries.

    The split of a query depends on its normalized text and the salt, not on the other queries:
    adding queries moves none, and spellings that differ in case or spacing stay together.

    >>> split_by_query(["wireless earbuds", "Wireless  EARBUDS", "tv"])
    ['valid', 'valid', 'train']
    """
    valid_from, test_from, _ = _edges(fractions)
    places = (bucket(normalize(query), salt) for query in queries)
    return ["train" if p < valid_from else "valid" if p < test_from else "test" for p in places]


def split_by_time(times: Sequence[float], fractions: tuple[float, float, float] = (0.8, 0.1, 0.1)) -> list[Split]:
    """The split of each row by its time: the earliest are train, the latest are test.

    Rows of the same time are never parted: a boundary that falls among them moves before them.

    >>> split_by_time([5.0, 1.0, 2.0, 3.0, 4.0], fractions=(0.6, 0.2, 0.2))
    ['test', 'train', 'train', 'train', 'valid']
    >>> split_by_time([1.0, 1.0], fractions=(0.5, 0.0, 0.5))
    ['test', 'test']
    """
    valid_edge, test_edge, _ = _edges(fractions)
    ordered = sorted(times)
    if any(time != time for time in times):
        raise DataError("a time is NaN", fix="remove rows without a time before splitting")
    # A boundary at or past the end is a time that no row reaches.
    starts = [round(edge * len(ordered)) for edge in (valid_edge, test_edge)]
    valid_from, test_from = (ordered[start] if start < len(ordered) else float("inf") for start in starts)
    return ["train" if t < valid_from else "valid" if t < test_from else "test" for t in times]


def leaks(train_queries: Iterable[str], test_queries: Iterable[str]) -> list[str]:
    """The test queries that are training queries too, but for case, spacing or width of letters.

    >>> leaks(["TV stand", "lamp"], ["tv  stand", "desk", "tv  stand"])
    ['tv  stand']
    """
    seen = {normalize(query) for query in train_queries}
    return [query for query in dict.fromkeys(test_queries) if normalize(query) in seen]


def refuse_leaks(judgments: Iterable[Judgment]) -> None:
    """Raises DataError where one query, but for case and spacing, is in two splits."""
    splits: dict[str, tuple[str, Split]] = {}
    for query, split in dict.fromkeys((j.query, j.split) for j in judgments):
        if split is None:
            continue
        first, known = splits.setdefault(normalize(query), (query, split))
        if known != split:
            raise DataError(
                f"query {shorten(query)} is in {split} and, as {shorten(first)}, in {known}",
                column="split",
                fix="split by query, such as with pertinent.data.splits.split_by_query",
            )


def _edges(fractions: tuple[float, float, float]) -> list[float]:
    if min(fractions) < 0 or abs(sum(fractions) - 1) > 1e-9:
        raise DataError(
            "fractions must be three numbers from 0 that add to 1", value=fractions, fix="such as 0.8 0.1 0.1"
        )
    return list(accumulate(fractions))
