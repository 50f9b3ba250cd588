"""What the commands do beyond one call of the library, and how their results are printed.

Ranking a catalog, measuring a named baseline and timing a model need parts that do not know each
other (readers, scorers, metrics); they meet here, below the command line and above the stages.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import Field

from pertinent.artifact import Artifact
from pertinent.config import Config
from pertinent.errors import ConfigError, ScoringError
from pertinent.records import Item, PairScorer, Scored

if TYPE_CHECKING:
    from pertinent.doctor import Health
    from pertinent.evaluation.evaluate import EvaluateConfig, Evaluation

# Scorers that are fitted on the titles they score, by the name they have on the command line.
BASELINES = {"bm25": "pertinent.models.lexical:BM25", "tfidf": "pertinent.models.lexical:TFIDF"}


class ScoreConfig(Config):
    """Settings of ``pertinent score``."""

    query: str
    items: str | None = None
    index: str | None = None
    top: int = Field(10, ge=1)
    model: str | None = None
    backend: str | None = None
    threads: int | None = Field(None, ge=1)
    columns: dict[str, str] = {}


@dataclass(frozen=True, slots=True)
class Ranking:
    """Items in order of their score for one query, and who gave it."""

    query: str
    model: str
    version: str
    items: int
    results: tuple[Scored, ...]

    def plain(self) -> dict[str, Any]:
        """JSON-able values."""
        rows = [
            {
                "rank": rank,
                "item_id": scored.item.item_id,
                "title": scored.item.title,
                "score": scored.score,
                "truncated": scored.truncated,
                "model": scored.scorer or self.model,
            }
            for rank, scored in enumerate(self.results, start=1)
        ]
        return {
            "query": self.query,
            "model": self.model,
            "version": self.version,
            "items": self.items,
            "results": rows,
        }


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


def score(config: ScoreConfig) -> Ranking:
    """The best items of a catalog or an index for a query."""
    if not config.query.strip():
        raise ConfigError("the query is empty; give what a shopper would type")
    if (config.items is None) == (config.index is None):
        raise ConfigError("give a catalog with --items FILE, or an index with --index FOLDER (one of them)")
    source = Path(config.index or config.items or "")
    if config.index is not None or source.is_dir():
        return _rank_index(config, source)
    from pertinent.data.readers import read_items

    items = read_items(source, rename=_rename(config.columns))
    if config.model in BASELINES:
        return _rank_by_baseline(config, items)
    scorer = _scorer(config.model, config.backend, config.threads)
    results = scorer.rank(config.query, items, top=config.top)
    return Ranking(config.query, scorer.name, scorer.version, len(items), tuple(results))


def evaluate(config: EvaluateConfig) -> Evaluation:
    """A model's or a baseline's quality on a judged table; writes the report when one is asked for."""
    from pertinent.evaluation.evaluate import run_evaluate

    return run_evaluate(config)


def index(config: Any) -> Artifact:
    """An index of a catalog for one model, as a folder."""
    from pertinent.engine.index import run_index

    return run_index(config)


def bench(config: BenchConfig) -> Bench:
    """Latency, memory and cold start of each backend, each in a process of its own."""
    from pertinent.doctor import cpu_flags, usable_cores
    from pertinent.engine.backends import BACKENDS

    names = config.backends if config.backends is not None else _usable_backends(config.model)
    for name in names:
        if name not in BACKENDS:
            raise ConfigError(f"--backends: {name!r} is not a backend; allowed: {', '.join(BACKENDS)}")
    if min(config.candidates) < 1:
        raise ConfigError(f"--candidates: {min(config.candidates)} is not a number of items; give 1 or more")
    rows: list[BenchRow] = []
    for name in names:
        rows += _bench_in_new_process(config, name)
    try:
        flags = ", ".join(cpu_flags(Path("/proc/cpuinfo").read_text()))
    except OSError:
        flags = "unknown instructions"
    titles = config.items or "titles of the model's golden pairs, their words turned round"
    return Bench(tuple(rows), f"{usable_cores():g} cores, {flags}", titles)


def bench_one(config: BenchConfig, backend: str, started: float) -> list[BenchRow]:
    """The rows of one backend, measured in this process, which began at ``started`` (unix time)."""
    from pertinent.engine.scorer import Scorer
    from pertinent.evaluation.speed import latency

    scorer = Scorer.load(config.model, backend=backend, threads=config.threads)
    scorer.score(config.query, [config.query])
    cold = time.time() - started
    titles = _bench_titles(config, scorer, max(config.candidates))
    rows = []
    for count in config.candidates:
        stats = latency(scorer, config.query, titles[:count], turns=config.turns, warmup=1)
        rows.append(BenchRow(backend, count, stats.p50_ms, stats.p99_ms, _peak_mb(), cold))
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


def plain(result: Any) -> Any:
    """A result as JSON-able values; numbers that are not finite become null."""
    if isinstance(result, Artifact):
        values: Any = {
            "path": str(result.path),
            "kind": result.kind,
            "version": result.version,
            "metrics": result.metrics,
        }
    else:
        values = result.plain() if hasattr(result, "plain") else result
    return _finite(values)


def show_ranking(result: Ranking, config: ScoreConfig) -> None:
    """Print the ranked items."""
    rows = [
        [
            str(rank),
            f"{scored.score:.4f}",
            scored.item.item_id,
            scored.item.title + (" (cut)" if scored.truncated else ""),
        ]
        for rank, scored in enumerate(result.results, start=1)
    ]
    print_table(["rank", "score", "item_id", "title"], rows)
    print_lines([f"{len(rows)} of {result.items} items, by {result.model} {result.version}".rstrip()])


def show_evaluation(result: Evaluation, config: EvaluateConfig) -> None:
    """Print the metrics with their intervals."""
    rows = [
        [name, _number(entry["value"]), f"{_number(entry['low'])} to {_number(entry['high'])}"]
        for name, entry in plain(result)["metrics"].items()
    ]
    print_table(["metric", "value", "95% interval"], rows)
    report = getattr(config, "report", None)
    if report:
        print_lines([f"report: {report}"])


def show_artifact(result: Artifact, config: Config) -> None:
    """Print where an artifact is and what was measured when it was made."""
    print_lines([f"{result.kind} {result.version} in {result.path}"])
    metrics = {name: value for name, value in result.metrics.items() if isinstance(value, (int, float, str))}
    if metrics:
        print_table(["metric", "value"], [[name, _number(value)] for name, value in metrics.items()])


def show_bench(result: Bench, config: BenchConfig) -> None:
    """Print the speed table."""
    rows = [
        [r.name, str(r.candidates), f"{r.p50_ms:.1f}", f"{r.p99_ms:.1f}", f"{r.rss_mb:.0f}", f"{r.cold_s:.2f}"]
        for r in result.rows
    ]
    print_table(["name", "candidates", "p50 ms", "p99 ms", "memory MB", "cold start s"], rows)
    print_lines([f"machine: {result.machine}; titles: {result.titles}"])


def show_study(result: Any, config: Config) -> None:
    """Print the table of a study."""
    print_lines(str(result).splitlines())


def show_health(result: Health, config: Config) -> None:
    """Print the checks, and what to do about those that failed."""
    marks = {"ok": "ok", "missing": "-", "problem": "PROBLEM"}
    print_table(["", "check", "found"], [[marks[c.state], c.name, c.detail] for c in result.checks])
    fixes = [f"{check.name}: {check.fix}" for check in result.checks if check.fix]
    if fixes:
        print_lines(["", "to add what is missing:", *(f"  {fix}" for fix in fixes)])
    print_lines(["", "scoring works here" if result.can_score else "scoring does not work here yet"])


def print_table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table: drawn on a terminal, aligned plain lines elsewhere."""
    clean = [[printable(cell) for cell in row] for row in rows]
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table()
        for header in headers:
            table.add_column(header, overflow="fold")
        for row in clean:
            table.add_row(*(Text(cell) for cell in row))
        Console(file=sys.stdout).print(table)
        return
    print_lines(aligned(headers, clean))


def aligned(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines whose columns begin at the same place, also in scripts with wide characters.

    >>> aligned(["rank", "title"], [["1", "無線"], ["2", "cable"]])
    ['rank  title', '1     無線', '2     cable']
    """
    from rich.cells import cell_len

    table = [list(headers), *(list(row) for row in rows)]
    widths = [max(cell_len(row[column]) for row in table) for column in range(len(headers))]
    return [
        "  ".join(cell + " " * (width - cell_len(cell)) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in table
    ]


def printable(text: str) -> str:
    """Text without line breaks and terminal control codes, which a title may hold.

    >>> printable("a\\x1b[31mred\\nb")
    'a [31mred b'
    """
    return "".join(c if c.isprintable() else " " for c in text)


def print_lines(lines: Iterable[str]) -> None:
    """Print lines; the one place that writes text to the standard output."""
    for line in lines:
        print(line)


def _rank_index(config: ScoreConfig, folder: Path) -> Ranking:
    from pertinent.engine.index import ItemIndex

    if config.model in BASELINES:
        raise ConfigError(f"--model {config.model} needs the titles: give a catalog with --items FILE")
    scorer = _scorer(config.model, config.backend, config.threads)
    items = ItemIndex.open(folder, scorer.version)
    results = scorer.rank(config.query, items, top=config.top)
    return Ranking(config.query, scorer.name, scorer.version, len(items), tuple(results))


def _rank_by_baseline(config: ScoreConfig, items: Sequence[Item]) -> Ranking:
    baseline = _baseline(config.model or "", [item.title for item in items])
    scores = baseline.score(config.query, [item.title for item in items])
    order = np.argsort(-scores, kind="stable")[: config.top]
    results = tuple(Scored(items[row], float(scores[row]), baseline.name) for row in order)
    return Ranking(config.query, baseline.name, "", len(items), results)


def _baseline(name: str, titles: Sequence[str]) -> PairScorer:
    import importlib

    module, _, attribute = BASELINES[name].partition(":")
    fitted: PairScorer = getattr(importlib.import_module(module), attribute).fit(titles)
    return fitted


def _scorer(model: str | None, backend: str | None, threads: int | None) -> Any:
    from pertinent.engine.scorer import Scorer

    return Scorer.load(model, backend=backend, threads=threads)


def _rename(columns: Mapping[str, str]) -> dict[str, str]:
    """Their column name -> ours, as the readers take it."""
    return {theirs: ours for ours, theirs in columns.items()}


def _usable_backends(model: str | None) -> list[str]:
    from pertinent.doctor import DoctorConfig, examine

    health = examine(DoctorConfig(model=model))
    found = [
        c.name.removeprefix("backend ") for c in health.checks if c.name.startswith("backend ") and c.state == "ok"
    ]
    if not found:
        raise ScoringError("no backend can load this model here; see: pertinent doctor")
    return found


def _bench_titles(config: BenchConfig, scorer: Any, count: int) -> list[str]:
    if config.items is not None:
        from pertinent.data.readers import read_items

        titles = [item.title for item in read_items(config.items, rename=_rename(config.columns))]
    else:
        titles = [pair["title"] for pair in scorer.artifact.json("golden.json")["pairs"]]
    return distinct_titles(titles, count)


_CHILD = """
import json, sys
from pertinent.commands import BenchConfig, bench_one
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
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1 << 20) if sys.platform == "darwin" else peak / (1 << 10)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    if isinstance(value, np.generic):
        return _finite(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value


def _number(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4f}" if isinstance(value, float) else str(value)
