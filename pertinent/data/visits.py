"""What visitors of a made-up shop are shown and do: the rows of its log, computed session by session.

Each draw is a function of the seed and of what it is drawn for, so any part of the log can be computed by
itself, and parts joined are the same whatever their size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

import numpy as np
from numpy.typing import NDArray

from pertinent.data.shop import FAVORITES, Alias, Catalog, Floats, Ints, Queries, Shoppers, pick, uniform
from pertinent.errors import ConfigError
from pertinent.records import Event, Judgment

if TYPE_CHECKING:
    from pertinent.data.synthetic import SynthesizeConfig

LEVELS: tuple[str, ...] = get_args(get_type_hints(Event)["level"])
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

SECOND = 1_000_000
_DAY = 86_400 * SECOND
PILOT = 2_000
SEARCH_IDS = 8  # a search is numbered session * 8 + its place in the session


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
    search = session[row] * SEARCH_IDS + place
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
    return ((low + draws * (high - low)) * SECOND).astype(np.int64)


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


def chance_of_slips(shop: Shop) -> float:
    """The chance of a mistake that makes ``noise`` of the clicks mistakes, and leaves their number as it is."""
    noise = shop.config.noise
    if noise == 0:
        return 0.0
    pilot = visits(shop, 0, PILOT)  # without mistakes, as no chance of them is known yet
    pilot = pilot.take(pilot.user < len(shop.shoppers.activity))
    clicks = int((pilot.level == 1).sum())
    examined = max(float(shop.examination[pilot.position[pilot.level == 0]].sum()), float(clicks), 1e-9)
    # Mistakes are drawn from what is examined and not clicked in earnest; earnest clicks are 1 - noise of the pilot's.
    return noise * clicks / (examined - (1.0 - noise) * clicks)


def refuse_too_few(shop: Shop) -> None:
    rows = visits(shop, 0, 1)
    size = int((rows.search == rows.search.min()).sum())
    if size > shop.config.events:
        raise ConfigError(
            f"events: {shop.config.events} is less than the {size} rows of the first search; give at least {6 * size}"
        )


def session_count(shop: Shop) -> float:
    """About how many sessions the log has: exact in their lengths, estimated in the rows of a search."""
    pilot = visits(shop, 0, PILOT)
    searches = shop.config.events / (len(pilot) / len(np.unique(pilot.search)))
    first, at_once, edges = 0, 1_000_000, np.cumsum(SEARCHES)
    while True:
        length = np.cumsum(1 + pick(edges, uniform(shop.config.seed, "searches", np.arange(first, first + at_once))))
        if length[-1] >= searches:
            return float(max(1, first + int(np.searchsorted(length, searches))))
        searches -= float(length[-1])
        first += at_once
