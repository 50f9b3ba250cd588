"""The server under mixed faults, several at once, all the while: no answer may be wrong.

    python benchmarks/serving_chaos.py --minutes 60
    python benchmarks/serving_chaos.py --minutes 15 --without worker_kill worker_stop worker_hang hangup   # memory
    python benchmarks/serving_chaos.py --minutes 5 --only redis_kill worker_stop burst
    python benchmarks/serving_chaos.py --minutes 3 --corrupt 200    # must fail: a score in 200 answers is off

Two workers serve a network of one layer with an index of a sample catalog, a shared Redis and a file of keys. Requests
in seven dialects and forms, of one to ``--items`` items, arrive at random times, whatever becomes of earlier ones.
Meanwhile, by a schedule drawn from ``--seed``: clients misbehave; good and bad models and indexes are put in place, an
update of the index is killed; Redis is killed, stopped, emptied, filled with garbage, lied for; workers are killed,
stand still for seconds or for good, are all replaced; five times as many requests come for some seconds; the log is not
read; keys change.

Every answer with scores is compared with the library's scores of the version that it names, its order, ids and flags
with what was asked for, and its version with what has stood in the folders. Besides 200 only these are right: 429
and 503 that say when to come again, 504 not before the deadline, and connections that end with a worker that was
killed. Ends with 1 where an answer was wrong, anything else happened, or memory rises. Without redis-server its
faults are left out.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import random
import re
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from serving_faults import (
    BAD,
    BODY_BYTES,
    CLIENTS,
    FAULTS,
    GROWN,
    REFUSED_WITH,
    STEADY,
    Chaos,
    Place,
    Redis,
    bad_indexes,
    bad_models,
    schedule,
    write_keys,
)
from serving_oracle import TOLERANCE, Catalog, Oracle, Question
from serving_overhead import small_model
from serving_process import Server, machine, serving, write
from serving_soak import by_minute, misbehave, other_version, slope

from pertinent.data.samples import read_sample
from pertinent.engine.scorer import Scorer
from pertinent.load.client import BadAnswer, Pool, Reply, Target
from pertinent.load.plan import timetable

DEADLINE, GRACE = 10.0, 5.0  # seconds
MARGIN = 8.0  # seconds in which a new version is taken by every worker
ROUND = 60.0  # seconds in which most faults come once
SLOPE_MB = 1.0  # a minute
# Of a worker, before its memory is looked at: caches and freed blocks of swapped models fill in three minutes.
WARM_MINUTES, LIVED_MINUTES = 4.0, 7.0
BAD_FOLDERS = ("model_flipped", "model_cut", "model_page", "model_golden", "index_flipped", "index_other")
TOLD = 30  # problems that are told in words
Samples = list[tuple[float, float, int]]  # minutes, megabytes, descriptors


class Run:
    """The load, what became of it, and the watch over the processes."""

    def __init__(self, given: argparse.Namespace, chaos: Chaos, oracle: Oracle, log: Log) -> None:
        self.given, self.chaos, self.oracle, self.log = given, chaos, oracle, log
        self.target = Target.of(chaos.server.url)
        self.pool = Pool(self.target, 2_000)
        self.draw = random.Random(given.seed + 1)
        self.weights = list(itertools.accumulate(oracle.weights))
        self.asked: Counter[str] = Counter()
        self.statuses: Counter[str] = Counter()
        self.versions: Counter[str] = Counter()
        self.clients: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.partial = self.cached = self.items = self.resent = 0
        self.windows: list[float] = []
        self.started = self.last_good = time.monotonic()
        self.worst_gap, self.gap_beside = 0.0, list[str]()
        self.samples: dict[int, Samples] = {}
        self.over = False
        chaos.ask = self.ask

    # --- the load -----------------------------------------------------------------------------

    async def load(self) -> None:
        """Requests by a timetable, until it is over."""
        tasks = set()
        for moment in timetable(self.given.rate, 60 * self.given.minutes + 300, "random", self.given.seed):
            await asyncio.sleep(max(0.0, self.started + moment - time.monotonic()))
            if self.over:
                break
            task = asyncio.create_task(self.ask())
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        await asyncio.gather(*tasks)

    async def ask(self) -> None:
        """One request, and its answer judged."""
        question = self.draw.choices(self.oracle.questions, cum_weights=self.weights)[0]
        key = self.chaos.key if self.draw.random() < 0.5 else STEADY
        await self.send(question, key)

    async def send(self, question: Question, key: str) -> Reply | None:
        """Send one question and judge what comes; None where nothing does."""
        request = self.target.request("POST", question.path, question.body, (("authorization", f"Bearer {key}"),))
        self.asked[question.kind] += 1
        sent = time.monotonic()
        try:
            async with asyncio.timeout(DEADLINE + GRACE + 10):
                reply = await self.pool.send(request)
        except TimeoutError:
            self.statuses["none in time"] += 1
            self.fail(f"{question.kind}: no answer in {DEADLINE + GRACE + 10:g} s", sent)
            return None
        except (OSError, BadAnswer) as error:
            ended = time.monotonic()
            await asyncio.sleep(1.0)  # until it is known who has died
            if self.died(sent, ended):
                self.statuses["lost with a killed worker"] += 1
            else:
                self.statuses["lost"] += 1
                self.fail(f"{question.kind}: {error!r}", ended)
            return None
        self.judge(question, reply, sent)
        return reply

    def died(self, sent: float, ended: float) -> bool:
        """Whether a worker was killed while a request was under way, or just before."""
        deaths = (death.moment for death in self.chaos.workers.deaths if death.cause != "left")
        return any(sent - 1.0 <= moment and ended - 2.0 <= moment <= ended + 0.5 for moment in deaths)

    def judge(self, question: Question, reply: Reply, sent: float) -> None:
        """Count an answer, and tell what is wrong with it."""
        now = time.monotonic()
        taken = now - sent
        self.statuses[str(reply.status)] += 1
        limit = min(DEADLINE, (question.deadline_ms or 1_000 * DEADLINE) / 1_000)
        if taken > limit + GRACE + self.chaos.workers.stood_still(sent, now):
            self.fail(f"{question.kind}: status {reply.status} after {taken:.1f} s", now)
        if reply.status == 200:
            self.check(question, reply, sent, now)
        elif reply.status in (429, 503):
            if not reply.headers.get("retry-after", "").isdecimal() or int(reply.headers["retry-after"]) < 1:
                self.fail(f"{question.kind}: status {reply.status} does not say when to come again", now)
        elif reply.status != 504 or question.partial or question.fallback or taken < 0.99 * limit:
            self.fail(f"{question.kind}: status {reply.status} after {taken:.2f} s: {reply.body[:200]!r}", now)

    def check(self, question: Question, reply: Reply, sent: float, now: float) -> None:
        """Compare an answer with what the library says."""
        version = reply.headers.get("x-model-version", "")
        self.versions[version] += 1
        problem = self.oracle.problem(question, reply) or self.stale(version, sent)
        if problem:
            self.wrong.append(f"{now - self.started:.1f} s, {question.kind}, {len(question.items)} items: {problem}")
            return
        self.items += len(question.items)
        self.cached += int(reply.headers.get("x-cached", 0))
        self.partial += b'"partial":true' in reply.body
        if now - self.last_good > self.worst_gap:
            self.worst_gap = now - self.last_good
            beside = [name for start, end, name in self.chaos.times if end > self.last_good and start < now]
            self.gap_beside = sorted(set(beside) | self.chaos.going_on)
        self.last_good = now

    def stale(self, version: str, sent: float) -> str:
        """What is wrong with a version that an answer names, by what has stood in the folders of late."""
        places = (self.chaos.model, self.chaos.index)
        # While a bad version stands in either folder nothing is taken, nor by a worker that stands still.
        held = [span for place in places for span in place.bad_times()] + self.chaos.workers.stops
        since = sent - MARGIN
        while earlier := [start - MARGIN for start, end in held if end > since and start - MARGIN < since]:
            since = min(earlier)
        self.windows.append(sent - since)
        for part, place in zip(version.split("-"), places, strict=False):
            if part not in place.since(since):
                return f"the version {version} has not stood in its folder for {sent - since:.1f} s"
        return ""

    def fail(self, problem: str, moment: float) -> None:
        """Note what nothing explains."""
        self.chaos.failures.append(f"{moment - self.started:.1f} s, {problem}")

    # --- beside the load ----------------------------------------------------------------------

    async def faults(self) -> None:
        """The schedule, from beginning to end."""
        tasks = set()
        names = [name for name in self.given.only if name != BAD]
        for moment, name, seed in schedule(names, 60 * self.given.minutes, self.given.round, self.given.seed):
            await asyncio.sleep(max(0.0, self.started + moment - time.monotonic()))
            tasks.add(asyncio.create_task(self.chaos.do(name, seed)))
        await asyncio.sleep(max(0.0, self.started + 60 * self.given.minutes - time.monotonic()))
        await asyncio.gather(*tasks)

    async def bad_clients(self) -> None:
        """Clients that nobody wants, a tenth of all."""
        if BAD not in self.given.only:
            return
        steady = (("authorization", f"Bearer {STEADY}"),)
        requests = [self.target.request("POST", each.path, each.body, steady) for each in self.oracle.questions]
        rate, until = max(0.1 * self.given.rate, len(CLIENTS) / 10), self.started + 60 * self.given.minutes
        self.chaos.done[BAD] = await misbehave(
            self.target, lambda draw: draw.choice(requests), rate, until, CLIENTS, self.refused
        )

    def refused(self, kind: str, status: int) -> None:
        """Note what a bad client was answered."""
        self.clients[f"{kind}: {status or 'nothing'}"] += 1
        if status not in (0, 429, 503) and status not in REFUSED_WITH.get(kind, ()):
            self.fail(f"a client that sent {kind!r} was answered {status}", time.monotonic())

    async def watch(self) -> None:
        """Who comes and goes, what the log says, what was sent again; memory every two seconds."""
        step, resent, told = 0, 0, [0, 0]
        while not self.over:
            self.chaos.workers.look()
            self.log.read(self.chaos)
            if self.pool.resent > resent:
                now = time.monotonic()
                gone = [death.moment for death in self.chaos.workers.deaths] + self.chaos.workers.hangups
                if not any(now - moment < 30 for moment in gone):
                    self.fail("a kept connection was closed on a request, and no worker had left", now)
                self.resent = resent = self.pool.resent
            if step % 40 == 0:
                self.sample()
            for place, problems in enumerate((self.wrong, self.chaos.failures)):
                for problem in problems[told[place] : TOLD]:
                    told[place] += 1
                    print(problem, file=sys.stderr, flush=True)
            if step % 600 == 0 and step:
                print(self.progress(), file=sys.stderr, flush=True)
            step += 1
            await asyncio.sleep(0.05)

    def sample(self) -> None:
        """Read memory and descriptors of every process."""
        minutes = (time.monotonic() - self.started) / 60
        for pid in (self.chaos.workers.parent, *self.chaos.workers.born):
            with contextlib.suppress(psutil.Error):
                process = psutil.Process(pid)
                found = (minutes, process.memory_info().rss / 1e6, process.num_fds())
                self.samples.setdefault(pid, []).append(found)

    def progress(self) -> str:
        """A line on how it goes."""
        minutes = (time.monotonic() - self.started) / 60
        answers = ", ".join(f"{count:,} {status}" for status, count in sorted(self.statuses.items()))
        return (
            f"{minutes:.1f} of {self.given.minutes:g} min: {answers}; {len(self.wrong)} wrong, "
            f"{len(self.chaos.failures)} unexplained; {self.chaos.done.total()} faults, "
            f"worst gap {self.worst_gap:.1f} s"
        )

    async def settle(self) -> None:
        """When all faults are over every worker answers with what stands there, and keys that were taken away are."""
        end, right = time.monotonic() + 40, 0
        wanted = f"{self.chaos.model.now}-{self.chaos.index.now}"
        while right < 20 and time.monotonic() < end:
            pool = Pool(self.target, 1)  # a new connection may be another worker's
            with contextlib.suppress(OSError, BadAnswer, TimeoutError):
                question = self.draw.choice(self.oracle.questions)
                key = (("authorization", f"Bearer {STEADY}"),)
                async with asyncio.timeout(10):
                    reply = await pool.send(self.target.request("POST", question.path, question.body, key))
                good = reply.status == 200 and reply.headers["x-model-version"] == wanted
                right = right + 1 if good and not self.oracle.problem(question, reply) else 0
            await pool.close()
            await asyncio.sleep(0.05)
        if right < 20:
            self.fail(f"40 s after the last fault not every answer is of version {wanted}", end)
        for old in self.chaos.old_keys:
            request = self.target.request("GET", "/v1/models", headers=(("authorization", f"Bearer {old}"),))
            if (await self.pool.send(request)).status != 401:
                self.fail("a key that was taken away is still good", time.monotonic())

    async def all(self) -> None:
        """Everything, side by side."""
        beside = asyncio.gather(self.load(), self.watch())
        await asyncio.gather(self.faults(), self.bad_clients())
        self.given.lasted = (time.monotonic() - self.started) / 60
        await self.settle()
        self.over = True
        await beside
        await self.pool.close()


class Log:
    """What the server said, as far as it matters here."""

    def __init__(self, server: Server) -> None:
        self._server, self._read = server, 0
        self.events: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()
        self.traces = self.dropped = 0

    def read(self, chaos: Chaos) -> None:
        """Take what has come since."""
        lines = self._server.lines[self._read :]
        self._read += len(lines)
        for line in lines:
            self.traces += line.startswith("Traceback")
            if '"event":"request"' in line and '"lines_dropped"' not in line:
                continue
            try:
                event = json.loads(line)
            except ValueError:
                continue
            name = event["event"]
            self.dropped += event.get("lines_dropped", 0)
            self.events[f"{name}, {'taken' if event['ok'] else 'refused'}" if "ok" in event else name] += 1
            if event.get("level") == "error":
                said = re.sub(r"request \S+", "request", event["message"]) + " " + event.get("error", "")
                self.errors[said[:160]] += 1
            if name == "reload" and not event["ok"]:
                for place in (chaos.model, chaos.index):
                    chaos.refusals[place.folder.name] += str(place.folder) in event["outcome"]


def rises(lives: list[Samples], column: int) -> float | None:
    """How much a figure rises a minute within the lives of processes, each after its first minutes."""
    top = bottom = 0.0
    for samples in lives:
        kept = np.array([sample for sample in samples if sample[0] - samples[0][0] >= WARM_MINUTES])
        if len(kept) and kept[-1, 0] - samples[0][0] >= LIVED_MINUTES:
            minutes, values = kept[:, 0] - kept[:, 0].mean(), kept[:, column] - kept[:, column].mean()
            top, bottom = top + float(minutes @ values), bottom + float(minutes @ minutes)
    return round(top / bottom, 3) if bottom else None


def memory(run: Run) -> dict[str, Any]:
    """Megabytes and descriptors of the processes."""
    samples = dict(run.samples)
    parent = samples.pop(run.chaos.workers.parent)
    lives = list(samples.values())
    return {
        "parent": {
            "rss_mb": {"first": round(parent[0][1], 1), "last": round(parent[-1][1], 1)},
            "slope_mb_a_minute": round(slope(parent), 3),
            "descriptors": {"first": parent[0][2], "most": max(s[2] for s in parent), "last": parent[-1][2]},
        },
        "workers": {
            "processes": len(lives),
            "longest_minutes": round(max(life[-1][0] - life[0][0] for life in lives), 1),
            "most_rss_mb": round(max(sample[1] for life in lives for sample in life), 1),
            "rss_mb_by_minute_of_the_longest_lived": by_minute(
                [(m - life[0][0], mb, n) for life in [max(lives, key=len)] for m, mb, n in life]
            ),
            "slope_mb_a_minute": rises(lives, 1),
            "most_descriptors": max(sample[2] for life in lives for sample in life),
            "slope_descriptors_a_minute": rises(lives, 2),
        },
    }


def chaos(given: argparse.Namespace, place: Path) -> Run:
    """Make everything, serve, and let it happen."""
    items = list({item.title: item for item in read_sample("esci")[0] if item.title.strip()}.values())
    items = items[: max(400, 2 * given.items)]
    model = Path(given.model) if given.model else small_model(place / "small")
    models = [model, other_version(model, place / "other")]
    scorers = [Scorer.load(each, threads=1) for each in models]
    catalog = Catalog(items, scorers[0].pairs, place)
    oracle = Oracle(models, catalog, given.items, given.seed)
    good = {scorer.version: folder for scorer, folder in zip(scorers, models, strict=True)}
    (place / "bad").mkdir()
    model_place = Place(place / "model", good, bad_models(model, place / "bad"))
    indexes = {version: each.folder for version, each in catalog.generations.items()}
    index_place = Place(place / "index", indexes, bad_indexes(catalog, scorers[0].pairs, place / "bad-indexes"))
    redis = Redis(place / "redis") if Redis.there() else None
    if redis is None:
        print("redis-server is not here: its faults are left out", file=sys.stderr)
        given.only = [name for name in given.only if not name.startswith("redis")]
    keys = place / "keys"
    write_keys(keys)
    flags = [str(model_place.folder), "--index", str(index_place.folder), "--workers", "2", "--watch-seconds", "0.2"]
    flags += ["--keys-file", str(keys), "--access-log"]
    settings: dict[str, Any] = {
        "limits.header_seconds": 6,
        "limits.body_seconds": 6,
        "limits.body_bytes": BODY_BYTES,
        "queue.deadline_ms": int(1_000 * DEADLINE),
        "queue.nice": 0,  # other programs may keep the machine busy
    }
    if redis is not None:
        # Long enough to be read on a busy machine, and kept so short that scores are computed all the while.
        settings |= {"cache.redis": redis.url, "cache.redis_budget_ms": 20, "cache.redis_seconds": 20}
    flags += [part for name, value in settings.items() for part in ("--set", f"{name}={value}")]
    script = [str(Path(__file__).with_name("serving_wrong.py")), str(given.corrupt)] if given.corrupt else None
    try:
        with serving(*flags, **({"script": script} if script else {})) as server:
            small_pipe(server)
            made = Chaos(server, model_place, index_place, redis, keys, catalog.update, given.rate)
            log = Log(server)
            wait_for_workers(made)
            run = Run(given, made, oracle, log)
            try:
                asyncio.run(run.all())
            finally:
                server.reading.set()
                for pid in list(made.workers.stopped):
                    made.workers.go_on(pid)
                if redis is not None:
                    redis.process.send_signal(signal.SIGCONT)
        if server.process.returncode:
            made.failures.append(f"told to leave, it ended with {server.process.returncode}")
    finally:
        if redis is not None:
            redis.kill()
    return run


def small_pipe(server: Server) -> None:
    """Let the log's pipe be full soon when nobody reads it, where the system can."""
    import fcntl

    resize = getattr(fcntl, "F_SETPIPE_SZ", None)
    if resize is not None and server.process.stderr is not None:
        fcntl.fcntl(server.process.stderr, resize, 4_096)


def wait_for_workers(made: Chaos) -> None:
    """Until both are there."""
    end = time.monotonic() + 60
    while sum('"event":"ready"' in line for line in made.server.lines) < 2 and time.monotonic() < end:
        time.sleep(0.1)
    made.workers.look()
    for pid in made.workers.born:
        made.workers.born[pid] -= GROWN


def judge(given: argparse.Namespace, run: Run) -> int:
    """Print, write, and say by the exit code whether it held."""
    made, used = run.chaos, memory(run)
    deaths = Counter(death.cause for death in made.workers.deaths)
    if deaths["nobody knows"]:
        made.failures.append(f"{deaths['nobody knows']} workers died and nobody knows why")
    slopes = (used["parent"]["slope_mb_a_minute"], used["workers"]["slope_mb_a_minute"])
    level = run.given.minutes < 2 * LIVED_MINUTES or all(each is None or each < SLOPE_MB for each in slopes)
    missing = [name for name in given.only if not made.done[name]]
    missing += [f"{name} was not refused" for name in made.done if name in BAD_FOLDERS and not made.refused[name]]
    found = {
        "command": "python benchmarks/serving_chaos.py " + " ".join(sys.argv[1:]),
        "machine": machine(),
        "minutes": round(given.lasted, 2),
        "seed": given.seed,
        "rate": given.rate,
        "items": given.items,
        "requests": sum(run.asked.values()),
        "answers": dict(sorted(run.statuses.items())),
        "wrong": len(run.wrong),
        "unexplained_failures": len(made.failures),
        "tolerance": TOLERANCE,
        "largest_difference": run.oracle.worst,
        "worst_gap_s": round(run.worst_gap, 2),
        "worst_gap_beside": run.gap_beside,
        "items_compared": run.items,
        "of_them_from_the_cache": run.cached,
        "partial_answers": run.partial,
        "sent_again_on_a_new_connection": run.resent,
        "faults": dict(sorted(made.done.items())),
        "skipped": dict(made.skipped),
        "refusals_seen": dict(sorted(made.refused.items())),
        "missing": missing,
        "requests_by_kind": dict(sorted(run.asked.items())),
        "answers_by_version": dict(sorted(run.versions.items())),
        "a_version_was_looked_for_in_the_last_s": float(np.round(np.median(run.windows or [0.0]), 1)),
        "bad_clients": dict(sorted(run.clients.items())),
        "workers_gone": dict(sorted(deaths.items())),
        "memory": used,
        "log": {
            "events": dict(sorted(run.log.events.items())),
            "errors": dict(run.log.errors.most_common(12)),
            "traces": run.log.traces,
            "lines_dropped": run.log.dropped,
        },
        "problems": run.wrong[:TOLD] + made.failures[:TOLD],
        "held": not run.wrong and not made.failures and not missing and level,
    }
    print(json.dumps(found, indent=2))
    if given.log:
        lines = [line for line in made.server.lines if '"event":"request"' not in line]
        Path(given.log).write_text("\n".join(lines) + "\n", encoding="utf-8")
    if given.out:
        Path(given.out).write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    else:
        write(__file__.replace("chaos", "wrong") if given.corrupt else __file__, found)
    return 0 if found["held"] else 1


def main() -> int:
    """Let it happen, judge and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rate", type=float, default=8.0, help="requests a second")
    parser.add_argument("--items", type=int, default=3_000, help="of the largest requests")
    parser.add_argument("--only", nargs="+", choices=[BAD, *FAULTS], default=[BAD, *FAULTS], metavar="FAULT")
    parser.add_argument("--without", nargs="+", choices=[BAD, *FAULTS], default=[], metavar="FAULT")
    parser.add_argument("--corrupt", type=int, default=0, help="a server that is wrong in one of so many answers")
    parser.add_argument("--round", type=float, default=ROUND, help="seconds in which most faults come once")
    parser.add_argument("--model", help="left out: a network of one layer with weights drawn at random")
    parser.add_argument("--log", help="where to write what the server says, a line for each request left out")
    parser.add_argument("--out", help="where to write the result; left out: beside this script")
    given = parser.parse_args()
    given.only = [name for name in given.only if name not in given.without]
    with tempfile.TemporaryDirectory() as place:
        return judge(given, chaos(given, Path(place)))


if __name__ == "__main__":
    raise SystemExit(main())
