"""Spans of OpenTelemetry: one a request, below the caller's, without queries."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from pertinent.engine.scorer import Scorer

pytest.importorskip("opentelemetry.sdk", reason="needs pertinent[otel]")

BODY = {"query": "secret wish", "documents": ["usb cable", "tea"]}
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture(scope="module")
def traced(tiny_scorer: Scorer, start: Callable[..., Any]) -> tuple[Any, Any]:
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    from pertinent.serving.tracing import Tracing

    server, spans = start(tiny_scorer, log_queries=True), InMemorySpanExporter()
    server.app.tracing = Tracing("0", spans)
    return server, spans


def test_a_request_is_a_span_below_the_callers_and_the_reply_names_it(traced: tuple[Any, Any]) -> None:
    server, spans = traced
    spans.clear()
    reply = server.post("/v2/rerank", BODY, headers={"traceparent": PARENT})
    (span,) = spans.get_finished_spans()
    assert span.name == "POST /v2/rerank" and format(span.parent.span_id, "016x") == "b7ad6b7169203331"
    told = reply.headers["traceparent"].split("-")
    assert told[1] == PARENT.split("-")[1] and told[2] == format(span.context.span_id, "016x")
    assert span.attributes["http.response.status_code"] == 200 and span.attributes["pertinent.documents"] == 2
    assert "secret" not in str(dict(span.attributes)) and span.resource.attributes["service.name"] == "pertinent"


def test_wrong_parents_begin_a_trace_and_errors_are_marked(traced: tuple[Any, Any]) -> None:
    server, spans = traced
    spans.clear()
    assert server.post("/v2/rerank", {}, headers={"traceparent": "nonsense\x7f"}).status_code == 422
    assert server.client.get("/made-up").status_code == 404
    first, second = spans.get_finished_spans()
    assert first.parent is None and first.attributes["http.response.status_code"] == 422
    assert second.name == "GET other" and "made-up" not in str(dict(second.attributes))


def test_without_tracing_no_header_is_added(tiny_scorer: Scorer, start: Callable[..., Any]) -> None:
    assert "traceparent" not in start(tiny_scorer).post("/v2/rerank", BODY).headers
