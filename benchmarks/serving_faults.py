"""What goes wrong around a server while it is asked: its folders, its cache, its processes, its log, its keys.

Each fault is a coroutine that does it, waits, and leaves things as they were. Several go on at once; only what
would leave nobody to answer is kept apart: a worker is killed or stopped while another one is there.
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import importlib.util
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from serving_oracle import Catalog
from serving_process import Server
from serving_soak import BAD_CLIENTS, Client, other_version

from pertinent.artifact import open_artifact, swap, write_artifact
from pertinent.engine.index import IndexConfig, ItemIndex
from pertinent.lexicon.pairs import PairTokenizer
from pertinent.serving.access import key_digest

WEIGHTS, GOLDEN = "model.safetensors", "golden.json"
BODY_BYTES = 8_000_000  # the limit that the server is given
SETTLE = 6.0  # seconds within which every worker has noticed a change, those that were stopped too
LONGEST_STOP = 3.5
GROWN = 4.0  # seconds after which a worker is taken to answer


# --- clients beyond those of the soak ---------------------------------------------------------


def head(request: bytes, length: int, *more: bytes) -> bytes:
    """The head of a request with another length and more headers."""
    lines = [line for line in request.partition(b"\r\n\r\n")[0].split(b"\r\n") if b"content-length" not in line]
    return b"\r\n".join([*lines, b"content-length: %d" % length, *more, b"", b""])


def sends(make: Callable[[bytes, random.Random], bytes]) -> Client:
    """A client that sends what is made of a good request, and reads the answer."""

    async def client(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes, draw: random.Random
    ) -> bytes:
        writer.write(make(request, draw))
        await writer.drain()
        return await asyncio.wait_for(reader.read(1_000), 30)

    return client


async def deaf(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes, draw: random.Random
) -> bytes:
    """Asks many times and reads no answer."""
    writer.transport.pause_reading()  # type: ignore[attr-defined]
    for _ in range(5):
        writer.write(request)
    await asyncio.sleep(1 + 2 * draw.random())
    writer.transport.abort()
    return b""


BOMB = gzip.compress(b" " * (2 * BODY_BYTES), 9)
DEEP = b'{"query": "a", "documents": ' + b"[" * 200_000
CLIENTS: dict[str, Client] = {
    **BAD_CLIENTS,
    "deaf": deaf,
    "bomb": sends(lambda request, draw: head(request, len(BOMB), b"content-encoding: gzip") + BOMB),
    "deep": sends(lambda request, draw: head(request, len(DEEP)) + DEEP),
    "says more": sends(lambda request, draw: head(request, 10 ** draw.randint(8, 18)) + b"{}"),
    "says less": sends(lambda request, draw: head(request, 5, b"connection: close") + request.split(b"\r\n\r\n", 1)[1]),
    "stranger": sends(lambda request, draw: request.replace(b"Bearer ", b"Bearer no-", 1)),
}
# What they may be answered, beside 429, 503 and nothing at all.
REFUSED_WITH: dict[str, set[int]] = {
    "half": {408},
    "garbage": {400, 431},
    "bomb": {413},
    "deep": {400, 413, 422},
    "says more": {413},
    "says less": {400, 422},
    "stranger": {401},
}


# --- what is served ---------------------------------------------------------------------------


class Place:
    """A served folder, the good versions for it, and what has stood in it since when."""

    def __init__(self, folder: Path, good: dict[str, Path], bad: dict[str, Path]) -> None:
        self.folder, self.good, self.bad = folder, good, bad
        self.lock = asyncio.Lock()
        self.now = next(iter(good))
        shutil.copytree(good[self.now], folder)
        self.history: list[tuple[float, frozenset[str]]] = [(0.0, frozenset([self.now]))]  # nothing: a bad one

    def note(self, *versions: str) -> None:
        """One of these stands there from now on."""
        self.history.append((time.monotonic(), frozenset(versions)))

    async def put(self, source: Path, version: str | None) -> None:
        """Put a copy in place, in one step; None is for a bad one."""
        aside = self.folder.with_name(f".{self.folder.name}.aside")
        await asyncio.to_thread(shutil.copytree, source, aside)
        if version is None:
            self.note(self.now)  # it is the last that may have been taken
            self.note()
        else:
            self.note(self.now, version)
            self.now = version
        await asyncio.to_thread(swap, aside, self.folder)
        if version is not None:
            self.note(version)

    async def put_good(self, version: str) -> None:
        """Put a good version in place."""
        await self.put(self.good[version], version)

    def since(self, moment: float) -> frozenset[str]:
        """The good versions that stood there at any time from a moment on."""
        last = max(place for place, (start, _) in enumerate(self.history) if start <= moment)
        return frozenset().union(*(versions for _, versions in self.history[last:]))

    def bad_times(self) -> list[tuple[float, float]]:
        """When a bad one stood there."""
        ends = [start for start, _ in self.history[1:]] + [float("inf")]
        return [(start, end) for (start, versions), end in zip(self.history, ends, strict=True) if not versions]


def damaged(source: Path, folder: Path, name: str, change: Callable[[bytes], bytes]) -> Path:
    """A copy of an artifact with one file changed behind its manifest's back."""
    shutil.copytree(source, folder)
    (folder / name).write_bytes(change((folder / name).read_bytes()))
    return folder


def flipped(content: bytes) -> bytes:
    """One bit in the middle is the other."""
    middle = 3 * len(content) // 4
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


def page(content: bytes) -> bytes:
    """What a proxy gives instead of a file."""
    return b"<!doctype html><title>502 Bad Gateway</title>" + b" " * 1_000


def bad_models(model: Path, folder: Path) -> dict[str, Path]:
    """Versions that must not be taken, of a model that is never served."""
    other = other_version(model, folder / "unserved", 1.05)
    with write_artifact(folder / "golden", "model", open_artifact(other).manifest["config"]) as aside:
        for name in open_artifact(other).manifest["files"]:
            (aside / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(other / name, aside / name)
        (aside / GOLDEN).write_text(json.dumps({"pairs": [["a", "b"]], "logits": {"float32": [9.0]}}))
    return {
        "flipped": damaged(other, folder / "flipped", WEIGHTS, flipped),
        "cut": damaged(other, folder / "cut", WEIGHTS, lambda content: content[: len(content) // 2]),
        "page": damaged(other, folder / "page", WEIGHTS, page),
        "golden": folder / "golden",
    }


def bad_indexes(catalog: Catalog, pairs: PairTokenizer, folder: Path) -> dict[str, Path]:
    """Indexes that must not be taken."""
    folder.mkdir()
    name = max(open_artifact(catalog.unserved).manifest["files"].items(), key=lambda each: each[1]["bytes"])[0]
    other = PairTokenizer(
        pairs.tokenizer, pairs.config.model_copy(update={"item_length": pairs.config.item_length - 3})
    )
    first = ItemIndex.open(next(iter(catalog.generations.values())).folder)
    ItemIndex.build(first.items(range(50)), other, folder / "other", config=IndexConfig(progress=False))
    return {"flipped": damaged(catalog.unserved, folder / "flipped", name, flipped), "other": folder / "other"}


# --- the cache --------------------------------------------------------------------------------


class Redis:
    """A Redis of its own that may be killed, stopped, lied for and started again."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = int(free.getsockname()[1])
        self.folder, self.lock = folder, asyncio.Lock()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        folder.mkdir()
        self.start()

    @staticmethod
    def there() -> bool:
        """Whether server and client are installed."""
        return shutil.which("redis-server") is not None and importlib.util.find_spec("redis") is not None

    def start(self) -> None:
        """Start it, empty."""
        argv = ["redis-server", "--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
        self.process = subprocess.Popen([*argv, "--dir", str(self.folder)], stdout=subprocess.DEVNULL)

    def kill(self) -> None:
        """End it without a warning."""
        self.process.kill()
        self.process.wait()

    def client(self) -> Any:
        """A client, when it answers."""
        import redis

        found = redis.Redis(port=self.port, socket_timeout=5)
        end = time.monotonic() + 10
        while time.monotonic() < end:
            with contextlib.suppress(redis.RedisError):
                if found.ping():
                    break
            time.sleep(0.05)
        return found

    def spoil(self, draw: random.Random) -> int:
        """Put something else under every key; how many."""
        import redis

        count = 0
        with contextlib.suppress(redis.RedisError):
            client = self.client()
            keys = list(client.scan_iter(match=b"pertinent:*", count=1_000))
            values = [value for value in client.mget(keys) if value] if keys else []
            for key, value in zip(keys, values, strict=False):
                kind = draw.randrange(7)
                if kind == 6:  # not a text at all
                    client.delete(key)
                    client.rpush(key, b"a", b"b")
                    continue
                place = draw.randrange(len(value))
                client.set(
                    key,
                    (
                        draw.randbytes(len(value)),
                        value[:place],
                        value[:place] + bytes([value[place] ^ (1 << draw.randrange(8))]) + value[place + 1 :],
                        draw.choice(values),
                        value[:4] + b"\xff\xff\xff\xff" + value[8:],
                        value + value,
                    )[kind],
                )
                count += 1
        return count


LIES = (b"+OK\r\n", b"*1\r\n$9999999\r\nabc", b"$-7\r\n", b"-ERR no\r\n", b"*1\r\n$3\r\nabc\r\n", b":1\r\n")


async def lie(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer like no Redis does: nonsense, lengths without end, errors, pieces."""
    draw = random.Random()
    with contextlib.suppress(OSError, asyncio.CancelledError):
        while await reader.read(65_536):
            writer.write(draw.choice([draw.randbytes(50), *LIES]))
            await writer.drain()
    writer.close()


# --- the processes ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Death:
    """A worker that is gone: when, how long it had been there, and why."""

    moment: float
    age: float
    cause: str


class Workers:
    """The worker processes of a server, those that came and went, and those that are stopped."""

    def __init__(self, parent: int) -> None:
        self.parent = parent
        self.born: dict[int, float] = {}
        self.deaths: list[Death] = []
        self.killed: dict[int, str] = {}  # why
        self.stopped: dict[int, float] = {}
        self.stops: list[tuple[float, float]] = []
        self.hangups: list[float] = []

    def look(self) -> None:
        """Notice who came and who went."""
        now = time.monotonic()
        there = set(self._pids())
        for pid in there - set(self.born):
            self.born[pid] = now
        for pid in set(self.born) - there:
            age = now - self.born.pop(pid)
            left = any(-1 < now - start < 60 for start in self.hangups)
            young = "not started" if age < 4 * GROWN else "nobody knows"  # a bad version stood there
            cause = self.killed.pop(pid, "left" if left else young)
            self.deaths.append(Death(now, age, cause))
            self.go_on(pid)

    def _pids(self) -> list[int]:
        found = []
        with contextlib.suppress(OSError):
            for word in Path(f"/proc/{self.parent}/task/{self.parent}/children").read_text().split():
                with contextlib.suppress(OSError):
                    if b"spawn_main" in Path(f"/proc/{word}/cmdline").read_bytes():
                        found.append(int(word))
        return found

    def ready(self) -> list[int]:
        """Those that answer, the oldest first."""
        now = time.monotonic()
        grown = [pid for pid, start in self.born.items() if now - start > GROWN]
        return sorted((pid for pid in grown if pid not in self.stopped | self.killed), key=self.born.__getitem__)

    def stop(self, pid: int) -> None:
        """Let it stand still."""
        self.stopped[pid] = time.monotonic()
        os.kill(pid, signal.SIGSTOP)

    def go_on(self, pid: int) -> None:
        """Let it go on, where it is still there."""
        start = self.stopped.pop(pid, None)
        if start is not None:
            self.stops.append((start, time.monotonic()))
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    def stood_still(self, start: float, end: float) -> float:
        """The seconds of a stretch in which any of them was stopped."""
        spans = [*self.stops, *((since, end) for since in self.stopped.values())]
        return sum(max(0.0, min(end, stop) - max(start, begin)) for begin, stop in spans)


# --- the keys ---------------------------------------------------------------------------------

STEADY = "steady"  # a key that is never taken away


def write_keys(file: Path, *keys: str) -> None:
    """Write a file of keys; the steady one is always among them."""
    lines = [f"{name}={key_digest(name)}\n" for name in dict.fromkeys((STEADY, *keys))]
    file.write_text("".join(lines), encoding="utf-8")


# --- the faults -------------------------------------------------------------------------------


@dataclass
class Chaos:
    """All that faults are done to, and what is known of them."""

    server: Server
    model: Place
    index: Place
    redis: Redis | None
    keys: Path
    update: Path
    rate: float
    ask: Callable[[], Awaitable[None]] = field(init=False)  # a request of the load
    key: str = STEADY
    old_keys: list[str] = field(default_factory=list)
    done: Counter[str] = field(default_factory=Counter)
    skipped: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    times: list[tuple[float, float, str]] = field(default_factory=list)
    going_on: set[str] = field(default_factory=set)
    refusals: Counter[str] = field(default_factory=Counter)  # folders that the log says were refused
    workers: Workers = field(init=False)

    def __post_init__(self) -> None:
        self.workers = Workers(self.server.process.pid)

    async def do(self, name: str, seed: int) -> None:
        """Do one fault from beginning to end."""
        start = time.monotonic()
        draw = random.Random(seed)
        kind, _, which = name.partition("_")
        self.going_on.add(name)
        try:
            if kind in ("model", "index") and which in getattr(self, kind).bad:
                done = await self._bad(getattr(self, kind), which, draw)
            else:
                done = await getattr(self, f"_{name}")(draw)
        except Exception as error:
            self.failures.append(f"{name} could not be done: {error!r}")
            return
        finally:
            self.going_on.discard(name)
        self.times.append((start, time.monotonic(), name))
        (self.done if done is not False else self.skipped)[name] += 1

    async def _bad(self, place: Place, which: str, draw: random.Random) -> bool:
        async with place.lock:
            told, before = self.refusals[place.folder.name], place.now
            await place.put(place.bad[which], None)
            end = time.monotonic() + 8
            while self.refusals[place.folder.name] == told and time.monotonic() < end:
                await asyncio.sleep(0.05)
            self.refused[f"{place.folder.name}_{which}"] += self.refusals[place.folder.name] > told
            await asyncio.sleep(2 * draw.random())
            await place.put_good(draw.choice([before, *place.good]))
        return True

    async def _model_swap(self, draw: random.Random) -> None:
        await self._swap(self.model, draw)

    async def _index_swap(self, draw: random.Random) -> None:
        await self._swap(self.index, draw)

    async def _swap(self, place: Place, draw: random.Random) -> None:
        async with place.lock:
            await place.put_good(draw.choice([version for version in place.good if version != place.now]))
            await asyncio.sleep(1 + draw.random())

    async def _index_killed(self, draw: random.Random) -> None:
        """An update of the served index that is killed somewhere; what stands there is the old or the new."""
        async with self.index.lock:
            old, new, *_ = self.index.good
            if self.index.now != old:
                await self.index.put_good(old)
            self.index.note(old, new)
            command = ["index", str(self.model.good[self.model.now]), "--items", str(self.update), "--update"]
            command += ["--out", str(self.index.folder), "--set", "progress=false"]
            updating = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "pertinent", *command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
            )
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(updating.wait(), 0.3 + 2 * draw.random())
            with contextlib.suppress(ProcessLookupError):
                updating.kill()
            await updating.wait()
            found = open_artifact(self.index.folder, "index", verify=False).version
            if found not in (old, new):
                raise AssertionError(f"an update left the index at {found}")
            self.index.now = found
            self.index.note(found)

    async def _redis_kill(self, draw: random.Random) -> None:
        assert self.redis is not None
        async with self.redis.lock:
            await asyncio.to_thread(self.redis.kill)
            await asyncio.sleep(0.2 + 4 * draw.random())
            self.redis.start()

    async def _redis_stop(self, draw: random.Random) -> None:
        assert self.redis is not None
        async with self.redis.lock:
            self.redis.process.send_signal(signal.SIGSTOP)
            await asyncio.sleep(0.2 + 4 * draw.random())
            self.redis.process.send_signal(signal.SIGCONT)

    async def _redis_garbage(self, draw: random.Random) -> None:
        assert self.redis is not None
        async with self.redis.lock:
            for _ in range(10):
                await asyncio.to_thread(self.redis.spoil, draw)
                await asyncio.sleep(0.4)

    async def _redis_flush(self, draw: random.Random) -> None:
        assert self.redis is not None
        async with self.redis.lock:
            client = await asyncio.to_thread(self.redis.client)
            await asyncio.to_thread(client.flushall)

    async def _redis_liar(self, draw: random.Random) -> None:
        assert self.redis is not None
        async with self.redis.lock:
            await asyncio.to_thread(self.redis.kill)
            try:
                liar = await asyncio.start_server(lie, "127.0.0.1", self.redis.port)
                await asyncio.sleep(1 + 3 * draw.random())
                liar.close()
            finally:
                self.redis.start()

    async def _victim(self, draw: random.Random) -> int | None:
        """A worker beside which another one answers; None where there is none for a while."""
        end = time.monotonic() + 40
        while time.monotonic() < end:
            if len(ready := self.workers.ready()) >= 2:
                return draw.choice(ready)
            await asyncio.sleep(0.1)
        return None

    async def _worker_kill(self, draw: random.Random) -> bool:
        if (pid := await self._victim(draw)) is None:
            return False
        self.workers.killed[pid] = "killed"
        os.kill(pid, signal.SIGKILL)
        return True

    async def _worker_stop(self, draw: random.Random) -> bool:
        if (pid := await self._victim(draw)) is None:
            return False
        self.workers.stop(pid)
        await asyncio.sleep(0.3 + (LONGEST_STOP - 0.3) * draw.random())
        self.workers.go_on(pid)
        return True

    async def _worker_hang(self, draw: random.Random) -> bool:
        """One that stands still for good: the server has to end it."""
        if (pid := await self._victim(draw)) is None:
            return False
        self.workers.stop(pid)
        self.workers.killed[pid] = "hung"
        end = time.monotonic() + 60
        while pid in self.workers.born and time.monotonic() < end:
            await asyncio.sleep(0.05)
        if pid in self.workers.born:
            os.kill(pid, signal.SIGKILL)
            raise AssertionError("a worker that stands still was not ended within a minute")
        return True

    async def _hangup(self, draw: random.Random) -> bool:
        if await self._victim(draw) is None:
            return False
        self.workers.hangups.append(time.monotonic())
        self.server.process.send_signal(signal.SIGHUP)
        return True

    async def _burst(self, draw: random.Random) -> None:
        end = time.monotonic() + 2 + 3 * draw.random()
        tasks = set()
        while time.monotonic() < end:
            tasks.add(asyncio.ensure_future(self.ask()))
            await asyncio.sleep(draw.expovariate(4 * self.rate))
        await asyncio.gather(*tasks)

    async def _log_pause(self, draw: random.Random) -> None:
        self.server.reading.clear()
        await asyncio.sleep(1 + 4 * draw.random())
        self.server.reading.set()

    async def _keys(self, draw: random.Random) -> None:
        """A new key comes, clients change over, the old one goes; broken files in between change nothing."""
        old, new = self.key, f"key-{draw.randrange(10**9)}"
        write_keys(self.keys, old, new)
        await asyncio.sleep(SETTLE)
        self.key = new
        self.keys.write_text(draw.choice(["", "shop=not-a-digest\n", "\0\xff"]), encoding="latin-1")
        await asyncio.sleep(1)
        write_keys(self.keys, old, new)
        await asyncio.sleep(SETTLE)
        write_keys(self.keys, new)
        if old != STEADY:
            await asyncio.sleep(SETTLE)
            self.old_keys.append(old)


# How often each is done: in every so manieth round.
FAULTS: dict[str, int] = {
    "keys": 2,
    "worker_hang": 6,
    "hangup": 6,
    "model_swap": 1,
    "model_flipped": 1,
    "model_cut": 1,
    "model_page": 1,
    "model_golden": 1,
    "index_swap": 1,
    "index_flipped": 1,
    "index_other": 1,
    "index_killed": 1,
    "redis_kill": 1,
    "redis_stop": 1,
    "redis_garbage": 1,
    "redis_flush": 1,
    "redis_liar": 1,
    "worker_kill": 3,
    "worker_stop": 1,
    "burst": 1,
    "log_pause": 1,
}
BAD = "bad_clients"  # all the while


def schedule(names: list[str], seconds: float, round_: float, seed: int) -> list[tuple[float, str, int]]:
    """When each fault begins, and the seed of what it draws; in the first round all come, those that last first."""
    draw, found = random.Random(seed), []
    rounds = max(1, round(seconds / round_))
    for number in range(rounds):
        chosen = [name for name in FAULTS if name in names and number % FAULTS[name] == 0]
        draw.shuffle(chosen)
        if not number:
            chosen.sort(key=lambda name: name not in ("keys", "worker_hang"))
        step = round_ / max(1, len(chosen))
        for place, name in enumerate(chosen):
            found.append((number * round_ + (place + draw.random()) * step, name, draw.randrange(2**32)))
    return [each for each in found if each[0] < seconds]
