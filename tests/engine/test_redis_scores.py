"""A shared cache that is slow, wrong, full or gone costs hits, never a request. On a real Redis server."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pertinent.engine.cache import Block, MemoryScores, ScoreCaches, query_digest
from pertinent.engine.redis_scores import PREFIX, CircuitBreaker, RedisScores, pack, unpack
from pertinent.errors import ConfigError

redis = pytest.importorskip("redis", reason="the redis client is not installed")

STAMP = b"s" * 16
TEA = query_digest(STAMP, "tea")
GENEROUS = 5.0  # for answers that are wanted, however busy the machine is


@pytest.fixture(scope="module")
def server(redis_server: Any) -> Any:
    return redis_server


@pytest.fixture
def shared(server: Any) -> Iterator[Callable[..., RedisScores]]:
    """``shared(budget)``: a level over an empty server."""
    server.client().flushall()
    made: list[RedisScores] = []

    def make(budget: float = GENEROUS, url: str = server.url, breaker: CircuitBreaker | None = None) -> RedisScores:
        made.append(RedisScores(url, seconds=60, budget=budget, breaker=breaker))
        return made[-1]

    yield make
    for each in made:
        each.close()


def digests(numbers: Any) -> Any:
    return np.array([[number, number * 7 + 1] for number in numbers], dtype=np.uint64).reshape(-1, 2)


def block(numbers: Any, offset: float = 0.0) -> Block:
    logits = np.array(list(numbers), dtype=np.float32) + np.float32(offset)
    return Block.of(digests(numbers), logits, np.array(list(numbers)) % 2 == 1)


def test_replicas_share_their_scores_bit_for_bit(shared: Any, server: Any) -> None:
    one, other = shared(), shared()
    scores = np.float32([0.1, -3.3333333, 1e-30])
    one.keep(TEA, Block.of(digests([1, 2, 3]), scores, np.array([True, False, False])))
    one.keep(TEA, block([4]))
    one.keep(query_digest(STAMP, "usb"), block([9]))
    assert one.flush()
    tea, none, usb = other.blocks([TEA, query_digest(STAMP, "mug"), query_digest(STAMP, "usb")])
    assert none is None and usb.logits.tolist() == [9.0]
    assert tea.logits.tobytes() == np.float32([*scores, 4.0]).tobytes()
    assert tea.truncated.tolist() == [True, False, False, False]
    assert 0 < server.client().ttl(PREFIX + TEA) <= 60
    assert other.blocks([]) == []
    assert (one.errors, other.errors, other.rejected) == (0, 0, 0)
    assert other.blocks([query_digest(b"another model 16", "tea")]) == [None]


def test_a_request_asks_once_for_all_its_queries(shared: Any, server: Any) -> None:
    level = shared()
    for query in ("a", "b", "c"):
        level.keep(query_digest(STAMP, query), block(range(50)))
    assert level.flush()
    before = server.client().info("commandstats")["cmdstat_mget"]["calls"]
    caches = ScoreCaches(STAMP, [MemoryScores(10**6), level])
    rows = np.repeat(np.arange(3), 50)
    items = digests([*range(50)] * 3)
    assert caches.find(["a", "b", "c"], rows, items).hit.all()
    assert caches.find(["a", "b", "c"], rows, items).level.tolist() == [0] * 150  # from memory the second time
    assert server.client().info("commandstats")["cmdstat_mget"]["calls"] == before + 1


def poisons(value: bytes) -> dict[str, bytes]:
    other = pack(query_digest(STAMP, "usb"), block([1, 2]))
    changed = bytearray(value)
    changed[-20] ^= 1
    return {
        "nothing": b"",
        "text": b"0.99",
        "cut": value[:-1],
        "longer": value + b"\0",
        "a flipped bit": bytes(changed),
        "another query's": other,
        "another format": b"PSC2" + value[4:],
        "a pickle": b"\x80\x04\x95" + value,
        "a wrong count": value[:4] + b"\xff\xff\xff\xff" + value[8:],
    }


def test_wrong_values_are_misses(shared: Any, server: Any) -> None:
    level = shared()
    value = pack(TEA, block([1, 2]))
    for number, poison in enumerate(poisons(value).values(), start=1):
        server.client().set(PREFIX + TEA, poison)
        assert level.blocks([TEA]) == [None]
        assert level.rejected == number
    for add in ("lpush", "sadd"):  # of another type
        server.client().delete(PREFIX + TEA)
        getattr(server.client(), add)(PREFIX + TEA, value)
        assert level.blocks([TEA]) == [None]
    level.keep(TEA, block([5]))
    assert level.flush()
    assert level.blocks([TEA])[0].logits.tolist() == [5.0]  # SET takes the place of whatever was there
    assert level.errors == 0


@given(st.binary(max_size=200))
def test_no_bytes_of_others_become_scores(content: bytes) -> None:
    assert unpack(TEA, content) is None
    assert unpack(TEA, b"PSC1" + content) is None


def test_scores_that_are_not_finite_are_no_scores() -> None:
    good = block([1, 2])
    assert unpack(TEA, pack(TEA, good)) is not None
    bad = Block(good.heads, good.checks, np.array([1.0, np.nan], np.float32), good.truncated)
    assert unpack(TEA, pack(TEA, bad)) is None
    assert unpack(TEA, None) is None and unpack(TEA, "text") is None


def test_a_slow_server_costs_its_budget_and_is_left_alone_after_some_failures(shared: Any, server: Any) -> None:
    now = [0.0]
    breaker = CircuitBreaker(failures=3, pause=1.0, longest=4.0, clock=lambda: now[0])
    level = shared(0.002, breaker=breaker)
    level.keep(TEA, block([9]))
    assert level.flush()
    server.client().client_pause(1_500)  # every command waits so long
    started = time.monotonic()
    for _ in range(3):
        assert level.blocks([TEA]) == [None]
    assert time.monotonic() - started < 0.5
    assert level.errors == 3 and breaker.open
    assert level.blocks([TEA]) == [None] and level.errors == 3  # not even asked
    level.keep(TEA, block([1]))  # nor written to
    assert level.flush() and level.errors == 3
    server.wait()
    now[0] = 1.5
    level.budget = GENEROUS
    level.keep(TEA, block([1]))
    assert level.flush()
    assert level.blocks([TEA])[0].logits.tolist() == [1.0, 9.0]
    assert not breaker.open


def test_a_server_that_trickles_or_says_nothing_costs_its_budget(shared: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        connections: list[socket.socket] = []

        def trickle() -> None:
            try:
                while True:
                    connections.append(listening.accept()[0])
            except OSError:
                return

        thread = threading.Thread(target=trickle)
        thread.start()
        level = shared(0.002, f"redis://127.0.0.1:{listening.getsockname()[1]}")
        started = time.monotonic()
        for _ in range(20):
            assert level.blocks([TEA]) == [None]
        assert time.monotonic() - started < 3
        assert level.breaker.open
        listening.shutdown(socket.SHUT_RDWR)
    thread.join()
    for each in connections:
        each.close()


@pytest.mark.parametrize("answer", [5, None, [b"a", b"b"], [], "OK", AttributeError("no"), TypeError("no")], ids=repr)
def test_what_no_redis_would_say_is_a_miss_and_ends_no_thread(
    answer: Any, shared: Any, server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    level = shared()
    level.keep(TEA, block([1]))
    assert level.flush()

    def mget(keys: Any) -> Any:
        if isinstance(answer, Exception):
            raise answer
        return answer

    with monkeypatch.context() as patch:
        patch.setattr(level._client, "mget", mget)
        assert level.blocks([TEA]) == [None]
        level.keep(TEA, block([2]))
        assert level.flush()
    level.keep(TEA, block([3]))
    assert level.flush() and level.errors >= 2
    (found,) = level.blocks([TEA])
    assert found is not None and (found.find(digests([1, 3])) >= 0).all()


def test_a_server_that_speaks_something_else_is_a_miss(shared: Any) -> None:
    said = [b"+OK\r\n", b"*2\r\n$1\r\na\r\n$1\r\nb\r\n", b"$-7\r\n", b":1\r\n", b"\x00\xff\r\n", b"%1\r\n"]
    with socket.create_server(("127.0.0.1", 0)) as listening:
        ended = threading.Event()

        def speak() -> None:
            listening.settimeout(0.1)
            turn = 0
            while not ended.is_set():
                with contextlib.suppress(OSError):
                    connection, _ = listening.accept()
                    with connection:
                        connection.settimeout(1)
                        while connection.recv(4_096):
                            connection.sendall(said[turn % len(said)])
                            turn += 1

        speaking = threading.Thread(target=speak)
        speaking.start()
        never = CircuitBreaker(failures=10**9, pause=1.0, longest=1.0)
        level = shared(url=f"redis://127.0.0.1:{listening.getsockname()[1]}/0", breaker=never)
        for number in range(30):
            assert level.blocks([TEA]) == [None]
            level.keep(TEA, block([number]))
        assert level.flush(60) and level._writer.is_alive()
        ended.set()
        speaking.join()


def test_a_server_that_is_killed_and_comes_back(shared: Any, server: Any) -> None:
    now = [0.0]
    level = shared(breaker=CircuitBreaker(failures=2, pause=1.0, longest=4.0, clock=lambda: now[0]))
    level.keep(TEA, block([1]))
    assert level.flush() and level.blocks([TEA])[0] is not None
    server.kill()
    try:
        for _ in range(4):
            assert level.blocks([TEA]) == [None]
            level.keep(TEA, block([2]))
        assert level.flush() and level.breaker.open and level.errors >= 2
    finally:
        server.start()
    now[0] += 10.0
    assert level.blocks([TEA]) == [None]  # empty again, but answered
    level.keep(TEA, block([3]))
    assert level.flush()
    assert level.blocks([TEA])[0].logits.tolist() == [3.0]


def test_an_evicted_or_flushed_value_is_a_miss(shared: Any, server: Any) -> None:
    level = shared()
    level.keep(TEA, block([1]))
    assert level.flush()
    server.client().flushall()
    assert level.blocks([TEA]) == [None]
    server.client().config_set("maxmemory", "1")  # nothing can be written
    try:
        level.keep(TEA, block([1]))
        assert level.flush()
        assert level.blocks([TEA]) == [None] and level.errors == 1
    finally:
        server.client().config_set("maxmemory", "0")


def test_writes_that_pile_up_are_left_out(shared: Any, server: Any) -> None:
    level = shared()
    server.client().client_pause(200)
    for _ in range(2_000):
        level.keep(TEA, block([1]))
    assert level.dropped > 1_000
    server.wait()
    level.close()
    assert level.blocks([TEA]) == [None]  # closed


def test_a_wrong_address_is_an_error_of_the_settings_and_an_absent_server_is_not() -> None:
    with pytest.raises(ConfigError, match="give an address such as redis://"):
        RedisScores("localhost:6379", seconds=60, budget=0.002)
    told = set()
    for url in (
        "redis://user:hid/den@host:6379/0",
        "redis://:hidden@host:six",
        "redis://[hidden",
        "http://:hidden@host",
    ):
        with pytest.raises(ConfigError, match="give an address such as redis://") as caught:
            RedisScores(url, seconds=60, budget=0.002)
        told.add(str(caught.value))
    assert len(told) == 1 and "hid" not in told.pop(), "what is said depends on the address"
    nobody = RedisScores("redis://127.0.0.1:1", seconds=60, budget=GENEROUS)
    assert nobody.blocks([TEA]) == [None]
    assert nobody.errors == 1
    nobody.close()


def test_a_breaker_opens_after_failures_in_a_row_and_lets_one_try_through() -> None:
    now = [0.0]
    breaker = CircuitBreaker(failures=2, pause=1.0, longest=3.0, clock=lambda: now[0])
    breaker.failed()
    breaker.succeeded()
    breaker.failed()
    assert breaker.allows() and not breaker.open
    breaker.failed()
    assert breaker.open and not breaker.allows()
    for pause, longer in ((1.0, 2.0), (2.0, 3.0), (3.0, 3.0)):
        now[0] += pause
        assert not breaker.open
        assert [breaker.allows(), breaker.allows()] == [True, False]
        breaker.failed()
        now[0] += longer - 0.1
        assert not breaker.allows()
        now[0] -= longer - 0.1
    now[0] += 3.0
    assert breaker.allows()
    breaker.succeeded()
    assert breaker.allows() and breaker.allows()
