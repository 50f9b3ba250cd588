"""Rows of the item ids that were asked for lately: one look into a dict instead of a search in the index."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from pertinent.engine.index import ItemIndex

# Some 100 bytes an id of ten characters: 30 MB, and more with longer ones.
MAX_IDS = 262_144


class RecentIds:
    """The rows of an index by item id, remembered. For one thread; a new generation of the index needs a new one.

    Only ids that the index has are kept, so their size is that of the catalog's; with more than ``most`` of
    them it begins anew.
    """

    def __init__(self, index: ItemIndex, most: int = MAX_IDS) -> None:
        self._index, self._most = index, most
        self._rows: dict[int | str, int] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def find(self, item_ids: Sequence[int | str]) -> NDArray[np.int64]:
        """The rows of the given item ids, ``[n]``; -1 for an id that is not indexed. A number is its text."""
        with contextlib.suppress(KeyError):  # the usual case by the shortest way: all are known
            return np.fromiter(map(self._rows.__getitem__, item_ids), dtype=np.int64, count=len(item_ids))
        rows = list(map(self._rows.get, item_ids))
        places = [place for place, row in enumerate(rows) if row is None]
        new = [item_ids[place] for place in places]
        found = self._index.find(list(map(str, new))).tolist()
        for place, row in zip(places, found, strict=True):
            rows[place] = row
        if len(self._rows) + len(new) > self._most:
            self._rows.clear()
        if len(new) <= self._most:
            self._rows.update((item_id, row) for item_id, row in zip(new, found, strict=True) if row >= 0)
        return np.array(rows, dtype=np.int64)
