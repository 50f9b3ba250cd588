"""The page: opens offline, escapes what came from outside, says the same as its JSON."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pertinent.charts import Axis, Series, line_chart, log_ticks, round_ticks, scatter
from pertinent.errors import ArtifactError, DataError
from pertinent.evaluation.compare import compare
from pertinent.evaluation.evaluate import EvaluateConfig, evaluate, evaluate_scores, run_evaluate
from pertinent.evaluation.report import check_report_path, write_report
from pertinent.evaluation.speed import latency_stats
from pertinent.records import Judgment

Judged = Callable[..., list[Judgment]]

HOSTILE = '"><script>alert(1)</script><img src=http://x onerror=alert(1)>{body}{style}'
VOID = {"meta", "wbr", "br", "img", "link", "hr", "input"}


class Page(HTMLParser):
    """Checks that tags nest, and keeps what a reader needs."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)
        assert not self.open, self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, tag

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.tags)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory, words: type[Any], judged: Judged) -> tuple[str, dict[str, object]]:
    rows = [*judged(40), Judgment(HOSTILE, "x", 1.0, title="t"), Judgment(HOSTILE, "y", 0.0, title=HOSTILE)]
    shared = evaluate(words("words"), rows, positive_grade=1.0, bootstrap=50)
    raw = evaluate_scores(np.linspace(12, -3, len(rows)), rows, name="bm25", positive_grade=1.0, bootstrap=50)
    path = write_report(
        tmp_path_factory.mktemp("report") / "deeper" / "report.html",
        {"words": shared, HOSTILE: raw},
        title=f"Report of {HOSTILE}",
        facts={"machine": "2 cores & more"},
        speeds={"words": latency_stats([1.0, 2.0, 3.0], items=100), HOSTILE: latency_stats([0.9])},
        comparisons={"words less bm25": compare(shared, raw, resamples=50)},
    )
    return path.read_text(encoding="utf-8"), json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))


def test_the_page_opens_offline(page: tuple[str, dict[str, object]]) -> None:
    found = Page(page[0])
    assert not {"script", "link", "img", "iframe", "object"} & {tag for tag, _ in found.tags}
    for _, attributes in found.tags:
        assert not any(name in ("src", "href", "srcset") or name.startswith("on") for name in attributes)
    style = re.search(r"<style>(.*?)</style>", page[0], re.S)
    assert style is not None and "url(" not in style[1] and "@import" not in style[1]
    assert "default-src 'none'" in page[0]


def test_text_from_outside_is_escaped(page: tuple[str, dict[str, object]]) -> None:
    assert "<script" not in page[0] and "<img" not in page[0]
    assert "&lt;script&gt;alert(1)" in page[0]
    assert "{body}" in page[0]  # stays text, is not filled in


def test_charts_and_tables_can_be_listened_to(page: tuple[str, dict[str, object]]) -> None:
    found = Page(page[0])
    charts = [attributes for tag, attributes in found.tags if tag == "svg" and attributes.get("role") == "img"]
    assert len(charts) == 5  # ROC, reliability, quality against latency, two histograms
    assert found.count("desc") == len(charts) == found.count("figcaption")
    assert found.count("caption") == found.count("table") > 5
    assert all("scope" in attributes for tag, attributes in found.tags if tag == "th")
    assert "nan" not in re.sub(r"<style>.*?</style>|naïve", "", page[0], flags=re.S).replace("finance", "").split()


def test_numbers_of_the_page_are_in_the_json(page: tuple[str, dict[str, object]]) -> None:
    text, numbers = page
    first = numbers["evaluations"]["words"]  # type: ignore[index]
    for value in first["metrics"].values():
        assert f"{value['value']:.3f}" in text
    assert first["reliability"] and first["thresholds"] and first["roc"][-1] == [1.0, 1.0]
    second = numbers["evaluations"][HOSTILE]  # type: ignore[index]
    assert second["reliability"] is None and second["thresholds"] == []
    assert numbers["speeds"]["words"]["p50"] == 2.0  # type: ignore[index]
    assert numbers["comparisons"]["words less bm25"]["auc"]["p_value"] > 0  # type: ignore[index]


def test_cells_of_a_table_stand_under_their_heads(page: tuple[str, dict[str, Any]]) -> None:
    tables = dict(_tables(page[0]))
    words = page[1]["evaluations"]["words"]
    for part, found in words["slices"]["segment"].items():
        row = next(row for row in tables["auc by segment"] if row["segment"] == part)
        assert (row["queries"], row["pairs"]) == (str(found["queries"]), str(found["pairs"]))
        assert row["words"].startswith(f"{found['metrics']['auc']['value']:.3f}")
    threshold = words["thresholds"][0]
    row = tables["words"][0]
    assert row["threshold"] == f"{threshold['threshold']:.3f}" and row["recall"] == f"{threshold['recall']:.3f}"
    speed = next(row for row in tables["Milliseconds of one call"] if row["scorer"] == "words")
    assert (speed["p50"], speed["items a call"]) == ("2.0", "100")


def _tables(text: str) -> list[tuple[str, list[dict[str, str]]]]:
    """Caption and rows of each table, cells by their column's head."""

    def texts(tag: str, part: str) -> list[str]:
        return [
            re.sub(r"<[^>]+>", "", cell).strip() for cell in re.findall(rf"<(?:{tag})\b[^>]*>(.*?)</(?:{tag})>", part)
        ]

    found = []
    for table in re.findall(r"<table>(.*?)</table>", text, re.S):
        head, *rows = re.findall(r"<tr>(.*?)</tr>", table, re.S)
        heads = texts("th", head)
        cells = [texts("th|td", row) for row in rows]
        assert all(len(row) == len(heads) for row in cells)
        found.append((texts("caption", table)[0], [dict(zip(heads, row, strict=True)) for row in cells]))
    return found


@pytest.mark.parametrize(
    "rows",
    [
        [Judgment("q", "1", 1.0, title="t")],
        [Judgment("q", "1", 0.0, title="t"), Judgment("q", "2", 0.0, title="t")],
        [Judgment("耳机", str(n), n / 7, title="耳机" * n) for n in range(8)],
    ],
    ids=["one", "one class and ties", "many grades"],
)
def test_degenerate_sets_make_a_page_too(tmp_path: Path, rows: list[Judgment], words: type[Any]) -> None:
    result = evaluate(words(), rows, positive_grade=1.0)
    flat = evaluate_scores(np.full(len(rows), 7.0), rows, name="flat", positive_grade=1.0)
    path = write_report(tmp_path / "r.html", {"a": result, "b": flat}, speeds={"a": latency_stats([1.0])})
    Page(path.read_text(encoding="utf-8"))


def test_scorers_of_different_judgments_are_not_shown_as_comparable(
    tmp_path: Path, words: type[Any], judged: Judged
) -> None:
    both = {str(n): evaluate(words(), judged(n), positive_grade=1.0, bootstrap=0) for n in (5, 6)}
    assert "do not compare" in write_report(tmp_path / "r.html", both).read_text(encoding="utf-8")


def test_wrong_use_says_what_to_do(tmp_path: Path, words: type[Any], judged: Judged) -> None:
    result = evaluate(words(), judged(3), positive_grade=1.0, bootstrap=0)
    with pytest.raises(DataError, match=r"name it report\.html"):
        write_report(tmp_path / "r.json", {"a": result})
    with pytest.raises(DataError, match="no evaluation"):
        write_report(tmp_path / "r.html", {})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("folder", r"folder: is a folder; name a file in it, such as .*folder/report\.html$"),
        (".", "is a folder"),
        ("report", r"name it report\.html"),
        ("report.json", r"name it report\.html"),
        ("report.pdf", r"name it report\.html"),
        ("folder/taken.html", r"taken\.json: is a folder, but the JSON beside the report goes there"),
        ("file/report.html", r"cannot write into .*file; choose another place"),
        ("file/deep/report.html", r"cannot write into .*file; choose another place"),
    ],
)
def test_a_place_that_cannot_take_a_report_is_refused_before_anything_is_scored(
    tmp_path: Path, judged: Judged, words: type[Any], name: str, message: str
) -> None:
    (tmp_path / "folder" / "taken.json").mkdir(parents=True)
    (tmp_path / "file").write_text("x")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(DataError, match=message) as caught:
        write_report(tmp_path / name, {"a": evaluate(words(), judged(3), positive_grade=1.0, bootstrap=0)})
    assert "\n" not in str(caught.value)
    # The judgments are not even looked for.
    with pytest.raises(DataError, match=message):
        run_evaluate(EvaluateConfig(judgments="nowhere.csv", report=str(tmp_path / name)), words())
    assert sorted(tmp_path.rglob("*")) == before


def test_a_new_place_is_fine_and_nothing_is_made_there_yet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for path in ("report.html", "a/b/Report.HTM", tmp_path / "c" / "report.html"):
        check_report_path(path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("failing", ["r.json", "r.html"])
@pytest.mark.parametrize("before", [False, True])
def test_a_disk_that_fills_up_leaves_both_files_as_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, judged: Judged, words: type[Any], failing: str, before: bool
) -> None:
    if before:
        (tmp_path / "r.json").write_text("old")
        (tmp_path / "r.html").write_text("old")
    real = os.replace

    def replace(source: Path, target: Path) -> None:
        if target.name == failing:
            raise OSError(28, "No space left on device")
        real(source, target)

    monkeypatch.setattr("os.replace", replace)
    result = evaluate(words(), judged(3), positive_grade=1.0, bootstrap=0)
    with pytest.raises(ArtifactError, match="No space left"):
        write_report(tmp_path / "r.html", {"a": result})
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == ({"r.json": "old", "r.html": "old"} if before else {})


def test_queries_with_half_a_character_are_reported(tmp_path: Path, words: type[Any]) -> None:
    rows = [Judgment("tv \ud800", str(n), float(n), title="tv") for n in range(2)]
    path = write_report(tmp_path / "r.html", {"a": evaluate(words(), rows, positive_grade=1.0, bootstrap=0)})
    json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    Page(path.read_text(encoding="utf-8"))


def test_charts_leave_out_points_that_are_not_finite() -> None:
    axis = Axis(0, 1, "x", (0, 1))
    chart = line_chart("t", "d", axis, axis, [Series("a", [(0, math.nan), (0.5, 0.5)]), Series("b", [])], dots=True)
    assert chart.count("<circle") == 1 and "nan" not in chart


def test_names_of_near_dots_do_not_lie_on_each_other() -> None:
    axis = Axis(0, 1, "x", ())
    chart = scatter("t", "d", axis, axis, [Series(name, [(0.2, 0.5)]) for name in ("a", "b", "a very long name of it")])
    heights = [float(y) for y in re.findall(r'class="name" x="[\d.]+" y="([\d.]+)"', chart)]
    assert min(abs(a - b) for n, a in enumerate(heights) for b in heights[:n]) >= 12


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0.91, 0.93), (-3, 17), (0, 1e6), (5, 5)])
def test_ticks_are_few_and_within_the_range(low: float, high: float) -> None:
    ticks = round_ticks(low, high)
    assert 1 <= len(ticks) <= 6 and low - 1e-9 <= min(ticks) and max(ticks) <= high + 1e-9


def test_wide_log_axes_show_only_tens() -> None:
    assert log_ticks(0.5, 2000) == [1.0, 10.0, 100.0, 1000.0]
