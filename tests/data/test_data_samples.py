from collections import Counter

import duckdb
import pytest

from pertinent.data import samples
from pertinent.data.grades import SCALES
from pertinent.data.samples import SAMPLES, read_sample, read_sequences, sample_path
from pertinent.data.splits import refuse_leaks
from pertinent.errors import DataError
from pertinent.mining.schema import LEVELS, MICROSECONDS


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


def test_sequences_of_real_customers_are_in_order_of_time_and_whole():
    sequences = read_sequences("online_retail")
    users, places, times = (sequences.column(name) for name in ("user_id", "place", "time"))
    assert len(sequences) == 776627
    assert len(set(users)) == 5853
    rows = [[values[row] for values in sequences.columns.values()] for row in (0, 9, -1)]
    assert rows[0] == ["12346", 0, 1_267_535_280_000_000, "", "20682", 5]  # 2010-03-02 13:08
    assert rows[1] == ["12346", 9, 1_277_733_180_000_000, "", "22691", 5]
    assert rows[2] == ["18287", 153, 1_319_794_140_000_000, "", "21014", 5]
    # Columns, levels and the unit of time are those of mined sequences.
    assert list(sequences.columns) == ["user_id", "place", "time", "query", "item_id", "level"]
    assert {LEVELS[level] for level in sequences.column("level")} == {"pay"}
    assert all(time % (60 * MICROSECONDS) == 0 for time in times)
    for row in range(1, len(sequences)):
        same = users[row] == users[row - 1]
        assert places[row] == (places[row - 1] + 1 if same else 0)
        assert not same or times[row] >= times[row - 1]


def test_the_longest_sequences_lose_their_oldest_part():
    whole, short = read_sequences(), read_sequences(longest=1)
    last = dict(zip(whole.column("user_id"), whole.column("place"), strict=True))
    assert dict(zip(short.column("user_id"), short.column("place"), strict=True)) == last
    assert len(short) == len(last)


def test_a_sample_that_is_not_there_says_what_is(monkeypatch, tmp_path):
    with pytest.raises(DataError, match="no sample 'amazon'; allowed: esci, icecat"):
        sample_path("amazon")
    with pytest.raises(DataError, match="'wands' has no judgments; with judgments: esci, icecat"):
        read_sample("wands")
    with pytest.raises(DataError, match="'esci' has no sequences; with sequences: online_retail"):
        read_sequences("esci")
    monkeypatch.setattr(samples, "FOLDER", tmp_path)
    with pytest.raises(DataError, match="not with the installed package; run this in a clone"):
        sample_path("esci")
