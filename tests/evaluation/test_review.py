"""Laws of side-by-side reviews: blind, seeded, and read back with the planted preference."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pertinent.errors import ConfigError, DataError
from pertinent.evaluation.review import (
    ReviewConfig,
    ReviewReadConfig,
    make_review,
    read_review,
    summarize,
)


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return str(path)


@pytest.fixture
def config(tmp_path: Path) -> dict[str, Any]:
    """Forty queries, six results each; the systems differ but at the first place."""
    files = {}
    for system in ("control", "treatment"):
        rows = [
            {"query": f"größe {q}", "title": f"item {q}-{place}" if place == 0 else f"{system[0]}{q}-{place}"}
            for q in range(40)
            for place in range(6)
        ]
        files[system] = write(tmp_path / f"{system}.csv", rows)
    return {**files, "queries": 30, "positions": 4, "out": str(tmp_path / "review")}


def fill(folder: str, rate: Any, name: str = "sheet.csv") -> str:
    """The sheet filled by a rater, who sees texts only; in another file where ``name`` says so."""
    path = Path(folder) / "sheet.csv"
    rows = list(csv.DictReader(path.read_text(encoding="utf-8-sig").splitlines()))
    for row in rows:
        row["left_rating"], row["right_rating"] = rate(row["left"]), rate(row["right"])
    return write(Path(folder) / name, rows)


def test_the_sheet_is_blind_and_the_same_for_a_seed(config: dict[str, Any], tmp_path: Path) -> None:
    made = make_review(ReviewConfig.build(config))
    assert (made.rows, made.queries, made.same) == (90, 30, 30)  # the first place is the same on both sides
    folder = Path(made.folder)
    text = (folder / "sheet.csv").read_text()
    assert "control" not in text + (folder / "sheet.html").read_text()
    left = list(json.loads((folder / "key.json").read_text())["left"].values())
    assert 25 < left.count("treatment") < 65  # sides are shuffled row by row
    again = make_review(ReviewConfig.build(config | {"out": str(tmp_path / "again")}))
    for name in ("sheet.csv", "sheet.html", "key.json"):
        assert (Path(again.folder) / name).read_bytes() == (folder / name).read_bytes()
    other = make_review(ReviewConfig.build(config | {"out": str(tmp_path / "other"), "seed": 1}))
    assert (Path(other.folder) / "sheet.csv").read_text() != text
    with pytest.raises(ConfigError, match="holds a review already"):
        make_review(ReviewConfig.build(config))


def test_a_planted_preference_is_read_back(config: dict[str, Any]) -> None:
    made = make_review(ReviewConfig.build(config))
    random = np.random.default_rng(0)
    words = ["Good", "f", "BAD"]
    chances = {"t": (0.7, 0.2, 0.1), "c": (0.5, 0.2, 0.3)}
    fill(made.folder, lambda text: words[random.choice(3, p=chances[text[0]])])
    result = read_review(ReviewReadConfig(folder=made.folder))
    assert result.rows == 90 == result.wins + result.ties + result.losses
    assert result.balance.value == pytest.approx((result.wins - result.losses) / 90)
    assert result.balance.low > 0
    assert result.p_value < 0.05
    assert result.shares["good"].change.value > 0 > result.shares["bad"].change.value
    assert sum(share.control for share in result.shares.values()) == pytest.approx(1)
    assert any("30 rows that show the same" in note for note in result.notes)
    assert json.dumps(result.plain())


def test_a_rater_without_a_preference_is_found_to_have_none() -> None:
    random = np.random.default_rng(1)
    found = 0
    for _ in range(100):
        key = {"left": {str(n): "control" for n in range(60)}, "queries": {str(n): str(n // 3) for n in range(60)}}
        ratings = [{str(n): (int(random.integers(3)), int(random.integers(3))) for n in range(60)}]
        found += summarize(key, ratings, 200, 0).p_value < 0.05
    assert found <= 12


def test_swapping_sides_in_key_and_sheet_changes_nothing(config: dict[str, Any]) -> None:
    made = make_review(ReviewConfig.build(config))
    fill(made.folder, lambda text: "good" if text[0] == "t" else "bad")
    result = read_review(ReviewReadConfig(folder=made.folder))
    assert (result.wins, result.losses) == (90, 0)  # whichever side it stood on
    assert result.shares["good"].control == 0
    assert np.isnan(result.shares["good"].change.value)


def test_raters_are_put_together_and_their_agreement_is_told(config: dict[str, Any]) -> None:
    made = make_review(ReviewConfig.build(config))
    one = fill(made.folder, lambda text: "good", "one.csv")
    two = fill(made.folder, lambda text: "good" if text[0] == "t" else "fair", "two.csv")
    half = fill(made.folder, lambda text: "" if text[0] == "t" else "fair", "half.csv")
    result = read_review(ReviewReadConfig(folder=made.folder, sheets=(one, two)))
    assert (result.raters, result.rows, result.wins, result.ties) == (2, 180, 90, 90)
    assert result.agreement == 0.5
    assert read_review(ReviewReadConfig(folder=made.folder, sheets=(one, half))).unrated == 90
    with pytest.raises(DataError, match=r"half\.csv: no row has both ratings; fill left_rating and right_rating"):
        read_review(ReviewReadConfig(folder=made.folder, sheets=(half,)))
    key = {"left": {"1": "control"}, "queries": {"1": "tea"}}
    none = summarize(key, [{}], 200, 0)
    assert (none.rows, none.unrated) == (0, 1)
    assert np.isnan(none.balance.value)
    assert np.isnan(none.agreement)


def test_what_is_wrong_in_files_is_named(config: dict[str, Any], tmp_path: Path) -> None:
    made = make_review(ReviewConfig.build(config))
    with pytest.raises(DataError, match=r"is not a rating.*good, fair or bad"):
        read_review(ReviewReadConfig(folder=made.folder, sheets=(fill(made.folder, lambda text: "superb", "bad.csv"),)))
    stray = write(tmp_path / "stray.csv", [{"row": "999", "left_rating": "good", "right_rating": "bad"}])
    with pytest.raises(DataError, match="is not a row of this review"):
        read_review(ReviewReadConfig(folder=made.folder, sheets=(stray,)))
    twice = write(tmp_path / "twice.csv", [{"row": "1", "left_rating": "good", "right_rating": "bad"}] * 2)
    with pytest.raises(DataError, match="occurs twice"):
        read_review(ReviewReadConfig(folder=made.folder, sheets=(twice,)))
    with pytest.raises(ConfigError, match=r"has no key\.json"):
        read_review(ReviewReadConfig(folder=str(tmp_path)))
    other = write(tmp_path / "other.csv", [{"query": "tv", "title": "TV"}])
    with pytest.raises(ConfigError, match="no query in common"):
        make_review(ReviewConfig.build(config | {"treatment": other, "out": str(tmp_path / "x")}))
    with pytest.raises(ConfigError, match="same everywhere"):
        make_review(ReviewConfig.build(config | {"treatment": config["control"], "out": str(tmp_path / "x")}))


def test_formulas_in_titles_stay_text(tmp_path: Path) -> None:
    files = [
        write(
            tmp_path / f"{n}.csv",
            [{"query": "@tv", "title": title, "position": 1}, {"query": "@tv", "title": "first", "position": 0}],
        )
        for n, title in enumerate(["=HYPERLINK(1)", "<script>alert(1)</script>"])
    ]
    made = make_review(
        ReviewConfig(control=files[0], treatment=files[1], positions=9, same=True, out=str(tmp_path / "out"))
    )
    assert made.rows == 2
    rows = list(csv.reader((tmp_path / "out" / "sheet.csv").read_text(encoding="utf-8-sig").splitlines()))
    assert all(not cell.startswith(("=", "@")) for row in rows for cell in row)
    assert rows[1][3] == "first"  # position decides, not the order of the file
    assert "<script>" not in (tmp_path / "out" / "sheet.html").read_text()
