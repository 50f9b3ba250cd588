"""The scorer that users hold: texts in, calibrated probabilities out.

>>> from pertinent.engine.scorer import Scorer
>>> scorer = Scorer.load("runs/model")                                   # doctest: +SKIP
>>> scorer.score("wireless earbuds", ["Bluetooth earbuds", "Tea pot"])   # doctest: +SKIP
array([0.93, 0.02], dtype=float32)
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from pertinent.artifact import Artifact, opened
from pertinent.engine.arrays import Ragged
from pertinent.engine.backends import Backend, RowBackend, open_backend
from pertinent.engine.batching import MAX_TOKENS, plan, stretches
from pertinent.engine.cache import ScoreCaches, of_states
from pertinent.engine.golden import GOLDEN_FILE, golden_difference, golden_logits, golden_tolerance, read_golden
from pertinent.engine.index import ItemIndex
from pertinent.engine.late import ItemStateWriter, LateBackend, join_logits, late_backend
from pertinent.engine.pieces import item_digests
from pertinent.errors import ArtifactError, DataError, ScoringError, shorten
from pertinent.folders import model_folder
from pertinent.lexicon.pairs import PairTokenizer, item_text
from pertinent.models.joining import state_width
from pertinent.models.store import load_pairs, model_settings
from pertinent.probability import CALIBRATION_FILE, Curve, probability_curve
from pertinent.records import Item, Pair, Scored, TokenRows

# Pairs whose tokens are held at once; more are scored in turns.
CHUNK = 16_384


class Scorer:
    """A relevance model ready to score; safe to use from several threads at once.

    With ``native``, ``torch`` and ``onnx`` a score depends on the query and the one title only, never on the other
    titles of the call. With ``onnx-int8`` it also moves a little with the titles that are computed
    together, and so with the number of threads: 8-bit scales follow the largest value of a batch.

    ``name`` is the model folder's, ``version`` its content's; both are empty for a bare backend. ``caches``
    may be set to look scores up before they are computed, and to keep those that were. ``state_width`` is
    what a late-join model keeps of each token of a title, ``late`` opens what runs its two parts.
    """

    def __init__(
        self,
        backend: Backend,
        pairs: PairTokenizer,
        curve: Curve | None = None,
        name: str = "",
        version: str = "",
        caches: ScoreCaches | None = None,
        state_width: int = 0,
        late: Callable[[], LateBackend] | None = None,
    ) -> None:
        self.backend = backend
        self.pairs = pairs
        self.name = name
        self.version = version
        self.caches = caches
        self._state_width = state_width
        self._open_late = late
        self._curve = curve if curve is not None else probability_curve(None)
        self._pool: ThreadPoolExecutor | None = None
        self._lock = threading.Lock()

    @classmethod
    def load(
        cls,
        path: str | Path | None = None,
        backend: str | None = None,
        threads: int | None = None,
        check_golden: bool = True,
    ) -> Self:
        """The scorer of a model folder; None is the model that comes with the package, ``shipped-late`` its
        sibling that joins late.

        ``backend`` is ``native``, ``native-int8``, ``torch``, ``onnx``, ``onnx-int8`` or ``cuda``; None takes the
        native engine where it was built, else ONNX where the model has a graph. ``threads`` is the number of cores
        to use, None all of them. Raises ArtifactError for a damaged model, or one whose golden scores come out
        different here.
        """
        with opened(model_folder(path), "model") as artifact:
            pairs = load_pairs(artifact)
            _check_sizes(artifact, pairs)
            curve = probability_curve(artifact.json(CALIBRATION_FILE) if artifact.has(CALIBRATION_FILE) else None)
            engine = open_backend(artifact, backend, threads)
            width = state_width(model_settings(artifact)["network"])
            late = partial(late_backend, artifact, engine, threads)
            name = artifact.path.resolve().name
            scorer = cls(engine, pairs, curve, name, artifact.version, state_width=width, late=late)
            if check_golden and artifact.has(GOLDEN_FILE):
                scorer._check_golden(artifact.file(GOLDEN_FILE))
        return scorer

    def score(self, query: str, titles: Sequence[str | None]) -> NDArray[np.float32]:
        """Probabilities of being relevant, float32 ``[n]``, in the order of the titles.

        A title that is None or blank is scored as blank text. No titles give an empty array.
        """
        return self._curve(self.logits(query, titles))

    def logits(self, query: str, titles: Sequence[str | None]) -> NDArray[np.float32]:
        """What ``score`` calibrates: the log odds the network itself gives, float32 ``[n]``."""
        texts = _texts(titles, "titles")

        def items(places: NDArray[np.int64]) -> tuple[TokenRows, NDArray[np.int64]]:
            return self.pairs.encode_items([texts[place] for place in places]), np.arange(len(places))

        query_rows = np.zeros(len(texts), dtype=np.int64)
        return self._logits(_texts([query], "query"), query_rows, items, lambda: item_digests([""] * len(texts), texts))

    def score_pairs(self, pairs: Sequence[Pair | tuple[str, str]]) -> NDArray[np.float32]:
        """Probabilities of any queries with any titles, float32 ``[n]``, in the order of the pairs."""
        return self._curve(self.pair_logits(pairs))

    def pair_logits(self, pairs: Sequence[Pair | tuple[str, str]]) -> NDArray[np.float32]:
        """What ``score_pairs`` calibrates, float32 ``[n]``. Equal texts are tokenized once a chunk."""
        queries, query_rows = _distinct(_texts([pair[0] for pair in pairs], "queries"))
        texts = _texts([pair[1] for pair in pairs], "titles")

        def items(places: NDArray[np.int64]) -> tuple[TokenRows, NDArray[np.int64]]:
            titles, rows = _distinct([texts[place] for place in places])
            return self.pairs.encode_items(titles), rows

        return self._logits(queries, query_rows, items, lambda: item_digests([""] * len(texts), texts))

    def index_logits(
        self,
        queries: Sequence[str],
        query_rows: NDArray[np.int64],
        index: ItemIndex,
        rows: NDArray[np.int64],
        use_states: bool = True,
    ) -> NDArray[np.float32]:
        """Logits of pairs, float32 ``[n]``: pair i is ``queries[query_rows[i]]`` with row ``rows[i]`` of an index.

        Where the index keeps item states of this model, titles are not read again, unless ``use_states`` is
        False: then the logits are those of the whole pairs, as for an index that keeps none.
        """
        index.check(self.pairs)
        rows = index.checked_rows(rows)
        known = self.states_of(index) if use_states else None
        states = None if known is None else (known, rows)

        def items(places: NDArray[np.int64]) -> tuple[TokenRows, NDArray[np.int64]]:
            return self.stored(index.tokens, rows[places])

        def digests() -> NDArray[np.uint64]:
            return index.digests[rows] if states is None else of_states(index.digests[rows])

        return self._logits(_texts(queries, "queries"), query_rows, items, digests, states)

    @property
    def state_writer(self) -> ItemStateWriter | None:
        """What computes states of items for an index; None for a model that has none to keep."""
        if not self._state_width:
            return None
        return ItemStateWriter(self.version, self._state_width, self._late, self.pairs, self._spread)

    @cached_property
    def _late(self) -> LateBackend:
        assert self._open_late is not None, "a late join is loaded from its folder"
        return self._open_late()

    def score_index(self, query: str, index: ItemIndex, rows: NDArray[np.int64] | None = None) -> NDArray[np.float32]:
        """Probabilities of indexed items by row number, float32 ``[rows]``; None is every row.

        Only the query is tokenized.
        """
        if rows is None:
            rows = np.arange(len(index))
        query_rows = np.zeros(len(rows), dtype=np.int64)
        return self._curve(self.index_logits(_texts([query], "query"), query_rows, index, rows))

    def rank(
        self, query: str, items: Sequence[Item | str | Mapping[str, Any]] | ItemIndex, top: int | None = 10
    ) -> list[Scored]:
        """The best items, best first; equal scores keep the order given. ``top=None`` gives all.

        Items are records, titles, or mappings with ``title`` (and ``item_id``), or an ``ItemIndex``.
        Where no id is given, the place in the list is the id.
        """
        if top is not None and (top < 0 or top != int(top)):
            raise DataError(f"top is {shorten(top)}", fix="give a whole number, 0 or more, or None for all items")
        if isinstance(items, ItemIndex):
            scores = self.score_index(query, items)
            best = _best(scores, top)
            cut = items.tokens.truncated[best]
            found = items.items(best)
        else:
            records = [_item(item, place) for place, item in enumerate(_listed(items))]
            titles = [item_text(record) for record in records]
            scores = self.score(query, titles)
            best = _best(scores, top)
            found = [records[row] for row in best]
            cut = self.pairs.encode_items([titles[row] for row in best]).truncated
        return [
            Scored(item, float(scores[row]), self.name, bool(was_cut))
            for item, row, was_cut in zip(found, best, cut, strict=True)
        ]

    def stored(self, items: TokenRows, rows: NDArray[np.int64]) -> tuple[TokenRows, NDArray[np.int64]]:
        """What ``forward`` takes for rows of stored items: all of them where the backend picks rows, else a copy."""
        if isinstance(self.backend, RowBackend):
            return items, rows
        return items.take(rows), np.arange(len(rows))

    def batches(
        self, query_lengths: NDArray[np.int64], item_lengths: NDArray[np.int64], tokens: int = MAX_TOKENS
    ) -> list[NDArray[np.int64]]:
        """Which pairs to compute together, as places in the lengths; every place is in one batch.

        Lengths are those of the two blocks of each pair, ``[n]``. A backend that pads nothing gets some ``tokens`` at
        once, the others what pads least.
        """
        if isinstance(self.backend, RowBackend):
            return stretches(query_lengths + item_lengths, tokens, self.backend.workers)
        return plan(query_lengths, item_lengths, workers=self.backend.workers)

    def forward(
        self, queries: TokenRows, query_rows: NDArray[np.int64], items: TokenRows, item_rows: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        """The logits of pairs computed in one batch on this thread, float32 ``[n]``; not checked to be finite.

        May run on ``backend.workers`` threads at once.
        """
        if isinstance(self.backend, RowBackend):
            return self.backend.forward_rows(queries, query_rows, items, item_rows, threads=1)
        return self.backend.forward(self.pairs.assemble(queries, query_rows, items, item_rows))

    def join(
        self, queries: TokenRows, query_rows: NDArray[np.int64], states: Ragged, rows: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        """As ``forward``, for items of a late join by row of their known ``states``."""
        if isinstance(self.backend, RowBackend):
            return self.backend.join_rows(queries, query_rows, states, rows, threads=1)
        logits = np.zeros(len(rows), dtype=np.float32)
        for query in np.unique(query_rows):
            chosen = np.flatnonzero(query_rows == query)
            logits[chosen] = join_logits(self._late, self.pairs, queries.take(np.array([query])), states, rows[chosen])
        return logits

    def states_of(self, index: ItemIndex) -> Ragged | None:
        """The item states of an index that this model scores from; None where either has none.

        Raises ArtifactError where they are of another version of the model.
        """
        if not self._state_width or index.states is None:
            return None
        rows = index.check_states(self.version).rows
        if not isinstance(self.backend, RowBackend):
            assert self._late is not None  # opened before anyone waits for it
        return rows

    def probabilities(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """The calibrated probabilities of logits, as ``score`` gives them."""
        return self._curve(logits)

    def close(self) -> None:
        """End the worker threads; the scorer starts new ones when it is used again."""
        with self._lock:
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown()

    def _logits(
        self,
        queries: Sequence[str],
        query_rows: NDArray[np.int64],
        items: Callable[[NDArray[np.int64]], tuple[TokenRows, NDArray[np.int64]]],
        digests: Callable[[], NDArray[np.uint64]],
        states: tuple[Ragged, NDArray[np.int64]] | None = None,
    ) -> NDArray[np.float32]:
        """Logits of pairs: from the caches what they have, the rest computed and kept.

        ``items`` gives the token rows for places among the pairs, and which row belongs to each. ``states``
        are those of items, with the row of each pair's.
        """
        if self.caches is None:
            return self._compute(queries, query_rows, items, states)[0]
        prepared, keys = [self.pairs.prepare(query) for query in queries], digests()
        found = self.caches.find(prepared, query_rows, keys)
        missing = np.flatnonzero(~found.hit)
        if len(missing):
            left = None if states is None else (states[0], states[1][missing])
            logits, truncated = self._compute(queries, query_rows[missing], lambda places: items(missing[places]), left)
            found.logits[missing] = logits
            self.caches.keep(prepared, query_rows[missing], keys[missing], logits, truncated)
        return found.logits

    def _compute(
        self,
        queries: Sequence[str],
        query_rows: NDArray[np.int64],
        items: Callable[[NDArray[np.int64]], tuple[TokenRows, NDArray[np.int64]]],
        states: tuple[Ragged, NDArray[np.int64]] | None,
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Logits, and whether items were cut, a chunk at a time."""
        encoded = self.pairs.encode_queries(queries)
        logits, truncated = np.zeros(len(query_rows), np.float32), np.zeros(len(query_rows), np.bool_)
        for start in range(0, len(query_rows), CHUNK):
            places = np.arange(start, min(start + CHUNK, len(query_rows)))
            rows, item_rows = items(places)
            if states is None:
                logits[places] = self._run(encoded, query_rows[places], rows, item_rows)
            else:
                logits[places] = self._join(encoded, query_rows[places], states[0], states[1][places])
            truncated[places] = rows.truncated[item_rows]
        return logits, truncated

    def _run(
        self, queries: TokenRows, query_rows: NDArray[np.int64], items: TokenRows, item_rows: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        if isinstance(self.backend, RowBackend):
            logits = self.backend.forward_rows(queries, query_rows, items, item_rows)
            _check_finite(logits, self.name or self.backend.name)
            return logits
        query_lengths = queries.lengths[query_rows] + 2  # [CLS] and [SEP]
        batches = self.batches(query_lengths, items.lengths[item_rows] + 1)  # [SEP]

        def forward(rows: NDArray[np.int64]) -> NDArray[np.float32]:
            return self.forward(queries, query_rows[rows], items, item_rows[rows])

        logits = np.zeros(len(query_rows), dtype=np.float32)
        alone = self.backend.workers == 1 or len(batches) < 2
        results = map(forward, batches) if alone else self._workers().map(forward, batches)
        for rows, result in zip(batches, results, strict=True):
            logits[rows] = result
        _check_finite(logits, self.name or self.backend.name)
        return logits

    def _join(
        self, queries: TokenRows, query_rows: NDArray[np.int64], states: Ragged, rows: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        if isinstance(self.backend, RowBackend):
            logits = self.backend.join_rows(queries, query_rows, states, rows)
            _check_finite(logits, self.name or self.backend.name)
            return logits
        logits = np.zeros(len(rows), dtype=np.float32)
        for query in np.unique(query_rows):
            chosen = np.flatnonzero(query_rows == query)
            one = queries.take(np.array([query]))
            logits[chosen] = join_logits(self._late, self.pairs, one, states, rows[chosen], self._spread)
        _check_finite(logits, self.name or self.backend.name)
        return logits

    def _spread(self, call: Callable[[Any], Any], rows: Iterable[Any]) -> Iterable[Any]:
        return map(call, rows) if self._late.workers == 1 else self._workers().map(call, rows)

    def _workers(self) -> ThreadPoolExecutor:
        with self._lock:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(self.backend.workers, thread_name_prefix="pertinent")
            return self._pool

    def _check_golden(self, path: Path) -> None:
        pairs, wanted = read_golden(path, self.backend.name)
        difference = golden_difference(golden_logits(self.pair_logits, pairs), wanted)
        tolerance = golden_tolerance(self.backend.name)
        if not difference <= tolerance:
            raise ArtifactError(
                f"{path}: the golden scores differ by {difference:.2g} with the backend {self.backend.name!r} on this "
                f"machine, at most {tolerance} is allowed; try another backend, or copy the model again"
            )


def _check_sizes(artifact: Artifact, pairs: PairTokenizer) -> None:
    network = model_settings(artifact)["network"]
    positions = network.get("max_positions")
    if positions is not None and pairs.config.length > positions:
        raise ArtifactError(
            f"{artifact.path}: pairs have {pairs.config.length} tokens but the model has {positions} positions; "
            "layout and weights come from different models"
        )


def _check_finite(logits: NDArray[np.float32], name: str) -> None:
    broken = int(np.count_nonzero(~np.isfinite(logits)))
    if broken:
        raise ScoringError(
            f"{broken} of {len(logits)} scores of {name} are not finite; the weights are damaged or overflow: "
            "copy or train the model again"
        )


def _texts(values: Sequence[str | None], what: str) -> list[str]:
    """Texts as a list, None as blank; anything else is refused with its place."""
    texts = []
    for place, value in enumerate(_listed(values)):
        if value is None:
            value = ""
        elif not isinstance(value, str):
            spot = what if what == "query" else f"{what}[{place}]"
            raise DataError(f"{spot} is {type(value).__name__} {shorten(value)}", fix="give text")
        texts.append(value)
    return texts


def _listed(values: Any) -> Any:
    if isinstance(values, (str, bytes, Mapping)):
        raise DataError(f"a list of titles is needed, got one {type(values).__name__}", fix="put it in a list")
    if not isinstance(values, Iterable):
        raise DataError(f"a list of titles is needed, got {shorten(values)}", fix="give a list, empty if need be")
    return values


def _distinct(texts: list[str]) -> tuple[list[str], NDArray[np.int64]]:
    """Each text once, and for every given text the place of its like."""
    places: dict[str, int] = {}
    rows = np.array([places.setdefault(text, len(places)) for text in texts], dtype=np.int64)
    return list(places), rows


def _best(scores: NDArray[np.float32], top: int | None) -> NDArray[np.int64]:
    order: NDArray[np.int64] = np.argsort(-scores, kind="stable")
    return order if top is None else order[:top]


def _item(value: Item | str | Mapping[str, Any] | None, place: int) -> Item:
    if isinstance(value, Item):
        return value
    if isinstance(value, Mapping):
        if "title" not in value:
            raise DataError(
                f"items[{place}] has no 'title', it has {', '.join(map(str, value)) or 'nothing'}",
                fix="give the item's text under 'title'",
            )
        title, item_id = value["title"], value.get("item_id", place)
    else:
        title, item_id = value, place
    return Item(str(item_id), _texts([title], f"items[{place}].title")[0])
