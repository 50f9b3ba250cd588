from collections import Counter

import duckdb
import pytest

from pertinent.data import samples
from pertinent.data.grades import SCALES
from pertinent.data.samples import SAMPLES, read_sample, sample_path
from pertinent.data.splits import refuse_leaks
from pertinent.errors import DataError


@pytest.fixture(scope="module")
def esci():
    return read_sample("esci")


@pytest.fixture(scope="module")
def icecat():
    return read_sample("icecat")


def test_esci_has_the_rows_that_the_data_card_says(esci):
    items, judgments = esci
    assert (len(items), len(judgments), len({j.query for j in judgments})) == (10086, 8044, 2406)
    assert Counter(j.label for j in judgments) == {"E": 4472, "S": 2074, "I": 1167, "C": 331}
    assert Counter(j.split for j in judgments) == {"train": 6524, "valid": 697, "test": 823}
    assert Counter(j.segment for j in judgments) == {"us": 7305, "jp": 414, "es": 325}


def test_icecat_has_the_rows_that_the_data_card_says(icecat):
    items, judgments = icecat
    assert (len(items), len(judgments), len({j.query for j in judgments})) == (19406, 2589, 108)
    assert Counter(j.label for j in judgments) == {"0": 1210, "3": 1135, "1": 155, "2": 89}
    assert Counter(j.split for j in judgments) == {"train": 1971, "valid": 412, "test": 206}


@pytest.mark.parametrize(("name", "scale"), [("esci", "esci"), ("icecat", "icecat")])
def test_grades_are_those_of_the_scale_exactly(name, scale, request):
    for judgment in request.getfixturevalue(name)[1]:
        assert judgment.grade == SCALES[scale].grade(judgment.label)


@pytest.mark.parametrize("name", ["esci", "icecat"])
def test_no_query_is_in_two_splits_and_each_item_is_in_the_catalog_with_its_title(name, request):
    items, judgments = request.getfixturevalue(name)
    refuse_leaks(judgments)
    titles = {item.item_id: item.title for item in items}
    assert all(titles[j.item_id] == j.title for j in judgments)


def test_first_tenth_and_last_judgment_of_esci(esci):
    first, tenth, last = esci[1][0], esci[1][9], esci[1][-1]
    assert (first.query, first.item_id, first.grade, first.split) == ("kindle", "B07CXG6C9W", 1.0, "train")
    assert (tenth.grade, tenth.segment) == (0.0, "us")
    assert (last.query, last.item_id, last.label, last.split) == ("serums", "B014PGEEO2", "E", "test")


def test_items_keep_brand_description_and_attributes(esci, icecat):
    kindle = next(item for item in esci[0] if item.item_id == "B07CXG6C9W")
    assert (kindle.brand, kindle.attributes["color"], kindle.attributes["rating"]) == ("Amazon", "Black", "4.6")
    assert "esci_query_ids" not in kindle.attributes
    toner = icecat[0][0]
    assert toner.attributes["black_toner_page_yield"] == "23000"
    assert toner.attributes["price_cents"] == "4995"


@pytest.mark.parametrize("name", SAMPLES)
def test_every_sample_names_its_license_and_reads(name):
    text = (sample_path(name) / "LICENSE").read_text(encoding="utf-8")
    assert all(word in text for word in ("Source:", "License:", "Attribution:", "Changes:"))
    for file in sample_path(name).glob("*.parquet"):
        assert duckdb.execute("SELECT count(*) FROM read_parquet(?)", [str(file)]).fetchall()[0][0] > 0


def test_a_sample_that_is_not_there_says_what_is(monkeypatch, tmp_path):
    with pytest.raises(DataError, match="no sample 'amazon'; allowed: esci, icecat"):
        sample_path("amazon")
    with pytest.raises(DataError, match="'wands' has no judgments; with judgments: esci, icecat"):
        read_sample("wands")
    monkeypatch.setattr(samples, "FOLDER", tmp_path)
    with pytest.raises(DataError, match="not with the installed package; run this in a clone"):
        sample_path("esci")
