from __future__ import annotations

import gc
import io
import json
import os
import re
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from pertinent.engine.scorer import Scorer
from pertinent.serving.run import _say
from pertinent.serving.telemetry import SHED, EventLog, Metrics


class Stuck(io.StringIO):
    """A pipe that nobody reads, until ``free`` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.free = threading.Event()

    def write(self, text: str) -> int:
        self.free.wait(20)
        return super().write(text)


def test_events_are_json_lines_with_utc_times() -> None:
    stream = io.StringIO()
    log = EventLog(stream)
    log.event("request", status=200, query='"\n\x1b[0m日本')
    log.event("stopped")
    log.close()
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [line["event"] for line in lines] == ["request", "stopped"]
    assert lines[0]["query"] == '"\n\x1b[0m日本' and lines[0]["time"].endswith("+00:00")


def test_a_full_pipe_holds_up_nobody_and_lost_lines_are_counted() -> None:
    stream = Stuck()
    log = EventLog(stream)
    before = time.perf_counter()
    for number in range(10_500):
        log.event("request", number=number)
    assert time.perf_counter() - before < 5
    stream.free.set()
    deadline = time.monotonic() + 10
    while log._lines.qsize() and time.monotonic() < deadline:
        time.sleep(0.01)
    log.event("after")
    log.close()
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    after = lines[-1]
    assert after["event"] == "after"
    assert after["lines_dropped"] + len(lines) - 1 == 10_500


def test_a_closed_stream_holds_up_nobody() -> None:
    stream = io.StringIO()
    stream.close()
    log = EventLog(stream)
    log.event("request")
    log.close()


def test_no_stream_at_all_holds_up_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)  # as after 2>&-
    log = EventLog()
    log.event("request")
    _say(["shop"], "http://127.0.0.1")
    log.close()
    assert log._dropped == 1


def test_lines_come_whole_through_a_full_pipe_that_does_not_wait() -> None:
    reads, writes = os.pipe()
    os.set_blocking(writes, False)
    stream = os.fdopen(writes, "w")
    log = EventLog(stream)
    for number in range(40):
        log.event("request", number=number, filler="x" * 5_000)
    time.sleep(0.3)  # the pipe is full
    content = b""
    while content.count(b"\n") < 40:
        content += os.read(reads, 10_000)
    log.close()
    assert [json.loads(line)["number"] for line in content.splitlines()] == list(range(40))
    stream.close()
    os.close(reads)


def test_counters_are_there_before_anything_happens() -> None:
    text = Metrics().render().decode()
    assert all(f'pertinent_shed_total{{reason="{reason}"}} 0.0' in text for reason in SHED)
    assert "pertinent_up 1.0" in text


def test_padding_and_stages_add_up() -> None:
    metrics = Metrics()
    metrics.batch(pairs=4, tokens=90, padded=100, jobs=2)
    metrics.scored(4, 1, {"queue": 0.001, "tokenize": 0.002, "score": 0.1, "total": 0.2})
    text = metrics.render().decode()
    assert "pertinent_padding_tokens_total 10.0" in text and "pertinent_tokens_total 90.0" in text
    assert 'pertinent_stage_seconds_sum{stage="score"} 0.1' in text


def test_runs_of_the_garbage_collector_are_timed() -> None:
    def runs() -> float:
        found = re.search(r"pertinent_gc_pause_seconds_count (\S+)", metrics.render().decode())
        assert found is not None
        return float(found[1])

    metrics = Metrics()
    before = runs()
    gc.collect()
    assert runs() >= before + 1


def test_metrics_have_names_of_text_embeddings_inference_where_asked(
    tiny_scorer: Scorer, start: Callable[..., Any]
) -> None:
    server = start(tiny_scorer, tei_metrics=True)
    for texts in (["tea"], ["tea", "tea pot"]):
        assert server.post("/rerank", {"query": "tea", "texts": texts}).status_code == 200
    assert server.post("/rerank", {"query": "tea"}).status_code == 422
    assert server.post("/rerank", {"query": "tea", "model": "none", "documents": ["a"]}).status_code == 404
    text = server.client.get("/metrics").text
    for line in (
        'te_request_count{method="single"} 1.0',
        'te_request_count{method="batch"} 3.0',
        'te_request_success{method="batch"} 1.0',
        'te_request_failure{err="validation"} 1.0',
        'te_request_failure{err="model_type"} 1.0',
        "te_request_duration_count 2.0",
        "te_request_tokenization_duration_count 2.0",
        "te_batch_next_size_sum 3.0",
        "te_queue_size 0.0",
        'te_request_duration_bucket{le="+Inf"} 2.0',
    ):
        assert f"\n{line}\n" in text, line
    assert "te_" not in re.sub("pertinent_\\w+", "", start(tiny_scorer).client.get("/metrics").text)
