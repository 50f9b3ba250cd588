"""The HTTP/1.1 connection: uvicorn's over h11, with limits on how long a client may take.

A head that comes too slowly, is too large or could be read in two ways never reaches the application; a
client that does not read its answer, or sends on after it, is cut off.
"""

from __future__ import annotations

import asyncio
import re
import sys
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import STATUS_PHRASES, H11Protocol

from pertinent.serving.limits import Limits
from pertinent.serving.messages import WireError, error_body

# A line feed of its own, and a header folded over two lines: proxies read these differently.
_AMBIGUOUS = re.compile(rb"(?<!\r)\n|\r\n[ \t]|^[\r\n]*[^\r\n]*\r(?!\n)")
_VERSION = re.compile(rb"[^\r\n]* HTTP/1\.[01]\r\n")
_LENGTHS = re.compile(rb"\r\ncontent-length\s*:", re.IGNORECASE)
_HEAD_END = re.compile(rb"\r\n\r\n|\n\n|\n\r\n")
# How long a request goes on being read after its answer, so that the client gets to see it.
_LINGER_SECONDS = 2.0
# How long a connection may still ask when the server leaves: its request may be on the way already.
_GRACE_SECONDS = 1.0


def clean_head(head: bytes, complete: bool) -> bool:
    """Whether the head of a request, or the part that has come, can be read in one way only.

    >>> clean_head(b"GET / HTTP/1.1\\r\\nhost: x\\r\\n\\r\\n", complete=True)
    True
    >>> clean_head(b"GET / HTTP/1.1\\nhost: x\\n\\n", complete=True)
    False
    """
    if _AMBIGUOUS.search(head[:-1]):
        return False
    return not complete or (_VERSION.match(head.lstrip(b"\r\n")) is not None and len(_LENGTHS.findall(head)) < 2)


class Protocol(H11Protocol):
    """One connection. The limits are those of the application that it serves."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._limits: Limits = getattr(self.app, "limits", None) or Limits()
        self._idle: dict[Protocol, None] = getattr(self.app, "idle", {})
        self._head = bytearray()
        self._head_timer: asyncio.TimerHandle | None = None
        self._timers: list[asyncio.TimerHandle] = []
        self._leaving = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client has connected; beyond the cap the longest idle one has to go, or this one where none is."""
        super().connection_made(transport)
        if len(self.connections) > self._limits.connections and not self._is_admin() and not self._close_oldest():
            self._refuse(503, "too many connections; come again later", "overloaded")
            return
        self._idle[self] = None
        self._await_head()
        if getattr(self.app, "closing", False):  # accepted just before the server stopped to listen
            self.shutdown()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone."""
        self._idle.pop(self, None)
        self._cancel_timers()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Bytes have come."""
        if self._idle.pop(self, self) is None:
            # What has begun to ask counts as idle until its head is whole, after those that say nothing.
            self._idle[self] = None
        if self.conn.their_state is h11.IDLE:
            if self._head_timer is None:
                self._await_head()
            self._head += data
            end = _HEAD_END.search(self._head)
            head = bytes(self._head[: end.end() if end else None])
            if not clean_head(head, end is not None):
                self._refuse(400, "the head of the request is not clean HTTP/1.1", "bad_request")
                return
            if len(head) > self._limits.header_bytes + self._limits.url_bytes:
                self._refuse(431, "the head of the request is too large", "headers_too_large")
                return
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._idle.pop(self, None)
            self._head.clear()
            self._stop_head_timer()
            cycle: Any = self.cycle
            if self._leaving and cycle is not None:
                cycle.keep_alive = False

    def shutdown(self) -> None:
        """The server leaves: what is asked now is answered, and what does not ask soon is closed."""
        if self._leaving:
            return
        self._leaving = True
        cycle: Any = self.cycle
        if cycle is None or cycle.response_complete:
            self._later(_GRACE_SECONDS, super().shutdown)
        else:
            super().shutdown()

    def send_400_response(self, msg: str) -> None:
        """Answer bytes that h11 could not read."""
        error = sys.exc_info()[1]
        status = int(getattr(error, "error_status_hint", 400) or 400)
        # A transfer encoding that nobody has is the client's fault too, not ours (h11 would say 501).
        self._refuse(status if status < 500 else 400, "this is not a request that HTTP/1.1 allows", "bad_request")

    def on_response_complete(self) -> None:
        """The answer is written, as far as this side goes."""
        unread = self.conn.their_state is h11.SEND_BODY
        super().on_response_complete()
        if self.conn.their_state is h11.IDLE and not self.transport.is_closing():
            self._idle[self] = None
        if self.transport.get_write_buffer_size():
            self._later(self._limits.write_seconds, self._abort_if_unwritten)
        if unread:
            self._later(_LINGER_SECONDS, self._abort_if_same, self.cycle)

    def _is_admin(self) -> bool:
        """Whether this came to the admin port, which stays open when the other is full."""
        port = getattr(self.app, "admin_port", None)
        return port is not None and self.server is not None and self.server[1] == port

    def _close_oldest(self) -> bool:
        while self._idle:
            oldest = next(iter(self._idle))
            del self._idle[oldest]
            if not oldest.transport.is_closing():
                oldest.transport.close()
                return True
        return False

    def _await_head(self) -> None:
        self._head_timer = self.loop.call_later(self._limits.header_seconds, self._head_is_late)

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _head_is_late(self) -> None:
        self._head_timer = None
        if self.transport.is_closing():
            return
        if self._head:
            message = f"the head of the request did not come within {self._limits.header_seconds:g} s"
            self._refuse(408, message, "head_too_slow")
        else:
            self.transport.close()

    def _abort_if_unwritten(self) -> None:
        if self.transport.get_write_buffer_size():
            self.transport.abort()

    def _abort_if_same(self, cycle: object) -> None:
        if self.cycle is cycle and self.conn.their_state is h11.SEND_BODY:
            self.transport.abort()

    def _later(self, seconds: float, call: Any, *arguments: Any) -> None:
        now = self.loop.time()
        self._timers = [timer for timer in self._timers if not timer.cancelled() and timer.when() > now]
        self._timers.append(self.loop.call_later(seconds, call, *arguments))

    def _cancel_timers(self) -> None:
        self._stop_head_timer()
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()

    def _refuse(self, status: int, message: str, code: str) -> None:
        self._stop_head_timer()
        cycle: Any = self.cycle
        if cycle is None or cycle.response_complete or not cycle.response_started:
            body = error_body(WireError(status, message, code), "detail")
            head = (
                f"HTTP/1.1 {status} {STATUS_PHRASES.get(status, b'').decode()}\r\n"
                f"content-type: application/json\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
            )
            self.transport.write(head.encode("ascii") + body)
        self.transport.close()
