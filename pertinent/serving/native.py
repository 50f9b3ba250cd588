"""The native route: a query with item ids, rows or texts in; relevance, filter, fusion and order out.

Ids are of the served index. ``rows`` are the index's own row numbers, the fastest way to name an item.
Unlike the other dialects this one is strict: an unknown field is an error.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import msgspec
import numpy as np
import orjson
from numpy.typing import NDArray

from pertinent.engine.cascade import best_first, fuse_linear, fuse_tiers, keep_relevant, tiers
from pertinent.engine.fallback import LEXICAL, lexical_scores
from pertinent.errors import ArtifactError
from pertinent.lexicon.shown import ExplainedText, explain_query, explain_title, tagger_of
from pertinent.serving.behavior import TOLD, Plan
from pertinent.serving.limits import Limits, check_documents
from pertinent.serving.messages import WireError
from pertinent.serving.queue import Result, Work
from pertinent.serving.reading import blank_rows, read
from pertinent.serving.registry import Served

Rows = NDArray[np.int64]
Scores = NDArray[np.float32]
# The share of relevant validation pairs that the default filter keeps, and the cuts of the default tiers.
FILTER_RECALL = "99%"
TIER_RECALLS = ("99%", "90%")
CACHED, MODEL = "cached", "model"
# Items whose tokens are told: a page of results, and soon done.
READ = 100


class Filter(msgspec.Struct, forbid_unknown_fields=True):
    """Which items stay. No ``threshold``: the one that keeps 99 % of relevant pairs, from the model's table."""

    threshold: float | None = None
    keep: int = 2_000
    min_keep: int = 100


class Linear(msgspec.Struct, forbid_unknown_fields=True, tag="linear", tag_field="mode"):
    """``(1 - weight) * ranking + weight * relevance``."""

    weight: float = 0.3
    normalize: Literal["min_max", "rank"] = "min_max"


class Tiers(msgspec.Struct, forbid_unknown_fields=True, tag="tiers", tag_field="mode"):
    """Tiers of relevance, the ranking score inside a tier. No ``cuts``: from the model's table."""

    cuts: list[float] | None = None
    normalize: Literal["min_max", "rank"] = "min_max"


class RelevanceBody(msgspec.Struct, forbid_unknown_fields=True):
    """The body of ``POST /v1/relevance``. One of ``item_ids``, ``rows`` and ``texts`` is needed."""

    query: str
    item_ids: list[int | str] | str | None = None
    rows: list[int] | str | None = None
    texts: list[str | None] | None = None
    retrieval_scores: list[float] | None = None
    ranking_scores: list[float] | None = None
    top: int | None = None
    filter: Filter | None = None
    fuse: Linear | Tiers | None = None
    deadline_ms: int | None = None
    partial: bool = False
    fallback: bool = False
    explain: bool = False
    tokens: bool = False
    model: str | None = None


class Filtered(msgspec.Struct, omit_defaults=True):
    """What the filter did."""

    threshold: float
    kept: int
    below_threshold: int = 0
    beyond_keep: int = 0


class NeighborItem(msgspec.Struct):
    """An item that searchers of the query chose, and its share of what was read from all of them."""

    id: str
    title: str
    share: float


class NeighborQuery(msgspec.Struct):
    """A query that led to the item, and its share of what was read from all of them."""

    query: str
    share: float


class SpokenBehavior(msgspec.Struct):
    """What behavior said of one item: ``gate`` is 1 for text alone, neighbors stand loudest first.

    ``weight`` is what the behavior model counts beside the served model.
    """

    gate: float
    weight: float
    text_logit: float
    behavior_logit: float
    items: list[NeighborItem]
    queries: list[NeighborQuery]


class Explained(msgspec.Struct, omit_defaults=True):
    """One item of an answer with all that decided its place; ``index`` is its place in the request.

    ``behavior`` is there where the item or the query has neighbors, ``read`` where ``tokens`` were asked for.
    """

    index: int
    id: int | str
    title: str
    score: float
    relevance: float
    tier: int | None
    retrieval_score: float | None
    ranking_score: float | None
    truncated: bool
    behavior: SpokenBehavior | None = None
    read: ExplainedText | None = None


class RelevanceReply(msgspec.Struct, omit_defaults=True):
    """The answer: columns of equal length, best first. ``scores`` decide the order, ``relevance`` is calibrated.

    ``index`` is the place in the request. Items that could not be scored are not in the columns: ``unknown``
    has the places of ids that are not in the index, ``unscored`` those that a deadline left out. ``blank``
    has places of texts with nothing in them; they stay, with the lowest relevance. ``scorers`` names who scored
    each item where that was not the model alone: ``cached``, ``model``, ``behavior``, ``behavior+model`` for both by
    their history, or ``lexical`` for what a deadline or a model that failed has left, which ``stood_in`` tells
    apart. ``states`` says that the model went on from the item states of the index. ``behavior`` is the model that
    reads neighbors.
    """

    request_id: str
    model: str
    version: str
    scorer: str
    index: list[int]
    ids: list[int | str]
    scores: list[float]
    relevance: list[float]
    timings_ms: dict[str, float]
    tiers: list[int] | None = None
    scorers: list[str] | None = None
    states: bool = False
    behavior: str | None = None
    filtered: Filtered | None = None
    partial: bool = False
    stood_in: Literal["deadline", "failure"] | None = None
    scored: int = 0
    unknown: list[int] = []
    unscored: list[int] = []
    blank: list[int] = []
    truncated: int = 0
    items: list[Explained] | None = None
    query_read: ExplainedText | None = None
    thresholds: list[dict[str, float]] | None = None


@dataclass(frozen=True, slots=True)
class Prepared:
    """A checked request: the work, and which places of the request it is about."""

    body: RelevanceBody
    work: Work
    places: Rows  # [known], places in the request
    unknown: Rows
    blank: Rows
    repaired: int = 0


@dataclass(frozen=True, slots=True)
class _Shown:
    """The items of an answer, best first, as columns ``[m]``; ``index`` are places in the request."""

    index: Rows
    scores: NDArray[np.floating]
    relevance: NDArray[np.floating]
    tiers: Rows | None
    truncated: NDArray[np.bool_]

    def followed_by(self, other: _Shown) -> _Shown:
        """Both, one after the other; tiers only where these have them."""
        return _Shown(
            np.concatenate([self.index, other.index]),
            np.concatenate([self.scores, other.scores]),
            np.concatenate([self.relevance, other.relevance]),
            None if self.tiers is None or other.tiers is None else np.concatenate([self.tiers, other.tiers]),
            np.concatenate([self.truncated, other.truncated]),
        )


def prepare(body: RelevanceBody, served: Served, limits: Limits, repaired: int = 0) -> Prepared:
    """What has to be scored. Raises WireError for fields that do not fit together."""
    given = [name for name in ("item_ids", "rows", "texts") if getattr(body, name) is not None]
    if len(given) != 1:
        shown = " and ".join(given) or "none"
        raise _wrong("item_ids", f"give one of item_ids, rows and texts; the body has {shown}")
    for name in ("top", "deadline_ms"):
        value = getattr(body, name)
        if value is not None and value < (1 if name == "deadline_ms" else 0):
            raise _wrong(name, f"{name} is {value}; give {1 if name == 'deadline_ms' else 0} or more")
    if body.texts is not None:
        count, places, unknown = len(body.texts), np.arange(len(body.texts)), np.zeros(0, dtype=np.int64)
        texts = [text or "" for text in body.texts]
        check_documents(count, limits, "texts")
        work, blank = Work.of_texts(body.query, texts), np.array(blank_rows(texts), dtype=np.int64)
    else:
        found = _found(body, served, limits)
        count, places, unknown = len(found), np.flatnonzero(found >= 0), np.flatnonzero(found < 0)
        assert served.index is not None
        work = Work.of_items(body.query, served.index.tokens, found[places], served.states, served.check)
        blank = np.zeros(0, dtype=np.int64)
    if count == 0:
        raise WireError(400, f"{given[0]} is an empty list; give at least one", "empty_documents", given[0])
    if len(body.query) + sum(len(text or "") for text in body.texts or ()) > limits.characters:
        raise WireError(413, f"more than {limits.characters} characters; send less at once", "too_many_characters")
    for name in ("retrieval_scores", "ranking_scores"):
        scores = getattr(body, name)
        if scores is not None and len(scores) != count:
            raise _wrong(name, f"{len(scores)} {name} for {count} {given[0]}; give one for each")
    if body.fuse is not None and body.ranking_scores is None:
        raise _wrong("fuse", "fuse needs ranking_scores; give one for each item")
    if body.tokens and not body.explain:
        raise _wrong("tokens", "tokens are told with the items; set explain too")
    _check_numbers(body, served)
    return Prepared(body, work, places, unknown, blank, repaired)


def parse(content: bytes) -> tuple[RelevanceBody, int]:
    """The body of a request, and how many lone surrogates were mended. Raises WireError."""
    return read(content, RelevanceBody)


def behavior_plan(prepared: Prepared, served: Served) -> Plan | None:
    """Which pairs of a request have neighbors; None where none has, or texts came without ids."""
    if served.neighbors is None or prepared.work.rows is None:
        return None
    return served.neighbors.plan(prepared.body.query, prepared.work.rows, prepared.body.explain, served.check)


def reply(
    prepared: Prepared,
    result: Result,
    relevance: Scores,
    served: Served,
    request_id: str,
    plan: Plan | None = None,
) -> RelevanceReply:
    """The answer. ``relevance`` are the probabilities of the result's pairs, finite, ``[known]``."""
    body, places = prepared.body, prepared.places
    whole = bool(result.scored.all())
    # The usual case is everything: then nothing is picked out of the columns.
    done = slice(None) if whole else np.flatnonzero(result.scored)
    places, relevance, truncated = places[done], relevance[done], result.truncated[done]
    retrieval, ranking = (
        None if scores is None else np.asarray(scores, dtype=np.float64)[places]
        for scores in (body.retrieval_scores, body.ranking_scores)
    )
    chosen, filtered = _filtered(body.filter, relevance, retrieval, served)
    every = slice(None) if chosen is None else chosen
    scores: NDArray[np.floating] = relevance
    levels: Rows | None = None
    if body.fuse is not None and ranking is not None:
        scores = relevance.astype(np.float64)
        # Normalized among those that stay: what was filtered out has no say in the order.
        scores[every], levels = _fused(body.fuse, relevance, ranking, every, served)
    # Without fusion the scores are the relevance, which cannot break its own ties.
    ties = [each[every] for each in (None if body.fuse is None else relevance, retrieval) if each is not None]
    order = best_first(scores[every], *ties)
    if chosen is not None:
        order = chosen[order]
    if body.top is not None:
        order = order[: body.top]
    best = relevance[order]
    shown = _Shown(
        places[order],
        best if scores is relevance else scores[order],
        best,
        None if levels is None else levels[order],
        truncated[order],
    )
    scorers = _scorers(result, order if whole else np.flatnonzero(result.scored)[order], plan)
    unscored = prepared.places[:0] if whole else prepared.places[~result.scored]
    stood_in: Literal["deadline", "failure"] | None = None
    if body.fallback and len(unscored):
        stood_in = "failure" if result.failed else "deadline"
        added = _lexical(prepared, result, served, None if body.top is None else body.top - len(order))
        scorers = (scorers or [MODEL] * len(order)) + [LEXICAL] * len(added.index)
        shown, unscored = shown.followed_by(added), unscored[:0]
    answer = RelevanceReply(
        request_id=request_id,
        model=served.name,
        version=served.version,
        scorer=f"{served.scorer.name}/{served.scorer.backend.name}",
        index=_column(shown.index),
        ids=_ids(prepared, shown.index),
        scores=_column(shown.scores),
        relevance=_column(shown.relevance),
        timings_ms={name: round(1000 * value, 3) for name, value in result.seconds.items()},
        tiers=None if shown.tiers is None else _column(shown.tiers),
        scorers=scorers,
        states=prepared.work.states is not None,
        behavior=None if plan is None else plan.name,
        filtered=filtered,
        partial=not whole,
        stood_in=stood_in,
        scored=len(places),
        unknown=prepared.unknown.tolist(),
        unscored=unscored.tolist(),
        blank=prepared.blank.tolist(),
        truncated=int(truncated.sum()),
    )
    if body.explain:
        answer.items = _explained(prepared, shown, _listed(answer.ids), served)
        if plan is not None:
            pair_of = dict(zip(prepared.places.tolist(), range(len(prepared.places)), strict=True))
            for item in answer.items:
                item.behavior = _spoken(plan, pair_of[item.index])
        answer.thresholds = _told_thresholds(served)
    if body.tokens and answer.items is not None:
        pairs = served.scorer.pairs
        tagger = tagger_of(pairs)
        answer.query_read = explain_query(body.query, pairs, tagger)
        for item in answer.items[:READ]:
            item.read = explain_title(item.title, pairs, tagger)
    return answer


def encode(answer: RelevanceReply) -> bytes:
    """An answer as JSON. Scores that the model gave have the digits of float32, which are half of float64's."""
    written: dict[int, msgspec.Raw] = {}  # by column: without fusion, scores and relevance are one

    def write(column: Any) -> msgspec.Raw:
        if not isinstance(column, np.ndarray):
            raise TypeError(f"{type(column).__name__} is nothing that goes into an answer")
        if id(column) not in written:
            whole = np.ascontiguousarray(column)
            written[id(column)] = msgspec.Raw(orjson.dumps(whole, option=orjson.OPT_SERIALIZE_NUMPY))
        return written[id(column)]

    return msgspec.json.encode(answer, enc_hook=write)


def _column(values: NDArray[Any]) -> list[Any]:
    """An array in the place of a list: ``encode`` writes it whole, without an object for each number."""
    return cast(list[Any], values)


def _told_thresholds(served: Served) -> list[dict[str, float]] | None:
    """What each threshold keeps of the model's validation pairs, and how much of that is relevant."""
    names = ("threshold", "precision", "recall", "kept")
    table = (served.thresholds or {}).get("table") or []
    return [{name: float(row[name]) for name in names} for row in table if all(name in row for name in names)] or None


def _scorers(result: Result, rows: Rows, plan: Plan | None) -> list[str] | None:
    """Who scored the given pairs; None where no cache was asked and no pair has neighbors."""
    if result.cached is None and plan is None:
        return None
    cached = np.zeros(len(result.scored), dtype=np.bool_) if result.cached is None else result.cached
    names = [CACHED if was else MODEL for was in cached]
    names = names if plan is None else plan.names(names)
    return [names[row] for row in rows]


def _spoken(plan: Plan, pair: int) -> SpokenBehavior | None:
    said = plan.spoken(pair)
    if said is None:
        return None
    return SpokenBehavior(
        said.gate,
        plan.weight_of(pair),
        said.text_logit,
        said.behavior_logit,
        [NeighborItem(each.item_id, each.text, each.weight) for each in said.items[:TOLD]],
        [NeighborQuery(each.text, each.weight) for each in said.queries[:TOLD]],
    )


def _lexical(prepared: Prepared, result: Result, served: Served, most: int | None) -> _Shown:
    """What was not scored in time, by word overlap, in the lowest tier; ``most`` of it, None for all."""
    left = np.flatnonzero(~result.scored)
    overlap = lexical_scores(prepared.body.query, _titles(prepared, left, served))
    order = best_first(overlap)[: None if most is None else max(0, most)]
    scores, lowest = overlap[order].astype(np.float32), np.zeros(len(order), dtype=np.int64)
    return _Shown(prepared.places[left[order]], scores, scores, lowest, result.truncated[left[order]])


def _titles(prepared: Prepared, pairs: Rows, served: Served) -> list[str]:
    """The texts of the given pairs of a request's work."""
    work = prepared.work
    if work.titles is not None:
        return [work.titles[pair] for pair in pairs]
    assert served.index is not None and work.rows is not None
    return [item.title for item in served.index.items(work.rows[pairs])]


def _found(body: RelevanceBody, served: Served, limits: Limits) -> Rows:
    """Rows of the index, -1 where there is none."""
    field = "item_ids" if body.item_ids is not None else "rows"
    given: Any = body.item_ids if body.item_ids is not None else body.rows
    if served.index is None:
        raise _wrong(field, f"model {served.name} is served without an index; give texts, or start with --index")
    try:
        served.index.check(served.scorer.pairs)
    except ArtifactError as error:  # cannot be: both were checked when they were opened
        raise WireError(503, f"the index does not fit the model: {error}", "not_ready") from None
    if isinstance(given, str):
        given = _unpacked(given, field, limits)
    check_documents(len(given), limits, field)
    if field == "item_ids":
        assert served.recent_ids is not None
        return served.recent_ids.find(_listed(given))
    try:
        rows = np.asarray(given, dtype=np.int64)
    except OverflowError:  # no index is that long
        rows = np.array([row if abs(row) < 2**62 else -1 for row in given], dtype=np.int64)
    return np.where((rows >= 0) & (rows < len(served.index)), rows, -1)


def _listed(given: Any) -> Sequence[int | str]:
    listed: Sequence[int | str] = given.tolist() if isinstance(given, np.ndarray) else given
    return listed


def _unpacked(text: str, field: str, limits: Limits) -> Rows:
    """Whole numbers packed as base64 of little-endian int32."""
    check_documents(len(text) * 3 // 16, limits, field)
    try:
        content = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise _wrong(field, f"{field} is a text that is not base64; give a list, or base64 of int32") from None
    if len(content) % 4:
        raise _wrong(field, f"{field} has {len(content)} bytes, which is not a multiple of 4; pack int32")
    return np.frombuffer(content, dtype="<i4").astype(np.int64)


def _check_numbers(body: RelevanceBody, served: Served) -> None:
    for name in ("retrieval_scores", "ranking_scores"):
        values = getattr(body, name)
        if values is not None and not np.isfinite(np.asarray(values, dtype=np.float64)).all():
            raise _wrong(name, f"{name} has a value that is not finite")
    if body.filter is not None:
        if body.filter.keep < 0 or body.filter.min_keep < 0:
            raise _wrong("filter", "filter.keep and filter.min_keep count items; give 0 or more")
        _threshold(body.filter, served)
    if isinstance(body.fuse, Linear) and not 0.0 <= body.fuse.weight <= 1.0:
        raise _wrong("fuse", f"fuse.weight is {body.fuse.weight}; give a number from 0 to 1")
    if isinstance(body.fuse, Tiers):
        cuts = _cuts(body.fuse, served)
        if list(cuts) != sorted(cuts):
            raise _wrong("fuse", f"fuse.cuts are {list(cuts)}; give them in rising order")


def _threshold(chosen: Filter, served: Served) -> float:
    if chosen.threshold is not None:
        return chosen.threshold
    return _from_table(served, FILTER_RECALL, "filter", "filter.threshold")


def _cuts(chosen: Tiers, served: Served) -> tuple[float, ...]:
    if chosen.cuts is not None:
        return tuple(chosen.cuts)
    return tuple(sorted(_from_table(served, recall, "fuse", "fuse.cuts") for recall in TIER_RECALLS))


def filter_threshold(served: Served) -> float | None:
    """The threshold of the default filter, None for a model without a threshold table."""
    try:
        return _from_table(served, FILTER_RECALL, "filter", "filter.threshold")
    except WireError:
        return None


def _from_table(served: Served, recall: str, field: str, setting: str) -> float:
    try:
        return float((served.thresholds or {})["for_recall"][recall])
    except (KeyError, TypeError, ValueError):
        raise _wrong(field, f"model {served.name} has no threshold table; give {setting}") from None


def _filtered(
    chosen: Filter | None, relevance: Scores, retrieval: NDArray[np.float64] | None, served: Served
) -> tuple[Rows | None, Filtered | None]:
    """The rows that stay, None for all, and what is told of the filter."""
    if chosen is None:
        return None, None
    threshold = _threshold(chosen, served)
    kept = keep_relevant(relevance, threshold, chosen.keep, chosen.min_keep, retrieval)
    # In input order again, so that equal scores keep it.
    return np.sort(kept.rows), Filtered(threshold, len(kept.rows), kept.below, kept.beyond)


def _fused(
    fuse: Linear | Tiers, relevance: Scores, ranking: NDArray[np.float64], chosen: Rows | slice, served: Served
) -> tuple[NDArray[np.float64], Rows | None]:
    if isinstance(fuse, Linear):
        return fuse_linear(relevance[chosen], ranking[chosen], fuse.weight, fuse.normalize), None
    cuts = _cuts(fuse, served)
    return fuse_tiers(relevance[chosen], ranking[chosen], cuts, fuse.normalize), tiers(relevance, cuts)


def _ids(prepared: Prepared, index: Rows) -> list[int | str]:
    """What to call the items at places of the request: the ids or rows that came; for texts the places."""
    given = prepared.body.item_ids
    if isinstance(given, list):
        if 4 * len(index) < len(given):
            return [given[place] for place in index.tolist()]
        # Numpy picks them in half the time of a loop: they lie all over the memory, and it need not wait for each.
        picked: list[int | str] = np.fromiter(given, dtype=object, count=len(given))[index].tolist()
        return picked
    if given is not None:
        return _column(np.frombuffer(base64.b64decode(given), dtype="<i4")[index])
    if prepared.work.rows is None:
        return _column(index)
    rows = np.zeros(len(prepared.places) + len(prepared.unknown), dtype=np.int64)
    rows[prepared.places] = prepared.work.rows
    return _column(rows[index])


def _explained(prepared: Prepared, shown: _Shown, ids: Sequence[int | str], served: Served) -> list[Explained]:
    body, index = prepared.body, shown.index.tolist()
    if body.texts is not None:
        titles = [body.texts[place] or "" for place in index]
    else:
        assert served.index is not None and prepared.work.rows is not None
        row_of = dict(zip(prepared.places.tolist(), prepared.work.rows.tolist(), strict=True))
        titles = [item.title for item in served.index.items([row_of[place] for place in index])]
    scores, relevance = (_short(column) for column in (shown.scores, shown.relevance))
    levels = [None] * len(index) if shown.tiers is None else shown.tiers.tolist()
    return [
        Explained(
            place,
            ids[spot],
            titles[spot],
            scores[spot],
            relevance[spot],
            levels[spot],
            None if body.retrieval_scores is None else body.retrieval_scores[place],
            None if body.ranking_scores is None else body.ranking_scores[place],
            bool(shown.truncated[spot]),
        )
        for spot, place in enumerate(index)
    ]


def _short(values: NDArray[np.floating]) -> list[float]:
    """Numbers with no more digits than tell them apart in their own precision, as ``encode`` writes the columns.

    >>> _short(np.array([0.1], dtype=np.float32))
    [0.1]
    """
    return [float(str(value)) for value in values]


def _wrong(field: str, message: str) -> WireError:
    return WireError(422, message, "invalid_field", field)
