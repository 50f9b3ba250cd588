"""A span of OpenTelemetry for each request, where the extra ``otel`` is installed and tracing is asked for.

Where spans go is told by the standard variables (``OTEL_EXPORTER_OTLP_ENDPOINT``, ``OTEL_SERVICE_NAME``). The
caller's ``traceparent`` is the parent, and the reply names the span in the same header.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pertinent.errors import need

TRACEPARENT = b"traceparent"


class Tracing:
    """Spans of one process; ``close`` it so that the last ones are sent.

    ``exporter`` None sends them over HTTP, as OpenTelemetry's own variables say.
    """

    def __init__(self, version: str, exporter: Any = None) -> None:
        trace = need("opentelemetry.sdk.trace", extra="otel")
        export = need("opentelemetry.sdk.trace.export", extra="otel")
        resources = need("opentelemetry.sdk.resources", extra="otel")
        propagation = need("opentelemetry.trace.propagation.tracecontext", extra="otel")
        api = need("opentelemetry.trace", extra="otel")
        if exporter is None:
            exporter = need("opentelemetry.exporter.otlp.proto.http.trace_exporter", extra="otel").OTLPSpanExporter()
            processor = export.BatchSpanProcessor(exporter)
        else:
            processor = export.SimpleSpanProcessor(exporter)
        own = resources.Resource.create({"service.version": version})
        named = own.merge(resources.Resource({"service.name": "pertinent"})) if _unnamed(own) else own
        self._provider = trace.TracerProvider(resource=named, shutdown_on_exit=False)
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("pertinent.serving", version)
        self._propagator = propagation.TraceContextTextMapPropagator()
        self._server, self._status = api.SpanKind.SERVER, api.StatusCode.ERROR

    def start(self, method: str, headers: Sequence[tuple[bytes, bytes]]) -> Any:
        """A span that begins now, below the caller's where its header is valid."""
        given = {
            name.decode("latin-1"): value.decode("latin-1") for name, value in headers if name.startswith(b"trace")
        }
        return self._tracer.start_span(
            method,
            context=self._propagator.extract(given),
            kind=self._server,
            attributes={"http.request.method": method},
        )

    def end(self, span: Any, route: str, status: int, told: Mapping[str, Any]) -> None:
        """End a span with what is known of its request: the same as the access log, so never texts of titles."""
        span.update_name(f"{span.attributes['http.request.method']} {route}")
        span.set_attributes({"http.route": route, "http.response.status_code": status})
        span.set_attributes({f"pertinent.{name}": value for name, value in told.items() if name != "query"})
        if status >= 500:
            span.set_status(self._status)
        span.end()

    def close(self) -> None:
        """Send what is left."""
        self._provider.shutdown()


def traceparent(span: Any) -> bytes:
    """The header that names a span."""
    context = span.get_span_context()
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{int(context.trace_flags):02x}".encode("ascii")


def _unnamed(resource: Any) -> bool:
    return str(resource.attributes.get("service.name", "unknown_service")).startswith("unknown_service")
