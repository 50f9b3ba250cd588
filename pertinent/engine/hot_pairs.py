"""Scores of hot pairs, computed ahead and read through a memory map (ei-SRC, section 12).

The most frequent pairs of a search log are scored once for a model and an index. The folder holds one
safetensors file: digests of the queries in rising order, where the pairs of each begin, and for each pair
the digest of its item with its text, the logit, and whether the text was cut.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from pertinent.artifact import open_artifact, write_artifact
from pertinent.config import Config
from pertinent.engine.arrays import ArrayWriter, MappedArrays, MappedFile, map_arrays, offsets_fit, write_arrays
from pertinent.engine.cache import Block, Digests, Rows, query_digest, score_stamp
from pertinent.engine.index import ItemIndex
from pertinent.engine.pieces import in_chunks, item_digests
from pertinent.engine.scorer import Scorer
from pertinent.errors import ArtifactError, DataError

_log = logging.getLogger(__name__)

KIND = "scores"
SCORES_FILE = "scores.safetensors"
SCORE_ARRAYS = {
    "query_heads": "U64",
    "query_checks": "U64",
    "pair_offsets": "I64",
    "item_heads": "U64",
    "item_checks": "U64",
    "logits": "F32",
    "truncated": "U8",
}
_FIX = "make it again with: pertinent cache"


class CacheConfig(Config):
    """Scores of hot pairs, computed ahead for a model and an index.

    ``hot_pairs`` is a folder of ``pertinent mine`` or a table with ``query`` and ``item_id``, most frequent
    first; ``limit`` takes the first ones only. With ``texts`` requests that send the text of an item instead
    of its id find its scores too, for twice the space.
    """

    model: str | None = None
    hot_pairs: str | None = None
    index: str | None = None
    out: str | None = None
    limit: int | None = Field(None, ge=1)
    texts: bool = True
    backend: str | None = None
    threads: int | None = Field(None, ge=1)
    chunk: int = Field(16_384, ge=1)
    progress: bool = True


@dataclass(frozen=True, slots=True)
class HotPairs:
    """A level of the cache that is only read; its arrays are memory maps, shared by all processes."""

    path: Path
    version: str
    stamp: str
    _arrays: MappedArrays
    name: str = "hot"
    errors: int = 0

    def __len__(self) -> int:
        return len(self._arrays["logits"])

    @property
    def file(self) -> MappedFile:
        """What its arrays are mapped from."""
        return self._arrays.file

    @classmethod
    def build(
        cls,
        pairs: Iterable[tuple[str, str]],
        scorer: Scorer,
        index: ItemIndex,
        folder: str | Path,
        config: CacheConfig | None = None,
    ) -> Self:
        """Score pairs of query and item id into a new folder, and open it.

        Pairs that are there already and items that the index does not have are left out, and counted. Scores
        are those of the whole pairs, also where the index keeps item states: they are found by text too.
        """
        config = config if config is not None else CacheConfig(progress=False)
        started = time.perf_counter()
        stamp = score_stamp(scorer.pairs, scorer.version, scorer.backend.name)
        queries, query_rows, rows, unknown = _read(pairs, scorer, index, config.chunk)
        if unknown and not len(rows):
            raise DataError(
                f"the index has none of the items of {unknown:,} hot pairs", fix="give the index of the log's catalog"
            )
        settings: dict[str, Any] = {
            "model_version": scorer.version,
            "backend": scorer.backend.name,
            "index": index.version,
        }
        settings |= {"stamp": stamp.hex(), "texts": config.texts}
        metrics: dict[str, Any] = {"queries": len(queries), "pairs": len(rows), "unknown_items": unknown}
        with write_artifact(folder, KIND, settings, metrics=metrics) as aside:
            with write_arrays(aside / SCORES_FILE, SCORE_ARRAYS) as writer:
                entries = _write(queries, query_rows, rows, stamp, scorer, index, config, writer)
            size = (aside / SCORES_FILE).stat().st_size
            seconds = time.perf_counter() - started
            metrics |= {"entries": entries, "bytes": size, "seconds": round(seconds, 3)}
            if len(rows):
                metrics |= {"megabytes_per_million": round(size / len(rows), 1)}
        _log.info("%s: %d pairs of %d queries, %.1f MB, %.1f s", folder, len(rows), len(queries), size / 1e6, seconds)
        return cls.open(folder, stamp)

    @classmethod
    def open(cls, folder: str | Path, stamp: bytes | None = None, verify: bool = True) -> Self:
        """The scores at ``folder``; with ``stamp`` those of one model, lexicon and backend (`score_stamp`).

        Raises ArtifactError for a folder that is damaged or was made for another model.
        """
        artifact = open_artifact(folder, kind=KIND, verify=verify)
        path = artifact.file(SCORES_FILE)
        arrays = map_arrays(path, SCORE_ARRAYS, "file of scores", _FIX)
        queries, pairs = len(arrays["query_heads"]), len(arrays["logits"])
        fits = offsets_fit(arrays["pair_offsets"], queries, pairs) and len(arrays["query_checks"]) == queries
        if not fits or any(len(arrays[name]) != pairs for name in ("item_heads", "item_checks", "truncated")):
            raise ArtifactError(f"{path}: its parts do not fit together; {_FIX}")
        told = str(artifact.config.get("stamp", ""))
        if stamp is not None and told != stamp.hex():
            raise ArtifactError(
                f"{path}: has the scores of model version {artifact.config.get('model_version')} with the backend "
                f"{artifact.config.get('backend')} (digest {told[:12]}..., this one has {stamp.hex()[:12]}...); {_FIX}"
            )
        return cls(artifact.path, artifact.version, told, arrays)

    def blocks(self, queries: Sequence[bytes]) -> list[Block | None]:
        """See `pertinent.engine.cache.Level`."""
        halves = np.frombuffer(b"".join(queries), dtype="<u8").reshape(-1, 2)
        places = np.searchsorted(self._arrays["query_heads"], halves[:, 0])
        return [self._block(int(place), half) for place, half in zip(places, halves, strict=True)]

    def keep(self, query: bytes, block: Block) -> None:
        """Nothing is added to what was computed ahead."""

    def _block(self, place: int, halves: Digests) -> Block | None:
        arrays = self._arrays
        if place >= len(arrays["query_heads"]) or arrays["query_heads"][place] != halves[0]:
            return None
        if arrays["query_checks"][place] != halves[1]:
            return None
        inside = slice(*arrays["pair_offsets"][place : place + 2].tolist())
        return Block(
            arrays["item_heads"][inside],
            arrays["item_checks"][inside],
            arrays["logits"][inside],
            arrays["truncated"][inside].view(np.bool_),
        )


def _read(
    pairs: Iterable[tuple[str, str]], scorer: Scorer, index: ItemIndex, chunk: int
) -> tuple[list[str], Rows, Rows, int]:
    """Normalized queries, and the distinct pairs as query and row of the index, sorted; and how many are unknown."""
    places: dict[str, int] = {}
    codes, rows, unknown = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)], 0
    for part in in_chunks(pairs, chunk):
        found = index.find([item_id for _, item_id in part])
        known = np.flatnonzero(found >= 0)
        unknown += len(part) - len(known)
        texts = [scorer.pairs.prepare(part[place][0]) for place in known]
        codes.append(np.array([places.setdefault(text, len(places)) for text in texts], dtype=np.int64))
        rows.append(found[known])
    both = np.unique(np.stack([np.concatenate(codes), np.concatenate(rows)], axis=1), axis=0)  # [pairs, 2]
    return list(places), both[:, 0].copy(), both[:, 1].copy(), unknown


def _write(
    queries: Sequence[str],
    query_rows: Rows,
    rows: Rows,
    stamp: bytes,
    scorer: Scorer,
    index: ItemIndex,
    config: CacheConfig,
    writer: ArrayWriter,
) -> int:
    """Score and write query by query, in the order of their digests; gives the number of entries."""
    halves = np.frombuffer(b"".join(query_digest(stamp, query) for query in queries), dtype="<u8").reshape(-1, 2)
    order = np.argsort(halves[:, 0], kind="stable")
    writer.add("query_heads", halves[order, 0])
    writer.add("query_checks", halves[order, 1])
    writer.add_lengths("pair_offsets", np.zeros(0, dtype=np.int64))
    starts = np.searchsorted(query_rows, np.arange(len(queries) + 1))
    entries = 0
    for some in _shown(_runs(order, starts, config.chunk), config.progress):
        places = np.concatenate([np.arange(starts[code], starts[code + 1]) for code in some])
        texts = [queries[code] for code in some]
        local = np.repeat(np.arange(len(some)), starts[some + 1] - starts[some])
        logits = scorer.index_logits(texts, local, index, rows[places], use_states=False)
        lengths = []
        for number in range(len(some)):
            mine = places[local == number]
            block = _block(index, rows[mine], logits[local == number], config.texts)
            _add(block, writer)
            lengths.append(len(block))
        writer.add_lengths("pair_offsets", np.array(lengths, dtype=np.int64))
        entries += sum(lengths)
    return entries


def _runs(order: Rows, starts: Rows, chunk: int) -> Iterator[Rows]:
    """Queries in order, as many at a time as make up a chunk of pairs."""
    sizes = np.cumsum(starts[order + 1] - starts[order])
    first = 0
    while first < len(order):
        before = int(sizes[first - 1]) if first else 0
        last = max(first + 1, int(np.searchsorted(sizes, before + chunk, side="right")))
        yield order[first:last]
        first = last


def _block(index: ItemIndex, rows: Rows, logits: NDArray[np.float32], texts: bool) -> Block:
    digests, truncated = index.digests[rows], index.tokens.truncated[rows]
    if texts:
        titles = [item.title for item in index.items(rows)]
        digests = np.concatenate([digests, item_digests([""] * len(titles), titles)])
        logits, truncated = np.tile(logits, 2), np.tile(truncated, 2)
    return Block.of(digests, logits, truncated)


def _add(block: Block, writer: ArrayWriter) -> None:
    writer.add("item_heads", block.heads)
    writer.add("item_checks", block.checks)
    writer.add("logits", block.logits)
    writer.add("truncated", block.truncated)


def _shown(runs: Iterator[Rows], progress: bool) -> Iterator[Rows]:
    if not progress:
        yield from runs
        return
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("scoring"), MofNCompleteColumn(), TextColumn("queries"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("scoring", total=None)
        for run in runs:
            yield run
            bar.advance(task, len(run))
