"""One queue over the scoring threads: token-bounded batches, filled fairly from all requests.

A request becomes a ``Job``. Its texts are tokenized a chunk at a time and its pairs are computed a batch
at a time, and after each of these units a thread takes the next one: of the key that has had least so
far, the job that has waited longest against what it would take alone (highest response ratio next). So all
are slowed down alike: a request of 10 documents does not wait for one of 10,000, not even where those have
piled up, and of equal ones the first is done first. Those that would come too late that way go before: under
overload that is what keeps all that were taken on within their deadlines. Batches of different
jobs are computed together where that is cheaper. In float32 a score does not depend on its batch mates.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from pertinent.config import Config
from pertinent.engine.arrays import Ragged
from pertinent.engine.batching import MAX_TOKENS, RUN_OVERHEAD
from pertinent.engine.scorer import Scorer
from pertinent.records import TokenRows

_log = logging.getLogger(__name__)

Rows = NDArray[np.int64]
# Texts tokenized in one go: some 5 ms of one thread, the longest that another request waits for it.
TEXT_CHUNK = 128
# Indexed items are only looked up, and lengths are grouped best over many.
INDEX_CHUNK = 4_096
# Pairs that a function computes have no batches: so many go to it at once, each for the price of so many tokens.
COMPUTED_CHUNK = 512
_COMPUTED_COST = 8
# A text costs about as much to tokenize as two of its tokens cost to score.
_TOKENIZE_COST = 2
_FADING = 0.98  # a batch
_GUESS = 0.001  # seconds a pair
# The least that a job takes alone, in seconds: below that, handing it over counts for more than computing it.
_LEAST_ALONE = 0.001
# Requests of at most so many texts are tokenized before a batch begins that has room for them.
_FILLING = 16
# How long a batch takes of a backend that does not mind how large it is: others wait no longer for a thread.
_BATCH_SECONDS = 0.01
_LEAST_TOKENS, _MOST_TOKENS = 64, 65_536
# The part of the time until a deadline that may be planned: estimates err, and work that comes late is lost.
_PLANNED = 0.75
_NO_TOKENS = TokenRows(np.zeros(0, np.int32), np.zeros(1, np.int64), np.zeros(0, np.bool_))


class QueueConfig(Config):
    """What may wait, in all and for one key; times in milliseconds.

    ``max_wait_ms`` is the longest expected wait behind other requests, beyond which new ones are shed.
    ``key_share`` is the part of ``max_pairs`` and ``max_requests`` that one API key may hold. ``nice`` is how far
    scoring threads stand back behind the one that reads and answers, and behind all else on the machine (Linux).
    ``overloaded_ms`` is how long a request may wait before the server says that no more should come; None for ever,
    as replicas that are overloaded together would leave together.
    """

    max_requests: int = Field(256, ge=1)
    max_pairs: int = Field(100_000, ge=1)
    max_wait_ms: int = Field(5_000, ge=1)
    key_share: float = Field(0.5, gt=0.0, le=1.0)
    deadline_ms: int = Field(30_000, ge=1)
    batch_tokens: int = Field(MAX_TOKENS, ge=1)
    nice: int = Field(10, ge=0, le=19)
    overloaded_ms: int | None = Field(None, ge=1)


def spread(seconds: float) -> float:
    """Up to half as long again, so that those who were refused together do not come back together."""
    return seconds * random.uniform(1.0, 1.5)


class Refused(Exception):
    """The queue takes no more; ``retry_after`` is when to come again, in seconds."""

    def __init__(self, reason: str, message: str, retry_after: float) -> None:
        self.reason = reason
        self.retry_after = spread(retry_after)
        super().__init__(message)


class DeadlinePassed(Exception):
    """The deadline passed before all pairs were scored."""


class Closed(Exception):
    """The queue is closed: the server is leaving. Another replica may be asked at once, this one when it is back."""

    retry_after = 1.0


@dataclass(frozen=True, slots=True)
class Work:
    """Pairs to score: pair i is ``queries[query_rows[i]]`` with ``titles[i]`` or with row ``rows[i]`` of ``items``.

    Of each title at most ``max_tokens`` tokens are read. Of the work of one key, lower priorities go first.
    ``states`` are those of all ``items``, where the model scores from them.
    With ``compute`` there are no texts: it gives the logits of the pairs at the given places.
    ``check`` is called before each read of items or states: it raises where they can no longer be read.
    """

    queries: Sequence[str]
    query_rows: Rows
    titles: Sequence[str] | None = None
    items: TokenRows | None = None
    rows: Rows | None = None
    states: Ragged | None = None
    max_tokens: int | None = None
    priority: int = 0
    compute: Callable[[Rows], NDArray[np.float32]] | None = None
    check: Callable[[], None] | None = None

    def __len__(self) -> int:
        return len(self.query_rows)

    def take(self, pairs: Rows) -> Work:
        """The work of some of the pairs only."""
        titles = None if self.titles is None else [self.titles[place] for place in pairs]
        rows = None if self.rows is None else self.rows[pairs]
        assert self.compute is None, "a function knows the places of all its pairs"
        return replace(self, query_rows=self.query_rows[pairs], titles=titles, rows=rows)

    @classmethod
    def of_texts(cls, query: str, titles: Sequence[str]) -> Work:
        """One query with many texts."""
        return cls([query], np.zeros(len(titles), dtype=np.int64), titles=titles)

    @classmethod
    def computed(
        cls,
        query: str,
        count: int,
        compute: Callable[[Rows], NDArray[np.float32]],
        check: Callable[[], None] | None = None,
    ) -> Work:
        """So many pairs of one query whose logits come from a function, called from a scoring thread."""
        return cls([query], np.zeros(count, dtype=np.int64), compute=compute, check=check)

    @classmethod
    def of_items(
        cls,
        query: str,
        items: TokenRows,
        rows: Rows,
        states: Ragged | None = None,
        check: Callable[[], None] | None = None,
    ) -> Work:
        """One query with rows of an index, scored from ``states`` where they are given."""
        return cls([query], np.zeros(len(rows), dtype=np.int64), items=items, rows=rows, states=states, check=check)


@dataclass(frozen=True, slots=True)
class Result:
    """What became of a job: logits, ``scored`` where they were computed (False only past a deadline).

    ``tokens`` counts those that were computed, ``seconds`` are by stage: ``queue`` until the first unit,
    ``tokenize`` and ``score`` summed over threads, ``total``. ``cached`` is True where a cache had the score.
    ``failed`` says that an error, not the time, kept the others from being scored.
    """

    logits: NDArray[np.float32]  # [n]
    scored: NDArray[np.bool_]  # [n]
    truncated: NDArray[np.bool_]  # [n]
    tokens: int
    seconds: dict[str, float]
    cached: NDArray[np.bool_] | None = None  # [n]
    failed: bool = False

    @classmethod
    def none(cls, pairs: int) -> Result:
        """Of so many pairs none is scored, as the model failed."""
        no, seconds = np.zeros(pairs, dtype=np.bool_), dict.fromkeys(("queue", "tokenize", "score", "total"), 0.0)
        return cls(np.zeros(pairs, dtype=np.float32), no, no.copy(), 0, seconds, failed=True)


class Observer(Protocol):
    """Who counts batches."""

    def batch(self, pairs: int, tokens: int, padded: int, jobs: int) -> None: ...


@dataclass(slots=True)
class _Piece:
    """Rows of a chunk to compute in one batch."""

    chunk: _Chunk
    rows: Rows  # in the chunk
    query_width: int
    item_width: int
    tokens: int  # without padding

    @property
    def padded(self) -> int:
        return len(self.rows) * (self.query_width + self.item_width)


@dataclass(slots=True)
class _Chunk:
    """What one stretch of a job, from pair ``start``, is scored from: tokenized items, or rows of states."""

    start: int
    query_rows: Rows
    items: TokenRows | None
    states: Ragged | None
    item_rows: Rows  # in either


@dataclass(slots=True, eq=False)
class Job:
    """One request in the queue."""

    work: Work
    scorer: Scorer
    key: str
    done: Callable[[Job], None]
    submitted: float
    logits: NDArray[np.float32]
    scored: NDArray[np.bool_]
    truncated: NDArray[np.bool_]
    deadline: float | None = None
    left: int = 0
    tokens: int = 0
    queries: TokenRows | None = None
    pieces: deque[_Piece] = field(default_factory=deque)
    next_start: int = 0
    started: float | None = None
    tokenize_seconds: float = 0.0
    score_seconds: float = 0.0
    error: BaseException | None = None
    over: bool = False

    @property
    def chunk(self) -> int:
        """Pairs that are tokenized in one go."""
        if self.work.compute is not None:
            return COMPUTED_CHUNK
        return TEXT_CHUNK if self.work.titles is not None else INDEX_CHUNK

    @property
    def has_texts(self) -> bool:
        """Whether its pairs are computed from tokens, not by a function or from states that lie in the index."""
        return self.work.compute is None and self.work.states is None

    def joins(self, other: Job) -> bool:
        """Whether pairs of both may be in one batch."""
        return self.scorer is other.scorer and self.has_texts and other.has_texts

    def has_unit(self) -> bool:
        """Whether a thread could take something now."""
        if self.pieces:
            return True
        # The queries are tokenized with the first chunk, which must be through before the second.
        return self.next_start < len(self.work) and (self.next_start == 0 or self.queries is not None)

    def result(self) -> Result:
        """What is known so far; call it under the queue's lock, or when the job is over."""
        now = time.monotonic()
        seconds = {
            "queue": (self.started if self.started is not None else now) - self.submitted,
            "tokenize": self.tokenize_seconds,
            "score": self.score_seconds,
            "total": now - self.submitted,
        }
        return Result(self.logits.copy(), self.scored.copy(), self.truncated.copy(), self.tokens, seconds)


class _Prepare:
    """A unit: tokenize the chunk of a job that begins at ``start``, and plan its batches."""

    def __init__(self, job: Job, start: int) -> None:
        self.job, self.start = job, start


class ScoringQueue:
    """Jobs and the threads that work on them. Use it from one event loop; ``close`` it when done."""

    def __init__(self, config: QueueConfig, threads: int, observer: Observer | None = None) -> None:
        self.config = config
        self._observer = observer
        self._jobs: list[Job] = []
        self._served: dict[str, float] = {}  # by key, tokens against those of the others
        self._running: dict[int, int] = {}  # by backend, batches computed now
        self._pairs = 0
        self._spent = (0.0, 0.0)  # seconds of one thread, and the pairs computed in them; the past fades
        self._pace: WeakKeyDictionary[Scorer, tuple[float, float]] = WeakKeyDictionary()  # the same with tokens
        self._closed = False
        self._ready = threading.Condition()
        self._beats: dict[int, float | None] = {}
        self._threads = [
            threading.Thread(target=self._work, args=(number,), name=f"pertinent-score-{number}", daemon=True)
            for number in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    async def score(
        self,
        work: Work,
        scorer: Scorer,
        key: str = "",
        deadline: float | None = None,
        partial: bool = False,
    ) -> Result:
        """The logits of all pairs. ``deadline`` is a time of ``time.monotonic``.

        Past the deadline raises DeadlinePassed or, with ``partial``, gives what is there. Raises Refused
        where too much waits already, and Closed. Cancelling the awaiting task drops the job.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Result] = loop.create_future()

        def settle(job: Job) -> None:
            if future.done():
                return
            if job.error is not None:
                future.set_exception(job.error)
            else:
                future.set_result(job.result())

        def tell(job: Job) -> None:
            loop.call_soon_threadsafe(settle, job)

        job = self._submit(work, scorer, key, deadline, partial, tell)
        try:
            async with asyncio.timeout(None if deadline is None else max(0.0, deadline - time.monotonic())):
                return await future
        except TimeoutError:
            if job.error is not None:
                raise job.error from None
            with self._ready:
                result = job.result()
            if partial or result.scored.all():
                return result
            raise DeadlinePassed(f"{int(result.scored.sum())} of {len(work)} pairs were scored in time") from None
        finally:
            self._drop(job)

    def estimate(self, pairs: int) -> float:
        """Seconds that a new job of so many pairs would spend behind the others; 0 before anything is known."""
        with self._ready:
            return self._ahead(pairs, "", 0)

    def check_room(self, pairs: int, key: str, priority: int, time_left: float | None) -> None:
        """Raises Refused where a job of so many pairs would be refused now."""
        with self._ready:
            self._admit(pairs, key, priority, time_left)

    @property
    def waiting(self) -> tuple[int, int, float]:
        """Requests and pairs that are not done, and the age of the oldest in seconds."""
        with self._ready:
            oldest = min((job.submitted for job in self._jobs), default=None)
            return len(self._jobs), self._pairs, 0.0 if oldest is None else time.monotonic() - oldest

    @property
    def untouched(self) -> int:
        """Requests of which no thread has taken anything yet."""
        with self._ready:
            return sum(job.started is None for job in self._jobs)

    def stalled(self, seconds: float) -> str | None:
        """Why scoring does not go on: a thread is dead, or has been at one unit for so long; None if it does."""
        now = time.monotonic()
        for number, thread in enumerate(self._threads):
            beat = self._beats.get(number)
            if not thread.is_alive() and not self._closed:
                return f"{thread.name} is dead"
            if beat is not None and now - beat > seconds:
                return f"{thread.name} has been busy with one batch for {now - beat:.0f} s"
        return None

    def close(self) -> None:
        """Fail what waits, and end the threads when their unit is done."""
        with self._ready:
            self._closed = True
            for job in list(self._jobs):
                self._finish(job, Closed("the server is shutting down"))
            self._ready.notify_all()
        for thread in self._threads:
            thread.join(timeout=5.0)

    def _submit(
        self,
        work: Work,
        scorer: Scorer,
        key: str,
        deadline: float | None,
        partial: bool,
        done: Callable[[Job], None],
    ) -> Job:
        size = len(work)
        job = Job(
            work,
            scorer,
            key,
            done,
            time.monotonic(),
            np.zeros(size, dtype=np.float32),
            np.zeros(size, dtype=np.bool_),
            np.zeros(size, dtype=np.bool_),
            # Who takes a part of the answer goes by size alone: their deadline is a wish, and others' is a promise.
            deadline=None if partial else deadline,
            left=size,
        )
        with self._ready:
            if self._closed:
                raise Closed("the server is shutting down")
            if size == 0:
                job.over = True
                done(job)
                return job
            time_left = None if deadline is None or partial else deadline - job.submitted
            self._admit(size, key, work.priority, time_left)
            if not any(other.key == key for other in self._jobs):
                # A key that comes back starts level with the others: it neither saved up nor owes anything.
                active = {other.key for other in self._jobs}
                self._served[key] = min((self._served[other] for other in active), default=0.0)
                self._served = {name: count for name, count in self._served.items() if name in active or name == key}
            self._jobs.append(job)
            self._pairs += size
            # It has one unit yet, its first stretch: threads that find nothing would only be in the way.
            self._ready.notify()
        return job

    def _admit(self, size: int, key: str, priority: int, time_left: float | None) -> None:
        if not self._jobs:
            return
        config = self.config
        whole = self._seconds(self._pairs)
        retry = min(max(whole, 1.0), 60.0)
        if len(self._jobs) >= config.max_requests:
            raise Refused("requests", f"{len(self._jobs)} requests wait already; come again later", retry)
        if self._pairs + size > config.max_pairs:
            raise Refused("pairs", f"{self._pairs} pairs wait already; come again later", retry)
        ahead = self._ahead(size, key, priority)
        if ahead > config.max_wait_ms / 1000:
            raise Refused("wait", f"the wait would be some {ahead:.1f} s; come again later", retry)
        needed = ahead + self._seconds(size)
        if time_left is not None and needed > _PLANNED * time_left:
            raise Refused("deadline", f"the answer would take some {needed:.1f} s; come again later", retry)
        mine = [other for other in self._jobs if other.key == key]
        if len(mine) == len(self._jobs) or not mine:
            return  # nobody else to share with
        if (
            len(mine) + 1 > config.key_share * config.max_requests
            or sum(other.left for other in mine) + size > config.key_share * config.max_pairs
        ):
            raise Refused("key", "this API key has its share of the queue; come again later", retry)

    def _pace_now(self) -> float:
        """Seconds that a pair takes all threads together; 0 before any were computed."""
        return self._seconds(1)

    def _ahead(self, size: int, key: str, priority: int) -> float:
        """Seconds of what goes before a new job: of other keys as much as of this one, of the same key by stretch.

        That is all of jobs no larger, and of larger ones until the new one has waited for as many times its own size,
        but all of those that are pressed.
        """
        pace, now = self._pace_now(), time.monotonic()
        alone = _alone(size, pace)
        pressed = self._pressed(now, pace)
        before, larger, held = 0, 0, 0.0
        for job in self._jobs:
            if job.key != key:
                before += min(job.left, size)
            elif job.work.priority != priority:
                before += job.left if job.work.priority < priority else 0
            elif (other := _alone(len(job.logits), pace)) <= alone or id(job) in pressed:
                before += job.left
            else:
                larger += job.left
                held = max(held, (now - job.submitted) * alone / (other - alone))
        return pace * before + min(pace * larger, held)

    def _pressed(self, now: float, pace: float) -> set[int]:
        """Jobs, by identity, that must go first to be done in time and some to spare; not those it is too late for."""
        possible: list[Job] = []
        needed, last = 0.0, 0
        for deadline, _, job in sorted((job.deadline, id(job), job) for job in self._jobs if job.deadline is not None):
            own = pace * job.left
            if now + own > deadline:
                continue
            possible.append(job)
            needed += own
            if now + needed > deadline - (1 - _PLANNED) * (deadline - job.submitted):
                last = len(possible)
        return {id(job) for job in possible[:last]}

    def _seconds(self, pairs: int) -> float:
        """What so many pairs take all threads together; 0 before any were computed."""
        seconds, computed = self._spent
        return pairs * seconds / computed / len(self._threads) if computed else 0.0

    def _drop(self, job: Job) -> None:
        with self._ready:
            if not job.over:
                job.over = True
                self._remove(job)

    def _remove(self, job: Job) -> None:
        if job in self._jobs:
            self._jobs.remove(job)
            self._pairs -= job.left
        job.pieces.clear()

    def _finish(self, job: Job, error: BaseException | None) -> None:
        """Under the lock."""
        if job.over:
            return
        job.over, job.error = True, error
        self._remove(job)
        try:
            job.done(job)
        except RuntimeError:  # the event loop has gone, and with it whoever waited
            _log.debug("nobody waits for a finished job")

    def _work(self, number: int) -> None:
        _give_way(self.config.nice)
        while True:
            with self._ready:
                self._beats[number] = None
                unit = None if self._closed else self._take()
                while unit is None and not self._closed:
                    self._ready.wait()
                    unit = self._take()
                if self._closed or unit is None:
                    return
                self._beats[number] = began = time.monotonic()
            try:
                if isinstance(unit, _Prepare):
                    self._prepare(unit)
                else:
                    self._compute(unit)
            except BaseException as error:  # a thread that dies would take its share of the capacity along
                jobs = {id(unit.job): unit.job} if isinstance(unit, _Prepare) else {id(j): j for j, _ in unit}
                with self._ready:
                    for job in jobs.values():
                        self._finish(job, error)
            with self._ready:
                # All that a unit costs this thread, waiting for the others included: that is what the next one costs.
                self._spent = (self._spent[0] + time.monotonic() - began, self._spent[1])

    def _take(self) -> _Prepare | list[tuple[Job, _Piece]] | None:
        """The next unit: of the key that has had least, what is pressed, else what has the longest stretch. Locked."""
        jobs = [job for job in self._jobs if job.has_unit()]
        if len(jobs) > 1:
            now, pace = time.monotonic(), self._pace_now()
            pressed = self._pressed(now, pace)

            def rank(job: Job) -> tuple[float, int, bool, float]:
                # All by the pace of now: by that of their own time equal ones would overtake each other.
                stretch = (now - job.submitted) / _alone(len(job.logits), pace)
                if job.deadline is not None and id(job) in pressed:
                    return self._served[job.key], job.work.priority, False, job.deadline
                return self._served[job.key], job.work.priority, True, -stretch

            jobs.sort(key=rank)
        for job in jobs:
            if not job.pieces:
                return self._next_chunk(job)
            if self._running.get(id(job.scorer.backend), 0) < job.scorer.backend.workers:
                mate = self._mate(job, jobs)
                return self._fill(job, jobs) if mate is None else self._next_chunk(mate)
        return None

    def _next_chunk(self, job: Job) -> _Prepare:
        start = job.next_start
        job.next_start = min(start + job.chunk, len(job.work))
        if job.started is None:
            job.started = time.monotonic()
        if job.work.titles is not None:
            self._charge(job, (job.next_start - start) * _TOKENIZE_COST)
        return _Prepare(job, start)

    def _mate(self, first: Job, jobs: list[Job]) -> Job | None:
        """A small job not begun yet, whose pairs would fit into the batch that ``first`` begins."""
        filled = 0
        for job in jobs:
            if not job.joins(first):
                continue
            if job.pieces:
                filled += job.pieces[0].padded
            elif job.next_start == 0 and len(job.work) <= _FILLING:
                return job
            if 2 * filled >= self.config.batch_tokens:
                return None
        return None

    def _fill(self, first: Job, jobs: list[Job]) -> list[tuple[Job, _Piece]]:
        """A batch that begins with a piece of ``first``, and takes in others' where that is cheaper."""
        batch = [(first, first.pieces.popleft())]
        query_width, item_width = batch[0][1].query_width, batch[0][1].item_width
        rows, apart = len(batch[0][1].rows), batch[0][1].padded
        for job in jobs:
            while job.pieces and job.joins(first):
                piece = job.pieces[0]
                widths = max(query_width, piece.query_width), max(item_width, piece.item_width)
                together = (rows + len(piece.rows)) * sum(widths)
                if together > min(self.config.batch_tokens, apart + piece.padded + RUN_OVERHEAD):
                    break
                batch.append((job, job.pieces.popleft()))
                (query_width, item_width), rows, apart = widths, rows + len(piece.rows), together
        backend = id(first.scorer.backend)
        self._running[backend] = self._running.get(backend, 0) + 1
        for job, piece in batch:
            self._charge(job, piece.padded)
        return batch

    def _charge(self, job: Job, tokens: int) -> None:
        self._served[job.key] += tokens

    def _prepare(self, unit: _Prepare) -> None:
        job, start = unit.job, unit.start
        before = time.perf_counter()
        stop = min(start + job.chunk, len(job.work))
        _check((job,))
        if job.work.compute is not None:
            self._plan_computed(job, start, stop)
            return
        queries = job.queries if job.queries is not None else job.scorer.pairs.encode_queries(job.work.queries)
        chunk, item_lengths, cut = _read(job, start, stop)
        query_lengths = queries.lengths[chunk.query_rows] + 2  # [CLS] and [SEP]
        batches = job.scorer.batches(query_lengths, item_lengths, self._tokens_at_once(job.scorer))
        pieces = _pieces(chunk, batches, query_lengths, item_lengths)
        cut = cut | queries.truncated[chunk.query_rows]
        with self._ready:
            job.tokenize_seconds += time.perf_counter() - before
            job.queries = queries
            if job.over:
                return
            job.truncated[start:stop] = cut
            job.pieces.extend(pieces)
            self._ready.notify_all()

    def _plan_computed(self, job: Job, start: int, stop: int) -> None:
        chunk = _Chunk(start, job.work.query_rows[start:stop], None, None, np.arange(stop - start))
        with self._ready:
            job.queries = _NO_TOKENS
            if not job.over:
                job.pieces.append(_Piece(chunk, np.arange(stop - start), 0, _COMPUTED_COST, 0))
                self._ready.notify_all()

    def _compute(self, batch: list[tuple[Job, _Piece]]) -> None:
        before, used = time.perf_counter(), time.thread_time()
        try:
            logits = self._forward(batch)
            self._keep_pace(batch, time.thread_time() - used)
        except Exception as error:
            if len(batch) > 1:  # one of them may be at fault: find out which
                for part in batch:
                    self._compute_alone(part)
                return
            with self._ready:
                self._finish(batch[0][0], error)
            return
        finally:
            backend = id(batch[0][0].scorer.backend)
            with self._ready:
                self._running[backend] -= 1
                if not self._running[backend]:
                    del self._running[backend]
                if any(job.pieces for job in self._jobs):
                    self._ready.notify_all()
        self._store(batch, logits, time.perf_counter() - before)

    def _compute_alone(self, part: tuple[Job, _Piece]) -> None:
        before = time.perf_counter()
        try:
            logits = self._forward([part])
        except Exception as error:
            with self._ready:
                self._finish(part[0], error)
            return
        self._store([part], logits, time.perf_counter() - before)

    def _forward(self, batch: list[tuple[Job, _Piece]]) -> NDArray[np.float32]:
        _check(job for job, _ in batch)
        job, piece = batch[0]
        chunk = piece.chunk
        assert job.queries is not None
        if job.work.compute is not None:
            return job.work.compute(piece.rows + chunk.start)
        item_rows = chunk.item_rows[piece.rows]
        if chunk.states is not None:
            return job.scorer.join(job.queries, chunk.query_rows[piece.rows], chunk.states, item_rows)
        if len(batch) == 1:
            assert chunk.items is not None
            return job.scorer.forward(job.queries, chunk.query_rows[piece.rows], chunk.items, item_rows)
        queries, items = [], []
        for job, piece in batch:
            assert job.queries is not None and piece.chunk.items is not None
            queries.append(job.queries.take(piece.chunk.query_rows[piece.rows]))
            items.append(piece.chunk.items.take(piece.chunk.item_rows[piece.rows]))
        rows = np.arange(sum(len(piece.rows) for _, piece in batch))
        return job.scorer.forward(TokenRows.joined(queries), rows, TokenRows.joined(items), rows)

    def _keep_pace(self, batch: list[tuple[Job, _Piece]], used: float) -> None:
        """Note what a batch took of its thread's processor; waiting for it says nothing about sizes."""
        if batch[0][0].work.compute is not None:
            return  # a function's work is not measured in tokens
        with self._ready:
            seconds, tokens = self._pace.get(batch[0][0].scorer, (0.0, 0.0))
            now = sum(piece.tokens for _, piece in batch)
            self._pace[batch[0][0].scorer] = (seconds * _FADING + used, tokens * _FADING + now)

    def _tokens_at_once(self, scorer: Scorer) -> int:
        """How many tokens of pairs take some ``_BATCH_SECONDS`` of one thread."""
        seconds, tokens = self._pace.get(scorer, (0.0, 0.0))
        return min(max(int(_BATCH_SECONDS * tokens / seconds), _LEAST_TOKENS), _MOST_TOKENS) if seconds else MAX_TOKENS

    def _store(self, batch: list[tuple[Job, _Piece]], logits: NDArray[np.float32], seconds: float) -> None:
        place, size = 0, len(logits)
        with self._ready:
            for job, piece in batch:
                count = len(piece.rows)
                if not job.over:
                    places = piece.rows + piece.chunk.start
                    job.logits[places] = logits[place : place + count]
                    job.scored[places] = True
                    job.tokens += piece.tokens
                    job.left -= count
                    job.score_seconds += seconds * count / size
                    self._pairs -= count
                    if job.left == 0:
                        self._finish(job, None)
                place += count
            self._spent = (self._spent[0] * _FADING, self._spent[1] * _FADING + size)
        if self._observer is not None:
            width = max(p.query_width for _, p in batch) + max(p.item_width for _, p in batch)
            self._observer.batch(size, sum(p.tokens for _, p in batch), size * width, len(batch))


def _read(job: Job, start: int, stop: int) -> tuple[_Chunk, Rows, NDArray[np.bool_]]:
    """The items of a stretch of a job, tokenized or looked up; the lengths of their blocks, and which are cut."""
    work, query_rows = job.work, job.work.query_rows[start:stop]
    if work.titles is None:
        assert work.items is not None and work.rows is not None
        rows = work.rows[start:stop]
        if work.states is not None:
            # Their lengths are those of blocks: with [SEP].
            lengths = work.states.offsets[rows + 1] - work.states.offsets[rows]
            return _Chunk(start, query_rows, None, work.states, rows), lengths, work.items.truncated[rows]
        items, item_rows = job.scorer.stored(work.items, rows)
    else:
        items = job.scorer.pairs.encode_items(work.titles[start:stop])
        if work.max_tokens is not None:
            items = items.cut(work.max_tokens)
        item_rows = np.arange(len(items))
    lengths = items.offsets[item_rows + 1] - items.offsets[item_rows]  # of these alone: there may be millions
    return _Chunk(start, query_rows, items, None, item_rows), lengths + 1, items.truncated[item_rows]


def _pieces(chunk: _Chunk, batches: list[Rows], query_lengths: Rows, item_lengths: Rows) -> list[_Piece]:
    """The batches of a chunk with their sizes, all found in one go."""
    order, starts = np.concatenate(batches), np.cumsum([0, *(len(rows) for rows in batches[:-1])])
    query, item = query_lengths[order], item_lengths[order]
    sizes = (
        np.maximum.reduceat(query, starts).tolist(),
        np.maximum.reduceat(item, starts).tolist(),
        np.add.reduceat(query + item, starts).tolist(),
    )
    return [_Piece(chunk, rows, *each) for rows, *each in zip(batches, *sizes, strict=True)]


def _check(jobs: Iterable[Job]) -> None:
    """Raises what a job's work says against reading its items now."""
    for job in jobs:
        if job.work.check is not None:
            job.work.check()


def _alone(size: int, pace: float) -> float:
    """Seconds that so many pairs take with nothing beside them; a guess that tells sizes apart before that is known."""
    return max(_LEAST_ALONE, size * (pace or _GUESS))


def _give_way(nice: int) -> None:
    """Let the system run this thread after the event loop's: what is read, refused or sent takes microseconds."""
    if nice and sys.platform == "linux":  # elsewhere a thread has no number of its own
        own = threading.get_native_id()
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, own, min(19, os.getpriority(os.PRIO_PROCESS, own) + nice))


def running_threads(scorers: Sequence[Any]) -> int:
    """How many threads keep the largest of the backends busy.

    >>> running_threads([])
    1
    """
    return max((scorer.backend.workers for scorer in scorers), default=1)
