"""The lexicon stage: a catalog and a search log in; extended tokenizer, tagger and report out."""

from __future__ import annotations

import zoneinfo
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field
from tokenizers import Tokenizer

from pertinent.artifact import (
    Artifact,
    input_digests,
    open_artifact,
    refuse_foreign,
    sha256,
    write_artifact,
    write_json,
    write_text,
)
from pertinent.config import Config, TimeZone
from pertinent.data.readers import read_table
from pertinent.data.splits import bucket
from pertinent.errors import DataError
from pertinent.folders import locate, shipped_folder
from pertinent.lexicon.gazetteer import GazetteerConfig
from pertinent.lexicon.pairs import TOKENIZER_FILE, PairConfig, PairTokenizer
from pertinent.lexicon.reading import (
    Sample,
    check_fields,
    item_fields,
    item_parts,
    judged_items,
    judged_pairs,
    query_counts,
    texts_of,
    title_key,
)
from pertinent.lexicon.report import class_coverage, histogram, lexicon_page, subtoken_rows, top_words
from pertinent.lexicon.store import KIND
from pertinent.lexicon.tagger import Tagger
from pertinent.lexicon.terms import DomainWord, domain_words, need_word_pieces, word_counts
from pertinent.lexicon.vocabulary import extend_tokenizer, subtoken_report, token_counts
from pertinent.records import Item

WORDS_FILE = "words.parquet"
NUMBERS_FILE = "subtokens.json"
REPORT_FILE = "report.html"
# What does not change the content of the artifact, and is left out of its manifest.
NOT_RECORDED = {"out", "progress", "chunk"}
HELD_OUT_SALT = "lexicon"
TAGGED_TITLES = 5_000


class LexiconConfig(Config):
    """Settings of ``pertinent lexicon``: what to count, how many words to add, and where to.

    ``items`` is the catalog, ``fields`` what is counted of each item. ``log`` is a search log with
    ``query``, or a folder that ``pertinent mine`` made; of a log with times the last ``days`` count, and
    ``time_zone`` is that of times that name none.
    ``columns`` and ``log_columns`` rename columns of either. ``base`` is the tokenizer to extend: a
    folder with ``tokenizer.json``, ``package:NAME/FOLDER`` or a model (left out: the shipped model's).

    The ``limit`` most frequent words that it splits are added, if they occur ``min_count`` times.
    The report measures up to ``sample`` titles; those of a ``held_out`` share are measured once more
    with words learned without them. ``judgments`` gives pairs to measure; left out, those of the log.
    """

    items: str
    out: str
    log: str | None = None
    columns: dict[str, str] = {}
    log_columns: dict[str, str] = {}
    fields: tuple[str, ...] = Field(("title",), min_length=1)
    days: int | None = Field(365, ge=1)
    time_zone: TimeZone | None = None
    base: str | None = None
    limit: int = Field(20_000, ge=1)
    min_count: int = Field(3, ge=1)
    gazetteer: GazetteerConfig | None = None
    judgments: str | None = None
    sample: int = Field(20_000, ge=1)
    held_out: float = Field(0.1, ge=0.0, lt=1.0)
    chunk: int = Field(20_000, ge=1)
    progress: bool = False


@dataclass(frozen=True)
class Gathered:
    """What one pass over log and catalog gives: counts, and samples to measure on."""

    items: int
    queries: Counter[str]
    kept: Counter[str]  # words of the items that are not held out
    held: Counter[str]
    titles: list[str]
    held_titles: list[str]
    pairs: list[tuple[str, str]]


def learn(config: LexiconConfig) -> Artifact:
    """The lexicon of a catalog: added words, extended tokenizer, tagger of term classes, and a report.

    The same input gives the same bytes. Raises DataError for broken input and where no word is worth
    adding, ArtifactError for a base that is no WordPiece tokenizer or a folder that is not to be replaced.
    """
    refuse_foreign(config.out, KIND)
    base, base_digest = _base(config.base)
    gathered = _gather(config)
    query_words = word_counts(gathered.queries, gathered.queries.values())
    added = domain_words(gathered.kept + gathered.held + query_words, base, config.limit, config.min_count)
    if not added:
        raise DataError(
            f"no word occurs {config.min_count} times or more and is split by the base tokenizer",
            path=config.items,
            fix="lower min_count, or give more text with fields or log",
        )
    without = domain_words(gathered.kept + query_words, base, config.limit, config.min_count)
    extended = extend_tokenizer(base, (each.word for each in added))
    tagger = Tagger.shipped().learn(_all_items(config, "terms"), config.gazetteer)
    numbers = _numbers(config, gathered, base, extended, added, without, tagger)
    inputs = {**input_digests(_files(config)), "base": base_digest}
    settings = {name: value for name, value in config.plain().items() if name not in NOT_RECORDED}
    with write_artifact(config.out, KIND, settings, inputs, _summary(numbers), dated=False) as folder:
        extended.save(str(folder / TOKENIZER_FILE))
        write_words(folder / WORDS_FILE, added)
        tagger.save(folder)
        write_json(folder / NUMBERS_FILE, numbers)
        write_text(folder / REPORT_FILE, lexicon_page(numbers))
    return open_artifact(config.out, KIND)


def write_words(path: Path, added: Sequence[DomainWord]) -> None:
    """Write the added words as Parquet: word, count, number of pieces, the pieces; most frequent first."""
    import duckdb

    columns = {
        "words": [each.word for each in added],
        "counts": [each.count for each in added],
        "sizes": [len(each.pieces) for each in added],
        "pieces": [" ".join(each.pieces) for each in added],
    }
    with duckdb.connect(config={"threads": 1}) as connection:
        connection.execute(
            "CREATE TABLE words AS SELECT unnest($words::VARCHAR[]) AS word, unnest($counts::BIGINT[]) AS count, "
            "unnest($sizes::INTEGER[]) AS pieces, unnest($pieces::VARCHAR[]) AS base_pieces",
            columns,
        )
        target = str(path).replace("'", "''")
        connection.execute(f"COPY words TO '{target}' (FORMAT parquet, COMPRESSION zstd)")


def _base(name: str | None) -> tuple[Tokenizer, str]:
    """The tokenizer to extend, and the digest of its file."""
    folder = shipped_folder() if name is None else locate(name)
    tokenizer = PairTokenizer.load(folder, PairConfig()).tokenizer
    need_word_pieces(tokenizer, str(folder / TOKENIZER_FILE))
    return tokenizer, sha256(folder / TOKENIZER_FILE)


def _gather(config: LexiconConfig) -> Gathered:
    clicked: Sample[tuple[str, str]] = Sample(config.sample)
    queries: Counter[str] = Counter()
    if config.log is not None:
        zone = None if config.time_zone is None else zoneinfo.ZoneInfo(config.time_zone)
        names = config.log_columns
        queries = query_counts(
            config.log, config.chunk, names, config.days, lambda q, i: clicked.add(f"{q}\n{i}", (q, i)), zone
        )
    kept, held = Counter[str](), Counter[str]()
    titles = Sample[str](config.sample)
    held_titles = Sample[str](max(1, round(config.sample * config.held_out)))
    judged = None if config.judgments is None else read_table(config.judgments)
    wanted = {item_id for _, item_id in clicked.values()} | judged_items(judged)
    by_id: dict[str, str] = {}
    seen: set[str] = set()
    items = 0
    for part in _parts(config, "words"):
        items += len(part)
        for item, text in zip(part, texts_of(part, config.fields), strict=True):
            key = title_key(item.title)
            out = bucket(key, HELD_OUT_SALT) < config.held_out
            (held if out else kept).update(word_counts([text]))
            (titles if not out else held_titles).add(key, item.title)
            if item.item_id in wanted:
                by_id[item.item_id] = item.title
            seen.update(item_fields(item))
    check_fields(config.items, config.fields, seen)
    pairs = [(query, by_id[item_id]) for query, item_id in clicked.values() if item_id in by_id]
    if judged is not None:
        pairs = judged_pairs(judged, by_id)[: config.sample]
    return Gathered(items, queries, kept, held, titles.values(), held_titles.values(), pairs)


def _numbers(
    config: LexiconConfig,
    gathered: Gathered,
    base: Tokenizer,
    extended: Tokenizer,
    added: Sequence[DomainWord],
    without: Sequence[DomainWord],
    tagger: Tagger,
) -> dict[str, Any]:
    """All that the report shows, as JSON-able values."""
    titles = [*gathered.titles, *gathered.held_titles]
    blind = extend_tokenizer(base, (each.word for each in without))
    tagged_titles = gathered.titles[:TAGGED_TITLES]
    return {
        "base": config.base or "the shipped model's",
        "items": gathered.items,
        "queries": len(gathered.queries),
        "searches": gathered.queries.total(),
        "added": len(added),
        "all": subtoken_rows(subtoken_report(titles, gathered.pairs, base, extended)),
        "held_out": subtoken_rows(subtoken_report(gathered.held_titles, [], base, blind)),
        "top": top_words(added),
        "histogram": {
            "base": histogram(token_counts(base, titles)),
            "extended": histogram(token_counts(extended, titles)),
        },
        "classes": class_coverage(tagged_titles, tagger.tag_many(tagged_titles)),
    }


def _summary(numbers: Mapping[str, Any]) -> dict[str, Any]:
    savings = {f"saving_{name}": row["saving"] for name, row in numbers["all"].items()}
    held_out = {f"held_out_saving_{name}": row["saving"] for name, row in numbers["held_out"].items()}
    return {"items": numbers["items"], "words": numbers["added"], **savings, **held_out}


def _files(config: LexiconConfig) -> dict[str, str]:
    paths = {name: getattr(config, name) for name in ("items", "log", "judgments")}
    found = {name: path for name, path in paths.items() if path is not None}
    if config.log is not None and Path(config.log).is_dir():
        found["log"] = str(Path(config.log) / "manifest.json")
    return found


def _all_items(config: LexiconConfig, title: str) -> Iterator[Item]:
    for part in _parts(config, title):
        yield from part


def _parts(config: LexiconConfig, title: str) -> Iterator[list[Item]]:
    """The catalog in parts, with a bar on a terminal that says how many items went by."""
    parts = item_parts(config.items, config.chunk, config.columns)
    if not config.progress:
        yield from parts
        return
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn(title), MofNCompleteColumn(), TextColumn("items"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(title, total=None)
        for part in parts:
            yield part
            bar.advance(task, len(part))
