"""What the commands do beyond one call of the library, and how their results are printed.

Ranking a catalog, measuring a named baseline and timing a model need parts that do not know each
other (readers, scorers, metrics); they meet here, below the command line and above the stages.
"""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from pertinent.artifact import MANIFEST, Artifact
from pertinent.config import Config
from pertinent.errors import ConfigError
from pertinent.records import Item, Judgment, PairScorer, Scored

if TYPE_CHECKING:
    from pertinent.bench import Bench, BenchConfig
    from pertinent.bulk import BulkResult
    from pertinent.data.convert import PublicTables
    from pertinent.data.weak import WeakTable
    from pertinent.doctor import Health
    from pertinent.engine.behavior import Spoken
    from pertinent.engine.export import ExportConfig
    from pertinent.engine.gate import Fall
    from pertinent.engine.hot_pairs import CacheConfig
    from pertinent.engine.index import IndexConfig
    from pertinent.engine.scorer import Scorer
    from pertinent.engine.stand_in import Logged
    from pertinent.evaluation.arms import ArmResult
    from pertinent.evaluation.evaluate import EvaluateConfig
    from pertinent.evaluation.result import Evaluation
    from pertinent.evaluation.review import ReviewResult, Sheet
    from pertinent.explain import ExplainConfig, Explanation
    from pertinent.lexicon.shown import ExplainedText
    from pertinent.load.results import Load
    from pertinent.mining.settings import MineConfig
    from pertinent.serving.run import Stopped

# What a search engine can hold, which counts in float32.
_MAX_FLOAT = float(np.finfo(np.float32).max)
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
    _refuse_backend(config.model, config.backend)
    _refuse_wrong_source(config, source)
    if config.index is not None or _is_index(source):
        if config.columns:
            raise ConfigError(
                "--columns names columns of a catalog; an index has none, give --columns to pertinent index"
            )
        return _rank_index(config, source)
    from pertinent.data.readers import read_items

    items = read_items(source, rename=config.columns)
    if config.model in BASELINES:
        return _rank_by_baseline(config, items)
    scorer = _scorer(config.model, config.backend, config.threads)
    results = scorer.rank(config.query, items, top=config.top)
    return Ranking(config.query, scorer.name, scorer.version, len(items), tuple(results))


def _is_index(source: Path) -> bool:
    return (source / MANIFEST).is_file()


def _refuse_wrong_source(config: ScoreConfig, source: Path) -> None:
    """Raise ConfigError for a catalog given as an index, and for a folder that is neither."""
    if config.index is not None and source.is_file():
        raise ConfigError(
            f"--index {source} is a file; an index is a folder that pertinent index makes; for a catalog: "
            f"--items {source}"
        )
    if config.items is not None and source.is_dir() and source.suffix != ".parquet" and not _is_index(source):
        raise ConfigError(
            f"--items {source} is a folder without an index; give a catalog file, or make an index: "
            "pertinent index --items FILE --out FOLDER"
        )


def evaluate(config: EvaluateConfig) -> Evaluation:
    """A model's or a baseline's quality on a judged table; writes the report when one is asked for."""
    from pertinent.evaluation.evaluate import run_evaluate

    _refuse_backend(config.model, config.backend)
    if config.model in BASELINES:
        scorer: PairScorer = _baseline(str(config.model), _judged_titles(config))
    else:
        scorer = _scorer(config.model, config.backend, config.threads)
    return run_evaluate(config, scorer)


def export(config: ExportConfig) -> Artifact | PlainFolder:
    """A model with graph files, in place or in another folder; or a folder for another toolkit or search engine."""
    from pertinent.data.readers import read_items, read_judgments
    from pertinent.engine import export as stage
    from pertinent.folders import SHIPPED_MODELS

    if config.format == "hugging_face":
        return PlainFolder(stage.export_cross_encoder(config))
    if config.format == "vespa":
        from pertinent.engine.vespa import export_vespa

        return export_vespa(config)
    if config.format in ("solr", "opensearch"):
        from pertinent.engine.stand_in import definitions, export_stand_in

        names = [feature["name"] for feature in definitions(config)]
        return export_stand_in(config, None if config.features is None else _read_logged(config.features, names))
    if config.model in (None, *SHIPPED_MODELS) and config.out is None:
        raise ConfigError("--out is required for a model that comes with pertinent, which is not changed in place")
    if config.int8 and config.judgments is None:
        raise ConfigError("--judgments is required to compare int8 with float32; or give --no-int8")
    if config.judgments is None:
        return stage.export(config, [])
    items = read_items(config.items) if config.items is not None else None
    judgments = read_judgments(config.judgments, items=items, scale=config.scale)
    return stage.export(config, judgments, partial(_falls, config.scale))


def _read_logged(path: str, names: Sequence[str]) -> Logged:
    """Pairs with the values of the named features, from a table with ``query``, ``title`` and a column for each."""
    from pertinent.data.readers import read_table
    from pertinent.engine.stand_in import Logged

    table = read_table(path)
    queries, titles = table.need_texts("query"), table.need_texts("title")
    for name in names:
        if not table.has(name):
            raise table.missing(name, "give a column of numbers for every feature of the definitions", None)
    fix = "give the number that the engine logged"
    columns = [[table.number(row, name, -_MAX_FLOAT, _MAX_FLOAT, fix) for row in range(len(table))] for name in names]
    values = np.array(columns, dtype=np.float64).T.reshape(len(table), len(names))
    return Logged(queries, titles, list(names), values)


def _falls(
    scale: str | None, judgments: Sequence[Judgment], exact: NDArray[np.float32], cheap: NDArray[np.float32]
) -> dict[str, Fall]:
    """How far judged metrics fall from exact to cheaper logits, paired by query."""
    from pertinent.data.grades import lowest_relevant
    from pertinent.engine.gate import Fall
    from pertinent.evaluation.compare import compare
    from pertinent.evaluation.evaluate import evaluate_scores
    from pertinent.probability import probability_curve

    grade, curve = lowest_relevant(judgments, scale), probability_curve(None)
    first, second = (
        evaluate_scores(curve(logits), judgments, name=name, positive_grade=grade, bootstrap=0, segment_by=())
        for name, logits in (("float32", exact), ("int8", cheap))
    )
    found = compare(first, second)
    return {name: Fall(*found[name][:3]) for name in ("auc", "ndcg@10") if name in found}


def index(config: IndexConfig) -> Artifact:
    """An index of a catalog for one model, as a folder: a new one, or the next generation of one."""
    from pertinent.artifact import open_artifact
    from pertinent.data.readers import iterate_items, read_item_ids, read_items, renames_by_file
    from pertinent.engine.index import ItemIndex
    from pertinent.engine.scorer import Scorer
    from pertinent.folders import model_folder
    from pertinent.models.joining import state_width
    from pertinent.models.store import load_pairs, model_settings

    _check_index(config)
    assert config.out is not None
    model = open_artifact(model_folder(config.model), kind="model")
    late = state_width(model_settings(model)["network"])
    states = Scorer.load(model.path).state_writer if late else None
    pairs = load_pairs(model)
    if config.update or config.delete is not None:
        tables = [path for path in (config.items, config.delete) if path is not None and not path.endswith(".txt")]
        renames = renames_by_file(tables, config.columns)
        items = [] if config.items is None else read_items(config.items, rename=renames[config.items])
        gone = [] if config.delete is None else read_item_ids(config.delete, renames.get(config.delete))
        ItemIndex.update(config.out, pairs, items, gone, model.version, config, states)
    else:
        assert config.items is not None
        make = ItemIndex.replace if config.replace and Path(config.out).exists() else ItemIndex.build
        catalog = iterate_items(config.items, config.columns, config.chunk)
        make(catalog, pairs, config.out, model.version, config, states)
    return open_artifact(config.out, kind="index")


def _check_index(config: IndexConfig) -> None:
    needed = ["out"] if config.delete is not None else ["items", "out"]
    missing = [f"--{name} is required" for name in needed if getattr(config, name) is None]
    if missing:
        raise ConfigError("\n".join(f"{problem}; see: pertinent index --help" for problem in missing))
    if config.replace and (config.update or config.delete is not None):
        raise ConfigError(
            "--replace takes the file as the whole catalog, --update and --delete change the one that is there; "
            "give one of them"
        )


def cache(config: CacheConfig) -> Artifact:
    """The scores of hot pairs, computed ahead, as a folder."""
    from itertools import islice

    from pertinent.artifact import open_artifact
    from pertinent.data.readers import read_table_parts
    from pertinent.engine.hot_pairs import HotPairs
    from pertinent.engine.index import ItemIndex

    missing = [name for name in ("hot_pairs", "index", "out") if getattr(config, name) is None]
    if missing:
        flags = [f"--{name.replace('_', '-')} is required" for name in missing]
        raise ConfigError("\n".join(f"{problem}; see: pertinent cache --help" for problem in flags))
    assert config.hot_pairs is not None and config.index is not None and config.out is not None
    source = Path(config.hot_pairs)
    if source.is_dir() and source.suffix != ".parquet":
        source = open_artifact(source, kind="mined").path / "hot_pairs.parquet"
    scorer = _scorer(config.model, config.backend, config.threads)
    items = ItemIndex.open(config.index, scorer.pairs)
    pairs = (
        pair
        for table in read_table_parts(source, config.chunk)
        for pair in zip(table.need_texts("query"), table.need_texts("item_id"), strict=True)
    )
    HotPairs.build(islice(pairs, config.limit), scorer, items, config.out, config)
    return open_artifact(config.out, kind="scores")


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
    rows = [[name, *_estimate_cells(entry)] for name, entry in plain(result)["metrics"].items()]
    print_table(["metric", "value", "95% interval"], rows)
    print_lines(
        [
            f"{len(result.scores):,} pairs of {len(result.queries):,} queries, {int(result.relevant.sum()):,} relevant "
            f"(grade {result.positive_grade:g} or more); {result.ranked_queries:,} queries count in ranking metrics"
        ]
    )
    if result.robustness:
        from pertinent.evaluation.robust_table import LOSS_HEAD, loss_rows

        print_lines([""])
        print_table(LOSS_HEAD, loss_rows(result.robustness))
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
    for name, title in (("int8", "int8 gate"), ("native_int8", "native int8 gate")):
        if name in result.metrics:
            print_table([title, ""], _gate_rows(result.metrics[name]))


def show_trained(result: Artifact, config: Config) -> None:
    """Print where the model is, and what it is worth on the splits that it has not learned from."""
    print_lines([f"{result.kind} {result.version} in {result.path}"])
    splits = {name: result.metrics[name] for name in ("valid", "test") if name in result.metrics}
    rows = [
        [name, *(cell for found in splits.values() for cell in _estimate_cells(found[name]))]
        for name in splits["valid"]
    ]
    print_table(["metric", *(head for split in splits for head in (split, "95% interval"))], rows)
    chosen = result.metrics["selection"]
    print_lines([f"weights of step {chosen['step']:,} of {chosen['steps']:,}", f"model card: {result.path}/README.md"])


def _estimate_cells(entry: Mapping[str, Any]) -> tuple[str, str]:
    """A value with its interval, as two cells of a table."""
    return _number(entry["value"]), f"{_number(entry['low'])} to {_number(entry['high'])}"


def _gate_rows(gate: Mapping[str, Any]) -> list[list[str]]:
    """The gate of int8 as an artifact keeps it, as rows of a table."""
    rows = [[name.replace("_", " "), _number(gate[name])] for name in ("spearman", "top_overlap", "judged_loss")]
    for name, fall in gate.get("judged", {}).items():
        rows.append([f"fall of {name}", f"{_number(fall['value'])} [{_number(fall['low'])}, {_number(fall['high'])}]"])
    kept = ", ".join(gate.get("cheap", [])) or "nothing"
    return [*rows, ["pairs", str(gate["pairs"])], ["kept in 8 bits", kept], ["reasons", "; ".join(gate["reasons"])]]


def show_weak(result: WeakTable, config: Config) -> None:
    """Print how many pairs each rule gave."""
    print_table(["rule", "relevant", "not"], [[r["rule"], str(r["relevant"]), str(r["not"])] for r in result.rows])
    print_lines([f"{result.left_out:,} pairs of judged queries left out", f"pairs: {result.path}"])


def show_public(result: PublicTables, config: Config) -> None:
    """Print what was written, and under which terms."""
    print_lines(
        [
            f"{result.items:,} items, {result.judgments:,} judgments of {result.queries:,} queries: {result.folder}",
            f"license: {result.license}",
            f"to cite: {result.citation}",
        ]
    )


def show_pretrained(result: Artifact, config: Config) -> None:
    """Print what was measured on held-out texts, and what to do with the folder."""
    show_artifact(result, config)
    print_lines([f"report: {result.file('report.html')}", f"train from it: pertinent train --start {result.path} ..."])


def show_mined(result: Artifact, config: MineConfig) -> None:
    """Print what was mined, and what the checks found."""
    show_artifact(result, config)
    found = [check for check in result.json("checks.json")["checks"] if check["rows"]]
    if found:
        print_lines([""])
        print_table(["check", "rows", "action"], [[c["check"], str(c["rows"]), str(c["action"])] for c in found])
    print_lines([f"report: {result.file('report.html')}"])


def show_bulk(result: BulkResult, config: Config) -> None:
    """Print how many pairs were scored, and how fast."""
    told = result.plain()
    earlier = f", {result.resumed} of them by an earlier run" if result.resumed else ""
    print_lines([f"{result.rows} pairs{earlier}, in {result.path}"])
    print_lines([f"{result.seconds:.1f} s, {told['pairs_per_second']:.0f} pairs a second"])


def show_bench(result: Bench, config: BenchConfig) -> None:
    """Print the speed table."""
    from pertinent.bench import cells_of

    header = [
        "name",
        "candidates",
        "p50 ms",
        "p90 ms",
        "p99 ms",
        "items/s",
        "memory MB",
        "cold start s",
        "of peak",
        "AUC",
    ]
    print_table(header, [cells_of(row) for row in result.rows])
    print_lines([f"machine: {result.machine}, {result.peak_gflops:.0f} GFLOP/s; titles: {result.titles}"])
    for entry in result.depths:
        print_lines([f"NDCG@10 at depth {entry['depth']:.0f}: {entry['ndcg@10']:.3f}"])
    if config.report is not None:
        print_lines([f"report: {config.report}"])


def show_stopped(result: Stopped, config: Config) -> None:
    """Print that the server has left."""
    print_lines([f"stopped serving at {result.url}"])


def show_load(result: Load, config: Config) -> None:
    """Print latency by size, and what did not go well."""
    from pertinent.load.page import HEADER, row_of

    groups = [*result.groups, result.total] if len(result.groups) > 1 else list(result.groups)
    print_table(HEADER, [row_of(group) for group in groups])
    answers = ", ".join(f"{count} x {status}" for status, count in result.statuses.items())
    print_lines(
        [
            "times in milliseconds, from when a request was due",
            f"good answers: {result.goodput:g} a second; documents: {result.documents_per_second:,.0f} a second",
            f"answers: {answers}; requests were sent up to {result.lag_p99_ms:.1f} ms late (p99)",
            *(f"problem: {count} x {problem}" for problem, count in result.problems.items()),
            *([f"report: {result.report}"] if result.report else []),
        ]
    )


def show_arms(result: ArmResult, config: Config) -> None:
    """Print both arms, the lifts and what to know of them."""
    from pertinent.evaluation.arms import HEAD

    print_table(HEAD, result.rows())
    users = f"{result.users[0]:,} users in {result.control}, {result.users[1]:,} in {result.treatment}"
    print_lines([f"{users}; sample-ratio check p = {result.sample_ratio_p:.3f}", *result.notes])
    report = getattr(config, "report", None)
    if report:
        print_lines([f"report: {report}"])


def show_sheet(result: Sheet, config: Config) -> None:
    """Print where the sheets of a review are."""
    print_lines(
        [
            f"{result.rows} rows of {result.queries} queries to rate in {result.folder}: fill sheet.csv, "
            "keep key.json away from raters",
            f"{result.same} rows that show the same on both sides are left out",
        ]
    )


def show_review(result: ReviewResult, config: Config) -> None:
    """Print wins and shares of a review."""
    rows = [
        [name, f"{share.control:.3f}", f"{share.treatment:.3f}", str(share.change)]
        for name, share in result.shares.items()
    ]
    print_table(["rating", "control", "treatment", "relative change"], rows)
    agreement = "" if math.isnan(result.agreement) else f"; raters agree on {result.agreement:.0%}"
    print_lines(
        [
            f"treatment better {result.wins}, same {result.ties}, worse {result.losses}: balance {result.balance}, "
            f"p = {result.p_value:.4f}{agreement}",
            *result.notes,
        ]
    )


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


def show_explanation(result: Explanation, config: ExplainConfig) -> None:
    """Print the query's terms, then each item's with the words that matched."""
    print_lines([f"query: {printable(result.query.text)}", f"tokens: {_pieces(result.query)}"])
    print_table(["term", "class", "source"], [[t.text, t.term_class, t.source] for t in result.query.terms])
    for item in result.results:
        terms = " · ".join(f"{term.text} [{term.term_class}, {term.source}]" for term in item.read.terms)
        matched = " · ".join(_MATCHED[match.how].format(match) for match in item.matches)
        print_lines(
            [
                "",
                f"{item.rank}. {printable(item.item_id)}  {item.score:.4f}  {printable(item.title)}",
                f"   tokens: {_pieces(item.read)}",
                f"   terms: {printable(terms) or 'none'}",
                f"   matched: {printable(matched) or 'none'}",
                *(_said(item.spoken) if item.spoken is not None else ()),
            ]
        )
    print_lines(["", f"{len(result.results)} of {result.items} items, by {result.model} {result.version}".rstrip()])


_MATCHED = {"exact": "{0.word}", "form": "{0.word} ~ {0.title_word}", "none": "{0.word}: not there"}


def _said(spoken: Spoken) -> list[str]:
    """Which neighbors spoke, loudest first, and how much the text alone counted."""
    sides = {"chosen items": spoken.items, "queries that led here": spoken.queries}
    lines = [
        f"   gate: {spoken.gate:.0%} text (logit {spoken.text_logit:+.2f}), "
        f"{1 - spoken.gate:.0%} behavior (logit {spoken.behavior_logit:+.2f})"
    ]
    for side, found in sides.items():
        names = " · ".join(f"{printable(each.text)} {each.weight:.0%}" for each in found[:5])
        lines.append(f"   {side}: {names or 'none'}")
    return lines


def _pieces(text: ExplainedText) -> str:
    """The tokens of a text; those that the model does not read stand in brackets."""
    return printable(" ".join(token.text if token.read else f"({token.text})" for token in text.tokens)) or "none"


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


def _refuse_backend(model: str | None, backend: str | None) -> None:
    if model in BASELINES and backend is not None:
        raise ConfigError(f"--backend {backend} runs a model's network; {model} has none, leave --backend out")


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


def _judged_titles(config: EvaluateConfig) -> list[str]:
    """What a lexical baseline is fitted on: the catalog where it is given, else the judged titles."""
    from pertinent.data.readers import read_items, read_judgments, renames_by_file

    renames = renames_by_file([config.items, config.judgments], config.columns)
    if config.items is not None:
        return [item.title for item in read_items(config.items, rename=renames[config.items])]
    judgments = read_judgments(config.judgments, scale=config.scale, rename=renames[config.judgments])
    return list(dict.fromkeys(judgment.title for judgment in judgments))


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
