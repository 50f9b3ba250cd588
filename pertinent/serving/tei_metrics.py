"""The metrics of this server once more, under the names of text-embeddings-inference (``--tei-metrics``).

For dashboards that are there already; ours (``telemetry``) tell more. Each scoring request counts, in whatever
dialect. Counters have no ``_total`` behind their names there, so they are written as untyped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

# 10 microseconds to 15 seconds, as there.
_SECONDS = tuple(1.5**power * 10e-6 for power in range(1, 36))
_SIZES = tuple(float(2**power) for power in range(15))
_STAGES = {"tokenize": "tokenization", "queue": "queue", "score": "inference"}
_FAILURES = {404: "model_type", 413: "batch_size", 429: "overloaded", 499: "dropped", 503: "overloaded"}
_VALIDATION, _INFERENCE = "validation", "inference"
FAILURES = tuple(dict.fromkeys((*_FAILURES.values(), _VALIDATION, _INFERENCE)))


def failure(status: int) -> str:
    """What text-embeddings-inference calls an answer of this status.

    >>> failure(429), failure(422), failure(504), failure(413)
    ('overloaded', 'validation', 'inference', 'batch_size')
    """
    return _FAILURES.get(status) or (_VALIDATION if status < 500 else _INFERENCE)


class TeiMetrics(Collector):
    """Counts under ``te_`` names; a request of one text is ``single``, others are ``batch``."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._counts = dict.fromkeys(("single", "batch"), 0)
        self._successes = dict.fromkeys(("single", "batch"), 0)
        self._failures = dict.fromkeys(FAILURES, 0)
        self._waiting: Callable[[], int] = int

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(name, text, buckets=buckets, registry=registry)

        self._duration = histogram("te_request_duration", "Seconds from first to last byte of a request.", _SECONDS)
        self._stages = {
            stage: histogram(f"te_request_{name}_duration", f"Seconds of a request: {name}.", _SECONDS)
            for stage, name in _STAGES.items()
        }
        self._batch_pairs = histogram("te_batch_next_size", "Pairs of a batch.", _SIZES)
        self._batch_tokens = histogram("te_batch_next_tokens", "Tokens of a batch.", _SIZES)
        registry.register(self)

    def watch(self, waiting: Callable[[], int]) -> None:
        """Say how many requests wait by calling this."""
        self._waiting = waiting

    def answered(self, status: int, documents: int | None, seconds: float) -> None:
        """Count a scoring request; ``documents`` is None where it was refused before they were counted."""
        method = "single" if documents == 1 else "batch"
        self._counts[method] += 1
        if status == 200:
            self._successes[method] += 1
            self._duration.observe(seconds)
        else:
            self._failures[failure(status)] += 1

    def scored(self, seconds: Mapping[str, float]) -> None:
        """Note the stages of a request whose pairs were scored."""
        for stage, histogram in self._stages.items():
            histogram.observe(seconds.get(stage, 0.0))

    def batch(self, pairs: int, tokens: int) -> None:
        """Note a batch."""
        self._batch_pairs.observe(pairs)
        self._batch_tokens.observe(tokens)

    def collect(self) -> Iterable[Any]:
        for name, text, label, counts in (
            ("te_request_count", "Scoring requests.", "method", self._counts),
            ("te_request_success", "Scoring requests that were answered.", "method", self._successes),
            ("te_request_failure", "Scoring requests that were refused or failed.", "err", self._failures),
        ):
            counted = Metric(name, text, "untyped")
            for value, count in counts.items():
                counted.add_sample(name, {label: value}, count)
            yield counted
        waiting = Metric("te_queue_size", "Requests of which nothing is computed yet.", "gauge")
        waiting.add_sample("te_queue_size", {}, self._waiting())
        yield waiting
