"""Ids that were asked for lately: the same rows as from the index, whatever came before."""

from __future__ import annotations

import numpy as np
import pytest

from pertinent.engine.index import ItemIndex
from pertinent.engine.recent_ids import RecentIds
from pertinent.lexicon.pairs import PairTokenizer
from pertinent.records import Item

IDS = ["a", "b", "12", "-3", "größe 日本", "0", "x" * 300, *(f"item-{number}" for number in range(40))]


@pytest.fixture(scope="module")
def index(tiny_pairs: PairTokenizer, tmp_path_factory: pytest.TempPathFactory) -> ItemIndex:
    return ItemIndex.build([Item(each, "Mug") for each in IDS], tiny_pairs, tmp_path_factory.mktemp("ids") / "index")


@pytest.mark.parametrize("most", [0, 1, 5, 1_000])
def test_rows_are_those_of_the_index_whatever_was_asked_before(index: ItemIndex, most: int) -> None:
    recent, random = RecentIds(index, most), np.random.default_rng(0)
    known = [*IDS, 12, -3, 0, "no such", 99, "", "日本"]
    for size in [0, 1, *random.integers(0, 30, size=60)]:
        asked = [known[place] for place in random.integers(len(known), size=size)]
        rows = recent.find(asked)
        assert rows.dtype == np.int64
        assert rows.shape == (size,)
        assert rows.tolist() == index.find([str(each) for each in asked]).tolist()
        assert len(recent) <= most


def test_what_is_asked_again_is_not_searched_again(index: ItemIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    recent, searched = RecentIds(index), []
    find = ItemIndex.find
    monkeypatch.setattr(ItemIndex, "find", lambda self, ids: searched.append(list(ids)) or find(self, ids))
    recent.find(["a", 12, "no such"])
    recent.find(["b", "a", 12, "no such"])
    assert searched == [["a", "12", "no such"], ["b", "no such"]]
    assert len(recent) == 3, "ids that the index does not have are not kept"


def test_many_ids_that_begin_anew_now_and_then_have_the_same_rows() -> None:
    class Numbered:
        """An index of ids that are their own rows."""

        def __len__(self) -> int:
            return 100_000

        def find(self, ids: list[str]) -> np.ndarray:
            return np.array([int(each) for each in ids], dtype=np.int64)

    recent, random = RecentIds(Numbered(), most=20_000), np.random.default_rng(0)  # type: ignore[arg-type]
    for most in (500, 5_000, 15_000, 15_000, 60_000):
        asked = random.integers(most, size=4_000)
        assert (recent.find([str(number) for number in asked]) == asked).all()
        assert len(recent) <= 20_000
