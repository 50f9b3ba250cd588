"""A catalog tokenized once and kept on disk, read through memory maps.

An index folder holds one safetensors file: token ids end to end with offsets, whether each text was
cut, item ids and titles as UTF-8 with offsets, and sorted digests of the ids to find rows by id.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import struct
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from pertinent.artifact import Artifact, open_artifact, write_artifact
from pertinent.config import Config
from pertinent.errors import ArtifactError, DataError, shorten
from pertinent.lexicon.pairs import PairTokenizer, item_text
from pertinent.records import Item, TokenRows

_log = logging.getLogger(__name__)

INDEX_FILE = "items.safetensors"
# Widest first: every array then starts at a multiple of its own item size.
_ARRAYS = {
    "token_offsets": "I64",
    "id_offsets": "I64",
    "title_offsets": "I64",
    "sorted_digests": "U64",
    "digest_rows": "I64",
    "tokens": "I32",
    "truncated": "U8",
    "term_classes": "I8",
    "id_bytes": "U8",
    "title_bytes": "U8",
}
_DTYPES = {"I64": "<i8", "U64": "<u8", "I32": "<i4", "I8": "<i1", "U8": "<u1"}
_MAX_HEADER = 2**20
# Fewer take hardly longer than the start, so nothing is said about a million of them.
FEW_ITEMS = 1000


class IndexConfig(Config):
    """An index of a catalog for one model. ``fields`` make up the text of an item, in order.

    ``columns`` maps columns of the catalog to ours, such as ``product_name: title``.
    """

    model: str | None = None
    items: str | None = None
    columns: dict[str, str] = {}
    out: str | None = None
    fields: tuple[str, ...] = Field(("title",), min_length=1)
    chunk: int = Field(10_000, ge=1)
    progress: bool = True


@dataclass(frozen=True, slots=True)
class ItemIndex:
    """Items of a catalog by row, ready to be scored: their tokens, ids and titles.

    The arrays are memory maps: they stay valid as long as the folder is neither changed nor cut,
    and folders are never edited in place.
    """

    path: Path
    version: str
    tokenizer_digest: str
    tokens: TokenRows
    _arrays: dict[str, NDArray[Any]]

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
    ) -> Self:
        """Tokenize items into a new index at ``folder``, and open it. Memory stays constant.

        Raises DataError for an item id that comes twice; an index that stood there is then kept.
        """
        config = config if config is not None else IndexConfig(progress=False)
        started = time.perf_counter()
        metrics: dict[str, Any] = {}
        settings = {**config.plain(), "tokenizer_digest": tokenizer_digest(pairs), "model_version": model_version}
        with write_artifact(folder, "index", settings, metrics=metrics) as aside:
            count = _write(items, pairs, aside, config)
            seconds = time.perf_counter() - started
            size = (aside / INDEX_FILE).stat().st_size
            metrics |= {"items": count, "bytes": size, "seconds": round(seconds, 3)}
            if count:
                metrics["megabytes_per_million"] = round(size / count, 1)
            if count >= FEW_ITEMS:
                metrics["seconds_per_million"] = round(seconds / count * 1e6, 1)
        _log.info("%s: %d items, %.1f MB, %.1f s", folder, count, size / 1e6, seconds)
        return cls.open(folder, pairs)

    @classmethod
    def open(cls, folder: str | Path, model: PairTokenizer | None = None, verify: bool = True) -> Self:
        """The index at ``folder``; with ``model`` one that was made by the same tokenizer and layout.

        ``verify`` reads the whole file once to check its digest. Raises ArtifactError for an index
        that is damaged or was made for another model.
        """
        artifact = open_artifact(folder, kind="index", verify=verify)
        arrays = map_arrays(artifact.file(INDEX_FILE))
        _check_arrays(artifact, arrays)
        classes = arrays["term_classes"] if len(arrays["term_classes"]) else None
        tokens = TokenRows(arrays["tokens"], arrays["token_offsets"], arrays["truncated"].view(np.bool_), classes)
        digest = str(artifact.config.get("tokenizer_digest", ""))
        index = cls(artifact.path, artifact.version, digest, tokens, arrays)
        if model is not None:
            index.check(model)
        return index

    def check(self, pairs: PairTokenizer) -> None:
        """Raises ArtifactError unless the index was made with this tokenizer and layout."""
        if tokenizer_digest(pairs) != self.tokenizer_digest:
            raise ArtifactError(
                f"{self.path}: was made for another tokenizer or pair layout than the model's; "
                "make it again with: pertinent index"
            )

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
        encoded = [item_id.encode("utf-8", "replace") for item_id in item_ids]
        digests = np.frombuffer(b"".join(map(_digest, encoded)), dtype="<u8")
        ordered, digest_rows = self._arrays["sorted_digests"], self._arrays["digest_rows"]
        found = np.full(len(encoded), -1, dtype=np.int64)
        if not len(ordered) or not encoded:
            return found
        places = np.searchsorted(ordered, digests)
        hits = np.flatnonzero(ordered[np.minimum(places, len(ordered) - 1)] == digests)
        rows = digest_rows[places[hits]]
        same = self._has_ids(rows, [encoded[hit] for hit in hits])
        found[hits[same]] = rows[same]
        # Two ids may share a digest (one chance in 10^19 a pair): the text decides.
        for hit in hits[~same]:
            place = int(places[hit]) + 1
            while place < len(ordered) and ordered[place] == digests[hit]:
                if self._text("id", int(digest_rows[place])) == item_ids[hit]:
                    found[hit] = digest_rows[place]
                place += 1
        return found

    def _has_ids(self, rows: NDArray[np.int64], ids: list[bytes]) -> NDArray[np.bool_]:
        """Whether each row has the id beside it, ``[n]``; all bytes are compared at once."""
        offsets = self._arrays["id_offsets"]
        starts = offsets[rows]
        lengths = np.array([len(item_id) for item_id in ids], dtype=np.int64)
        same = np.asarray(offsets[rows + 1] - starts == lengths)
        lengths = np.where(same, lengths, 0)
        ends = np.cumsum(lengths)
        source = np.repeat(starts - (ends - lengths), lengths) + np.arange(int(lengths.sum()))
        wanted = np.frombuffer(b"".join(i for i, equal in zip(ids, same, strict=True) if equal), dtype=np.uint8)
        differ = self._arrays["id_bytes"][source] != wanted
        same[np.repeat(np.arange(len(ids)), lengths)[differ]] = False
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


_digests: dict[int, tuple[PairTokenizer, str]] = {}


def tokenizer_digest(pairs: PairTokenizer) -> str:
    """A digest of all that decides how an item text becomes ids; equal for tokenizers that agree."""
    # Writing a vocabulary out takes some 30 ms, too long for every request.
    known = _digests.get(id(pairs))
    if known is not None and known[0] is pairs:
        return known[1]
    text = json.dumps(pairs.describe(), sort_keys=True, ensure_ascii=False)
    digest = hashlib.sha256(text.encode("utf-8")).hexdigest()
    if len(_digests) >= 16:
        _digests.clear()
    _digests[id(pairs)] = (pairs, digest)
    return digest


def map_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """The arrays of a safetensors file as read-only memory maps. Raises ArtifactError for a damaged file."""
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            (header_size,) = struct.unpack("<Q", file.read(8))
            if header_size > min(_MAX_HEADER, size - 8):
                raise ValueError("its header is cut")
            header = json.loads(file.read(header_size))
        start = 8 + header_size
        payload = np.memmap(path, dtype=np.uint8, mode="r") if size else np.zeros(0, dtype=np.uint8)
        arrays: dict[str, NDArray[Any]] = {}
        for name, kind in _ARRAYS.items():
            entry = header[name]
            first, last = (start + int(offset) for offset in entry["data_offsets"])
            width = np.dtype(_DTYPES[kind]).itemsize
            if entry["dtype"] != kind or not start <= first <= last <= size or (last - first) % width:
                raise ValueError(f"array {name} does not fit the file")
            arrays[name] = np.asarray(payload[first:last]).view(_DTYPES[kind])
    except (OSError, ValueError, KeyError, TypeError, struct.error) as error:
        raise ArtifactError(f"{path}: not a readable index ({error}); make it again with: pertinent index") from None
    return arrays


def _check_arrays(artifact: Artifact, arrays: dict[str, NDArray[Any]]) -> None:
    count = len(arrays["truncated"])
    ends = {"token": len(arrays["tokens"]), "id": len(arrays["id_bytes"]), "title": len(arrays["title_bytes"])}
    fits = len(arrays["sorted_digests"]) == len(arrays["digest_rows"]) == count
    for kind, end in ends.items():
        offsets = arrays[f"{kind}_offsets"]
        fits = fits and len(offsets) == count + 1 and int(offsets[0]) == 0 and int(offsets[-1]) == end
        fits = fits and bool((offsets[1:] >= offsets[:-1]).all())
    fits = fits and len(arrays["term_classes"]) in (0, ends["token"])
    if not fits:
        raise ArtifactError(f"{artifact.path / INDEX_FILE}: its parts do not fit together; make the index again")


def _write(items: Iterable[Item], pairs: PairTokenizer, folder: Path, config: IndexConfig) -> int:
    """Write the index file; arrays grow in files of their own and are joined at the end."""
    digests: list[NDArray[np.uint64]] = []
    ends = {"token": 0, "id": 0, "title": 0}
    with ExitStack() as stack:
        parts: dict[str, IO[bytes]] = {name: stack.enter_context(open(folder / f".{name}", "w+b")) for name in _ARRAYS}
        for kind in ends:
            parts[f"{kind}_offsets"].write(np.zeros(1, dtype="<i8").tobytes())
        for chunk in _shown(_chunks(items, config.chunk), config.progress):
            titles = [item_text(item, config.fields) for item in chunk]
            rows = pairs.encode_items(titles)
            parts["tokens"].write(rows.ids.astype("<i4").tobytes())
            parts["truncated"].write(rows.truncated.astype(np.uint8).tobytes())
            if rows.term_classes is not None:
                parts["term_classes"].write(rows.term_classes.tobytes())
            _append(parts, ends, "token", rows.lengths)
            for kind, texts in (("id", [item.item_id for item in chunk]), ("title", titles)):
                encoded = [text.encode("utf-8", "replace") for text in texts]
                parts[f"{kind}_bytes"].write(b"".join(encoded))
                _append(parts, ends, kind, np.array([len(text) for text in encoded], dtype=np.int64))
            digests.append(np.array([_id_digest(item.item_id) for item in chunk], dtype=np.uint64))
        every = np.concatenate(digests) if digests else np.zeros(0, dtype=np.uint64)
        order = np.argsort(every, kind="stable")
        parts["sorted_digests"].write(every[order].astype("<u8").tobytes())
        parts["digest_rows"].write(order.astype("<i8").tobytes())
        _refuse_repeated(every, order, parts)
        _join(parts, folder)
    for name in _ARRAYS:
        (folder / f".{name}").unlink()
    return len(every)


def _append(parts: dict[str, IO[bytes]], ends: dict[str, int], kind: str, lengths: NDArray[np.int64]) -> None:
    offsets = ends[kind] + np.cumsum(lengths)
    parts[f"{kind}_offsets"].write(offsets.astype("<i8").tobytes())
    ends[kind] = int(offsets[-1])


def _refuse_repeated(digests: NDArray[np.uint64], order: NDArray[np.int64], parts: dict[str, IO[bytes]]) -> None:
    ordered = digests[order]
    for place in np.flatnonzero(ordered[1:] == ordered[:-1]):
        first, second = (_stored_id(parts, int(order[place + step])) for step in (0, 1))
        if first == second:
            rows = sorted(int(order[place + step]) + 1 for step in (0, 1))
            raise DataError(
                f"item id {shorten(first)} comes twice, as item {rows[0]} and item {rows[1]}",
                fix="give each item an id of its own, or remove one",
            )


def _stored_id(parts: dict[str, IO[bytes]], row: int) -> str:
    offsets = parts["id_offsets"]
    offsets.seek(8 * row)
    start, end = struct.unpack("<qq", offsets.read(16))
    parts["id_bytes"].seek(start)
    return parts["id_bytes"].read(end - start).decode("utf-8")


def _join(parts: dict[str, IO[bytes]], folder: Path) -> None:
    header: dict[str, Any] = {}
    place = 0
    for name, kind in _ARRAYS.items():
        size = parts[name].seek(0, 2)
        width = np.dtype(_DTYPES[kind]).itemsize
        header[name] = {"dtype": kind, "shape": [size // width], "data_offsets": [place, place + size]}
        place += size
    text = json.dumps(header).encode("ascii")
    text += b" " * (-len(text) % 8)
    with open(folder / INDEX_FILE, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for part in parts.values():
            part.seek(0)
            shutil.copyfileobj(part, file, 2**20)


def _chunks(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    chunk: list[Item] = []
    for item in items:
        chunk.append(item)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _shown(chunks: Iterator[list[Item]], progress: bool) -> Iterator[list[Item]]:
    if not progress:
        yield from chunks
        return
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("indexing"), MofNCompleteColumn(), TextColumn("items"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("indexing", total=None)
        for chunk in chunks:
            yield chunk
            bar.advance(task, len(chunk))


def _id_digest(item_id: str) -> int:
    """The first 64 bits of a digest of an id.

    >>> _id_digest("B07") == _id_digest("B07")
    True
    """
    return int.from_bytes(_digest(item_id.encode("utf-8", "replace")), "little")


def _digest(encoded: bytes) -> bytes:
    return hashlib.blake2b(encoded, digest_size=8).digest()
