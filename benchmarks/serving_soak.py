"""The server for a long time with bad clients among the good ones, new models all the while, and a leak as control.

    python benchmarks/serving_soak.py --minutes 30                 # soak, with a swap a minute
    python benchmarks/serving_soak.py --swaps 100 --minutes 10     # as many swaps, spread over the time
    python benchmarks/serving_soak.py --minutes 3 --leak 500000    # must fail: bytes kept a request

With the shipped model 3,000 items take seconds of two cores; `--small` takes a network that lets more requests through.

Requests of ``--items`` texts arrive at random times; of the clients 10 % misbehave: they leave in the middle,
send half a body, garbage, or bytes one by one. Every answer is compared with the scores of the version that
it names. Resident memory and descriptors of the server are read twice a second; the slope is fitted after the
first third. Ends with 1 where a request failed, a score was wrong, or memory rises by 1 MB a minute or more.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import psutil
from serving_overhead import small_model
from serving_process import Server, machine, serving, write

from pertinent.data.samples import read_sample
from pertinent.engine.scorer import Scorer
from pertinent.load.client import Reply, Target
from pertinent.load.plan import timetable
from pertinent.load.results import Call, Outcomes, group_of
from pertinent.load.run import drive

BODIES = 12
SLOPE_MB = 1.0  # a minute
MISBEHAVING = 0.1


class Expected:
    """Bodies, and the scores that each version gives them."""

    def __init__(self, models: list[Path], titles: list[str], items: int, threads: int) -> None:
        draw = random.Random(0)
        self.texts = [draw.sample(titles, items) for _ in range(BODIES)]
        self.queries = [" ".join(draw.choice(titles).split()[:3]) for _ in range(BODIES)]
        self.scores: dict[str, list[Any]] = {}
        for model in models:
            scorer = Scorer.load(model, threads=threads)
            self.scores[scorer.version] = [scorer.score(q, t) for q, t in zip(self.queries, self.texts, strict=True)]
            scorer.close()
        self.seen: dict[str, int] = dict.fromkeys(self.scores, 0)
        self.worst = 0.0

    def calls(self, target: Target) -> list[Call]:
        """Each body as a request."""
        found = []
        for number, (query, texts) in enumerate(zip(self.queries, self.texts, strict=True)):
            body = json.dumps({"query": query, "documents": texts}).encode()
            found.append(Call(len(texts), target.request("POST", "/v2/rerank", body), number))
        return found

    def right(self, call: Call, reply: Reply) -> bool:
        """Whether an answer has the scores of the version that it names."""
        version = reply.headers["x-model-version"]
        results = msgspec.json.decode(reply.body)["results"]
        scores = np.zeros(call.group)
        scores[[item["index"] for item in results]] = [item["relevance_score"] for item in results]
        self.seen[version] += 1
        difference = float(np.abs(scores - self.scores[version][call.number]).max())
        self.worst = max(self.worst, difference)
        return len(results) == call.group and difference < 1e-4


Client = Callable[[asyncio.StreamReader, asyncio.StreamWriter, bytes, random.Random], Awaitable[bytes]]


async def leaves(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes, draw: random.Random
) -> bytes:
    """Goes while it is scored."""
    writer.write(request)
    await writer.drain()
    await asyncio.sleep(draw.random() * 0.2)
    writer.transport.abort()
    return b""


async def half(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes, draw: random.Random
) -> bytes:
    """Half a body, then silence."""
    writer.write(request[: len(request) // 2])
    await writer.drain()
    return await asyncio.wait_for(reader.read(1_000), 30)


async def garbage(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes, draw: random.Random
) -> bytes:
    """No HTTP at all."""
    writer.write(draw.randbytes(500) + b"\r\n\r\n")
    return await asyncio.wait_for(reader.read(1_000), 30)


async def slowly(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes, draw: random.Random
) -> bytes:
    """A byte now and then."""
    for byte in request[:40]:
        if writer.is_closing():
            break
        writer.write(bytes([byte]))
        await asyncio.sleep(0.05)
    return b""


BAD_CLIENTS: dict[str, Client] = {"leaves": leaves, "half": half, "garbage": garbage, "slowly": slowly}


async def misbehave(
    target: Target,
    choose: Callable[[random.Random], bytes],
    rate: float,
    until: float,
    kinds: dict[str, Client] = BAD_CLIENTS,
    told: Callable[[str, int], None] | None = None,
) -> int:
    """Clients that nobody wants, at random times, with requests that ``choose`` gives; how many there were.

    ``told`` hears of each what it is called and the status it was answered with: 0 for none, -1 for silence.
    """
    draw, count = random.Random(1), 0

    async def one() -> None:
        kind, status = draw.choice(list(kinds)), 0
        try:
            reader, writer = await asyncio.open_connection(target.host, target.port)
            try:
                answer = await kinds[kind](reader, writer, choose(draw), draw)
            finally:
                writer.close()
            status = int(answer[9:12]) if answer.startswith(b"HTTP/1.1 ") else 0
        except TimeoutError:
            status = -1
        except OSError:
            pass
        if told is not None:
            told(kind, status)

    tasks = set()
    while time.monotonic() < until:
        await asyncio.sleep(draw.expovariate(rate))
        task = asyncio.create_task(one())
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        count += 1
    if tasks:
        await asyncio.wait(tasks, timeout=40)
    return count


async def watch(process: psutil.Process, until: float) -> list[tuple[float, float, int]]:
    """Minutes, megabytes and descriptors, twice a second."""
    start, found = time.monotonic(), []
    while time.monotonic() < until:
        found.append(((time.monotonic() - start) / 60, process.memory_info().rss / 1e6, process.num_fds()))
        await asyncio.sleep(0.5)
    return found


async def swap(served: Path, models: list[Path], server: Server, every: float, most: int, until: float) -> int:
    """Put one model after the other in place, each when the one before is served; how many."""
    count = 0
    while time.monotonic() < until and count < most:
        if every:
            await asyncio.sleep(every)
        aside, old = served.with_name(".new"), served.with_name(".old")
        await asyncio.to_thread(shutil.copytree, models[(count + 1) % len(models)], aside)
        taken = sum('"event":"reload"' in line for line in server.lines)
        os.rename(served, old)
        os.rename(aside, served)
        shutil.rmtree(old)
        while sum('"event":"reload"' in line for line in server.lines) == taken and time.monotonic() < until:
            await asyncio.sleep(0.02)
        count += 1
    return count


def other_version(model: Path, folder: Path, factor: float = 1.02) -> Path:
    """The same network with every weight a little larger: other scores, another version."""
    from safetensors.numpy import load_file, save_file

    from pertinent.artifact import open_artifact, write_artifact

    artifact = open_artifact(model)
    with write_artifact(folder, "model", artifact.manifest["config"]) as aside:
        for name in artifact.manifest["files"]:
            if name != "golden.json":
                (aside / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(artifact.file(name), aside / name)
        weights = load_file(aside / "model.safetensors")
        changed = {name: (value * factor).astype(value.dtype) for name, value in weights.items()}
        save_file(changed, aside / "model.safetensors")
    return folder


def slope(samples: list[tuple[float, float, int]]) -> float:
    """Megabytes a minute after the first third."""
    kept = np.array([each[:2] for each in samples[len(samples) // 3 :]])
    return float(np.polyfit(kept[:, 0], kept[:, 1], 1)[0])


def by_minute(samples: list[tuple[float, float, int]]) -> list[float]:
    """The median of the megabytes of each minute."""
    minutes = np.array([int(sample[0]) for sample in samples])
    sizes = np.array([sample[1] for sample in samples])
    return [round(float(np.median(sizes[minutes == minute])), 1) for minute in np.unique(minutes)]


async def soak(given: argparse.Namespace, server: Server, served: Path, models: list[Path], expected: Expected) -> Any:
    """Load, bad clients, swaps and the watch, side by side."""
    target = Target.of(server.url)
    calls = expected.calls(target)
    requests = [call.request for call in calls]
    seconds = 60 * given.minutes
    times = timetable(given.rate, seconds, "random", 0)
    choices = np.arange(len(times)) % len(calls)
    until = time.monotonic() + seconds
    # So many swaps are spread over most of the time, so that there is load beside each.
    every, most = (0.7 * seconds / given.swaps, given.swaps) if given.swaps else (given.swap_seconds, 10**9)
    bad = max(0.05, MISBEHAVING * given.rate)
    return await asyncio.gather(
        drive(target, calls, times, choices, 256, 60, expected.right),
        misbehave(target, lambda draw: draw.choice(requests), bad, until),
        watch(psutil.Process(server.process.pid), until),
        swap(served, models, server, every, most, until),
    )


def main() -> int:
    """Soak, judge and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--rate", type=float, default=0.5, help="requests a second")
    parser.add_argument("--items", type=int, default=3_000)
    parser.add_argument("--swap-seconds", type=float, default=60.0)
    parser.add_argument("--swaps", type=int, default=0, help="instead: so many, spread over the time")
    parser.add_argument("--leak", type=int, default=0, help="bytes that the server keeps of each request")
    parser.add_argument("--slope", type=float, default=SLOPE_MB, help="megabytes a minute that are too many")
    parser.add_argument("--model", help="left out: the shipped model")
    parser.add_argument("--small", action="store_true", help="the small network of serving_overhead.py instead")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", help="where to write the result; left out: beside this script")
    given = parser.parse_args()
    titles = [item.title for item in read_sample("esci")[0]]
    with tempfile.TemporaryDirectory() as place:
        first = Path(given.model) if given.model else shipped()
        if given.small:
            first = small_model(Path(place) / "small")
        models = [first, other_version(first, Path(place) / "other")]
        served = Path(place) / "served"
        shutil.copytree(models[0], served)
        expected = Expected(models, titles, given.items, given.threads)
        flags = [str(served), "--watch-seconds", "0.2", "--threads", str(given.threads)]
        flags += ["--set", "limits.header_seconds=2", "--set", "limits.body_seconds=2"]
        flags += ["--set", "queue.deadline_ms=60000"]  # a busy machine is slow, which is no failure of the server
        script = [str(Path(__file__).with_name("serving_leak.py")), str(given.leak)] if given.leak else None
        with serving(*flags, **({"script": script} if script else {})) as server:
            outcomes, bad, samples, swaps = asyncio.run(soak(given, server, served, models, expected))
    return judge(given, outcomes, bad, samples, swaps, expected)


def judge(given: argparse.Namespace, outcomes: Outcomes, bad: int, samples: Any, swaps: int, expected: Expected) -> int:
    """Print, write, and say by the exit code whether it held."""
    group = group_of(None, outcomes, None)
    rise = slope(samples)
    found = {
        "command": "python benchmarks/serving_soak.py " + " ".join(sys.argv[1:]),
        "machine": machine(),
        "minutes": given.minutes,
        "items": given.items,
        "requests": group.sent,
        "answered": group.answered,
        "refused": group.refused,
        "failed": group.failed,
        "statuses": {
            str(status): int(count)
            for status, count in zip(*np.unique(outcomes.status, return_counts=True), strict=True)
        },
        "wrong": group.wrong,
        "largest_difference": expected.worst,
        "problems": outcomes.problems,
        "answers_by_version": expected.seen,
        "misbehaving_clients": bad,
        "swaps": swaps,
        "swaps_wanted": given.swaps,
        "latency_ms": {**group.percentiles_ms, "max": group.max_ms},
        "rss_mb": {"first": round(samples[0][1], 1), "last": round(samples[-1][1], 1)},
        "rss_mb_by_minute": by_minute(samples),
        "slope_mb_a_minute": round(rise, 3),
        "descriptors": {"first": samples[0][2], "most": max(s[2] for s in samples), "last": samples[-1][2]},
        "held": group.failed == 0 and group.wrong == 0 and rise < given.slope and swaps >= given.swaps,
    }
    print(json.dumps(found, indent=2))
    if given.out:
        Path(given.out).write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    else:
        kind = "swaps" if given.swaps else "leak" if given.leak else "soak"
        write(__file__.replace("soak", kind), found)
    return 0 if found["held"] else 1


def shipped() -> Path:
    """The model that comes with the package."""
    from pertinent.folders import shipped_folder

    return shipped_folder()


if __name__ == "__main__":
    raise SystemExit(main())
