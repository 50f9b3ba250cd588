"""Faults against the real server process, one test a line of the table in docs/reliability.md.

One process answers them all: after each fault it still scores a known request right, and at the end its log
holds no trace and its metrics no error of its own.
"""

from __future__ import annotations

import contextlib
import gzip
import http.client
import json
import os
import re
import resource
import select
import socket
import statistics
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import httpx2
import numpy as np
import psutil
import pytest
import zstandard

from pertinent.artifact import Artifact
from pertinent.engine.index import IndexConfig, ItemIndex
from pertinent.engine.scorer import Scorer
from pertinent.lexicon.pairs import PairTokenizer
from pertinent.records import Item

TITLES = ["wireless earbuds", "usb cable", "日本語 イヤホン", "tea pot green"]
JSON = {"content-type": "application/json"}
SECONDS = 2.0  # until a slow head or body is given up
BODY_BYTES, CONNECTIONS = 4_000_000, 1_500
LIMITS = {
    "limits.header_seconds": SECONDS,
    "limits.body_seconds": SECONDS,
    "limits.body_bytes": BODY_BYTES,
    "limits.connections": CONNECTIONS,
    "limits.characters": 3_000_000,
}


class Server:
    """The process, a client, and what it should answer."""

    def __init__(self, process: Any, expected: list[float]) -> None:
        self.process, self.expected = process, expected
        self.url: str = process.url
        self.port = int(self.url.rsplit(":", 1)[1])
        self.admin_url: str = "http://127.0.0.1:" + str(process.events("ready")[0]["admin_port"])
        self.client = httpx2.Client(base_url=self.url, timeout=30, trust_env=False)
        self.inside = psutil.Process(process.process.pid)

    def post(self, content: bytes | dict[str, Any], path: str = "/v2/rerank", **headers: str) -> httpx2.Response:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        return self.client.post(path, content=body, headers={**JSON, **headers})

    def right(self) -> bool:
        """Whether a known request gets its known scores."""
        reply = self.post({"query": "usb", "documents": TITLES})
        found = {item["index"]: item["relevance_score"] for item in reply.json()["results"]}
        return bool(np.allclose([found[place] for place in range(4)], self.expected, atol=1e-5))

    def connect(self, seconds: float = 10.0) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=seconds)

    def raw(self, content: bytes) -> tuple[int, bytes]:
        """Status and body of the answer to raw bytes; 0 where the connection was closed without one."""
        with self.connect() as connection:
            connection.sendall(content)
            answer = b""
            try:
                while part := connection.recv(65_536):
                    answer += part
            except (TimeoutError, ConnectionError):
                pass
        status = int(answer.split(b" ", 2)[1]) if answer.startswith(b"HTTP/1.1 ") else 0
        return status, answer.partition(b"\r\n\r\n")[2]

    def metric(self, line: str) -> float:
        text = self.client.get(self.admin_url + "/metrics").text
        return sum(float(each.rsplit(" ", 1)[1]) for each in text.splitlines() if each.startswith(line))


@pytest.fixture(scope="module")
def server(
    run_shared: Callable[..., Any], tiny_artifact: Artifact, tiny_pairs: PairTokenizer, tmp_path_factory: Any
) -> Iterator[Server]:
    index = tmp_path_factory.mktemp("faults") / "index"
    items = [Item(f"B{number}", f"{TITLES[number % 4]} {number}") for number in range(50)]
    ItemIndex.build(items, tiny_pairs, index, config=IndexConfig(progress=False))
    settings = [part for name, value in LIMITS.items() for part in ("--set", f"{name}={value}")]
    process = run_shared(
        str(tiny_artifact.path), "--index", str(index), "--admin-port", "0", "--drain-delay", "0", *settings
    )
    process.wait_for("ready")
    found = Server(process, Scorer.load(tiny_artifact.path).score("usb", TITLES).tolist())
    yield found
    assert found.right()
    # The clients' faults are not the server's: no error of its own was answered, no trace written.
    answered = found.client.get(found.admin_url + "/metrics").text
    assert 'status="500"' not in answered and 'status="503"' not in answered
    found.client.close()
    assert process.end(30) == 0
    assert not any("Traceback" in line or '"level":"error"' in line for line in process.lines)


def head(length: int | str, *more: str, path: str = "/v2/rerank") -> bytes:
    lines = [f"POST {path} HTTP/1.1", "host: x", "content-type: application/json", f"content-length: {length}", *more]
    return "\r\n".join(lines).encode() + b"\r\n\r\n"


PAYLOAD = json.dumps({"query": "usb", "documents": TITLES}).encode()
CLOSE = "connection: close"
CHUNKED = head(0).replace(b"content-length: 0", b"transfer-encoding: chunked")


# --- connection and HTTP ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [
        head(len(PAYLOAD), "content-length: 4") + PAYLOAD,
        head(len(PAYLOAD), "transfer-encoding: chunked") + b"0\r\n\r\n",
        head(4, "transfer-encoding: chunked") + b"5c\r\n" + PAYLOAD,
        head("0x10") + PAYLOAD,
        head("4 4") + PAYLOAD,
        head(len(PAYLOAD), "transfer-encoding : chunked") + PAYLOAD,
        head(len(PAYLOAD), "transfer-encoding:\tchunked, identity") + PAYLOAD,
        head(len(PAYLOAD), "x-a: b\r\n c") + PAYLOAD,
        head(len(PAYLOAD), "x-a: b\n x-b: c") + PAYLOAD,
        head(len(PAYLOAD)).replace(b"\r\n", b"\n") + PAYLOAD,
        head(len(PAYLOAD), "x-a: b\rx-c: d") + PAYLOAD,
        CHUNKED + b"-1\r\n",
        CHUNKED + b"f" * 21 + b"\r\n",
        CHUNKED + b"g\r\n",
        b"POST /v2/rerank HTTP/1.1\r\nhost: a\r\nhost: b\r\ncontent-length: 0\r\n\r\n",
    ],
)
def test_smuggling_probes_are_refused_and_what_follows_them_is_never_read(content: bytes, server: Server) -> None:
    smuggled = b"GET /smuggled HTTP/1.1\r\nhost: x\r\n\r\n"
    with server.connect(5) as connection:
        connection.sendall(content + smuggled)
        answer = b""
        try:
            while part := connection.recv(65_536):
                answer += part
        except ConnectionError:
            pass
    assert answer.startswith(b"HTTP/1.1 400"), answer[:300]
    assert len(re.findall(rb"HTTP/1\.1 \d{3} ", answer)) == 1 and b"Traceback" not in answer
    assert server.right()


def test_lengths_that_lie_are_told_and_take_no_memory(server: Server) -> None:
    before = server.inside.memory_info().rss
    for length, wanted in ((10**18, 413), (BODY_BYTES + 1, 413), (10**40, 400), (-5, 400)):
        assert server.raw(head(length, CLOSE) + PAYLOAD)[0] == wanted
    # Shorter than it says: the rest would be the next request, which is none.
    assert server.raw(head(len(PAYLOAD) - 20, CLOSE) + PAYLOAD)[0] == 400
    assert server.inside.memory_info().rss - before < 20_000_000
    assert server.right()


def test_what_is_too_large_is_refused_before_it_is_read(server: Server) -> None:
    assert server.raw(b"GET /health HTTP/1.1\r\nhost: x\r\nx: " + b"a" * 30_000 + b"\r\n\r\n")[0] == 431
    many = "".join(f"x-{number}: a\r\n" for number in range(200)).encode()
    assert server.raw(b"GET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n" + many + b"\r\n")[0] == 431
    assert server.raw(b"GET /" + b"a" * 9_000 + b" HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")[0] == 414
    assert server.post(b" " * (BODY_BYTES + 1)).status_code == 413
    chunks = b"10000\r\n" + b" " * 65_536 + b"\r\n"
    with server.connect() as connection:
        connection.sendall(CHUNKED)
        try:
            for _ in range(200):  # 13 MB that no length announced
                connection.sendall(chunks)
        except ConnectionError:
            pass
        else:
            assert connection.recv(100).startswith(b"HTTP/1.1 413")
    assert server.right()


def test_slow_heads_and_bodies_end_with_408_and_take_no_place(server: Server) -> None:
    beginnings = [b"POST /v2/re", head(len(PAYLOAD))[:40], head(len(PAYLOAD)), head(len(PAYLOAD)) + PAYLOAD[:30]]
    held = [server.connect(15) for _ in range(4 * len(beginnings))]
    before = time.monotonic()
    for connection, content in zip(held, beginnings * 4, strict=True):
        connection.sendall(content)
    time.sleep(0.2)
    assert server.metric("pertinent_queue_requests ") == 0
    stop = threading.Event()

    def drip() -> None:  # a byte now and then does not count as progress
        while not stop.wait(0.3):
            for connection in held[:4]:
                with contextlib.suppress(OSError):
                    connection.send(b"a")

    thread = threading.Thread(target=drip, daemon=True)
    thread.start()
    assert server.right()
    answers = []
    for connection in held:
        try:
            answers.append(connection.recv(1_000)[:12])
        except ConnectionError:
            answers.append(b"")
        connection.close()
    stop.set()
    thread.join()
    assert set(answers[4:]) == {b"HTTP/1.1 408"} and set(answers) <= {b"HTTP/1.1 408", b"HTTP/1.1 400", b""}
    assert time.monotonic() - before < 10 * SECONDS


def idle_connections() -> int:
    """10,000 where the machine allows so many files, fewer in CI."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = 2_000 if os.environ.get("CI") else 10_000
    return max(0, min(most, soft - 1_000))


def test_many_idle_connections_keep_nobody_out(server: Server) -> None:
    held: list[socket.socket] = []
    slow: list[float] = []
    try:
        for number in range(idle_connections()):
            connection = socket.socket()
            connection.setblocking(False)
            connection.connect_ex(("127.0.0.1", server.port))
            held.append(connection)
            if number % 1_000 == 500:
                before = time.monotonic()
                assert server.right()
                assert httpx2.get(f"{server.admin_url}/readyz", trust_env=False, timeout=10).status_code == 200
                slow.append(time.monotonic() - before)
        # The longest idle ones had to go.
        deadline = time.monotonic() + 60
        # Others still come: what the kernel has queued is taken up all at once, before the cap is seen to.
        while (files := server.inside.num_fds()) > CONNECTIONS + 200 and time.monotonic() < deadline:
            time.sleep(0.05)
        states = Counter(each.status for each in server.inside.net_connections())
        assert files <= CONNECTIONS + 200, f"{number + 1} asked, {states}, {server.process.lines[-3:]}"
    finally:
        for connection in held:
            connection.close()
    assert max(slow, default=0) < 10
    assert server.right()


def test_clients_that_reset_while_waiting_or_scored_are_dropped_and_counted(server: Server) -> None:
    before = server.metric('pertinent_requests_total{dialect="cohere",route="/v2/rerank",status="499"}')
    body = json.dumps({"query": "usb", "documents": [f"tea {number}" for number in range(9_000)]}).encode()
    for _ in range(8):
        connection = server.connect()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # close with a reset
        connection.sendall(head(len(body)) + body)
        time.sleep(0.02)
        connection.close()
    deadline = time.monotonic() + 20
    while server.metric("pertinent_queue_requests ") and time.monotonic() < deadline:
        time.sleep(0.02)
    assert server.metric("pertinent_queue_requests ") == 0 and server.metric("pertinent_queue_pairs ") == 0
    left = server.metric('pertinent_requests_total{dialect="cohere",route="/v2/rerank",status="499"}') - before
    assert left >= 1
    assert server.right()


def test_unusual_but_right_http_is_answered(server: Server) -> None:
    two = head(len(PAYLOAD)) + PAYLOAD + head(len(PAYLOAD), CLOSE) + PAYLOAD
    with server.connect() as connection:
        connection.sendall(two)
        answer = b""
        while part := connection.recv(65_536):
            answer += part
    assert answer.count(b"HTTP/1.1 200") == 2
    assert server.raw(head(len(PAYLOAD), CLOSE).replace(b"HTTP/1.1", b"HTTP/1.0") + PAYLOAD)[0] == 200
    chunked = b"POST /v2/rerank HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\nconnection: close\r\n"
    pieces = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (PAYLOAD[:7], PAYLOAD[7:]))
    assert server.raw(chunked + b"transfer-encoding: chunked\r\n\r\n" + pieces + b"0\r\n\r\n")[0] == 200
    assert server.client.head("/health").status_code == 200
    assert server.client.options("/v2/rerank").status_code == 204
    tls = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200)
    assert server.raw(tls)[0] == 400 and server.raw(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")[0] == 400


def test_other_media_are_refused(server: Server) -> None:
    for media in (
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=a",
        "application/json; charset=utf-16",
    ):
        assert server.client.post("/v2/rerank", content=PAYLOAD, headers={"content-type": media}).status_code == 415
    assert server.client.post("/v2/rerank", content=PAYLOAD).status_code == 415


def bombs() -> Iterator[tuple[bytes, str, int]]:
    zeros = bytes(300_000_000)
    stated = zstandard.ZstdCompressor(level=1).compress(zeros)
    yield gzip.compress(zeros, 1), "gzip", 413
    yield stated, "zstd", 413
    unstated = zstandard.ZstdCompressor(level=1).compressobj()
    yield unstated.compress(zeros[:50_000_000]) + unstated.flush(), "zstd", 413
    yield gzip.compress(gzip.compress(PAYLOAD)), "gzip", 400  # what is inside is no JSON
    yield gzip.compress(PAYLOAD), "gzip, gzip", 415
    yield gzip.compress(PAYLOAD), "br", 415
    yield gzip.compress(PAYLOAD)[:-9], "gzip", 400
    yield zstandard.ZstdCompressor().compress(PAYLOAD)[:-3], "zstd", 400
    yield b"\x28\xb5\x2f\xfd" + b"\xff" * 40, "zstd", 400
    wide = zstandard.ZstdCompressionParameters.from_level(1, window_log=27)  # 128 MB to remember for 92 bytes
    asking = zstandard.ZstdCompressor(compression_params=wide).compressobj()
    yield asking.compress(PAYLOAD) + asking.flush(), "zstd", 400


def test_compression_bombs_take_no_more_memory_than_a_body(server: Server) -> None:
    server.right()
    before = server.inside.memory_info().rss
    for content, encoding, wanted in bombs():
        assert server.post(content, **{"content-encoding": encoding}).status_code == wanted, encoding
        assert server.inside.memory_info().rss - before < 10 * BODY_BYTES
    assert server.right()


# --- JSON and texts ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        (b"[" * 200_000, 400),
        (b'{"query":"usb","documents":' + b'{"a":' * 100_000, 422),
        (b'{"query":"usb","documents":["a"],"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}", 400),
        (json.dumps({f"k{n}": 1 for n in range(100_000)} | {"query": "usb", "documents": ["a"]}).encode(), 200),
        (b'{"' + b"k" * 3_000_000 + b'":1,"query":"usb","documents":["a"]}', 200),
        (b'{"query":"a","query":"usb","documents":["a"]}', 200),
        (b'\xef\xbb\xbf{"query":"usb","documents":["a"]}', 200),
        ('{"query":"usb","documents":["a"]}'.encode("utf-16"), 400),
        (b'{"query":"usb","documents":["\xff"]}', 400),
        (b'{"query":"usb","documents":["a"],"top_n":NaN}', 422),
        (b'{"query":"usb","documents":["a"],"top_n":Infinity}', 422),
        (b'{"query":"usb","documents":["a"],"top_n":1e400}', 422),
        (b'{"query":"usb","documents":["a"],"top_n":' + b"9" * 5_000 + b"}", 422),
        (b'{"query":"usb","documents":["a"],"top_n":true}', 422),
        (b'{"query":"usb","documents":["a"],"top_n":"3"}', 422),
        (b'{"query":"usb","documents":["a"],"top_n":1.0}', 200),
        (b'{"query":"usb","documents":["a"],"top_n":null}', 200),
        (b'{"query":"usb","documents":[["a"]]}', 422),
        (b'{"query":"usb","documents":null}', 422),
        (b'{"query":"usb","documents":{}}', 422),
        (b'{"query":"usb","texts":["a"]}', 422),
        (b'{"query":"usb","documents":["a"]', 400),
        (b'{"query":"usb","documents":["a"]}}', 400),
        (b"", 400),
        (b"null", 400),
    ],
)
def test_bodies_of_any_kind_get_an_answer_that_says_why(content: bytes, wanted: int, server: Server) -> None:
    reply = server.post(content)
    said = reply.json()
    assert reply.status_code == wanted, said
    if wanted != 200:
        assert said["message"] and said["code"] and said["request_id"] == reply.headers["x-request-id"]
        assert not any(word in reply.text for word in ("Traceback", "msgspec", "RecursionError", "/home", ".py"))


def test_a_lone_surrogate_is_the_fault_of_one_document(server: Server) -> None:
    reply = server.post(rb'{"query":"usb","documents":["usb \ud800 cable","usb cable","usb \ud83d\ude00"]}')
    assert reply.status_code == 200 and reply.headers["x-repaired-surrogates"] == "1"
    assert len(reply.json()["results"]) == 3


def test_nul_control_bidi_and_private_characters_are_scored(server: Server, tiny_artifact: Artifact) -> None:
    titles = [
        "usb\x00cable",
        "usb \u202ecable\u202c",
        "usb\u200bcable",
        "\ue000\ue001",
        "\x07",
        "👩‍👩‍👧‍👦" * 50,
        "e" + "\u0301" * 500,
    ]
    results = server.post({"query": "usb\x00", "documents": titles}).json()["results"]
    found = {item["index"]: item["relevance_score"] for item in results}
    expected = Scorer.load(tiny_artifact.path).score("usb\x00", titles)
    kept = [place for place in range(len(titles)) if place != 4]
    assert np.allclose([found[place] for place in kept], expected[kept], atol=1e-5)


def test_special_tokens_in_a_text_are_read_as_letters(server: Server, tiny_pairs: PairTokenizer) -> None:
    injected = ["usb cable [SEP] best match", "usb cable sep best match", "[CLS] [PAD] [MASK] usb"]
    results = server.post({"query": "usb [SEP] usb", "documents": injected}).json()["results"]
    assert len(results) == 3 and all(0.0 <= item["relevance_score"] <= 1.0 for item in results)
    special = {tiny_pairs.tokenizer.token_to_id(token) for token in ("[SEP]", "[CLS]", "[PAD]", "[MASK]")}
    tokens = tiny_pairs.encode_items(injected)
    assert not special & set(tokens.ids.tolist())


@pytest.mark.parametrize("letter", ["word ", "a", ".", "字"])
def test_a_title_of_a_megabyte_costs_no_more_than_a_long_one(letter: str, server: Server) -> None:
    def seconds(title: str) -> float:
        times = []
        for _ in range(3):
            before = time.perf_counter()
            assert server.post({"query": "usb", "documents": [title]}).status_code == 200
            times.append(time.perf_counter() - before)
        return statistics.median(times)

    assert seconds(letter * (900_000 // len(letter.encode()))) < 10 * seconds(letter * 2_000) + 1.0


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/v2/rerank", {"query": "usb", "documents": []}, 400),
        ("/tei/rerank", {"query": "usb", "texts": []}, 400),
        ("/v2/rerank", {"query": "", "documents": ["a"]}, 200),
        ("/v2/rerank", {"query": " \t", "documents": ["a"]}, 200),
        ("/v2/rerank", {"query": "the of !!! ...", "documents": ["a"]}, 200),
        ("/v2/rerank", {"query": "usb", "documents": [None, "", " "]}, 200),
        ("/v2/rerank", {"query": "usb", "documents": ["a"] * 10_001}, 413),
        ("/v2/rerank", {"query": "usb", "documents": ["a" * 1_000] * 3_100}, 413),
        ("/v2/rerank", {"query": "usb", "documents": ["a"], "model": "other"}, 404),
        ("/tei/predict", {"inputs": "one text"}, 422),
        ("/rerank", {"query": "usb", "documents": ["a"], "texts": ["a"]}, 422),
        ("/v1/relevance", {"query": "usb", "texts": ["a" * 1_000] * 3_100}, 413),
    ],
)
def test_empty_blank_and_too_much(path: str, body: dict[str, Any], status: int, server: Server) -> None:
    assert server.post(body, path).status_code == status


@pytest.mark.parametrize("size", [1, 2, 31, 32, 33, 512, 513, 1_000, 3_000, 5_000, 10_000])
def test_a_pair_has_one_score_in_lists_of_every_size(size: int, server: Server) -> None:
    titles = [TITLES[place % 4] for place in range(size)]
    results = server.post({"query": "usb", "documents": titles}).json()["results"]
    assert sorted(item["index"] for item in results) == list(range(size))
    assert all(abs(item["relevance_score"] - server.expected[item["index"] % 4]) < 1e-5 for item in results)
    # Equal scores by place, each duplicate with its own.
    for kind in range(min(4, size)):
        places = [item["index"] for item in results if item["index"] % 4 == kind]
        assert places == sorted(places)


def test_unknown_and_stale_ids_are_told_and_the_others_scored(server: Server) -> None:
    before = server.metric('pertinent_bad_items_total{reason="unknown"}')
    reply = server.post({"query": "usb", "item_ids": ["B1", "gone", "B2", "B1"]}, "/v1/relevance")
    assert reply.status_code == 200 and reply.headers["x-bad-items"] == "1"
    assert reply.json()["unknown"] == [1] and sorted(reply.json()["ids"]) == ["B1", "B1", "B2"]
    everything = server.post({"query": "usb", "item_ids": ["gone", "away"]}, "/v1/relevance")
    assert everything.status_code == 200 and everything.json()["ids"] == []
    assert server.metric('pertinent_bad_items_total{reason="unknown"}') - before == 3


# --- access -----------------------------------------------------------------------------------


def test_an_admin_port_takes_metrics_and_configuration_off_the_other(server: Server) -> None:
    for path in ("/metrics", "/v1/config", "/openapi.json", "/"):
        assert server.client.get(server.url + path).status_code == 404
        assert httpx2.get(server.admin_url + path, trust_env=False).status_code == 200
    body = {"query": "usb", "top": 3}
    assert server.post(body, "/v1/candidates").status_code == 404
    assert httpx2.post(f"{server.admin_url}/v1/candidates", json=body, trust_env=False).status_code == 200
    for path in ("/livez", "/readyz", "/health", "/v1/models", "/info"):
        assert server.client.get(server.url + path).status_code == 200
        assert httpx2.get(server.admin_url + path, trust_env=False).status_code == 200


def test_no_page_of_another_site_may_read_answers(server: Server) -> None:
    headers = {"origin": "https://elsewhere.example", "access-control-request-method": "POST"}
    for reply in (
        server.client.options("/v2/rerank", headers=headers),
        server.post(PAYLOAD, origin="https://e.example"),
    ):
        assert not any(name.startswith("access-control") for name in reply.headers)


def test_errors_show_no_versions_paths_or_traces(server: Server) -> None:
    for path in ("/nothing", "/../../etc/passwd", "/v1/models/%00"):
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
        connection.request("GET", path)
        reply = connection.getresponse()
        text = reply.read().decode()
        names = {name.lower() for name, _ in reply.getheaders()}
        connection.close()
        assert reply.status in (404, 400) and "server" not in names
        assert not any(word in text for word in ("Traceback", "pertinent/", "uvicorn", "python"))


def test_descriptors_and_memory_return_after_all_this(server: Server) -> None:
    deadline = time.monotonic() + 10
    while server.inside.num_fds() > 120 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert server.inside.num_fds() <= 120
    assert server.inside.memory_info().rss < 1_500_000_000
    assert select.select([server.process.process.stdout], [], [], 0)[0] == []  # nothing on stdout
