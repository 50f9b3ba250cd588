"""What the commands do beyond one call of the library, and how their results are printed.

Ranking a catalog, measuring a named baseline and timing a model need parts that do not know each
other (readers, scorers, metrics); they meet here, below the command line and above the stages.
"""

from __future__ import annotations

import importlib
import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
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
    from pertinent.engine.export import ExportConfig
    from pertinent.engine.index import IndexConfig
    from pertinent.engine.scorer import Scorer
    from pertinent.evaluation.evaluate import EvaluateConfig
    from pertinent.evaluation.result import Evaluation

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


@dataclass(frozen=True, slots=True)
class PlainFolder:
    """A cross-encoder folder for other toolkits."""

    path: Path

    def plain(self) -> dict[str, Any]:
        """JSON-able values."""
        return {"path": str(self.path), "kind": "hugging_face"}


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

    items = read_items(source, rename=config.columns)
    if config.model in BASELINES:
        return _rank_by_baseline(config, items)
    scorer = _scorer(config.model, config.backend, config.threads)
    results = scorer.rank(config.query, items, top=config.top)
    return Ranking(config.query, scorer.name, scorer.version, len(items), tuple(results))


def evaluate(config: EvaluateConfig) -> Evaluation:
    """A model's or a baseline's quality on a judged table; writes the report when one is asked for."""
    from pertinent.evaluation.evaluate import run_evaluate

    if config.model in BASELINES:
        scorer: PairScorer = _baseline(str(config.model), _judged_titles(config))
    else:
        scorer = _scorer(config.model, config.backend, config.threads)
    return run_evaluate(config, scorer)


def export(config: ExportConfig) -> Artifact | PlainFolder:
    """A model with graph files, in place or in another folder; or a folder for another toolkit."""
    from pertinent.data.readers import read_items, read_judgments
    from pertinent.engine import export as stage

    if config.format == "hugging_face":
        return PlainFolder(stage.export_cross_encoder(config))
    if config.model is None and config.out is None:
        raise ConfigError("--out is required for the model that comes with pertinent, which is not changed in place")
    if config.int8 and config.judgments is None:
        raise ConfigError("--judgments is required to compare int8 with float32; or give --no-int8")
    if config.judgments is None:
        return stage.export(config, [])
    items = read_items(config.items) if config.items is not None else None
    return stage.export(config, read_judgments(config.judgments, items=items, scale=config.scale))


def index(config: IndexConfig) -> Artifact:
    """An index of a catalog for one model, as a folder."""
    from pertinent.artifact import open_artifact
    from pertinent.data.readers import read_items
    from pertinent.engine.index import ItemIndex
    from pertinent.engine.scorer import shipped_folder
    from pertinent.models.store import load_pairs

    missing = [name for name in ("items", "out") if getattr(config, name) is None]
    if missing:
        raise ConfigError("\n".join(f"--{name} is required; see: pertinent index --help" for name in missing))
    model = open_artifact(config.model or shipped_folder(), kind="model")
    assert config.items is not None
    assert config.out is not None
    ItemIndex.build(
        read_items(config.items, rename=config.columns), load_pairs(model), config.out, model.version, config
    )
    return open_artifact(config.out, kind="index")


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
    titles = config.items or "of the model's golden pairs, their words turned round"
    return Bench(tuple(rows), f"{available_cores()} cores, {processor()}", titles)


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


def show_artifact(result: Artifact | PlainFolder, config: Config) -> None:
    """Print where an artifact is and what was measured when it was made."""
    if isinstance(result, PlainFolder):
        print_lines([f"cross-encoder for sentence-transformers in {result.path}"])
        return
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


def processor() -> str:
    """The instructions of this processor that matter here, in words."""
    from pertinent.doctor import cpu_flags

    try:
        return ", ".join(cpu_flags(Path("/proc/cpuinfo").read_text())) or "no vector instructions known"
    except OSError:
        return "instructions not known"


def _rank_index(config: ScoreConfig, folder: Path) -> Ranking:
    from pertinent.engine.index import ItemIndex

    if config.model in BASELINES:
        raise ConfigError(f"--model {config.model} needs the titles: give a catalog with --items FILE")
    scorer = _scorer(config.model, config.backend, config.threads)
    items = ItemIndex.open(folder, scorer.pairs)
    results = scorer.rank(config.query, items, top=config.top)
    return Ranking(config.query, scorer.name, scorer.version, len(items), tuple(results))


def _rank_by_baseline(config: ScoreConfig, items: Sequence[Item]) -> Ranking:
    baseline = _baseline(config.model or "", [item.title for item in items])
    scores = baseline.score(config.query, [item.title for item in items])
    order = np.argsort(-scores, kind="stable")[: config.top]
    results = tuple(Scored(items[row], float(scores[row]), baseline.name) for row in order)
    return Ranking(config.query, baseline.name, "", len(items), results)


def _baseline(name: str, titles: Sequence[str]) -> PairScorer:
    module, _, attribute = BASELINES[name].partition(":")
    fitted: PairScorer = getattr(importlib.import_module(module), attribute)().fit(titles)
    return fitted


def _scorer(model: str | None, backend: str | None, threads: int | None) -> Scorer:
    from pertinent.engine.scorer import Scorer

    return Scorer.load(model, backend=backend, threads=threads)


def _usable_backends(model: str | None) -> list[str]:
    from pertinent.doctor import DoctorConfig, examine

    health = examine(DoctorConfig(model=model))
    found = [
        c.name.removeprefix("backend ") for c in health.checks if c.name.startswith("backend ") and c.state == "ok"
    ]
    if not found:
        raise ScoringError("no backend can load this model here; see: pertinent doctor")
    return found


def _judged_titles(config: EvaluateConfig) -> list[str]:
    """What a lexical baseline is fitted on: the catalog where it is given, else the judged titles."""
    from pertinent.data.readers import items_of, judgments_of, read_table

    table = read_table(config.items or config.judgments)
    names = [config.columns.get(name, name) for name in table.columns]
    table = replace(table, columns=dict(zip(names, table.columns.values(), strict=True)))
    if config.items is not None:
        return [item.title for item in items_of(table)]
    return list(dict.fromkeys(judgment.title for judgment in judgments_of(table, scale=config.scale)))


def _bench_titles(config: BenchConfig) -> list[str]:
    from pertinent.artifact import open_artifact
    from pertinent.data.readers import read_items
    from pertinent.engine.golden import GOLDEN_FILE, read_golden
    from pertinent.engine.scorer import shipped_folder

    if config.items is not None:
        return [item.title for item in read_items(config.items, rename=config.columns)]
    model = open_artifact(config.model or shipped_folder(), kind="model", verify=False)
    if not model.has(GOLDEN_FILE):
        raise ConfigError(f"{model.path} holds no titles to measure with; give a catalog with --items FILE")
    return [pair.title for pair in read_golden(model.file(GOLDEN_FILE), "float32")[0]]


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
