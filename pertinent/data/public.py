"""Public data sets of search relevance, read from a folder in their official layout.

Nothing is downloaded: you get the files from their owners, under their terms, and give the folder.
Judgments are kept as published, repeated ones too.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pertinent.data.files import query_parquet, read_file
from pertinent.data.grades import SCALES, GradeScale
from pertinent.data.readers import SPLIT_WORDS
from pertinent.data.tables import Table, nearest
from pertinent.errors import DataError
from pertinent.records import Item, Judgment

DATASETS: dict[str, str] = {
    "beir": "pertinent.data.qrels:beir",
    "crowdflower": "pertinent.data.public:crowdflower",
    "esci": "pertinent.data.public:esci",
    "home_depot": "pertinent.data.public:home_depot",
    "trec": "pertinent.data.qrels:trec",
    "wands": "pertinent.data.public:wands",
}
KAGGLE = "rules of the Kaggle competition: for taking part and research; no redistribution"
_ESCI_SQL = """
    SELECT e.query, e.product_id, e.product_locale, e.esci_label, e.split, p.product_id AS found, p.product_title,
           p.product_description, p.product_bullet_point, p.product_brand, p.product_color
    FROM read_parquet($examples) e
    LEFT JOIN read_parquet($products) p USING (product_locale, product_id)
    WHERE ($locale IS NULL OR e.product_locale = $locale)
      AND ($version = 'large' AND e.large_version = 1 OR $version = 'small' AND e.small_version = 1)
    ORDER BY e.example_id"""


@dataclass(frozen=True, slots=True)
class PublicData:
    """A data set: its items and judgments, and the license and paper to name when using it."""

    items: list[Item]
    judgments: list[Judgment]
    license: str
    citation: str


def load_public(name: str, path: str | Path) -> PublicData:
    """The data set of that name, from the folder that holds its official files.

    Raises DataError for an unknown name, a missing folder or file, and rows that are not as
    published, each with its line.
    """
    if name not in DATASETS:
        near = nearest(name.lower(), DATASETS)
        hint = f"did you mean {near!r}? " if near else ""
        raise DataError(f"there is no data set {name!r}", fix=f"{hint}allowed: {', '.join(DATASETS)}")
    module, _, function = DATASETS[name].partition(":")
    data = getattr(importlib.import_module(module), function)(path)
    assert isinstance(data, PublicData)
    return data


def esci(path: str | Path, locale: str | None = None, version: str = "small") -> PublicData:
    """Amazon Shopping Queries: ``shopping_queries_dataset_{examples,products}.parquet``.

    ``locale`` is ``us``, ``es``, ``jp`` or None for all; product ids are unique within a locale, so
    with None they are written ``us:B000``. ``version`` is ``small`` (ranking) or ``large``. Items are
    the judged products.
    """
    if version not in ("small", "large"):
        raise DataError(f"there is no version {version!r} of ESCI", fix="allowed: small, large")
    if locale not in (None, "us", "es", "jp"):
        raise DataError(f"there is no locale {locale!r} in ESCI", fix="allowed: us, es, jp, or None for all")
    folder = folder_of(path)
    files = {kind: folder / f"shopping_queries_dataset_{kind}.parquet" for kind in ("examples", "products")}
    names, rows = query_parquet(files, _ESCI_SQL, {"locale": locale, "version": version})
    table = Table(
        dict(zip(names, map(list, zip(*rows, strict=True)), strict=True)) if rows else {},
        str(files["examples"]),
        list(range(1, len(rows) + 1)),
    )
    items: dict[str, Item] = {}
    judgments = []
    for row, cells in enumerate(rows):
        query, product, place, label, split, found, title, description, bullets, brand, color = cells
        if found is None:
            raise table.wrong(row, "product_id", "is not among the products", "get the files of one release")
        item_id = product if locale else f"{place}:{product}"
        attributes = {"bullet_points": bullets, "color": color, "locale": place}
        item = Item(item_id, title or "", description, brand, None, {k: v for k, v in attributes.items() if v})
        items.setdefault(item_id, item)
        grade = _grade(table, row, "esci_label", SCALES["esci"])
        judgments.append(Judgment(query, item_id, grade, item.title, label, SPLIT_WORDS.get(split), segment=place))
    return PublicData(
        list(items.values()),
        judgments,
        "Apache-2.0",
        "Reddy et al. 2022, Shopping Queries Dataset: A Large-Scale ESCI Benchmark for Improving Product Search",
    )


def wands(path: str | Path) -> PublicData:
    """Wayfair WANDS: ``query.csv``, ``product.csv`` and ``label.csv``, which hold tabs. No split."""
    folder = folder_of(path)
    products, labels = read_file(folder / "product.csv"), read_file(folder / "label.csv")
    queries = texts_by_id(read_file(folder / "query.csv"), "query_id", "query")
    classes = texts_by_id(read_file(folder / "query.csv"), "query_id", "query_class")
    hierarchy = "category hierarchy" if products.has("category hierarchy") else "category_hierarchy"
    titles = products.texts("product_name")
    items = {}
    for row in range(len(products)):
        cell = {name: products.text(row, name) for name in products.columns}
        features = (cell.get("product_features") or "").split("|")
        pairs = [feature.partition(":")[::2] for feature in features if ":" in feature]
        attributes = {name.strip(): value.strip() for name, value in pairs if name.strip() and value.strip()}
        item_id = products.need_text(row, "product_id")
        category = cell.get(hierarchy) or cell.get("product_class")
        title = titles[row] or ""
        items[item_id] = Item(item_id, title, cell.get("product_description"), None, category, attributes)
    judgments = []
    for row in range(len(labels)):
        query = known(labels, row, "query_id", queries, "query.csv")
        item = known(labels, row, "product_id", items, "product.csv")
        judgments.append(
            Judgment(
                query,
                item.item_id,
                _grade(labels, row, "label", SCALES["wands"]),
                item.title,
                labels.text(row, "label"),
                segment=classes.get(labels.need_text(row, "query_id")),
            )
        )
    return PublicData(
        list(items.values()),
        judgments,
        "MIT",
        "Chen et al. 2022, WANDS: Dataset for Product Search Relevance Assessment",
    )


def home_depot(path: str | Path) -> PublicData:
    """Home Depot: ``train.csv``; ``product_descriptions.csv`` and ``attributes.csv`` if there. No split."""
    folder = folder_of(path)
    train = _utf8_or_latin1(folder / "train.csv")
    descriptions: dict[str, str] = {}
    if (folder / "product_descriptions.csv").exists():
        table = _utf8_or_latin1(folder / "product_descriptions.csv")
        descriptions = texts_by_id(table, "product_uid", "product_description")
    attributes: dict[str, dict[str, str]] = {}
    if (folder / "attributes.csv").exists():
        table = _utf8_or_latin1(folder / "attributes.csv")
        columns = (table.column("product_uid"), table.column("name"), table.column("value"))
        # The published file has rows of nothing but commas, and ids written as 100001.0 in some copies.
        for uid, name, value in zip(*columns, strict=True):
            if uid and name and value:
                attributes.setdefault(uid.strip().removesuffix(".0"), {})[name.strip()] = value.strip()
    items: dict[str, Item] = {}
    judgments = []
    for row in range(len(train)):
        uid = train.need_text(row, "product_uid")
        title = train.need_text(row, "product_title")
        own = attributes.get(uid, {})
        items.setdefault(uid, Item(uid, title, descriptions.get(uid), own.get("MFG Brand Name"), None, own))
        grade = _grade(train, row, "relevance", SCALES["home_depot"])
        judgments.append(Judgment(train.need_text(row, "search_term"), uid, grade, title, train.text(row, "relevance")))
    citation = "Home Depot 2016, Home Depot Product Search Relevance, Kaggle"
    return PublicData(list(items.values()), judgments, KAGGLE, citation)


def crowdflower(path: str | Path) -> PublicData:
    """CrowdFlower Search Results Relevance: ``train.csv``. Each row is an item of its own. No split."""
    train = _utf8_or_latin1(folder_of(path) / "train.csv")
    items, judgments = [], []
    for row in range(len(train)):
        item_id, title = train.need_text(row, "id"), train.need_text(row, "product_title")
        items.append(Item(item_id, title, train.text(row, "product_description")))
        grade = _grade(train, row, "median_relevance", SCALES["crowdflower"])
        label = train.text(row, "median_relevance")
        judgments.append(Judgment(train.need_text(row, "query"), item_id, grade, title, label))
    return PublicData(items, judgments, KAGGLE, "CrowdFlower 2015, Search Results Relevance, Kaggle")


def folder_of(path: str | Path) -> Path:
    """The folder. Raises DataError where there is none."""
    folder = Path(path)
    if not folder.is_dir():
        raise DataError("no such folder", path=folder, fix="give the folder that holds the files of the data set")
    return folder


def _utf8_or_latin1(path: Path) -> Table:
    try:
        return read_file(path)
    except DataError as error:
        if "is not UTF-8" not in str(error):
            raise
        return read_file(path, encoding="latin-1")


def texts_by_id(table: Table, key: str, column: str) -> dict[str, str]:
    """The texts of one column by the ids in another; empty texts are left out."""
    table.column(key), table.column(column)
    return {table.need_text(row, key): text for row in range(len(table)) if (text := table.text(row, column))}


def known(table: Table, row: int, column: str, rows_by_id: Mapping[str, Any], where: str) -> Any:
    """What the id in a cell stands for. Raises DataError for an id that is not there."""
    table.column(column)
    key = table.need_text(row, column)
    if key not in rows_by_id:
        raise table.wrong(row, column, f"is not in {where}", "get the files of one release")
    return rows_by_id[key]


def _grade(table: Table, row: int, column: str, scale: GradeScale) -> float:
    label = table.column(column)[row]
    if not scale.knows(label):
        raise table.wrong(row, column, f"is not on the grade scale {scale.name!r}", f"allowed: {scale.allowed}")
    return scale.grade(label)
