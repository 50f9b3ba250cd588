"""What an operator sees: Prometheus metrics, and one JSON line a request.

Labels come from fixed sets (routes, dialects, reasons), never from what a client sends. The text of
queries is written only where the configuration says so; titles, keys and addresses never.
"""

from __future__ import annotations

import bisect
import contextlib
import functools
import gc
import itertools
import os
import queue
import select
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from typing import IO, Any

import msgspec
import numpy as np
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.gc_collector import GCCollector
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from pertinent.serving.caching import SharedCaches
from pertinent.serving.memory import own_bytes
from pertinent.serving.queue import ScoringQueue
from pertinent.serving.registry import Registry
from pertinent.serving.tei_metrics import TeiMetrics

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"
# Stages that the queue tells, and those around it: a body to work with ids looked up, a result to an ordered answer.
QUEUE_STAGES = ("queue", "tokenize", "score", "total")
STAGES = ("parse", *QUEUE_STAGES, "write")
# Why a request was not taken on.
SHED = ("requests", "pairs", "wait", "deadline", "key", "searches", "memory")
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_SIZES = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000)
_PAUSES = (0.0001, 0.001, 0.01, 0.1, 1.0)
_TENTHS = 10  # buckets of relevance
_LOG_LINES = 10_000
_PIPE_SECONDS = 5.0  # that a line waits for room in a pipe


class Metrics:
    """All counters of one process, in a registry of their own.

    ``tei`` tells them under the names of text-embeddings-inference too; ``restarts`` says how many workers were
    started again, where there are several.
    """

    def __init__(self, tei: bool = False, restarts: Callable[[], int] = int) -> None:
        self.registry = CollectorRegistry()
        given: dict[str, Any] = {"registry": self.registry}
        self._requests = Counter("pertinent_requests", "Answered requests.", ["route", "dialect", "status"], **given)
        self._seconds = Histogram(
            "pertinent_stage_seconds",
            "Time of scoring requests by stage; tokenize and score are sums over threads, total is the queue's.",
            ["stage"],
            buckets=_SECONDS,
            **given,
        )
        self._documents = Histogram("pertinent_request_documents", "Documents of a request.", buckets=_SIZES, **given)
        self._pairs = Counter("pertinent_pairs", "Scored pairs.", **given)
        self._batch_pairs = Histogram("pertinent_batch_pairs", "Pairs of a batch.", buckets=_SIZES[:9], **given)
        self._batch_requests = Histogram(
            "pertinent_batch_requests", "Requests in a batch.", buckets=_SIZES[:6], **given
        )
        self._tokens = Counter("pertinent_tokens", "Tokens computed, without padding.", **given)
        self._padded = Counter("pertinent_padding_tokens", "Padding computed beside the tokens.", **given)
        self._shed = Counter("pertinent_shed", "Requests refused under load, by reason.", ["reason"], **given)
        self._late = Counter("pertinent_deadline_misses", "Requests past their deadline.", ["answer"], **given)
        self._truncated = Counter("pertinent_truncated_items", "Items whose text was not read to its end.", **given)
        self._bad = Counter("pertinent_bad_items", "Items without a usable text, id or score.", ["reason"], **given)
        self._reloads = Counter("pertinent_reloads", "Attempts to take a new model version.", ["outcome"], **given)
        for stage in STAGES:
            self._seconds.labels(stage)
        for reason in SHED:
            self._shed.labels(reason)
        Gauge("pertinent_up", "1 while the process runs.", **given).set(1)
        Gauge("pertinent_threads", "Threads of Python in the process.", **given).set_function(threading.active_count)
        own = Gauge("pertinent_memory_bytes", "Memory of the process alone, without the files that it maps.", **given)
        own.set_function(lambda: float(own_bytes() or 0))
        self.registry.register(_pauses())
        self.registry.register(_Restarts(restarts))
        self._tei = TeiMetrics(self.registry) if tei else None
        self._relevance = _Relevance()
        self.registry.register(self._relevance)
        ProcessCollector(registry=self.registry)
        GCCollector(registry=self.registry)

    def watch(self, scoring: ScoringQueue, models: Registry, caches: SharedCaches) -> None:
        """Also show what waits in a queue, which models are served, and what the caches had."""
        self.registry.register(_Live(scoring, models))
        self.registry.register(_Caches(models, caches))
        if self._tei is not None:
            self._tei.watch(lambda: scoring.untouched)

    def answered(self, route: str, dialect: str, status: int) -> None:
        """Count an answer. ``route`` is a template of ours, not the path that came."""
        self._requests.labels(route, dialect, str(status)).inc()

    def asked(self, status: int, documents: int | None, seconds: float) -> None:
        """Count a scoring request once it is answered; ``documents`` is None where nobody counted them."""
        if self._tei is not None:
            self._tei.answered(status, documents, seconds)

    def scored(self, documents: int, truncated: int, seconds: Mapping[str, float]) -> None:
        """Count a request whose pairs were scored."""
        self._documents.observe(documents)
        self._truncated.inc(truncated)
        for stage in QUEUE_STAGES:
            self._seconds.labels(stage).observe(seconds.get(stage, 0.0))
        if self._tei is not None:
            self._tei.scored(seconds)

    def took(self, stage: str, seconds: float) -> None:
        """Note the time of a stage around the queue: ``parse`` or ``write``."""
        self._seconds.labels(stage).observe(seconds)

    def relevance(self, model: str, found: NDArray[np.float32], threshold: float | None) -> None:
        """Note the probabilities that a served model gave, ``[n]``, and how many reach the threshold of its filter."""
        self._relevance.note(model, found, threshold)

    def batch(self, pairs: int, tokens: int, padded: int, jobs: int) -> None:
        """Count a batch; ``padded`` counts tokens with padding."""
        self._pairs.inc(pairs)
        self._batch_pairs.observe(pairs)
        self._batch_requests.observe(jobs)
        self._tokens.inc(tokens)
        self._padded.inc(max(0, padded - tokens))
        if self._tei is not None:
            self._tei.batch(pairs, tokens)

    def shed(self, reason: str) -> None:
        """Count a request refused under load."""
        self._shed.labels(reason).inc()

    def late(self, partial: bool) -> None:
        """Count a missed deadline, answered in part or by an error."""
        self._late.labels("partial" if partial else "error").inc()

    def bad(self, reason: str, items: int) -> None:
        """Count items that could not be scored as they came: ``blank``, ``unknown`` or ``not_finite``."""
        if items:
            self._bad.labels(reason).inc(items)

    def reloaded(self, ok: bool) -> None:
        """Count an attempt to take a new model version."""
        self._reloads.labels("taken" if ok else "failed").inc()

    def render(self) -> bytes:
        """The Prometheus text format."""
        return generate_latest(self.registry)


class _Relevance(Collector):
    """How relevance is spread, by model: drift of a catalog or of its searches shows here first."""

    def __init__(self) -> None:
        self._counts: dict[str, NDArray[np.int64]] = {}
        self._sums: dict[str, float] = {}
        self._passing: dict[str, int] = {}

    def note(self, model: str, found: NDArray[np.float32], threshold: float | None) -> None:
        """Count values, ``[n]``, in tenths: a histogram that is asked for each of thousands would take milliseconds."""
        if model not in self._counts:
            self._sums[model] = 0.0
            self._counts[model] = np.zeros(_TENTHS, dtype=np.int64)
        tenths = np.clip(np.ceil(found * _TENTHS).astype(np.int64) - 1, 0, _TENTHS - 1)
        self._counts[model] += np.bincount(tenths, minlength=_TENTHS)
        self._sums[model] += float(found.sum(dtype=np.float64))
        if threshold is not None:
            self._passing[model] = self._passing.get(model, 0) + int(np.count_nonzero(found >= threshold))

    def collect(self) -> Iterable[Any]:
        spread = HistogramMetricFamily("pertinent_item_relevance", "Relevance of scored items.", labels=["model"])
        passing = CounterMetricFamily(
            "pertinent_items_above_threshold", "Scored items that the default filter would keep.", labels=["model"]
        )
        for model, counts in list(self._counts.items()):  # another thread may add one
            ends = [*(str((place + 1) / _TENTHS) for place in range(_TENTHS - 1)), "1.0", "+Inf"]
            totals = np.cumsum(counts).tolist()
            buckets = list(zip(ends, [*totals, totals[-1]], strict=True))
            spread.add_metric([model], buckets=buckets, sum_value=self._sums[model])
        for model, count in list(self._passing.items()):
            passing.add_metric([model], count)
        yield spread
        yield passing


class _Pauses(Collector):
    """How long the garbage collector holds up the process.

    It may run while a lock of any other metric is held, so it counts by itself.
    """

    def __init__(self) -> None:
        self._began, self._sum = 0.0, 0.0
        self._counts = [0] * (len(_PAUSES) + 1)
        gc.callbacks.append(self._run)

    def _run(self, phase: str, info: dict[str, int]) -> None:
        if phase == "start":
            self._began = time.perf_counter()
            return
        took = time.perf_counter() - self._began
        self._sum += took
        self._counts[bisect.bisect_left(_PAUSES, took)] += 1

    def collect(self) -> Iterable[Any]:
        totals = list(itertools.accumulate(self._counts))
        buckets = list(zip([*map(str, _PAUSES), "+Inf"], totals, strict=True))
        text = "Runs of the garbage collector, which hold up the process."
        yield HistogramMetricFamily("pertinent_gc_pause_seconds", text, buckets=buckets, sum_value=self._sum)


@functools.cache
def _pauses() -> _Pauses:
    return _Pauses()  # one for the process, as there is one collector


class _Restarts(Collector):
    """Workers started again since the start, read when somebody asks."""

    def __init__(self, restarts: Callable[[], int]) -> None:
        self._restarts = restarts

    def collect(self) -> Iterable[Any]:
        text = "Workers that were started again because they died."
        yield CounterMetricFamily("pertinent_worker_restarts", text, value=self._restarts())


class _Live(Collector):
    """Values that are read when somebody asks for them."""

    def __init__(self, scoring: ScoringQueue, models: Registry) -> None:
        self._scoring, self._models = scoring, models

    def collect(self) -> Iterable[Any]:
        requests, pairs, oldest = self._scoring.waiting
        for name, text, value in (
            ("pertinent_queue_requests", "Requests that are not done.", requests),
            ("pertinent_queue_pairs", "Pairs that are not scored yet.", pairs),
            ("pertinent_queue_oldest_seconds", "Age of the oldest request.", oldest),
        ):
            yield GaugeMetricFamily(name, text, value=value)
        info = GaugeMetricFamily("pertinent_model_info", "Served models.", labels=["model", "version", "backend"])
        loaded = GaugeMetricFamily("pertinent_model_loaded_seconds", "When it was loaded, Unix time.", labels=["model"])
        for each in self._models.all:
            info.add_metric([each.name, each.version, each.scorer.backend.name], 1)
            loaded.add_metric([each.name], each.loaded)
        yield info
        yield loaded
        refused = len(self._models.failures)
        yield GaugeMetricFamily("pertinent_models_failing", "Models whose new version was refused.", value=refused)


class _Caches(Collector):
    """Hits and misses of the caches, read when somebody asks for them."""

    def __init__(self, models: Registry, caches: SharedCaches) -> None:
        self._models, self._caches = models, caches

    def collect(self) -> Iterable[Any]:
        hits = CounterMetricFamily("pertinent_cache_hits", "Pairs whose score a cache had.", labels=["level"])
        errors = CounterMetricFamily("pertinent_cache_errors", "Look-ups and writes that failed.", labels=["level"])
        counts = self._caches.counts
        names = {level.name for level in self._caches.levels} | {"hot" for each in self._models.all if each.hot}
        for name in sorted(names | set(counts.hits)):
            hits.add_metric([name], counts.hits[name])
        for level in self._caches.levels:
            errors.add_metric([level.name], level.errors)
        yield hits
        yield errors
        misses = CounterMetricFamily("pertinent_cache_misses", "Pairs that were looked up and in no cache.")
        misses.add_metric([], counts.misses)
        yield misses
        yield GaugeMetricFamily("pertinent_cache_hit_ratio", "Hits by look-ups since the start.", value=counts.hit_rate)
        texts = CounterMetricFamily("pertinent_token_cache", "Item texts by whether tokens were there.", labels=["was"])
        tokens = [each.scorer.pairs.cache for each in self._models.all]
        texts.add_metric(["hit"], sum(cache.hits for cache in tokens if cache is not None))
        texts.add_metric(["miss"], sum(cache.misses for cache in tokens if cache is not None))
        yield texts


class EventLog:
    """JSON lines on a stream, written by a thread of its own: a full or closed pipe never holds up scoring.

    Lines that find the buffer full are dropped and counted in the next line that gets through.
    """

    def __init__(self, stream: IO[str] | None = None) -> None:
        self._stream = stream or sys.stderr  # None where it was closed before the start
        self._torn = False  # the last line was not written to its end
        self._lines: queue.Queue[bytes | None] = queue.Queue(_LOG_LINES)
        self._dropped = 0
        self._thread = threading.Thread(target=self._write, name="pertinent-log", daemon=True)
        self._thread.start()

    def event(self, name: str, **values: Any) -> None:
        """Write one line: the time in UTC, the name of the event, and the values."""
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        if self._dropped:
            values["lines_dropped"], self._dropped = self._dropped, 0
        try:
            self._lines.put_nowait(msgspec.json.encode({"time": now, "event": name, **values}))
        except queue.Full:
            self._dropped += 1 + values.get("lines_dropped", 0)

    def close(self) -> None:
        """Write what is left, for a second at most."""
        with contextlib.suppress(queue.Full):
            self._lines.put(None, timeout=0.5)
            self._thread.join(timeout=1.0)
        if self._stream is None:
            return
        if self._thread.is_alive():  # nobody reads: what the process says on its way out must not wait for that
            _let_go(self._stream)
            return
        try:
            self._stream.flush()
        except (OSError, ValueError):
            _let_go(self._stream)

    def _write(self) -> None:
        while (line := self._lines.get()) is not None:
            try:
                self._put(line + b"\n")
            except (OSError, ValueError):  # closed: nobody reads it any more
                self._dropped += 1

    def _put(self, content: bytes) -> None:
        """Write past the stream's own buffer: its lock would hold up a process that leaves while the pipe is full."""
        if self._stream is None:
            raise ValueError("there is no stream")
        try:
            descriptor = self._stream.fileno()
        except (OSError, ValueError, AttributeError):  # no file behind it
            self._stream.write(content.decode("utf-8"))
            self._stream.flush()
            return
        content, torn = (b"\n" + content if self._torn else content), False
        try:
            while content:
                try:
                    content = content[os.write(descriptor, content) :]
                    torn = True
                except BlockingIOError:  # a pipe that does not wait, and is full
                    if not select.select([], [descriptor], [], _PIPE_SECONDS)[1]:
                        raise
            torn = False
        finally:
            self._torn = torn or (self._torn and bool(content))


def _let_go(stream: IO[str]) -> None:
    """Point a stream that cannot be written at nothing, so that its rest does not fail again at exit."""
    with contextlib.suppress(OSError, ValueError, AttributeError), open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), stream.fileno())
