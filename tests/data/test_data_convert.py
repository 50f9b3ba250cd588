"""Public data sets as tables: what is written is read back as what was published."""

from __future__ import annotations

from pathlib import Path

import pytest

from pertinent.data.convert import PublicConfig, convert
from pertinent.data.public import DATASETS, load_public
from pertinent.data.readers import read_items, read_judgments
from pertinent.errors import DataError

FIXTURES = Path(__file__).parent / "fixtures"


@pytest.mark.parametrize("name", DATASETS)
def test_the_tables_are_read_back_as_the_data_set(name: str, tmp_path: Path) -> None:
    found = convert(PublicConfig(dataset=name, files=str(FIXTURES / name), out=str(tmp_path / "out")))
    data = load_public(name, FIXTURES / name)
    items = read_items(tmp_path / "out" / "items.csv")
    judgments = read_judgments(tmp_path / "out" / "judgments.csv", items)
    assert items == data.items and len(items) == found.items
    pairs = {(judgment.query, judgment.item_id): judgment for judgment in judgments}
    assert len(judgments) == found.judgments > 0
    for wanted in data.judgments:
        alike = [j.grade for j in data.judgments if (j.query, j.item_id) == (wanted.query, wanted.item_id)]
        judgment = pairs[wanted.query, wanted.item_id]
        assert judgment.grade == pytest.approx(sum(set(alike)) / len(set(alike)))
        assert (judgment.title, judgment.split, judgment.segment) == (wanted.title, wanted.split, wanted.segment)
    assert found.plain()["license"] == data.license
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["items.csv", "judgments.csv"]


def test_a_wrong_name_or_folder_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="did you mean 'wands'"):
        convert(PublicConfig(dataset="wand", files=str(FIXTURES / "wands"), out=str(tmp_path / "out")))
    with pytest.raises(DataError):
        convert(PublicConfig(dataset="wands", files=str(tmp_path), out=str(tmp_path / "out")))
    assert list(tmp_path.iterdir()) == []
