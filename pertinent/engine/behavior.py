"""Behavior beside the index: neighbor lists with their encodings, made daily, and the cascade that reads them.

A pair with neighbors is scored by BARL-ASe, one without by the model that reads texts alone; every item says
who scored it. In a request the encoded neighbors of the query are shared by all items (BARL-ASe, section 8).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from pertinent.artifact import open_artifact, read_json, write_artifact, write_json
from pertinent.engine.arrays import MappedFile, Ragged, map_arrays, offsets_fit, write_arrays
from pertinent.engine.barl import BarlEngine, BarlScores, Encoded, open_barl
from pertinent.engine.index import tokenizer_digest
from pertinent.engine.scorer import Scorer
from pertinent.errors import ArtifactError, DataError
from pertinent.models.store import load_pairs
from pertinent.probability import HistoryWeight
from pertinent.records import TokenRows
from pertinent.text import normalize

_log = logging.getLogger(__name__)

KIND = "behavior"
ARRAYS_FILE = "behavior.safetensors"
KEYS_FILE = "keys.json"
WEIGHT_FILE = "history_weight.json"
_SIDES = ("queries", "items")
_KINDS = {
    **{f"{side}_{part}": "I64" for side in _SIDES for part in ("list_offsets", "vector_offsets", "token_offsets")},
    **{f"{side}_exposures": "I64" for side in _SIDES},
    **{f"{side}_{part}": "I32" for side in _SIDES for part in ("lists", "tokens")},
    **{f"{side}_vectors": "F32" for side in _SIDES},
}
_FIX = "make it again with: pertinent behavior"
# Rows that are encoded at once while the artifact is made.
_CHUNK = 512

Floats = NDArray[np.float32]
Rows = NDArray[np.int64]


class Lists(Protocol):
    """What a log says: neighbor items of queries, neighbor queries of items, strongest first."""

    @property
    def items_of_query(self) -> Mapping[str, Sequence[str]]: ...

    @property
    def queries_of_item(self) -> Mapping[str, Sequence[str]]: ...


@dataclass(frozen=True, slots=True)
class Neighbor:
    """A neighbor that spoke: its id (empty for a query), its text, and its share of the attention."""

    item_id: str
    text: str
    weight: float


@dataclass(frozen=True, slots=True)
class Spoken:
    """How a pair came to its score: the gate (1: text alone), the views' logits, and who spoke, loudest first."""

    gate: float
    text_logit: float
    behavior_logit: float
    items: tuple[Neighbor, ...]
    queries: tuple[Neighbor, ...]


@dataclass(frozen=True, slots=True)
class Cascaded:
    """Probabilities ``[n]``, who gave each, and the weight of the behavior model in it (0: it had no say)."""

    scores: Floats
    scorers: tuple[str, ...]
    weights: Floats


@dataclass(frozen=True, slots=True)
class Behavior:
    """Neighbor lists and their encodings by query and by item id.

    Arrays are memory maps: valid as long as the folder is not changed, and folders are never edited in place.
    """

    path: Path
    version: str
    queries: dict[str, int]
    items: dict[str, int]
    names: dict[str, list[str]]  # of the rows of both sides
    titles: list[str]
    slots: int
    tokens: dict[str, TokenRows]  # of the texts of both sides
    lists: dict[str, Ragged]  # rows of the other side; one more than has slots, for who is left out
    vectors: dict[str, Ragged]  # encoded neighbors of each row, with nobody left out
    exposures: dict[str, Rows]
    file: MappedFile

    @classmethod
    def build(
        cls,
        model: str | Path,
        lists: Lists,
        titles: Mapping[str, str],
        exposures: tuple[Mapping[str, int], Mapping[str, int]],
        out: str | Path,
        inputs: Mapping[str, str] | None = None,
        weight: HistoryWeight | None = None,
        text_version: str | None = None,
        measured: Mapping[str, float] | None = None,
    ) -> Self:
        """Encode all lists with a model into a new artifact at ``out``, which is swapped in as a whole.

        ``exposures`` counts how often each query and each item was shown. Items without a title are left out.
        ``weight`` was fitted beside the model of texts of version ``text_version``, and is good for no other;
        ``measured`` is said beside it.
        """
        artifact = open_artifact(model, kind="model")
        pairs = load_pairs(artifact)
        engine = open_barl(artifact, pairs)
        named = {q: [i for i in found if i in titles] for q, found in lists.items_of_query.items()}
        by_item = {i: list(found) for i, found in lists.queries_of_item.items() if i in titles}
        queries = sorted({*named, *exposures[0], *(q for found in by_item.values() for q in found)})
        items = sorted({*by_item, *(i for i in exposures[1] if i in titles), *(i for f in named.values() for i in f)})
        settings = {
            "model_version": artifact.version,
            "tokenizer_digest": tokenizer_digest(pairs),
            "slots": engine.slots,
            "width": engine.width,
            "text_version": None if weight is None else text_version,
        }
        metrics: dict[str, Any] = {**(measured or {})}
        with write_artifact(out, KIND, settings, {"model": artifact.version, **(inputs or {})}, metrics) as folder:
            write_json(folder / KEYS_FILE, {"queries": queries, "items": items, "titles": [titles[i] for i in items]})
            if weight is not None:
                write_json(folder / WEIGHT_FILE, weight.plain())
            rows = {"queries": _rows_of(queries, named, items), "items": _rows_of(items, by_item, queries)}
            tokens = {
                "queries": pairs.encode_queries(queries),
                "items": pairs.encode_items([titles[item] for item in items]),
            }
            shown = {
                "queries": [exposures[0].get(q, 0) for q in queries],
                "items": [exposures[1].get(i, 0) for i in items],
            }
            _write(folder, engine, rows, tokens, shown)
            metrics |= {f"{side}_with_neighbors": sum(map(bool, rows[side])) for side in _SIDES}
            metrics["bytes"] = (folder / ARRAYS_FILE).stat().st_size
        return cls.open(out)

    @classmethod
    def open(cls, folder: str | Path, verify: bool = True) -> Self:
        """The artifact at ``folder``. Raises ArtifactError where it is damaged."""
        artifact = open_artifact(folder, KIND, verify)
        arrays = map_arrays(artifact.file(ARRAYS_FILE), _KINDS, "behavior artifact", _FIX)
        keys = read_json(artifact.file(KEYS_FILE))
        tokens, lists, vectors = {}, {}, {}
        for side in _SIDES:
            count = len(keys[side])
            vector_offsets = arrays[f"{side}_vector_offsets"]
            size = int(vector_offsets[-1]) if len(vector_offsets) else 0
            flat = arrays[f"{side}_vectors"]
            # An artifact of an earlier release did not say its width.
            width = int(artifact.config.get("width") or (len(flat) // size if size else 1))
            fits = len(flat) == size * width and len(arrays[f"{side}_exposures"]) == count
            for part, end in (("list", len(arrays[f"{side}_lists"])), ("token", len(arrays[f"{side}_tokens"]))):
                fits = fits and offsets_fit(arrays[f"{side}_{part}_offsets"], count, end)
            if not fits or len(vector_offsets) != count + 1:
                raise ArtifactError(f"{artifact.path / ARRAYS_FILE}: its parts do not fit together; {_FIX}")
            vectors[side] = Ragged(flat.reshape(-1, width), vector_offsets)
            lists[side] = Ragged(arrays[f"{side}_lists"], arrays[f"{side}_list_offsets"])
            tokens[side] = TokenRows(
                arrays[f"{side}_tokens"], arrays[f"{side}_token_offsets"], np.zeros(count, dtype=np.bool_)
            )
        return cls(
            artifact.path,
            artifact.version,
            {query: row for row, query in enumerate(keys["queries"])},
            {item: row for row, item in enumerate(keys["items"])},
            {side: keys[side] for side in _SIDES},
            keys["titles"],
            int(artifact.config["slots"]),
            tokens,
            lists,
            vectors,
            {side: arrays[f"{side}_exposures"] for side in _SIDES},
            arrays.file,
        )


@dataclass(frozen=True, slots=True)
class Looked:
    """Where a query and n items stand in the artifact (-1: nowhere), and what is left of their lists without the pair.

    ``own`` says which pairs are in their own lists.
    """

    row: int
    rows: Rows
    item_counts: Rows
    query_counts: Rows
    own: NDArray[np.bool_]

    @property
    def aware(self) -> NDArray[np.bool_]:
        """Which pairs have a neighbor on either side."""
        return (self.item_counts > 0) | (self.query_counts > 0)

    def take(self, places: Rows) -> Looked:
        """Those of some of the items."""
        counts = self.item_counts[places], self.query_counts[places]
        return Looked(self.row, self.rows[places], *counts, self.own[places])


class BehaviorScorer:
    """BARL-ASe where neighbors exist, another model elsewhere; with a history weight, both (BARL-ASe+, section 6).

    The pair itself is never among its neighbors, as in training: for the few items that are in the query's own
    list the neighbors are encoded anew.
    """

    def __init__(
        self,
        scorer: Scorer,
        engine: BarlEngine,
        behavior: Behavior,
        fallback: Scorer | None = None,
        weight: HistoryWeight | None = None,
    ) -> None:
        self.scorer, self.engine, self.behavior = scorer, engine, behavior
        self.fallback, self.weight = fallback, weight
        self.name = scorer.name

    @classmethod
    def load(
        cls, model: str | Path, behavior: str | Path, fallback: Scorer | None = None, scorer: Scorer | None = None
    ) -> Self:
        """The cascade over a model folder and its behavior artifact; without ``fallback`` its text view is one.

        ``scorer`` is the model's where it is open already. Raises ArtifactError where it, or the artifact, is
        of another model.
        """
        artifact = open_artifact(model, kind="model")
        scorer = scorer or Scorer.load(model)
        if scorer.version != artifact.version:
            raise ArtifactError(f"{model}: the scorer is of another model, {scorer.name}; give one of this model")
        made = open_artifact(behavior, KIND, verify=False)
        if made.config.get("model_version") != artifact.version:
            raise ArtifactError(f"{behavior}: was made with another model than {model}; {_FIX}")
        fitted = made.config.get("text_version")
        if fallback is not None and fitted is not None and fitted != fallback.version:
            raise ArtifactError(
                f"{behavior}: its history weight was fitted beside another model of texts than {fallback.name}; {_FIX}"
            )
        weight = HistoryWeight.from_plain(made.json(WEIGHT_FILE)) if made.has(WEIGHT_FILE) else None
        return cls(scorer, open_barl(artifact, scorer.pairs), Behavior.open(behavior), fallback, weight)

    def score(self, query: str, item_ids: Sequence[str], titles: Sequence[str]) -> Cascaded:
        """Probabilities of n items, with who gave each. Raises DataError for ids and titles of different number."""
        if len(item_ids) != len(titles):
            raise DataError(f"{len(item_ids)} item ids but {len(titles)} titles; give one title for each")
        looked = self.look(query, item_ids)
        aware, other = np.flatnonzero(looked.aware), np.flatnonzero(~looked.aware)
        scores = np.zeros(len(titles), dtype=np.float32)
        weights = np.zeros(len(titles), dtype=np.float32)
        names = [self.name] * len(titles)
        if len(aware):
            known = looked.take(aware)
            found = self.views(query, known, [titles[row] for row in aware.tolist()])
            scores[aware] = self.scorer.probabilities(found.logit)
            weights[aware] = self.weights(known) if self.fallback is not None else 1.0
        text = self.fallback or self.scorer
        asked = np.flatnonzero(weights < 1)
        if len(asked):
            alone = text.score(query, [titles[row] for row in asked.tolist()])
            scores[asked] = weights[asked] * scores[asked] + (1 - weights[asked]) * alone
        for row in other:
            names[row] = text.name
        if self.weight is not None and self.fallback is not None:
            for row in aware:
                names[row] = f"{self.name}+{text.name}"
        return Cascaded(scores, tuple(names), weights)

    def known(self, query: str, item_ids: Sequence[str]) -> NDArray[np.bool_]:
        """Which pairs have a neighbor on either side, with the pair itself left out, ``[n]``."""
        return self.look(query, item_ids).aware

    def behave(self, query: str, item_ids: Sequence[str], titles: Sequence[str]) -> BarlScores:
        """What BARL-ASe says of n items: logits, gate, and how much each neighbor spoke."""
        return self.views(query, self.look(query, item_ids), titles)

    def views(self, query: str, looked: Looked, titles: Sequence[str]) -> BarlScores:
        """The same of items that were looked up."""
        known = self.behavior.titles
        stored = [
            row if row >= 0 and known[row] == title else -1 for row, title in zip(looked.rows, titles, strict=True)
        ]
        fresh = [title for row, title in zip(stored, titles, strict=True) if row < 0]
        return self.views_of(query, looked, self.title_tokens(np.array(stored, dtype=np.int64), fresh))

    def title_tokens(self, rows: Rows, others: Sequence[str]) -> TokenRows:
        """Tokens of titles: those of rows of the artifact, and for each -1 those of the next of the other titles."""
        stored, made = np.flatnonzero(rows >= 0), np.flatnonzero(rows < 0)
        if len(others) != len(made):
            raise DataError(
                f"{len(others)} titles for {len(made)} items that are not in the artifact; give one for each"
            )
        kept = self.behavior.tokens["items"].take(rows[stored])
        if not len(made):
            return kept
        order = np.argsort(np.concatenate([stored, made]), kind="stable")
        return TokenRows.joined([kept, self.scorer.pairs.encode_items(others)]).take(order)

    def views_of(self, query: str, looked: Looked, titles: TokenRows) -> BarlScores:
        """The same from the tokens of the titles."""
        asked = self.scorer.pairs.encode_queries([query])
        row, rows = np.full(len(looked.rows), looked.row), looked.rows
        # Items in the query's own list, or with the query in theirs, have lists without the pair, encoded anew.
        own, rest = np.flatnonzero(looked.own), np.flatnonzero(~looked.own)
        parts = []
        if len(own):
            sides = self._without("items", rows[own], row[own]), self._without("queries", row[own], rows[own])
            parts.append((own, self.engine.score(asked, titles.take(own), *sides)))
        if len(rest) or not len(own):
            shared = self._stored("queries", np.array([looked.row]))
            some = titles.take(rest) if len(own) else titles
            parts.append((rest, self.engine.score(asked, some, self._stored("items", rows[rest]), shared)))
        return parts[0][1] if len(parts) == 1 else _joined(len(rows), parts)

    def explain(self, query: str, item_id: str, title: str) -> Spoken:
        """Who spoke for one pair, and how loud."""
        looked = self.look(query, [item_id])
        return self.spoken(self.views(query, looked, [title]), 0, looked.row, int(looked.rows[0]))

    def spoken(self, found: BarlScores, place: int, row: int, item: int) -> Spoken:
        """The same of one pair of many, by the rows of its query and item in the artifact (-1: nowhere)."""
        names = self.behavior.names["items"], self.behavior.names["queries"]
        items = [r for r in self._list("queries", row) if r != item][: self.behavior.slots]
        queries = [r for r in self._list("items", item) if r != row][: self.behavior.slots]
        chosen = [
            Neighbor(names[0][r], self.behavior.titles[r], float(w))
            for r, w in zip(items, found.item_weights[place], strict=False)
        ]
        asked = [Neighbor("", names[1][r], float(w)) for r, w in zip(queries, found.query_weights[place], strict=False)]
        loudest = [tuple(sorted(side, key=lambda each: -each.weight)) for side in (chosen, asked)]
        return Spoken(float(found.gate[place]), float(found.text[place]), float(found.behavior[place]), *loudest)

    def weights(self, looked: Looked) -> Floats:
        """How much BARL-ASe counts beside a model of texts, ``[n]``: all, where no history weight was fitted."""
        if self.weight is None:
            return np.asarray(looked.aware, dtype=np.float32)
        return self.weight(*self.history(looked))

    def history(self, looked: Looked) -> tuple[Rows, Rows, Rows, Rows]:
        """How often the query and each item were shown, and how many neighbors are on both sides, ``[n]`` each."""
        exposures, rows = self.behavior.exposures, looked.rows
        asked = int(exposures["queries"][looked.row]) if looked.row >= 0 else 0
        shown = np.zeros(len(rows), dtype=np.int64)
        shown[rows >= 0] = exposures["items"][rows[rows >= 0]]
        return np.full(len(rows), asked), shown, looked.item_counts, looked.query_counts

    def look(self, query: str, item_ids: Sequence[str]) -> Looked:
        """Where a query and items stand in the artifact, and how many neighbors are theirs without the pair."""
        find = self.behavior.items.get
        return self.look_up(query, np.array([find(item_id, -1) for item_id in item_ids], dtype=np.int64))

    def look_up(self, query: str, rows: Rows) -> Looked:
        """The same of items by their rows in the artifact, -1 where they are not in it."""
        row = self.behavior.queries.get(normalize(query), -1)
        chosen, slots = self._list("queries", row), self.behavior.slots
        chose = np.isin(rows, chosen)
        known = np.flatnonzero(rows >= 0)
        taken = self.behavior.lists["items"].take(rows[known])
        led, lengths = np.zeros(len(rows), dtype=np.bool_), np.zeros(len(rows), dtype=np.int64)
        lengths[known] = taken.lengths
        led[known[np.repeat(np.arange(len(known)), taken.lengths)[taken.values == row]]] = True
        items = np.minimum(len(chosen) - chose, slots).astype(np.int64)
        return Looked(row, rows, items, np.minimum(lengths - led, slots), chose | led)

    def _list(self, side: str, row: int) -> NDArray[np.int32]:
        found = self.behavior.lists[side]
        return np.asarray(found.values[found.offsets[row] : found.offsets[row + 1]]) if row >= 0 else found.values[:0]

    def _lengths(self, side: str, rows: Rows) -> Rows:
        vectors = self.behavior.vectors[side]
        if not len(vectors):
            return np.zeros(len(rows), dtype=np.int64)
        return np.where(rows >= 0, vectors.lengths[np.maximum(rows, 0)], 0)

    def _stored(self, side: str, rows: Rows) -> Encoded:
        """Encoded neighbors of rows of a side, padded; -1 is a row without any."""
        stored, counts = self.behavior.vectors[side], self._lengths(side, rows)
        width = int(counts.max(initial=0))
        vectors = np.zeros((len(rows), width, stored.values.shape[1]), dtype=np.float32)
        real = np.flatnonzero(counts)
        vectors[np.arange(width)[None] < counts[:, None]] = stored.take(rows[real]).values
        return Encoded(vectors, counts)

    def _without(self, side: str, rows: Rows, left_out: Rows) -> Encoded:
        """Neighbors of rows of a side encoded anew, each without one."""
        lists = [
            [n for n in self._list(side, int(r)) if n != out][: self.behavior.slots]
            for r, out in zip(rows, left_out, strict=True)
        ]
        other = "items" if side == "queries" else "queries"
        return _encoded(self.engine, other, lists, self.behavior.tokens[other])


def _joined(count: int, parts: Sequence[tuple[Rows, BarlScores]]) -> BarlScores:
    """What was found of some items each, as of all; slots that a part does not have are not heard."""
    joined: dict[str, Any] = {}
    for name in BarlScores.__slots__:
        values = [getattr(found, name) for _, found in parts]
        width = max(value.shape[1] for value in values) if values[0].ndim == 2 else None
        joined[name] = np.zeros(count if width is None else (count, width), dtype=np.float32)
        for (rows, _), value in zip(parts, values, strict=True):
            if width is None:
                joined[name][rows] = value
            else:
                joined[name][rows, : value.shape[1]] = value
    return BarlScores(**joined)


def _encoded(engine: BarlEngine, texts_of: str, lists: Sequence[Sequence[int]], tokens: TokenRows) -> Encoded:
    """Neighbor lists, as rows of the texts of a side, encoded."""
    counts = np.array([len(found) for found in lists], dtype=np.int64)
    slots = np.zeros((len(lists), int(counts.max(initial=0))), dtype=np.int64)
    used, places = np.unique(np.array([row for found in lists for row in found], dtype=np.int64), return_inverse=True)
    slots[np.arange(slots.shape[1])[None] < counts[:, None]] = places
    return Encoded(engine.encode(texts_of, tokens.take(used), slots, counts), counts)


def _rows_of(keys: Sequence[str], lists: Mapping[str, Sequence[str]], others: Sequence[str]) -> list[list[int]]:
    places = {name: row for row, name in enumerate(others)}
    return [[places[name] for name in lists.get(key, ())] for key in keys]


def _write(
    folder: Path,
    engine: BarlEngine,
    rows: Mapping[str, list[list[int]]],
    tokens: Mapping[str, TokenRows],
    shown: Mapping[str, Sequence[int]],
) -> None:
    with write_arrays(folder / ARRAYS_FILE, _KINDS) as writer:
        for side, other in (("queries", "items"), ("items", "queries")):
            lists = rows[side]
            writer.add_lengths(f"{side}_list_offsets", np.array([len(found) for found in lists], dtype=np.int64))
            writer.add(f"{side}_lists", np.array([row for found in lists for row in found], dtype=np.int32))
            writer.add_lengths(f"{side}_token_offsets", tokens[side].lengths)
            writer.add(f"{side}_tokens", tokens[side].ids)
            writer.add(f"{side}_exposures", np.array(shown[side], dtype=np.int64))
            writer.add_lengths(
                f"{side}_vector_offsets", np.array([min(len(found), engine.slots) for found in lists], dtype=np.int64)
            )
            for start in range(0, len(lists), _CHUNK):
                cut = [found[: engine.slots] for found in lists[start : start + _CHUNK]]
                made = _encoded(engine, other, cut, tokens[other])
                writer.add(f"{side}_vectors", made.vectors[made.mask])
