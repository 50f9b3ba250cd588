"""What a client may send: how much, how fast, and in which encodings.

Bodies are counted while they come, and again while they are unpacked, so that neither a lying length nor a
few kilobytes of compressed zeros take more memory than the limit.
"""

from __future__ import annotations

import asyncio
import io
import re
import zlib
from collections.abc import Awaitable, Callable, Iterable, Iterator, MutableMapping
from typing import Any

import zstandard
from pydantic import Field

from pertinent.config import Config
from pertinent.serving.messages import Request, WireError

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Headers = list[tuple[bytes, bytes]]

_STEP = 65_536
_FADING = 0.95
# Bodies differ: of the documents that a new one would have by the others' size, so many are counted on.
_SURE = 0.5
# What RFC 8878 asks of every decoder; larger windows are refused, as they take that much memory each.
_MAX_WINDOW = 2**23
_JSON = re.compile(r"application/(?:[\w.+-]+\+)?json", re.ASCII)
_ENCODINGS = ("gzip", "zstd")


class Limits(Config):
    """How much a request may hold and how long it may take to arrive; sizes in bytes, times in seconds.

    ``body_bytes`` holds for the body as sent and as unpacked.
    """

    body_bytes: int = Field(32 * 2**20, ge=1)
    documents: int = Field(10_000, ge=1)
    characters: int = Field(50_000_000, ge=1)
    header_bytes: int = Field(16_384, ge=256)
    headers: int = Field(100, ge=1)
    url_bytes: int = Field(8_192, ge=64)
    header_seconds: float = Field(10.0, gt=0)
    body_seconds: float = Field(10.0, gt=0)
    write_seconds: float = Field(30.0, gt=0)
    idle_seconds: float = Field(75.0, gt=0)
    connections: int = Field(4_096, ge=1)


class Sizes:
    """How long the bodies of a route are by document, to know of a new one how many it has before it is read."""

    def __init__(self) -> None:
        self._bytes: dict[str, float] = {}  # by route, of a document; the past fades

    def note(self, route: str, size: int, documents: int) -> None:
        """A body was so long and had so many documents."""
        if documents:
            before = self._bytes.get(route, size / documents)
            self._bytes[route] = _FADING * before + (1 - _FADING) * size / documents

    def least(self, route: str, length: bytes) -> int:
        """How many documents a body of a stated length surely has; 0 where that is not known or it is soon read.

        >>> sizes = Sizes()
        >>> sizes.note("/rerank", 5_000, 50)
        >>> sizes.least("/rerank", b"200000"), sizes.least("/rerank", b"900"), sizes.least("/score", b"200000")
        (1000, 0, 0)
        """
        size = int(length) if length.isdigit() and len(length) < 16 else 0
        known = self._bytes.get(route)
        return int(size / known * _SURE) if known and size > _STEP else 0


class ClientGone(Exception):
    """The client closed the connection; nobody reads an answer."""


def check_head(scope: MutableMapping[str, Any], limits: Limits) -> None:
    """Raises WireError for a request line or headers beyond the limits, or of two minds about the body."""
    headers: Headers = scope["headers"]
    url = len(scope.get("raw_path") or b"") + len(scope.get("query_string") or b"")
    if url > limits.url_bytes:
        raise WireError(414, f"the URL has {url} bytes; at most {limits.url_bytes} are read", "url_too_long")
    size = sum(len(name) + len(value) + 4 for name, value in headers)
    if size > limits.header_bytes or len(headers) > limits.headers:
        message = (
            f"{len(headers)} headers of {size} bytes; at most {limits.headers} of {limits.header_bytes} bytes are read"
        )
        raise WireError(431, message, "headers_too_large")
    lengths = [value for name, value in headers if name == b"content-length"]
    chunked = any(name == b"transfer-encoding" for name, _ in headers)
    if len(lengths) > 1 or (lengths and chunked):
        raise WireError(400, "the length of the body is given twice; give it once", "bad_request")


def check_media(headers: Headers) -> str | None:
    """The encoding of the body, None for a plain one. Raises WireError unless it is JSON in UTF-8.

    >>> check_media([(b"content-type", b"application/json; charset=utf-8"), (b"content-encoding", b"gzip")])
    'gzip'
    """
    media, _, parameters = _header(headers, b"content-type").partition(";")
    if not _JSON.fullmatch(media.strip().lower()):
        shown = media.strip()[:60] or "missing"
        raise WireError(415, f"the content type is {shown}; send application/json", "unsupported_media_type")
    charset = re.search(r"charset\s*=\s*\"?([\w-]+)", parameters.lower())
    if charset and charset[1] not in ("utf-8", "utf8", "us-ascii"):
        raise WireError(415, f"the charset is {charset[1][:40]}; send UTF-8", "unsupported_media_type")
    encoding = _header(headers, b"content-encoding").strip().lower()
    if encoding in ("", "identity"):
        return None
    if encoding == "x-gzip":
        return "gzip"
    if encoding not in _ENCODINGS:
        raise WireError(
            415,
            f"the content encoding is {encoding[:40]!r}; send one of {', '.join(_ENCODINGS)}, or none",
            "unsupported_media_type",
        )
    return encoding


async def read_body(receive: Receive, headers: Headers, limits: Limits) -> bytes:
    """The whole body, unpacked. Raises WireError for one too large, too slow or broken, ClientGone."""
    encoding = check_media(headers)
    length = _header(headers, b"content-length")
    if length and (not length.isdigit() or int(length[:20]) > limits.body_bytes):
        raise _too_large(limits)
    parts: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(limits.body_seconds):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientGone
                part = message.get("body", b"")
                size += len(part)
                if size > limits.body_bytes:
                    raise _too_large(limits)
                parts.append(part)
                if not message.get("more_body", False):
                    break
    except TimeoutError:
        message_ = f"the body did not come within {limits.body_seconds:g} s"
        raise WireError(408, message_, "body_too_slow") from None
    body = b"".join(parts)
    if encoding is None:
        return body
    # Unpacking to the limit takes a tenth of a second, too long for the event loop.
    return await asyncio.to_thread(unpack, body, encoding, limits)


def unpack(body: bytes, encoding: str, limits: Limits) -> bytes:
    """A compressed body unpacked, at most ``body_bytes`` of it held. Raises WireError.

    >>> unpack(zlib.compress(b"{}", wbits=31), "gzip", Limits())
    b'{}'
    """
    parts, size = [], 0
    try:
        for part in _gunzip(body) if encoding == "gzip" else _unzstd(body):
            size += len(part)
            if size > limits.body_bytes:
                raise _too_large(limits)
            parts.append(part)
    except (zlib.error, zstandard.ZstdError, EOFError) as error:
        raise WireError(400, f"the body is not valid {encoding}: {error}", "malformed_body") from None
    return b"".join(parts)


def check_request(request: Request, limits: Limits) -> None:
    """Raises WireError for more documents or characters than are read."""
    check_documents(len(request.documents), limits, "documents")
    characters = request.characters()
    if characters > limits.characters:
        raise WireError(
            413, f"{characters} characters; at most {limits.characters} are read in one request", "too_many_characters"
        )


def check_documents(count: int, limits: Limits, field: str) -> None:
    """Raises WireError for more documents than are read.

    >>> check_documents(10, Limits(documents=10), "documents")
    """
    if count > limits.documents:
        raise WireError(
            413, f"{count} {field}; at most {limits.documents} are read in one request", "too_many_documents", field
        )


def _header(headers: Iterable[tuple[bytes, bytes]], name: bytes) -> str:
    return ", ".join(value.decode("latin-1") for key, value in headers if key == name)


def _too_large(limits: Limits) -> WireError:
    return WireError(413, f"the body has more than {limits.body_bytes} bytes; send less at once", "body_too_large")


def _gunzip(body: bytes) -> Iterator[bytes]:
    while body:
        unpacker = zlib.decompressobj(wbits=31)
        rest = body
        while not unpacker.eof:
            part = unpacker.decompress(rest, _STEP)
            rest = unpacker.unconsumed_tail
            if not part and not rest and not unpacker.eof:
                raise EOFError("it is cut short")
            yield part
        body = unpacker.unused_data


def _unzstd(body: bytes) -> Iterator[bytes]:
    # One-shot unpacking would believe the size that the frame states.
    unpacker = zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW)
    with unpacker.stream_reader(io.BytesIO(body), read_across_frames=True) as reader:
        while part := reader.read(_STEP):
            yield part
