"""Plain HTTP/1.1 requests over kept connections: what the load tool and the benchmarks send with.

Small on purpose: a request is bytes made before, and reading an answer costs tens of microseconds, so that
the client is not what is measured.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from dataclasses import dataclass
from urllib.parse import urlsplit

# Longer heads and answers than any server of rerank dialects gives.
_HEAD_BYTES = 65_536
_BODY_BYTES = 256 * 2**20


class BadAnswer(Exception):
    """What came back is not an answer of HTTP/1.1."""


@dataclass(frozen=True, slots=True)
class Target:
    """Where to send: parts of a base URL. ``prefix`` is a path that every request begins with."""

    host: str
    port: int
    prefix: str
    secure: bool

    @classmethod
    def of(cls, url: str) -> Target:
        """The parts of a URL. Raises ValueError for what is not http or https.

        >>> Target.of("http://127.0.0.1:8080/cohere/")
        Target(host='127.0.0.1', port=8080, prefix='/cohere', secure=False)
        """
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{url!r} is not a URL of http or https, such as http://127.0.0.1:8080")
        secure = parts.scheme == "https"
        return cls(parts.hostname, parts.port or (443 if secure else 80), parts.path.rstrip("/"), secure)

    @property
    def authority(self) -> str:
        """Host and port as a header has them.

        >>> Target("::1", 80, "", False).authority
        '[::1]:80'
        """
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def request(self, method: str, path: str, body: bytes = b"", headers: tuple[tuple[str, str], ...] = ()) -> bytes:
        """A whole request as it goes onto the wire.

        >>> Target.of("http://a").request("GET", "/health").splitlines()[0]
        b'GET /health HTTP/1.1'
        """
        lines = [f"{method} {self.prefix}{path} HTTP/1.1", f"host: {self.authority}"]
        lines += [f"{name}: {value}" for name, value in headers]
        if method == "POST":
            lines += ["content-type: application/json", f"content-length: {len(body)}"]
        return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer: status, headers with names in lower case, body."""

    status: int
    headers: dict[str, str]
    body: bytes


class Pool:
    """Connections to one target, at most ``size`` at once; who asks while all are busy waits.

    ``resent`` counts requests that a kept connection dropped unanswered, as it was closed just then.
    """

    def __init__(self, target: Target, size: int, context: ssl.SSLContext | None = None) -> None:
        self.target = target
        self._context = context if context is not None or not target.secure else ssl.create_default_context()
        self._free: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
        self._places = asyncio.Semaphore(size)
        self.resent = 0

    async def send(self, request: bytes) -> Reply:
        """The answer to a request. Raises OSError and BadAnswer; a connection with an error is not kept."""
        async with self._places:
            return await self._send(request)

    async def close(self) -> None:
        """Close what is kept."""
        while self._free:
            _, writer = self._free.pop()
            await _closed(writer)

    async def _send(self, request: bytes) -> Reply:
        while self._free and (self._free[-1][0].at_eof() or self._free[-1][1].is_closing()):
            await _closed(self._free.pop()[1])  # the other side had left while nobody asked
        kept = bool(self._free)
        reader, writer = self._free.pop() if kept else await self._connect()
        try:
            writer.write(request)
            await writer.drain()
            try:
                head = await _head(reader)
            except (asyncio.IncompleteReadError, ConnectionError) as error:
                if not kept or (isinstance(error, asyncio.IncompleteReadError) and error.partial):
                    raise
                # The other side closed a connection that it had kept idle: that is no failure of this request.
                self.resent += 1
                await _closed(writer)
                reader, writer = await self._connect()
                writer.write(request)
                await writer.drain()
                head = await _head(reader)
            reply, keep = await _reply(reader, head)
        except asyncio.IncompleteReadError:
            await _closed(writer)
            raise ConnectionResetError("the connection was closed before the answer was whole") from None
        except BaseException:
            writer.transport.abort()
            raise
        if keep:
            self._free.append((reader, writer))
        else:
            await _closed(writer)
        return reply

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        target = self.target
        return await asyncio.open_connection(target.host, target.port, ssl=self._context, limit=_HEAD_BYTES)


async def _closed(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


async def _head(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.readuntil(b"\r\n\r\n")
    except asyncio.LimitOverrunError:
        raise BadAnswer("the head of the answer is too long") from None


def parse_head(head: bytes) -> tuple[int, dict[str, str]]:
    """Status and headers of an answer. Raises BadAnswer.

    >>> parse_head(b"HTTP/1.1 200 OK\\r\\nContent-Length: 2\\r\\n\\r\\n")
    (200, {'content-length': '2'})
    """
    first, *lines = head.decode("latin-1").rstrip("\r\n").split("\r\n")
    protocol, _, rest = first.partition(" ")
    status = rest.partition(" ")[0]
    if not protocol.startswith("HTTP/1.") or not (len(status) == 3 and status.isdecimal()):
        raise BadAnswer(f"the answer begins with {first[:60]!r}, which is not HTTP/1.1")
    headers = {}
    for line in lines:
        name, _, value = line.partition(":")
        headers[name.strip().lower()] = value.strip()
    return int(status), headers


async def _reply(reader: asyncio.StreamReader, head: bytes) -> tuple[Reply, bool]:
    status, headers = parse_head(head)
    while status == 100:
        status, headers = parse_head(await _head(reader))
    keep = headers.get("connection", "").lower() != "close"
    if headers.get("transfer-encoding", "").lower() == "chunked":
        body = await _chunks(reader)
    elif "content-length" in headers:
        length = headers["content-length"]
        if not length.isdecimal() or len(length) > 20 or int(length) > _BODY_BYTES:
            raise BadAnswer(f"the answer says it has {length[:40]} bytes")
        body = await reader.readexactly(int(length))
    elif status in (204, 304):
        body = b""
    else:
        body, keep = await reader.read(_BODY_BYTES), False
    return Reply(status, headers, body), keep


async def _chunks(reader: asyncio.StreamReader) -> bytes:
    parts: list[bytes] = []
    size = 0
    while True:
        line = (await _line(reader)).partition(b";")[0].strip()
        try:
            length = int(line, 16)
        except ValueError:
            length = -1
        if length < 0:
            raise BadAnswer(f"a chunk begins with {line[:40]!r}")
        size += length
        if size > _BODY_BYTES:
            raise BadAnswer("the answer is too long")
        if length == 0:
            while (await _line(reader)).strip():
                pass
            return b"".join(parts)
        parts.append(await reader.readexactly(length))
        await reader.readexactly(2)


async def _line(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.readline()
    except ValueError:  # what asyncio makes of a line beyond its limit
        raise BadAnswer(f"the answer has a line of more than {_HEAD_BYTES} bytes") from None
