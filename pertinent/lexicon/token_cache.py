"""Token rows of texts that were tokenized before: the texts used last, within so many bytes."""

from __future__ import annotations

import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence

import numpy as np

from pertinent.records import TokenRows
from pertinent.text import MAX_CHARACTERS

# ids, classes (None where there are none), truncated
_Row = tuple[bytes, bytes | None, bool]
_ENTRY_BYTES = 300  # of a row beside its text: three objects, and its place in the table


class TokenCache:
    """Rows by text, least recently used out first; safe to use from several threads.

    Tokenizing 3,000 new titles costs more than the fastest models need to score them. Longer texts than
    the tokenizer looks at are not kept.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.hits = self.misses = 0
        self._rows: OrderedDict[str, _Row] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def size(self) -> int:
        """Bytes that texts and rows take, about."""
        return self._bytes

    def rows(self, texts: Sequence[str], encode: Callable[[Sequence[str]], TokenRows]) -> TokenRows:
        """The rows of texts, in their order; ``encode`` is called with those that are not here, each once."""
        found = self._find(texts)
        missing = list(dict.fromkeys(text for text, row in zip(texts, found, strict=True) if row is None))
        if missing:
            fresh = encode(missing)
            if len(missing) == len(texts):
                self._keep(missing, _split(fresh))
                return fresh
            rows = _split(fresh)
            self._keep(missing, rows)
            made = dict(zip(missing, rows, strict=True))
            return _joined([made[text] if row is None else row for text, row in zip(texts, found, strict=True)])
        return _joined([row for row in found if row is not None]) if found else encode([])

    def _find(self, texts: Sequence[str]) -> list[_Row | None]:
        with self._lock:
            found = [self._rows.get(text) for text in texts]
            for text, row in zip(texts, found, strict=True):
                if row is not None:
                    self._rows.move_to_end(text)
            misses = found.count(None)
            self.hits += len(found) - misses
            self.misses += misses
        return found

    def _keep(self, texts: Sequence[str], rows: Sequence[_Row]) -> None:
        with self._lock:
            for text, row in zip(texts, rows, strict=True):
                if len(text) > MAX_CHARACTERS or text in self._rows:
                    continue
                self._rows[text] = row
                self._bytes += _size(text, row)
            while self._bytes > self.limit:
                self._bytes -= _size(*self._rows.popitem(last=False))


def _split(rows: TokenRows) -> list[_Row]:
    ends = rows.offsets.tolist()
    ids = rows.ids.tobytes()
    classes = None if rows.term_classes is None else rows.term_classes.tobytes()
    width = rows.ids.itemsize
    return [
        (
            ids[width * start : width * end],
            None if classes is None else classes[start:end],
            cut,
        )
        for start, end, cut in zip(ends[:-1], ends[1:], rows.truncated.tolist(), strict=True)
    ]


def _joined(rows: Sequence[_Row]) -> TokenRows:
    ids = np.frombuffer(b"".join([row[0] for row in rows]), dtype=np.int32)
    offsets = np.cumsum([0, *(len(row[0]) // ids.itemsize for row in rows)], dtype=np.int64)
    parts = [row[1] for row in rows if row[1] is not None]
    classes = np.frombuffer(b"".join(parts), dtype=np.int8) if parts else None
    return TokenRows(ids, offsets, np.array([row[2] for row in rows], dtype=np.bool_), classes)


def _size(text: str, row: _Row) -> int:
    return sys.getsizeof(text) + len(row[0]) + len(row[1] or b"") + _ENTRY_BYTES
