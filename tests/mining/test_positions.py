"""Position effects: rates and COEC by hand, and a click model that finds the propensities it was made with."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pertinent.mining.positions import PositionConfig, coec, debiased_ctr, fit_position_model, position_table
from pertinent.mining.schema import DAILY_POSITIONS

FEW = settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
KEYS = ["query", "item_id"]
EXACT = PositionConfig(tolerance=1e-12, iterations=5000)
# "led, a" and "led, b" change places; "tv" and "é" are only ever seen at one place each.
LOG = [
    (1, "led", "a", 0, 10, 6),
    (1, "led", "a", 1, 10, 3),
    (1, "led", "b", 0, 20, 4),
    (1, "led", "b", 1, 20, 2),
    (1, "tv", "a", 0, 10, 2),
    (2, "tv", "a", 0, 10, 0),
    (2, "é", "c", 2, 20, 2),
]


def shown_pages(seed, queries, impressions, noise, positions=10, items=20):
    """Counts of a made-up shop: attractive items stand higher, and a click needs an examination."""
    rng = np.random.default_rng(seed)
    propensity = 1 / (1 + np.arange(positions)) ** 0.9
    attraction = rng.beta(1, 2.5, (queries, items))
    frequency = 1 / np.arange(1, queries + 1) ** 0.7
    query = rng.choice(queries, impressions // positions, p=frequency / frequency.sum())
    liking = np.log(attraction[query]) + noise * rng.gumbel(size=(len(query), items))
    shown = np.argsort(-liking, axis=1)[:, :positions]
    position = np.broadcast_to(np.arange(positions), shown.shape)
    clicked = rng.random(shown.shape) < propensity * attraction[query[:, None], shown]
    cell = ((query[:, None] * items + shown) * positions + position).ravel()
    exposures = np.bincount(cell, minlength=queries * items * positions)
    clicks = np.bincount(cell, clicked.ravel(), queries * items * positions).astype(np.int64)
    cells = np.flatnonzero(exposures)
    counts = pa.table(
        {
            "query": [f"q{n}" for n in cells // positions // items],
            "item_id": [f"i{n}" for n in cells // positions % items],
            "position": pa.array(cells % positions, pa.int32()),
            "exposures": exposures[cells],
            "clicks": clicks[cells],
        }
    )
    return counts, propensity


def test_rates_and_expected_clicks_are_as_they_are_worked_out_by_hand(bench):
    counts = bench.table(DAILY_POSITIONS, LOG)
    curve = bench.rows(position_table(counts), ["position"])
    assert curve == [(0, 50, 12, 0.24), (1, 30, 5, 5 / 30), (2, 20, 2, 0.1)]
    found = bench.rows(coec(counts), KEYS)
    expected = [
        ("led", "a", 20, 9, 10 * 0.24 + 10 / 6, 9 / (10 * 0.24 + 10 / 6)),
        ("led", "b", 40, 6, 20 * 0.24 + 20 / 6, 6 / (20 * 0.24 + 20 / 6)),
        ("tv", "a", 20, 2, 4.8, 2 / 4.8),
        ("é", "c", 20, 2, 2.0, 1.0),
    ]
    assert [row[:4] for row in found] == [row[:4] for row in expected]
    assert [row[4:] for row in found] == [pytest.approx(row[4:], abs=1e-7) for row in expected]


@pytest.mark.parametrize("form", ["poisson", "bernoulli"])
def test_the_fit_is_as_it_is_worked_out_by_hand(bench, form):
    # Both movers get half of their clicks at place 1: its propensity is 0.5 in either form of the model.
    counts = bench.table(DAILY_POSITIONS, LOG)
    model = fit_position_model(counts, EXACT.model_copy(update={"form": form}))
    assert model.propensity == pytest.approx([1.0, 0.5, 0.1 / 0.24], abs=1e-6)
    assert model.identified.tolist() == [True, True, False]
    assert (model.pairs_seen, model.pairs_several) == (4, 2)
    pairs = model.pairs.to_pylist()
    assert [pair["item_id"] for pair in pairs] == ["a", "b"]
    assert [pair["attraction"] for pair in pairs] == pytest.approx([0.6, 0.2], abs=1e-6)
    assert len(model.warnings) == 1 and "1 of 3 positions" in model.warnings[0]
    found = bench.rows(debiased_ctr(counts, model.propensity), KEYS)
    assert [row[5] for row in found] == pytest.approx([9 / 15, 6 / 30, 2 / 20, 2 / (20 * 0.1 / 0.24)], abs=1e-6)


def test_empty_in_is_empty_out_with_the_same_columns(duckdb_bench):
    empty, full = (duckdb_bench.table(DAILY_POSITIONS, rows) for rows in ([], LOG))
    model = fit_position_model(empty, PositionConfig())
    assert model.propensity.tolist() == [1.0] and model.exposures.tolist() == [0]
    assert model.report()["rounds"] == 0 and model.report()["converged"] is True
    makers = [(position_table, ["position"]), (coec, KEYS), (lambda t: debiased_ctr(t, model.propensity), KEYS)]
    for make, order in makers:
        assert duckdb_bench.rows(make(empty), order) == []
        assert duckdb_bench.types(make(empty), order) == duckdb_bench.types(make(full), order)


@pytest.mark.parametrize("form", ["poisson", "bernoulli"])
def test_planted_propensities_are_found_in_a_million_impressions(duckdb_engine, form):
    counts, planted = shown_pages(0, queries=500, impressions=1_000_000, noise=0.3)
    table = duckdb_engine.create_table(f"million_{form}", counts, temp=True)
    model = fit_position_model(table, PositionConfig(form=form))
    rates = model.clicks / model.exposures
    assert np.abs(rates / rates[0] - planted).max() > 0.04  # what the place does and what stands there, mixed
    assert np.abs(model.propensity - planted).max() < 0.01
    assert model.identified.all() and model.converged and model.warnings == []
    assert np.diff(model.log_likelihoods).min() > -1e-6
    assert model.log_likelihoods[-1] > model.log_likelihoods[0]


def test_few_exposures_a_pair_flatten_the_bernoulli_form_and_not_the_poisson_form(duckdb_engine):
    counts, planted = shown_pages(0, queries=30_000, impressions=500_000, noise=1.0)
    table = duckdb_engine.create_table("sparse", counts, temp=True)
    poisson = fit_position_model(table, PositionConfig())
    assert np.abs(poisson.propensity - planted).max() < 0.03
    bernoulli = fit_position_model(table, PositionConfig(form="bernoulli", iterations=60))
    assert (bernoulli.propensity - planted).max() > 0.1


@pytest.mark.parametrize("form", ["poisson", "bernoulli"])
def test_the_likelihood_never_falls_with_a_prior_either(duckdb_engine, form):
    counts, _ = shown_pages(1, queries=200, impressions=20_000, noise=1.0)
    table = duckdb_engine.create_table(f"prior_{form}", counts, temp=True)
    config = PositionConfig(form=form, prior_clicks=0.5, prior_skips=1.5, iterations=50)
    model = fit_position_model(table, config)
    assert np.diff(model.log_likelihoods).min() > -1e-6
    assert model.pairs.num_rows == model.pairs_several  # pairs without a click count too, with a prior
    assert min(model.pairs["attraction"].to_pylist()) > 0


def test_a_fit_that_is_cut_short_says_so(duckdb_bench):
    table = duckdb_bench.table(DAILY_POSITIONS, LOG[:4])
    model = fit_position_model(table, PositionConfig(form="bernoulli", iterations=1, tolerance=1e-15))
    assert not model.converged and "iterations" in model.warnings[0]


@pytest.mark.parametrize(
    "rows",
    [
        [(1, "led", "a", 0, 10, 5), (1, "led", "b", 1, 10, 2), (1, "led", "c", 2, 10, 1)],
        # Movers without a click tell nothing, nor do movers that were never at the first place.
        [
            (1, "led", "a", 0, 10, 5),
            (1, "led", "b", 1, 10, 2),
            (1, "led", "b", 2, 10, 1),
            (1, "led", "c", 0, 5, 0),
            (1, "led", "c", 1, 5, 0),
        ],
    ],
)
def test_what_cannot_be_told_apart_is_said_to_be(duckdb_bench, rows):
    model = fit_position_model(duckdb_bench.table(DAILY_POSITIONS, rows), PositionConfig())
    assert model.identified.tolist() == [True, False, False]
    assert "propensities of 2 of 3 positions are not identified" in model.warnings[0]
    rates = model.clicks / model.exposures
    assert model.propensity == pytest.approx(rates / rates[0])


def test_positions_are_linked_through_others(duckdb_bench):
    rows = [
        (1, "led", "a", 0, 100, 40),
        (1, "led", "a", 1, 100, 20),
        (1, "led", "b", 1, 100, 20),
        (1, "led", "b", 3, 100, 5),
        (1, "led", "c", 2, 100, 0),
    ]
    model = fit_position_model(duckdb_bench.table(DAILY_POSITIONS, rows), EXACT)
    assert model.identified.tolist() == [True, True, False, True]
    assert model.propensity == pytest.approx([1, 0.5, 0, 0.125], abs=1e-6)


def test_a_log_that_counts_positions_from_one_still_has_a_first(duckdb_bench):
    rows = [(day, query, item, position + 1, *rest) for day, query, item, position, *rest in LOG[:4]]
    model = fit_position_model(duckdb_bench.table(DAILY_POSITIONS, rows), EXACT)
    assert model.propensity == pytest.approx([1, 1, 0.5], abs=1e-6)
    assert model.identified.tolist() == [False, True, True]


def test_places_past_the_last_fitted_are_debiased_as_the_last(duckdb_bench):
    rows = [*LOG[:4], (1, "led", "z", 7, 10, 1)]
    table = duckdb_bench.table(DAILY_POSITIONS, rows)
    model = fit_position_model(table, EXACT.model_copy(update={"positions": 2}))
    assert len(model.propensity) == 2
    found = duckdb_bench.rows(debiased_ctr(table, model.propensity), KEYS)
    assert found[-1][:4] == ("led", "z", 10, 1)
    assert found[-1][4:] == pytest.approx((5.0, 0.2), abs=1e-6)


def test_pairs_where_no_click_is_expected_have_no_ratio(duckdb_bench):
    table = duckdb_bench.table(DAILY_POSITIONS, [(1, "led", "a", 0, 5, 0), (1, "led", "ü", 0, 5, 0)])
    assert duckdb_bench.rows(coec(table), KEYS) == [
        ("led", "a", 5, 0, 0.0, None),
        ("led", "ü", 5, 0, 0.0, None),
    ]
    assert fit_position_model(table, PositionConfig()).propensity.tolist() == [1.0]


@FEW
@given(
    cells=st.dictionaries(
        st.tuples(st.sampled_from("aé"), st.sampled_from("12"), st.integers(0, 3)),
        st.tuples(st.integers(1, 9), st.integers(0, 9)),
        max_size=16,
    ),
    form=st.sampled_from(["poisson", "bernoulli"]),
)
def test_the_order_of_rows_does_not_matter_and_all_is_finite(duckdb_bench, cells, form):
    rows = [(1, *cell, shown, min(clicks, shown)) for cell, (shown, clicks) in cells.items()]
    config = PositionConfig(form=form, iterations=20)
    one, two = (fit_position_model(duckdb_bench.table(DAILY_POSITIONS, r), config) for r in (rows, rows[::-1]))
    assert one.propensity.tolist() == two.propensity.tolist() and np.isfinite(one.propensity).all()
    assert one.propensity[0] == 1
    assert one.pairs.equals(two.pairs)
    assert all(np.diff(one.log_likelihoods) > -1e-9)
    tables = (coec(duckdb_bench.table(DAILY_POSITIONS, r)) for r in (rows, rows[::-1]))
    assert duckdb_bench.rows(next(tables), KEYS) == duckdb_bench.rows(next(tables), KEYS)


def test_the_report_is_numbers_and_words(duckdb_bench):
    report = fit_position_model(duckdb_bench.table(DAILY_POSITIONS, LOG), PositionConfig()).report()
    assert (report["pairs_seen"], report["pairs_several"], report["pairs_fitted"]) == (4, 2, 2)
    assert (report["positions"], report["positions_identified"]) == (3, 2)
    assert report["log_likelihood"] >= report["log_likelihood_start"]
