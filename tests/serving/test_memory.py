"""A process that holds too much memory refuses what is new, and leaves where that does not help."""

from __future__ import annotations

import gzip
import json
import os
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import psutil
import pytest

from pertinent.artifact import Artifact
from pertinent.cli import main
from pertinent.engine.scorer import Scorer
from pertinent.errors import ConfigError
from pertinent.serving import memory
from pertinent.serving.memory import EXIT_CODE, Memory, check_start, own_bytes
from pertinent.serving.queue import Refused

MB = 2**20
BODY = {"query": "usb", "documents": ["wireless earbuds", "usb cable", "tea pot"]}
pytestmark = pytest.mark.skipif(own_bytes() is None, reason="the system does not tell what memory a process has")

# A process whose number stands in the file holds so many megabytes more, for good.
LEAK = """
import os, threading, time
held = []
def leak():
    while not held:
        time.sleep(0.05)
        try:
            pid, megabytes = open(os.environ["LEAK_FILE"]).read().split()
        except (OSError, ValueError):
            continue
        if int(pid) == os.getpid():
            held.append(b"x" * (int(megabytes) << 20))
threading.Thread(target=leak, daemon=True).start()
"""


@pytest.fixture
def leaky(run: Any, tmp_path: Path, tiny_artifact: Artifact) -> Callable[..., Any]:
    """``leaky(limit, *flags)``: a server, and a function that makes one of its processes leak."""

    def start(limit: int, *flags: str) -> tuple[Any, Callable[[int], None]]:
        (tmp_path / "sitecustomize.py").write_text(LEAK, encoding="utf-8")
        told = tmp_path / "leak"
        path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
        flags = ("--worker-memory-mb", str(limit), "--drain-delay", "0", *flags)
        server = run(str(tiny_artifact.path), *flags, PYTHONPATH=path, LEAK_FILE=str(told))

        def leak(pid: int) -> None:
            told.with_name("new").write_text(f"{pid} {limit}")
            told.with_name("new").rename(told)

        return server, leak

    return start


def ask(url: str) -> httpx2.Response:
    return httpx2.post(f"{url}/v2/rerank", json=BODY, timeout=20, trust_env=False)


def test_a_process_that_keeps_too_much_memory_leaves_with_a_code_of_its_own(leaky: Callable[..., Any]) -> None:
    server, leak = leaky(600)
    server.wait_for("ready")
    for _ in range(5):
        assert ask(server.url).status_code == 200
    time.sleep(1.2)
    assert server.events("memory") == [] and server.process.poll() is None
    leak(server.process.pid)
    assert server.process.wait(20) == EXIT_CODE
    (said,) = server.events("memory")
    assert said["full"] is True and said["megabytes"] > 600
    assert any("this process leaves" in line for line in server.lines) and server.events("draining")
    assert not any("Traceback" in line or '"status":5' in line for line in server.lines)


@pytest.mark.slow
def test_a_worker_that_keeps_too_much_memory_is_replaced_and_the_others_answer(leaky: Callable[..., Any]) -> None:
    server, leak = leaky(600, "--workers", "2")
    server.wait_for("ready", 2)
    found = psutil.Process(server.process.pid).children()
    workers = [each for each in found if any("spawn_main" in word for word in each.cmdline())]
    assert len(workers) == 2
    codes: list[int] = []
    stop = threading.Event()

    def load() -> None:
        while not stop.is_set():
            codes.append(ask(server.url).status_code)

    threads = [threading.Thread(target=load) for _ in range(3)]
    for thread in threads:
        thread.start()
    leak(workers[0].pid)
    try:
        server.wait_for("ready", 3)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not workers[0].is_running() and workers[1].is_running()
    assert set(codes) <= {200, 429} and codes.count(200) > 20
    assert any(f"worker {workers[0].pid} has left" in line for line in server.lines)
    assert server.end(30) == 0


def test_above_its_limit_a_server_takes_on_nothing_new_until_it_is_below_again(
    tiny_scorer: Scorer, start: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pertinent.serving.app._MEMORY_LOOK", 0.05)
    held, given_back = [100 * MB], []
    monkeypatch.setattr(memory, "own_bytes", lambda: held[0])
    monkeypatch.setattr("pertinent.serving.app.give_back", lambda: given_back.append(held[0]))
    server = start(tiny_scorer, worker_memory_mb=200)

    def becomes(status: int) -> httpx2.Response:
        deadline = time.monotonic() + 10
        while (reply := server.post("/v2/rerank", BODY)).status_code != status:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        return reply

    assert server.post("/v2/rerank", BODY).status_code == 200
    held[0] = 201 * MB
    reply = becomes(429)
    assert int(reply.headers["retry-after"]) >= 1 and given_back
    assert server.post("/v1/relevance", {"query": "usb", "texts": ["tea"]}).status_code == 429
    assert server.client.get("/livez").status_code == 200
    assert 'pertinent_shed_total{reason="memory"}' in server.client.get("/metrics").text
    held[0] = 150 * MB
    becomes(200)
    # Of what it has left, a body of so much would take more.
    head = f"POST /v2/rerank HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {20 * MB}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", server.port), 10) as connection:
        connection.sendall(head.encode())
        assert connection.recv(100).startswith(b"HTTP/1.1 429")
    events = [json.loads(line) for line in server.lines.text.splitlines() if '"memory"' in line]
    assert [each["full"] for each in events if each["event"] == "memory"] == [True, False]


def test_what_is_under_way_or_swapped_is_waited_for(
    tiny_scorer: Scorer, start: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pertinent.serving.app._MEMORY_LOOK", 0.02)
    monkeypatch.setattr(memory, "own_bytes", lambda: 201 * MB)
    left: list[bool] = []
    server = start(tiny_scorer, worker_memory_mb=200)
    server.app.leave = lambda: left.append(True) or True
    server.app._admitted += 1  # a request that takes its time
    time.sleep(0.6)
    assert not left
    assert any("worker_memory_mb" in each for each in server.client.get("/readyz").json()["degraded"])
    server.app._admitted -= 1
    deadline = time.monotonic() + 10
    while not left:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert server.app.exit_code == EXIT_CODE


def test_packed_bodies_and_those_without_a_length_count_as_the_longest(
    tiny_scorer: Scorer, start: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "own_bytes", lambda: 150 * MB)
    server = start(tiny_scorer, worker_memory_mb=200)
    assert server.post("/v2/rerank", BODY).status_code == 200
    packed = gzip.compress(json.dumps(BODY).encode())
    headers = {"content-type": "application/json", "content-encoding": "gzip"}
    assert server.client.post("/v2/rerank", content=packed, headers=headers).status_code == 429
    chunks = iter([json.dumps(BODY).encode()])
    assert server.client.post(
        "/v2/rerank", content=chunks, headers=headers | {"content-encoding": "identity"}
    ).status_code in (415, 429)


def test_the_size_is_known_without_a_free_descriptor(monkeypatch: pytest.MonkeyPatch) -> None:
    assert own_bytes()

    def none_left(*_: Any) -> int:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(os, "open", none_left)
    assert own_bytes()


def test_bodies_on_their_way_are_counted_before_they_have_come(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "own_bytes", lambda: 100 * MB)
    room = Memory(200)
    length = 20 * MB
    room.check(length)
    with room.coming(length):
        with pytest.raises(Refused) as caught:
            room.check(length)
        assert caught.value.reason == "memory"
        room.check(1_000)
        room.check(0)
    room.check(length)
    none = Memory(None)
    with none.coming(length):
        none.check(10**15)
    assert none.exceeded is False and room.exceeded is False


def test_a_limit_that_is_reached_at_the_start_is_refused(
    tiny_artifact: Artifact, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["serve", str(tiny_artifact.path), "--port", "0", "--worker-memory-mb", "10"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: worker_memory_mb is 10, and a process with its models takes ")
    monkeypatch.setattr(memory, "own_bytes", lambda: None)
    check_start(None)
    with pytest.raises(ConfigError, match="does not tell"):
        check_start(100_000)


def test_files_that_are_mapped_are_no_memory_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(b"x" * (64 * MB))
    before = own_bytes()
    assert before is not None
    mapped = np.memmap(tmp_path / "large", dtype=np.uint8, mode="r")
    assert mapped[:: 1 << 12].sum() > 0
    assert (own_bytes() or 0) - before < 32 * MB
    held = b"x" * (64 * MB)
    assert (own_bytes() or 0) - before > 48 * MB and held
