"""Clients that are slow, broken, rude or too many, over raw sockets and real connections."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from pertinent.engine.scorer import Scorer
from pertinent.lexicon.pairs import PairTokenizer
from pertinent.records import TokenBatch
from pertinent.serving.queue import Work

BODY = json.dumps({"query": "usb", "documents": ["usb cable", "tea pot"]}).encode()
LIMITS = {"header_seconds": 0.4, "body_seconds": 0.4, "write_seconds": 0.5, "idle_seconds": 1.0, "connections": 40}


@pytest.fixture(scope="module")
def server(tiny_scorer: Scorer, start: Callable[..., Any]) -> Any:
    return start(tiny_scorer, limits=LIMITS)


def head(length: int | str = len(BODY), *more: str, path: str = "/v2/rerank", version: str = "1.1") -> bytes:
    lines = [
        f"POST {path} HTTP/{version}",
        "host: x",
        "content-type: application/json",
        f"content-length: {length}",
        *more,
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n"


def talk(server: Any, *parts: bytes, pause: float = 0.0, seconds: float = 5.0) -> bytes:
    """All that comes back until the server closes or falls silent."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=seconds) as connection:
        answer = b""
        try:
            for part in parts:
                connection.sendall(part)
                time.sleep(pause)
            while part := connection.recv(65_536):
                answer += part
        except (TimeoutError, ConnectionError):
            pass
        return answer


def status(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1]) if answer.startswith(b"HTTP/1.1 ") else 0


def works(server: Any) -> bool:
    return bool(server.client.post("/v2/rerank", content=BODY, headers=JSON).status_code == 200)


JSON = {"content-type": "application/json"}
CLOSE = "connection: close"


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        (head(len(BODY), CLOSE) + BODY, 200),
        (head(len(BODY), CLOSE, version="1.0") + BODY, 200),
        (head(len(BODY), CLOSE, "content-length: 3") + BODY, 400),
        (head(len(BODY), CLOSE, f"content-length: {len(BODY)}") + BODY, 400),
        (head(len(BODY), CLOSE, "transfer-encoding: chunked") + b"0\r\n\r\n", 400),
        (head(-1, CLOSE) + BODY, 400),
        (head("+5", CLOSE) + BODY, 400),
        (head(10**30, CLOSE) + BODY, 400),
        (head(10**12, CLOSE) + BODY, 413),
        (head(len(BODY), CLOSE, "bad : space") + BODY, 400),
        (head(len(BODY), CLOSE, "folded: a\r\n b") + BODY, 400),
        (head(len(BODY), CLOSE).replace(b"\r\n", b"\n") + BODY, 400),
        (head(len(BODY), CLOSE).replace(b"host: x\r\n", b"host: x\n") + BODY, 400),
        (head(len(BODY), CLOSE).replace(b"host: x", b"host: x\x00y") + BODY, 400),
        (head(len(BODY), CLOSE).replace(b"host: x\r\n", b"") + BODY, 400),
        (b"POST /v2/rerank HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200), 400),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
        (b"GET / HTTP/9.9\r\nhost: x\r\n\r\n", 400),
        (b"nonsense\r\n\r\n", 400),
        (head(len(BODY), CLOSE, "x-a: " + "a" * 20_000) + BODY, 431),
        (b"GET /" + b"a" * 100_000, 431),
        (b"GET /health HTTP/1.1\r\nhost: x\r\nupgrade: websocket\r\nconnection: upgrade, close\r\n\r\n", 200),
        # Right by either.
        (head(len(BODY), CLOSE, "transfer-encoding: chunked") + b"%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY), 400),
    ],
)
def test_raw_requests_get_an_answer_or_a_clean_refusal(content: bytes, wanted: int, server: Any) -> None:
    answer = talk(server, content)
    assert status(answer) == wanted, answer[:200]
    if wanted != 200:
        assert b"Traceback" not in answer and json.loads(answer.partition(b"\r\n\r\n")[2].strip())
    assert works(server)


def test_two_requests_in_one_packet_are_answered_in_turn(server: Any) -> None:
    answer = talk(server, head() + BODY + head(len(BODY), CLOSE) + BODY)
    assert answer.count(b"HTTP/1.1 200") == 2


def test_a_client_that_asks_whether_to_go_on_is_told_so(server: Any) -> None:
    answer = talk(server, head(len(BODY), CLOSE, "expect: 100-continue"), BODY, pause=0.1)
    assert answer.startswith(b"HTTP/1.1 100") and b"HTTP/1.1 200" in answer


@pytest.mark.parametrize(
    "parts",
    [
        [b"POST /v2/re"],
        [b"POST /v2/rerank HTTP/1.1\r\nhost: x\r\n"],
        [head(len(BODY)), BODY[:10]],
        [head(len(BODY) + 5), BODY],
    ],
)
def test_what_never_ends_is_ended_with_408(parts: list[bytes], server: Any) -> None:
    answer = talk(server, *parts, seconds=30.0)
    assert status(answer) == 408
    assert works(server)


def test_a_byte_now_and_then_does_not_keep_a_connection(server: Any) -> None:
    answer = talk(server, *(bytes([byte]) for byte in head()[:12]), pause=0.1, seconds=30.0)
    assert status(answer) == 408 or answer == b""


def test_idle_connections_are_capped_and_closed(server: Any) -> None:
    held = [socket.create_connection(("127.0.0.1", server.port), timeout=3) for _ in range(60)]
    try:
        time.sleep(0.2)
        assert len(server.server.server_state.connections) <= 60
        time.sleep(0.8)
        assert works(server)
        assert all(connection.recv(1_000)[:12] in (b"", b"HTTP/1.1 503") for connection in held)
    finally:
        for connection in held:
            connection.close()


def test_beyond_the_cap_the_longest_idle_connection_is_closed(tiny_scorer: Scorer, start: Callable[..., Any]) -> None:
    server = start(tiny_scorer, limits={"connections": 5})
    # Long before a head is late.
    held = [socket.create_connection(("127.0.0.1", server.port), timeout=4) for _ in range(9)]
    try:
        assert [connection.recv(100) for connection in held[:4]] == [b""] * 4
        assert len(server.server.server_state.connections) == 5
        held[4].sendall(head(len(BODY), CLOSE) + BODY)
        assert status(held[4].recv(65_536)) == 200
    finally:
        for connection in held:
            connection.close()


def test_where_all_connections_are_busy_a_new_one_is_refused_but_on_the_admin_port(
    speed_scorer: Any, start: Callable[..., Any]
) -> None:
    scorer = speed_scorer()
    server = start(scorer, limits={"connections": 2})
    scorer.backend.hold.clear()
    busy = [socket.create_connection(("127.0.0.1", server.port), timeout=20) for _ in range(2)]
    try:
        for connection in busy:
            connection.sendall(head(len(BODY), CLOSE) + BODY)
        while server.app.queue.waiting[0] < 2:
            time.sleep(0.01)
        assert status(talk(server)) == 503
        server.app.admin_port = server.port  # from now on this is that port
        assert status(talk(server, b"GET /livez HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")) == 200
        scorer.backend.hold.set()
        assert [status(connection.recv(65_536)) for connection in busy] == [200, 200]
    finally:
        scorer.backend.hold.set()
        for connection in busy:
            connection.close()


def test_a_client_that_sends_on_after_its_answer_is_cut_off(server: Any) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.sendall(head(10**9))
        assert status(connection.recv(65_536)) == 413
        deadline = time.monotonic() + 10
        with pytest.raises(ConnectionError):
            while time.monotonic() < deadline:
                connection.sendall(b" " * 100)
                time.sleep(0.2)
    assert works(server)


def test_a_client_that_leaves_in_its_body_is_counted_as_such(tiny_scorer: Scorer, start: Callable[..., Any]) -> None:
    server = start(tiny_scorer)
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(head(len(BODY)) + BODY[:10])
        while not server.server.server_state.tasks:
            time.sleep(0.01)
    deadline = time.monotonic() + 10
    while 'status="499"} 1.0' not in server.client.get("/metrics").text:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_client_that_does_not_read_is_cut_off(tiny_scorer: Scorer, start: Callable[..., Any]) -> None:
    server = start(tiny_scorer, limits=LIMITS)
    texts = [f"usb {n}" + "x" * 1_500 for n in range(4_000)]
    body = json.dumps({"query": "usb", "documents": texts, "return_documents": True}).encode()
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        connection.connect(("127.0.0.1", server.port))
        connection.sendall(head(len(body)) + body)
        deadline = time.monotonic() + 20
        while server.server.server_state.connections and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not server.server.server_state.connections
    assert works(server)


def test_a_client_that_leaves_frees_its_place(speed_scorer: Any, start: Callable[..., Any]) -> None:
    scorer = speed_scorer()
    server = start(scorer)
    body = json.dumps({"query": "usb", "documents": [f"tea {n}" for n in range(5_000)]}).encode()
    scorer.backend.hold.clear()  # nothing gets done, so only its leaving can free the place
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(head(len(body)) + body)
        deadline = time.monotonic() + 10
        while server.app.queue.waiting[0] == 0 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert server.app.queue.waiting[0] == 1
    deadline = time.monotonic() + 10
    while server.app.queue.waiting[0] and time.monotonic() < deadline:
        time.sleep(0.005)
    assert server.app.queue.waiting[:2] == (0, 0)
    scorer.backend.hold.set()
    assert 'status="499"} 1.0' in server.client.get("/metrics").text


def test_overload_is_shed_at_once_and_what_is_taken_is_answered(speed_scorer: Any, start: Callable[..., Any]) -> None:
    scorer = speed_scorer(seconds=1e-5)
    server = start(scorer, queue={"max_wait_ms": 300})
    body = {"query": "usb", "documents": [f"tea {n}" for n in range(500)]}
    expected = scorer.score("usb", body["documents"])
    assert server.post("/v2/rerank", body).status_code == 200  # now the speed is known
    found: list[tuple[int, float, Any]] = []

    def one() -> None:
        before = time.monotonic()
        reply = server.post("/v2/rerank", body)
        found.append((reply.status_code, time.monotonic() - before, reply))

    threads = [threading.Thread(target=one) for _ in range(40)]
    for thread in threads:
        thread.start()
        time.sleep(0.01)
    for thread in threads:
        thread.join()
    shed = [(seconds, reply) for code, seconds, reply in found if code == 429]
    taken = [(seconds, reply) for code, seconds, reply in found if code == 200]
    assert len(shed) + len(taken) == 40 and shed and taken
    for _, reply in shed:
        assert int(reply.headers["retry-after"]) >= 1 and int(reply.headers["retry-after-ms"]) >= 1_000
    # Whoever is refused knows it sooner than whoever is answered.
    assert np.median([seconds for seconds, _ in shed]) < np.median([seconds for seconds, _ in taken])
    for _, reply in taken:
        scores = {item["index"]: item["relevance_score"] for item in reply.json()["results"]}
        assert np.allclose([scores[n] for n in range(500)], expected, atol=1e-5)
    assert server.app.queue.waiting[:2] == (0, 0)


def test_a_long_body_is_refused_before_it_comes_and_the_connection_goes_on(
    speed_scorer: Any, start: Callable[..., Any]
) -> None:
    scorer = speed_scorer(seconds=1e-5)
    server = start(scorer, queue={"max_pairs": 1_500})
    long = json.dumps({"query": "usb", "documents": [f"tea {n}".ljust(100) for n in range(1_000)]}).encode()
    assert server.client.post("/v2/rerank", content=long, headers=JSON).status_code == 200  # sizes are known now
    scorer.backend.hold.clear()
    waiting = threading.Thread(
        target=server.client.post, args=("/v2/rerank",), kwargs={"content": long, "headers": JSON}
    )
    waiting.start()
    while not server.app.queue.waiting[0]:
        time.sleep(0.01)
    with socket.create_connection(("127.0.0.1", server.port), timeout=5) as connection:
        connection.sendall(head(2 * len(long)))
        answer = b""
        while b'"request_id"' not in answer:  # the end of the body, which may come after the head
            part = connection.recv(65_536)
            assert part
            answer += part
        assert status(answer) == 429 and b"retry-after-ms" in answer and b"connection: close" not in answer.lower()
        connection.sendall(long + b" " * len(long))
        scorer.backend.hold.set()
        waiting.join()
        connection.settimeout(30)
        connection.sendall(head() + BODY)
        assert status(connection.recv(65_536)) == 200
    assert server.app.queue.waiting[:2] == (0, 0)


class Holes:
    """A backend that gives no number for pairs with a given token."""

    name = "holes"
    workers = 1

    def __init__(self, token: int) -> None:
        self.token = token

    def forward(self, batch: TokenBatch) -> Any:
        logits = (batch.token_ids.sum(axis=1) % 7).astype(np.float32)
        logits[(batch.token_ids == self.token).any(axis=1)] = np.nan
        return logits


def test_a_score_that_is_no_number_is_one_items_fault_many_are_an_error(
    tiny_pairs: PairTokenizer, start: Callable[..., Any]
) -> None:
    server = start(Scorer(Holes(tiny_pairs.tokenizer.token_to_id("shoes")), tiny_pairs))
    titles = [f"tea {n}" for n in range(199)]
    reply = server.post("/v2/rerank", {"query": "usb", "documents": ["shoes", *titles]})
    assert reply.status_code == 200
    results = reply.json()["results"]
    scores = {item["index"]: item["relevance_score"] for item in results}
    assert scores[0] == min(scores.values())
    assert 'pertinent_bad_items_total{reason="not_finite"} 1.0' in server.client.get("/metrics").text
    broken = server.post("/v2/rerank", {"query": "usb", "documents": ["shoes", "tea"]})
    assert broken.status_code == 500 and broken.json()["code"] == "backend"
    assert server.post("/rerank", {"query": "usb", "texts": ["shoes", "tea"]}).status_code == 424


def test_a_failing_backend_is_a_500_without_details(tiny_pairs: PairTokenizer, start: Callable[..., Any]) -> None:
    class Failing:
        name = "failing"
        workers = 1

        def forward(self, batch: TokenBatch) -> Any:
            raise RuntimeError("secret path /etc")

    server = start(Scorer(Failing(), tiny_pairs))
    reply = server.post("/v2/rerank", {"query": "usb", "documents": ["tea"]})
    assert reply.status_code == 500 and "secret" not in reply.text and "Traceback" not in reply.text
    assert server.client.get("/livez").status_code == 200


def test_a_batch_that_never_ends_turns_liveness_and_readiness_off(
    speed_scorer: Any, start: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pertinent.serving.app._STALLED", 0.2)
    scorer = speed_scorer()
    server = start(scorer)

    def health() -> set[int]:
        return {server.client.get(path).status_code for path in ("/livez", "/readyz", "/health")}

    def becomes(wanted: int) -> None:
        deadline = time.monotonic() + 10
        while health() != {wanted}:
            assert time.monotonic() < deadline
            time.sleep(0.02)

    becomes(200)
    scorer.backend.hold.clear()
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(server.client.post, "/v2/rerank", content=BODY, headers=JSON)
        try:
            becomes(503)
        finally:
            scorer.backend.hold.set()
        assert answer.result().status_code == 200
    becomes(200)


def test_health_goes_on_while_one_batch_takes_long(tiny_scorer: Scorer, start: Callable[..., Any]) -> None:
    """For less than the minute after which a batch is given up, and with the interpreter kept busy by it."""
    server = start(tiny_scorer)
    begun, done = threading.Event(), threading.Event()

    def compute(rows: Any) -> Any:
        begun.set()
        end = time.monotonic() + 4
        while time.monotonic() < end:
            pass
        return np.zeros(len(rows), dtype=np.float32)

    work = Work.computed("usb", 1, compute)
    server.app.queue._submit(work, tiny_scorer, "", None, False, lambda job: done.set())
    assert begun.wait(10)
    took = []
    while not done.is_set():
        for path in ("/livez", "/readyz", "/health"):
            before = time.monotonic()
            assert server.client.get(path).status_code == 200
            took.append(time.monotonic() - before)
    assert len(took) > 30 and max(took) < 1.0
    assert server.app.queue.stalled(60.0) is None
