"""Laws of the comparison of two arms, on simulated ones whose effect is known."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pertinent.errors import ConfigError, DataError
from pertinent.evaluation.arms import LEVELS, ArmLog, CompareConfig, compare_arms, compare_log, sample_ratio_p

VIEW, CLICK, PAY = (LEVELS.index(level) for level in ("view", "click", "pay"))


def simulate(users: int, lift: float, seed: int, shift: int = 0) -> ArmLog:
    """Users that differ in activity and taste; the treatment's chance of a click is ``1 + lift`` times higher.

    With ``shift`` the treatment is shown that many places further up, which by itself raises its clicks.
    """
    random = np.random.default_rng(seed)
    treated = random.random(users) < 0.5
    views = random.negative_binomial(2, 0.1, users) + 1
    taste = random.beta(2, 8, users)
    user = np.repeat(np.arange(users), views)
    position = random.integers(0, 10, len(user))
    position = np.where(treated[user], np.maximum(position - shift, 0), position)
    chance = taste[user] * (1 + lift * treated[user]) / np.sqrt(1 + position)
    clicked = random.random(len(user)) < chance
    paid = clicked & (random.random(len(user)) < 0.2)
    events = [(user, VIEW), (user[clicked], CLICK), (user[paid], PAY)]
    places = [position, position[clicked], position[paid]]
    money = np.concatenate([np.full(len(user) + int(clicked.sum()), np.nan), random.lognormal(3, 1, int(paid.sum()))])
    return ArmLog(
        users=np.concatenate([u for u, _ in events]),
        levels=np.concatenate([np.full(len(u), level) for u, level in events]),
        positions=np.concatenate(places),
        revenue=money,
        treated=treated,
    )


def test_intervals_hold_the_planted_effect_as_often_as_they_say() -> None:
    held = dict.fromkeys(("ctr", "ctr at equal positions"), 0)
    runs = 300
    for seed in range(runs):
        lifts = compare_arms(simulate(400, 0.2, seed)).lifts
        for name in held:
            held[name] += lifts[name].low <= 0.2 <= lifts[name].high
    for name, times in held.items():
        assert 0.91 <= times / runs <= 0.985, name


def test_two_equal_arms_differ_by_chance_as_often_as_the_p_value_says() -> None:
    runs = 300
    found = dict.fromkeys(("ctr", "cvr", "pay", "ctr at equal positions"), 0)
    for seed in range(runs):
        lifts = compare_arms(simulate(300, 0.0, 1000 + seed)).lifts
        for name in found:
            found[name] += lifts[name].p_value < 0.05
    for name, times in found.items():
        assert 0.015 <= times / runs <= 0.095, name


def test_a_strong_effect_is_found_and_its_sign_is_right() -> None:
    up, down = (compare_arms(simulate(3000, lift, 0)).lifts for lift in (0.3, -0.3))
    assert up["ctr"].p_value < 0.001
    assert up["ctr"].lift == pytest.approx(0.3, abs=0.08)
    assert down["ctr"].high < 0
    assert up["pay"].lift > 0
    assert up["cvr"].low < 0 < up["cvr"].high  # more clicks, the same share of them pays


def test_users_are_the_unit_not_views() -> None:
    log = simulate(500, 0.0, 3)
    once = compare_arms(log).lifts["ctr"]
    twice = ArmLog(*(np.tile(part, 2) for part in (log.users, log.levels, log.positions, log.revenue)), log.treated)
    again = compare_arms(twice).lifts["ctr"]
    assert (again.lift, again.low, again.high) == pytest.approx((once.lift, once.low, once.high))


def test_equal_positions_take_out_what_a_better_place_brings() -> None:
    log = simulate(3000, 0.0, 5, shift=3)
    lifts = compare_arms(log).lifts
    assert lifts["ctr"].low > 0.05  # shown further up
    equal = lifts["ctr at equal positions"]
    assert equal.low < 0 < equal.high


def test_the_bootstrap_agrees_with_the_delta_method() -> None:
    log = simulate(800, 0.1, 7)
    delta = compare_arms(log).lifts
    drawn = compare_arms(log, method="bootstrap", resamples=1000).lifts
    for name, one in delta.items():
        other = drawn[name]
        assert other.lift == one.lift
        assert other.high - other.low == pytest.approx(one.high - one.low, rel=0.2), name
    assert compare_arms(log, method="bootstrap", resamples=100, seed=1) == compare_arms(
        log, method="bootstrap", resamples=100, seed=1
    )


def test_swapping_the_arms_turns_the_lift_around() -> None:
    log = simulate(600, 0.2, 2)
    turned = ArmLog(log.users, log.levels, log.positions, log.revenue, ~log.treated)
    one, other = compare_arms(log).lifts["ctr"], compare_arms(turned).lifts["ctr"]
    assert (1 + one.lift) * (1 + other.lift) == pytest.approx(1)
    assert (1 + one.low) * (1 + other.high) == pytest.approx(1)
    assert one.p_value == pytest.approx(other.p_value)


def test_an_uneven_deal_of_users_is_noticed() -> None:
    assert sample_ratio_p((5000, 5000), 0.5) == 1.0
    assert sample_ratio_p((900, 100), 0.1) == 1.0
    log = simulate(2000, 0.0, 0)
    lost = log.treated & (np.arange(2000) % 4 == 0)  # a quarter of the treatment's users is never seen
    keep = ~lost[log.users]
    numbers = np.cumsum(~lost) - 1
    kept = ArmLog(
        numbers[log.users[keep]], log.levels[keep], log.positions[keep], log.revenue[keep], log.treated[~lost]
    )
    result = compare_arms(kept)
    assert result.sample_ratio_p < 0.001
    assert any("Sample-ratio mismatch" in note for note in result.notes)
    assert not any("Sample-ratio" in note for note in compare_arms(log).notes)


def test_arms_without_clicks_payments_or_users_are_told() -> None:
    views = ArmLog(np.arange(4), np.zeros(4, int), np.full(4, -1), np.full(4, np.nan), np.array([0, 0, 1, 1], bool))
    result = compare_arms(views)
    assert np.isnan(result.lifts["ctr"].p_value)
    assert np.isnan(result.lifts["cvr"].control)
    assert result.plain()["metrics"]["cvr"]["lift"] is None
    assert "ctr at equal positions" not in result.lifts
    assert any("no revenue" in note for note in result.notes)
    with pytest.raises(DataError, match="treatment 0; each needs two or more"):
        compare_arms(ArmLog(views.users, views.levels, views.positions, views.revenue, np.zeros(4, bool)))


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return str(path)


def test_a_log_is_read_with_its_own_columns_and_users_of_both_arms_are_left_out(tmp_path: Path) -> None:
    log = simulate(60, 0.5, 0)
    rows = [
        {
            "shopper": f"ü{user}",
            "variant": "new" if log.treated[user] else "old",
            "level": LEVELS[level],
            "position": place,
            "revenue": "" if np.isnan(money) else f"{money:.6f}",
        }
        for user, level, place, money in zip(log.users, log.levels, log.positions, log.revenue, strict=True)
    ]
    columns = {"shopper": "user_id", "variant": "arm"}
    path = write(tmp_path / "log.csv", rows)
    report = str(tmp_path / "report.html")
    result = compare_log(CompareConfig(log=path, columns=columns, control="old", report=report))
    wanted = compare_arms(log)
    assert (result.control, result.treatment) == ("old", "new")
    for name, lift in result.lifts.items():
        assert lift.lift == pytest.approx(wanted.lifts[name].lift, rel=1e-4), name
    page = Path(report).read_text()
    assert "<svg" in page
    assert "<script" not in page
    stray = {**rows[0], "variant": "new" if rows[0]["variant"] == "old" else "old"}
    other = {**rows[0], "shopper": "x", "variant": "third"}
    crossed = write(tmp_path / "crossed.csv", [*rows, stray, other])
    result = compare_log(CompareConfig(log=crossed, columns=columns, control="old", treatment="new"))
    assert sum(result.users) == 59
    assert "1 of 60 users were in both arms" in result.notes[0]
    with pytest.raises(ConfigError, match=r"3 arms \(new, old, third\); name two"):
        compare_log(CompareConfig(log=crossed, columns=columns))
    with pytest.raises(ConfigError, match="no arm 'nwe'; it has new, old, third"):
        compare_log(CompareConfig(log=crossed, columns=columns, control="old", treatment="nwe"))
    with pytest.raises(ConfigError, match="are both 'old'"):
        compare_log(CompareConfig(log=crossed, columns=columns, control="old", treatment="old"))
    with pytest.raises(DataError, match="is not a level"):
        compare_log(
            CompareConfig(log=write(tmp_path / "bad.csv", [{**rows[0], "level": "seen"}, *rows]), columns=columns)
        )
    with pytest.raises(DataError, match="has no columns user_id, arm; it has shopper, variant"):
        compare_log(CompareConfig(log=path))
