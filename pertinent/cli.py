"""The command line: a table of commands, each a config class and a library function.

Nothing of a stage is imported before its command runs, so ``pertinent --help`` answers at once.
Precedence of settings: class default, ``--config`` file, flags, ``--set a.b=value``.
"""

from __future__ import annotations

import argparse
import difflib
import errno
import importlib
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn


@dataclass(frozen=True, slots=True)
class Flag:
    """A flag (``--top``) or place (``model``) of a command, and the setting that it fills."""

    name: str
    setting: str
    help: str
    kind: Callable[[str], Any] = str
    metavar: str | None = None
    switch: bool = False

    @property
    def dest(self) -> str:
        """The name under which argparse keeps the value."""
        return "flag_" + self.setting.replace(".", "__")


@dataclass(frozen=True, slots=True)
class Command:
    """One row of the table; ``config``, ``run`` and ``show`` are ``module:name``, loaded on use."""

    summary: str
    config: str
    run: str
    show: str
    flags: tuple[Flag, ...]
    examples: tuple[str, ...]
    # The place that holds the settings file itself (`pertinent study FILE`), instead of --config.
    file_place: bool = False
    # Whether PERTINENT_PORT and the like stand in for flags that are not given.
    environment: bool = False


def numbers(text: str) -> list[int]:
    """The whole numbers of a comma-separated list.

    >>> numbers("100,1000, 3000")
    [100, 1000, 3000]
    """
    return [int(part) for part in text.split(",")]


def names(text: str) -> list[str]:
    """The words of a comma-separated list.

    >>> names("onnx, torch")
    ['onnx', 'torch']
    """
    return [part.strip() for part in text.split(",") if part.strip()]


def renames(text: str) -> dict[str, str]:
    """Your column names and ours, from ``product_name=title,sku=item_id``.

    >>> renames("product_name=title,sku=item_id")
    {'product_name': 'title', 'sku': 'item_id'}
    """
    pairs = [part.partition("=") for part in names(text)]
    if not all(yours.strip() and equals and ours.strip() for yours, equals, ours in pairs):
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form product_name=title,sku=item_id")
    return {yours.strip(): ours.strip() for yours, _, ours in pairs}


def named(text: str) -> dict[str, str]:
    """Values by name, from ``shop=runs/model,outlet=runs/other``.

    >>> named("shop=runs/model, outlet=runs/other")
    {'shop': 'runs/model', 'outlet': 'runs/other'}
    """
    pairs = [part.partition("=") for part in names(text)]
    if not all(name.strip() and value.strip() for name, _, value in pairs):
        raise argparse.ArgumentTypeError("is not of the form name=value,name=value")
    return {name.strip(): value.strip() for name, _, value in pairs}


def weights(text: str) -> dict[int, float]:
    """Numbers with their weights, from ``10:9,3000:1``; a number alone has the weight 1.

    >>> weights("10:9, 3000")
    {10: 9.0, 3000: 1.0}
    """
    pairs = [part.partition(":") for part in names(text)]
    try:
        return {int(number): float(weight) if colon else 1.0 for number, colon, weight in pairs}
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form 10:9,3000:1") from None


def positive(text: str) -> int:
    """A whole number from 1.

    >>> positive("3")
    3
    """
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1")
    return value


MODEL = Flag("model", "model", "a model folder; left out: the model that comes with pertinent")
ITEMS = Flag("--items", "items", "the catalog: CSV, JSONL or Parquet with item_id and title", metavar="FILE")
COLUMNS = Flag(
    "--columns",
    "columns",
    "which of your columns is which of ours, such as product_name=title",
    renames,
    "YOURS=OURS,...",
)
BACKEND = Flag(
    "--backend",
    "backend",
    "native, native-int8, onnx, onnx-int8, torch or cuda; left out: the best there is",
    metavar="NAME",
)
THREADS = Flag("--threads", "threads", "processor threads to use", positive, "N")
OUT = Flag("--out", "out", "where to write", metavar="FOLDER")

COMMANDS: dict[str, Command] = {
    "doctor": Command(
        "say what this machine can do, what is missing, and the command that adds it",
        "pertinent.doctor:DoctorConfig",
        "pertinent.doctor:examine",
        "pertinent.commands:show_health",
        (MODEL,),
        ("pertinent doctor", "pertinent doctor runs/model --json"),
    ),
    "score": Command(
        "rank items for a query",
        "pertinent.commands:ScoreConfig",
        "pertinent.commands:score",
        "pertinent.commands:show_ranking",
        (
            Flag("query", "query", "what a shopper types"),
            Flag(
                "--items", "items", "CSV, JSONL or Parquet with item_id and title, or an index folder", metavar="FILE"
            ),
            Flag("--index", "index", "a folder made by pertinent index, instead of --items", metavar="FOLDER"),
            Flag("--top", "top", "how many to print", positive, "N"),
            Flag("--model", "model", MODEL.help + "; or bm25, tfidf", metavar="FOLDER"),
            BACKEND,
            THREADS,
            COLUMNS,
        ),
        (
            'pertinent score "wireless earbuds" --items catalog.csv --top 10',
            'pertinent score "wireless earbuds" --items runs/index --model runs/model --json',
        ),
    ),
    "explain": Command(
        "show tokens, term classes and matched words of a query and its best items",
        "pertinent.explain:ExplainConfig",
        "pertinent.explain:explain",
        "pertinent.commands:show_explanation",
        (
            Flag("query", "query", "what a shopper types"),
            MODEL,
            ITEMS,
            Flag("--top", "top", "how many items to explain", positive, "N"),
            Flag(
                "--lexicon",
                "lexicon",
                "a folder of pertinent lexicon, whose terms are shown; left out: the model's own or the shipped ones",
                metavar="FOLDER",
            ),
            Flag(
                "--behavior",
                "behavior",
                "a folder of pertinent behavior for this model: which neighbors spoke, and the gate",
                metavar="FOLDER",
            ),
            BACKEND,
            THREADS,
            COLUMNS,
        ),
        (
            'pertinent explain "wireless earbuds" --items catalog.csv',
            'pertinent explain "red wool socks" runs/model --items catalog.csv --top 1 --json',
        ),
    ),
    "train": Command(
        "train a relevance model from judgments",
        "pertinent.training.run:TrainConfig",
        "pertinent.training.run:train",
        "pertinent.commands:show_trained",
        (
            Flag("--judgments", "judgments", "table with query, title (or item_id) and grade", metavar="FILE"),
            ITEMS,
            COLUMNS,
            Flag("--scale", "scale", "grade scale of the labels, such as esci", metavar="NAME"),
            Flag(
                "--start", "start", "what to start from: shipped, a model folder, a Hugging Face folder", metavar="NAME"
            ),
            Flag("--epochs", "epochs", "passes over the training pairs", positive, "N"),
            Flag("--seed", "seed", "of all randomness", int, "N"),
            Flag("--resume", "resume", "go on where a stopped run of the same settings was", switch=True),
            OUT,
        ),
        (
            "pertinent train --judgments judgments.csv --out runs/model",
            "pertinent train --config configs/train-esci.yaml --set learning_rate=2.0e-5 --out runs/esci",
        ),
    ),
    "pretrain": Command(
        "teach a network the words of a shop from its texts, to start a training from",
        "pertinent.training.pretrain:PretrainConfig",
        "pertinent.training.pretrain:pretrain",
        "pertinent.commands:show_pretrained",
        (
            Flag("--titles", "titles", "tables with item texts: column title, or those in fields", names, "FILE,..."),
            Flag("--queries", "queries", "tables with a column query", names, "FILE,..."),
            Flag("--examples", "examples", "tables of a query and a title that belong together", names, "FILE,..."),
            Flag("--judged", "judged", "judgments whose held-out queries are left out", names, "FILE,..."),
            Flag("--recipe", "recipe", "mlm (the default), bert, roberta or structbert", metavar="NAME"),
            Flag(
                "--start", "start", "what to start from: shipped, a model folder, a Hugging Face folder", metavar="NAME"
            ),
            Flag("--lexicon", "lexicon", "a folder of pertinent lexicon, whose words get tokens", metavar="FOLDER"),
            Flag("--epochs", "epochs", "passes over the texts", positive, "N"),
            Flag("--seed", "seed", "of all randomness", int, "N"),
            Flag("--resume", "resume", "go on where a stopped run of the same settings was", switch=True),
            OUT,
        ),
        (
            "pertinent pretrain --titles catalog.csv --judged judgments.csv --out runs/pretrained",
            "pertinent pretrain --config configs/ei-src-pretrain.yaml --recipe structbert --out runs/pretrained",
        ),
    ),
    "evaluate": Command(
        "measure a model on judgments, with intervals",
        "pertinent.evaluation.evaluate:EvaluateConfig",
        "pertinent.commands:evaluate",
        "pertinent.commands:show_evaluation",
        (
            Flag("model", "model", MODEL.help + "; or bm25, tfidf"),
            Flag(
                "--judgments", "judgments", "table with query, title (or item_id) and grade (or label)", metavar="FILE"
            ),
            ITEMS,
            Flag("--positive-grade", "positive_grade", "the lowest grade or label that counts as relevant", str, "G"),
            Flag("--scale", "scale", "grade scale of the labels, such as esci", metavar="NAME"),
            Flag("--report", "report", "write one self-contained HTML page, and JSON beside it", metavar="FILE"),
            Flag("--robustness", "robustness", "also measure what is lost when texts change", switch=True),
            BACKEND,
            THREADS,
            COLUMNS,
        ),
        (
            "pertinent evaluate --judgments test.parquet --positive-grade 1 --json",
            "pertinent evaluate runs/model --judgments test.csv --scale esci --positive-grade 1 --report report.html",
            "pertinent evaluate bm25 --judgments test.csv --positive-grade 0.5",
        ),
    ),
    "export": Command(
        "make fast engine files, kept only where quality holds",
        "pertinent.engine.export:ExportConfig",
        "pertinent.commands:export",
        "pertinent.commands:show_artifact",
        (
            MODEL,
            OUT,
            Flag("--int8", "int8", "also try int8, kept only if it passes the gate", switch=True),
            Flag("--judgments", "judgments", "real pairs for the gate: query, title, grade", metavar="FILE"),
            ITEMS,
            Flag("--scale", "scale", "the grade scale of a column 'label' in the judgments", metavar="NAME"),
            Flag(
                "--format",
                "format",
                "engine (the default); hugging_face: a folder for CrossEncoder; vespa: an application that scores "
                "inside Vespa; solr or opensearch: a linear stand-in for their LTR modules",
                metavar="NAME",
            ),
            Flag("--rerank-count", "rerank_count", "for vespa: how many hits are ranked again", positive, "N"),
            Flag("--probability", "probability", "for vespa: score by probability, not by log odds", switch=True),
            Flag(
                "--features",
                "features",
                "for solr and opensearch: pairs with the features that the engine logged",
                metavar="FILE",
            ),
        ),
        (
            "pertinent export runs/model --judgments valid.parquet --out runs/model-fast",
            "pertinent export cross-encoder-folder --no-int8 --out runs/imported",
            "pertinent export runs/imported --format hugging_face --out plain",
            "pertinent export runs/model --format vespa --rerank-count 200 --out runs/vespa",
            "pertinent export runs/model --format solr --features logged.jsonl --out runs/solr",
        ),
    ),
    "index": Command(
        "tokenize a catalog once, so that scoring by item id is fast",
        "pertinent.engine.index:IndexConfig",
        "pertinent.commands:index",
        "pertinent.commands:show_artifact",
        (
            MODEL,
            ITEMS,
            COLUMNS,
            Flag("--update", "update", "add and change the items of the file in the index that is there", switch=True),
            Flag("--replace", "replace", "as new, but unchanged items are not tokenized again", switch=True),
            Flag("--delete", "delete", "item ids to drop from the index that is there, one a line", metavar="FILE"),
            OUT,
        ),
        (
            "pertinent index runs/model --items catalog.parquet --out runs/index",
            "pertinent index runs/model --items changed.csv --delete gone.txt --update --out runs/index",
            "pertinent index runs/model --items catalog.parquet --replace --out runs/index",
        ),
    ),
    "behavior": Command(
        "encode what users did, for a model that reads it: for serve, explain and BehaviorScorer",
        "pertinent.behavior:BehaviorConfig",
        "pertinent.behavior:make_behavior",
        "pertinent.commands:show_artifact",
        (
            Flag("model", "model", "a folder of a model trained with neighbors"),
            Flag("--neighbors", "neighbors", "a folder of pertinent mine", metavar="FOLDER"),
            ITEMS,
            COLUMNS,
            Flag(
                "--judgments",
                "judgments",
                "what the model was trained with: their validation pairs say how much it counts beside --text",
                metavar="FILE",
            ),
            Flag("--text", "text", "a model of texts; left out: the shipped one", metavar="FOLDER"),
            OUT,
        ),
        (
            "pertinent behavior runs/barl --neighbors runs/mined --items items.parquet --out runs/behavior",
            "pertinent behavior runs/barl --neighbors runs/mined --items items.parquet --judgments judgments.parquet "
            "--out runs/behavior",
        ),
    ),
    "bulk": Command(
        "score a table of pairs into a file: millions of rows, resumable, also on Ray",
        "pertinent.bulk:BulkConfig",
        "pertinent.bulk:score_table",
        "pertinent.commands:show_bulk",
        (
            MODEL,
            Flag("--pairs", "pairs", "the table: CSV, TSV, JSONL or Parquet with query and title", metavar="FILE"),
            Flag("--columns", "rename", "which of your columns are query and title", renames, "YOURS=OURS,..."),
            Flag("--keep", "keep", "other columns to copy", names, "NAME,..."),
            Flag("--resume", "resume", "go on where a stopped run of the same settings was", switch=True),
            Flag("--ray", "ray", "on Ray, which pertinent[scale] brings: this machine or a cluster", switch=True),
            Flag("--workers", "workers", "processes on Ray", positive, "N"),
            Flag("--address", "address", "the Ray cluster; left out: this machine", metavar="ADDRESS"),
            BACKEND,
            THREADS,
            Flag("--out", "out", "the file to write, in the format of its suffix", metavar="FILE"),
        ),
        (
            "pertinent bulk --pairs pairs.parquet --out scored.parquet",
            "pertinent bulk runs/model --pairs pairs.csv --columns term=query --out scored.csv --ray --workers 8",
        ),
    ),
    "cache": Command(
        "score the hot pairs of a search log ahead, so that the server only looks them up",
        "pertinent.engine.hot_pairs:CacheConfig",
        "pertinent.commands:cache",
        "pertinent.commands:show_artifact",
        (
            MODEL,
            Flag("--hot-pairs", "hot_pairs", "a folder of pertinent mine, or a table: query, item_id", metavar="FILE"),
            Flag("--index", "index", "the index of the catalog, for this model", metavar="FOLDER"),
            Flag("--limit", "limit", "only so many pairs, the most frequent", positive, "N"),
            BACKEND,
            THREADS,
            OUT,
        ),
        ("pertinent cache runs/model --hot-pairs runs/mined --index runs/index --out runs/hot",),
    ),
    "bench": Command(
        "measure speed, memory and cold start of a model on this machine",
        "pertinent.bench:BenchConfig",
        "pertinent.bench:bench",
        "pertinent.commands:show_bench",
        (
            MODEL,
            Flag("--candidates", "candidates", "numbers of items a query, such as 100,1000,3000", numbers, "N,..."),
            Flag("--backends", "backends", "backends to measure; left out: all that the model has", names, "NAME,..."),
            Flag("--against", "against", "other toolkits to run in turn: sentence-transformers,...", names, "NAME,..."),
            Flag("--turns", "turns", "how often each is measured", positive, "N"),
            ITEMS,
            Flag("--judgments", "judgments", "also judge each level: query, title, grade", metavar="FILE"),
            THREADS,
            COLUMNS,
            Flag("--report", "report", "write a page of charts", metavar="FILE"),
        ),
        ("pertinent bench --candidates 100,1000,3000", "pertinent bench runs/model --backends onnx,onnx-int8 --json"),
    ),
    "mine": Command(
        "mine a search log: neighbors, clicked pairs, position curve, sequences, hot pairs",
        "pertinent.mining.run:MineConfig",
        "pertinent.mining.run:mine",
        "pertinent.commands:show_mined",
        (
            Flag(
                "--log", "log.path", "the log: a file, a folder or a pattern such as 'logs/*.parquet'", metavar="FILE"
            ),
            Flag("--format", "log.format", "table (the default), ubi, ga4, segment or snowplow", metavar="NAME"),
            Flag("--columns", "log.columns", "which of the log's columns is which of ours", renames, "YOURS=OURS,..."),
            ITEMS,
            Flag(
                "--item-columns",
                "item_columns",
                "which of the catalog's columns is which of ours",
                renames,
                "YOURS=OURS,...",
            ),
            Flag("--judged", "judged", "judgments whose queries are left out of the candidates", names, "FILE,..."),
            Flag("--lexicon", "lexicon", "a folder made by pertinent lexicon, to tell clear queries", metavar="FOLDER"),
            Flag("--engine", "engine.type", "duckdb (the default) or spark", metavar="NAME"),
            Flag("--update", "update", "add the days of this log to what was mined before", switch=True),
            OUT,
        ),
        (
            "pertinent mine --log log.parquet --items items.parquet --out runs/mined",
            "pertinent mine --log today.parquet --items items.parquet --out runs/mined --update",
            "pertinent mine --log ubi/ --format ubi --items items.csv --out runs/mined --engine spark",
        ),
    ),
    "data synthesize": Command(
        "make a shop with real texts and simulated shoppers, and the truth to check methods against",
        "pertinent.data.synthetic:SynthesizeConfig",
        "pertinent.data.synthetic:synthesize",
        "pertinent.commands:show_artifact",
        (
            OUT,
            Flag("--seed", "seed", "of all that is made up", int, "N"),
            Flag("--events", "events", "at most so many rows of the log, in whole searches", positive, "N"),
            Flag("--sample", "sample", "texts and judgments from the sample esci or icecat", metavar="NAME"),
            Flag("--items", "items", "a catalog of your own instead of the sample's, with --judgments", metavar="FILE"),
            Flag("--judgments", "judgments", "judgments of your own: query, item_id and grade", metavar="FILE"),
        ),
        (
            "pertinent data synthesize --out runs/shop --seed 0 --events 100000",
            "pertinent data synthesize --out runs/shop --config configs/synthesize.yaml",
        ),
    ),
    "data public": Command(
        "turn a public data set, in the files that its owners publish, into tables that every command reads",
        "pertinent.data.convert:PublicConfig",
        "pertinent.data.convert:convert",
        "pertinent.commands:show_public",
        (
            Flag("dataset", "dataset", "beir, crowdflower, esci, home_depot, trec or wands"),
            Flag("--files", "files", "the folder of the official files", metavar="FOLDER"),
            Flag("--out", "out", "the folder to write", metavar="FOLDER"),
        ),
        (
            "pertinent data public wands --files WANDS/dataset --out runs/wands",
            "pertinent data public esci --files shopping_queries_dataset --out runs/esci",
        ),
    ),
    "data weak": Command(
        "make weakly labeled pairs from clusters, categories, attributes and labeled queries",
        "pertinent.data.weak:WeakConfig",
        "pertinent.data.weak:weak",
        "pertinent.commands:show_weak",
        (
            Flag("--clusters", "clusters", "tables with title, cluster_id and cluster_title", names, "FILE,..."),
            Flag("--catalogs", "catalogs", "tables with title and the columns of attributes", names, "FILE,..."),
            Flag("--spans", "spans", "tables with tokens and tags of queries", names, "FILE,..."),
            Flag("--judged", "judged", "judgments whose queries are left out", names, "FILE,..."),
            Flag("--limit", "limit", "relevant pairs a rule at most", positive, "N"),
            Flag("--seed", "seed", "of the draws", int, "N"),
            Flag("--out", "out", "the table to write", metavar="FILE"),
        ),
        ("pertinent data weak --catalogs catalog.csv --judged judgments.csv --out weak.csv",),
    ),
    "lexicon": Command(
        "learn the words of a catalog: tokens of their own for domain words, and term classes",
        "pertinent.lexicon.run:LexiconConfig",
        "pertinent.lexicon.run:learn",
        "pertinent.commands:show_artifact",
        (
            ITEMS,
            Flag("--log", "log", "a search log with a column query, or a folder of pertinent mine", metavar="FILE"),
            COLUMNS,
            Flag(
                "--log-columns", "log_columns", "which of the log's columns is which of ours", renames, "YOURS=OURS,..."
            ),
            Flag("--base", "base", "the tokenizer to extend; left out: that of the shipped model", metavar="FOLDER"),
            Flag("--limit", "limit", "how many words to add at most", positive, "N"),
            OUT,
        ),
        (
            "pertinent lexicon --items catalog.csv --out runs/lexicon",
            "pertinent lexicon --items catalog.parquet --log runs/mined --limit 5000 --out runs/lexicon",
        ),
    ),
    "serve": Command(
        "answer rerank requests over HTTP, in the dialects that search engines speak",
        "pertinent.serving.config:ServeConfig",
        "pertinent.serving.run:serve",
        "pertinent.commands:show_stopped",
        (
            MODEL,
            Flag("--name", "name", "what requests call the model; left out: its folder's name"),
            Flag("--index", "index", "a folder made by pertinent index, for requests by item id", metavar="FOLDER"),
            Flag("--behavior", "behavior", "a folder of pertinent behavior: who has neighbors", metavar="FOLDER"),
            Flag(
                "--behavior-model",
                "behavior_model",
                "the model that it was made with; left out: MODEL itself",
                metavar="FOLDER",
            ),
            Flag("--hot-pairs", "cache.hot_pairs", "scores made by pertinent cache, for this model", metavar="FOLDER"),
            Flag(
                "--redis", "cache.redis", "a cache of scores that replicas share, such as redis://host", metavar="URL"
            ),
            Flag("--models", "models", "more models by name", named, "NAME=FOLDER,..."),
            Flag("--any-model", "any_model", "answer requests for unknown models with the first one", switch=True),
            Flag("--bad-items", "bad_items", "items without a text or in no index", metavar="lowest|reject"),
            Flag("--host", "host", "the address to listen on; 0.0.0.0 is every one of this machine", metavar="ADDRESS"),
            Flag("--port", "port", "the port to listen on; 0 takes a free one", int, "N"),
            Flag("--workers", "workers", "processes", positive, "N"),
            Flag(
                "--worker-memory-mb",
                "worker_memory_mb",
                "memory above which a process leaves for a new one",
                positive,
                "N",
            ),
            BACKEND,
            THREADS,
            Flag("--admin-port", "admin_port", "a port of its own for metrics, configuration and the page", int, "N"),
            Flag("--keys", "keys", "who may ask: SHA-256 of API keys by name", named, "NAME=SHA256,..."),
            Flag(
                "--keys-file", "keys_file", "more keys, a line NAME=SHA256 each; read again on SIGHUP", metavar="FILE"
            ),
            Flag("--insecure", "insecure", "listen beyond this machine without keys", switch=True),
            Flag("--tls-certificate", "tls_certificate", "certificate chain in PEM, for https", metavar="FILE"),
            Flag("--tls-key", "tls_key", "the private key of the certificate", metavar="FILE"),
            Flag("--watch-seconds", "watch_seconds", "how often to look for new models; 0: on SIGHUP", float, "S"),
            Flag("--drain-delay", "drain_delay", "how long to go on after SIGTERM as if nothing were", float, "S"),
            Flag("--drain-timeout", "drain_timeout", "how long to finish requests after that", float, "S"),
            Flag("--access-log", "access_log", "one JSON line a request on stderr", switch=True),
            Flag("--log-queries", "log_queries", "write the text of queries into these lines", switch=True),
            Flag(
                "--tei-metrics", "tei_metrics", "metrics also under the names of text-embeddings-inference", switch=True
            ),
            Flag("--tracing", "tracing", "a span of OpenTelemetry for each request (extra: otel)", switch=True),
            Flag("--playground", "playground", "the page at /", switch=True),
            Flag("--cors-origins", "cors_origins", "sites whose pages may ask from a browser", names, "URL,..."),
        ),
        (
            "pertinent serve",
            "pertinent serve runs/model --index runs/index --port 8080",
            "pertinent serve runs/model --host 0.0.0.0 --keys shop=SHA256_OF_THE_KEY",
        ),
        environment=True,
    ),
    "load": Command(
        "send requests to a server at a set rate, and say how fast it answers",
        "pertinent.load.plan:LoadConfig",
        "pertinent.load.run:load",
        "pertinent.commands:show_load",
        (
            Flag("url", "url", "where the server is; left out: http://127.0.0.1:8080"),
            Flag("--rate", "rate", "requests a second, sent whether or not earlier ones were answered", float, "N"),
            Flag("--seconds", "seconds", "how long", float, "S"),
            Flag("--mix", "mix", "numbers of documents with their weights, such as 10:9,3000:1", weights, "N:W,..."),
            Flag("--by", "by", "texts, or with the dialect relevance also ids or rows of the index", metavar="NAME"),
            Flag("--dialect", "dialect", "what to speak: cohere, tei, relevance...", metavar="NAME"),
            Flag("--connections", "connections", "how many to have open at most", positive, "N"),
            Flag("--within-ms", "within_ms", "an answer that takes longer does not count as good", float, "MS"),
            ITEMS,
            COLUMNS,
            Flag("--queries", "queries", "a text file with a query a line; left out: words of titles", metavar="FILE"),
            Flag("--report", "report", "write one self-contained HTML page with charts", metavar="FILE"),
            Flag("--allow-remote", "allow_remote", "the server may be another machine", switch=True),
        ),
        (
            "pertinent load --rate 20 --seconds 30 --mix 100:1",
            "pertinent load --rate 50 --mix 10:9,3000:1 --within-ms 200 --report load.html",
            "pertinent load http://127.0.0.1:8080 --dialect relevance --by ids --items items.parquet --mix 3000:1",
        ),
    ),
    "compare": Command(
        "compare two arms of an online test: clicks, payments, revenue, by user",
        "pertinent.evaluation.arms:CompareConfig",
        "pertinent.evaluation.arms:compare_log",
        "pertinent.commands:show_arms",
        (
            Flag("log", "log", "the log of both arms: user_id, arm, level, and position and revenue if known"),
            Flag("--control", "control", "the arm to compare with; left out: the first in the alphabet", metavar="ARM"),
            Flag("--treatment", "treatment", "the arm that is new; left out: the other one", metavar="ARM"),
            Flag("--treatment-share", "treatment_share", "share of users meant to be in the treatment", float, "SHARE"),
            Flag("--method", "method", "delta (the default) or bootstrap, both by user", metavar="NAME"),
            Flag("--report", "report", "write one self-contained HTML page, and JSON beside it", metavar="FILE"),
            COLUMNS,
        ),
        (
            "pertinent compare log.parquet --control old --treatment new",
            "pertinent compare log.csv --columns shopper=user_id,variant=arm --report compare.html",
        ),
    ),
    "review make": Command(
        "make blind side-by-side sheets of two systems' results for people to rate",
        "pertinent.evaluation.review:ReviewConfig",
        "pertinent.evaluation.review:make_review",
        "pertinent.commands:show_sheet",
        (
            Flag("--control", "control", "results of the system in use: query, title and position", metavar="FILE"),
            Flag("--treatment", "treatment", "results of the new system, in the same form", metavar="FILE"),
            Flag("--queries", "queries", "how many queries to draw", positive, "N"),
            Flag("--positions", "positions", "how many places from the top", positive, "N"),
            Flag("--seed", "seed", "of the queries drawn and the sides", int, "N"),
            OUT,
            COLUMNS,
        ),
        ("pertinent review make --control old.csv --treatment new.csv --out runs/review",),
    ),
    "review read": Command(
        "say what filled review sheets found",
        "pertinent.evaluation.review:ReviewReadConfig",
        "pertinent.evaluation.review:read_review",
        "pertinent.commands:show_review",
        (
            Flag("folder", "folder", "the folder that pertinent review make wrote"),
            Flag(
                "--sheets", "sheets", "filled sheets, one a rater; left out: the one in the folder", names, "FILE,..."
            ),
        ),
        (
            "pertinent review read runs/review",
            "pertinent review read runs/review --sheets anna.csv,ben.csv --json",
        ),
    ),
    "study": Command(
        "train and compare several models over seeds, and print one table",
        "pertinent.studies:StudyConfig",
        "pertinent.studies:run_study",
        "pertinent.commands:show_study",
        (OUT,),
        ("pertinent study configs/studies/three_layers.yaml",),
        file_place=True,
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code of the command: 0, 2 for what the user can mend, 130 for Ctrl-C."""
    _tolerate_any_text()
    with _noting_interrupts() as interrupts:
        return _answer(argv, interrupts)


def _answer(argv: Sequence[str] | None, interrupts: Sequence[int]) -> int:
    try:
        arguments = build_parser().parse_args(argv)
        if arguments.command is None or arguments.command not in COMMANDS:
            build_parser()._below(arguments.command).print_help()
            return 0
        code = _run(arguments.command, arguments)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        # Whoever read us has gone (`| head`): nothing to say, and nothing to say at exit either.
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())
        return 141
    except KeyboardInterrupt:
        return _interrupted()
    except Exception as error:
        # Libraries that run long in C turn Ctrl-C into an error of their own.
        return _interrupted() if interrupts else _report(error)


def build_parser() -> _Parser:
    """The parser of the whole table."""
    parser = _Parser(
        prog="pertinent",
        description="Product-search relevance that a shop can own.",
        epilog='Start with: pertinent doctor, then: pertinent score "wireless earbuds" --items catalog.csv',
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and leave")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=_Parser)
    for name, command in COMMANDS.items():
        below = commands.add_parser(
            name,
            help=command.summary,
            description=command.summary[0].upper() + command.summary[1:] + ".",
            epilog="examples:\n" + "\n".join(f"  {example}" for example in command.examples),
            formatter_class=_Formatter,
        )
        below.command = command
        if command.file_place:
            below.add_argument("config", metavar="FILE", help="settings in YAML")
        for flag in command.flags:
            _add(below, flag)
        if not command.file_place:
            below.add_argument("--config", metavar="FILE", help="settings in YAML; flags and --set change them")
        below.add_argument(
            "--set", action="append", default=[], metavar="A.B=VALUE", help="change one setting; may be repeated"
        )
        below.add_argument("--json", action="store_true", help="print one JSON object, for programs")
        below.add_argument("--verbose", action="store_true", help="tell on stderr what is being done")
    for group in groups():
        listed = "\n".join(f"  {name}  {c.summary}" for name, c in COMMANDS.items() if name.startswith(group + " "))
        commands.add_parser(group, description="commands:\n" + listed, formatter_class=_Formatter)
    return parser


def groups() -> list[str]:
    """The first words of commands of two words.

    >>> groups()
    ['data', 'review']
    """
    return sorted({name.partition(" ")[0] for name in COMMANDS if " " in name})


def joined(argv: Sequence[str]) -> list[str]:
    """The arguments with a command of two words as one.

    >>> joined(["data", "synthesize", "--json"])
    ['data synthesize', '--json']
    """
    both = " ".join(argv[:2])
    return [both, *argv[2:]] if both in COMMANDS else list(argv)


def load(target: str) -> Any:
    """What ``module:name`` stands for.

    >>> load("pertinent.text:normalize")("Ｃase")
    'case'
    """
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)


def _run(name: str, arguments: argparse.Namespace) -> int:
    if arguments.verbose:
        import logging

        logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    command = COMMANDS[name]
    config = _settings(name, command, arguments)
    result = load(command.run)(config)
    if arguments.json:
        _print_json(load("pertinent.commands:plain")(result))
    else:
        load(command.show)(result, config)
    return int(getattr(result, "exit_code", 0))


def _settings(name: str, command: Command, arguments: argparse.Namespace) -> Any:
    from pertinent.config import override, read_yaml
    from pertinent.errors import ConfigError

    config = load(command.config)
    values = read_yaml(arguments.config) if arguments.config else {}
    for flag in command.flags:
        given = getattr(arguments, flag.dest, None)
        if given is None and command.environment:
            given = _from_environment(flag)
        if given is not None:
            _put(values, flag.setting, given)
    if "progress" in config.model_fields:
        values.setdefault("progress", not arguments.json)
    values = override(values, arguments.set)
    # The first flag of a part is asked for where the whole part is missing.
    first = {flag.setting.partition(".")[0]: flag for flag in reversed(command.flags)}
    missing = [
        f"{flag.name} is required: {flag.help}; see: pertinent {name} --help"
        for setting, flag in reversed(first.items())
        if setting not in values and setting in config.model_fields and config.model_fields[setting].is_required()
    ]
    if missing and not arguments.config:
        raise ConfigError("\n".join(missing))
    return config.build(values, source=arguments.config or f"pertinent {name}")


def _put(values: dict[str, Any], setting: str, value: Any) -> None:
    """Fill a setting, also one of a part (``log.path``)."""
    *parts, last = setting.split(".")
    for part in parts:
        if not isinstance(values.get(part), dict):
            values[part] = {}
        values = values[part]
    values[last] = value


def variable(flag: Flag) -> str:
    """The environment variable that stands in for a flag.

    >>> variable(Flag("--drain-delay", "drain_delay", "..."))
    'PERTINENT_DRAIN_DELAY'
    """
    return "PERTINENT_" + flag.name.lstrip("-").upper().replace("-", "_")


def _from_environment(flag: Flag) -> Any:
    from pertinent.errors import ConfigError

    text = os.environ.get(variable(flag), "").strip()
    if not text:
        return None
    try:
        return _SWITCHES[text.lower()] if flag.switch else flag.kind(text)
    except (ValueError, KeyError, argparse.ArgumentTypeError):
        allowed = f"one of {', '.join(_SWITCHES)}" if flag.switch else f"as for {flag.name}: {flag.help}"
        raise ConfigError(f"{variable(flag)} is {text[:60]!r}; allowed: {allowed}") from None


_SWITCHES = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}


def _add(parser: argparse.ArgumentParser, flag: Flag) -> None:
    if flag.switch:
        parser.add_argument(flag.name, dest=flag.dest, action=argparse.BooleanOptionalAction, help=flag.help)
    elif flag.name.startswith("-"):
        parser.add_argument(flag.name, dest=flag.dest, type=flag.kind, metavar=flag.metavar, help=flag.help)
    else:
        # Places may be left out, as a settings file can hold them too.
        parser.add_argument(flag.dest, nargs="?", type=flag.kind, metavar=flag.name.upper(), help=flag.help)


@contextmanager
def _noting_interrupts() -> Iterator[list[int]]:
    """A list that gets an entry with each Ctrl-C, which goes on to raise KeyboardInterrupt as ever."""
    noted: list[int] = []

    def note(number: int, frame: Any) -> None:
        noted.append(number)
        signal.default_int_handler(number, frame)

    # Handlers belong to the main thread; another program's own handler, or a shell's ignoring, stays.
    ours = threading.current_thread() is threading.main_thread()
    ours = ours and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if ours:
        signal.signal(signal.SIGINT, note)
    try:
        yield noted
    finally:
        if ours and signal.getsignal(signal.SIGINT) is note:
            signal.signal(signal.SIGINT, signal.default_int_handler)


def _interrupted() -> int:
    print("interrupted", file=sys.stderr)
    return 130


# No space, over quota, file too large, read-only: errors of writing, which do not know their file.
_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}


def _report(error: Exception) -> int:
    from pertinent.errors import PertinentError, missing_extra

    if isinstance(error, ModuleNotFoundError) and not isinstance(error, PertinentError):
        error = missing_extra(error) or error
    if isinstance(error, PertinentError):
        lines, code = str(error).splitlines(), error.exit_code
    elif isinstance(error, OSError) and error.filename is not None and error.strerror:
        lines, code = [f"{error.filename}: {error.strerror}"], 2
    elif isinstance(error, OSError) and error.errno in _DISK:
        lines, code = [f"cannot write: {error.strerror}; make room, or write elsewhere"], 2
    else:
        raise error
    for line in lines:
        print(f"error: {line}", file=sys.stderr)
    return code


def _print_json(value: Any) -> None:
    import json

    ascii_only = (sys.stdout.encoding or "utf-8").lower().replace("-", "") != "utf8"
    print(json.dumps(value, ensure_ascii=ascii_only, allow_nan=False))


def _tolerate_any_text() -> None:
    """Let titles of any script be printed on any terminal; what it cannot show becomes ``?``."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="replace")


class _Parser(argparse.ArgumentParser):
    """Errors in one line, with the nearest known command or flag."""

    command: Command | None = None

    def error(self, message: str) -> NoReturn:
        commands = [*COMMANDS, *(name.partition(" ")[2] for name in COMMANDS if " " in name)]
        parts = message.split() if "unrecognized" in message or "invalid choice" in message else []
        for word, following in zip(parts, [*parts[1:], "-"], strict=False):
            word = word.strip("',")
            known = list(self._option_string_actions) if word.startswith("-") else commands
            near = difflib.get_close_matches(word.partition("=")[0], known, n=1)
            meant = self._setting(word, following) or (near[0] if near and near[0] != word else None)
            if meant:
                message = f"{message.partition(' (choose')[0]}; did you mean {meant}?"
                break
        self.exit(2, f"error: {' '.join(message.split())}; see: {self.prog} --help\n")

    def _setting(self, word: str, following: str) -> str | None:
        """How to give a flag that does not exist, but is the name of a setting of the command."""
        from pertinent.errors import MissingExtraError

        flag, equals, value = word.partition("=")
        name = flag.removeprefix("--").replace("-", "_")
        try:
            fields = load(self.command.config).model_fields if self.command and flag.startswith("--") else {}
        except MissingExtraError:
            return None
        if name not in fields:
            return None
        given = value if equals else "VALUE" if following.startswith("-") else following
        return f"--set {name}={given}"

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        parsed, rest = self.parse_known_args(joined(sys.argv[1:] if args is None else args), namespace)
        if rest:
            # Argparse would report these from the top parser, which does not know the command's flags.
            self._below(parsed.command).error(f"unrecognized arguments: {' '.join(rest)}")
        return parsed

    def format_help(self) -> str:
        text = super().format_help()
        return text if self.command is None else text + _settings_help(self.command)

    def _below(self, name: str | None) -> argparse.ArgumentParser:
        for action in self._subparsers._group_actions if self._subparsers is not None and name else ():
            if isinstance(action.choices, dict):
                return action.choices[name]  # type: ignore[no-any-return]
        return self


class _Formatter(argparse.RawDescriptionHelpFormatter):
    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=34, width=100)


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
        from pertinent import __version__

        print(f"pertinent {__version__}")
        parser.exit(0)


def _settings_help(command: Command) -> str:
    """The settings of a command with their defaults, from the one place that states them."""
    from pertinent.errors import MissingExtraError

    try:
        fields = load(command.config).model_fields
    except MissingExtraError as error:
        return f"\nsettings for --config and --set: {error}\n"
    lines = [f"  {name}: {_default(field)}" for name, field in fields.items()]
    return "\nsettings for --config and --set, with defaults:\n" + "\n".join(lines) + "\n"


def _default(field: Any) -> str:
    if field.is_required():
        return "(required)"
    value = field.get_default(call_default_factory=True)
    value = value.plain() if hasattr(value, "plain") else value
    return json.dumps(value, default=_plain, ensure_ascii=False)


def _plain(value: Any) -> Any:
    return value.plain() if hasattr(value, "plain") else str(value)
