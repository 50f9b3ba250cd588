"""The page of a mined log: segments and coverage of neighbors are drawn beside their tables."""

import re

import pytest

from pertinent.mining.report import report_page
from pertinent.mining.schema import LEVELS

COUNTS = ("events", "searches", "users", *LEVELS)
SIZES = ("clicked_pairs", "clear_queries", "hot_queries", "hot_pairs", "users_with_sequence", "candidates")


def segment(name, queries, searches, covered):
    counts = {"queries": queries, "searches": searches, "clicks": 1, "clear": 0, "with_neighbors": 1}
    return {"segment": name, **counts, "searches_with_neighbors": covered}


def numbers(segments, **coverage):
    return {
        "title": "Log é",
        "summary": {"events": 1, "first_day": "", "last_day": "", "searches": 1, "queries": 1, "items": 1}
        | dict.fromkeys(SIZES, 0),
        "days": [{"day": 1, "date": "1970-01-02", **dict.fromkeys(COUNTS, 1)}],
        "levels": dict.fromkeys(LEVELS, 0),
        "pairs_by_level": [],
        "positions": [],
        "segments": segments,
        "coverage": {"queries": 0, "queries_with": 0, "items": 0, "items_with": 0, "pairs": 0, "kept": 0} | coverage,
        "position_fit": {"pairs_fitted": 0, "pairs_seen": 0, "converged": True, "rounds": 0},
        "warnings": [],
        "checks": [],
        "told": [],
        "settings": {},
    }


def figures(page):
    """The text of each bar of each figure by its title."""
    found = {}
    for figure in re.findall(r"<figure>.*?</figure>", page, re.DOTALL):
        title = re.search(r"<figcaption>(.*?)</figcaption>", figure)[1]
        if "polyline" in figure:
            continue
        body = re.sub(r"<(title|desc)>.*?</\1>", "", figure)
        texts = re.findall(r"<text[^>]*>([^<]*)</text>", body)
        lengths = [float(width) for width in re.findall(r'<rect[^>]*width="([0-9.]+)"', body)]
        found[title] = (list(zip(texts[::2], texts[1::2], strict=True)), lengths)
    return found


def test_segments_and_coverage_are_drawn_to_scale():
    segments = [segment("head", 1, 60, 30), segment("torso", 3, 30, 0), segment("tail", 6, 10, 10)]
    page = report_page(numbers(segments, queries=10, queries_with=4, items=8, items_with=2, pairs=50, kept=50))
    drawn = figures(page)
    texts, lengths = drawn["Queries by segment"]
    assert texts == [("head", "1 (10%)"), ("torso", "3 (30%)"), ("tail", "6 (60%)")]
    assert [length / lengths[-1] for length in lengths] == pytest.approx([1 / 6, 1 / 2, 1], abs=0.01)
    assert drawn["Searches by segment"][0] == [("head", "60 (60%)"), ("torso", "30 (30%)"), ("tail", "10 (10%)")]
    texts, lengths = drawn["Coverage of neighbors"]
    assert texts == [("queries", "40.0%"), ("items", "25.0%"), ("pairs", "100.0%"), ("all", "100%")]
    assert [length / lengths[-1] for length in lengths] == pytest.approx([0.4, 0.25, 1, 1], abs=0.01)
    texts, lengths = drawn["Searches with neighbors"]
    assert texts == [("head", "50.0%"), ("torso", "0.0%"), ("tail", "100.0%"), ("all", "100%")]
    assert len(lengths) == 3  # no bar for none
    for caption in ("Head, torso and tail queries", "In the window of neighbors"):
        assert caption in page


def lines(page):
    """The points of each line of each chart by its title."""
    found = {}
    for figure in re.findall(r"<figure>.*?</figure>", page, re.DOTALL):
        drawn = re.findall(r'<polyline class="line[^>]*points="([^"]*)"', figure)
        if drawn:
            title = re.search(r"<figcaption>(.*?)</figcaption>", figure)[1]
            found[title] = [[tuple(map(float, point.split(","))) for point in line.split()] for line in drawn]
    return found


def heights(points, base):
    """How far above the axis each point stands, relative to the first."""
    return [(base - y) / (base - points[0][1]) for _, y in points]


def test_volume_funnel_and_positions_are_drawn_to_scale():
    days = [
        {"day": day, "date": f"1970-01-{day + 1:02}", **dict.fromkeys(COUNTS, 1), "searches": searches, "click": clicks}
        for day, searches, clicks in ((1, 10, 5), (2, 20, 5), (4, 40, 10))
    ]
    places = [
        {"position": place, "exposures": shown, "clicks": clicks, "propensity": seen, "identified": True}
        for place, shown, clicks, seen in ((0, 100, 40, 1.0), (1, 100, 10, 0.5), (2, 0, 0, 0.4), (3, 50, 5, 0.25))
    ]
    levels = dict.fromkeys(LEVELS, 0) | {"view": 200, "click": 50, "pay": 5}
    page = report_page({**numbers([]), "days": days, "levels": levels, "positions": places})
    drawn = lines(page)
    searches, clicks, users = drawn["Volume by day"]
    base = searches[0][1] + (searches[0][1] - searches[2][1]) / 3  # 10 of 40 stand a third of their difference up
    assert heights(searches, base) == pytest.approx([1, 2, 4], abs=0.02)
    assert heights(clicks, base) == pytest.approx([1, 1, 2], abs=0.02)
    assert [x - searches[0][0] for x, _ in searches] == pytest.approx(
        [0, 1 / 3 * (w := searches[2][0] - searches[0][0]), w], abs=0.2
    )
    assert len(users) == 3
    propensity, relative = drawn["Position curve"]
    base = propensity[0][1] + (propensity[1][1] - propensity[0][1]) * 2
    assert heights(propensity, base) == pytest.approx(
        [1, 0.5, 0.25], abs=0.02
    )  # a place that showed nothing is left out
    assert heights(relative, base) == pytest.approx([1, 0.25, 0.25], abs=0.02)
    (rates,) = drawn["Click-through by position"]
    assert heights(rates, base) == pytest.approx([1, 0.25, 0.25], abs=0.02)
    assert page.count('<circle class="dot') == 3
    texts, lengths = figures(page)["Level funnel"]
    assert texts[:2] == [("view", "200"), ("click", "50 (25.0%)")] and texts[-1] == ("pay", "5")
    assert [length / lengths[0] for length in lengths] == pytest.approx([1, 0.25, 0.025], abs=0.01)


def test_one_day_and_one_place_have_no_line():
    place = {"position": 0, "exposures": 9, "clicks": 0, "propensity": 1.0, "identified": True}
    assert lines(report_page({**numbers([]), "positions": [place]})) == {}


def test_without_queries_nothing_is_drawn():
    drawn = figures(report_page(numbers([])))
    assert not {"Queries by segment", "Searches by segment", "Coverage of neighbors", "Searches with neighbors"} & {
        *drawn
    }


def test_a_warning_is_shown_once():
    told = ["no position is known in 3 rows", "3 rows read"]
    page = report_page({**numbers([]), "warnings": [told[0], "few neighbors"], "told": told})
    assert [page.count(sentence) for sentence in (*told, "few neighbors")] == [1, 1, 1]
