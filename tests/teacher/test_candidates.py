from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pertinent.errors import ConfigError
from pertinent.teacher.candidates import CandidateMix, candidates
from pertinent.teacher.similarity import Coverage

NOTHING = {"top": 0, "near": 0, "middle": 0, "lexical": 0, "random": 0}
SMALL = CandidateMix(top=3, near=2, near_rank=10, middle=1, middle_rank=30, lexical=1, random=1)


def unit(count: int, seed: int) -> NDArray[np.float32]:
    vectors = np.random.default_rng(seed).normal(size=(count, 8)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def catalog(count: int) -> list[str]:
    return [f"thing {row} {'red' if row % 3 else 'größe'} kind{row % 7}" for row in range(count)]


def pick(mix: CandidateMix, queries: int, titles: int, seed: int = 0) -> Any:
    texts = [f"thing {row} kind{row % 7} unknown" for row in range(queries)]
    rng = np.random.default_rng(seed)
    return candidates(mix, texts, unit(queries, 1), unit(titles, 2), Coverage(catalog(titles)), rng)


def test_no_pair_twice_queries_in_order_cosines_true() -> None:
    query_rows, title_rows, cosines = pick(SMALL, 300, 50)  # more than one chunk of queries
    assert (np.diff(query_rows) >= 0).all() and set(query_rows.tolist()) == set(range(300))
    assert len(set(zip(query_rows.tolist(), title_rows.tolist(), strict=True))) == len(query_rows)
    assert title_rows.min() >= 0 and title_rows.max() < 50
    assert (query_rows.dtype, title_rows.dtype, cosines.dtype) == (np.int64, np.int64, np.float32)
    expected = (unit(300, 1)[query_rows] * unit(50, 2)[title_rows]).sum(axis=1)
    np.testing.assert_allclose(cosines, expected, atol=1e-6)
    counts = np.bincount(query_rows)
    assert counts.max() <= 8 and counts.min() >= 6, "top, near and middle never meet"


def test_the_seed_decides() -> None:
    first, again, other = pick(SMALL, 20, 50), pick(SMALL, 20, 50), pick(SMALL, 20, 50, seed=1)
    for one, two in zip(first, again, strict=True):
        np.testing.assert_array_equal(one, two)
    assert first[1].tolist() != other[1].tolist()


def test_each_part_of_the_mix_comes_from_its_ranks() -> None:
    similarity = unit(40, 1) @ unit(50, 2).T
    ranks = np.argsort(np.argsort(-similarity, axis=1), axis=1)

    def chosen_ranks(**parts: int) -> NDArray[np.int64]:
        mix = CandidateMix(**{**NOTHING, "near_rank": 10, "middle_rank": 30, **parts})
        query_rows, title_rows, _ = pick(mix, 40, 50)
        found: NDArray[np.int64] = ranks[query_rows, title_rows].reshape(40, -1)
        return found

    assert chosen_ranks(top=3).tolist() == [[0, 1, 2]] * 40
    near = chosen_ranks(top=3, near=2)[:, 3:]
    assert near.shape == (40, 2) and near.min() >= 3 and near.max() < 10
    middle = chosen_ranks(middle=4)
    assert middle.shape == (40, 4) and middle.min() >= 10 and middle.max() < 30
    assert chosen_ranks(random=1).max() >= 30
    assert chosen_ranks(near=99, top=2).tolist() != [] and (np.sort(chosen_ranks(near=99, top=2)) == range(10)).all()


def test_lexical_candidates_have_the_rarest_word() -> None:
    query_rows, title_rows, _ = pick(CandidateMix(**{**NOTHING, "lexical": 1}), 40, 50)
    assert title_rows.tolist() == query_rows.tolist(), "the number of the query is its rarest word"
    query_rows, title_rows, _ = pick(CandidateMix(**{**NOTHING, "lexical": 2}), 40, 50)
    assert all(title % 7 == query % 7 for query, title in zip(query_rows, title_rows, strict=True))


@pytest.mark.parametrize("titles", [1, 2, 5])
def test_fewer_titles_than_asked_for(titles: int) -> None:
    query_rows, title_rows, _ = pick(CandidateMix(), 4, titles)
    assert len(set(zip(query_rows.tolist(), title_rows.tolist(), strict=True))) == len(query_rows)
    assert (np.bincount(query_rows) >= min(titles, 5)).all() and title_rows.max() < titles


def test_ties_are_all_candidates_once() -> None:
    titles = np.repeat(unit(1, 0), 6, axis=0)
    mix = CandidateMix(**{**NOTHING, "top": 6})
    query_rows, title_rows, cosines = candidates(
        mix, ["red"], unit(1, 0), titles, Coverage(["red"] * 6), np.random.default_rng(0)
    )
    assert sorted(title_rows.tolist()) == list(range(6)) and query_rows.tolist() == [0] * 6
    np.testing.assert_allclose(cosines, 1, atol=1e-6)


@pytest.mark.parametrize(("queries", "titles"), [(0, 5), (3, 0), (0, 0)])
def test_nothing_gives_nothing(queries: int, titles: int) -> None:
    for found, dtype in zip(pick(CandidateMix(), queries, titles), (np.int64, np.int64, np.float32), strict=True):
        assert found.shape == (0,) and found.dtype == dtype


def test_a_mix_of_nothing_gives_nothing() -> None:
    assert all(len(found) == 0 for found in pick(CandidateMix(**NOTHING), 3, 5))


def test_queries_without_known_words_get_the_rest_of_the_mix() -> None:
    for query in ("", "unheard", "\ud800", "日本語"):
        found = candidates(SMALL, [query], unit(1, 1), unit(50, 2), Coverage(catalog(50)), np.random.default_rng(0))
        assert 6 <= len(found[0]) <= 7


@pytest.mark.parametrize("wrong", [{"top": -1}, {"near_rank": 0}, {"middle_rank": 0}, {"tops": 1}])
def test_wrong_mixes_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        CandidateMix.build(wrong)
