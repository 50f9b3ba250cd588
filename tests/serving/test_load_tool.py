"""The load tool: its timetable, its client, and what it makes of slow and broken servers."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pertinent.cli import main
from pertinent.engine.index import ItemIndex
from pertinent.engine.scorer import Scorer
from pertinent.errors import ConfigError
from pertinent.load.client import BadAnswer, Pool, Target, parse_head
from pertinent.load.page import report
from pertinent.load.plan import DIALECTS, LoadConfig, check, choose, make_calls, timetable
from pertinent.load.results import Call, Outcomes, group_of, percentiles, summary
from pertinent.load.run import drive, load

OK = b'{"results": []}'


@pytest.fixture(scope="module")
def speed_server(tiny_scorer: Scorer, tiny_index: ItemIndex, start: Callable[..., Any]) -> Any:
    return start(tiny_scorer, tiny_index)


@pytest.fixture(scope="module")
def catalog(tiny_index: ItemIndex, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The items of the index as a file."""
    path = tmp_path_factory.mktemp("catalog") / "items.csv"
    rows = [(item.item_id, item.title or "pot") for item in tiny_index.items(list(range(len(tiny_index))))]
    path.write_text("item_id,title\n" + "".join(f"{item_id},{title}\n" for item_id, title in rows), encoding="utf-8")
    return path


class Fake:
    """A server of raw answers in a thread: ``behave(number)`` gives the bytes and the seconds before them."""

    def __init__(self) -> None:
        self.asked: list[bytes] = []
        self.behave: Any = lambda number: (answer(OK), 0.0)
        self.loop = asyncio.new_event_loop()
        self.busy = asyncio.Lock()
        started = threading.Event()

        def work() -> None:
            asyncio.set_event_loop(self.loop)
            self.server = self.loop.run_until_complete(asyncio.start_server(self.handle, "127.0.0.1", 0))
            started.set()
            self.loop.run_forever()

        self.thread = threading.Thread(target=work, daemon=True)
        self.thread.start()
        started.wait(10)
        self.port: int = self.server.sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(parse_head(b"HTTP/1.1 200\r\n" + head.partition(b"\r\n")[2])[1].get("content-length", 0))
                body = await reader.readexactly(length)
                number = len(self.asked)
                self.asked.append(head + body)
                content, seconds = self.behave(number)
                async with self.busy:  # one at a time: a slow answer holds up the next
                    await asyncio.sleep(seconds)
                if content is None:
                    writer.transport.abort()
                    return
                writer.write(content)
                await writer.drain()
                if b"connection: close" in content:
                    return
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    def stop(self) -> None:
        async def end() -> None:
            self.server.close()
            tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await asyncio.sleep(0.05)  # closed connections are taken down by the loop's next turns

        asyncio.run_coroutine_threadsafe(end(), self.loop).result(10)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(10)
        self.loop.close()


def answer(body: bytes, status: int = 200, *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status} X", f"content-length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


@pytest.fixture(scope="module")
def fake() -> Iterator[Fake]:
    server = Fake()
    yield server
    server.stop()


def run(fake: Fake, times: list[float], connections: int = 8, timeout: float = 5.0, right: Any = None) -> Outcomes:
    target = Target.of(fake.url)
    call = Call(1, target.request("POST", "/v2/rerank", b"{}"))
    when = np.array(times, dtype=np.float64)
    choices = np.zeros(len(times), dtype=np.int64)
    return asyncio.run(drive(target, [call], when, choices, connections, timeout, right))


def test_waiting_behind_a_slow_answer_is_in_every_latency_behind_it(fake: Fake) -> None:
    start = len(fake.asked)
    fake.behave = lambda number: (answer(OK), 0.5 if number == start else 0.0)
    outcomes = run(fake, [0.0, 0.1, 0.2, 0.3, 0.9], connections=1)
    # A tool that waits for the answer before it sends the next would have seen one slow request.
    assert outcomes.answered.all()
    assert (outcomes.latency[:4] > [0.45, 0.35, 0.25, 0.15]).all() and outcomes.latency[4] < outcomes.latency[0]


def test_what_fails_is_counted_by_its_kind(fake: Fake) -> None:
    start = len(fake.asked)
    kinds = [answer(OK), answer(b"{}", 429), None, b"nonsense\r\n\r\n", answer(b"{}", 500), answer(OK)]
    fake.behave = lambda number: (kinds[number - start], 0.0)
    outcomes = run(fake, [0.05 * place for place in range(6)], right=lambda call, reply: False)
    assert sorted(outcomes.status.tolist()) == [0, 0, 200, 200, 429, 500]
    found = group_of(None, outcomes, None)
    assert (found.sent, found.answered, found.good, found.refused, found.failed, found.wrong) == (6, 2, 0, 1, 3, 2)
    assert sum(outcomes.problems.values()) == 2


def test_no_answer_in_time_is_a_failure(fake: Fake) -> None:
    start = len(fake.asked)
    fake.behave = lambda number: (answer(OK), 0.6 if number == start else 0.0)
    outcomes = run(fake, [0.0], timeout=0.1)
    assert outcomes.status.tolist() == [-1] and group_of(None, outcomes, None).failed == 1


@pytest.mark.parametrize(
    "content",
    [
        answer(OK),
        b"HTTP/1.1 100 Continue\r\n\r\n" + answer(OK),
        b'HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5;x=1\r\n{"res\r\na\r\nults": []}\r\n0\r\na: b\r\n\r\n',
        b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n" + OK,
        answer(OK, 200, "connection: close"),
    ],
)
def test_answers_of_every_framing_are_read_whole(content: bytes, fake: Fake) -> None:
    fake.behave = lambda number: (content, 0.0)

    async def twice() -> list[Any]:
        pool = Pool(Target.of(fake.url), 1)
        replies = [await pool.send(Target.of(fake.url).request("GET", "/")) for _ in range(2)]
        await pool.close()
        return replies

    assert [(reply.status, reply.body) for reply in asyncio.run(twice())] == [(200, OK)] * 2


CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    "content",
    [
        CHUNKED + b"2;" + b"x" * 200_000 + b"\r\n{}\r\n0\r\n\r\n",
        CHUNKED + b"2\r\n{}\r\n0\r\na: " + b"b" * 200_000 + b"\r\n\r\n",
        CHUNKED + b"-2\r\n{}\r\n0\r\n\r\n",
        b"HTTP/1.1 \xb2 OK\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: \xb2\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: " + b"0" * 5_000 + b"\r\n\r\n",
    ],
    ids=["chunk", "trailer", "negative", "status", "length", "digits"],
)
def test_an_answer_that_is_no_http_is_a_failure_of_its_request_alone(content: bytes, fake: Fake) -> None:
    start = len(fake.asked)
    fake.behave = lambda number: (content if number == start else answer(OK), 0.0)
    outcomes = run(fake, [0.0, 0.2])
    assert sorted(outcomes.status.tolist()) == [0, 200] and outcomes.problems == {"BadAnswer": 1}


def test_a_length_that_is_none_is_refused(fake: Fake) -> None:
    fake.behave = lambda number: (b"HTTP/1.1 200 OK\r\ncontent-length: many\r\n\r\n", 0.0)
    with pytest.raises(BadAnswer, match="many"):
        asyncio.run(Pool(Target.of(fake.url), 1).send(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"))


@given(rate=st.floats(1, 500), seconds=st.floats(0.5, 5), seed=st.integers(0, 1_000))
def test_random_arrivals_rise_and_have_the_rate(rate: float, seconds: float, seed: int) -> None:
    times = timetable(rate, seconds, "random", seed)
    assert (np.diff(times) >= 0).all() and (times < seconds).all()
    assert abs(len(times) - rate * seconds) <= 6 * np.sqrt(rate * seconds) + 6
    assert np.array_equal(times, timetable(rate, seconds, "random", seed))


@given(values=st.lists(st.floats(0, 1e6), max_size=300))
def test_percentiles_are_measured_values_and_rise(values: list[float]) -> None:
    found = percentiles(np.array(values, dtype=np.float64))
    assert list(found.values()) == sorted(found.values()) and set(found.values()) <= set(values)
    assert ("p99" in found) == (len(values) >= 100) and ("p50" in found) == bool(values)


def test_sizes_are_drawn_by_their_weights() -> None:
    calls = [Call(10, b""), Call(10, b""), Call(3000, b"")]
    chosen = choose(calls, {10: 9.0, 3000: 1.0}, 10_000, seed=1)
    shares = np.bincount(chosen, minlength=3) / 10_000
    assert abs(shares[2] - 0.1) < 0.02 and abs(shares[0] - shares[1]) < 0.01


@pytest.mark.parametrize("dialect", DIALECTS)
def test_every_dialect_is_answered_by_the_server(dialect: str, speed_server: Any, catalog: Path) -> None:
    config = LoadConfig(url=speed_server.url, dialect=dialect, mix={3: 1.0}, items=str(catalog))
    call = make_calls(config, check(config))[0]

    async def once() -> Any:
        pool = Pool(check(config), 1)
        reply = await pool.send(call.request)
        await pool.close()
        return reply

    reply = asyncio.run(once())
    assert reply.status == 200, reply.body
    assert reply.headers["x-scored"] == "3"


@pytest.mark.parametrize("by", ["ids", "rows"])
def test_items_of_the_index_are_asked_for_by_id_and_row(by: str, speed_server: Any, catalog: Path) -> None:
    config = LoadConfig(
        url=speed_server.url,
        dialect="relevance",
        by=by,
        mix={5: 3.0, 20: 1.0},
        items=str(catalog),
        rate=60,
        seconds=0.5,
    )
    result = load(config)
    assert result.total.answered == result.total.sent > 5 and result.total.failed == 0
    assert [group.documents for group in result.groups] == [5, 20]


def test_the_command_prints_a_table_and_writes_a_page(
    speed_server: Any, catalog: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "out" / "load.html"
    flags = ["--rate", "80", "--seconds", "1.2", "--mix", "2:3,9:1", "--items", str(catalog), "--report", str(page)]
    assert main(["load", speed_server.url, *flags, "--within-ms", "5000"]) == 0
    printed = capsys.readouterr().out
    assert "p99" in printed and "good answers" in printed and str(page) in printed
    text = page.read_text(encoding="utf-8")
    assert text.count("<figure") == 3 and "<script" not in text and "nan" not in text
    assert main(["load", speed_server.url, *flags, "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["total"]["answered"] == shown["total"]["sent"] and shown["statuses"].keys() == {"200"}


def test_a_page_without_answers_has_no_charts_of_them() -> None:
    empty = np.zeros(0)
    outcomes = Outcomes(empty, empty.astype(int), empty.astype(int), empty, empty, empty.astype(bool), {})
    text = report(LoadConfig(), summary(outcomes, "u", 1.0, 1.0, None), outcomes)
    assert "nan" not in text


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"url": "http://ranker.example:80"}, "allow-remote"),
        ({"url": "http://0.0.0.0:80"}, "allow-remote"),
        ({"url": "ftp://127.0.0.1"}, "http"),
        ({"dialect": "klingon"}, "cohere"),
        ({"by": "ids"}, "relevance"),
        ({"mix": {}}, "mix"),
        ({"mix": {0: 1.0}}, "mix"),
        ({"mix": {5: 0.0}}, "mix"),
        ({"rate": 20_000, "seconds": 7_200}, "too many"),
    ],
)
def test_what_is_refused_before_anything_is_sent(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        check(LoadConfig(**settings))
    assert check(LoadConfig(url="http://ranker.example", allow_remote=True)).host == "ranker.example"


def test_a_server_that_is_not_there_is_told(catalog: Path) -> None:
    config = LoadConfig(url="http://127.0.0.1:9", rate=50, seconds=0.1, warmup_seconds=0, items=str(catalog))
    with pytest.raises(ConfigError, match="does not answer"):
        load(config)
