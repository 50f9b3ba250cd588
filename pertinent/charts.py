"""Small charts as inline SVG text: no script, no outside file, colors from the page's style sheet.

Series are told apart by class ``s0`` to ``s5`` (color) and by dashes, so that a gray print still
reads. Every chart has a title and a description for those who listen to it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape
from typing import NamedTuple

WIDTH, HEIGHT = 360, 270
LEFT, RIGHT, TOP, BOTTOM = 46, 350, 12, 226
COLORS = 6
NAME_WIDTH, NAME_HEIGHT = 130, 13
BAR_NAMES, BAR_VALUES = 60, 90
INTERVAL_NAMES, ROW_HEIGHT = 170, 18
DASHES = ("", "7 3", "2 3", "9 3 2 3")

Point = tuple[float, float]


class Series(NamedTuple):
    """A named line or cloud of points; not finite points break the line."""

    name: str
    points: Sequence[Point]


class Axis(NamedTuple):
    """A range of values, its label, and where ticks stand."""

    low: float
    high: float
    label: str
    ticks: Sequence[float]
    log: bool = False

    def place(self, value: float, start: float, end: float) -> float:
        """Where a value stands between two ends of the drawing.

        >>> Axis(0, 1, "", ()).place(0.5, 10, 20), Axis(1, 100, "", (), log=True).place(10, 0, 2)
        (15.0, 1.0)
        """
        low, high, at = (
            (math.log(v) for v in (self.low, self.high, value)) if self.log else (self.low, self.high, value)
        )
        return start + (at - low) / (high - low) * (end - start)


SHARE = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)


def line_chart(
    title: str, text: str, x: Axis, y: Axis, series: Sequence[Series], diagonal: bool = False, dots: bool = False
) -> str:
    """A figure with one line a series; ``diagonal`` draws the line of chance or of perfect calibration."""
    across, up = _places(x, y)
    body = [_axes(x, y)]
    if diagonal:
        body.append(_line([(across(x.low), up(y.low)), (across(x.high), up(y.high))], 'class="guide"'))
    for number, each in enumerate(series):
        points = [(across(a), up(b)) for a, b in each.points if math.isfinite(a) and math.isfinite(b)]
        if points:
            body.append(_line(points, f'class="line {color(number)}"{_dash(number)}'))
        if dots:
            body += [f'<circle class="dot {color(number)}" cx="{a:.1f}" cy="{b:.1f}" r="3"/>' for a, b in points]
    return _figure(title, text, "".join(body), [each.name for each in series])


def scatter(title: str, text: str, x: Axis, y: Axis, series: Sequence[Series]) -> str:
    """A figure with one dot a series; a second and third point are the ends of its vertical interval."""
    across, up = _places(x, y)
    body = [_axes(x, y)]
    taken: list[Point] = []
    for number, each in enumerate(series):
        (a, b), *ends = [(across(a), up(b)) for a, b in each.points]
        if len(ends) == 2 and all(math.isfinite(end) for _, end in ends):
            body.append(_line(ends, f'class="line {color(number)}"'))
        body.append(f'<circle class="dot {color(number)}" cx="{a:.1f}" cy="{b:.1f}" r="5"/>')
        # Names go to the side that has room, and above one that is there already.
        anchor, gap = ("end", -9) if a > (LEFT + RIGHT) / 2 else ("start", 9)
        while any(abs(a - there[0]) < NAME_WIDTH and abs(b - there[1]) < NAME_HEIGHT for there in taken):
            b -= 3
        taken.append((a, b))
        name = each.name if len(each.name) <= 22 else each.name[:21] + "…"
        body.append(
            f'<text class="name" x="{a + gap:.1f}" y="{b + 4:.1f}" text-anchor="{anchor}">{escape(name)}</text>'
        )
    return _figure(title, text, "".join(body), [])


def ridges(title: str, text: str, x: Axis, rows: Sequence[tuple[str, Sequence[float]]], number: int) -> str:
    """A figure with one histogram a row, each to its own height, in the color of series ``number``.

    ``rows`` are names and shares of equal bins over the whole of ``x``.
    """
    body = [_axes(x, None)]
    step = (BOTTOM - TOP) / max(1, len(rows))
    for row, (name, shares) in enumerate(rows):
        base, highest = TOP + step * (row + 1), max(max(shares, default=0.0), 1e-9)
        width = (RIGHT - LEFT) / max(1, len(shares))
        for place, share in enumerate(shares):
            if share > 0:
                tall = share / highest * (step - 16)
                body.append(
                    f'<rect class="bar {color(number)}" x="{LEFT + place * width + 0.5:.1f}" y="{base - tall:.1f}" '
                    f'width="{width - 1:.1f}" height="{tall:.1f}"/>'
                )
        body.append(f'<line class="axis" x1="{LEFT}" x2="{RIGHT}" y1="{base:.1f}" y2="{base:.1f}"/>')
        body.append(f'<text class="name" x="{LEFT + 3}" y="{base - step + 13:.1f}">{escape(name)}</text>')
    return _figure(title, text, "".join(body), [])


def bars(title: str, text: str, rows: Sequence[tuple[str, float, str]]) -> str:
    """A figure with one bar a row, as long as its value: ``rows`` are names, values from 0, and what to print.

    >>> bars("Levels", "", [("click", 3, "3"), ("pay", 0, "0")]).count("<rect")
    1
    """
    body = []
    step = (BOTTOM - TOP) / max(1, len(rows))
    most = max((value for _, value, _ in rows), default=0)
    for row, (name, value, printed) in enumerate(rows):
        top = TOP + step * row
        length = value / most * (RIGHT - BAR_NAMES - BAR_VALUES) if most > 0 else 0
        if length > 0:
            body.append(
                f'<rect class="bar {color(0)}" x="{BAR_NAMES}" y="{top + step * 0.15:.1f}" '
                f'width="{max(length, 1):.1f}" height="{step * 0.7:.1f}"/>'
            )
        middle = f"{top + step * 0.5 + 4:.1f}"
        body.append(f'<text class="name" x="{BAR_NAMES - 6}" y="{middle}" text-anchor="end">{escape(name)}</text>')
        body.append(f'<text x="{BAR_NAMES + length + 6:.1f}" y="{middle}">{escape(printed)}</text>')
    return _figure(title, text, "".join(body), [])


def intervals(title: str, text: str, x: Axis, rows: Sequence[tuple[str, Sequence[float], int]]) -> str:
    """A figure with one dot and its interval a row: names, (value, low, high), and the number of their color.

    The figure is as high as its rows need; zero, where it is in sight, has a line.

    >>> intervals("AUC", "", Axis(0, 1, "auc", ()), [("ours", (0.7, 0.6, 0.8), 0)]).count("<circle")
    1
    """
    bottom = TOP + ROW_HEIGHT * max(1, len(rows))
    body = []
    for tick in x.ticks:
        at = x.place(tick, INTERVAL_NAMES, RIGHT)
        kind = "guide" if tick == 0 else "grid"
        body.append(f'<line class="{kind}" x1="{at:.1f}" x2="{at:.1f}" y1="{TOP}" y2="{bottom}"/>')
        body.append(f'<text x="{at:.1f}" y="{bottom + 16}" text-anchor="middle">{tick:g}</text>')
    for row, (name, (value, low, high), number) in enumerate(rows):
        middle = TOP + ROW_HEIGHT * (row + 0.5)
        shown = name if len(name) <= 30 else name[:29] + "…"
        body.append(
            f'<text class="name" x="{INTERVAL_NAMES - 6}" y="{middle + 4:.1f}" text-anchor="end">{escape(shown)}</text>'
        )
        if math.isfinite(low) and math.isfinite(high):
            ends = [(x.place(end, INTERVAL_NAMES, RIGHT), middle) for end in (low, high)]
            body.append(_line(ends, f'class="line {color(number)}"'))
        if math.isfinite(value):
            at = x.place(value, INTERVAL_NAMES, RIGHT)
            body.append(f'<circle class="dot {color(number)}" cx="{at:.1f}" cy="{middle:.1f}" r="4"/>')
    middle = (INTERVAL_NAMES + RIGHT) / 2
    body.append(f'<text x="{middle}" y="{bottom + 34}" text-anchor="middle">{escape(x.label)}</text>')
    return _figure(title, text, "".join(body), [], height=bottom + 44)


def color(number: int) -> str:
    """The class that colors a series.

    >>> color(0), color(7)
    ('s0', 's1')
    """
    return f"s{number % COLORS}"


def round_ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers within a range, at most ``most``.

    >>> round_ticks(0.52, 0.9)
    [0.6, 0.7, 0.8, 0.9]
    """
    if not high > low:
        return [low]
    size = 10.0 ** math.floor(math.log10((high - low) / most))
    step = next(size * times for times in (1, 2, 5, 10, 20) if (high - low) / (size * times) <= most - 1 + 1e-9)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(step * n, 10) for n in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """1, 2, 5 and their tens within a range; only the tens where it is wide.

    >>> log_ticks(0.9, 12)
    [1.0, 2.0, 5.0, 10.0]
    """
    times = (1, 2, 5) if high / low < 300 else (1,)
    tens = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [float(f"{n}e{ten}") for ten in tens for n in times]
    return [tick for tick in ticks if low <= tick <= high]


def _places(x: Axis, y: Axis) -> tuple[Callable[[float], float], Callable[[float], float]]:
    return (lambda a: x.place(a, LEFT, RIGHT)), (lambda b: y.place(b, BOTTOM, TOP))


def _axes(x: Axis, y: Axis | None) -> str:
    parts = []
    for tick in x.ticks:
        at = x.place(tick, LEFT, RIGHT)
        parts.append(f'<line class="grid" x1="{at:.1f}" x2="{at:.1f}" y1="{TOP}" y2="{BOTTOM}"/>')
        parts.append(f'<text x="{at:.1f}" y="{BOTTOM + 16}" text-anchor="middle">{tick:g}</text>')
    for tick in y.ticks if y is not None else ():
        assert y is not None
        at = y.place(tick, BOTTOM, TOP)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{tick:g}</text>')
    parts.append(f'<text x="{(LEFT + RIGHT) / 2}" y="{HEIGHT - 8}" text-anchor="middle">{escape(x.label)}</text>')
    if y is not None:
        middle = (TOP + BOTTOM) / 2
        parts.append(
            f'<text x="12" y="{middle}" text-anchor="middle" transform="rotate(-90 12 {middle})">'
            f"{escape(y.label)}</text>"
        )
    return "".join(parts)


def _line(points: Sequence[Point], attributes: str) -> str:
    path = " ".join(f"{a:.1f},{b:.1f}" for a, b in points)
    return f'<polyline {attributes} points="{path}"/>'


def _dash(number: int) -> str:
    pattern = DASHES[number % len(DASHES)]
    return f' stroke-dasharray="{pattern}"' if pattern else ""


def _figure(title: str, text: str, body: str, names: Sequence[str], height: float = HEIGHT) -> str:
    entries = "".join(
        f'<li><svg class="swatch" viewBox="0 0 24 8" aria-hidden="true"><line class="line {color(n)}"{_dash(n)} '
        f'x1="0" x2="24" y1="4" y2="4"/></svg>{escape(name)}</li>'
        for n, name in enumerate(names)
    )
    legend = f'<ul class="legend">{entries}</ul>' if len(names) > 1 else ""
    return (
        f"<figure><figcaption>{escape(title)}</figcaption>"
        f'<svg class="chart" viewBox="0 0 {WIDTH} {height:g}" role="img">'
        f"<title>{escape(title)}</title><desc>{escape(text)}</desc>{body}</svg>{legend}"
        f'<p class="note">{escape(text)}</p></figure>'
    )
