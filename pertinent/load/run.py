"""Open-loop load on a rerank server: what ``pertinent load`` sends, and what it makes of the answers.

Requests start when a timetable says so, whether or not earlier ones were answered, as shoppers do. Latency
runs from the time in the timetable: where a request had to wait for a connection, or the server stood
still, the wait is in the figure, so no slow spell hides the requests that it held up.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pertinent.errors import ConfigError
from pertinent.load.client import BadAnswer, Pool, Reply, Target
from pertinent.load.plan import Floats, LoadConfig, check, choose, make_calls, timetable
from pertinent.load.results import FAILED, TIMED_OUT, Call, Load, Outcomes, summary

__all__ = ["Load", "LoadConfig", "drive", "load"]


def load(config: LoadConfig) -> Load:
    """Send by the timetable, wait for the answers, write the report. Raises ConfigError before anything is sent."""
    target = check(config)
    calls = make_calls(config, target)
    times = timetable(config.rate, config.warmup_seconds + config.seconds, config.arrivals, config.seed)
    choices = choose(calls, config.mix, len(times), config.seed)
    outcomes = asyncio.run(drive(target, calls, times, choices, config.connections, config.timeout_seconds))
    if not (outcomes.status > 0).any():
        said = ", ".join(outcomes.problems) or "no answer in time"
        raise ConfigError(f"{config.url} does not answer: {said}; start the server, or give another URL")
    counted = outcomes.rows(outcomes.planned >= config.warmup_seconds)
    result = summary(counted, config.url, config.rate, config.seconds, config.within_ms, config.report)
    if config.report is not None:
        from pertinent.load.page import write_page

        write_page(Path(config.report), config, result, counted)
    return result


async def drive(
    target: Target,
    calls: Sequence[Call],
    times: Floats,
    choices: NDArray[np.int64],
    connections: int,
    timeout: float,
    right: Callable[[Call, Reply], bool] | None = None,
) -> Outcomes:
    """What became of request i, ``calls[choices[i]]``, sent at ``times[i]``; ``right`` checks answers with 200.

    Of ``connections`` that are all busy, a request waits for one, and the wait counts.
    """
    size = len(times)
    status = np.full(size, TIMED_OUT, dtype=np.int64)
    latency, lag = np.zeros(size), np.zeros(size)
    wrong = np.zeros(size, dtype=np.bool_)
    problems: Counter[str] = Counter()
    pool = Pool(target, connections)
    started = time.perf_counter() + 0.01

    async def one(place: int) -> None:
        call = calls[choices[place]]
        lag[place] = time.perf_counter() - started - times[place]
        try:
            async with asyncio.timeout(timeout):
                reply = await pool.send(call.request)
        except TimeoutError:
            problems["no answer in time"] += 1
        except (OSError, BadAnswer) as error:
            status[place] = FAILED
            problems[type(error).__name__] += 1
        else:
            status[place] = reply.status
            latency[place] = time.perf_counter() - started - times[place]
            wrong[place] = right is not None and reply.status == 200 and not right(call, reply)
            return
        latency[place] = time.perf_counter() - started - times[place]

    tasks: set[asyncio.Task[None]] = set()
    for place in range(size):
        wait = started + times[place] - time.perf_counter()
        if wait > 0:
            await asyncio.sleep(wait)
        elif place % 64 == 0:
            await asyncio.sleep(0)  # behind the timetable: let the answers in
        task = asyncio.create_task(one(place))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    if tasks:
        await asyncio.wait(tasks)
    await pool.close()
    groups = np.array([calls[choice].group for choice in choices], dtype=np.int64)
    return Outcomes(times, groups, status, latency, lag, wrong, dict(problems))
