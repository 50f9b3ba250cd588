"""Blind side-by-side review: sheets for people to fill, and what the filled ones say.

Two systems' results for the same queries stand side by side at the same positions; which side is
which is drawn for each row and kept in a key that raters do not get. Items are rated Good, Fair or
Bad (ei-SRC, section 11, Table 7).
"""

from __future__ import annotations

import csv
import io
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from pertinent.artifact import read_json, write_json, write_text
from pertinent.config import Config
from pertinent.data.readers import read_table
from pertinent.data.splits import bucket
from pertinent.errors import ConfigError, DataError
from pertinent.evaluation.compare import sign_flip
from pertinent.evaluation.pooled import BLOCK, Floats
from pertinent.evaluation.resample import Estimate, draws, finite, interval
from pertinent.page import page, section, table
from pertinent.text import normalize

SHEET, KEY, PAGE = "sheet.csv", "key.json", "sheet.html"
RATINGS = ("good", "fair", "bad")
_COLUMNS = ("row", "query", "position", "left", "left_rating", "right", "right_rating")
_FORMAT = 1


class ReviewConfig(Config):
    """Settings of ``pertinent review make``.

    ``control`` and ``treatment`` are tables with ``query``, ``title`` and, where the rows are not in
    order, ``position``: what each system shows. ``positions`` counts from the top of the page;
    ``queries`` are drawn from those that both have. Rows where both show the same text are left out
    unless ``same``.
    """

    control: str
    treatment: str
    columns: dict[str, str] = {}
    queries: int = Field(100, ge=1)
    positions: int = Field(5, ge=1)
    same: bool = False
    seed: int = 0
    out: str


class ReviewReadConfig(Config):
    """Settings of ``pertinent review read``: the folder with the key, and the filled sheets, one a rater."""

    folder: str
    sheets: tuple[str, ...] = ()
    resamples: int = Field(2000, ge=100)
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Sheet:
    """A review that was made: rows to rate and where they are."""

    folder: str
    rows: int
    queries: int
    same: int

    def plain(self) -> dict[str, Any]:
        """JSON-able."""
        return {"folder": self.folder, "rows": self.rows, "queries": self.queries, "same_on_both_sides": self.same}


@dataclass(frozen=True, slots=True)
class Share:
    """How often each system's items have one rating, and the change relative to the control's own share."""

    control: float
    treatment: float
    change: Estimate

    def plain(self) -> dict[str, Any]:
        """JSON-able."""
        return {"control": finite(self.control), "treatment": finite(self.treatment), "change": self.change.plain()}


@dataclass(frozen=True, slots=True)
class ReviewResult:
    """What raters said: wins of the treatment, ties, losses; their balance; the shares of the ratings.

    ``balance`` is wins less losses over all rated rows, with its interval over resampled queries;
    ``agreement`` is the share of items that two raters rated alike, NaN with one rater.
    """

    rows: int
    unrated: int
    raters: int
    wins: int
    ties: int
    losses: int
    balance: Estimate
    p_value: float
    shares: dict[str, Share]
    agreement: float
    notes: list[str] = field(default_factory=list)

    def plain(self) -> dict[str, Any]:
        """JSON-able."""
        return {
            **{name: getattr(self, name) for name in ("rows", "unrated", "raters", "wins", "ties", "losses", "notes")},
            "balance": self.balance.plain(),
            "p_value": finite(self.p_value),
            "agreement": finite(self.agreement),
            "shares": {name: share.plain() for name, share in self.shares.items()},
        }


def make_review(config: ReviewConfig) -> Sheet:
    """Sheets in the folder ``out``: ``sheet.csv`` to fill, ``sheet.html`` to read, ``key.json`` to keep away.

    Raises ConfigError where both systems have no query in common, or an existing review is in the folder.
    """
    out = Path(config.out)
    if (out / KEY).exists():
        raise ConfigError(f"out: {out} holds a review already; choose another folder, or remove it")
    shown = [_lists(path, config) for path in (config.control, config.treatment)]
    common = sorted(set(shown[0]) & set(shown[1]), key=lambda query: bucket(query, f"{config.seed}query"))
    if not common:
        raise ConfigError("the two systems have no query in common; there is nothing to compare")
    rows: list[tuple[str, ...]] = []
    key: dict[str, str] = {}
    same = 0
    for query in common[: config.queries]:
        for place, titles in enumerate(zip(shown[0][query], shown[1][query], strict=False)):
            if place >= config.positions:
                break
            if normalize(titles[0]) == normalize(titles[1]) and not config.same:
                same += 1
                continue
            number = f"{len(rows) + 1}"
            turned = bucket(f"{query}\n{place}", f"{config.seed}side") < 0.5
            left, right = titles[::-1] if turned else titles
            rows.append((number, query, str(place + 1), left, "", right, ""))
            key[number] = "treatment" if turned else "control"
    if not rows:
        raise ConfigError("both systems show the same everywhere; with same: true the rows are rated all the same")
    out.mkdir(parents=True, exist_ok=True)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_COLUMNS)
    writer.writerows([[_harmless(cell) for cell in row] for row in rows])
    write_text(out / SHEET, "\ufeff" + text.getvalue())  # spreadsheets read UTF-8 with a mark in front
    write_text(out / PAGE, _page(rows))
    write_json(
        out / KEY,
        {
            "format": _FORMAT,
            "seed": config.seed,
            "left": key,
            "queries": {row[0]: row[1] for row in rows},
            "same_on_both_sides": same,
        },
    )
    return Sheet(str(out), len(rows), len({row[1] for row in rows}), same)


def read_review(config: ReviewReadConfig) -> ReviewResult:
    """What the filled sheets say; left out, the one in the folder.

    Raises DataError for a rating that is none, for rows that are not in the key, and where nothing is rated.
    """
    folder = Path(config.folder)
    if not (folder / KEY).is_file():
        raise ConfigError(f"{folder}: has no {KEY}, so nobody knows which side is which; give the folder of the review")
    key = read_json(folder / KEY)
    paths = [Path(path) for path in config.sheets] or [folder / SHEET]
    ratings = [_ratings(path, key["left"]) for path in paths]
    if not any(ratings):
        fix = "fill left_rating and right_rating with good, fair or bad (or g, f, b)"
        raise DataError("no row has both ratings", path=" and ".join(map(str, paths)), fix=fix)
    return summarize(key, ratings, config.resamples, config.seed)


def summarize(
    key: dict[str, Any], ratings: Sequence[dict[str, tuple[int, int]]], resamples: int, seed: int
) -> ReviewResult:
    """The result of sheets: of each rater (control, treatment) ratings by row, as places in good, fair, bad."""
    names = [(rater, row) for rater, sheet in enumerate(ratings) for row in sheet]
    both = np.array([ratings[rater][row] for rater, row in names], dtype=np.int64).reshape(-1, 2)
    queries = list(dict.fromkeys(key["queries"][row] for _, row in names))
    of = np.array([queries.index(key["queries"][row]) for _, row in names], dtype=np.int64)
    gain = np.sign(both[:, 0] - both[:, 1]).astype(np.float64)  # good is 0, so a larger control is a win
    counts = Counter(gain.tolist())
    size = len(queries)
    by_query = np.bincount(of, gain, minlength=size).astype(np.float64) if size else np.zeros(0)
    judged = np.bincount(of, minlength=size).astype(np.float64)
    drawn = list(draws(size, resamples, seed, max(1, BLOCK // max(1, size)))) if size > 1 else []
    spread = np.concatenate([(c @ by_query) / (c @ judged) for c in drawn]) if drawn else np.zeros(0)
    value = float(gain.mean()) if len(gain) else math.nan
    shares = {name: _share(both == place, of, size, drawn) for place, name in enumerate(RATINGS)}
    total = len(key["left"]) * len(ratings)
    notes = []
    if len(gain) < total:
        notes.append(f"{total - len(gain):,} of {total:,} rows have no rating and are left out.")
    if key.get("same_on_both_sides"):
        notes.append(
            f"{key['same_on_both_sides']:,} rows that show the same on both sides were not rated: the shares are "
            "those of the rows that differ."
        )
    return ReviewResult(
        rows=len(gain),
        unrated=total - len(gain),
        raters=len(ratings),
        wins=counts[1.0],
        ties=counts[0.0],
        losses=counts[-1.0],
        balance=Estimate(value, *interval(spread)),
        p_value=sign_flip(by_query, resamples, seed) if size else math.nan,
        shares=shares,
        agreement=_agreement(ratings),
        notes=notes,
    )


def _share(rated: NDArray[np.bool_], of: NDArray[np.int64], size: int, drawn: Sequence[Floats]) -> Share:
    if not len(rated):
        return Share(math.nan, math.nan, Estimate(math.nan, math.nan, math.nan))
    control, treatment = rated.mean(axis=0).tolist()
    sums = [np.bincount(of, rated[:, side], minlength=size) for side in (0, 1)]
    with np.errstate(divide="ignore", invalid="ignore"):
        spread = [(c @ sums[1]) / (c @ sums[0]) - 1 for c in drawn]
        values = np.concatenate(spread) if spread else np.zeros(0)
    change = treatment / control - 1 if control else math.nan
    return Share(control, treatment, Estimate(change, *interval(np.where(np.isfinite(values), values, np.nan))))


def _agreement(ratings: Sequence[dict[str, tuple[int, int]]]) -> float:
    alike = [
        ratings[a][row][side] == ratings[b][row][side]
        for a in range(len(ratings))
        for b in range(a)
        for row in ratings[a].keys() & ratings[b].keys()
        for side in (0, 1)
    ]
    return float(np.mean(alike)) if alike else math.nan


def _lists(path: str, config: ReviewConfig) -> dict[str, list[str]]:
    """The titles of each query, from the top."""
    rows = read_table(path, config.columns)
    queries, titles = rows.need_texts("query"), rows.need_texts("title")
    places = list(range(len(rows)))
    if rows.has("position"):
        fix = "give the place on the page"
        places = [int(rows.number(row, "position", 0, 1e9, fix)) for row in range(len(rows))]
    found: dict[str, list[tuple[int, int, str]]] = {}
    for row, (query, title, place) in enumerate(zip(queries, titles, places, strict=True)):
        found.setdefault(query, []).append((place, row, title))
    return {query: [title for _, _, title in sorted(entries)] for query, entries in found.items()}


def _ratings(path: Path, left: dict[str, str]) -> dict[str, tuple[int, int]]:
    rows = read_table(path)
    for column in ("row", "left_rating", "right_rating"):
        rows.column(column)
    found: dict[str, tuple[int, int]] = {}
    for row in range(len(rows)):
        name = rows.need_text(row, "row")
        if name not in left:
            raise rows.wrong(row, "row", "is not a row of this review", "give the sheets that were made with its key")
        if name in found:
            raise rows.wrong(row, "row", "occurs twice", "keep one line for each row")
        cells = [rows.text(row, column) for column in ("left_rating", "right_rating")]
        if None in cells:
            continue  # not rated, or one side only: it says nothing about the difference
        first, second = (_rating(rows, row, column) for column in ("left_rating", "right_rating"))
        found[name] = (first, second) if left[name] == "control" else (second, first)
    return found


def _rating(rows: Any, row: int, column: str) -> int:
    word = normalize(rows.text(row, column) or "")
    for place, name in enumerate(RATINGS):
        if word in (name, name[0]):
            return place
    error: DataError = rows.wrong(row, column, "is not a rating", "give good, fair or bad (or g, f, b)")
    raise error


def _harmless(cell: str) -> str:
    """A cell that no spreadsheet takes for a formula.

    >>> _harmless("=1+1"), _harmless("mug")
    ("'=1+1", 'mug')
    """
    return f"'{cell}" if cell[:1] in ("=", "+", "-", "@", "\t", "\r") else cell


def _page(rows: Sequence[Sequence[str]]) -> str:
    intro = (
        "Rate each text for its query in sheet.csv: good where it is what was asked for, with all that the query "
        "names; fair where it is the same kind of thing but something named is missing; bad otherwise."
    )
    cells = [[escape(cell) for cell in (row[0], row[1], row[2], row[3], row[5])] for row in rows]
    return page(
        "Side-by-side review",
        [
            f"<header><h1>Side-by-side review</h1><p>{escape(intro)}</p></header>",
            section("Rows", table("What to rate", ("row", "query", "position", "left", "right"), cells)),
        ],
    )
