"""Two arms of an online test: click-through, conversion and payments, with intervals by user.

Users are what was dealt to the arms, so users are what varies: every metric is a function of sums over
users, and its error follows from what each user adds to it (the delta method), or from drawing users
again. Events of one user are never taken as independent.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from html import escape
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from pertinent.artifact import write_json, write_text
from pertinent.charts import Axis, intervals, round_ticks
from pertinent.config import Config
from pertinent.data.readers import read_table
from pertinent.data.tables import ITEM_COLUMNS, JUDGMENT_COLUMNS, Table
from pertinent.errors import ConfigError, DataError
from pertinent.evaluation.pooled import BLOCK, Floats
from pertinent.evaluation.report import check_report_path
from pertinent.evaluation.resample import draws, finite, interval
from pertinent.page import facts as fact_list
from pertinent.page import grid, page, section, table
from pertinent.records import Level

Ints = NDArray[np.int64]
LEVELS: tuple[str, ...] = get_args(Level)
TEXTS = {
    "ctr": "clicks of 100 views",
    "cvr": "payments of 100 clicks",
    "pay": "revenue a user, or payments where the log has no revenue",
    "ctr at equal positions": "clicks of 100 views, each position weighing as in both arms together",
}
_Z = 1.959963984540054
# A sample-ratio mismatch less likely than this is no accident.
ALARM = 0.001


class CompareConfig(Config):
    """Settings of ``pertinent compare``.

    The log has ``user_id``, ``arm`` and ``level`` (view, click, cart, contact, order, pay), and may have
    ``position`` (from 0) and ``revenue``, on rows of level pay. ``control`` and ``treatment`` name the
    arms; left out, they are the two of the log in order of the alphabet. ``treatment_share`` is the
    share of users that were meant to be in the treatment.
    """

    log: str
    control: str | None = None
    treatment: str | None = None
    columns: dict[str, str] = {}
    treatment_share: float = Field(0.5, gt=0.0, lt=1.0)
    method: Literal["delta", "bootstrap"] = "delta"
    resamples: int = Field(2000, ge=100)
    seed: int = 0
    report: str | None = None


@dataclass(frozen=True, slots=True)
class ArmLog:
    """Events of two arms. ``users`` are numbers from 0, ``treated`` says which arm each user is in.

    ``levels`` are places in view, click, cart, contact, order, pay; ``positions`` -1 where unknown.
    """

    users: Ints  # [events]
    levels: Ints  # [events]
    positions: Ints  # [events]
    revenue: Floats  # [events]
    treated: NDArray[np.bool_]  # [users]


@dataclass(frozen=True, slots=True)
class Lift:
    """One metric in both arms, and by what share the treatment is above the control, with its interval."""

    control: float
    treatment: float
    lift: float
    low: float
    high: float
    p_value: float

    def plain(self) -> dict[str, float | None]:
        """JSON-able: None where undefined."""
        names = ("control", "treatment", "lift", "low", "high", "p_value")
        return {name: finite(getattr(self, name)) for name in names}


@dataclass(frozen=True, slots=True)
class ArmResult:
    """What a test of two arms found. ``sample_ratio_p`` tells whether the dealing of users went as planned."""

    control: str
    treatment: str
    users: tuple[int, int]
    lifts: dict[str, Lift]
    sample_ratio_p: float
    method: str
    notes: list[str] = field(default_factory=list)

    def plain(self) -> dict[str, Any]:
        """JSON-able."""
        return {
            "control": self.control,
            "treatment": self.treatment,
            "users": {"control": self.users[0], "treatment": self.users[1]},
            "metrics": {name: lift.plain() for name, lift in self.lifts.items()},
            "sample_ratio_p": finite(self.sample_ratio_p),
            "method": self.method,
            "notes": self.notes,
        }

    def rows(self) -> list[list[str]]:
        """Metric, control, treatment, lift, interval and p-value, as text."""
        return [
            [
                name,
                _value(each.control, name),
                _value(each.treatment, name),
                _percent(each.lift),
                f"{_percent(each.low)} to {_percent(each.high)}" if math.isfinite(each.low) else "-",
                f"{each.p_value:.4f}" if math.isfinite(each.p_value) else "-",
            ]
            for name, each in self.lifts.items()
        ]


HEAD = ("metric", "control", "treatment", "lift", "95% interval", "p-value")


def compare_log(config: CompareConfig) -> ArmResult:
    """The comparison that a config describes; writes its report where one is asked for.

    Raises DataError for what is wrong in the log, ConfigError for arms that are not in it.
    """
    if config.report is not None:
        check_report_path(config.report)
    log, names, notes = read_arms(config)
    result = compare_arms(
        log,
        names=names,
        treatment_share=config.treatment_share,
        method=config.method,
        resamples=config.resamples,
        seed=config.seed,
        notes=notes,
    )
    if config.report is not None:
        Path(config.report).parent.mkdir(parents=True, exist_ok=True)
        write_text(config.report, _page(result))
        write_json(Path(config.report).with_suffix(".json"), result.plain())
    return result


def read_arms(config: CompareConfig) -> tuple[ArmLog, tuple[str, str], list[str]]:
    """The log of two arms, their names, and what a reader must know of it.

    Users seen in both arms are left out: nobody can say which one they answer to.
    """
    rows = read_table(config.log, config.columns)
    _refuse_no_log(rows)
    users, arms = rows.need_texts("user_id"), rows.need_texts("arm")
    names = _arm_names(config, sorted(set(arms)))
    levels = np.array([_level(rows, row) for row in range(len(rows))], dtype=np.int64)
    positions = np.full(len(rows), -1, dtype=np.int64)
    if rows.has("position"):
        cells = rows.columns["position"]
        for row, cell in enumerate(cells):
            if cell not in (None, ""):
                positions[row] = int(rows.number(row, "position", 0, 1e6, "give a place on the page, from 0"))
    revenue = np.full(len(rows), np.nan)
    if rows.has("revenue"):
        for row, cell in enumerate(rows.columns["revenue"]):
            if cell not in (None, ""):
                revenue[row] = rows.number(row, "revenue", -1e12, 1e12, "give an amount")
    seen: dict[str, set[str]] = {}
    for user, arm in zip(users, arms, strict=True):
        if arm in names:
            seen.setdefault(user, set()).add(arm)
    both = {user for user, where in seen.items() if len(where) > 1}
    kept = {user: number for number, user in enumerate(user for user in seen if user not in both)}
    chosen = np.array([arm in names and user in kept for user, arm in zip(users, arms, strict=True)], dtype=bool)
    notes = []
    if both:
        notes.append(f"{len(both):,} of {len(seen):,} users were in both arms and are left out.")
    if not chosen.all():
        notes.append(f"{int((~chosen).sum()):,} of {len(chosen):,} rows are of other arms or of such users.")
    log = ArmLog(
        users=np.array([kept[user] for user, use in zip(users, chosen, strict=True) if use], dtype=np.int64),
        levels=levels[chosen],
        positions=positions[chosen],
        revenue=revenue[chosen],
        treated=np.array([names[1] in seen[user] for user in kept], dtype=bool),
    )
    return log, names, notes


def compare_arms(
    log: ArmLog,
    *,
    names: tuple[str, str] = ("control", "treatment"),
    treatment_share: float = 0.5,
    method: Literal["delta", "bootstrap"] = "delta",
    resamples: int = 2000,
    seed: int = 0,
    notes: Sequence[str] = (),
) -> ArmResult:
    """Every metric of both arms and its lift (ei-SRC, section 11, Table 6).

    Raises DataError where an arm has fewer than two users.
    """
    counts = (int((~log.treated).sum()), int(log.treated.sum()))
    if min(counts) < 2:
        raise DataError(f"{names[0]} has {counts[0]} users and {names[1]} {counts[1]}; each needs two or more")
    notes = list(notes)
    parts = _metric_parts(log, notes)
    p_ratio = sample_ratio_p(counts, treatment_share)
    if p_ratio < ALARM:
        notes.append(
            f"Sample-ratio mismatch: {counts[0]:,} and {counts[1]:,} users where {1 - treatment_share:.0%} and "
            f"{treatment_share:.0%} were planned (p = {p_ratio:.1g}). Something loses users of one arm: do not trust "
            "the lifts before it is found."
        )
    lifts = {
        name: _delta(part, log.treated) if method == "delta" else _bootstrap(part, log.treated, resamples, seed)
        for name, part in parts.items()
    }
    return ArmResult(names[0], names[1], counts, lifts, p_ratio, method, notes)


def sample_ratio_p(users: tuple[int, int], treatment_share: float) -> float:
    """The chance of a split at least as uneven as this one, by the chi-square test with one degree of freedom.

    >>> round(sample_ratio_p((5000, 5000), 0.5), 3), sample_ratio_p((5000, 5600), 0.5) < 0.001
    (1.0, True)
    """
    total = sum(users)
    expected = (total * (1 - treatment_share), total * treatment_share)
    statistic = sum((seen - wanted) ** 2 / wanted for seen, wanted in zip(users, expected, strict=True))
    return math.erfc(math.sqrt(statistic / 2))


# A metric is a sum of weights times (sum of tops / sum of bottoms), each summed over the users of an arm.
_Part = list[tuple[float, Floats, Floats]]


def _metric_parts(log: ArmLog, notes: list[str]) -> dict[str, _Part]:
    size = len(log.treated)

    def by_user(chosen: NDArray[np.bool_], weights: Floats | None = None) -> Floats:
        return np.bincount(log.users[chosen], None if weights is None else weights[chosen], minlength=size).astype(
            float
        )

    level = {name: log.levels == number for number, name in enumerate(LEVELS)}
    views, clicks, pays = (by_user(level[name]) for name in ("view", "click", "pay"))
    known = level["pay"] & ~np.isnan(log.revenue)
    if known.any():
        money = by_user(known, log.revenue)
        if missing := int((level["pay"] & np.isnan(log.revenue)).sum()):
            notes.append(f"{missing:,} payments have no revenue and count as 0.")
    else:
        money = pays
        notes.append("The log has no revenue: pay is payments a user.")
    parts: dict[str, _Part] = {
        "ctr": [(1.0, clicks, views)],
        "cvr": [(1.0, pays, clicks)],
        "pay": [(1.0, money, np.ones(size))],
    }
    placed = log.positions >= 0
    weights = np.bincount(log.positions[placed & level["view"]])
    in_both = [
        position
        for position in np.flatnonzero(weights)
        if len(set(log.treated[log.users[level["view"] & (log.positions == position)]].tolist())) == 2
    ]
    if not in_both:
        notes.append("No position has views in both arms: there is no comparison at equal positions.")
        return parts
    total = float(weights[in_both].sum())
    if total < weights.sum():
        notes.append(
            f"Positions with views in one arm only, {1 - total / weights.sum():.1%} of the views, are left out."
        )
    parts["ctr at equal positions"] = [
        (
            float(weights[position]) / total,
            by_user(level["click"] & (log.positions == position)),
            by_user(level["view"] & (log.positions == position)),
        )
        for position in in_both
    ]
    return parts


def _delta(part: _Part, treated: NDArray[np.bool_]) -> Lift:
    sides = [_side(part, chosen) for chosen in (~treated, treated)]
    (control, control_error), (treatment, treatment_error) = sides
    if not (control > 0 and treatment > 0):
        lift = treatment / control - 1 if control > 0 else math.nan
        return Lift(control, treatment, lift, math.nan, math.nan, math.nan)
    # The logarithm of the ratio is nearer to normal than the ratio, and its interval never reaches -100 %.
    middle = math.log(treatment / control)
    error = math.hypot(control_error / control, treatment_error / treatment)
    p_value = math.erfc(abs(middle) / error / math.sqrt(2)) if error else math.nan
    low, high = (math.expm1(middle + side * _Z * error) for side in (-1, 1))
    return Lift(control, treatment, math.expm1(middle), low, high, p_value)


def _side(part: _Part, chosen: NDArray[np.bool_]) -> tuple[float, float]:
    """The metric of one arm and its standard error, by what each user adds (delta method)."""
    value, size = 0.0, int(chosen.sum())
    influence = np.zeros(size)
    for weight, top, bottom in part:
        mean = bottom[chosen].mean()
        ratio = top[chosen].mean() / mean if mean > 0 else math.nan
        value += weight * ratio
        influence += weight * (top[chosen] - ratio * bottom[chosen]) / mean if mean > 0 else math.nan
    return float(value), float(influence.std(ddof=1) / math.sqrt(size))


def _bootstrap(part: _Part, treated: NDArray[np.bool_], resamples: int, seed: int) -> Lift:
    drawn = []
    for number, chosen in enumerate((~treated, treated)):
        size = int(chosen.sum())
        values = [
            sum(weight * _ratio(counts @ top[chosen], counts @ bottom[chosen]) for weight, top, bottom in part)
            for counts in draws(size, resamples, seed * 2 + number, max(1, BLOCK // size))
        ]
        drawn.append(np.concatenate(values))
    plain = _delta(part, treated)
    with np.errstate(divide="ignore", invalid="ignore"):
        lifts = np.where(drawn[0] > 0, drawn[1] / drawn[0] - 1, np.nan)
    known = lifts[~np.isnan(lifts)]
    beyond = min(int((known <= 0).sum()), int((known >= 0).sum()))
    p_value = min(1.0, 2 * (beyond + 1) / (len(known) + 1)) if len(known) > 1 else math.nan
    return Lift(plain.control, plain.treatment, plain.lift, *interval(lifts), p_value)


def _ratio(top: Floats, bottom: Floats) -> Floats:
    return np.asarray(np.divide(top, bottom, out=np.full(len(top), np.nan), where=bottom > 0))


def _arm_names(config: CompareConfig, found: list[str]) -> tuple[str, str]:
    wanted = (config.control, config.treatment)
    missing = [name for name in wanted if name is not None and name not in found]
    if missing:
        raise ConfigError(f"the log has no arm {missing[0]!r}; it has {', '.join(found) or 'none'}")
    if wanted[0] is not None and wanted[0] == wanted[1]:
        raise ConfigError(f"control and treatment are both {wanted[0]!r}; give two arms")
    rest = [name for name in found if name not in wanted]
    if wanted.count(None) > len(rest) or (None in wanted and len(found) != 2):
        if len(found) < 2:
            raise ConfigError(
                f"the log has one arm ({', '.join(found) or 'without a name'}); a comparison needs the events of two, "
                "told apart by the column 'arm'"
            )
        raise ConfigError(
            f"the log has {len(found)} arms ({', '.join(found)}); name two of them with --control and --treatment"
        )
    control = wanted[0] if wanted[0] is not None else rest.pop(0)
    return control, wanted[1] if wanted[1] is not None else rest.pop(0)


def _refuse_no_log(rows: Table) -> None:
    """Raise DataError for a table that lacks a column which every log of two arms has."""
    missing = [name for name in ("user_id", "arm", "level") if not rows.has(name)]
    if not missing:
        return
    # A column with a meaning of its own is no other column under a wrong name.
    others = [name for name in rows.columns if name not in ITEM_COLUMNS and name not in JUDGMENT_COLUMNS]
    maps = [f"{next(iter(get_close_matches(name, others, n=1)), 'yours')}={name}" for name in missing]
    there = ", ".join(list(rows.columns)[:20])
    raise DataError(
        f"has no column{'s' if len(missing) > 1 else ''} {', '.join(missing)}; it has {there}",
        path=rows.path,
        fix=f"a log of two arms has user_id, arm and level on each row; if yours are named otherwise: "
        f"--columns {','.join(maps)}",
    )


def _level(rows: Table, row: int) -> int:
    word = rows.need_text(row, "level")
    if word not in LEVELS:
        raise rows.wrong(row, "level", "is not a level", f"allowed: {', '.join(LEVELS)}")
    return LEVELS.index(word)


def _value(value: float, metric: str) -> str:
    if not math.isfinite(value):
        return "-"
    return f"{value:,.3f}" if metric == "pay" else f"{100 * value:.3f}%"


def _percent(value: float) -> str:
    return f"{100 * value:+.2f}%" if math.isfinite(value) else "-"


def _page(result: ArmResult) -> str:
    lifts = [(name, (each.lift, each.low, each.high), 0) for name, each in result.lifts.items()]
    known = [value for _, each, _ in lifts for value in each if math.isfinite(value)] + [0.0]
    pad = max(0.005, (max(known) - min(known)) * 0.05)
    axis = Axis(min(known) - pad, max(known) + pad, "lift", round_ticks(min(known) - pad, max(known) + pad))
    given = {
        "control": f"{result.control}, {result.users[0]:,} users",
        "treatment": f"{result.treatment}, {result.users[1]:,} users",
        "sample-ratio check": f"p = {result.sample_ratio_p:.3f}",
        "intervals": f"95%, by user, {result.method}",
    }
    notes = [*(f"{name}: {TEXTS[name]}." for name in result.lifts), *result.notes]
    title = f"{result.treatment} against {result.control}"
    return page(
        title,
        [
            f"<header><h1>{escape(title)}</h1>{fact_list(given)}</header>",
            section(
                "Lifts",
                grid([intervals("Lift", "The treatment over the control, with 95% intervals.", axis, lifts)]),
                table("Both arms", HEAD, [[escape(cell) for cell in row] for row in result.rows()]),
                '<ul class="notes">' + "".join(f"<li>{escape(note)}</li>" for note in notes) + "</ul>",
            ),
        ],
    )
