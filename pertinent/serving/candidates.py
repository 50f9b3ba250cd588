"""What the page at ``/`` starts from: candidates of the index for a query, by BM25.

A search reads through all titles of an index, so one runs at a time and few may wait.
"""

from __future__ import annotations

import asyncio
import time

import msgspec

from pertinent.engine.search import search
from pertinent.serving.messages import WireError
from pertinent.serving.queue import Refused
from pertinent.serving.reading import read
from pertinent.serving.registry import Served

# Searches that may wait for the one that runs.
_WAITING = 8
_RETRY_SECONDS = 1.0


class CandidatesBody(msgspec.Struct, forbid_unknown_fields=True):
    """The body of ``POST /v1/candidates``."""

    query: str
    top: int = 20
    model: str | None = None


class CandidatesReply(msgspec.Struct):
    """The answer: columns of equal length, best first; ``scores`` are BM25, of any size. ``searched`` counts items."""

    request_id: str
    model: str
    version: str
    ids: list[str]
    titles: list[str]
    scores: list[float]
    searched: int
    timings_ms: dict[str, float]


def parse(content: bytes, most: int) -> CandidatesBody:
    """The body of a request. Raises WireError."""
    body, _ = read(content, CandidatesBody)
    if not 1 <= body.top <= most:
        raise WireError(422, f"top is {body.top}; give 1 to {most}", "invalid_field", "top")
    return body


class Searches:
    """Searches of this process, one after the other."""

    def __init__(self) -> None:
        self._turn = asyncio.Lock()
        self._asked = 0

    async def answer(self, body: CandidatesBody, served: Served, request_id: str) -> CandidatesReply:
        """The candidates. Raises WireError where there is no index, Refused where too many wait."""
        if served.index is None:
            message = f"model {served.name} is served without an index; start with --index"
            raise WireError(422, message, "no_index", "model")
        if self._asked > _WAITING:
            raise Refused("searches", f"{self._asked} searches wait already; come again later", _RETRY_SECONDS)
        self._asked += 1
        # A thread cannot be stopped: whoever leaves early does not start another one beside it.
        return await asyncio.shield(asyncio.ensure_future(self._next(body, served, request_id)))

    async def _next(self, body: CandidatesBody, served: Served, request_id: str) -> CandidatesReply:
        try:
            async with self._turn:
                return await asyncio.to_thread(_answer, body, served, request_id)
        finally:
            self._asked -= 1


def _answer(body: CandidatesBody, served: Served, request_id: str) -> CandidatesReply:
    assert served.index is not None
    served.check()  # it may have waited
    before = time.perf_counter()
    query = served.scorer.pairs.encode_queries([body.query]).row(0)
    found = search(served.index.tokens, query, body.top)
    items = served.index.items(found.rows)
    took = round(1000 * (time.perf_counter() - before), 3)
    return CandidatesReply(
        request_id,
        served.name,
        served.version,
        [item.item_id for item in items],
        [item.title for item in items],
        found.scores.tolist(),
        len(served.index),
        {"total": took},
    )
