"""The neighbors that an example may see: those known before its day, never the example itself.

Lists come from a mined artifact. They can only be asked for an example, and then the days from the
example's on, and the example's own query and item, are never among what comes back (BARL-ASe, section 3).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from pertinent.artifact import Artifact, open_artifact
from pertinent.data.files import query_parquet
from pertinent.errors import DataError
from pertinent.text import normalize

MINED = "mined"


@dataclass(frozen=True, slots=True)
class NeighborLists:
    """Neighbor items of queries and neighbor queries of items, strongest first, from days before ``until_day``.

    ``until_day`` counts days since 1970, as mining does; queries are normalized.
    """

    until_day: int
    items_of_query: Mapping[str, Sequence[str]]
    queries_of_item: Mapping[str, Sequence[str]]


@dataclass(frozen=True, slots=True)
class SlotTable:
    """The lists of one side for n examples: rows of distinct texts in slots, strongest first.

    ``slots [n, slots]`` are rows of ``texts`` (0 beyond the end), ``counts [n]`` how many are real.
    """

    texts: tuple[str, ...]
    slots: NDArray[np.int32]
    counts: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class ExampleNeighbors:
    """What n examples may see: neighbor queries of their items, neighbor items of their queries."""

    queries: SlotTable
    items: SlotTable

    def __len__(self) -> int:
        return len(self.queries.counts)

    @property
    def aware(self) -> NDArray[np.bool_]:
        """Which examples have a neighbor on either side, ``[n]``."""
        return (self.queries.counts > 0) | (self.items.counts > 0)


class NeighborHistory:
    """Neighbor lists as they were known on several days, with the titles of the items in them.

    An item without a title is no neighbor: there is nothing of it to read. At most ``keep`` of a list are seen.
    """

    def __init__(self, lists: Iterable[NeighborLists], titles: Mapping[str, str], keep: int) -> None:
        self._lists = sorted(lists, key=lambda each: each.until_day)
        self._days = [each.until_day for each in self._lists]
        if len(set(self._days)) < len(self._days):
            raise DataError("two neighbor lists end on the same day", fix="give one list a day")
        if keep < 1:
            raise DataError(f"keep is {keep}", fix="give 1 or more neighbors")
        self.titles, self.keep = titles, keep

    @classmethod
    def open(cls, path: str | Path, titles: Mapping[str, str], keep: int) -> Self:
        """The lists of a folder of ``pertinent mine``, as of the day after its log's last.

        Raises ArtifactError for another folder, and DataError where none of its neighbor items has a title.
        """
        artifact = open_artifact(path, MINED, verify=False)
        lists = read_lists(artifact)
        history = cls([lists], titles, keep)
        named = {item for items in lists.items_of_query.values() for item in items}
        if named and not any(item in titles for item in named):
            raise DataError(
                f"none of the {len(named)} neighbor items has a title, such as {min(named)!r}",
                path=str(artifact.path),
                fix="give the catalog of the log as `items`",
            )
        return history

    def of(self, query: str, item_id: str, day: int | None = None) -> tuple[list[str], list[str]]:
        """The neighbor items of the query, and the neighbor queries of the item, strongest first.

        Only lists that end before ``day`` (days since 1970) are read, the latest of them; an example
        without a day, such as a judgment, sees the latest of all. The item is never among the first, nor
        the query among the second.
        """
        known = len(self._lists) if day is None else bisect_right(self._days, day)
        if known == 0:
            return [], []
        lists, query = self._lists[known - 1], normalize(query)
        items = [item for item in lists.items_of_query.get(query, ()) if item != item_id and item in self.titles]
        queries = [other for other in lists.queries_of_item.get(item_id, ()) if other != query]
        return items[: self.keep], queries[: self.keep]

    def examples(
        self, queries: Sequence[str], item_ids: Sequence[str], days: Sequence[int | None] | None = None
    ) -> ExampleNeighbors:
        """What each of n examples may see; see `of`. Raises DataError for columns of different lengths."""
        days = [None] * len(queries) if days is None else days
        if not len(queries) == len(item_ids) == len(days):
            raise DataError(
                f"{len(queries)} queries, {len(item_ids)} items and {len(days)} days; give one of each for an example"
            )
        found = [self.of(*example) for example in zip(queries, item_ids, days, strict=True)]
        items = [[self.titles[item] for item in items] for items, _ in found]
        return ExampleNeighbors(slot_table([q for _, q in found], self.keep), slot_table(items, self.keep))


def slot_table(lists: Sequence[Sequence[str]], keep: int) -> SlotTable:
    """Lists of texts as rows of distinct texts.

    >>> table = slot_table([["tv", "lamp"], [], ["lamp"]], keep=2)
    >>> table.texts, table.slots.tolist(), table.counts.tolist()
    (('tv', 'lamp'), [[0, 1], [0, 0], [1, 0]], [2, 0, 1])
    """
    rows: dict[str, int] = {}
    slots = np.zeros((len(lists), keep), dtype=np.int32)
    counts = np.zeros(len(lists), dtype=np.int64)
    for place, texts in enumerate(lists):
        for spot, text in enumerate(texts[:keep]):
            slots[place, spot] = rows.setdefault(text, len(rows))
        counts[place] = min(len(texts), keep)
    return SlotTable(tuple(rows), slots, counts)


def read_lists(artifact: Artifact) -> NeighborLists:
    """The lists of a mined artifact, which know all days of its log."""
    days = [row[0] for row in _rows(artifact, "days", "max(day)") if row[0] is not None]
    if not days:
        raise DataError("has no days", path=str(artifact.path), fix="mine a log first")
    return NeighborLists(
        int(max(days)) + 1, _read(artifact, "neighbors_query", "query"), _read(artifact, "neighbors_item", "item_id")
    )


def read_exposures(artifact: Artifact) -> tuple[dict[str, int], dict[str, int]]:
    """How often each query and each item of a mined log was shown on a result page, over all its days."""
    queries, items = (
        dict(_rows(artifact, "daily", f"{key}, sum(exposures)::BIGINT", f"GROUP BY {key} ORDER BY {key}"))
        for key in ("query", "item_id")
    )
    return queries, items


def _read(artifact: Artifact, table: str, key: str) -> dict[str, tuple[str, ...]]:
    lists: dict[str, list[str]] = {}
    for name, _, neighbor in sorted(_rows(artifact, table, f"{key}, rank, neighbor"), key=lambda row: row[:2]):
        lists.setdefault(name, []).append(neighbor)
    return {name: tuple(neighbors) for name, neighbors in lists.items()}


def _rows(artifact: Artifact, table: str, columns: str, rest: str = "") -> list[tuple[Any, ...]]:
    sql = f"SELECT {columns} FROM read_parquet($file) {rest}"
    return query_parquet({"file": artifact.path / f"{table}.parquet"}, sql)[1]
