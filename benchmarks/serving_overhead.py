"""What the server adds to the bare engine for 3,000 items by id, measured in turns in one run.

    python benchmarks/serving_overhead.py                    # a small network and the shipped one
    python benchmarks/serving_overhead.py --only small

One process holds the engine; the server is another, with the same model, index and threads. In each turn the
engine scores items (`index.rows`, `scorer.score_index`), and the server answers `/v1/relevance` for the same ones;
which of them goes first alternates. Both are given item ids, and in a second round row numbers.
The overhead of a turn is the server's time less the engine's. The small network (one layer of 64, weights
drawn at random) takes so little that its own spread does not hide milliseconds; with the shipped one the
difference is mostly that between two runs of the engine. `processor_ms` are means by turn, on all cores together:
they hold on a busy machine too.

The second table is HTTP alone: the time of a request less what the queue had it for, with 1 and 3,000
items, and the same body answered by other frameworks that score nothing, where they can be imported.
Writes serving_overhead.json.
"""

from __future__ import annotations

import argparse
import json
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from serving_others import installed
from serving_process import Server, machine, serving, write

from pertinent.artifact import write_artifact
from pertinent.data.samples import read_sample
from pertinent.engine.index import IndexConfig, ItemIndex
from pertinent.engine.scorer import Scorer
from pertinent.load.client import Reply, Target, parse_head
from pertinent.records import Item

QUERIES = ("wireless earbuds", "red wool socks", "usb c cable 2 m", "coffee mug", "trail shoe men 42")
WARM_UP = 5
# Longer than any request takes on a busy machine: the figures are of what is served, not of what is refused.
PATIENT = ("--set", "queue.deadline_ms=600000", "--set", "queue.max_wait_ms=600000")


class Connection:
    """One kept connection that blocks: a request out, its answer in, and nothing beside."""

    def __init__(self, url: str) -> None:
        self.target = Target.of(url)
        self._socket = socket.create_connection((self.target.host, self.target.port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._room = memoryview(bytearray(2**22))

    def send(self, request: bytes) -> Reply:
        """The answer to a request."""
        self._socket.sendall(request)
        head, filled = b"", 0
        while not head:
            filled += self._more(filled)
            end = bytes(self._room[: min(filled, 65_536)]).find(b"\r\n\r\n")
            head = bytes(self._room[:end]) if end >= 0 else b""
        status, headers = parse_head(head)
        start = len(head) + 4
        while filled < start + int(headers["content-length"]):
            filled += self._more(filled)
        return Reply(status, headers, bytes(self._room[start:filled]))

    def close(self) -> None:
        """Close it."""
        self._socket.close()

    def _more(self, filled: int) -> int:
        if filled == len(self._room):
            raise SystemExit("the answer is longer than this client reads")
        got = self._socket.recv_into(self._room[filled:])
        if not got:
            raise SystemExit("the server closed the connection")
        return got


def told(values: list[float]) -> dict[str, float]:
    """Median, p90 and p99 in milliseconds."""
    return {f"p{share}": round(float(np.percentile(values, share)), 3) for share in (50, 90, 99)}


def small_model(folder: Path) -> Path:
    """A network of one layer with weights drawn at random, and the tokenizer that is shipped."""
    import torch

    from pertinent.models.store import build_network, save_network

    torch.manual_seed(0)
    sizes = {"vocabulary_size": 30_522, "hidden_size": 64, "layers": 1, "heads": 4, "feed_forward_size": 128}
    network = build_network({"type": "ei_src", **sizes}).eval()
    with torch.no_grad():
        for parameter in network.parameters():  # scores far enough apart that a wrong one is seen
            parameter.add_(torch.randn_like(parameter) * 0.2)
    with write_artifact(folder, "model", {}) as aside:
        save_network(aside, network, Scorer.load(threads=1).pairs, "float32")
    return folder


def processor_ms(process: int) -> float:
    """Milliseconds of processor that a process has had."""
    files = Path(f"/proc/{process}/task").glob("*/schedstat")
    return sum(int(file.read_text().split()[0]) for file in files) / 1e6


def over_engine(server: Server, scorer: Scorer, index: ItemIndex, by: str, turns: int, count: int) -> dict[str, Any]:
    """The times of the engine and of the server, in turns; ``by`` says what both are given: item_ids or rows."""
    connection = Connection(server.url)
    random = np.random.default_rng(0)
    ids = np.array([item.item_id for item in index.items(range(len(index)))], dtype=object)
    times: dict[str, list[float]] = {"engine": [], "server": [], "difference": [], "around_the_queue": []}
    used = [0.0, 0.0]
    for turn in range(turns + WARM_UP):
        rows = random.integers(len(ids), size=count)
        query, named = QUERIES[turn % len(QUERIES)], ids[rows].tolist()
        body = json.dumps({"query": query, by: named if by == "item_ids" else rows.tolist()}).encode()
        request = connection.target.request("POST", "/v1/relevance", body)
        taken = [0.0, 0.0]
        for which in (turn % 2, 1 - turn % 2):
            at = processor_ms(server.process.pid) if which else 1_000 * time.process_time()
            before = time.perf_counter()
            if which:
                reply = connection.send(request)
            else:
                scores = scorer.score_index(query, index, index.rows(named) if by == "item_ids" else rows)
            taken[which] = 1_000 * (time.perf_counter() - before)
            if turn >= WARM_UP:
                used[which] += (processor_ms(server.process.pid) if which else 1_000 * time.process_time()) - at
        around = taken[1] - checked(reply, scores)
        if turn >= WARM_UP:
            for name, value in zip(times, (*taken, taken[1] - taken[0], around), strict=True):
                times[name].append(value)
    connection.close()
    mean = {name: round(value / turns, 2) for name, value in zip(("engine", "server"), used, strict=True)}
    return {"processor_ms": mean, **{f"{name}_ms": told(values) for name, values in times.items()}}


def checked(reply: Reply, scores: Any) -> float:
    """The milliseconds that the queue had a request for; ends where its answer is not that of the engine."""
    if reply.status != 200:
        raise SystemExit(f"the server answered {reply.status}: {reply.body[:300]!r}")
    answer = json.loads(reply.body)
    found = np.zeros(len(scores))
    found[answer["index"]] = answer["relevance"]
    if len(answer["index"]) != len(scores) or not np.allclose(found, scores, atol=1e-4):
        raise SystemExit("the server's scores are not those of the engine")
    return float(answer["timings_ms"]["total"])


def over_http(url: str, path: str, body: Any, turns: int) -> dict[str, float]:
    """Milliseconds of a request less those that the queue had it for, where that is told."""
    connection = Connection(url)
    request = connection.target.request("POST", path, json.dumps(body).encode())
    times = []
    for turn in range(turns + WARM_UP):
        before = time.perf_counter()
        reply = connection.send(request)
        taken = 1_000 * (time.perf_counter() - before)
        if reply.status != 200:
            raise SystemExit(f"{path} answered {reply.status}: {reply.body[:300]!r}")
        stages = dict(part.split(";dur=") for part in reply.headers.get("server-timing", "total;dur=0").split(", "))
        if turn >= WARM_UP:
            times.append(taken - float(stages["total"]))
    connection.close()
    return told(times)


@contextmanager
def other_server(name: str) -> Iterator[str]:
    """The address of another framework's server that answers rerank requests without scoring."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen([sys.executable, str(Path(__file__).with_name("serving_others.py")), name, str(port)])
    try:
        for _ in range(400):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.05)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


def http_table(url: str, items: list[Item], count: int, turns: int) -> dict[str, Any]:
    """What HTTP costs by route and size."""
    ids, titles = [item.item_id for item in items], [item.title for item in items]
    rows: dict[str, Any] = {}
    for size in (1, count):
        rows[f"pertinent /v1/relevance, {size} ids"] = over_http(
            url, "/v1/relevance", {"query": QUERIES[0], "item_ids": ids[:size]}, turns
        )
        texts = {"query": QUERIES[0], "documents": titles[:size]}
        rows[f"pertinent /v2/rerank, {size} texts"] = over_http(url, "/v2/rerank", texts, turns)
        for name in installed():
            with other_server(name) as other:
                rows[f"{name}, /v2/rerank, {size} texts"] = over_http(other, "/v2/rerank", texts, turns)
    return rows


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=120)
    parser.add_argument("--items", type=int, default=3_000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", choices=["small", "shipped"])
    parser.add_argument("--skip-http", action="store_true")
    given = parser.parse_args()
    items, _ = read_sample("esci")
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        models = {"small": small_model(place / "small"), "shipped": None}
        for name, model in models.items():
            if given.only in (None, name):
                turns = given.turns if name == "small" else given.turns // 4  # each of seconds
                scorer = Scorer.load(model, threads=given.threads)
                index = ItemIndex.build(items, scorer.pairs, place / "index", config=IndexConfig(progress=False))
                flags = ["--index", str(index.path), "--threads", str(given.threads), *PATIENT]
                with serving(*([] if model is None else [str(model)]), *flags) as server:
                    found[name] = {
                        by: over_engine(server, scorer, index, by, turns, given.items) for by in ("item_ids", "rows")
                    }
                    found[name] |= {"backend": scorer.backend.name, "turns": turns}
                    if name == "small" and not given.skip_http:
                        found["http_ms"] = http_table(server.url, items, given.items, given.turns)
                print(json.dumps(found, indent=2), flush=True)
    settings = {"turns": given.turns, "items": given.items, "threads": given.threads}
    command = "python benchmarks/serving_overhead.py" + (f" --only {given.only}" if given.only else "")
    print(write(__file__, {"command": command, "machine": machine(), **settings, **found}))


if __name__ == "__main__":
    main()
