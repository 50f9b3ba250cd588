"""Speed, memory, cold start and judged quality of a model on this machine: what ``pertinent bench`` measures.

Every way of scoring is a contestant in a process of its own. Contestants take turns in one run: the
milliseconds of one change with the machine's mood, the ratio of two that take turns does not.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from pertinent.config import Config
from pertinent.errors import ConfigError, PertinentError, ScoringError
from pertinent.folders import SHIPPED_MODELS, model_folder
from pertinent.records import Item, Judgment

if TYPE_CHECKING:
    from pertinent.evaluation.result import Evaluation

Rival = Literal["sentence-transformers", "onnxruntime", "ctranslate2"]
# How deep a first ranking is scored again, for the curve of quality against depth.
DEPTHS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)


class BenchConfig(Config):
    """Settings of ``pertinent bench``.

    ``against`` runs other toolkits in the same run, turn by turn, on a network of the same sizes and
    weights. With ``judgments`` (``query``, ``title``, ``grade`` or ``label`` on a ``scale``; those of the
    split ``train`` are left out) each level is judged too, and the first one at growing depth.
    ``report`` is a page of charts.
    """

    model: str | None = None
    candidates: list[int] = Field([100, 1000, 3000], min_length=1)
    backends: list[str] | None = None
    against: tuple[Rival, ...] = ()
    turns: int = Field(10, ge=1)
    items: str | None = None
    judgments: str | None = None
    scale: str | None = None
    threads: int | None = Field(None, ge=1)
    query: str = "wireless earbuds"
    columns: dict[str, str] = {}
    report: str | None = None


@dataclass(frozen=True, slots=True)
class BenchRow:
    """Speed of one way of scoring at one number of items; ``cold_s`` is from a new process to its first score.

    ``peak_share`` is its arithmetic against the measured peak of the machine; ``quality`` has judged
    metrics with their intervals. Both are None where they are not known.
    """

    name: str
    candidates: int
    p50_ms: float
    p90_ms: float
    p99_ms: float
    items_per_s: float
    rss_mb: float
    cold_s: float
    peak_share: float | None = None
    quality: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Bench:
    """All rows of a run, what the machine and the titles were, and quality by depth if it was judged."""

    rows: tuple[BenchRow, ...]
    machine: str
    titles: str
    peak_gflops: float
    depths: tuple[dict[str, float], ...] = ()

    def plain(self) -> dict[str, Any]:
        """JSON-able values."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Contestant:
    """A way of scoring: a name, and the backend of ours or the rival that does it; ``indexed`` titles are known."""

    name: str
    runs: str
    indexed: bool = False
    model: str | None = None


def bench(config: BenchConfig) -> Bench:
    """Latency, memory, cold start and quality of each contestant, turn by turn, each in its own process."""
    from pertinent.engine.backends import available_cores

    if min(config.candidates) < 1:
        raise ConfigError(f"--candidates: {min(config.candidates)} is not a number of items; give 1 or more")
    entered = contestants(config)
    judged = _judged(config)
    peak = peak_gflops()
    with ExitStack() as stack, tempfile.TemporaryDirectory() as folder:
        runners = [stack.enter_context(Runner(config, contestant, Path(folder))) for contestant in entered]
        times = {(runner.contestant.name, count): [] for runner in runners for count in config.candidates}  # type: dict[tuple[str, int], list[float]]
        for count in config.candidates:
            for turn in range(-1, config.turns):
                for runner in runners:
                    spent = float(runner.ask({"count": count}))
                    if turn >= 0:
                        times[runner.contestant.name, count].append(spent)
        scores = {r.contestant.name: np.asarray(r.ask({"judge": True})) for r in runners} if judged else {}
        memory = {runner.contestant.name: float(runner.ask({"memory": True})) for runner in runners}
    quality = {name: _evaluated(found, judged, config) for name, found in scores.items()}
    work = _work_gflop(config)
    rows = [
        _row(runner, count, times[runner.contestant.name, count], memory, quality, work, peak)
        for count in config.candidates
        for runner in runners
    ]
    depths = _depths(scores[entered[0].name], judged, config) if judged else []
    machine = f"{available_cores()} cores, {processor()}"
    found = Bench(tuple(rows), machine, _titles_in_words(config), peak, tuple(depths))
    if config.report is not None:
        from pertinent.artifact import write_text

        Path(config.report).parent.mkdir(parents=True, exist_ok=True)
        write_text(Path(config.report), bench_page(found))
    return found


def contestants(config: BenchConfig) -> list[Contestant]:
    """Who takes part: the levels of the model, or the backends that were asked for, and the rivals."""
    from pertinent.engine.backends import BACKENDS

    for name in config.backends or ():
        if name not in BACKENDS:
            raise ConfigError(f"--backends: {name!r} is not a backend; allowed: {', '.join(BACKENDS)}")
    if config.backends is not None:
        levels = [(name, name, config.model) for name in config.backends]
    elif config.model is not None:
        levels = _levels(config.model)
    else:
        levels = [level for name in SHIPPED_MODELS for level in _levels(name)]
    ours = [
        Contestant(f"{level}, indexed" if indexed else level, backend, indexed, model)
        for level, backend, model in levels
        for indexed in (False, True)
    ]
    return [*ours, *(Contestant(name, name, False, config.model) for name in config.against)]


def _levels(model: str) -> list[tuple[str, str, str | None]]:
    """The levels of a model: their names, the backends they run on, and the model."""
    usable = _usable_backends(model)
    best = next(name for name in ("native", "onnx", "torch", *usable) if name in usable)
    rounded = [name for name in usable if "int8" in name][:1]
    if _joins_late(model):
        return [("late-join", best, model), *(("late-join int8", name, model) for name in rounded)]
    on_gpu = [("gpu", "cuda", model)] if "cuda" in usable else []
    return [("exact", best, model), *(("int8", name, model) for name in rounded), *on_gpu]


class Runner:
    """A contestant in its own process, asked by lines of JSON."""

    def __init__(self, config: BenchConfig, contestant: Contestant, folder: Path) -> None:
        self.contestant = contestant
        self._settings = {
            "config": config.plain(),
            "contestant": asdict(contestant),
            "folder": str(folder / re.sub(r"\W+", "-", contestant.name)),
        }

    def __enter__(self) -> Runner:
        started = time.time()
        command = [sys.executable, "-c", "from pertinent.bench import serve; serve()"]
        pipe = subprocess.PIPE
        self._errors = tempfile.TemporaryFile("w+")
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=self._errors, text=True)
        try:
            self.cold = float(self.ask({**self._settings, "started": started}))
        except ScoringError:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()
        self._errors.close()

    def ask(self, question: Mapping[str, Any]) -> Any:
        """The answer to one question. Raises ScoringError where the process has ended."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(question) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass
        for line in self._process.stdout:
            if line.startswith(_ANSWER):
                return json.loads(line.removeprefix(_ANSWER))
        self._process.wait()
        self._errors.seek(0)
        last = (self._errors.read().strip().splitlines() or ["ended without a word"])[-1]
        kind = "rival" if self.contestant.runs in ("sentence-transformers", "onnxruntime", "ctranslate2") else "backend"
        raise ScoringError(f"{kind} {self.contestant.runs}: {last}")


_ANSWER = "bench:"


def serve() -> None:
    """Answer the questions of a ``Runner`` on the standard streams; what libraries print goes to the error stream."""
    answers, sys.stdout = sys.stdout, sys.stderr
    try:
        settings = json.loads(sys.stdin.readline())
        part = Part(BenchConfig.build(settings["config"]), Contestant(**settings["contestant"]), settings["folder"])
        answers.write(f"{_ANSWER}{json.dumps(time.time() - settings['started'])}\n")
        answers.flush()
        for line in sys.stdin:
            answers.write(f"{_ANSWER}{json.dumps(part.answer(json.loads(line)))}\n")
            answers.flush()
    except PertinentError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(2)


class Part:
    """A contestant ready to be measured in this process."""

    def __init__(self, config: BenchConfig, contestant: Contestant, folder: str) -> None:
        self.config, self.contestant = config, contestant
        self._folder = Path(folder)
        self._index: Any = None
        self._scorer: Any = None
        self.score: Callable[[str, Sequence[str]], Any]
        if contestant.runs in ("sentence-transformers", "onnxruntime", "ctranslate2"):
            from pertinent.rivals import open_rival

            self.score = open_rival(contestant.runs, contestant.model, config.threads, self._folder)
        else:
            from pertinent.engine.scorer import Scorer

            self._scorer = Scorer.load(contestant.model, backend=contestant.runs, threads=config.threads)
            self.score = self._scorer.score
        self.score(config.query, [config.query])
        self._titles: list[str] = []

    def answer(self, question: Mapping[str, Any]) -> Any:
        """Milliseconds of one call with ``count`` titles, the scores of judged pairs, or the peak memory in MB."""
        if "count" in question:
            call = self._call(question["count"])
            start = time.perf_counter()
            call()
            return (time.perf_counter() - start) * 1000
        if "judge" in question:
            return self._judge()
        return _peak_mb()

    def _call(self, count: int) -> Callable[[], Any]:
        if not self._titles:
            self._titles = distinct_titles(_bench_titles(self.config), max(self.config.candidates))
        query = self.config.query
        if not self.contestant.indexed:
            titles = self._titles[:count]
            return lambda: self.score(query, titles)
        if self._index is None:
            from pertinent.engine.index import ItemIndex

            items = [Item(str(number), title) for number, title in enumerate(self._titles)]
            scorer = self._scorer
            self._index = ItemIndex.build(
                items, scorer.pairs, self._folder, scorer.version, state_writer=scorer.state_writer
            )
        rows = np.arange(count)
        return lambda: self._scorer.score_index(query, self._index, rows)

    def _judge(self) -> list[float]:
        judged = _judged(self.config)
        scores = np.zeros(len(judged))
        places: dict[str, list[int]] = {}
        for place, judgment in enumerate(judged):
            places.setdefault(judgment.query, []).append(place)
        for query, rows in places.items():
            scores[rows] = self.score(query, [judged[row].title for row in rows])
        return [float(score) for score in scores]


def peak_gflops(size: int = 768, seconds: float = 0.5) -> float:
    """The best GFLOP/s of float32 matrix products in so many seconds, with the cores that numpy takes."""
    left = np.random.default_rng(0).standard_normal((size, size), dtype=np.float32)
    best, end = float("inf"), time.perf_counter() + seconds
    while (start := time.perf_counter()) < end:
        np.matmul(left, left)
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best / 1e9


def pair_gflop(network: Mapping[str, Any], query_tokens: float, title_tokens: float, tables: bool = False) -> float:
    """GFLOP of one pair without padding, the last layer computed for ``[CLS]`` alone, two a multiply-add.

    With ``tables`` the projections of the first layer are looked up and not computed, as the native engine does.

    >>> network = {"layers": 3, "hidden_size": 128, "feed_forward_size": 512}
    >>> round(pair_gflop(network, 7, 26), 4), round(pair_gflop(network, 7, 26, tables=True), 4)
    (0.0296, 0.0263)
    """
    width, feed, tokens = network["hidden_size"], network["feed_forward_size"], query_tokens + title_tokens
    row = 2 * (4 * width * width + 2 * width * feed) + 4 * tokens * width
    last = 4 * width * width * tokens + 2 * (2 * width * width + 2 * width * feed) + 4 * tokens * width
    looked_up = (6 if network["layers"] > 1 else 4) * width * width * tokens if tables else 0
    return float(((network["layers"] - 1) * row * tokens + last - looked_up) / 1e9)


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


def bench_page(found: Bench) -> str:
    """The run as one page of charts and its table, without scripts."""
    from pertinent.charts import Axis, Series, line_chart, log_ticks, round_ticks
    from pertinent.page import facts, grid, page, section, table

    names = list(dict.fromkeys(row.name for row in found.rows))
    counts, spent = [row.candidates for row in found.rows], [row.p50_ms for row in found.rows]
    across = Axis(min(counts), max(*counts, min(counts) + 1), "candidates", log_ticks(min(counts), max(counts)), True)
    low, high = min(spent), max(*spent, min(spent) * 1.01)
    up = Axis(low, high, "p50, ms", log_ticks(low, high), True)
    lines = [Series(n, [(r.candidates, r.p50_ms) for r in found.rows if r.name == n]) for n in names]
    figures = [
        line_chart("Latency", "p50 by number of candidates, both axes logarithmic", across, up, lines, dots=True)
    ]
    if found.depths:
        points = [(entry["depth"], entry["ndcg@10"]) for entry in found.depths]
        least, most = min(y for _, y in points), max(y for _, y in points)
        depth = Axis(1, max(points[-1][0], 2), "depth", log_ticks(1, max(points[-1][0], 2)), True)
        height = Axis(least - 0.01, most + 0.01, "NDCG@10", round_ticks(least - 0.01, most + 0.01))
        text = "NDCG@10 when the best items of BM25 are scored again down to a depth"
        figures.append(line_chart("How deep to go", text, depth, height, [Series("reranked", points)], dots=True))
    header = ["name", "candidates", "p50 ms", "p90 ms", "p99 ms", "items/s", "memory MB", "cold s", "peak", "AUC"]
    body = [[escape(cell) for cell in cells_of(row)] for row in found.rows]
    told = {"machine": found.machine, "titles": found.titles, "float32 peak": f"{found.peak_gflops:.0f} GFLOP/s"}
    return page("Bench", [facts(told), section("Charts", grid(figures)), section("Rows", table("Rows", header, body))])


def cells_of(row: BenchRow) -> list[str]:
    """A row of the bench as texts: speed, memory, cold start, share of the peak, AUC."""
    share = "-" if row.peak_share is None else f"{row.peak_share:.0%}"
    auc = "-" if not row.quality else f"{row.quality['auc']['value']:.3f}"
    speed = [f"{value:.1f}" for value in (row.p50_ms, row.p90_ms, row.p99_ms)]
    held = [f"{row.items_per_s:,.0f}", f"{row.rss_mb:.0f}", f"{row.cold_s:.2f}"]
    return [row.name, str(row.candidates), *speed, *held, share, auc]


def _row(
    runner: Runner,
    count: int,
    times: list[float],
    memory: Mapping[str, float],
    quality: Mapping[str, Evaluation],
    work: Mapping[bool, float] | None,
    peak: float,
) -> BenchRow:
    from pertinent.evaluation.speed import latency_stats

    name, stats = runner.contestant.name, latency_stats(times, count)
    share = None
    if work is not None and not name.startswith("late-join"):
        share = work[runner.contestant.runs.startswith("native")] * count / (stats.p50 / 1000) / peak
    judged = quality.get(name)
    found = None if judged is None else {key: judged.metrics[key].plain() for key in ("auc", "ndcg@10")}
    return BenchRow(
        name, count, stats.p50, stats.p90, stats.p99, stats.items_per_second, memory[name], runner.cold, share, found
    )


def _judged(config: BenchConfig) -> list[Judgment]:
    if config.judgments is None:
        return []
    from pertinent.data.readers import read_items, read_judgments

    items = None if config.items is None else read_items(config.items, rename=config.columns)
    rows = read_judgments(config.judgments, items=items, scale=config.scale)
    return [row for row in rows if row.split != "train"]


def _evaluated(scores: NDArray[Any], judged: Sequence[Judgment], config: BenchConfig) -> Evaluation:
    from pertinent.data.grades import lowest_relevant
    from pertinent.evaluation.evaluate import evaluate_scores

    grade = lowest_relevant(judged, config.scale)
    return evaluate_scores(scores, judged, name="bench", positive_grade=grade, segment_by=())


def _depths(scores: NDArray[Any], judged: Sequence[Judgment], config: BenchConfig) -> list[dict[str, float]]:
    """NDCG@10 when the first items of BM25 are put in the model's order down to each depth, the rest left behind."""
    from pertinent.models.lexical import BM25
    from pertinent.records import by_query

    first = BM25().fit([judgment.title for judgment in judged])
    groups = [rows for _, rows in by_query(judged)]
    ranks = np.zeros(len(judged))
    for rows in groups:
        order = np.argsort(-first.score(judged[rows[0]].query, [judged[row].title for row in rows]), kind="stable")
        ranks[np.array(rows)[order]] = np.arange(len(rows))
    longest = max(len(rows) for rows in groups)
    found = []
    for depth in [d for d in DEPTHS if d < longest] + [longest]:
        merged = np.where(ranks < depth, 1 + scores, -ranks)
        value = _evaluated(merged, judged, config).metrics["ndcg@10"]
        found.append({"depth": depth, "ndcg@10": value.value, "low": value.low, "high": value.high})
    return found


def _work_gflop(config: BenchConfig) -> dict[bool, float] | None:
    """GFLOP of a pair of this run's query with a title of mean length, without and with looked-up projections.

    None where the sizes are not of our encoder.
    """
    from pertinent.artifact import open_artifact
    from pertinent.models.store import load_pairs, model_settings

    model = open_artifact(model_folder(config.model), kind="model", verify=False)
    network = model_settings(model)["network"]
    if network.get("type", "ei_src") != "ei_src" or network.get("join_layer") or network.get("one_way"):
        return None
    pairs = load_pairs(model)
    titles = pairs.encode_items(_bench_titles(config)[: max(config.candidates)])
    query = pairs.encode_queries([config.query])
    lengths = float(query.lengths[0]) + 2, float(titles.lengths.mean()) + 1
    return {tables: pair_gflop(network, *lengths, tables) for tables in (False, True)}


def _joins_late(model: str | None) -> bool:
    from pertinent.artifact import open_artifact
    from pertinent.models.joining import state_width
    from pertinent.models.store import model_settings

    return state_width(model_settings(open_artifact(model_folder(model), verify=False))["network"]) > 0


def _usable_backends(model: str | None) -> list[str]:
    from pertinent.artifact import open_artifact
    from pertinent.doctor import DoctorConfig, examine

    open_artifact(model_folder(model), kind="model", verify=False)  # a missing one is named
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

    if config.items is not None:
        return [item.title for item in read_items(config.items, rename=config.columns)]
    model = open_artifact(model_folder(config.model), kind="model", verify=False)
    if not model.has(GOLDEN_FILE):
        raise ConfigError(f"{model.path} holds no titles to measure with; give a catalog with --items FILE")
    return [pair.title for pair in read_golden(model.file(GOLDEN_FILE), "float32")[0]]


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
