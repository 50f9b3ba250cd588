"""A made-up shop with real texts: who was shown what, and what they did, with the truth beside it.

Catalog, queries and judgments are real; shoppers, result pages and behavior are simulated from
planted truth, so that what a click model, neighbor lists or a user model find can be checked.
Nothing measured on it says anything about a real shop.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, date, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from pydantic import Field, model_validator

from pertinent.artifact import Artifact, input_digests, open_artifact, refuse_foreign, write_artifact, write_json
from pertinent.config import Config
from pertinent.data.readers import read_items, read_judgments
from pertinent.data.samples import read_sample, sample_path
from pertinent.data.shop import (
    Ints,
    alias_judgments,
    build_catalog,
    build_queries,
    build_shoppers,
    plant_aliases,
)
from pertinent.data.splits import split_by_query
from pertinent.data.visits import (
    INTERESTS,
    LEVELS,
    PILOT,
    SEARCH_IDS,
    SECOND,
    SLOTS_PER_PLACE,
    Rows,
    Shop,
    attraction,
    chance_of_slips,
    log_rows,
    refuse_too_few,
    session_count,
)
from pertinent.errors import need
from pertinent.records import Item, Judgment
from pertinent.text import normalize

if TYPE_CHECKING:
    import pyarrow as pa

KIND = "shop"
SIMULATED = (
    "Simulated by pertinent data synthesize: real texts and judgments, made-up shoppers, result pages and behavior. "
    "Not evidence about any real shop."
)
UNSEARCHED_ALIASES = 0.15

_ROW_GROUP = 250_000


class SynthesizeConfig(Config):
    """Settings of ``pertinent data synthesize``."""

    out: str
    seed: int = Field(0, ge=0)
    events: int = Field(100_000, ge=1)
    sample: str = "esci"
    items: str | None = None
    judgments: str | None = None
    users: int | None = Field(None, ge=1)
    start: date = date(2025, 1, 1)
    days: int = Field(30, ge=1, le=3660)
    page_size: int = Field(20, ge=1, le=200)
    examination_decay: float = Field(0.5, ge=0.0, le=5.0)
    shuffle: float = Field(1.0, ge=0.0)
    noise: float = Field(0.05, ge=0.0, lt=1.0)
    aliases: int = Field(40, ge=0)
    alias_share: float = Field(0.2, ge=0.0, lt=1.0)
    interest: float = Field(0.3, ge=0.0, le=1.0)
    drift: float = Field(0.3, ge=0.0, le=1.0)
    bots: float = Field(0.0, ge=0.0, lt=1.0)
    duplicates: float = Field(0.0, ge=0.0, lt=1.0)
    progress: bool = False

    @model_validator(mode="after")
    def _both_files(self) -> Self:
        if (self.items is None) != (self.judgments is None):
            raise ValueError("items and judgments go together: give both files, or neither and a sample")
        return self


def synthesize(config: SynthesizeConfig) -> Artifact:
    """A folder with ``items.parquet``, ``log.parquet``, ``judgments.parquet``, the truth and a README.

    The log has the most whole searches that fit into ``events`` rows. The same settings give the
    same bytes. Raises ConfigError for settings that do not go together, such as events too few for one
    search, DataError for files that cannot be read, MissingExtraError without pyarrow.
    """
    need("pyarrow", "logs")
    refuse_foreign(config.out, KIND)
    shop = build_shop(config)
    metrics: dict[str, Any] = {}
    told = {name: value for name, value in config.plain().items() if name not in ("out", "progress")}
    with write_artifact(config.out, KIND, told, _inputs(config), metrics, dated=False) as folder:
        (folder / "truth").mkdir()
        counts = _write_log(shop, folder)
        _write_tables(shop, counts, folder)
        _write_truth(shop, counts, folder, told)
        metrics.update(counts.metrics(shop))
        (folder / "README.md").write_text(_readme(config, metrics), encoding="utf-8")
    return open_artifact(config.out, KIND, verify=False)


def build_shop(config: SynthesizeConfig) -> Shop:
    """The shop that the settings describe, before anyone visits it."""
    items, judgments = _sources(config)
    catalog = build_catalog(items)
    aliases = plant_aliases(catalog, judgments, config.aliases, config.seed)
    slots = config.page_size * SLOTS_PER_PLACE
    queries = build_queries(catalog, judgments, aliases, slots, config.alias_share, UNSEARCHED_ALIASES, config.seed)
    users = config.users if config.users is not None else max(20, config.events // 250)
    shoppers = build_shoppers(catalog, queries, users, config.seed)
    examination = np.power(1.0 + np.arange(config.page_size), -config.examination_decay)
    shop = Shop(config, catalog, tuple(judgments), tuple(aliases), queries, shoppers, examination, 0.0, PILOT)
    shop = replace(shop, slips=chance_of_slips(shop))
    shop = replace(shop, sessions=session_count(shop))
    refuse_too_few(shop)
    return shop


class _Counts:
    """What is counted while the log goes by."""

    def __init__(self, shop: Shop) -> None:
        queries, slots = shop.queries.found.shape
        self.exposures = np.zeros(queries * slots, dtype=np.int64)
        self.clicks = np.zeros_like(self.exposures)
        self.searches = np.zeros(queries, dtype=np.int64)
        self.levels = np.zeros(len(LEVELS), dtype=np.int64)
        self.mistakes: list[tuple[Ints, Ints, Ints]] = []
        self.bots = np.zeros(len(LEVELS), dtype=np.int64)

    def add(self, shop: Shop, rows: Rows) -> None:
        pair = rows.query * shop.queries.found.shape[1] + rows.slot
        self.exposures += np.bincount(pair[rows.level == 0], minlength=len(self.exposures))
        self.clicks += np.bincount(pair[rows.level == 1], minlength=len(self.clicks))
        first = rows.query[(rows.level == 0) & (rows.position == 0)]
        self.searches += np.bincount(first, minlength=len(self.searches))
        self.levels += np.bincount(rows.level, minlength=len(LEVELS))
        by_mistake = rows.take(rows.mistake)
        item = shop.queries.found[by_mistake.query, by_mistake.slot]
        self.mistakes.append((by_mistake.search, item, by_mistake.position))
        self.bots += np.bincount(rows.level[rows.user >= len(shop.shoppers.activity)], minlength=len(LEVELS))

    def metrics(self, shop: Shop) -> dict[str, Any]:
        """What the manifest and the README say about the log."""
        clicks, mistakes = int(self.levels[1] - self.bots[1]), sum(len(part[0]) for part in self.mistakes)
        aliases = self.searches[len(self.searches) - shop.queries.aliases :]
        return {
            "rows": int(self.levels.sum()),
            "searches": int(self.searches.sum()),
            "alias_searches": int(aliases.sum()),
            "shoppers": len(shop.shoppers.activity),
            "items": len(shop.catalog.items),
            "queries": len(shop.queries.texts),
            "aliases": shop.queries.aliases,
            **{f"{name}_rows": int(count) for name, count in zip(LEVELS, self.levels, strict=True)},
            "clicks_by_mistake": mistakes,
            "share_of_clicks_by_mistake": round(mistakes / clicks, 6) if clicks else 0.0,
            "bot_rows": int(self.bots.sum()),
        }


def _write_log(shop: Shop, folder: Path) -> _Counts:
    import pyarrow as pa
    import pyarrow.parquet as pq

    counts, names = _Counts(shop), _Names(shop)
    with _bar(shop.config) as advance, pq.ParquetWriter(folder / "log.parquet", names.schema, **_WRITER) as writer:
        waiting: list[pa.Table] = []
        # The size of a row group is part of the bytes, the size of a part is not.
        for rows in log_rows(shop, sessions_at_once=_SESSIONS_AT_ONCE):
            counts.add(shop, rows)
            waiting.append(names.table(rows))
            together = pa.concat_tables(waiting)
            while len(together) >= _ROW_GROUP:
                writer.write_table(together.slice(0, _ROW_GROUP).combine_chunks(), row_group_size=_ROW_GROUP)
                together = together.slice(_ROW_GROUP)
            waiting = [together]
            advance(len(rows))
        if len(waiting[0]):
            writer.write_table(waiting[0].combine_chunks(), row_group_size=_ROW_GROUP)
    return counts


class _Names:
    """Rows of numbers as a table of ids and texts."""

    def __init__(self, shop: Shop) -> None:
        import pyarrow as pa

        self._found = shop.queries.found
        self._queries = pa.array(shop.queries.texts, pa.string())
        self._items = pa.array([item.item_id for item in shop.catalog.items], pa.string())
        self._users = pa.array(_user_names(shop), pa.string())
        self._levels = pa.array(LEVELS, pa.string())
        self._start = int(datetime.combine(shop.config.start, datetime.min.time(), UTC).timestamp()) * SECOND
        texts = ("user_id", "session_id", "search_id", "query", "item_id", "level")
        fields = [(name, pa.string()) for name in texts]
        fields += [("position", pa.int32()), ("time", pa.timestamp("us", tz="UTC"))]
        self.schema = pa.schema(fields, metadata={"simulated": SIMULATED})

    def table(self, rows: Rows) -> pa.Table:
        """The columns of the log."""
        import pyarrow as pa

        search, at = np.unique(rows.search, return_inverse=True)
        sessions = pa.array([session_name(int(s) // SEARCH_IDS) for s in search], pa.string())
        searches = pa.array([search_name(int(s)) for s in search], pa.string())
        return pa.Table.from_arrays(
            [
                self._users.take(pa.array(rows.user)),
                sessions.take(pa.array(at)),
                searches.take(pa.array(at)),
                self._queries.take(pa.array(rows.query)),
                self._items.take(pa.array(self._found[rows.query, rows.slot])),
                self._levels.take(pa.array(rows.level)),
                pa.array(rows.position.astype(np.int32)),
                pa.array(rows.time + self._start, pa.int64()).cast(pa.timestamp("us", tz="UTC")),
            ],
            schema=self.schema,
        )


def session_name(session: int) -> str:
    """The id of a session.

    >>> session_name(12), search_name(12 * 8 + 1)
    ('s00000012', 's00000012-2')
    """
    return f"s{session:08}"


def search_name(search: int) -> str:
    """The id of a search: its session, and the how manieth it is there."""
    return f"{session_name(search // SEARCH_IDS)}-{search % SEARCH_IDS + 1}"


def _user_names(shop: Shop) -> list[str]:
    people = [f"u{user:07}" for user in range(len(shop.shoppers.activity))]
    return people + [f"bot{bot:04}" for bot in range(shop.bots)]


def _write_tables(shop: Shop, counts: _Counts, folder: Path) -> None:
    """The catalog and the judgments."""
    items = shop.catalog.items
    columns: dict[str, list[Any]] = {
        name: [getattr(item, name) for item in items]
        for name in ("item_id", "title", "description", "brand", "category", "image")
    }
    columns["attributes"] = [json.dumps(i.attributes, ensure_ascii=False) if i.attributes else None for i in items]
    optional = ("description", "brand", "category", "image", "attributes")
    kept = {name: values for name, values in columns.items() if name not in optional or any(values)}
    _write(folder / "items.parquet", kept, dict.fromkeys(kept, "string"))
    made = alias_judgments(shop.catalog, shop.aliases)
    both = [*((j, "real") for j in _split(shop.judgments)), *((j, "alias") for j in made)]
    searched = {normalize(text): int(n) for text, n in zip(shop.queries.texts, counts.searches, strict=True)}
    columns = {name: [getattr(j, name) for j, _ in both] for name in ("query", "item_id", "title", "grade", "split")}
    columns["segment"] = [j.segment or source for j, source in both]
    columns["source"] = [source for _, source in both]
    columns["frequency"] = [searched.get(normalize(j.query), 0) for j, _ in both]
    kinds = dict.fromkeys(columns, "string") | {"grade": "double", "frequency": "int64"}
    if any(j.rater for j, _ in both):
        columns["rater"], kinds["rater"] = [j.rater for j, _ in both], "string"
    _write(folder / "judgments.parquet", columns, kinds)


def _split(judgments: Sequence[Judgment]) -> list[Judgment]:
    """With a split where the source gives none."""
    drawn = split_by_query([judgment.query for judgment in judgments])
    return [j if j.split else replace(j, split=split) for j, split in zip(judgments, drawn, strict=True)]


def _write_truth(shop: Shop, counts: _Counts, folder: Path, told: dict[str, Any]) -> None:
    truth, queries, catalog = folder / "truth", shop.queries, shop.catalog
    ids = [item.item_id for item in catalog.items]
    _write(
        truth / "positions.parquet",
        {"position": list(range(len(shop.examination))), "examination": shop.examination.tolist()},
        {"position": "int32", "examination": "double"},
    )
    rows, slots = np.nonzero(queries.found >= 0)
    grade = queries.grade[rows, slots]
    pair = rows * queries.found.shape[1] + slots
    pairs = {
        "query": [queries.texts[row] for row in rows],
        "item_id": [ids[row] for row in queries.found[rows, slots]],
        "grade": grade.tolist(),
        "judged": queries.judged[rows, slots].tolist(),
        "attraction": attraction(grade).tolist(),
        "exposures": counts.exposures[pair].tolist(),
        "clicks": counts.clicks[pair].tolist(),
    }
    kinds = {"query": "string", "item_id": "string", "grade": "double", "judged": "bool", "attraction": "double"}
    _write(truth / "attraction.parquet", pairs, {**kinds, "exposures": "int64", "clicks": "int64"})
    stand_for = [(alias.query, alias.kind, ids[row]) for alias in shop.aliases for row in alias.members]
    names = ("query", "kind", "item_id")
    aliases = {name: [row[place] for row in stand_for] for place, name in enumerate(names)}
    _write(truth / "aliases.parquet", aliases, dict.fromkeys(names, "string"))
    traits = {
        "item_id": ids,
        "department": [catalog.departments[place] for place in catalog.department],
        "price_band": [None if band < 0 else int(band) for band in catalog.price_band],
    }
    _write(truth / "items.parquet", traits, {"item_id": "string", "department": "string", "price_band": "int32"})
    _write_interests(shop, truth / "interests.parquet")
    mistakes = [np.concatenate(part) for part in zip(*counts.mistakes, strict=True)]
    slips = {
        "search_id": [search_name(int(search)) for search in mistakes[0]],
        "item_id": [ids[row] for row in mistakes[1]],
        "position": mistakes[2].tolist(),
    }
    _write(truth / "noise.parquet", slips, {"search_id": "string", "item_id": "string", "position": "int32"})
    told_of_log = counts.metrics(shop)
    noise = {"noise": shop.config.noise, "bots": shop.config.bots, "duplicates": shop.config.duplicates}
    measured = ("click_rows", "clicks_by_mistake", "share_of_clicks_by_mistake", "bot_rows")
    write_json(truth / "noise.json", noise | {name: told_of_log[name] for name in measured})
    write_json(truth / "config.json", told)


def _write_interests(shop: Shop, path: Path) -> None:
    """One row for each shopper and thing liked; weights of departments at the start and the end add to 1."""
    shoppers, catalog, config = shop.shoppers, shop.catalog, shop.config
    rows: list[tuple[str, str, str, float, float]] = []
    for user, name in enumerate(_user_names(shop)[: len(shoppers.activity)]):
        early, late = dict[int, float](), dict[int, float]()
        for weight, first, last in zip(INTERESTS, shoppers.favorites[user], shoppers.later[user], strict=True):
            early[int(first)] = early.get(int(first), 0.0) + weight
            late[int(first)] = late.get(int(first), 0.0) + weight * (1 - config.drift)
            late[int(last)] = late.get(int(last), 0.0) + weight * config.drift
        rows += [
            (name, "department", catalog.departments[place], round(early.get(place, 0.0), 9), round(late[place], 9))
            for place in sorted(late)
        ]
        brands = sorted({int(brand) for brand in shoppers.brands[user] if brand >= 0})
        rows += [(name, "brand", catalog.brands[brand], 1.0, 1.0) for brand in brands]
        rows.append((name, "price_band", str(int(shoppers.price_band[user])), 1.0, 1.0))
    names = {"user_id": "string", "kind": "string", "value": "string", "weight": "double", "weight_at_end": "double"}
    _write(path, {key: [row[place] for row in rows] for place, key in enumerate(names)}, names)


def _write(path: Path, columns: dict[str, list[Any]], kinds: dict[str, str]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema([(name, pa.type_for_alias(kinds[name])) for name in columns], metadata={"simulated": SIMULATED})
    table = pa.Table.from_arrays(
        [pa.array(values, schema.field(n).type) for n, values in columns.items()], schema=schema
    )
    pq.write_table(table, path, row_group_size=_ROW_GROUP, **_WRITER)


_WRITER: dict[str, Any] = {"compression": "zstd", "version": "2.6"}
_SESSIONS_AT_ONCE = 10_000


@contextmanager
def _bar(config: SynthesizeConfig) -> Iterator[Any]:
    if not config.progress:
        yield lambda rows: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task("simulating", total=config.events)
        yield lambda rows: bar.advance(task, rows)


def _sources(config: SynthesizeConfig) -> tuple[list[Item], list[Judgment]]:
    if config.items is None or config.judgments is None:
        return read_sample(config.sample)
    items = read_items(config.items)
    return items, read_judgments(config.judgments, items)


def _inputs(config: SynthesizeConfig) -> dict[str, str]:
    if config.items is not None and config.judgments is not None:
        return input_digests({"items": config.items, "judgments": config.judgments})
    folder = sample_path(config.sample)
    return input_digests({name: folder / f"{name}.parquet" for name in ("items", "judgments")})


def _readme(config: SynthesizeConfig, metrics: dict[str, Any]) -> str:
    source = config.items or f"the sample {config.sample!r}"
    lines = [f"| {name.replace('_', ' ')} | {value} |" for name, value in metrics.items()]
    return (
        f"""# A made-up shop

**This data is simulated.** The catalog, the real queries and their judgments come from {source}.
Everything else is made up: shoppers, sessions, result pages, views, clicks, carts, contacts, orders,
payments, and the queries that judgments.parquet marks with source = alias. Nothing measured here is
evidence about a real shop; it shows whether a method finds what was planted (truth/).

Made by pertinent {version("pertinent")} from seed {config.seed}; all settings are in truth/config.json. The
license of the texts is that of their source.

| figure | value |
|---|---|
"""
        + "\n".join(lines)
        + "\n"
    )
