"""Scores that replicas share in Redis or Valkey: a level of the cache that may be slow, wrong or gone.

All queries of a look-up are asked for in one MGET, which gets ``budget`` seconds; what has not come by then
is a miss. A circuit breaker stops asking after several failures in a row, and tries again after a pause
that grows. Values carry a checksum over content and key, so that whatever else comes back is a miss too.
Writing happens on a thread of its own, and is left out where that cannot keep up. Nothing here raises.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import queue
import struct
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout
from typing import Any

import numpy as np

from pertinent.engine.cache import Block
from pertinent.errors import ConfigError, need

_log = logging.getLogger(__name__)

PREFIX = b"pertinent:scores:"
_MAGIC = b"PSC1"
_CHECKSUM = 16
_READERS = 2
_WAITING_WRITES = 256
# How long the client itself waits: longer than the budget, so that a thread is free again soon after.
_SOCKET_SECONDS = 0.25


class CircuitBreaker:
    """Whether to ask a service that may be down.

    After ``failures`` in a row it says no for ``pause`` seconds, then lets one try through; each try that
    fails doubles the pause, up to ``longest``. ``clock`` gives seconds.
    """

    def __init__(
        self, failures: int, pause: float, longest: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._limit, self._first, self._longest, self._clock = failures, pause, longest, clock
        self._failed, self._pause, self._until = 0, pause, 0.0
        self._lock = threading.Lock()

    @property
    def open(self) -> bool:
        """Whether it says no now."""
        return self._failed >= self._limit and self._clock() < self._until

    def allows(self) -> bool:
        """Whether to ask now; of several askers after a pause only one is let through."""
        with self._lock:
            if self._failed < self._limit:
                return True
            now = self._clock()
            if now < self._until:
                return False
            self._until = now + self._pause
            return True

    def succeeded(self) -> None:
        """An answer came in time."""
        with self._lock:
            self._failed, self._pause = 0, self._first

    def failed(self) -> None:
        """No answer, or none in time."""
        with self._lock:
            if self._failed >= self._limit:
                self._pause = min(2 * self._pause, self._longest)
            self._failed += 1
            if self._failed >= self._limit:
                self._until = self._clock() + self._pause


class RedisScores:
    """Blocks in Redis or Valkey under ``url``, for ``seconds`` each; ``close`` it when done."""

    name = "redis"

    def __init__(
        self,
        url: str,
        seconds: int,
        budget: float,
        breaker: CircuitBreaker | None = None,
    ) -> None:
        redis = need("redis", extra="redis")
        self.seconds, self.budget = seconds, budget
        self.errors = self.rejected = self.dropped = 0
        self.breaker = breaker if breaker is not None else CircuitBreaker(failures=5, pause=1.0, longest=30.0)
        try:
            self._client: Any = redis.Redis.from_url(
                url,
                socket_timeout=_SOCKET_SECONDS,
                socket_connect_timeout=_SOCKET_SECONDS,
                retry=None,
                decode_responses=False,
            )
        except ValueError:  # what it says, and the address, may hold a part of the password
            raise ConfigError(
                "redis: the address cannot be read; give an address such as redis://host:6379/0, with special "
                "characters of a password as in %2F"
            ) from None
        self._readers = ThreadPoolExecutor(_READERS, thread_name_prefix="pertinent-redis")
        self._writes: queue.Queue[tuple[bytes, Block] | None] = queue.Queue(_WAITING_WRITES)
        self._writer = threading.Thread(target=self._write, name="pertinent-redis-writes", daemon=True)
        self._writer.start()

    def blocks(self, queries: Sequence[bytes]) -> list[Block | None]:
        """See `pertinent.engine.cache.Level`: what comes within the budget."""
        nothing: list[Block | None] = [None] * len(queries)
        if not queries or not self.breaker.allows():
            return nothing
        try:
            future: Future[list[Any]] = self._readers.submit(self._client.mget, [PREFIX + query for query in queries])
            values: Any = future.result(timeout=self.budget)
        except FutureTimeout:
            future.cancel()
            return self._failure("no answer within the budget", nothing)
        except Exception as error:  # what something else than Redis says may break its client anywhere
            return self._failure(f"{type(error).__name__}: {error}", nothing)
        if not isinstance(values, list) or len(values) != len(queries):
            return self._failure("an answer to something else", nothing)
        self.breaker.succeeded()
        found = [None if value is None else unpack(query, value) for query, value in zip(queries, values, strict=True)]
        self.rejected += sum(block is None and value is not None for block, value in zip(found, values, strict=True))
        return found

    def keep(self, query: bytes, block: Block) -> None:
        """See `pertinent.engine.cache.Level`: soon, or not at all."""
        if not len(block):
            return
        try:
            self._writes.put_nowait((query, block))
        except queue.Full:
            self.dropped += 1

    def flush(self, seconds: float = 5.0) -> bool:
        """Whether all that was to be kept has been written, or given up, within so many seconds."""
        end = time.monotonic() + seconds
        while self._writes.unfinished_tasks and time.monotonic() < end:
            time.sleep(0.002)
        return not self._writes.unfinished_tasks

    def close(self) -> None:
        """End the threads; what was not written yet is left out."""
        with contextlib.suppress(queue.Full):
            self._writes.put(None, timeout=0.5)
        self._writer.join(timeout=2.0)
        self._readers.shutdown(wait=True, cancel_futures=True)
        self._client.close()

    def _failure(self, why: str, nothing: list[Block | None]) -> list[Block | None]:
        self.errors += 1
        before = self.breaker.open
        self.breaker.failed()
        if self.breaker.open and not before:
            _log.warning("the shared cache is left alone for a while: %s", why)
        return nothing

    def _write(self) -> None:
        while (task := self._writes.get()) is not None:
            try:
                if not self.breaker.open:
                    self._merge(*task)
            except Exception as error:  # as above; the thread goes on
                self._failure(f"{type(error).__name__}: {error}", [])
            finally:
                self._writes.task_done()
        self._writes.task_done()

    def _merge(self, query: bytes, block: Block) -> None:
        """Add to what is there. Two replicas that do so at once lose the additions of one of them, no more."""
        key = PREFIX + query
        (there,) = self._client.mget([key])  # not GET: another type is no error here
        older = None if there is None else unpack(query, there)
        self._client.set(key, pack(query, block.with_older(older)), ex=self.seconds)


def pack(query: bytes, block: Block) -> bytes:
    """A block as bytes, with a checksum over them and the query digest.

    >>> empty = Block.of(np.zeros((0, 2), np.uint64), np.zeros(0, np.float32), np.zeros(0, np.bool_))
    >>> len(pack(b"query", empty))
    24
    """
    content = b"".join(
        [
            _MAGIC,
            struct.pack("<I", len(block)),
            block.heads.astype("<u8").tobytes(),
            block.checks.astype("<u8").tobytes(),
            block.logits.astype("<f4").tobytes(),
            block.truncated.astype(np.uint8).tobytes(),
        ]
    )
    return content + _checksum(query, content)


def unpack(query: bytes, value: Any) -> Block | None:
    """The block in a value for this query digest; None for anything that ``pack`` did not make for it."""
    if not isinstance(value, bytes) or len(value) < 8 + _CHECKSUM or value[:4] != _MAGIC:
        return None
    content, checksum = value[:-_CHECKSUM], value[-_CHECKSUM:]
    (count,) = struct.unpack("<I", content[4:8])
    if len(content) != 8 + 21 * count or checksum != _checksum(query, content):
        return None
    heads = np.frombuffer(content, "<u8", count, 8)
    checks = np.frombuffer(content, "<u8", count, 8 + 8 * count)
    logits = np.frombuffer(content, "<f4", count, 8 + 16 * count)
    truncated = np.frombuffer(content, np.uint8, count, 8 + 20 * count)
    if not np.isfinite(logits).all():
        return None
    return Block(heads, checks, logits, truncated.astype(np.bool_))


def _checksum(query: bytes, content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=_CHECKSUM, key=query).digest()
