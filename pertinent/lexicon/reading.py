"""The texts that a lexicon learns from: a catalog in parts, the queries of a log, samples to measure on."""

from __future__ import annotations

import hashlib
import heapq
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime, tzinfo
from pathlib import Path
from typing import Generic, TypeVar

from pertinent.artifact import MANIFEST, Artifact, open_artifact
from pertinent.data.files import kind_of
from pertinent.data.readers import items_of, judgments_of, read_items, read_table_parts
from pertinent.data.tables import Table
from pertinent.errors import ArtifactError, DataError
from pertinent.lexicon.pairs import item_text
from pertinent.records import Item
from pertinent.text import normalize

T = TypeVar("T")

DAY = 86_400
# In a folder made by `pertinent mine`: one row a query, with how often it was asked; one row a clicked pair.
MINED_QUERIES = "queries.parquet"
MINED_PAIRS = "clicks.parquet"
_SEARCH_IDS = ("search_id", "session_id")
_ALONE = (
    "%s: %s of %s rows with a query have no search_id, no session_id and no user_id with a time, so each of these rows "
    "counts as a search, and queries with many results count more; right where a row is a search, else name one "
    "of them with --log-columns YOURS=search_id"
)
_log = logging.getLogger(__name__)


class Sample(Generic[T]):
    """The ``size`` things whose keys have the smallest MD5, each key once: the same in any order of arrival.

    >>> sample = Sample[int](2)
    >>> for number in [3, 1, 2, 3]:
    ...     sample.add(str(number), number)
    >>> len(sample.values())
    2
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._kept: dict[bytes, T] = {}
        self._heap: list[_Descending] = []

    def add(self, key: str, value: T) -> None:
        """Offer a thing; a key that is there already changes nothing."""
        digest = hashlib.md5(key.encode("utf-8", "replace"), usedforsecurity=False).digest()
        if digest in self._kept or (len(self._heap) == self.size and digest >= self._heap[0]):
            return
        self._kept[digest] = value
        heapq.heappush(self._heap, _Descending(digest))
        if len(self._heap) > self.size:
            del self._kept[bytes(heapq.heappop(self._heap))]

    def values(self) -> list[T]:
        """What was kept, in order of the digests."""
        return [self._kept[digest] for digest in sorted(self._kept)]


class _Descending(bytes):
    # A heap keeps its smallest on top; here the largest digest is the next to go.
    def __lt__(self, other: bytes) -> bool:
        return bytes.__gt__(self, other)


def item_parts(path: str | Path, rows: int, rename: Mapping[str, str]) -> Iterator[list[Item]]:
    """The catalog in parts of at most so many items; a JSON list, which cannot be parted, as one."""
    if kind_of(Path(path)) == ".json":
        yield read_items(path, rename)
        return
    for table in read_table_parts(path, rows, rename):
        yield items_of(table)


def check_fields(path: str | Path, fields: Sequence[str], seen: Iterable[str]) -> None:
    """Raise DataError for a field that no item has; ``seen`` are the fields that some item had."""
    there = sorted(set(seen))
    missing = [field for field in fields if field not in there]
    if missing:
        raise DataError(f"no item has a {missing[0]!r}", path=path, fix=f"give fields among: {', '.join(there)}")


def item_fields(item: Item) -> Iterator[str]:
    """The names of the fields of an item that hold text."""
    yield from (name for name in ("title", "description", "brand", "category") if getattr(item, name))
    yield from item.attributes


def texts_of(items: Iterable[Item], fields: Sequence[str]) -> list[str]:
    """What is counted of each item."""
    return [item_text(item, fields) for item in items]


def query_counts(
    path: str | Path,
    rows: int,
    rename: Mapping[str, str],
    days: int | None,
    each_pair: Callable[[str, str], None],
    zone: tzinfo | None = None,
) -> Counter[str]:
    """How often each query was asked, from a log or from a folder that ``pertinent mine`` made.

    A log has ``query``; rows of one ``search_id`` are one search, as are those of one ``session_id`` and query
    where the first is empty, and of one ``user_id``, query and ``time`` where both are. A row without any of
    them counts as a search, with a warning. With ``time`` and ``days``, only the last days before its newest
    row count; ``zone`` is that of times that name none. ``each_pair`` is called with the query and ``item_id``
    of each row that has both.
    Raises DataError for a time that is none, or is in no zone.
    """
    path = Path(path)
    if path.is_dir():
        return _mined_counts(path, each_pair)
    by_day: dict[int, Counter[str]] = {}
    seen: set[bytes] = set()
    asked = alone = 0
    for table in read_table_parts(path, rows, rename):
        if not table.has("query"):
            raise table.missing("query", flag="--log-columns")
        queries = table.texts("query")
        items = table.texts("item_id") if table.has("item_id") else [None] * len(table)
        days_of = _days(table, zone) if days is not None and table.has("time") else [0] * len(table)
        for query, item_id, day, search in zip(queries, items, days_of, _searches(table, queries), strict=True):
            if query is None:
                continue  # an event outside of a search
            if item_id is not None:
                each_pair(query, item_id)
            asked += 1
            if search is None:
                alone += 1
            elif search in seen:
                continue
            else:
                seen.add(search)
            by_day.setdefault(day, Counter())[query] += 1
    if not by_day:
        raise DataError("no row has a query", path=path, fix="name the column with --log-columns YOURS=query")
    if alone:
        _log.warning(_ALONE, path, f"{alone:,}", f"{asked:,}")
    first = max(by_day) - days if days is not None else min(by_day) - 1
    total: Counter[str] = Counter()
    for day in sorted(by_day):
        if day > first:
            total.update(by_day[day])
    return total


def judged_items(table: Table | None) -> set[str]:
    """The items that a judged table names without giving their titles."""
    if table is None or table.has("title") or not table.has("item_id"):
        return set()
    return {item_id for item_id in table.texts("item_id") if item_id is not None}


def judged_pairs(table: Table, titles: Mapping[str, str]) -> list[tuple[str, str]]:
    """The (query, title) of a judged table: those held out (valid and test) where it has splits, else all."""
    items = None if table.has("title") else [Item(item_id, title) for item_id, title in titles.items()]
    judgments = judgments_of(table, items)
    held_out = [row for row in judgments if row.split in ("valid", "test")]
    return [(row.query, row.title) for row in held_out or judgments]


def _mined_counts(folder: Path, each_pair: Callable[[str, str], None]) -> Counter[str]:
    if not (folder / MANIFEST).is_file():
        raise ArtifactError(f"{folder}: is a folder, but none that pertinent mine made; give a log file")
    artifact = open_artifact(folder, kind="mined")
    counts: Counter[str] = Counter()
    for table in _mined_table(artifact, MINED_QUERIES):
        for query, searches in zip(table.column("query"), table.column("searches"), strict=True):
            if query:
                counts[query] += int(searches)
    for table in _mined_table(artifact, MINED_PAIRS):
        for query, item_id in zip(table.column("query"), table.column("item_id"), strict=True):
            each_pair(query, item_id)
    return counts


def _mined_table(artifact: Artifact, name: str) -> Iterator[Table]:
    """A table of a mined folder in parts: one file, or as Spark writes it a folder of files."""
    place = artifact.path / name
    yield from read_table_parts(place if place.is_dir() else artifact.file(name), 100_000)


def _searches(table: Table, queries: Sequence[str | None]) -> list[bytes | None]:
    """What tells one search from another, or None for each row where nothing does."""
    keys: list[bytes | None] = []
    last: tuple[str | None, str | None] = (None, None)
    digest: bytes | None = None
    for own, query in zip(_pages(table), queries, strict=True):
        if (own, query) != last:
            text = f"{own}\n{query}".encode("utf-8", "replace")
            digest = None if own is None else hashlib.blake2b(text, digest_size=8).digest()
            last = (own, query)
        keys.append(digest)
    return keys


def _pages(table: Table) -> Iterator[str | None]:
    """What rows of one search share beside the query, each with its kind; None for a row that has nothing."""
    absent = [None] * len(table)
    names = (*_SEARCH_IDS, "user_id")
    searches, sessions, users = (table.texts(name) if table.has(name) else absent for name in names)
    for search, session, user, time in zip(searches, sessions, users, table.column_or_none("time"), strict=True):
        if search is not None:
            yield f"search {search}"
        elif session is not None:
            yield f"session {session}"
        else:
            yield None if user is None or time in (None, "") else f"user {user}\n{time}"


def _days(table: Table, zone: tzinfo | None) -> list[int]:
    return [_day(table, row, value, zone) for row, value in enumerate(table.column("time"))]


def _day(table: Table, row: int, value: object, zone: tzinfo | None) -> int:
    fix = "give seconds since 1970 (UTC), or a time such as 2024-05-01T12:00:00Z"
    if isinstance(value, datetime):
        value = value.isoformat()
    try:
        seconds = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        try:
            moment = datetime.fromisoformat(str(value).strip())
        except ValueError:
            raise table.wrong(row, "time", "is empty" if value is None else "is not a time", fix) from None
        if moment.tzinfo is None and zone is None:
            problem, fix = "has no time zone", "name that of the log, such as --set time_zone=Europe/Berlin"
            raise table.wrong(row, "time", problem, fix) from None
        seconds = (moment if moment.tzinfo else moment.replace(tzinfo=zone)).timestamp()
    if not abs(seconds) < 1e11:
        raise table.wrong(row, "time", "is not a time in seconds", fix)
    return int(seconds // DAY)


def title_key(title: str) -> str:
    """What makes two titles the same: their normalized text."""
    return normalize(title)
