"""Goodput of the server at 0.5, 1, 2 and 5 times its capacity, and requests of different sizes beside each other.

    python benchmarks/serving_overload.py

Two scorers: one of set speed (asleep while it "computes", so the figures are of the queue and not of the
machine), and the shipped model. Capacity is what three connections that never pause get. Requests beyond it
arrive at random times (open loop); latency runs from when a request was due. Writes serving_overload.json.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from serving_process import Server, machine, serving, set_speed, write

from pertinent.load.client import Target
from pertinent.load.plan import LoadConfig, check, choose, make_calls, timetable
from pertinent.load.results import Outcomes, group_of, percentiles
from pertinent.load.run import drive

DEADLINE_MS = 1_000
MIXED_DEADLINE_MS = 4_000
DOCUMENTS = 100
SMALL, LARGE = 10, 5_000


def capacity(target: Target, calls: Any, requests: int, connections: int = 3) -> float:
    """Answers a second of so many connections that never pause."""
    times = np.zeros(requests)
    choices = np.arange(requests) % len(calls)
    asyncio.run(drive(target, calls, times[:connections], choices[:connections], connections, 60))
    before = time.perf_counter()
    outcomes = asyncio.run(drive(target, calls, times, choices, connections, 60))
    return int(outcomes.answered.sum()) / (time.perf_counter() - before)


def at_rate(target: Target, config: LoadConfig, calls: Any, rate: float, seconds: float) -> Outcomes:
    """What becomes of requests at a rate, after two seconds that are not counted."""
    times = timetable(rate, seconds + 2, "random", seed=3)
    choices = choose(calls, config.mix, len(times), seed=3)
    outcomes = asyncio.run(drive(target, calls, times, choices, 2_000, 30))
    return outcomes.rows(outcomes.planned >= 2)


def overload(server: Server, seconds: float, requests: int) -> dict[str, Any]:
    """Goodput, latency and refusals at several rates."""
    config = LoadConfig(url=server.url, mix={DOCUMENTS: 1.0})
    target = check(config)
    calls = make_calls(config, target)
    most = capacity(target, calls, requests)
    rows = []
    for times in (0.5, 1.0, 2.0, 5.0):
        outcomes = at_rate(target, config, calls, times * most, seconds)
        group = group_of(None, outcomes, DEADLINE_MS)
        rows.append(
            {
                "times_capacity": times,
                "sent": group.sent,
                "answered": group.answered,
                "refused": group.refused,
                "failed": group.failed,
                "goodput_share": round(group.good / seconds / most, 3),
                "answered_ms": {**group.percentiles_ms, "max": group.max_ms},
                "refused_ms": {k: round(v, 2) for k, v in refusals(outcomes).items()},
                "sent_late_p99_ms": round(percentiles(1_000 * outcomes.lag).get("p99", 0.0), 1),
            }
        )
        print(json.dumps(rows[-1]), flush=True)
    again = capacity(target, calls, requests)
    return {"capacity": round(most, 2), "capacity_again": round(again, 2), "deadline_ms": DEADLINE_MS, "rates": rows}


def refusals(outcomes: Outcomes) -> dict[str, float]:
    """Milliseconds from sending to 429."""
    return percentiles(1_000 * (outcomes.latency - outcomes.lag)[outcomes.refused])


def mixed(server: Server, seconds: float, deadline_ms: int) -> dict[str, Any]:
    """Twice as many small requests as can be answered, and large ones now and then: what is taken on comes in time."""
    small, large, a_second = 20, 1_000, 0.5
    config = LoadConfig(url=server.url, mix={small: 1.0, large: 1.0})
    target = check(config)
    calls = make_calls(config, target)
    rate = 2 * capacity(target, [call for call in calls if call.group == small], 300)
    outcomes = at_rate(
        target, LoadConfig(url=server.url, mix={small: rate, large: a_second}), calls, rate + a_second, seconds
    )
    found: dict[str, Any] = {"deadline_ms": deadline_ms, "small_a_second": round(rate, 1), "large_a_second": a_second}
    for name, size in (("small", small), ("large", large)):
        group = group_of(size, outcomes.rows(outcomes.group == size), deadline_ms)
        told = {"sent": group.sent, "answered": group.answered, "refused": group.refused, "failed": group.failed}
        found[name] = {**told, "good": group.good, "answered_ms": {**group.percentiles_ms, "max": group.max_ms}}
    print(json.dumps(found), flush=True)
    return found


def beside(server: Server, seconds: float, large: float) -> dict[str, Any]:
    """Small requests alone, and beside large ones that take ``large`` of the capacity."""
    config = LoadConfig(url=server.url, mix={SMALL: 1.0, LARGE: 1.0})
    target = check(config)
    calls = make_calls(config, target)
    small = [call for call in calls if call.group == SMALL]
    big = [call for call in calls if call.group == LARGE]
    rate_of_large = large * capacity(target, big, 4, connections=2)
    if not rate_of_large:
        return {"large_share_of_capacity": large, "problem": "no large request was answered in a minute"}
    rate = 25.0
    alone = LoadConfig(url=server.url, mix={SMALL: 1.0})
    idle = at_rate(target, alone, small, rate, seconds)
    both = LoadConfig(url=server.url, mix={SMALL: rate, LARGE: rate_of_large})
    mixed = at_rate(target, both, calls, rate + rate_of_large, seconds)
    found = {
        "small_alone_ms": group_of(SMALL, idle, None).percentiles_ms,
        "small_beside_ms": group_of(SMALL, mixed.rows(mixed.group == SMALL), None).percentiles_ms,
        "large_ms": group_of(LARGE, mixed.rows(mixed.group == LARGE), None).percentiles_ms,
        "large_a_second": round(rate_of_large, 2),
        "small_a_second": rate,
        "large_share_of_capacity": large,
    }
    for name in ("p50", "p99"):
        found[f"{name}_ratio"] = round(found["small_beside_ms"][name] / found["small_alone_ms"][name], 2)
    print(json.dumps(found), flush=True)
    return found


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=12.0, help="for each rate")
    parser.add_argument("--only", choices=["set-speed", "shipped"])
    given = parser.parse_args()
    flags = ["--set", f"queue.deadline_ms={DEADLINE_MS}"]
    unhurried = ["--set", f"queue.deadline_ms={MIXED_DEADLINE_MS}", "--set", "queue.max_wait_ms=2000"]
    patient = ["--set", "queue.max_wait_ms=60000", "--set", "queue.deadline_ms=120000"]
    before = Path(__file__).with_suffix(".json")
    result: dict[str, Any] = json.loads(before.read_text(encoding="utf-8")) if given.only and before.exists() else {}
    result |= {"command": "python benchmarks/serving_overload.py", "machine": machine()}
    if given.only != "shipped":
        # 100 documents of some 40 tokens take 40 ms of one of two threads.
        with set_speed(1e-5, 2, *flags) as server:
            result["set_speed"] = {"overload": overload(server, given.seconds, 300)}
        with set_speed(1e-5, 2, *unhurried) as server:
            result["set_speed"]["mixed_overload"] = mixed(server, given.seconds, MIXED_DEADLINE_MS)
        with set_speed(2e-6, 2, *patient) as server:
            result["set_speed"]["small_beside_large"] = [beside(server, given.seconds, part) for part in (0.5, 0.9)]
    if given.only != "set-speed":
        with serving(*flags) as server:
            result["shipped"] = {"overload": overload(server, given.seconds, 60)}
        with serving(*patient) as server:
            result["shipped"]["small_beside_large"] = [beside(server, given.seconds, part) for part in (0.5, 0.9)]
    result["machine_after"] = machine()
    print(write(__file__, result))


if __name__ == "__main__":
    main()
