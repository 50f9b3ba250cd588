"""The made-up shop: what is planted is what the log shows, and the same settings give the same bytes."""

from __future__ import annotations

import json
from collections import defaultdict
from itertools import pairwise
from pathlib import Path

import duckdb
import numpy as np
import pyarrow.parquet as pq
import pytest

from pertinent.artifact import open_artifact
from pertinent.cli import main
from pertinent.data import synthetic
from pertinent.data.readers import read_items, read_judgments
from pertinent.data.samples import read_sample
from pertinent.data.shop import build_catalog, pick, plant_aliases, uniform
from pertinent.data.splits import refuse_leaks
from pertinent.data.synthetic import SynthesizeConfig, build_shop, synthesize
from pertinent.data.visits import LEVELS, Rows, log_rows
from pertinent.errors import ArtifactError, ConfigError, DataError
from pertinent.evaluation.metrics import auc
from pertinent.models.lexical import BM25
from pertinent.records import Item, Judgment
from pertinent.text import normalize, words

EVENTS = 60_000


@pytest.fixture(scope="module")
def shop(tmp_path_factory) -> Path:
    """A shop with the texts of ESCI."""
    return synthesize(SynthesizeConfig(out=str(tmp_path_factory.mktemp("shop") / "esci"), events=EVENTS)).path


@pytest.fixture
def small(tmp_path) -> dict[str, str]:
    """Settings with a catalog of 60 items of three brands, and judgments of six queries; some are not ASCII."""
    items = [f'{n:02},"{("lamp", "シャツ", "böok")[n % 3]} model {n}",brand{n % 3},{n % 7}' for n in range(60)]
    (tmp_path / "items.csv").write_text("item_id,title,brand,price\n" + "\n".join(items), encoding="utf-8")
    judged = [
        f"{('lamp', 'シャツ', 'böok')[n % 3]} {'new' if n % 2 else 'model'},{n:02},{(n % 5) / 4}" for n in range(48)
    ]
    (tmp_path / "judgments.csv").write_text("query,item_id,grade\n" + "\n".join(judged), encoding="utf-8")
    return {
        "items": str(tmp_path / "items.csv"),
        "judgments": str(tmp_path / "judgments.csv"),
        "out": str(tmp_path / "shop"),
    }


def config(small: dict[str, str], **changes: object) -> SynthesizeConfig:
    return SynthesizeConfig.build({"events": 5_000, "aliases": 2, "page_size": 10, **small, **changes})


def table(path: Path, *order: str) -> list[tuple]:
    text = f"SELECT * FROM read_parquet('{path}')" + (f" ORDER BY {', '.join(order)}" if order else "")
    return duckdb.sql(text).fetchall()


def ask(shop: Path, sql: str) -> list[tuple]:
    """Rows of a query over the log, which it calls ``log``, and the truth, ``truth_NAME``."""
    with duckdb.connect() as connection:
        for file in [*shop.glob("*.parquet"), *shop.glob("truth/*.parquet")]:
            name = ("truth_" if file.parent != shop else "") + file.stem
            connection.execute(f"CREATE VIEW {name} AS SELECT * FROM read_parquet('{file}')")
        return connection.execute(sql).fetchall()


def metrics(shop: Path) -> dict[str, float]:
    return open_artifact(shop).metrics


# ---------------------------------------------------------------- bytes


def test_the_same_settings_give_the_same_bytes_and_another_seed_does_not(small, tmp_path):
    files = {}
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        folder = synthesize(config(small, out=str(tmp_path / name), seed=seed)).path
        files[name] = {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    assert files["a"] == files["b"]
    assert files["a"].keys() == files["c"].keys()
    assert files["a"][Path("log.parquet")] != files["c"][Path("log.parquet")]
    assert files["a"][Path("items.parquet")] == files["c"][Path("items.parquet")]


def test_the_bytes_do_not_depend_on_the_size_of_the_parts(small, tmp_path, monkeypatch):
    monkeypatch.setattr(synthetic, "_ROW_GROUP", 700)
    logs = []
    for size in (1, 37, 10_000):
        monkeypatch.setattr(synthetic, "_SESSIONS_AT_ONCE", size)
        folder = synthesize(config(small, out=str(tmp_path / f"shop{size}"), events=3_000, bots=0.05)).path
        logs.append((folder / "log.parquet").read_bytes())
    assert logs[0] == logs[1] == logs[2]


def test_rows_do_not_depend_on_the_size_of_the_parts(small):
    # All on one day, so that many sessions overlap.
    made = build_shop(config(small, days=1, events=10_000))
    whole = Rows.join(list(log_rows(made, 100_000)))
    parts = Rows.join(list(log_rows(made, 3)))
    assert len(whole) > 9_900
    assert (np.diff(parts.time) >= 0).all()
    for name in Rows.__slots__:
        assert np.array_equal(getattr(whole, name), getattr(parts, name)), name


def test_draws_are_uniform_and_independent():
    draws = uniform(0, "test", np.arange(300)[:, None], np.arange(300))
    assert draws.shape == (300, 300)
    assert abs(draws.mean() - 0.5) < 0.005
    assert np.abs(np.histogram(draws, bins=20, range=(0, 1))[0] / draws.size - 0.05).max() < 0.005
    assert abs(np.corrcoef(draws[:-1].ravel(), draws[1:].ravel())[0, 1]) < 0.02
    assert abs(np.corrcoef(draws[:, :-1].ravel(), draws[:, 1:].ravel())[0, 1]) < 0.02
    other = uniform(0, "other", np.arange(300)[:, None], np.arange(300))
    assert abs(np.corrcoef(draws.ravel(), other.ravel())[0, 1]) < 0.02
    assert len(np.unique(draws)) == draws.size
    assert uniform(0, "test", np.zeros(0, int)).shape == (0,)


def test_picks_have_the_frequencies_of_their_widths():
    edges = np.cumsum([0.1, 0.0, 0.7, 0.2])
    counts = np.bincount(pick(edges, uniform(0, "pick", np.arange(20_000))), minlength=4) / 20_000
    assert counts == pytest.approx([0.1, 0.0, 0.7, 0.2], abs=0.01)


# ---------------------------------------------------------------- the log


def test_the_log_has_its_columns_in_order_of_time(shop):
    log = pq.read_table(shop / "log.parquet")
    assert [(field.name, str(field.type)) for field in log.schema] == [
        ("user_id", "string"),
        ("session_id", "string"),
        ("search_id", "string"),
        ("query", "string"),
        ("item_id", "string"),
        ("level", "string"),
        ("position", "int32"),
        ("time", "timestamp[us, tz=UTC]"),
    ]
    assert all(column.null_count == 0 for column in log.columns)
    times = log["time"].to_numpy()
    assert (np.diff(times) >= np.timedelta64(0)).all()
    assert str(times[0]) >= "2025-01-01"
    assert "2025-01-28" <= str(times[-1]) < "2025-02-01"


def test_the_log_has_the_most_whole_searches_that_fit(shop, small):
    assert EVENTS - 60 < metrics(shop)["rows"] <= EVENTS
    made = build_shop(config(small, events=2_000))
    longer = Rows.join(list(log_rows(build_shop(config(small, events=3_000)), 100)))
    rows = Rows.join(list(log_rows(made, 100)))
    searches = set(rows.search.tolist())
    assert searches == set(range(max(searches) + 1)) & set(longer.search.tolist())
    following = longer.search[longer.search > max(searches)].min()
    assert len(rows) <= 2_000 < len(rows) + (longer.search == following).sum()


def test_a_page_is_shown_whole_and_each_level_follows_the_one_before(shop):
    pages = ask(shop, "SELECT search_id, list(position ORDER BY position) FROM log WHERE level = 'view' GROUP BY 1")
    assert all(positions == list(range(len(positions))) for _, positions in pages)
    assert max(len(positions) for _, positions in pages) == 20
    for before, level in pairwise(LEVELS):
        orphans = f"""
            SELECT count(*) FROM (SELECT * FROM log WHERE level = '{level}') AS later
            LEFT JOIN (SELECT * FROM log WHERE level = '{before}') AS earlier
            USING (user_id, session_id, search_id, query, item_id, position)
            WHERE earlier.time IS NULL OR earlier.time >= later.time"""
        assert ask(shop, orphans) == [(0,)]


def test_no_item_is_twice_on_a_page_nor_clicked_twice(shop):
    assert ask(shop, "SELECT count(*) - count(DISTINCT (search_id, item_id, level)) FROM log") == [(0,)]


def test_a_session_has_one_shopper_and_short_pauses(shop):
    assert ask(shop, "SELECT count(*) FROM log GROUP BY session_id HAVING count(DISTINCT user_id) > 1") == []
    views = "SELECT DISTINCT session_id, search_id, time FROM log WHERE level = 'view'"
    pauses = f"SELECT time - lag(time) OVER (PARTITION BY session_id ORDER BY time) AS pause FROM ({views})"
    longest = ask(shop, f"SELECT epoch(max(pause)), count(pause) FROM ({pauses})")[0]
    assert 100 < longest[0] <= 200
    assert longest[1] > 500


def test_few_shoppers_search_a_lot_and_few_queries_are_asked_a_lot(shop):
    for column in ("user_id", "query"):
        counts = [
            n for (n,) in ask(shop, f"SELECT count(DISTINCT search_id) AS n FROM log GROUP BY {column} ORDER BY n DESC")
        ]
        assert sum(counts[: len(counts) // 10]) > 0.25 * sum(counts)
        assert counts[-1] <= 2


def test_deeper_levels_are_rarer_and_follow_relevance(shop):
    levels = [metrics(shop)[f"{name}_rows"] for name in LEVELS]
    assert levels == sorted(levels, reverse=True)
    assert levels[-1] > 100
    share = dict(
        ask(
            shop,
            """SELECT grade >= 0.5, count(*) FILTER (level = 'pay') / count(*) FILTER (level = 'click')
            FROM log JOIN truth_attraction USING (query, item_id) GROUP BY 1""",
        )
    )
    assert share[True] > 1.5 * share[False]


def test_clicks_fall_with_position_as_examination_does(shop):
    curve = ask(
        shop,
        """SELECT position, count(*) FILTER (level = 'click') / count(*) FILTER (level = 'view'), any_value(examination)
        FROM log JOIN truth_positions USING (position) GROUP BY 1 ORDER BY 1""",
    )
    assert [round(examination, 9) for _, _, examination in curve] == [round((1 + k) ** -0.5, 9) for k in range(20)]
    assert curve[0][1] > 1.3 * curve[1][1] > 1.3 * curve[10][1]


def test_mistakes_have_their_share_and_are_clicks_that_lead_nowhere(shop):
    told = json.loads((shop / "truth" / "noise.json").read_text())
    assert told["share_of_clicks_by_mistake"] == pytest.approx(0.05, abs=0.008)
    made = "FROM truth_noise LEFT JOIN log USING (search_id, item_id, position)"
    assert ask(shop, f"SELECT count(*) {made} WHERE level = 'click'") == [(told["clicks_by_mistake"],)]
    assert ask(shop, f"SELECT DISTINCT level {made} ORDER BY 1") == [("click",), ("view",)]


def test_without_noise_nobody_clicks_by_mistake_and_much_noise_is_as_much_as_asked(small):
    made = build_shop(config(small, noise=0.0))
    assert not Rows.join(list(log_rows(made, 100))).mistake.any()
    rows = Rows.join(list(log_rows(build_shop(config(small, noise=0.4, events=40_000)), 100)))
    assert rows.mistake.sum() / (rows.level == 1).sum() == pytest.approx(0.4, abs=0.03)


def test_mistakes_leave_the_number_of_clicks_and_fall_on_what_is_examined(small):
    clean = Rows.join(list(log_rows(build_shop(config(small, noise=0.0, events=40_000)), 100)))
    noisy = Rows.join(list(log_rows(build_shop(config(small, noise=0.4, events=40_000)), 100)))
    rates = [(rows.level == 1).sum() / (rows.level == 0).sum() for rows in (clean, noisy)]
    assert rates[1] == pytest.approx(rates[0], rel=0.05)
    # A page as a whole is clicked at position k in proportion to examination times what is not clicked in earnest.
    by_position = [np.bincount(noisy.position[noisy.mistake], minlength=10)[k] for k in (0, 3, 9)]
    assert by_position[0] > by_position[1] > by_position[2] > 0.3 * by_position[0] * 10**-0.5


def test_the_truth_counts_what_the_log_has(shop):
    differing = """
        SELECT count(*) FROM truth_attraction AS t FULL JOIN (
            SELECT query, item_id, count(*) FILTER (level = 'view') AS n, count(*) FILTER (level = 'click') AS c
            FROM log GROUP BY 1, 2) AS l USING (query, item_id)
        WHERE coalesce(l.n, 0) <> t.exposures OR coalesce(l.c, 0) <> t.clicks OR t.query IS NULL"""
    assert ask(shop, differing) == [(0,)]
    by_frequency = """
        SELECT count(*) FROM (SELECT DISTINCT query, frequency FROM judgments WHERE source = 'alias') AS j
        LEFT JOIN (SELECT query, count(DISTINCT search_id) AS n FROM log GROUP BY 1) AS l USING (query)
        WHERE coalesce(n, 0) <> frequency"""
    assert ask(shop, by_frequency) == [(0,)]


def test_items_are_shown_at_many_positions(shop):
    several = """
        SELECT median(places) FROM (SELECT count(DISTINCT position) AS places FROM log WHERE level = 'view'
        GROUP BY query, item_id HAVING count(*) >= 20)"""
    assert ask(shop, several)[0][0] >= 8


def test_programs_click_on_everything_and_copies_are_exact(small):
    folder = synthesize(config(small, bots=0.2, duplicates=0.1)).path
    clicks = "SELECT count(*) FILTER (level = 'click') / count(*) FILTER (level = 'view') FROM log"
    assert ask(folder, f"{clicks} WHERE user_id LIKE 'bot%'")[0][0] >= 1
    assert ask(folder, "SELECT DISTINCT level FROM log WHERE user_id LIKE 'bot%' ORDER BY 1") == [("click",), ("view",)]
    same = "SELECT level, count(*) AS n FROM log GROUP BY level, time, search_id, item_id, user_id, query, position"
    copies = ask(folder, f"SELECT level, n FROM ({same}) GROUP BY ALL")
    assert {n for _, n in copies} == {1, 2}
    assert {level for level, n in copies if n == 2} >= {"click", "cart"}
    assert ("view", 2) not in copies
    assert metrics(folder)["bot_rows"] == ask(folder, "SELECT count(*) FROM log WHERE user_id LIKE 'bot%'")[0][0] > 0


# ---------------------------------------------------------------- texts and judgments


def test_the_catalog_and_the_real_judgments_are_those_of_the_source(shop):
    items, judgments = read_sample("esci")
    assert read_items(shop / "items.parquet") == items
    read = read_judgments(shop / "judgments.parquet", items)
    refuse_leaks(read)
    real = read[: len(judgments)]
    key = [(j.query, j.item_id, j.grade, j.title, j.split, j.segment) for j in judgments]
    assert [(j.query, j.item_id, j.grade, j.title, j.split, j.segment) for j in real] == key
    assert {j.segment for j in read[len(judgments) :]} == {"alias word", "alias code"}
    assert {j.split for j in read[len(judgments) :]} == {"train", "valid", "test"}
    assert metrics(shop)["queries"] == len({normalize(j.query) for j in judgments}) + 40


def test_no_text_scorer_can_know_an_alias_but_clicks_can(shop):
    judged = ask(shop, "SELECT query, item_id, title, grade FROM judgments WHERE source = 'alias'")
    clicks = {
        (query, item): rate
        for query, item, rate in ask(
            shop, "SELECT query, item_id, clicks / exposures FROM truth_attraction WHERE exposures >= 10"
        )
    }
    titles = [title for (title,) in ask(shop, "SELECT title FROM items")]
    bm25 = BM25().fit(titles)
    catalog_words = {word for title in titles for word in words(title)}
    by_query = defaultdict(list)
    for query, item, title, grade in judged:
        assert not set(words(query)) & catalog_words
        by_query[query].append((item, title, grade))
    assert len(by_query) == 40
    by_text, by_click = [], []
    for query, rows in by_query.items():
        grades = np.array([grade for *_, grade in rows])
        assert 0 < grades.sum() < len(grades)
        by_text.append(auc(bm25.score(query, [title for _, title, _ in rows]), grades))
        known = [(clicks[query, item], grade) for item, _, grade in rows if (query, item) in clicks]
        if len({grade for _, grade in known}) == 2:
            by_click.append(auc(np.array([rate for rate, _ in known]), np.array([grade for _, grade in known])))
    assert by_text == [0.5] * 40
    assert len(by_click) > 20
    assert np.mean(by_click) > 0.95


def test_each_item_stands_behind_one_alias_only_and_the_truth_lists_the_relevant_ones(shop):
    judged = ask(shop, "SELECT query, item_id, grade FROM judgments WHERE source = 'alias'")
    assert len({item for _, item, _ in judged}) == len(judged)
    aliases = {(query, item) for query, _, item in table(shop / "truth" / "aliases.parquet")}
    assert aliases == {(query, item) for query, item, grade in judged if grade == 1}


def test_some_aliases_are_searched_a_lot_and_some_never(shop):
    searched = [
        n for (n,) in ask(shop, "SELECT any_value(frequency) FROM judgments WHERE source = 'alias' GROUP BY query")
    ]
    assert sum(n == 0 for n in searched) == 6
    assert sum(n >= 10 for n in searched) >= 10
    assert metrics(shop)["alias_searches"] / metrics(shop)["searches"] == pytest.approx(0.2, abs=0.03)


def test_an_alias_has_no_part_in_any_text():
    items = [Item(str(n), f"bolt {n}", brand=f"b{n // 8}") for n in range(80)]
    aliases = plant_aliases(build_catalog(items), [Judgment("bolt", "1", 0.0)], 3, seed=0)
    assert len({alias.query for alias in aliases}) == 3
    for alias in aliases:
        assert alias.kind == "code"
        letters, digits = alias.query.split("-")
        assert len(letters) == 2
        assert len(digits) == 5
        assert not any(digits in item.title for item in items)
        assert len(alias.members) == 8
        assert not set(alias.members) & set(alias.others)
    taken = aliases[0].query.split("-")[1]
    again = plant_aliases(build_catalog([*items, Item("n", f"kit x{taken}y")]), [Judgment("bolt", "1", 0.0)], 3, seed=0)
    assert not any(taken in alias.query for alias in again)


def test_shoppers_follow_their_planted_interests(shop):
    own = """
        WITH wanted AS (SELECT user_id, value, weight FROM truth_interests WHERE kind = 'department'),
        clicks AS (SELECT user_id, department FROM log JOIN truth_items USING (item_id) WHERE level = 'click')
        SELECT avg(coalesce(w.weight, 0)) FROM clicks AS c
        LEFT JOIN wanted AS w ON c.{user} = w.user_id AND c.department = w.value"""
    planted = ask(shop, own.format(user="user_id"))[0][0]
    # The same clicks, held against the interests of someone else.
    shifted = ask(shop, own.replace("c.{user}", "'u' || lpad(((c.user_id[2:]::INT + 7) % 240)::VARCHAR, 7, '0')"))[0][0]
    assert planted > 1.5 * shifted
    totals = ask(
        shop,
        "SELECT min(s), max(s), min(e), max(e) FROM (SELECT sum(weight) AS s, sum(weight_at_end) AS e "
        "FROM truth_interests WHERE kind = 'department' GROUP BY user_id)",
    )[0]
    assert totals == pytest.approx((1, 1, 1, 1))


def test_a_favorite_brand_is_clicked_more(small):
    folder = synthesize(config(small, interest=1.0, events=20_000)).path
    rates = ask(
        folder,
        """SELECT i.user_id IS NOT NULL, count(*) FILTER (level = 'click') / count(*) FILTER (level = 'view')
        FROM log JOIN items USING (item_id)
        LEFT JOIN (SELECT user_id, value FROM truth_interests WHERE kind = 'brand') AS i
        ON log.user_id = i.user_id AND items.brand = i.value GROUP BY 1 ORDER BY 1""",
    )
    assert rates[1][1] > 1.2 * rates[0][1]


# ---------------------------------------------------------------- what is said, and refused


def test_every_file_says_that_it_is_simulated(shop):
    for file in [*shop.glob("*.parquet"), *shop.glob("truth/*.parquet")]:
        assert pq.read_metadata(file).metadata[b"simulated"].startswith(b"Simulated by pertinent"), file
    assert "This data is simulated" in (shop / "README.md").read_text()
    artifact = open_artifact(shop, "shop")
    assert artifact.config == json.loads((shop / "truth" / "config.json").read_text())
    assert SynthesizeConfig.build({**artifact.config, "out": "x"}).events == EVENTS


def test_one_item_one_judgment_is_a_shop(tmp_path):
    (tmp_path / "i.csv").write_text("item_id,title\na,Löwe 獅子\n", encoding="utf-8")
    (tmp_path / "j.csv").write_text("query,item_id,grade\nlöwe,a,1\n", encoding="utf-8")
    folder = synthesize(
        SynthesizeConfig(
            out=str(tmp_path / "s"),
            items=str(tmp_path / "i.csv"),
            judgments=str(tmp_path / "j.csv"),
            aliases=0,
            events=50,
        )
    ).path
    assert ask(folder, "SELECT DISTINCT query, item_id, position FROM log") == [("löwe", "a", 0)]
    assert 45 <= metrics(folder)["rows"] <= 50
    assert len(read_judgments(folder / "judgments.parquet", read_items(folder / "items.parquet"))) == 1


def test_equal_titles_and_grades_still_give_pages_without_repeats(tmp_path):
    (tmp_path / "i.csv").write_text("item_id,title\n" + "".join(f"{n},same lamp\n" for n in range(50)))
    (tmp_path / "j.csv").write_text("query,item_id,grade\n" + "".join(f"lamp,{n},0.5\n" for n in range(50)))
    settings = {"items": str(tmp_path / "i.csv"), "judgments": str(tmp_path / "j.csv"), "out": str(tmp_path / "s")}
    folder = synthesize(SynthesizeConfig.build({**settings, "aliases": 0, "events": 2_000})).path
    assert ask(folder, "SELECT count(*) - count(DISTINCT (search_id, position)) FROM log WHERE level = 'view'") == [
        (0,)
    ]
    assert ask(folder, "SELECT count(DISTINCT item_id) FROM log")[0][0] >= 40


def test_the_sample_of_icecat_makes_a_shop_too(tmp_path, capsys):
    argv = ["data", "synthesize", "--out", str(tmp_path / "shop"), "--sample", "icecat", "--events", "5000", "--json"]
    assert main([*argv, "--set", "aliases=0"]) == 0
    items, judgments = read_sample("icecat")
    folder = tmp_path / "shop"
    known = {item.item_id for item in items}
    assert {row[0] for row in ask(folder, "SELECT DISTINCT item_id FROM log")} <= known
    assert {row[0] for row in ask(folder, "SELECT DISTINCT query FROM judgments")} <= {row.query for row in judgments}
    assert 4_000 < ask(folder, "SELECT count(*) FROM log")[0][0] <= 5_000


def test_what_cannot_be_made_is_refused_with_what_to_do(small, tmp_path):
    with pytest.raises(ConfigError, match=r"events: 5 is less than the \d+ rows of the first search; give at least"):
        synthesize(config(small, events=5))
    with pytest.raises(ConfigError, match="aliases: 500 need 1500 groups of 5 items or more"):
        synthesize(config(small, aliases=500))
    with pytest.raises(DataError, match="no sample 'amazon'; with judgments: esci, icecat"):
        synthesize(SynthesizeConfig(out=str(tmp_path / "x"), sample="amazon"))
    with pytest.raises(DataError, match="'wands' has no judgments"):
        synthesize(SynthesizeConfig(out=str(tmp_path / "x"), sample="wands"))
    with pytest.raises(DataError, match="no such file"):
        synthesize(config(small, items=str(tmp_path / "missing.csv")))
    with pytest.raises(ConfigError, match="items and judgments go together"):
        SynthesizeConfig.build({"out": "x", "items": "i.csv"})
    (tmp_path / "empty.csv").write_text("query,item_id,grade\n")
    with pytest.raises(DataError, match="has no rows"):
        synthesize(config(small, judgments=str(tmp_path / "empty.csv")))
    (tmp_path / "other.csv").write_text("query,item_id,title,grade\nlamp,zz,lamp,1\n")
    with pytest.raises(DataError, match="no judgment is about an item of the catalog"):
        synthesize(config(small, judgments=str(tmp_path / "other.csv"), aliases=0))
    assert not (tmp_path / "shop").exists()
    assert not list(tmp_path.glob(".*"))


def test_a_foreign_folder_is_refused_and_a_stopped_run_leaves_the_old_shop(small, tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(ArtifactError, match="is not an artifact"):
        synthesize(config(small, out=str(tmp_path / "mine")))
    first = synthesize(config(small)).version

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(synthetic, "_write_truth", stop)
        with pytest.raises(KeyboardInterrupt):
            synthesize(config(small, seed=1))
    assert open_artifact(tmp_path / "shop").version == first
    assert not list(tmp_path.glob(".*"))
    assert synthesize(config(small, seed=1)).version != first


def test_the_command_and_its_group(small, capsys, tmp_path):
    flags = ["--items", small["items"], "--judgments", small["judgments"], "--events", "2000", "--set", "aliases=2"]
    assert main(["data", "synthesize", "--out", small["out"], "--seed", "3", *flags, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["kind"] == "shop"
    assert printed["metrics"]["rows"] <= 2000
    assert main(["evaluate", "bm25", "--judgments", small["out"] + "/judgments.parquet", "--positive-grade", "1"]) == 0
    assert main(["data"]) == 0
    assert "data synthesize" in capsys.readouterr().out
    for argv, told in ((["data", "synthesise"], "did you mean synthesize?"), (["data", "x"], "see: pertinent data")):
        with pytest.raises(SystemExit) as stop:
            main(argv)
        assert stop.value.code == 2
        assert told in capsys.readouterr().err
