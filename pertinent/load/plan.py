"""What is sent and when: the settings of a run, its timetable, and the requests of each size."""

from __future__ import annotations

import base64
import ipaddress
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from pertinent.config import Config
from pertinent.errors import ConfigError, shorten
from pertinent.load.client import Target
from pertinent.load.results import Call

Floats = NDArray[np.float64]
# The most requests of one run: every latency is kept, so that percentiles are exact.
MOST_REQUESTS = 1_000_000
# How many different bodies a size has, and how many bytes of them are held at most.
BODIES, BODY_BYTES = 64, 64 * 2**20
KEY_VARIABLE = "PERTINENT_API_KEY"

By = Literal["texts", "ids", "rows"]
Builder = Callable[[str, Sequence[Any]], dict[str, Any]]


def _documents(query: str, texts: Sequence[Any]) -> dict[str, Any]:
    return {"query": query, "documents": texts}


# Where each dialect listens, and the body that it reads.
DIALECTS: dict[str, tuple[str, Builder]] = {
    "cohere": ("/v2/rerank", _documents),
    "jina": ("/v1/rerank", _documents),
    "vllm": ("/rerank", _documents),
    "infinity": ("/infinity/rerank", _documents),
    "vllm-score": ("/score", lambda query, texts: {"text_1": query, "text_2": texts}),
    "voyage": ("/v1/rerank", lambda query, texts: {"query": query, "documents": texts, "truncation": True}),
    "mixedbread": ("/v1/reranking", lambda query, texts: {"query": query, "input": texts}),
    "nim": (
        "/v1/ranking",
        lambda query, texts: {"query": {"text": query}, "passages": [{"text": text} for text in texts]},
    ),
    "tei": ("/rerank", lambda query, texts: {"query": query, "texts": texts}),
    "tei-predict": ("/predict", lambda query, texts: {"inputs": [[query, text] for text in texts]}),
    "relevance": ("/v1/relevance", lambda query, texts: {"query": query, "texts": texts}),
}


class LoadConfig(Config):
    """Settings of ``pertinent load``.

    ``mix`` is the weight of each number of documents; ``within_ms`` is how late an answer may be and still
    count as good; ``warmup_seconds`` come before ``seconds`` and are not counted.
    """

    url: str = "http://127.0.0.1:8080"
    rate: float = Field(20.0, gt=0, le=20_000)
    seconds: float = Field(10.0, gt=0, le=7_200)
    warmup_seconds: float = Field(1.0, ge=0, le=600)
    mix: dict[int, float] = {100: 1.0}
    by: By = "texts"
    dialect: str = "cohere"
    path: str | None = None
    model: str | None = None
    connections: int = Field(256, ge=1, le=10_000)
    timeout_seconds: float = Field(30.0, gt=0, le=600)
    within_ms: float | None = Field(None, gt=0)
    arrivals: Literal["random", "even"] = "random"
    items: str | None = None
    queries: str | None = None
    columns: dict[str, str] = {}
    seed: int = 0
    report: str | None = None
    allow_remote: bool = False


def check(config: LoadConfig) -> Target:
    """Where to send. Raises ConfigError for other machines without leave, and for sizes that make no sense."""
    try:
        target = Target.of(config.url)
    except ValueError as error:
        raise ConfigError(f"url: {error}") from None
    if not config.allow_remote and not is_loopback(target.host):
        raise ConfigError(
            f"{target.host} is another machine; load only what is yours to load, and then say --allow-remote"
        )
    if config.dialect not in DIALECTS:
        raise ConfigError(f"dialect: {config.dialect!r} is not known; allowed: {', '.join(DIALECTS)}")
    if config.by != "texts" and config.dialect != "relevance":
        raise ConfigError(f"by: {config.by} is for --dialect relevance; {config.dialect} takes texts")
    sizes = [size for size in config.mix if size < 1] + [size for size, part in config.mix.items() if not part > 0]
    if not config.mix or sizes:
        raise ConfigError("mix: give numbers of documents from 1, each with a weight above 0, such as 10:9,3000:1")
    count = config.rate * (config.seconds + config.warmup_seconds)
    if count > MOST_REQUESTS:
        raise ConfigError(f"{count:,.0f} requests are too many for one run, at most {MOST_REQUESTS:,}; lower the rate")
    return target


def is_loopback(host: str) -> bool:
    """Whether an address is this machine.

    >>> is_loopback("127.0.0.1"), is_loopback("::1"), is_loopback("localhost"), is_loopback("ranker.example")
    (True, True, True, False)
    """
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def timetable(rate: float, seconds: float, arrivals: str, seed: int) -> Floats:
    """When requests start, seconds from the beginning, rising, float64 ``[n]``; ``random`` is a Poisson process.

    >>> timetable(4.0, 1.0, "even", 0).tolist()
    [0.0, 0.25, 0.5, 0.75]
    """
    if arrivals == "even":
        return np.arange(int(rate * seconds), dtype=np.float64) / rate
    random = np.random.default_rng(seed)
    count = int(rate * seconds + 6 * np.sqrt(rate * seconds) + 10)
    times = np.cumsum(random.exponential(1.0 / rate, count))
    return times[times < seconds]


def choose(calls: Sequence[Call], mix: dict[int, float], count: int, seed: int) -> NDArray[np.int64]:
    """Which call each request of the timetable is, int64 ``[count]``: sizes by weight, bodies in turn."""
    random = np.random.default_rng(seed + 1)
    sizes = list(mix)
    weights = np.array([mix[size] for size in sizes], dtype=np.float64)
    drawn = random.choice(len(sizes), size=count, p=weights / weights.sum())
    chosen = np.zeros(count, dtype=np.int64)
    for number, size in enumerate(sizes):
        mine = np.flatnonzero(drawn == number)
        rows = np.array([row for row, call in enumerate(calls) if call.group == size], dtype=np.int64)
        chosen[mine] = rows[np.arange(len(mine)) % len(rows)]
    return chosen


def make_calls(config: LoadConfig, target: Target) -> list[Call]:
    """The requests of each size: some dozens of different ones, of real titles and the words of others."""
    titles, ids = _catalog(config)
    queries = _queries(config, titles)
    path, build = DIALECTS[config.dialect]
    key = os.environ.get(KEY_VARIABLE)
    headers = (("authorization", f"Bearer {key}"),) if key else ()
    random = np.random.default_rng(config.seed + 2)
    calls: list[Call] = []
    for size in config.mix:
        held = 0
        for number in range(BODIES):
            query = queries[int(random.integers(len(queries)))]
            rows = random.integers(len(titles), size=size)
            if config.by == "texts":
                body = build(query, [titles[row] for row in rows])
            elif config.by == "ids":
                body = {"query": query, "item_ids": [ids[row] for row in rows]}
            else:
                body = {"query": query, "rows": base64.b64encode(rows.astype("<i4").tobytes()).decode()}
            content = json.dumps({**body, **({"model": config.model} if config.model else {})}).encode()
            calls.append(Call(size, target.request("POST", config.path or path, content, headers), number))
            held += len(content)
            if held > BODY_BYTES / len(config.mix):
                break
    return calls


def _catalog(config: LoadConfig) -> tuple[list[str], list[str]]:
    from pertinent.data.readers import read_items
    from pertinent.data.samples import sample_path

    source = sample_path("esci") / "items.parquet" if config.items is None else Path(config.items)
    items = read_items(source, rename=config.columns)
    if not items:
        raise ConfigError(f"{source} has no items; give a catalog with titles")
    return [item.title for item in items], [item.item_id for item in items]


def _queries(config: LoadConfig, titles: Sequence[str]) -> list[str]:
    if config.queries is None:
        found = [" ".join(title.split()[:3]) for title in titles[:10_000]]
    else:
        try:
            found = Path(config.queries).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"queries: {config.queries}: {shorten(str(error))}; give a text file, a query a line"
            ) from None
    found = [query for query in found if query.strip()]
    if not found:
        raise ConfigError("there are no queries; give --queries FILE with one a line")
    return found
