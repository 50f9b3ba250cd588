"""Which dialect a path and a body speak, and the small answers around them.

>>> route = next(route for route in ROUTES if route.path == "/rerank")
>>> choose(route, b'{"query": "cup", "texts": ["Mug"]}').name
'tei'
>>> choose(route, b'{"query": "cup", "documents": ["Mug"]}').name
'vllm'
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from pertinent.serving.dialects import DIALECTS, Dialect
from pertinent.serving.messages import (
    Answer,
    ErrorShape,
    Request,
    WireError,
    error_body,
    error_status,
    log_odds,
    rank_order,
)
from pertinent.serving.reading import read

__all__ = [
    "DIALECTS",
    "ROUTES",
    "Answer",
    "Dialect",
    "ErrorShape",
    "Request",
    "Route",
    "WireError",
    "choose",
    "clean_path",
    "error_body",
    "error_status",
    "find_route",
    "log_odds",
    "nim_health",
    "parse",
    "rank_order",
    "render_models",
    "tei_headers",
    "tei_info",
]

Serves = Literal[
    "score", "models", "info", "health", "metrics", "nim_live", "nim_ready", "oip_live", "oip_ready", "model_ready"
]


@dataclass(frozen=True)
class Route:
    """One method and path. ``dialects`` are those that the body can choose from.

    ``path`` is a template (``{model:path}``). ``errors`` is the shape of errors where the body has
    not chosen, or could not be read.
    """

    method: str
    path: str
    serves: Serves
    dialects: tuple[str, ...] = ()
    errors: ErrorShape = "detail"


def _post(path: str, *dialects: str) -> Route:
    errors: ErrorShape = DIALECTS[dialects[0]].errors
    return Route("POST", path, "score", dialects, errors)


_HOSTED = "/v1/retrieval/{model:path}/reranking"
_PLAIN: tuple[Route, ...] = (
    _post("/v2/rerank", "cohere"),
    _post("/v1/rerank", "union", "voyage"),
    _post("/rerank", "tei", "vllm"),
    _post("/v1/reranking", "mixedbread"),
    _post("/v1/ranking", "nim"),
    _post(_HOSTED, "nim"),
    _post("/score", "vllm-score"),
    _post("/v1/score", "vllm-score"),
    _post("/predict", "tei-predict"),
)
# Under a prefix only that dialect answers, whatever the body holds.
_MOUNTED: dict[str, tuple[Route, ...]] = {
    "cohere": (_post("/v2/rerank", "cohere"), _post("/v1/rerank", "cohere-v1")),
    "jina": (_post("/v1/rerank", "jina"), _post("/rerank", "jina")),
    "voyage": (_post("/v1/rerank", "voyage"), _post("/rerank", "voyage")),
    "tei": (_post("/rerank", "tei"), _post("/predict", "tei-predict")),
    "vllm": (
        *(_post(path, "vllm") for path in ("/rerank", "/v1/rerank", "/v2/rerank")),
        *(_post(path, "vllm-score") for path in ("/score", "/v1/score")),
    ),
    "infinity": (_post("/rerank", "infinity"), _post("/v1/rerank", "infinity")),
    "nim": (_post("/v1/ranking", "nim"), _post(_HOSTED, "nim")),
    "mixedbread": (_post("/v1/reranking", "mixedbread"),),
}


def _around(prefix: str, errors: ErrorShape) -> tuple[Route, ...]:
    """The routes beside scoring that every mount has."""
    serves: tuple[tuple[str, Serves], ...] = (
        ("/v1/models", "models"),
        ("/models", "models"),
        ("/health", "health"),
        ("/ping", "health"),
        ("/info", "info"),
        ("/metrics", "metrics"),
        ("/v1/health/live", "nim_live"),
        ("/v1/health/ready", "nim_ready"),
        ("/v2/health/live", "oip_live"),
        ("/v2/health/ready", "oip_ready"),
        ("/v2/models/{model:path}/ready", "model_ready"),
    )
    return tuple(
        Route("GET", prefix + path, kind, (), "tei" if kind in ("health", "info") else errors) for path, kind in serves
    )


def _mount(name: str, routes: tuple[Route, ...]) -> tuple[Route, ...]:
    moved = tuple(Route(r.method, f"/{name}{r.path}", r.serves, r.dialects, r.errors) for r in routes)
    return moved + _around(f"/{name}", routes[0].errors)


ROUTES: tuple[Route, ...] = (
    *_PLAIN,
    *_around("", "detail"),
    *(route for name, routes in _MOUNTED.items() for route in _mount(name, routes)),
    Route("GET", "/tei", "health", (), "tei"),
)


_EXACT = {(route.method, route.path): route for route in ROUTES if "{" not in route.path}
_TEMPLATES = [(route, re.compile(re.sub(r"\{\w+:path\}", "(.+)", route.path))) for route in ROUTES if "{" in route.path]


def find_route(method: str, path: str) -> Route | None:
    """The route of a method and a clean path, None where there is none.

    >>> route = find_route("POST", "/nim/v1/retrieval/nvidia/shop/reranking")
    >>> route.path if route else None
    '/nim/v1/retrieval/{model:path}/reranking'
    """
    exact = _EXACT.get((method, path))
    if exact is not None:
        return exact
    return next((route for route, form in _TEMPLATES if route.method == method and form.fullmatch(path)), None)


class _Marks(msgspec.Struct):
    """The fields by which bodies on one path differ, unread."""

    texts: msgspec.Raw = msgspec.Raw()
    documents: msgspec.Raw = msgspec.Raw()
    top_k: msgspec.Raw = msgspec.Raw()
    truncation: msgspec.Raw = msgspec.Raw()


def choose(route: Route, body: bytes) -> Dialect:
    """The dialect of a body on a route; WireError where it speaks none, or two at once."""
    if len(route.dialects) == 1:
        return DIALECTS[route.dialects[0]]
    marks, _ = read(body, _Marks)
    if route.dialects == ("union", "voyage"):
        return DIALECTS["voyage" if _set(marks.top_k) or _set(marks.truncation) else "union"]
    if _set(marks.texts) == _set(marks.documents):
        have = "both texts and documents" if _set(marks.texts) else "neither texts nor documents"
        message = f"the body has {have}: give texts for an array of results, documents for an object"
        raise WireError(422, message, "invalid_field", "texts")
    return DIALECTS["tei" if _set(marks.texts) else "vllm"]


def parse(route: Route, body: bytes, path: str) -> Request:
    """A body as a Request; what is wrong with it is a WireError that knows its shape.

    >>> route = next(route for route in ROUTES if route.path == "/v2/rerank")
    >>> parse(route, b'{"query": "cup", "documents": ["Mug"], "top_n": 1.0}', "/v2/rerank").top
    1
    """
    shape = route.errors
    try:
        dialect = choose(route, body)
        shape = dialect.errors
        return dialect.parse(body, path)
    except WireError as error:
        error.shape = shape
        raise


def _set(value: msgspec.Raw) -> bool:
    return bytes(value) not in (b"", b"null")


def clean_path(path: str) -> str:
    """A path without doubled or trailing slashes, so that no base URL needs a redirect.

    >>> clean_path("//rerank/"), clean_path("/")
    ('/rerank', '/')
    """
    return re.sub("/{2,}", "/", path).rstrip("/") or "/"


def render_models(names: Sequence[str], created: int = 0) -> bytes:
    """The models that are served, as OpenAI lists them.

    >>> render_models(["shop"])
    b'{"object":"list","data":[{"id":"shop","object":"model","created":0,"owned_by":"pertinent"}]}'
    """
    data = [{"id": name, "object": "model", "created": created, "owned_by": "pertinent"} for name in names]
    return msgspec.json.encode({"object": "list", "data": data})


def nim_health(status: Literal["live", "ready", "not ready"], message: str) -> bytes:
    """A health answer as NVIDIA NIM gives it.

    >>> nim_health("live", "Service is live.")
    b'{"object":"health.response","message":"Service is live.","status":"live"}'
    """
    return msgspec.json.encode({"object": "health.response", "message": message, "status": status})


def tei_info(
    *,
    model: str,
    version: str,
    max_input_length: int,
    max_batch_tokens: int,
    max_documents: int,
    max_concurrent_requests: int,
    threads: int,
    dtype: str = "float32",
    labels: Sequence[str] = ("LABEL_0",),
    package_version: str = "",
) -> bytes:
    """What ``GET /info`` says, with every field that clients of Text Embeddings Inference read."""
    id2label = {str(row): label for row, label in enumerate(labels)}
    kinds: dict[str, Any] = {"id2label": id2label, "label2id": {label: row for row, label in enumerate(labels)}}
    info = {
        "model_id": model,
        "model_sha": version or None,
        "model_dtype": dtype,
        "served_model_name": model,
        "model_type": {"reranker" if len(labels) == 1 else "classifier": kinds},
        "max_concurrent_requests": max_concurrent_requests,
        "max_input_length": max_input_length,
        "max_batch_tokens": max_batch_tokens,
        "max_batch_requests": None,
        "max_client_batch_size": max_documents,
        "auto_truncate": True,
        "tokenization_workers": threads,
        "version": package_version,
        "sha": None,
        "docker_label": None,
    }
    return msgspec.json.encode(info)


def tei_headers(request: Request, answer: Answer, device: str = "cpu") -> dict[str, str]:
    """The headers that Text Embeddings Inference adds to a scoring reply; times in whole milliseconds.

    >>> answer = Answer(scores=None, order=None, tokens=9, timings={"total": 0.0123, "compute": 0.011})
    >>> headers = tei_headers(Request(dialect="tei", query="cup", documents=["Mug"]), answer)
    >>> headers["x-total-time"], headers["x-inference-time"], headers["x-compute-characters"]
    ('12', '11', '6')
    """
    times = {
        name: str(round(1000 * answer.timings.get(name, 0.0))) for name in ("total", "tokenize", "queue", "compute")
    }
    return {
        "x-compute-type": device,
        "x-compute-time": times["compute"],
        "x-compute-characters": str(request.characters()),
        "x-compute-tokens": str(answer.tokens),
        "x-total-time": times["total"],
        "x-tokenization-time": times["tokenize"],
        "x-queue-time": times["queue"],
        "x-inference-time": times["compute"],
    }
