"""How much memory a process holds, and what it does when that is too much.

First it takes on nothing new (429) until what it has taken on is done and what was freed has been given back. Where
that does not help it leaves, and whoever started it starts another one: slower is better than ended by the system in
the middle of everything.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import sys
from collections.abc import Iterator
from typing import Final

from pertinent.errors import ConfigError
from pertinent.serving.queue import Refused

# What the process ends with where it leaves for its size: EX_TEMPFAIL of sysexits.h, so that services are restarted.
EXIT_CODE: Final = 75
# Of a body that is read: its texts as Python has them, the work and the answer.
_TIMES_BODY = 4
# Shorter bodies are not worth a look at the size of the process.
_LARGE_BODY = 2**18
_RETRY_SECONDS = 1.0
# The file that tells the size, and the process that opened it: a process without free descriptors still knows its size.
_statm: tuple[int, int] | None = None
_PAGE = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4_096


def own_bytes() -> int | None:
    """Memory of this process alone, without the files that it maps; None where the system does not tell."""
    global _statm
    try:
        if _statm is None or _statm[0] != os.getpid():
            _statm = os.getpid(), os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)
        _, resident, shared, *_ = os.pread(_statm[1], 256, 0).split()
    except OSError:
        return None
    return (int(resident) - int(shared)) * _PAGE


def give_back() -> None:
    """Free what nobody needs, and return it to the system."""
    gc.collect()
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # another C library
            ctypes.CDLL(None).malloc_trim(0)


def check_start(limit_mb: int | None) -> None:
    """Raises ConfigError where a process that has just opened its models is at its limit, or cannot know its size."""
    if limit_mb is None:
        return
    own = own_bytes()
    if own is None:
        raise ConfigError("worker_memory_mb: this system does not tell what memory a process has; leave it out")
    if own >= limit_mb * 2**20:
        raise ConfigError(
            f"worker_memory_mb is {limit_mb}, and a process with its models takes {own // 2**20} MB before the first "
            "request; give some hundred more than that"
        )


class Memory:
    """Room for requests under a limit of memory, None for no limit."""

    def __init__(self, limit_mb: int | None) -> None:
        self.limit = None if limit_mb is None else limit_mb * 2**20
        self.full = False
        self._coming = 0  # bytes of large bodies that are being read

    @property
    def exceeded(self) -> bool:
        """Whether the process is above its limit now."""
        return self.limit is not None and (own_bytes() or 0) > self.limit

    def check(self, size: int) -> None:
        """Raises Refused where a request with a body of so many bytes had better not come."""
        if self.limit is None:
            return
        if self.full:
            raise Refused("memory", "this server has no more memory now; come again later", _RETRY_SECONDS)
        if size < _LARGE_BODY:
            return
        if (own_bytes() or 0) + _TIMES_BODY * (self._coming + size) > self.limit:
            raise Refused(
                "memory", "this server has no memory for a body as large now; come again later", _RETRY_SECONDS
            )

    @contextlib.contextmanager
    def coming(self, size: int) -> Iterator[None]:
        """A block in which a body of so many bytes is read."""
        size = size if self.limit is not None and size >= _LARGE_BODY else 0
        self._coming += size
        try:
            yield
        finally:
            self._coming -= size


def most_bytes(length: bytes, packed: bool, most: int) -> int:
    """How long a body may be in memory by its headers: as long as any may be, where it is packed or has no length.

    >>> most_bytes(b"100", False, 1_000), most_bytes(b"100", True, 1_000), most_bytes(b"", False, 1_000)
    (100, 1000, 1000)
    """
    return int(length) if length.isdigit() and len(length) < 16 and not packed else most
