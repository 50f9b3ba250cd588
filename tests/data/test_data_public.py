import shutil
from pathlib import Path

import duckdb
import pytest

from pertinent.data.public import DATASETS, esci, load_public
from pertinent.data.qrels import trec
from pertinent.errors import DataError

FIXTURES = Path(__file__).parent / "fixtures"
# name -> items, judgments, and (query, item_id, grade, label, split) of the first, tenth and last judgment
EXPECTED = {
    "esci": (
        14,
        14,
        ("kindle", "us:B07CXG6C9W", 1.0, "E", "train"),
        ("orcam my eye 2", "es:B07RFVT38K", 0.0, "I", "train"),
        ("lápiz ojos negro waterproof", "es:B010UMODBE", 0.1, "S", "train"),
    ),
    "wands": (
        4,
        12,
        ("salon chair", "0", 1.0, "Exact", None),
        ('24" round mirror', "2", 1.0, "Exact", None),
        ('24" round mirror', "3", 0.0, "Irrelevant", None),
    ),
    "home_depot": (
        7,
        11,
        ("angle bracket", "100001", 1.0, "3", None),
        ("mdf 3/4", "100009", 1.0, "3", None),
        ("steele stake", "100010", 0.0, "1", None),
    ),
    "crowdflower": (
        11,
        11,
        ("bridal shower decorations", "1", 0.0, "1", None),
        ("waffle maker", "15", 1.0, "4", None),
        ("oakley radar", "16", pytest.approx(1 / 3), "2", None),
    ),
    "beir": (
        5,
        12,
        ("red dress", "d1", 1.0, "2", "test"),
        ("couch", "d3", 0.0, "0", "test"),
        ("jeans", "d5", 0.5, "1", "train"),
    ),
    "trec": (
        5,
        11,
        ('"red" dress 5"', "B1", 1.0, "3", None),
        ("power bank", "B1", 0.0, "0", None),
        ("power bank", "B2", 0.0, "0", None),
    ),
}


@pytest.mark.parametrize("name", DATASETS)
def test_counts_and_first_tenth_and_last_row(name):
    data = load_public(name, FIXTURES / name)
    items, judgments, *rows = EXPECTED[name]
    assert (len(data.items), len(data.judgments)) == (items, judgments)
    found = [data.judgments[place] for place in (0, 9, -1)]
    assert [(j.query, j.item_id, j.grade, j.label, j.split) for j in found] == rows


@pytest.mark.parametrize("name", DATASETS)
def test_every_judgment_has_the_title_of_its_item_and_the_license_is_named(name):
    data = load_public(name, str(FIXTURES / name))
    titles = {item.item_id: item.title for item in data.items}
    assert len(titles) == len(data.items)
    assert all(j.title == titles[j.item_id] != "" and j.query for j in data.judgments)
    assert all(0 <= j.grade <= 1 for j in data.judgments)
    assert data.license
    assert data.citation


def test_esci_by_locale_and_version():
    assert len(esci(FIXTURES / "esci", version="large").judgments) == 15
    us = esci(FIXTURES / "esci", locale="us")
    assert {j.segment for j in us.judgments} == {"us"}
    assert us.items[0].item_id == "B07CXG6C9W"
    assert us.items[0].title.startswith("Kindle Paperwhite")  # not the product of another locale
    assert us.items[0].attributes["color"] == "Black"
    for wrong in ({"locale": "de"}, {"version": "tiny"}):
        with pytest.raises(DataError, match=r"there is no .* allowed: "):
            esci(FIXTURES / "esci", **wrong)


def test_wands_items_have_category_and_features():
    chair, table, *_ = load_public("wands", FIXTURES / "wands").items
    assert chair.category == "Furniture / Office Furniture / Office Chairs"
    assert chair.attributes == {"overallwidth": "25", "color": "black", "upholsterymaterial": "faux leather"}
    assert table.title == "café lift-top coffee table"


def test_home_depot_items_join_three_files_in_two_encodings():
    items = {item.item_id: item for item in load_public("home_depot", FIXTURES / "home_depot").items}
    assert items["100005"].title == "Shower faucet trim, ½ in."
    assert items["100005"].brand == "Düsche"
    assert items["100002"].description == "A coating, café color"
    assert items["100001"].attributes["Bullet01"] == "Versatile connector"


def test_home_depot_needs_only_the_training_file(tmp_path):
    shutil.copy(FIXTURES / "home_depot" / "train.csv", tmp_path)
    data = load_public("home_depot", tmp_path)
    assert len(data.judgments) == 11
    assert data.items[0].brand is None


def test_tagged_trec_records_are_read():
    data = trec(FIXTURES / "trec_tagged")
    assert [(j.query, j.item_id, j.grade) for j in data.judgments] == [
        ("red dress", "X-1", 1.0),
        ("red dress", "X-2", 0.0),
        ("blue jeans", "X-2", 0.5),
    ]
    assert [(i.title, i.description) for i in data.items] == [("Red dress", "Long and red"), ("Jeans", None)]


def test_trec_documents_may_be_lines_of_tabs(tmp_path):
    (tmp_path / "q.qrel").write_text("1 0 a 1\n1 0 b 0\n")
    (tmp_path / "queries.tsv").write_text("1\tred dress\n")
    (tmp_path / "corpus.tsv").write_text("a\tRed dress\tLong\nb\tHat\n")
    data = trec(tmp_path)
    assert [(i.item_id, i.title, i.description) for i in data.items] == [("a", "Red dress", "Long"), ("b", "Hat", None)]


def edited(tmp_path, name, file, old, new):
    folder = tmp_path / name
    shutil.copytree(FIXTURES / name, folder)
    content = (folder / file).read_bytes()
    assert old in content
    (folder / file).write_bytes(content.replace(old, new, 1))
    return folder


@pytest.mark.parametrize(
    ("name", "file", "old", "new", "message"),
    [
        ("wands", "label.csv", b"Partial", b"Perhaps", "line 5, column 'label', value 'Perhaps': is not on the grade"),
        ("wands", "label.csv", b"0\t0\t0\t", b"0\t0\t77\t", "column 'product_id', value '77': is not in product.csv"),
        ("wands", "label.csv", b"0\t0\t0\t", b"0\t66\t0\t", "column 'query_id', value '66': is not in query.csv; get"),
        ("wands", "product.csv", b"product_name", b"name", "product.csv: has no column 'product_name'"),
        ("home_depot", "train.csv", b"2.33", b"2.3e", "line 5, column 'relevance', value '2.3e': is not on the grade"),
        ("crowdflower", "train.csv", b"median_rel", b"rel", "has no column 'median_relevance'; .*rename the column"),
        (
            "beir",
            "qrels/test.tsv",
            b"d4\t2",
            b"d9\t2",
            "line 3, column 'corpus-id', value 'd9': is not in corpus.jsonl",
        ),
        ("beir", "qrels/test.tsv", b"d4\t2", b"d4\tx", "line 3, column 'score', value 'x': is not a number"),
        (
            "trec",
            "2023test.qrel",
            b"7 0 B2 0",
            b"7 0 B2",
            "line 2, value '7 0 B2': has 3 fields, not 4; write: query 0",
        ),
        ("trec", "qid2query.tsv", b"9\t", b"99\t", "line 8, column 'query_id', value '9': is not in the topics"),
    ],
)
def test_a_row_that_is_not_as_published_is_named(tmp_path, name, file, old, new, message):
    with pytest.raises(DataError, match=message):
        load_public(name, edited(tmp_path, name, file, old, new))


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("esci", "shopping_queries_dataset_products.parquet"),
        ("wands", "label.csv"),
        ("home_depot", "train.csv"),
        ("beir", "qrels/test.tsv"),
        ("beir", "corpus.jsonl"),
        ("trec", "2023test.qrel"),
    ],
)
def test_a_file_that_is_not_there_is_named(tmp_path, name, file):
    folder = tmp_path / name
    shutil.copytree(FIXTURES / name, folder)
    for path in [folder / file, *folder.glob("qrels/*")]:
        path.unlink(missing_ok=True)
    with pytest.raises(DataError, match=r"no such file|has no qrels/\*.tsv|has no file"):
        load_public(name, folder)


def test_an_esci_product_that_is_not_there_is_named(tmp_path):
    shutil.copytree(FIXTURES / "esci", tmp_path / "esci")
    products = "shopping_queries_dataset_products.parquet"
    source = str(FIXTURES / "esci" / products)
    rows = f"SELECT * FROM read_parquet('{source}') WHERE product_locale <> 'jp'"
    duckdb.execute(f"COPY ({rows}) TO '{tmp_path / 'esci' / products}' (FORMAT parquet)")
    with pytest.raises(DataError, match=r"column 'product_id', value .*: is not among the products"):
        esci(tmp_path / "esci")


def test_an_unknown_data_set_or_folder_is_named(tmp_path):
    with pytest.raises(DataError, match=r"no data set 'wand'; did you mean 'wands'\? allowed: beir, crowdflower"):
        load_public("wand", tmp_path)
    with pytest.raises(DataError, match="allowed: beir"):
        load_public("zzz", tmp_path)
    with pytest.raises(DataError, match="no such folder; give the folder that holds the files"):
        load_public("wands", tmp_path / "none")
