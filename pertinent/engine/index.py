"""A catalog tokenized once and kept on disk, read through memory maps; updated without tokenizing it again.

An index folder holds one safetensors file: token ids end to end with offsets, whether each text was
cut, item ids and titles as UTF-8 with offsets, digests of the ids to find rows by id, and a digest of
each item's id and text. Models that read items ahead of the query add a file of states.

An update writes a new generation beside the old one and puts it in place in one step. It equals an index
built from scratch of the same items in the same order, byte for byte.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from pertinent.artifact import Artifact, opened, write_artifact
from pertinent.config import Config
from pertinent.engine.arrays import MappedArrays, MappedFile, Ragged, map_arrays, offsets_fit
from pertinent.engine.pieces import (
    ID_DIGESTS,
    INDEX_ARRAYS,
    INDEX_FILE,
    NEW_ID_DIGESTS,
    OLD_ID_DIGESTS,
    Encoder,
    Piece,
    encoded_ids,
    in_chunks,
    reused,
    write_pieces,
)
from pertinent.engine.states import STATES_FILE, ItemStates, StateWriter, described, open_states
from pertinent.errors import ArtifactError, DataError, shorten
from pertinent.lexicon.pairs import PairTokenizer
from pertinent.records import Item, TokenRows

_log = logging.getLogger(__name__)

# Fewer take hardly longer than the start, so nothing is said about a million of them.
FEW_ITEMS = 1000
# How it was run, which says nothing about what came out.
_NOT_RECORDED = {"progress", "update", "replace", "delete"}


class IndexConfig(Config):
    """An index of a catalog for one model. ``fields`` make up the text of an item, in order.

    ``columns`` maps columns of the catalog to ours, such as ``product_name: title``. ``update`` adds and
    changes the items of the file in the index at ``out``, ``replace`` also drops those the file does not have,
    ``delete`` is a file of item ids to drop.
    """

    model: str | None = None
    items: str | None = None
    columns: dict[str, str] = {}
    out: str | None = None
    update: bool = False
    replace: bool = False
    delete: str | None = None
    fields: tuple[str, ...] = Field(("title",), min_length=1)
    chunk: int = Field(10_000, ge=1)
    progress: bool = True


@dataclass(frozen=True, slots=True)
class ItemIndex:
    """Items of a catalog by row, ready to be scored: their tokens, ids and titles.

    The arrays are memory maps: they stay valid as long as no file of the folder is changed or cut. Folders
    are never edited in place: after an update an opened index goes on reading the generation it opened.
    """

    path: Path
    version: str
    config: dict[str, Any]
    tokens: TokenRows
    _arrays: MappedArrays
    states: ItemStates | None = None

    def __len__(self) -> int:
        return len(self.tokens)

    @classmethod
    def build(
        cls,
        items: Iterable[Item],
        pairs: PairTokenizer,
        folder: str | Path,
        model_version: str = "",
        config: IndexConfig | None = None,
        state_writer: StateWriter | None = None,
    ) -> Self:
        """Tokenize items into a new index at ``folder``, and open it. Memory stays constant.

        With ``state_writer`` the index also keeps what a late-join model computes of items ahead.
        Raises DataError for an item id that comes twice; an index that stood there is then kept.
        """
        config = config if config is not None else IndexConfig(progress=False)
        encoder = Encoder(pairs, config.fields, state_writer)
        pieces = (encoder.piece(chunk) for chunk in in_chunks(items, config.chunk))
        _make(folder, pieces, encoder, config, model_version, {"generation": 1}, {})
        return cls.open(folder, pairs, states_version=state_writer.version if state_writer else None)

    @classmethod
    def replace(
        cls,
        items: Iterable[Item],
        pairs: PairTokenizer,
        folder: str | Path,
        model_version: str = "",
        config: IndexConfig | None = None,
        state_writer: StateWriter | None = None,
    ) -> Self:
        """As ``build``, but items that the index at ``folder`` has with the same text are not tokenized again."""
        config = config if config is not None else IndexConfig(progress=False)
        old, encoder = cls._older(folder, pairs, config, state_writer)
        counts = dict.fromkeys(("added", "changed", "deleted"), 0)

        def pieces() -> Iterator[Piece]:
            rows = old.piece()
            seen = 0
            for chunk in in_chunks(items, config.chunk):
                before = encoder.tokenized
                found = int(np.count_nonzero(old.find([item.item_id for item in chunk]) >= 0))
                yield reused(rows, old.find, chunk, encoder)
                seen += found
                counts["added"] += len(chunk) - found
                counts["changed"] += encoder.tokenized - before - (len(chunk) - found)
            counts["deleted"] = len(old) - seen

        _make(folder, pieces(), encoder, config, model_version, old._next(), counts)
        return cls.open(folder, pairs, states_version=state_writer.version if state_writer else None)

    @classmethod
    def update(
        cls,
        folder: str | Path,
        pairs: PairTokenizer,
        items: Sequence[Item] = (),
        delete: Sequence[str] = (),
        model_version: str = "",
        config: IndexConfig | None = None,
        state_writer: StateWriter | None = None,
    ) -> Self:
        """A new generation of the index at ``folder``: items changed in their places, deleted, added at the end.

        Equal to an index built of the resulting items. Row numbers move up where something was deleted.
        Ids to delete that are not there are only counted. The given items are held in memory; where most of
        a catalog changes use ``replace``. Raises ArtifactError, and changes nothing, where another update of the
        same index is done first.
        """
        config = config if config is not None else IndexConfig(progress=False)
        old, encoder = cls._older(folder, pairs, config, state_writer)
        given = _by_id(items, delete)
        rows = old.find(list(given))
        gone = old.find(list(dict.fromkeys(delete)))
        keep = np.ones(len(old), dtype=np.bool_)
        keep[gone[gone >= 0]] = False
        touched = {int(row): item for row, item in zip(rows, given.values(), strict=True) if row >= 0}
        touched = old._really_changed(touched, encoder)
        new = [item for row, item in zip(rows, given.values(), strict=True) if row < 0]
        counts = {
            "added": len(new),
            "changed": len(touched),
            "deleted": int(np.count_nonzero(~keep)),
            "not_found": int(np.count_nonzero(gone < 0)),
        }
        pieces = old._changed_pieces(keep, touched, new, encoder, config.chunk)
        _make(folder, pieces, encoder, config, model_version, old._next(), counts)
        return cls.open(folder, pairs, states_version=state_writer.version if state_writer else None)

    @classmethod
    def open(
        cls,
        folder: str | Path,
        model: PairTokenizer | None = None,
        verify: bool = True,
        states_version: str | None = None,
    ) -> Self:
        """The index at ``folder``; with ``model`` one that was made by the same tokenizer, lexicon and layout.

        ``verify`` reads all files once to check their digests. ``states_version`` is of the model that will
        read the item states. Raises ArtifactError for an index that is damaged or was made for another model.
        """
        with opened(folder, "index", verify) as artifact:
            arrays = map_arrays(artifact.file(INDEX_FILE), INDEX_ARRAYS, "index", "make it again with: pertinent index")
            _check_arrays(artifact, arrays)
            classes = arrays["term_classes"] if len(arrays["term_classes"]) else None
            tokens = TokenRows(arrays["tokens"], arrays["token_offsets"], arrays["truncated"].view(np.bool_), classes)
            states = open_states(artifact, len(tokens))
            index = cls(artifact.path, artifact.version, artifact.config, tokens, arrays, states)
        if model is not None:
            index.check(model)
        if states_version is not None:
            index.check_states(states_version)
        return index

    @property
    def tokenizer_digest(self) -> str:
        """What the index says of the tokenizer, the lexicon and the layout it was made with."""
        return str(self.config.get("tokenizer_digest", ""))

    @property
    def generation(self) -> int:
        """1 for an index built from scratch, one more with every update."""
        return int(self.config.get("generation", 1))

    @property
    def files(self) -> list[MappedFile]:
        """The files that its arrays are mapped from."""
        return [self._arrays.file, *([] if self.states is None else [self.states.file])]

    @property
    def digests(self) -> NDArray[np.uint64]:
        """128 bits over the id and the text of each item, ``[n, 2]``."""
        return self._arrays["item_digests"].reshape(-1, 2)

    def piece(self) -> Piece:
        """All rows as arrays, memory-mapped."""
        ids, titles = (
            Ragged(self._arrays[f"{kind}_bytes"], self._arrays[f"{kind}_offsets"]) for kind in ("id", "title")
        )
        return Piece(self.tokens, ids, titles, self.digests, None if self.states is None else self.states.rows)

    def check(self, pairs: PairTokenizer) -> None:
        """Raises ArtifactError unless the index was made with this tokenizer and layout."""
        wanted = tokenizer_digest(pairs)
        if wanted != self.tokenizer_digest:
            raise ArtifactError(
                f"{self.path / INDEX_FILE}: was made for another tokenizer or pair layout than the model's (digest "
                f"{self.tokenizer_digest[:12]}..., the model has {wanted[:12]}...); make it again with: pertinent index"
            )

    def check_states(self, version: str) -> ItemStates:
        """The item states. Raises ArtifactError unless the index has them, from this version of the model."""
        if self.states is None:
            raise ArtifactError(f"{self.path}: has no item states; make it again with: pertinent index")
        if self.states.version != version:
            raise ArtifactError(
                f"{self.path / STATES_FILE}: has the item states of model version {shorten(self.states.version)}, the "
                f"model is {shorten(version)}; make it again with: pertinent index"
            )
        return self.states

    def items(self, rows: Sequence[int] | NDArray[np.int64]) -> list[Item]:
        """The items of the given rows, with id and the text that was indexed as title."""
        return [Item(self._text("id", row), self._text("title", row)) for row in self.checked_rows(rows)]

    def rows(self, item_ids: Sequence[str]) -> NDArray[np.int64]:
        """The rows of the given item ids, ``[n]``. Raises DataError for an id that is not indexed."""
        found = self.find(item_ids)
        missing = np.flatnonzero(found < 0)
        if len(missing):
            raise DataError(
                f"item id {shorten(item_ids[missing[0]])} is not in the index {self.path}",
                fix="add the item to the catalog and index it again",
            )
        return found

    def find(self, item_ids: Sequence[str]) -> NDArray[np.int64]:
        """The rows of the given item ids, ``[n]``; -1 for an id that is not indexed."""
        wanted = encoded_ids(item_ids)
        ordered, digest_rows = self._arrays["sorted_digests"], self._arrays["digest_rows"]
        found = np.full(len(wanted), -1, dtype=np.int64)
        if not len(ordered) or not len(wanted):
            return found
        digests = ID_DIGESTS[self.config.get("id_digests", OLD_ID_DIGESTS)](wanted)
        places = np.searchsorted(ordered, digests)
        hits = np.flatnonzero(ordered[np.minimum(places, len(ordered) - 1)] == digests)
        rows = digest_rows[places[hits]]
        same = self._has_ids(rows, wanted if len(hits) == len(wanted) else wanted.take(hits))
        found[hits[same]] = rows[same]
        # Two ids may share a digest (one chance in 10^19 a pair): the text decides.
        for hit in hits[~same]:
            place = int(places[hit]) + 1
            while place < len(ordered) and ordered[place] == digests[hit]:
                if self._text("id", int(digest_rows[place])) == item_ids[hit]:
                    found[hit] = digest_rows[place]
                place += 1
        return found

    def _has_ids(self, rows: NDArray[np.int64], ids: Ragged) -> NDArray[np.bool_]:
        """Whether each row has the id beside it, ``[n]``; all bytes are compared at once."""
        offsets = self._arrays["id_offsets"]
        starts = offsets[rows]
        same = np.asarray(offsets[rows + 1] - starts == ids.lengths)
        equal = np.flatnonzero(same)
        wanted = ids if len(equal) == len(ids) else ids.take(equal)
        source = np.repeat(starts[equal] - wanted.offsets[:-1], wanted.lengths) + np.arange(len(wanted.values))
        differ = np.flatnonzero(self._arrays["id_bytes"][source] != wanted.values)
        same[equal[np.searchsorted(wanted.offsets, differ, side="right") - 1]] = False
        return same

    def checked_rows(self, rows: Sequence[int] | NDArray[np.int64]) -> NDArray[np.int64]:
        """Row numbers as an array. Raises DataError for one that is outside of the index."""
        checked = np.asarray(rows)
        if checked.size and not np.issubdtype(checked.dtype, np.integer):
            raise DataError(f"rows have type {checked.dtype}", fix="give whole numbers; ids go through rows()")
        checked = checked.astype(np.int64)
        outside = checked[(checked < 0) | (checked >= len(self))]
        if len(outside):
            raise DataError(f"row {outside[0]} is outside of an index of {len(self)} items", fix="count from 0")
        return checked

    def _text(self, kind: str, row: int) -> str:
        offsets = self._arrays[f"{kind}_offsets"]
        return bytes(self._arrays[f"{kind}_bytes"][offsets[row] : offsets[row + 1]]).decode("utf-8")

    @classmethod
    def _older(
        cls, folder: str | Path, pairs: PairTokenizer, config: IndexConfig, state_writer: StateWriter | None
    ) -> tuple[Self, Encoder]:
        """The index that stands at ``folder``, and what makes rows as it has them."""
        old = cls.open(folder, pairs, states_version=state_writer.version if state_writer else None)
        if old.states is not None and state_writer is None:
            raise ArtifactError(
                f"{old.path}: has item states, which only the model of version {shorten(old.states.version)} can add to"
            )
        fields = tuple(old.config.get("fields", config.fields))
        if "fields" in config.model_fields_set and config.fields != fields:
            raise ArtifactError(
                f"{old.path}: its texts are made of {', '.join(fields)}, not of {', '.join(config.fields)}; "
                "leave fields out, or make the index again without an update"
            )
        return old, Encoder(pairs, fields, state_writer)

    def _next(self) -> dict[str, Any]:
        return {"generation": self.generation + 1, "before": self.version}

    def _really_changed(self, given: Mapping[int, Item], encoder: Encoder) -> dict[int, Item]:
        """Those of the given rows whose text is another one now."""
        rows = np.fromiter(given, dtype=np.int64, count=len(given))
        if not len(rows):
            return {}
        differ = (self.digests[rows] != encoder.digests(list(given.values()))).any(axis=1)
        return {int(row): given[int(row)] for row in rows[differ]}

    def _changed_pieces(
        self,
        keep: NDArray[np.bool_],
        touched: Mapping[int, Item],
        new: Sequence[Item],
        encoder: Encoder,
        chunk: int,
    ) -> Iterator[Piece]:
        rows = self.piece()
        changed = np.array(sorted(touched), dtype=np.int64)
        for start in range(0, len(self), chunk):
            stop = min(start + chunk, len(self))
            here = changed[np.searchsorted(changed, start) : np.searchsorted(changed, stop)]
            if not len(here) and keep[start:stop].all():
                yield rows.slice(start, stop)
                continue
            left = keep[start:stop].copy()
            left[here - start] = False
            kept = start + np.flatnonzero(left)
            fresh = encoder.piece([touched[int(row)] for row in here])
            yield Piece.joined([rows.take(kept), fresh]).take(np.argsort(np.concatenate([kept, here]), kind="stable"))
        for items in in_chunks(new, chunk):
            yield encoder.piece(items)


# Tokenizers, and the texts they keep tokenized, go with the model they belong to.
_digests: WeakKeyDictionary[PairTokenizer, str] = WeakKeyDictionary()


def tokenizer_digest(pairs: PairTokenizer) -> str:
    """A digest of all that decides how an item text becomes ids; equal for tokenizers that agree."""
    # Writing a vocabulary out takes some 30 ms, too long for every request.
    known = _digests.get(pairs)
    if known is not None:
        return known
    text = json.dumps(pairs.describe(), sort_keys=True, ensure_ascii=False)
    digest = hashlib.sha256(text.encode("utf-8")).hexdigest()
    _digests[pairs] = digest
    return digest


def _check_arrays(artifact: Artifact, arrays: dict[str, NDArray[Any]]) -> None:
    kind = artifact.config.get("id_digests", OLD_ID_DIGESTS)
    if kind not in ID_DIGESTS:
        raise ArtifactError(
            f"{artifact.path}: finds ids by {shorten(kind)}, this version knows {', '.join(ID_DIGESTS)}; "
            "make the index again with: pertinent index"
        )
    count = len(arrays["truncated"])
    ends = {"token": len(arrays["tokens"]), "id": len(arrays["id_bytes"]), "title": len(arrays["title_bytes"])}
    fits = len(arrays["sorted_digests"]) == len(arrays["digest_rows"]) == count
    fits = fits and len(arrays["item_digests"]) == 2 * count
    fits = fits and all(offsets_fit(arrays[f"{kind}_offsets"], count, end) for kind, end in ends.items())
    fits = fits and len(arrays["term_classes"]) in (0, ends["token"])
    if not fits:
        raise ArtifactError(f"{artifact.path / INDEX_FILE}: its parts do not fit together; make the index again")


def _make(
    folder: str | Path,
    pieces: Iterable[Piece],
    encoder: Encoder,
    config: IndexConfig,
    model_version: str,
    history: Mapping[str, Any],
    counts: Mapping[str, int],
) -> None:
    """Write an index folder. ``counts`` are read when all pieces are through."""
    started = time.perf_counter()
    metrics: dict[str, Any] = {}
    settings = {name: value for name, value in config.plain().items() if name not in _NOT_RECORDED}
    settings |= {"fields": list(encoder.fields), "tokenizer_digest": tokenizer_digest(encoder.pairs)}
    settings |= {"model_version": model_version, "states": described(encoder.state_writer), **history}
    settings["id_digests"] = NEW_ID_DIGESTS
    with write_artifact(folder, "index", settings, metrics=metrics, replaces=history.get("before")) as aside:
        hidden = None if encoder.state_writer is None else encoder.state_writer.hidden
        count = write_pieces(_shown(pieces, config.progress), aside, hidden)
        seconds = time.perf_counter() - started
        size = sum(file.stat().st_size for file in aside.iterdir())
        metrics |= {"items": count, "bytes": size, "seconds": round(seconds, 3)}
        if count:
            metrics["megabytes_per_million"] = round(size / count, 1)
        if count >= FEW_ITEMS:
            metrics["seconds_per_million"] = round(seconds / count * 1e6, 1)
        metrics |= {"generation": history["generation"], **counts, "tokenized": encoder.tokenized}
    _log.info("%s: %d items, %d tokenized, %.1f MB, %.1f s", folder, count, encoder.tokenized, size / 1e6, seconds)


def _by_id(items: Sequence[Item], delete: Sequence[str]) -> dict[str, Item]:
    """Items by id. Raises DataError for an id that comes twice, or is also to be deleted."""
    given: dict[str, Item] = {}
    for place, item in enumerate(items, start=1):
        if given.setdefault(item.item_id, item) is not item:
            raise DataError(
                f"item id {shorten(item.item_id)} comes twice, the second time as item {place}",
                fix="give each item an id of its own, or remove one",
            )
    both = given.keys() & set(delete)
    if both:
        raise DataError(
            f"item id {shorten(min(both))} is to be changed and to be deleted", fix="name it in one of the two files"
        )
    return given


def _shown(pieces: Iterable[Piece], progress: bool) -> Iterator[Piece]:
    if not progress:
        yield from pieces
        return
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("indexing"), MofNCompleteColumn(), TextColumn("items"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("indexing", total=None)
        for piece in pieces:
            yield piece
            bar.advance(task, len(piece))
