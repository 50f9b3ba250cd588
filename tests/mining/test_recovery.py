"""Mining finds what was planted in the made-up shop: examination of positions, and aliases."""

from __future__ import annotations

from collections import defaultdict

import duckdb
import numpy as np
import pytest

from pertinent.data.synthetic import SynthesizeConfig, synthesize
from pertinent.mining.checks import CheckConfig, check_events
from pertinent.mining.daily import daily_counts, daily_positions, page_items, total_positions
from pertinent.mining.engines import DuckDBEngine, read_parquet, stage, write_parquet
from pertinent.mining.neighbors import NeighborConfig, neighbors
from pertinent.mining.positions import PositionConfig, fit_position_model
from pertinent.mining.readers import read_log
from pertinent.mining.run import MineConfig, mine, read_mined
from pertinent.mining.sessions import SessionConfig
from pertinent.mining.sources import LogConfig

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """A shop with a million impressions."""
    return synthesize(SynthesizeConfig(out=str(tmp_path_factory.mktemp("recovery") / "shop"), events=1_250_000))


@pytest.fixture(scope="module")
def counted(shop, duckdb_engine, tmp_path_factory):
    """What the checks found, counts by day, and counts by position."""
    work = tmp_path_factory.mktemp("work")
    raw = read_log(duckdb_engine, LogConfig(path=str(shop.path / "log.parquet")), None, work)
    checked = check_events(duckdb_engine, raw, None, CheckConfig(), SessionConfig().gap_minutes, work)
    pages = stage(duckdb_engine, page_items(checked.events), work / "pages.parquet")
    write_parquet(duckdb_engine, daily_counts(pages), work / "daily.parquet", ["day", "query", "item_id"])
    return checked.counts, read_parquet(duckdb_engine, work / "daily.parquet"), daily_positions(pages)


@pytest.fixture(scope="module")
def meant(shop):
    """The items that each alias stands for."""
    items = defaultdict(set)
    for query, item in duckdb.sql(f"SELECT query, item_id FROM '{shop.path}/truth/aliases.parquet'").fetchall():
        items[query].add(item)
    return items


def lists_of(daily, config):
    until = int(daily.day.max().to_pyarrow().as_py()) + 1
    rows = neighbors(daily, until, config, "query").to_pyarrow()
    lists = defaultdict(set)
    for query, item in zip(rows["query"].to_pylist(), rows["neighbor"].to_pylist(), strict=True):
        lists[query].add(item)
    return lists


def recall(lists, meant, queries):
    return sum(len(lists[q] & meant[q]) for q in queries) / sum(len(meant[q]) for q in queries)


def precision(lists, meant):
    return sum(len(lists[q] & meant[q]) for q in meant) / sum(len(lists[q]) for q in meant)


def test_a_clean_shop_passes_all_checks_and_loses_no_row(shop, counted):
    checks, daily, _ = counted
    assert {entry["check"]: entry["rows"] for entry in checks if entry["rows"]} == {}
    totals = daily.agg(exposures=daily.exposures.sum(), clicks=daily.clicks.sum()).to_pyarrow().to_pylist()[0]
    assert 1_000_000 < shop.metrics["view_rows"] <= totals["exposures"]
    # A page that is used past midnight counts on both days.
    assert totals["exposures"] - shop.metrics["view_rows"] < 200


def test_the_click_model_recovers_the_planted_examination_within_3_hundredths(shop, counted):
    model = fit_position_model(total_positions(counted[2]), PositionConfig())
    planted = duckdb.sql(
        f"SELECT examination FROM '{shop.path}/truth/positions.parquet' ORDER BY position"
    ).fetchnumpy()["examination"]
    assert model.converged
    assert model.identified.all()
    assert np.abs(model.propensity - planted).max() < 0.03
    by_rate = model.clicks / model.exposures
    # What the shop shows first is better, so click-through falls faster than examination: the model is needed.
    assert np.abs(by_rate / by_rate[0] - planted).max() > 0.05


def test_neighbor_lists_recover_planted_aliases(counted, meant):
    often = defaultdict(int)
    for row in counted[1].group_by("query").agg(most=counted[1].exposures.sum()).to_pyarrow().to_pylist():
        often[row["query"]] = row["most"]
    standard = lists_of(counted[1], NeighborConfig())
    assert precision(standard, meant) > 0.95
    assert recall(standard, meant, list(meant)) > 0.5
    lower = lists_of(counted[1], NeighborConfig(min_exposures=20, min_ctr=0.1))
    assert precision(lower, meant) > 0.9
    searched = [query for query in meant if often[query] >= 1000]
    assert len(searched) >= 25
    assert recall(lower, meant, searched) > 0.95
    never = [query for query in meant if often[query] == 0]
    assert len(never) == 6
    assert not any(lower[query] for query in never)


def test_items_lead_back_to_their_alias(counted, meant):
    until = int(counted[1].day.max().to_pyarrow().as_py()) + 1
    rows = neighbors(counted[1], until, NeighborConfig(min_exposures=20, min_ctr=0.1), "item_id").to_pyarrow()
    pairs = {(row["neighbor"], row["item_id"]) for row in rows.to_pylist()}
    aliases = {query for query, _ in pairs} & set(meant)
    assert len(aliases) >= 30
    assert all(item in meant[query] for query, item in pairs if query in meant)


def test_what_is_planted_is_found_in_the_tables_of_the_mined_artifact(tmp_path):
    """From the made-up shop to the artifact, with nothing in between but `mine`."""
    shop = synthesize(SynthesizeConfig(out=str(tmp_path / "shop"), events=60_000)).path
    mined = mine(
        MineConfig(
            log=LogConfig(path=str(shop / "log.parquet")),
            items=str(shop / "items.parquet"),
            judged=(str(shop / "judgments.parquet"),),
            out=str(tmp_path / "mined"),
            engine=DuckDBEngine(memory="1GB", threads=2),
            neighbors=NeighborConfig(min_exposures=20),
            progress=False,
        )
    )
    assert [entry["check"] for entry in mined.json("checks.json")["checks"] if entry["rows"]] == []
    planted = duckdb.sql(f"SELECT examination FROM '{shop}/truth/positions.parquet' ORDER BY position").fetchnumpy()
    fitted = read_mined(mined.path, "positions").sort_by("position")["propensity"].to_numpy()
    assert np.abs(fitted - planted["examination"]).max() < 0.05
    pairs = set(duckdb.sql(f"SELECT query, item_id FROM '{shop}/truth/aliases.parquet'").fetchall())
    aliases = {query for query, _ in pairs}
    rows = read_mined(mined.path, "neighbors_query").select(["query", "neighbor"]).to_pylist()
    found = {(row["query"], row["neighbor"]) for row in rows if row["query"] in aliases}
    assert len(found) >= 15
    assert len(found & pairs) / len(found) > 0.95
    judged = {query for (query,) in duckdb.sql(f"SELECT query FROM '{shop}/judgments.parquet'").fetchall()}
    assert not judged & set(read_mined(mined.path, "candidates")["query"].to_pylist())
