"""A made-up shop with real texts: who was shown what, and what they did, with the truth beside it.

Catalog, queries and judgments are real; shoppers, result pages and behavior are simulated from
planted truth, so that what a click model, neighbor lists or a user model find can be checked.
Nothing measured on it says anything about a real shop.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, get_args, get_type_hints

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from pertinent.artifact import Artifact, input_digests, open_artifact, refuse_foreign, write_artifact, write_json
from pertinent.config import Config
from pertinent.data.readers import read_items, read_judgments
from pertinent.data.samples import read_sample, sample_path
from pertinent.data.shop import (
    FAVORITES,
    Alias,
    Catalog,
    Floats,
    Ints,
    Queries,
    Shoppers,
    alias_judgments,
    build_catalog,
    build_queries,
    build_shoppers,
    pick,
    plant_aliases,
    uniform,
)
from pertinent.data.splits import split_by_query
from pertinent.errors import ConfigError, need
from pertinent.records import Event, Item, Judgment
from pertinent.text import normalize

if TYPE_CHECKING:
    import pyarrow as pa

KIND = "shop"
LEVELS: tuple[str, ...] = get_args(get_type_hints(Event)["level"])
SIMULATED = (
    "Simulated by pertinent data synthesize: real texts and judgments, made-up shoppers, result pages and behavior. "
    "Not evidence about any real shop."
)
# Planted behavior that has no setting. Examined items are clicked with probability
# DULL + (ATTRACTIVE - DULL) * sqrt(grade), raised by the shopper's tastes, at most MOST_ATTRACTIVE.
DULL, ATTRACTIVE, MOST_ATTRACTIVE = 0.04, 0.70, 0.95
# From click to cart to contact to order to pay: each the share of the one before, times DEEPER + (1 - DEEPER) * grade.
STEPS = (0.35, 0.55, 0.60, 0.85)
DEEPER = 0.4
# How long each level follows the one before, at least and at most, in seconds.
WAITS = ((0, 0), (3, 60), (5, 120), (10, 240), (20, 300), (10, 120))
# Shares of sessions with one, two... searches, and the seconds between two searches.
SEARCHES = (0.45, 0.25, 0.15, 0.10, 0.05)
PAUSE = (20, 200)
# How often a shopper follows an own favorite, and the shares of the favorites.
LOYALTY, INTERESTS = 0.8, (0.6, 0.3, 0.1)
# Visits by hour of the day, UTC.
HOURS = (2, 1, 1, 1, 1, 2, 3, 4, 5, 6, 6, 6, 6, 6, 6, 6, 6, 7, 8, 9, 9, 8, 6, 4)
# A page draws from twice as many items as it shows.
SLOTS_PER_PLACE = 2
UNSEARCHED_ALIASES = 0.15

_SECOND = 1_000_000
_DAY = 86_400 * _SECOND
_ROW_GROUP = 250_000
_PILOT = 2_000
_SEARCH_IDS = 8  # a search is numbered session * 8 + its place in the session


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


@dataclass(frozen=True, slots=True)
class Shop:
    """All that is planted: enough to compute any part of the log."""

    config: SynthesizeConfig
    catalog: Catalog
    judgments: tuple[Judgment, ...]
    aliases: tuple[Alias, ...]
    queries: Queries
    shoppers: Shoppers
    examination: Floats  # [page_size], 1 at the top
    slips: float  # the chance of an examined item that is not clicked in earnest to be clicked by mistake
    sessions: float  # about how many the log has

    @property
    def bots(self) -> int:
        """How many users are programs; they come after the shoppers."""
        return 0 if self.config.bots == 0 else max(1, len(self.shoppers.activity) // 1000)


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows of a log as columns of equal length, and which of them are clicks by mistake."""

    time: Ints
    search: Ints
    query: Ints
    slot: Ints
    position: Ints
    level: Ints
    user: Ints
    mistake: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.time)

    def take(self, rows: Any) -> Rows:
        """The rows of a mask, or in the given order."""
        return Rows(*(getattr(self, name)[rows] for name in self.__slots__))

    @classmethod
    def join(cls, parts: Sequence[Rows]) -> Rows:
        """The rows of all parts, one after the other."""
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in cls.__slots__))


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
    shop = Shop(config, catalog, tuple(judgments), tuple(aliases), queries, shoppers, examination, 0.0, _PILOT)
    shop = replace(shop, slips=_slips(shop))
    shop = replace(shop, sessions=_session_count(shop))
    _refuse_too_few(shop)
    return shop


def visits(shop: Shop, first: int, last: int) -> Rows:
    """What happened in the sessions from ``first`` up to ``last``.

    Sessions begin in order of their number. The rows are in no order.
    """
    seed = shop.config.seed
    session = np.arange(first, last)
    begin = _begin(shop, session)
    user, is_bot = _visitors(shop, session)
    department = _department_of_session(shop, session, user, begin)
    length = 1 + pick(np.cumsum(SEARCHES), uniform(seed, "searches", session))
    row = np.repeat(np.arange(len(session)), length)
    place = np.arange(len(row)) - np.repeat(np.cumsum(length) - length, length)
    search = session[row] * _SEARCH_IDS + place
    query = _query_of_search(shop, search, department[row])
    pause = _between(PAUSE, uniform(seed, "pause", search)) * (place > 0)
    total = np.cumsum(pause)
    starts = np.cumsum(length) - length
    time = begin[row] + total - total[starts][row]
    return _behavior(shop, search, query, user[row], is_bot[row], time)


def _behavior(shop: Shop, search: Ints, query: Ints, user: Ints, is_bot: NDArray[np.bool_], time: Ints) -> Rows:
    """The rows of the given searches: what was shown, clicked by mistake or not, and what came of it."""
    config, seed = shop.config, shop.config.seed
    slot, shown = _pages(shop, query, time)  # [searches, places]
    place = np.arange(config.page_size)
    item = shop.queries.found[query[:, None], slot]
    grade = shop.queries.grade[query[:, None], slot]
    liked = _liked(shop, item, user)
    chance = np.minimum(attraction(grade) * liked, MOST_ATTRACTIVE)
    # Attraction and mistakes both need examination first, so clicks stay those of a position-based model.
    earnest = chance * (1.0 - config.noise) if shop.slips else chance
    draws = uniform(seed, "click", search[:, None], place)
    clicked = shown & (draws < shop.examination * (earnest + (1.0 - earnest) * shop.slips))
    mistake = clicked & (draws >= shop.examination * earnest)
    clicked[is_bot], mistake[is_bot] = shown[is_bot], False
    # A click by mistake leads nowhere, and so does a program's.
    deep = clicked & ~mistake & ~is_bot[:, None]
    depth = clicked * 1 + deep * _depth(uniform(seed, "depth", search[:, None], place), grade)
    parts = []
    when = np.broadcast_to(time[:, None], depth.shape)
    for level in range(len(LEVELS)):
        if level:
            when = when + _between(WAITS[level], uniform(seed, f"wait {level}", search[:, None], place))
        rows, places = np.nonzero(shown & (depth >= level))
        parts.append(
            Rows(
                when[rows, places],
                search[rows],
                query[rows],
                slot[rows, places],
                places,
                np.full(len(rows), level),
                user[rows],
                mistake[rows, places] & (level == 1),
            )
        )
    return _doubled(shop, Rows.join(parts))


def attraction(grade: Floats) -> Floats:
    """The chance that an examined item is clicked by a shopper without tastes.

    >>> attraction(np.array([0.0, 0.25, 1.0])).round(2).tolist()
    [0.04, 0.37, 0.7]
    """
    return DULL + (ATTRACTIVE - DULL) * np.sqrt(grade)


def _begin(shop: Shop, session: Ints) -> Ints:
    """When sessions begin, microseconds after the start: in order, denser in the evening."""
    # A quarter of the last day is left, so that a log that runs a little longer still ends on it.
    span = shop.config.days - 0.25
    at = (session + uniform(shop.config.seed, "begin", session)) * (span / shop.sessions)
    day = np.floor(at)
    edges = np.concatenate([[0.0], np.cumsum(HOURS)]) / sum(HOURS)
    hour = np.interp(at - day, edges, np.arange(25) / 24)
    return ((day + hour) * _DAY).astype(np.int64)


def _visitors(shop: Shop, session: Ints) -> tuple[Ints, NDArray[np.bool_]]:
    seed = shop.config.seed
    user = pick(shop.shoppers.activity, uniform(seed, "user", session))
    is_bot = uniform(seed, "bot", session) < shop.config.bots
    if shop.bots:
        program = (uniform(seed, "program", session) * shop.bots).astype(np.int64)
        user = np.where(is_bot, len(shop.shoppers.activity) + program, user)
    return user, is_bot


def _department_of_session(shop: Shop, session: Ints, user: Ints, begin: Ints) -> Ints:
    """A favorite of the shopper, of now or of later as time goes by, or what everyone looks for."""
    seed, queries = shop.config.seed, shop.queries
    weights = np.bincount(queries.department, queries.popularity, minlength=len(shop.catalog.departments))
    anything = pick(np.cumsum(weights) / weights.sum(), uniform(seed, "department", session))
    person = np.minimum(user, len(shop.shoppers.activity) - 1)
    which = pick(np.cumsum(INTERESTS), uniform(seed, "which favorite", session))
    passed = np.minimum(begin / (shop.config.days * _DAY), 1.0)
    drifted = uniform(seed, "drift", session) < shop.config.drift * passed
    favorite = np.where(drifted, shop.shoppers.later[person, which], shop.shoppers.favorites[person, which])
    loyal = (uniform(seed, "loyal", session) < LOYALTY) & (user == person)
    return np.where(loyal, favorite, anything)


def _query_of_search(shop: Shop, search: Ints, department: Ints) -> Ints:
    """A query of the department, by popularity."""
    queries = shop.queries
    order = np.argsort(queries.department, kind="stable")
    sums = np.cumsum(queries.popularity[order])
    ends = np.searchsorted(queries.department[order], department, side="right") - 1
    starts = np.searchsorted(queries.department[order], department, side="left")
    below = np.where(starts > 0, sums[starts - 1], 0.0)
    aim = below + uniform(shop.config.seed, "query", search) * (sums[ends] - below)
    # Rounding could lead past the last query of the department that is ever asked.
    last = np.searchsorted(sums, sums[ends], side="left")
    return order[np.minimum(np.searchsorted(sums, aim, side="right"), last)]


def _pages(shop: Shop, query: Ints, time: Ints) -> tuple[Ints, NDArray[np.bool_]]:
    """The slots on each page, best first, and which places are filled: one page a query and day."""
    config, queries = shop.config, shop.queries
    day = time // _DAY
    stride = int(day.max()) + 1
    keys, page = np.unique(query * stride + day, return_inverse=True)
    of_query, of_day = keys // stride, keys % stride
    slots = np.arange(queries.found.shape[1])
    luck = uniform(config.seed, "page", of_day[:, None], of_query[:, None], slots)
    score = np.where(queries.found[of_query] >= 0, queries.strength[of_query] + config.shuffle * luck, -1.0)
    best = np.argsort(-score, axis=1, kind="stable")[:, : config.page_size]
    filled = np.take_along_axis(score, best, axis=1) >= 0
    return best[page], filled[page]


def _liked(shop: Shop, item: Ints, user: Ints) -> Floats:
    """By what factor a shopper's brands and price band raise the attraction of items, 1 without a taste."""
    shoppers, catalog, strength = shop.shoppers, shop.catalog, shop.config.interest
    person = np.minimum(user, len(shoppers.activity) - 1)
    brand, band = catalog.brand[item], catalog.price_band[item]
    own = np.zeros(item.shape, dtype=np.bool_)
    for place in range(FAVORITES):
        own |= brand == shoppers.brands[person, place][:, None]
    likes_brand = own & (brand >= 0)
    likes_price = band == shoppers.price_band[person][:, None]
    liked: Floats = 1.0 + strength * likes_brand + 0.5 * strength * likes_price
    return liked


def _depth(draws: Floats, grade: Floats) -> Ints:
    """How many levels beyond the click."""
    reached = np.ones_like(draws)
    depth = np.zeros(draws.shape, dtype=np.int64)
    for step in STEPS:
        reached = reached * step * (DEEPER + (1 - DEEPER) * grade)
        depth += draws < reached
    return depth


def _doubled(shop: Shop, rows: Rows) -> Rows:
    """With a share of the rows from click on written twice."""
    share = shop.config.duplicates
    if share == 0:
        return rows
    draws = uniform(shop.config.seed, "duplicate", rows.search, rows.position, rows.level)
    twice = rows.take((draws < share) & (rows.level > 0))
    return Rows.join([rows, replace(twice, mistake=np.zeros(len(twice), dtype=np.bool_))])


def _between(bounds: tuple[int, int], draws: Floats) -> Ints:
    low, high = bounds
    return ((low + draws * (high - low)) * _SECOND).astype(np.int64)


def log_rows(shop: Shop, sessions_at_once: int) -> Iterator[Rows]:
    """The log in parts, in order of time, then search, level and position; mind the memory of one part.

    The parts joined are the same whatever their size.
    """
    # A short log needs no long part; its end is found from the rows, wherever that is.
    sessions_at_once = min(sessions_at_once, 2 * int(shop.sessions) + 1)
    left, first, held, ends = shop.config.events, 0, list[Rows](), False
    while not ends:
        last = first + sessions_at_once
        rows = visits(shop, first, last)
        search, size = np.unique(rows.search, return_counts=True)
        fitting = int(np.searchsorted(np.cumsum(size), left, side="right"))
        ends = fitting < len(search)
        rows = rows.take(rows.search < search[fitting]) if ends else rows
        left -= len(rows)
        together = Rows.join([*held, rows])
        place = (together.search * len(LEVELS) + together.level) * 256 + together.position
        together = together.take(np.lexsort((place, together.time)))
        # Nothing that is still to come is earlier than the beginning of the next session.
        edge = np.iinfo(np.int64).max if ends else int(_begin(shop, np.array([last]))[0])
        final = int(np.searchsorted(together.time, edge, side="left"))
        held = [together.take(slice(final, None))]
        first = last
        yield together.take(slice(0, final))


def _slips(shop: Shop) -> float:
    """The chance of a mistake that makes ``noise`` of the clicks mistakes, and leaves their number as it is."""
    noise = shop.config.noise
    if noise == 0:
        return 0.0
    pilot = visits(shop, 0, _PILOT)  # without mistakes, as no chance of them is known yet
    pilot = pilot.take(pilot.user < len(shop.shoppers.activity))
    clicks = int((pilot.level == 1).sum())
    examined = max(float(shop.examination[pilot.position[pilot.level == 0]].sum()), float(clicks), 1e-9)
    # Mistakes are drawn from what is examined and not clicked in earnest; earnest clicks are 1 - noise of the pilot's.
    return noise * clicks / (examined - (1.0 - noise) * clicks)


def _refuse_too_few(shop: Shop) -> None:
    rows = visits(shop, 0, 1)
    size = int((rows.search == rows.search.min()).sum())
    if size > shop.config.events:
        raise ConfigError(
            f"events: {shop.config.events} is less than the {size} rows of the first search; give at least {6 * size}"
        )


def _session_count(shop: Shop) -> float:
    """About how many sessions the log has: exact in their lengths, estimated in the rows of a search."""
    pilot = visits(shop, 0, _PILOT)
    searches = shop.config.events / (len(pilot) / len(np.unique(pilot.search)))
    first, at_once, edges = 0, 1_000_000, np.cumsum(SEARCHES)
    while True:
        length = np.cumsum(1 + pick(edges, uniform(shop.config.seed, "searches", np.arange(first, first + at_once))))
        if length[-1] >= searches:
            return float(max(1, first + int(np.searchsorted(length, searches))))
        searches -= float(length[-1])
        first += at_once


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
        self._start = int(datetime.combine(shop.config.start, datetime.min.time(), UTC).timestamp()) * _SECOND
        texts = ("user_id", "session_id", "search_id", "query", "item_id", "level")
        fields = [(name, pa.string()) for name in texts]
        fields += [("position", pa.int32()), ("time", pa.timestamp("us", tz="UTC"))]
        self.schema = pa.schema(fields, metadata={"simulated": SIMULATED})

    def table(self, rows: Rows) -> pa.Table:
        """The columns of the log."""
        import pyarrow as pa

        search, at = np.unique(rows.search, return_inverse=True)
        sessions = pa.array([session_name(int(s) // _SEARCH_IDS) for s in search], pa.string())
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
    return f"{session_name(search // _SEARCH_IDS)}-{search % _SEARCH_IDS + 1}"


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
