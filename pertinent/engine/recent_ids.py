"""Rows of the item ids that were asked for lately: one look into a table instead of a search in the index."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from pertinent.engine.index import ItemIndex

# At most 34 MB.
MAX_IDS = 262_144
# Places for each id, at least: most ids are found at the first place that is looked at.
_ROOM = 4


class RecentIds:
    """The rows of an index by item id, remembered. For one thread; a new generation of the index needs a new one.

    Only ids that the index has are kept, so their number is that of the catalog's; with more than ``most`` of
    them it begins anew. What is kept of an id is Python's hash of its text, 64 bits with a key that each process
    draws (unless PYTHONHASHSEED is set): that two of as many ids share one has a chance of 2 in 10^9, and who sends
    ids cannot raise it.

    A dict of texts would do the same in twice the time: it follows a pointer to the text and one to the number of
    each id, somewhere in memory. Here all ids are looked up together, in two arrays.
    """

    def __init__(self, index: ItemIndex, most: int = MAX_IDS) -> None:
        self._index = index
        # As large as it will ever be, and written to once: growing it, or getting its pages, would hold up requests.
        self._most = min(len(index), most)
        self._size = 1 << (_ROOM * self._most).bit_length()
        self._hashes = np.full(self._size, 0, dtype=np.int64)
        self._next = np.full(self._size, 0, dtype=np.int64)  # row + 1, 0 where the place is free
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def find(self, item_ids: Sequence[int | str]) -> NDArray[np.int64]:
        """The rows of the given item ids, ``[n]``; -1 for an id that is not indexed. A number is its text."""
        texts = cast(list[str], item_ids) if set(map(type, item_ids)) == {str} else list(map(str, item_ids))
        hashes = np.fromiter(map(hash, texts), dtype=np.int64, count=len(texts))
        rows = self._next[self._places(hashes)] - 1
        new = np.flatnonzero(rows < 0)
        if len(new):
            rows[new] = self._index.find([texts[place] for place in new])
            known = new[rows[new] >= 0]
            self._keep(hashes[known], rows[known])
        return rows

    def _places(self, hashes: NDArray[np.int64]) -> NDArray[np.int64]:
        """Where each hash is, or the free place where it would be; places follow one another where they are taken."""
        last = self._size - 1
        places = hashes & last
        left = np.flatnonzero(self._hashes[places] != hashes)
        while len(left := left[self._next[places[left]] > 0]):
            places[left] = (places[left] + 1) & last
            left = left[self._hashes[places[left]] != hashes[left]]
        return places

    def _keep(self, hashes: NDArray[np.int64], rows: NDArray[np.int64]) -> None:
        # Each once, and never more than there is room for: several texts may stand for one row of a small index.
        hashes, first = np.unique(hashes, return_index=True)
        rows = rows[first]
        if self._count + len(hashes) > self._most:
            self._next.fill(0)  # a hash that stays at a free place does no harm: it has no row
            self._count = 0
        if len(hashes) > self._most:
            return
        while len(hashes):
            places = self._places(hashes)
            free = self._next[places] == 0
            # Of several that want one place the last one has it, and the others look for another in the next round.
            self._hashes[places[free]], self._next[places[free]] = hashes[free], rows[free] + 1
            self._count += len(np.unique(places[free]))
            left = self._hashes[places] != hashes
            hashes, rows = hashes[left], rows[left]
