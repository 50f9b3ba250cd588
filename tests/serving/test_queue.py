from __future__ import annotations

import asyncio
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from pertinent.engine.scorer import Scorer
from pertinent.lexicon.pairs import PairTokenizer
from pertinent.records import TokenBatch, TokenRows
from pertinent.serving.queue import TEXT_CHUNK, Closed, DeadlinePassed, QueueConfig, Refused, ScoringQueue, Work

TITLES = ["wireless earbuds", "usb cable", "", "日本語 イヤホン", "tea pot green " * 40, "usb cable"]
Make = Callable[..., ScoringQueue]


@pytest.fixture
def make() -> Iterator[Make]:
    """``make(threads, **settings)``: a queue that is closed after the test."""
    made: list[ScoringQueue] = []

    def build(threads: int = 2, **settings: Any) -> ScoringQueue:
        made.append(ScoringQueue(QueueConfig(**settings), threads))
        return made[-1]

    yield build
    for queue in made:
        queue.close()


def many(count: int) -> list[str]:
    return [" ".join(["tea", "pot", "usb"][: 1 + place % 3]) + f" {place}" for place in range(count)]


def soon(seconds: float) -> float:
    return time.monotonic() + seconds


async def eventually(condition: Callable[[], bool]) -> None:
    for _ in range(2_000):
        if condition():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it did not come true")


@pytest.mark.parametrize("titles", [TITLES, TITLES[:1], [""], ["tea"] * 40, many(TEXT_CHUNK * 2 + 7)])
def test_scores_are_those_of_the_library(titles: list[str], tiny_scorer: Scorer, make: Make) -> None:
    result = asyncio.run(make().score(Work.of_texts("usb cable", titles), tiny_scorer))
    assert np.allclose(tiny_scorer.probabilities(result.logits), tiny_scorer.score("usb cable", titles), atol=1e-6)
    assert result.scored.all()
    assert result.truncated.tolist() == tiny_scorer.pairs.encode_items(titles).truncated.tolist()
    assert result.seconds["total"] >= result.seconds["queue"] >= 0


def test_no_pairs_give_an_empty_result(tiny_scorer: Scorer, make: Make) -> None:
    result = asyncio.run(make().score(Work.of_texts("tea", []), tiny_scorer))
    assert len(result.logits) == 0 and result.tokens == 0


def test_scores_do_not_depend_on_requests_beside(tiny_scorer: Scorer, make: Make) -> None:
    rng = np.random.default_rng(0)
    calls = [(f"query {n % 7} usb", [many(60)[i] for i in rng.integers(0, 60, rng.integers(1, 30))]) for n in range(60)]
    queue = make()

    async def run() -> list[Any]:
        return await asyncio.gather(*(queue.score(Work.of_texts(q, t), tiny_scorer) for q, t in calls))

    for (query, titles), result in zip(calls, asyncio.run(run()), strict=True):
        assert np.allclose(result.logits, tiny_scorer.logits(query, titles), atol=1e-5)
    assert queue.waiting[:2] == (0, 0)


def test_several_queries_and_indexed_rows_are_scored_too(tiny_scorer: Scorer, make: Make) -> None:
    queries, titles = ["tea pot", "usb"], ["usb cable", "tea", "pot"]
    work = Work(queries, np.array([0, 1, 0]), titles=titles)
    expected = tiny_scorer.pair_logits([("tea pot", "usb cable"), ("usb", "tea"), ("tea pot", "pot")])
    queue = make()
    assert np.allclose(asyncio.run(queue.score(work, tiny_scorer)).logits, expected, atol=1e-5)
    items = tiny_scorer.pairs.encode_items(many(50))
    rows = np.array([49, 3, 3, 0])
    result = asyncio.run(queue.score(Work.of_items("usb", items, rows), tiny_scorer))
    assert np.allclose(result.logits, tiny_scorer.logits("usb", [many(50)[row] for row in rows]), atol=1e-5)


def test_tokens_count_both_texts_and_three_marks(tiny_scorer: Scorer, make: Make) -> None:
    result = asyncio.run(make().score(Work.of_texts("usb cable", ["tea pot", ""]), tiny_scorer))
    assert result.tokens == (2 + 2 + 3) + (2 + 0 + 3)


def test_single_pairs_of_many_requests_are_computed_together(speed_scorer: Any, make: Make) -> None:
    scorer = speed_scorer(workers=1)
    queue = make(threads=1)

    async def run() -> None:
        scorer.backend.hold.clear()
        tasks = [asyncio.create_task(queue.score(Work.of_texts("tea", ["pot"]), scorer)) for _ in range(33)]
        await eventually(lambda: queue.waiting[0] == 33)
        scorer.backend.hold.set()
        await asyncio.gather(*tasks)

    asyncio.run(run())
    assert len(scorer.backend.batches) < 33
    assert all(rows * width <= 512 for rows, width in scorer.backend.batches)


@pytest.mark.parametrize("size", [10, 100])  # fewer than 17 may also be taken along by a batch of the other
def test_a_small_request_does_not_wait_for_a_huge_one(size: int, speed_scorer: Any, make: Make) -> None:
    scorer, queue = speed_scorer(seconds=2e-6), make()

    async def run() -> tuple[float, bool]:
        huge = asyncio.create_task(queue.score(Work.of_texts("usb", many(10_000)), scorer))
        await eventually(lambda: len(scorer.backend.batches) > 5)
        before = time.perf_counter()
        await queue.score(Work.of_texts("tea", many(size)), scorer)
        taken = time.perf_counter() - before
        busy = not huge.done()
        await huge
        return taken, busy

    before = time.perf_counter()
    taken, busy = asyncio.run(run())
    assert busy and taken < (time.perf_counter() - before) / 4


def test_a_small_request_does_not_wait_for_huge_ones_that_are_long_overdue(speed_scorer: Any, make: Make) -> None:
    scorer, queue = speed_scorer(seconds=2e-6), make()

    async def run() -> tuple[float, float]:
        await queue.score(Work.of_texts("usb", many(1_000)), scorer)
        before = time.perf_counter()
        huge = [asyncio.create_task(queue.score(Work.of_texts("usb", many(1_500)), scorer)) for _ in range(12)]
        taken = []
        while not all(task.done() for task in huge):
            start = time.perf_counter()
            await queue.score(Work.of_texts("tea", many(5)), scorer)
            taken.append(time.perf_counter() - start)
        return max(taken[:-1]), time.perf_counter() - before

    slowest, whole = asyncio.run(run())
    assert slowest < whole / 8


@pytest.mark.skipif(sys.platform != "linux", reason="threads have priorities of their own on Linux")
@pytest.mark.parametrize("nice", [0, 7])
def test_scoring_threads_stand_back_and_the_others_do_not(nice: int, make: Make) -> None:
    own = os.getpriority(os.PRIO_PROCESS, 0)
    threads = make(nice=nice)._threads

    async def run() -> None:
        wanted = {min(19, own + nice)}
        await eventually(lambda: {os.getpriority(os.PRIO_PROCESS, each.native_id or 0) for each in threads} == wanted)

    asyncio.run(run())
    assert os.getpriority(os.PRIO_PROCESS, 0) == own


def test_a_key_with_many_requests_leaves_the_others_their_turn(speed_scorer: Any, make: Make) -> None:
    scorer, queue = speed_scorer(seconds=4e-6, workers=1), make(threads=1)
    order: list[str] = []

    async def one(key: str, count: int) -> None:
        await queue.score(Work.of_texts("usb", many(count)), scorer, key=key)
        order.append(key)

    async def run() -> None:
        flood = [asyncio.create_task(one("flood", 200)) for _ in range(20)]
        await eventually(lambda: queue.waiting[0] == 20)
        await asyncio.gather(one("shop", 200), *flood)

    asyncio.run(run())
    assert order.index("shop") <= 4


def test_past_the_deadline_an_answer_is_partial_where_asked_and_an_error_elsewhere(
    speed_scorer: Any, make: Make
) -> None:
    scorer, queue = speed_scorer(seconds=1e-5), make()
    work = Work.of_texts("usb", many(5_000))

    async def run() -> Any:
        with pytest.raises(DeadlinePassed):
            await queue.score(work, scorer, deadline=soon(0.05))
        for seconds in (0.2, 0.8, 3.2):  # on a machine that is busy elsewhere nothing may be done in the first
            result = await queue.score(work, scorer, deadline=soon(seconds), partial=True)
            if result.scored.any():
                break
        return result

    result = asyncio.run(run())
    assert 0 < result.scored.sum() < 5_000
    assert np.allclose(result.logits[result.scored], scorer.logits("usb", many(5_000))[result.scored], atol=1e-5)
    assert queue.waiting[:2] == (0, 0)


def test_a_cancelled_request_is_dropped_at_the_next_batch(speed_scorer: Any, make: Make) -> None:
    scorer, queue = speed_scorer(seconds=2e-5), make()

    async def run() -> None:
        task = asyncio.create_task(queue.score(Work.of_texts("usb", many(5_000)), scorer))
        await eventually(lambda: len(scorer.backend.batches) > 3)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert queue.waiting[:2] == (0, 0)
        await eventually(lambda: queue.stalled(0.0) is None)  # the threads are through with what they had

    asyncio.run(run())
    done = len(scorer.backend.batches)
    time.sleep(0.1)
    assert len(scorer.backend.batches) == done


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"max_requests": 2}, "requests"),
        ({"max_pairs": 50}, "pairs"),
        ({"key_share": 0.005}, "key"),
        ({"max_pairs": 70}, "key"),
    ],
)
def test_too_much_is_refused_with_a_time_to_come_again(
    settings: dict[str, Any], reason: str, speed_scorer: Any, make: Make
) -> None:
    scorer, queue = speed_scorer(), make(**settings)

    async def run() -> Refused:
        scorer.backend.hold.clear()
        tasks = [
            asyncio.create_task(queue.score(Work.of_texts("usb", many(20)), scorer, key=f"k{n}")) for n in range(2)
        ]
        await eventually(lambda: queue.waiting[0] == 2)
        with pytest.raises(Refused) as refused:
            await queue.score(Work.of_texts("usb", many(20)), scorer, key="k0")
        scorer.backend.hold.set()
        await asyncio.gather(*tasks)
        return refused.value

    refused = asyncio.run(run())
    assert refused.reason == reason and 1.0 <= refused.retry_after <= 90.0


def test_those_who_are_refused_together_do_not_come_back_together() -> None:
    times = {Refused("wait", "come again later", 2.0).retry_after for _ in range(100)}
    assert len(times) > 90 and 2.0 <= min(times) < 2.2 and 2.8 < max(times) <= 3.0


def test_a_wait_beyond_the_limit_or_the_deadline_is_refused_at_once(speed_scorer: Any, make: Make) -> None:
    scorer, queue = speed_scorer(seconds=2e-6), make(max_wait_ms=100)

    async def run() -> None:
        await queue.score(Work.of_texts("usb", many(500)), scorer)
        assert queue.estimate(100) == 0
        scorer.backend.hold.clear()  # nothing goes on meanwhile, so what is refused has not waited
        big = asyncio.create_task(queue.score(Work.of_texts("usb", many(10_000)), scorer))
        await eventually(lambda: queue.waiting[0] == 1)
        with pytest.raises(Refused) as refused:
            await queue.score(Work.of_texts("usb", many(10_000)), scorer)
        assert refused.value.reason == "wait"
        with pytest.raises(Refused) as refused:
            await queue.score(Work.of_texts("usb", many(500)), scorer, deadline=soon(0.005))
        assert refused.value.reason == "deadline"
        scorer.backend.hold.set()
        await queue.score(Work.of_texts("usb", many(5)), scorer)
        big.cancel()

    asyncio.run(run())


class Failing:
    """A backend that fails on a batch that holds a given token."""

    name = "failing"
    workers = 2

    def __init__(self, token: int) -> None:
        self.token = token

    def forward(self, batch: TokenBatch) -> Any:
        if (batch.token_ids == self.token).any():
            raise MemoryError("no memory")
        return np.zeros(len(batch), dtype=np.float32)


def test_an_error_fails_its_own_request_and_no_other(tiny_pairs: Any, make: Make) -> None:
    word = tiny_pairs.tokenizer.token_to_id("shoes")
    scorer, queue = Scorer(Failing(word), tiny_pairs), make(threads=1)

    async def run() -> list[Any]:
        calls = [queue.score(Work.of_texts("tea", [title]), scorer) for title in ("pot", "shoes", "mug", "pot")]
        return await asyncio.gather(*calls, return_exceptions=True)

    results = asyncio.run(run())
    assert isinstance(results[1], MemoryError)
    assert [len(result.logits) for place, result in enumerate(results) if place != 1] == [1, 1, 1]
    assert queue.waiting[:2] == (0, 0) and queue.stalled(1.0) is None


def test_texts_that_cannot_be_tokenized_fail_their_own_request_and_end_no_thread(
    speed_scorer: Any, tiny_pairs: PairTokenizer, make: Make
) -> None:
    class NoShoes(PairTokenizer):
        def encode_items(self, titles: Any) -> TokenRows:
            if "shoes" in titles:
                raise MemoryError("no memory")
            return super().encode_items(titles)

    scorer, queue = speed_scorer(), make(threads=1)
    scorer.pairs = NoShoes(tiny_pairs.tokenizer, tiny_pairs.config)

    async def run() -> list[Any]:
        calls = [
            queue.score(Work.of_texts("tea", [title]), scorer, deadline=soon(20)) for title in ("pot", "shoes", "mug")
        ]
        return await asyncio.gather(*calls, return_exceptions=True)

    results = asyncio.run(run())
    assert isinstance(results[1], MemoryError) and [len(results[place].logits) for place in (0, 2)] == [1, 1]
    assert queue.waiting[:2] == (0, 0) and queue.stalled(1.0) is None


def test_a_scoring_thread_that_has_died_is_noticed(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    queue = make(threads=1)
    assert queue.stalled(60.0) is None
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    monkeypatch.setattr(queue, "_take", lambda: 1 / 0)
    with queue._ready:
        queue._ready.notify_all()
    asyncio.run(eventually(lambda: queue.stalled(60.0) == "pertinent-score-0 is dead"))


def test_a_batch_that_never_ends_is_noticed(speed_scorer: Any, make: Make) -> None:
    scorer, queue = speed_scorer(), make()

    async def run() -> None:
        scorer.backend.hold.clear()
        task = asyncio.create_task(queue.score(Work.of_texts("usb", ["tea"]), scorer))
        await eventually(lambda: "busy" in (queue.stalled(0.1) or ""))
        scorer.backend.hold.set()
        await task
        await eventually(lambda: queue.stalled(0.1) is None)

    asyncio.run(run())


def test_closing_fails_what_waits_and_refuses_what_comes(speed_scorer: Any, make: Make) -> None:
    scorer, queue = speed_scorer(), make()

    async def run() -> None:
        scorer.backend.hold.clear()
        task = asyncio.create_task(queue.score(Work.of_texts("usb", many(100)), scorer))
        await eventually(lambda: queue.waiting[0] == 1)
        threading.Timer(0.05, scorer.backend.hold.set).start()
        await asyncio.to_thread(queue.close)
        with pytest.raises(Closed):
            await task
        with pytest.raises(Closed):
            await queue.score(Work.of_texts("usb", many(1)), scorer)

    asyncio.run(run())


def test_of_equal_requests_the_first_is_done_first_and_a_priority_changes_that(speed_scorer: Any, make: Make) -> None:
    scorer, queue = speed_scorer(seconds=1e-6, workers=1), make(threads=1)
    order: list[str] = []

    async def one(name: str, priority: int) -> None:
        await queue.score(replace(Work.of_texts("usb", many(300)), priority=priority), scorer)
        order.append(name)

    async def run() -> None:
        scorer.backend.hold.clear()
        tasks = [asyncio.create_task(one("first", 5))]
        await eventually(lambda: queue.waiting[0] == 1)
        for number, name in enumerate(("second", "third", "fourth")):
            tasks.append(asyncio.create_task(one(name, 5)))
            await eventually(lambda number=number: queue.waiting[0] == 2 + number)
        tasks.append(asyncio.create_task(one("urgent", 0)))
        await eventually(lambda: queue.waiting[0] == 5)
        scorer.backend.hold.set()
        await asyncio.gather(*tasks)

    asyncio.run(run())
    assert order == ["urgent", "first", "second", "third", "fourth"]


def test_equal_requests_keep_their_order_while_the_pace_changes(speed_scorer: Any, make: Make) -> None:
    scorer, queue = speed_scorer(seconds=1e-6, workers=1), make(threads=1)
    order: list[int] = []

    async def one(number: int) -> None:
        await queue.score(Work.of_texts("usb", many(600)), scorer)
        order.append(number)

    async def run() -> None:
        await queue.score(Work.of_texts("usb", many(50)), scorer)
        scorer.backend.hold.clear()
        tasks = []
        for number in range(5):
            with queue._ready:
                queue._spent = (queue._spent[0] * 0.9, queue._spent[1])
            tasks.append(asyncio.create_task(one(number)))
            await eventually(lambda number=number: queue.waiting[0] == number + 1)
        scorer.backend.hold.set()
        await asyncio.gather(*tasks)

    asyncio.run(run())
    assert order == [0, 1, 2, 3, 4]


def test_large_requests_that_were_taken_on_are_done_in_time_beside_too_many_small_ones(
    speed_scorer: Any, make: Make
) -> None:
    for _ in range(3):  # a machine that other work shares stalls now and then
        outcomes = small_ones_beside_large(speed_scorer, make)
        large, small = outcomes[1_000], outcomes[20]
        in_time = len(large) == 3 and large.count("done") >= 2 and "late" not in large
        if in_time and small.count("refused") > 20 and small.count("late") <= 0.05 * small.count("done"):
            return
    raise AssertionError(f"large ones: {large}; small ones: {Counter(small)}")


def small_ones_beside_large(speed_scorer: Any, make: Make) -> dict[int, list[str]]:
    """What became of requests for 20 and for 1,000 pairs, twice as many as can be done."""
    scorer, queue = speed_scorer(seconds=2e-5, workers=1), make(threads=1, key_share=1.0, max_wait_ms=2_000)
    outcomes: dict[int, list[str]] = {20: [], 1_000: []}

    async def one(size: int) -> None:
        try:
            await queue.score(Work.of_texts("usb", many(size)), scorer, deadline=soon(3.0))
        except Refused:
            outcomes[size].append("refused")
        except DeadlinePassed:
            outcomes[size].append("late")
        else:
            outcomes[size].append("done")

    async def run() -> None:
        await queue.score(Work.of_texts("usb", many(500)), scorer)
        alone = 1.0
        for _ in range(20):
            before = time.perf_counter()
            await queue.score(Work.of_texts("usb", many(20)), scorer)
            alone = min(alone, time.perf_counter() - before)
        tasks, started, large = [], time.monotonic(), [0.5, 1.5, 2.5]
        while (passed := time.monotonic() - started) < 6.0:
            tasks.append(asyncio.create_task(one(20)))
            if large and passed > large[0]:
                del large[0]
                tasks.append(asyncio.create_task(one(1_000)))
            await asyncio.sleep(alone / 2)
        await asyncio.gather(*tasks)

    asyncio.run(run())
    return outcomes


def test_three_times_what_can_be_done_is_refused_rather_than_late(speed_scorer: Any, make: Make) -> None:
    scorer, queue = speed_scorer(seconds=2e-5, workers=1), make(threads=1)
    work = Work.of_texts("usb", many(40))

    async def one() -> str:
        try:
            await queue.score(work, scorer, deadline=soon(1.0))
        except Refused:
            return "refused"
        except DeadlinePassed:
            return "late"
        return "done"

    async def pace() -> float:
        before = time.perf_counter()
        for _ in range(5):
            await queue.score(work, scorer)
        return (time.perf_counter() - before) / 5

    async def run() -> tuple[float, list[str]]:
        await queue.score(work, scorer)
        alone, tasks = await pace(), []
        for _ in range(round(3 * 2.0 / alone)):
            tasks.append(asyncio.create_task(one()))
            await asyncio.sleep(alone / 3)
        outcomes = list(await asyncio.gather(*tasks))
        return 2.0 / max(alone, await pace()), outcomes  # the machine may have become busier

    possible, outcomes = asyncio.run(run())
    assert outcomes.count("refused") > 0 and outcomes.count("done") > possible / 2
    assert outcomes.count("late") < outcomes.count("done") / 4
