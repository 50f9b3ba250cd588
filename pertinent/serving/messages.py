"""The nouns between the wire and the scorer: one request, one answer, one error, whatever the dialect."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

ErrorShape = Literal["detail", "tei", "openai", "infinity"]


class Request(msgspec.Struct, kw_only=True):
    """What a client asks, in one form for all dialects.

    ``query`` goes with every document, unless ``queries`` has one query for each of them. ``top``
    is how many results are wanted, None all of them. ``bad`` lists documents that are null or
    blank: they get the lowest score of the answer. ``unused`` names the settings that the client
    gave and that nothing here acts on. Of each document at most ``max_tokens`` tokens are read; of the
    requests of one client, lower priorities go first.
    """

    dialect: str
    query: str
    documents: list[str]
    queries: list[str] | None = None
    top: int | None = None
    return_documents: bool = False
    raw_documents: list[Any] | None = None  # as they came, where they were not all plain texts
    model: str | None = None
    logits: bool = False  # log odds are asked for instead of probabilities
    truncate: bool = True  # False: a text that does not fit is an error
    request_id: str | None = None
    bad: list[int] = []
    repaired: int = 0  # lone surrogate escapes that became U+FFFD
    unused: list[str] = []
    max_tokens: int | None = None
    priority: int = 0
    extra: dict[str, Any] = {}

    def pairs(self) -> list[tuple[str, str]]:
        """Every query with its document, in the order of the documents.

        >>> Request(dialect="tei", query="cup", documents=["Mug", "Pan"]).pairs()
        [('cup', 'Mug'), ('cup', 'Pan')]
        """
        queries = self.queries if self.queries is not None else [self.query] * len(self.documents)
        return list(zip(queries, self.documents, strict=True))

    def characters(self) -> int:
        """Characters of all the texts of the request."""
        return len(self.query) + sum(map(len, self.queries or ())) + sum(map(len, self.documents))


class Answer(msgspec.Struct, kw_only=True):
    """What the scorer found: probabilities in the order of the documents, and the order to show.

    ``logits`` are asked for by ``Request.logits``; without them log odds of ``scores`` are given.
    ``classes`` and ``class_scores`` are for a model with several labels (``/predict``). ``timings``
    are seconds by stage: tokenize, queue, compute, total.
    """

    scores: NDArray[np.float32]  # [n]
    order: NDArray[np.int64]  # [m], rows of scores, best first
    logits: NDArray[np.float32] | None = None  # [n]
    classes: Sequence[str] | None = None  # k labels
    class_scores: NDArray[np.float32] | None = None  # [n, k]
    truncated: int = 0  # documents that were not read to their end
    tokens: int = 0
    request_id: str = ""
    model: str = ""
    version: str = ""
    created: int = 0  # seconds since 1970
    timings: dict[str, float] = {}


class WireError(Exception):
    """A request that gets an error for an answer: HTTP status, message, a short code, the field at fault.

    ``shape`` is set where the dialect was known; ``retry_after`` is in seconds.
    """

    def __init__(
        self,
        status: int,
        message: str,
        code: str,
        param: str | None = None,
        shape: ErrorShape | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param
        self.shape, self.retry_after = shape, retry_after


_TEI_TYPES = {"empty_documents": "Empty", "backend": "Backend", "tokenizer": "Tokenizer"}
_TEI_STATUS_TYPES = {424: "Backend", 429: "Overloaded", 500: "Backend", 503: "Unhealthy", 504: "Overloaded"}
_OPENAI_TYPES = {
    401: "AuthenticationError",
    403: "PermissionDeniedError",
    404: "NotFoundError",
    422: "UnprocessableEntityError",
    429: "RateLimitError",
    503: "ServiceUnavailableError",
}


def error_status(error: WireError, shape: ErrorShape) -> int:
    """The HTTP status of an error: TEI says 424 where the others say 500.

    >>> error = WireError(500, "the model gave no number", "backend")
    >>> error_status(error, "tei"), error_status(error, "detail")
    (424, 500)
    """
    return 424 if shape == "tei" and error.code == "backend" else error.status


def error_body(error: WireError, shape: ErrorShape, request_id: str = "") -> bytes:
    """An error as JSON, in the shape that the clients of a dialect read.

    >>> error_body(WireError(422, "top_n is -1", "invalid_field", "top_n"), "detail", "r1")
    b'{"message":"top_n is -1","detail":"top_n is -1","code":"invalid_field","request_id":"r1"}'
    """
    status, message = error_status(error, shape), error.message
    if shape == "detail":
        body: dict[str, Any] = {"message": message, "detail": message, "code": error.code}
    elif shape == "tei":
        kind = _TEI_TYPES.get(error.code) or _TEI_STATUS_TYPES.get(status, "Validation")
        body = {"error": message, "error_type": kind, "message": message}
    else:
        kind = _OPENAI_TYPES.get(status, "InternalServerError" if status >= 500 else "BadRequestError")
        body = {"error": {"message": message, "type": kind, "param": error.param, "code": status}}
        if shape == "infinity" and status == 422:
            place = ["body", *([error.param] if error.param else [])]
            body["detail"] = [{"loc": place, "msg": message, "type": error.code}]
    body["request_id"] = request_id
    return msgspec.json.encode(body)


def rank_order(scores: NDArray[np.float32], top: int | None = None) -> NDArray[np.int64]:
    """Rows by score, best first, equal scores by row, int64 ``[min(n, top)]``.

    >>> rank_order(np.array([0.2, 0.9, 0.2], dtype=np.float32)).tolist()
    [1, 0, 2]
    """
    order = np.argsort(-scores, kind="stable").astype(np.int64)
    return order if top is None else order[:top]


def log_odds(scores: NDArray[np.float32]) -> NDArray[np.float32]:
    """Log odds of probabilities, finite at 0 and 1, float32 ``[n]``.

    >>> log_odds(np.array([0.5, 1.0], dtype=np.float32)).astype(int).tolist()
    [0, 16]
    """
    inside = np.clip(scores.astype(np.float64), 2.0**-24, 1 - 2.0**-24)
    return np.log(inside / (1 - inside)).astype(np.float32)
