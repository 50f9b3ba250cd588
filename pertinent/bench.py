"""Speed, memory and cold start of a model on this machine: what ``pertinent bench`` measures."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from pertinent.config import Config
from pertinent.errors import ConfigError, ScoringError
from pertinent.records import Item


class BenchConfig(Config):
    """Settings of ``pertinent bench``."""

    model: str | None = None
    candidates: list[int] = Field([100, 1000, 3000], min_length=1)
    backends: list[str] | None = None
    turns: int = Field(10, ge=1)
    items: str | None = None
    threads: int | None = Field(None, ge=1)
    query: str = "wireless earbuds"
    columns: dict[str, str] = {}


@dataclass(frozen=True, slots=True)
class BenchRow:
    """Speed of one way of scoring at one number of items; ``cold_s`` starts with a new process."""

    name: str
    candidates: int
    p50_ms: float
    p99_ms: float
    rss_mb: float
    cold_s: float


@dataclass(frozen=True, slots=True)
class Bench:
    """All rows of a run, and what the machine and the titles were."""

    rows: tuple[BenchRow, ...]
    machine: str
    titles: str

    def plain(self) -> dict[str, Any]:
        """JSON-able values."""
        return {"machine": self.machine, "titles": self.titles, "rows": [asdict(row) for row in self.rows]}


def bench(config: BenchConfig) -> Bench:
    """Latency, memory and cold start of each backend, each in a process of its own."""
    from pertinent.engine.backends import BACKENDS, available_cores

    if min(config.candidates) < 1:
        raise ConfigError(f"--candidates: {min(config.candidates)} is not a number of items; give 1 or more")
    names = config.backends if config.backends is not None else _usable_backends(config.model)
    for name in names:
        if name not in BACKENDS:
            raise ConfigError(f"--backends: {name!r} is not a backend; allowed: {', '.join(BACKENDS)}")
    rows: list[BenchRow] = []
    for name in names:
        rows += _bench_in_new_process(config, name)
    return Bench(tuple(rows), f"{available_cores()} cores, {processor()}", _titles_in_words(config))


def bench_one(config: BenchConfig, backend: str, started: float) -> list[BenchRow]:
    """The rows of one backend, measured in this process, which began at ``started`` (unix time).

    Each number of items is scored as texts, and by row of an index that was made beforehand.
    """
    from pertinent.engine.index import ItemIndex
    from pertinent.engine.scorer import Scorer
    from pertinent.evaluation.speed import measure

    scorer = Scorer.load(config.model, backend=backend, threads=config.threads)
    scorer.score(config.query, [config.query])
    cold = time.time() - started
    titles = distinct_titles(_bench_titles(config), max(config.candidates))
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        items = [Item(str(number), title) for number, title in enumerate(titles)]
        index = ItemIndex.build(items, scorer.pairs, Path(folder, "index"), scorer.version)
        for count in config.candidates:
            ways = {
                backend: partial(scorer.score, config.query, titles[:count]),
                f"{backend}, indexed": partial(scorer.score_index, config.query, index, np.arange(count)),
            }
            stats = measure(ways, turns=config.turns, warmup=1, items=count).stats
            rows += [BenchRow(name, count, s.p50, s.p99, _peak_mb(), cold) for name, s in stats.items()]
    return rows


def distinct_titles(titles: Sequence[str], count: int) -> list[str]:
    """``count`` titles of the given lengths, no two equal while the words allow it.

    >>> distinct_titles(["red usb cable"], 3)
    ['red usb cable', 'usb cable red', 'cable red usb']
    """
    made = []
    for place in range(count):
        words = titles[place % len(titles)].split()
        turn = (place // len(titles)) % max(len(words), 1)
        made.append(" ".join(words[turn:] + words[:turn]))
    return made


def processor() -> str:
    """The instructions of this processor that matter here, in words."""
    from pertinent.doctor import cpu_flags

    try:
        return ", ".join(cpu_flags(Path("/proc/cpuinfo").read_text())) or "no vector instructions known"
    except OSError:
        return "instructions not known"


def _usable_backends(model: str | None) -> list[str]:
    from pertinent.doctor import DoctorConfig, examine

    health = examine(DoctorConfig(model=model))
    found = [
        c.name.removeprefix("backend ") for c in health.checks if c.name.startswith("backend ") and c.state == "ok"
    ]
    if not found:
        raise ScoringError("no backend can load this model here; see: pertinent doctor")
    return found


def _titles_in_words(config: BenchConfig) -> str:
    """Which titles were measured, and whether some had to be made of the others' words."""
    source = config.items or "of the model's golden pairs"
    found, wanted = len(_bench_titles(config)), max(config.candidates)
    if found >= wanted:
        return source
    return f"{source}, which are {found}; the others of {wanted} are these with their words turned round"


def _bench_titles(config: BenchConfig) -> list[str]:
    from pertinent.artifact import open_artifact
    from pertinent.data.readers import read_items
    from pertinent.engine.golden import GOLDEN_FILE, read_golden
    from pertinent.folders import shipped_folder

    if config.items is not None:
        return [item.title for item in read_items(config.items, rename=config.columns)]
    model = open_artifact(config.model or shipped_folder(), kind="model", verify=False)
    if not model.has(GOLDEN_FILE):
        raise ConfigError(f"{model.path} holds no titles to measure with; give a catalog with --items FILE")
    return [pair.title for pair in read_golden(model.file(GOLDEN_FILE), "float32")[0]]


_CHILD = """
import json, sys
from pertinent.bench import BenchConfig, bench_one
from dataclasses import asdict
from pertinent.errors import PertinentError
settings = json.loads(sys.argv[1])
try:
    rows = bench_one(BenchConfig.build(settings["config"]), settings["backend"], settings["started"])
except PertinentError as error:
    print(error, file=sys.stderr)
    sys.exit(2)
print(json.dumps([asdict(row) for row in rows]))
"""


def _bench_in_new_process(config: BenchConfig, backend: str) -> list[BenchRow]:
    settings = {"config": config.plain(), "backend": backend, "started": time.time()}
    command = [sys.executable, "-c", _CHILD, json.dumps(settings)]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ScoringError(f"backend {backend}: {(done.stderr.strip().splitlines() or ['ended without a word'])[-1]}")
    return [BenchRow(**row) for row in json.loads(done.stdout.splitlines()[-1])]


def _peak_mb() -> float:
    """The most memory that this process had. What Linux counts in ru_maxrss begins with that of the parent process."""
    import resource

    try:
        found = re.search(r"^VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    except OSError:
        found = None
    if found is not None:
        return int(found.group(1)) / (1 << 10)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1 << 20) if sys.platform == "darwin" else peak / (1 << 10)
