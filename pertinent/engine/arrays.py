"""Flat arrays in one safetensors file: written piece by piece in constant memory, read through a memory map."""

from __future__ import annotations

import json
import os
import shutil
import struct
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from pertinent.errors import ArtifactError

DTYPES = {"I64": "<i8", "U64": "<u8", "F32": "<f4", "I32": "<i4", "F16": "<f2", "I8": "<i1", "U8": "<u1"}
_MAX_HEADER = 2**20


@dataclass(frozen=True, slots=True)
class Ragged:
    """Rows of different lengths laid end to end: row i is ``values[offsets[i]:offsets[i + 1]]``."""

    values: NDArray[Any]  # [sum of lengths, ...]
    offsets: NDArray[np.int64]  # [n + 1]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Values in each row, ``[n]``."""
        return np.diff(self.offsets)

    @classmethod
    def of_bytes(cls, texts: Sequence[bytes]) -> Ragged:
        """One row of bytes for each text.

        >>> Ragged.of_bytes([b"ab", b"", b"c"]).lengths.tolist()
        [2, 0, 1]
        """
        offsets = np.cumsum([0, *map(len, texts)], dtype=np.int64)
        return cls(np.frombuffer(b"".join(texts), dtype=np.uint8), offsets)

    def slice(self, start: int, stop: int) -> Ragged:
        """Rows ``start`` to ``stop``; the values are not copied."""
        offsets = self.offsets[start : stop + 1]
        return Ragged(self.values[offsets[0] : offsets[-1]], offsets - offsets[0])

    def take(self, rows: NDArray[np.int64]) -> Ragged:
        """The given rows, in the given order, copied."""
        starts = self.offsets[rows]
        lengths = self.offsets[rows + 1] - starts
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        return Ragged(self.values[np.repeat(starts - offsets[:-1], lengths) + np.arange(offsets[-1])], offsets)

    @staticmethod
    def joined(parts: Sequence[Ragged]) -> Ragged:
        """All rows of the parts, one part after the other."""
        offsets = np.cumsum([0, *np.concatenate([part.lengths for part in parts])], dtype=np.int64)
        return Ragged(np.concatenate([part.values for part in parts]), offsets)


class ArrayWriter:
    """Arrays that grow in files of their own; they become one file when the block of ``write_arrays`` is left."""

    def __init__(self, files: Mapping[str, IO[bytes]], kinds: Mapping[str, str]) -> None:
        self._files, self._kinds = files, kinds
        self._ends = dict.fromkeys(files, 0)

    def add(self, name: str, values: NDArray[Any]) -> None:
        """Append values to an array; they are cast to its type."""
        self._files[name].write(np.ascontiguousarray(values, dtype=DTYPES[self._kinds[name]]).data)

    def add_bytes(self, name: str, content: bytes) -> None:
        """Append bytes as they are."""
        self._files[name].write(content)

    def add_lengths(self, name: str, lengths: NDArray[np.int64]) -> None:
        """Append to an array of offsets the ends of rows of these lengths; the first call writes the 0 before."""
        if not self._files[name].tell():
            self.add(name, np.zeros(1, dtype=np.int64))
        if len(lengths):
            ends = self._ends[name] + np.cumsum(lengths)
            self.add(name, ends)
            self._ends[name] = int(ends[-1])

    def read_bytes(self, name: str, start: int, end: int) -> bytes:
        """What was written to an array, as bytes from ``start`` to ``end``."""
        file = self._files[name]
        place = file.tell()
        file.seek(start)
        content = file.read(end - start)
        file.seek(place)
        return content


class MappedFile:
    """A file that arrays are mapped from, and whether it still is as it was then.

    Whoever reads a page of a map beyond the end of a file that was cut is ended by the system (SIGBUS), and Python
    cannot catch that. So what lives long asks ``cut`` just before it reads; that takes two microseconds.
    """

    __slots__ = ("__weakref__", "_descriptor", "_length", "opened", "path")

    def __init__(self, path: Path, file: IO[bytes]) -> None:
        self.path = path
        # Of the file that is mapped, whatever stands at the path later.
        self._descriptor = os.dup(file.fileno())
        weakref.finalize(self, os.close, self._descriptor)
        #: ``state`` when the file was mapped, before anything of it was checked.
        self.opened = self.state
        self._length = self.opened[0]

    @property
    def cut(self) -> bool:
        """Whether pages of the map have no file behind them any more."""
        try:
            return os.fstat(self._descriptor).st_size < self._length
        except OSError:  # a network mount has lost it
            return True

    @property
    def state(self) -> tuple[int, int]:
        """Size and time of the last write: others, where somebody has written into the file."""
        try:
            found = os.fstat(self._descriptor)
        except OSError:
            return (-1, -1)
        return found.st_size, found.st_mtime_ns


class MappedArrays(dict[str, NDArray[Any]]):
    """Arrays by name, memory-mapped from one ``file``."""

    def __init__(self, arrays: Mapping[str, NDArray[Any]], file: MappedFile) -> None:
        super().__init__(arrays)
        self.file = file


@contextmanager
def write_arrays(path: Path, kinds: Mapping[str, str]) -> Iterator[ArrayWriter]:
    """A writer of the arrays ``kinds`` names, each with its type, in this order; give the widest types first.

    Then every array starts at a multiple of its own item size. The file is there when the block is left.
    """
    parts = {name: path.with_name(f".{path.name}.{name}") for name in kinds}
    try:
        with ExitStack() as stack:
            files: dict[str, IO[bytes]] = {name: stack.enter_context(open(part, "w+b")) for name, part in parts.items()}
            yield ArrayWriter(files, kinds)
            _join(files, kinds, path)
    finally:
        for part in parts.values():
            part.unlink(missing_ok=True)


def map_arrays(path: Path, kinds: Mapping[str, str], what: str, fix: str) -> MappedArrays:
    """The arrays of a safetensors file as read-only memory maps.

    Raises ArtifactError for a damaged file: "PATH: not a readable ``what`` (...); ``fix``".
    """
    try:
        with open(path, "rb") as file:
            mapped = MappedFile(path, file)
            (header_size,) = struct.unpack("<Q", file.read(8))
            if header_size > min(_MAX_HEADER, mapped.opened[0] - 8):
                raise ValueError("its header is cut")
            header = json.loads(file.read(header_size))
            payload = np.memmap(file, dtype=np.uint8, mode="r")
        start = 8 + header_size
        arrays: dict[str, NDArray[Any]] = {}
        for name, kind in kinds.items():
            entry = header[name]
            first, last = (start + int(offset) for offset in entry["data_offsets"])
            width = np.dtype(DTYPES[kind]).itemsize
            if entry["dtype"] != kind or not start <= first <= last <= len(payload) or (last - first) % width:
                raise ValueError(f"array {name} does not fit the file")
            arrays[name] = np.asarray(payload[first:last]).view(DTYPES[kind])
    except KeyError as error:
        raise ArtifactError(f"{path}: not a readable {what} (it has no array {error}); {fix}") from None
    except (OSError, ValueError, TypeError, struct.error) as error:
        raise ArtifactError(f"{path}: not a readable {what} ({error}); {fix}") from None
    return MappedArrays(arrays, mapped)


def offsets_fit(offsets: NDArray[np.int64], count: int, end: int) -> bool:
    """Whether offsets are those of ``count`` rows that end at ``end``.

    >>> offsets_fit(np.array([0, 2, 2]), 2, 2), offsets_fit(np.array([0, 3, 2]), 2, 2)
    (True, False)
    """
    fits = len(offsets) == count + 1 and int(offsets[0]) == 0 and int(offsets[-1]) == end
    return fits and bool((offsets[1:] >= offsets[:-1]).all())


def _join(files: Mapping[str, IO[bytes]], kinds: Mapping[str, str], path: Path) -> None:
    header: dict[str, Any] = {}
    place = 0
    for name, kind in kinds.items():
        size = files[name].seek(0, 2)
        header[name] = {
            "dtype": kind,
            "shape": [size // np.dtype(DTYPES[kind]).itemsize],
            "data_offsets": [place, place + size],
        }
        place += size
    text = json.dumps(header).encode("ascii")
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for part in files.values():
            part.seek(0)
            shutil.copyfileobj(part, file, 2**20)
