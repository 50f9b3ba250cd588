"""Rows of an item index as arrays: made from items, taken from an older index, put together and written.

An index is written piece by piece. Rows whose item has not changed come from the older index; only the
others are tokenized. What a row holds does not depend on where it came from.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from pertinent.engine.arrays import ArrayWriter, Ragged, write_arrays
from pertinent.engine.states import STATE_ARRAYS, STATES_FILE, StateWriter
from pertinent.errors import DataError, shorten
from pertinent.lexicon.pairs import PairTokenizer, item_text
from pertinent.records import Item, TokenRows

INDEX_FILE = "items.safetensors"
# Widest first: every array then starts at a multiple of its own item size.
INDEX_ARRAYS = {
    "token_offsets": "I64",
    "id_offsets": "I64",
    "title_offsets": "I64",
    "sorted_digests": "U64",
    "digest_rows": "I64",
    "item_digests": "U64",
    "tokens": "I32",
    "truncated": "U8",
    "term_classes": "I8",
    "id_bytes": "U8",
    "title_bytes": "U8",
}
Thing = TypeVar("Thing")
_SALT = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True, slots=True)
class Piece:
    """Rows of an index. ``states`` is None where the model keeps none for its items."""

    tokens: TokenRows
    ids: Ragged
    titles: Ragged
    digests: NDArray[np.uint64]  # [n, 2], see `item_digests`
    states: Ragged | None = None

    def __len__(self) -> int:
        return len(self.tokens)

    def take(self, rows: NDArray[np.int64]) -> Piece:
        """The given rows, in the given order."""
        states = None if self.states is None else self.states.take(rows)
        return Piece(
            self.tokens.take(rows), self.ids.take(rows), self.titles.take(rows), np.asarray(self.digests[rows]), states
        )

    def slice(self, start: int, stop: int) -> Piece:
        """Rows ``start`` to ``stop``; nothing large is copied."""
        tokens = self.tokens
        offsets = tokens.offsets[start : stop + 1]
        inside = slice(int(offsets[0]), int(offsets[-1]))
        classes = None if tokens.term_classes is None else tokens.term_classes[inside]
        return Piece(
            TokenRows(tokens.ids[inside], offsets - offsets[0], tokens.truncated[start:stop], classes),
            self.ids.slice(start, stop),
            self.titles.slice(start, stop),
            self.digests[start:stop],
            None if self.states is None else self.states.slice(start, stop),
        )

    @staticmethod
    def joined(parts: Sequence[Piece]) -> Piece:
        """All rows of the parts, one part after the other; all have states, or none has."""
        states = [part.states for part in parts if part.states is not None]
        return Piece(
            TokenRows.joined([part.tokens for part in parts]),
            Ragged.joined([part.ids for part in parts]),
            Ragged.joined([part.titles for part in parts]),
            np.concatenate([part.digests for part in parts]),
            Ragged.joined(states) if states else None,
        )


@dataclass(slots=True)
class Encoder:
    """Items to pieces: the fields that make up a text, the tokenizer, and the states if the model keeps them."""

    pairs: PairTokenizer
    fields: Sequence[str]
    state_writer: StateWriter | None = None
    tokenized: int = 0

    def texts(self, items: Sequence[Item]) -> list[str]:
        """What the model reads of each item."""
        return [item_text(item, self.fields) for item in items]

    def digests(self, items: Sequence[Item]) -> NDArray[np.uint64]:
        """`item_digests` of items."""
        return item_digests([item.item_id for item in items], self.texts(items))

    def piece(self, items: Sequence[Item]) -> Piece:
        """The rows of items, tokenized."""
        texts = self.texts(items)
        ids = [_encoded(item.item_id) for item in items]
        tokens = self.pairs.encode_items(texts)
        self.tokenized += len(items)
        states = None if self.state_writer is None else self.state_writer.states(tokens)
        titles = Ragged.of_bytes([_encoded(text) for text in texts])
        digests = item_digests([item.item_id for item in items], texts)
        return Piece(tokens, Ragged.of_bytes(ids), titles, digests, states)


def item_digests(item_ids: Sequence[str], texts: Sequence[str]) -> NDArray[np.uint64]:
    """128 bits over the id and the text of each item, ``[n, 2]``: what changes when either does.

    >>> item_digests(["a"], ["bc"]).tolist() == item_digests(["ab"], ["c"]).tolist()
    False
    """
    found = b"".join(
        hashlib.blake2b(b"%d:%b%b" % (len(item_id), item_id, _encoded(text)), digest_size=16).digest()
        for item_id, text in zip(map(_encoded, item_ids), texts, strict=True)
    )
    return np.frombuffer(found, dtype="<u8").reshape(-1, 2)


def encoded_ids(item_ids: Sequence[str]) -> Ragged:
    """Ids as bytes, as an index has them.

    >>> encoded_ids(["a1", "é"]).values.tolist()
    [97, 49, 195, 169]
    """
    together = "".join(item_ids)
    if not together.isascii():
        return Ragged.of_bytes([_encoded(item_id) for item_id in item_ids])
    offsets = np.cumsum([0, *map(len, item_ids)], dtype=np.int64)
    return Ragged(np.frombuffer(together.encode("ascii"), dtype=np.uint8), offsets)


def id_digests(ids: Ragged) -> NDArray[np.uint64]:
    """64 bits over each id, by which rows are found; all ids are mixed at once, eight bytes of each at a time.

    No digest against forgery: who finds rows by it compares the ids too.

    >>> len(set(id_digests(encoded_ids(["a", "b", "ab", "ba", "", "a\\0"])).tolist()))
    6
    """
    words = ids.lengths // 8 + 1
    starts = np.cumsum(words) - words
    padded = np.zeros(8 * int(words.sum()), dtype=np.uint8)
    padded[np.repeat(8 * starts - ids.offsets[:-1], ids.lengths) + np.arange(len(ids.values))] = ids.values
    place = np.arange(len(padded) // 8) - np.repeat(starts, words)
    mixed = _mixed(padded.view("<u8") ^ _mixed(place.astype(np.uint64) + _SALT))
    sums = np.add.reduceat(mixed, starts) if len(ids) else mixed
    return _mixed(sums ^ _mixed(ids.lengths.astype(np.uint64)))


def blake_digests(ids: Ragged) -> NDArray[np.uint64]:
    """What stood for ``id_digests`` in indexes made before there was a setting ``id_digests``."""
    content, ends = ids.values.tobytes(), ids.offsets.tolist()
    found = b"".join(hashlib.blake2b(content[start:end], digest_size=8).digest() for start, end in pairwise(ends))
    return np.frombuffer(found, dtype="<u8").astype(np.uint64)


# By the name that stands in an index.
ID_DIGESTS = {"words": id_digests, "blake2b": blake_digests}
NEW_ID_DIGESTS, OLD_ID_DIGESTS = "words", "blake2b"


def _mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Every bit of a number spread over all (the finalizer of SplitMix64)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def write_pieces(pieces: Iterable[Piece], folder: Path, states: int | None) -> int:
    """Write the files of an index; gives the number of rows. Memory stays constant but for 8 bytes an item.

    ``states`` is the width of item states, None for none. Raises DataError for an id that comes twice.
    """
    found: list[NDArray[np.uint64]] = [np.zeros(0, dtype=np.uint64)]
    with ExitStack() as stack:
        writer = stack.enter_context(write_arrays(folder / INDEX_FILE, INDEX_ARRAYS))
        beside = None if states is None else stack.enter_context(write_arrays(folder / STATES_FILE, STATE_ARRAYS))
        for name in ("token_offsets", "id_offsets", "title_offsets"):
            writer.add_lengths(name, np.zeros(0, dtype=np.int64))
        if beside is not None:
            beside.add_lengths("state_offsets", np.zeros(0, dtype=np.int64))
        for piece in pieces:
            _write(piece, writer)
            if beside is not None:
                assert piece.states is not None
                beside.add_lengths("state_offsets", piece.states.lengths)
                beside.add("item_states", piece.states.values)
            found.append(ID_DIGESTS[NEW_ID_DIGESTS](piece.ids))
        digests = np.concatenate(found)
        order = np.argsort(digests, kind="stable")
        writer.add("sorted_digests", digests[order])
        writer.add("digest_rows", order)
        _refuse_repeated(digests, order, writer)
    return len(digests)


def in_chunks(things: Iterable[Thing], size: int) -> Iterator[list[Thing]]:
    """Lists of ``size`` things, the last one of what is left.

    >>> list(in_chunks("abc", 2))
    [['a', 'b'], ['c']]
    """
    chunk: list[Thing] = []
    for thing in things:
        chunk.append(thing)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def reused(
    old: Piece, find: Callable[[Sequence[str]], NDArray[np.int64]], items: Sequence[Item], encoder: Encoder
) -> Piece:
    """The rows of items, in their order: those that an old index has with the same text come from there."""
    rows = find([item.item_id for item in items])
    same = rows >= 0
    same[same] = (old.digests[rows[same]] == encoder.digests(items)[same]).all(axis=1)
    if not same.any():
        return encoder.piece(items)
    kept = old.take(rows[same])
    if same.all():
        return kept
    fresh = encoder.piece([items[int(place)] for place in np.flatnonzero(~same)])
    return Piece.joined([kept, fresh]).take(np.argsort(np.argsort(~same, kind="stable"), kind="stable"))


def _write(piece: Piece, writer: ArrayWriter) -> None:
    tokens = piece.tokens
    writer.add("tokens", tokens.ids)
    writer.add("truncated", tokens.truncated)
    if tokens.term_classes is not None:
        writer.add("term_classes", tokens.term_classes)
    writer.add_lengths("token_offsets", tokens.lengths)
    for kind, texts in (("id", piece.ids), ("title", piece.titles)):
        writer.add(f"{kind}_bytes", texts.values)
        writer.add_lengths(f"{kind}_offsets", texts.lengths)
    writer.add("item_digests", piece.digests)


def _refuse_repeated(digests: NDArray[np.uint64], order: NDArray[np.int64], writer: ArrayWriter) -> None:
    ordered = digests[order]
    for place in np.flatnonzero(ordered[1:] == ordered[:-1]):
        first, second = (_stored_id(writer, int(order[place + step])) for step in (0, 1))
        if first == second:
            rows = sorted(int(order[place + step]) + 1 for step in (0, 1))
            raise DataError(
                f"item id {shorten(first)} comes twice, as item {rows[0]} and item {rows[1]}",
                fix="give each item an id of its own, or remove one",
            )


def _stored_id(writer: ArrayWriter, row: int) -> str:
    start, end = np.frombuffer(writer.read_bytes("id_offsets", 8 * row, 8 * row + 16), dtype="<i8").tolist()
    return writer.read_bytes("id_bytes", start, end).decode("utf-8")


def _encoded(text: str) -> bytes:
    # Half characters, which JSON can hold and UTF-8 cannot, become question marks.
    return text.encode("utf-8", "replace")
