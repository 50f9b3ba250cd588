"""Items and judgments from files, each cell checked; what is wrong is named by file, line and column."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from pertinent.data.files import check_exists, kind_of, open_text, read_file, read_file_parts
from pertinent.data.grades import SCALES, nearest_scales, scale_for, scale_named
from pertinent.data.tables import ITEM_COLUMNS, JUDGMENT_COLUMNS, Table, nearest, plain
from pertinent.errors import DataError, place_word, shorten
from pertinent.records import Item, Judgment, Split

Conflicts = Literal["error", "mean"]
SPLIT_WORDS: dict[str, Split] = {
    "train": "train",
    "valid": "valid",
    "validation": "valid",
    "val": "valid",
    "dev": "valid",
    "test": "test",
}
# The first of these that a file has is what its judgments are reported by.
SEGMENT_COLUMNS = ("segment", "locale", "category")
_GRADE_FIX = "give a number from 0 to 1, or name the grade scale with --scale NAME"
_log = logging.getLogger(__name__)


def read_table(path: str | Path, rename: Mapping[str, str] | None = None, encoding: str = "utf-8") -> Table:
    """The table in a CSV, TSV, JSONL, JSON or Parquet file; ``rename`` maps the file's column names to ours.

    Raises DataError, see `pertinent.data.files.read_file`, and for a column to rename that the file
    does not have.
    """
    return _renamed(read_file(path, encoding), rename or {})


def read_table_parts(path: str | Path, rows: int, rename: Mapping[str, str] | None = None) -> Iterator[Table]:
    """As `read_table`, in parts of at most so many rows: for files that memory does not hold."""
    for part in read_file_parts(path, rows):
        yield _renamed(part, rename or {})


def read_items(path: str | Path, rename: Mapping[str, str] | None = None) -> list[Item]:
    """The catalog in a file with ``item_id`` and ``title``, in file order.

    ``description``, ``brand``, ``category`` and ``image`` are read where present; any other column
    of texts or numbers becomes an attribute, beside those of an ``attributes`` object.
    Raises DataError for missing columns, empty ids or titles, and ids that occur twice.
    """
    return items_of(read_table(path, rename))


def iterate_items(path: str | Path, rename: Mapping[str, str] | None, rows: int) -> Iterator[Item]:
    """As `read_items`, ``rows`` at a time: for catalogs that memory does not hold.

    An id that occurs twice is noticed only among those rows. A JSON list is read as a whole.
    """
    if kind_of(Path(path)) == ".json":
        yield from read_items(path, rename)
        return
    for table in read_table_parts(path, rows, rename):
        yield from items_of(table)


def read_item_ids(path: str | Path, rename: Mapping[str, str] | None = None) -> list[str]:
    """The item ids in a file: one a line in ``.txt``, else the column ``item_id`` of a table."""
    if Path(path).suffix == ".txt":
        check_exists(Path(path))
        with open_text(Path(path), "utf-8") as file:
            return [line.strip() for line in file if line.strip()]
    return [item_id for item_id in read_table(path, rename).need_texts("item_id") if item_id]


def items_of(table: Table) -> list[Item]:
    """The items of a table; see `read_items`."""
    ids, titles = table.need_texts("item_id"), table.need_texts("title")
    none = [None] * len(table)
    optional = ("description", "brand", "category", "image")
    texts = [table.texts(name) if table.has(name) else none for name in optional]
    attributes = _attributes(table)
    seen = dict[str, int]()
    for row, item_id in enumerate(ids):
        if seen.setdefault(item_id, row) != row:
            first = f"{place_word(table.path)} {table.lines[seen[item_id]]}"
            raise table.wrong(row, "item_id", f"is on {first} already", "give every item an id of its own")
    return [
        Item(item_id, title, description, brand, category, own, image)
        for item_id, title, own, description, brand, category, image in zip(
            ids, titles, attributes, *texts, strict=True
        )
    ]


def read_judgments(
    path: str | Path,
    items: Sequence[Item] | None = None,
    scale: str | None = None,
    rename: Mapping[str, str] | None = None,
    conflicts: Conflicts = "error",
) -> list[Judgment]:
    """The judgments in a file, in file order, at most one for a query, item and rater.

    The file has ``query``; ``title``, or ``item_id`` and the items are given; and ``grade`` from 0
    to 1, or ``label`` on a grade scale. ``scale`` names the scale of ``label`` (of ``grade`` in a
    file without labels); without it, words are recognized where only one scale has them. Optional:
    ``split``, ``rater``, ``frequency`` and ``segment``, ``locale`` or ``category``.
    Without ``item_id``, ids are made from the titles.

    ``conflicts`` says what happens to a pair that one rater judged twice with different grades:
    ``"error"``, or ``"mean"``. A judgment that merely occurs twice is kept once.
    """
    return judgments_of(read_table(path, rename), items, scale, conflicts)


def judgments_of(
    table: Table,
    items: Sequence[Item] | None = None,
    scale: str | None = None,
    conflicts: Conflicts = "error",
) -> list[Judgment]:
    """The judgments of a table; see `read_judgments`."""
    table.column("query")
    if not table.has("title") and not table.has("item_id"):
        raise table.missing("title", "it is needed, or a column 'item_id' together with a file of items")
    if not table.has("title") and items is None:
        raise table.missing("title", "give the file of items too, so that 'item_id' leads to a title")
    none = [None] * len(table)
    segment = next((name for name in SEGMENT_COLUMNS if table.has(name)), "segment")
    titles = _titles(table, items)
    judgments = [
        Judgment(*cells)
        for cells in zip(
            table.need_texts("query"),
            table.need_texts("item_id") if table.has("item_id") else map(_made_id, titles),
            _grades(table, scale),
            titles,
            [plain(label) or None for label in table.column_or_none("label")],
            _splits(table) if table.has("split") else none,
            table.texts("rater") if table.has("rater") else none,
            table.texts(segment) if table.has(segment) else none,
            _frequencies(table),
            strict=True,
        )
    ]
    return _once(judgments, table, conflicts) if table.has("item_id") else _numbered(judgments, table)


def renames_by_file(paths: Sequence[str | Path | None], rename: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """What to rename in each of several files: each needs only some of the names, but every name must be somewhere.

    Paths that are None are left out. Raises DataError for a column that no file has.
    """
    files = [str(path) for path in paths if path is not None]
    if len(files) < 2 or not rename:
        return {path: dict(rename) for path in files}
    found = {}
    for path in files:
        there = read_file(path).columns
        found[path] = {theirs: ours for theirs, ours in rename.items() if theirs in there}
    unknown = sorted(set(rename).difference(*found.values()))
    if unknown:
        raise DataError(f"no column {unknown[0]!r} to rename", path=" and ".join(files), fix="correct the columns")
    return found


def _renamed(table: Table, rename: Mapping[str, str]) -> Table:
    for yours, ours in rename.items():
        if not table.has(yours):
            raise _not_there(table, yours, ours)
    columns = {rename.get(name, name): values for name, values in table.columns.items()}
    if len(columns) < len(table.columns):
        fix = f"it has {list(table.columns)}"
        raise DataError("two columns have the same name after renaming", path=table.path, fix=fix)
    return replace(table, columns=columns, renamed={ours: yours for yours, ours in rename.items()})


def _not_there(table: Table, yours: str, ours: str) -> DataError:
    """The error of a column that is to be renamed and is not there, with what was probably meant."""
    near = nearest(yours, table.columns)
    meant = f"{ours}={yours}, the other way round" if table.has(ours) else f"{near}={ours}" if near else None
    if table.has(ours) and (ours in ITEM_COLUMNS or ours in JUDGMENT_COLUMNS):
        problem = f"has no column {yours!r}, and has a column {ours!r} already"
        return DataError(problem, path=table.path, fix=f"leave {yours}={ours} out")
    there = ", ".join(list(table.columns)[:20])
    fix = f"did you mean {meant}?" if meant else f"name the column that is {ours}: yours={ours}"
    problem = f"has no column {yours!r}, which is mapped to {ours!r}; it has {there}"
    return DataError(problem, path=table.path, fix=fix)


def _grades(table: Table, scale: str | None) -> list[float]:
    if scale is None and table.has("grade"):
        return [table.number(row, "grade", 0.0, 1.0, _GRADE_FIX) for row in range(len(table))]
    column = "label" if table.has("label") or not table.has("grade") else "grade"
    if not table.has(column):
        raise table.missing("grade", "it is needed, or a column 'label' with words of a grade scale")
    labels = table.columns[column]
    words = {plain(label) for label in labels} - {""}
    chosen = scale_named(scale) if scale is not None else scale_for(words)
    if chosen is None and (near := nearest_scales(words)):
        misspelled = {word for word in words if not any(scale.knows(word) for scale in near)}
        row = next((row for row, label in enumerate(labels) if plain(label) in misspelled), None)
        if row is not None:
            names = " or ".join(repr(scale.name) for scale in near)
            fix = f"allowed: {near[0].allowed}; or name another" if len(near) == 1 else "mend it, or name the scale"
            problem = f"is not on the grade scale {names}, as most others are"
            raise table.wrong(row, column, problem, f"{fix} with --scale NAME")
    if chosen is None:
        found = shorten(sorted(words)[:8])
        raise DataError(
            f"the grade scale of its labels {found} is not known",
            path=table.path,
            column=column,
            fix=f"name it with --scale NAME (scale in a settings file): {', '.join(SCALES)}",
        )
    known: dict[str, float] = {}
    for row, label in enumerate(labels):
        word = plain(label)
        if word not in known:
            if not word or not chosen.knows(word):
                problem = "is empty" if not word else f"is not on the grade scale {chosen.name!r}"
                other = "" if scale is None else "; or name another with --scale NAME"
                raise table.wrong(row, column, problem, f"allowed: {chosen.allowed}{other}")
            known[word] = chosen.grade(word)
    return [known[plain(label)] for label in labels]


def _titles(table: Table, items: Sequence[Item] | None) -> list[str]:
    if not table.has("item_id") or items is None:
        return table.need_texts("title")
    own = table.texts("title") if table.has("title") else [None] * len(table)
    known = {item.item_id: item.title for item in items}
    titles = []
    for row, (title, item_id) in enumerate(zip(own, table.texts("item_id"), strict=True)):
        if title is None and item_id not in known:
            fix = "add the item, or its title here"
            raise table.wrong(row, "item_id", f"is not among the {len(known)} items", fix)
        titles.append(title if title is not None else known[item_id or ""])
    return titles


def _made_id(title: str) -> str:
    return hashlib.md5(title.encode("utf-8", "replace"), usedforsecurity=False).hexdigest()[:16]


def _splits(table: Table) -> list[Split | None]:
    words = [word.lower() if word else None for word in table.texts("split")]
    for row, word in enumerate(words):
        if word is not None and word not in SPLIT_WORDS:
            raise table.wrong(row, "split", "is not a split", "allowed: train, valid, test, or nothing")
    return [None if word is None else SPLIT_WORDS[word] for word in words]


def _frequencies(table: Table) -> list[float | None]:
    fix = "give how often the query is asked, or nothing"
    cells = table.column_or_none("frequency")
    return [None if c is None else table.number(row, "frequency", 0.0, 1e18, fix) for row, c in enumerate(cells)]


def _attributes(table: Table) -> list[dict[str, str]]:
    attributes: list[dict[str, str]] = [{} for _ in range(len(table))]
    for name, values in table.columns.items():
        if name in ITEM_COLUMNS or any(isinstance(v, (list, dict, tuple, bytes)) for v in values):
            continue
        for row, value in enumerate(values):
            if value is not None and (text := plain(value)):
                attributes[row][name] = text
    for row, value in enumerate(table.column_or_none("attributes")):
        if value is not None:
            named = _named(table, row, value)
            attributes[row] |= {
                str(name): text for name, v in named.items() if (text := v.strip() if type(v) is str else _joined(v))
            }
    return attributes


def _named(table: Table, row: int, value: object) -> dict[Any, Any]:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise table.wrong(row, "attributes", "is not JSON", 'give an object such as {"color": "red"}') from None
    if not isinstance(value, dict):
        raise table.wrong(row, "attributes", "is not an object", 'give an object such as {"color": "red"}')
    return value


def _joined(value: object) -> str:
    return ", ".join(plain(v) for v in value) if isinstance(value, (list, tuple)) else plain(value)


def _once(judgments: list[Judgment], table: Table, conflicts: Conflicts) -> list[Judgment]:
    """One judgment for each query, item and rater."""
    rows: dict[tuple[str, str, str | None], list[int]] = {}
    for row, judgment in enumerate(judgments):
        rows.setdefault((judgment.query, judgment.item_id, judgment.rater), []).append(row)
    if len(rows) == len(judgments):
        return judgments
    kept = []
    for same in rows.values():
        first, grades = judgments[same[0]], [judgments[row].grade for row in same]
        if min(grades) != max(grades):
            if conflicts == "error":
                other = next(row for row in same if judgments[row].grade != first.grade)
                earlier = f"{place_word(table.path)} {table.lines[same[0]]}"
                raise table.wrong(
                    other,
                    "grade" if table.has("grade") else "label",
                    f"disagrees with {earlier} about query {shorten(first.query)} and item {shorten(first.item_id)}",
                    "remove one of them, or name the raters in a column 'rater'",
                )
            first = replace(first, grade=sum(grades) / len(grades), label=None)
        kept.append(first)
    _log.warning("%s: %d judgments are repeated and count once", table.path, len(judgments) - len(kept))
    return kept


def _numbered(judgments: list[Judgment], table: Table) -> list[Judgment]:
    """Without ids, equal titles of one query are different items: the second one's id ends in ``-2``."""
    grades: dict[tuple[str, str], list[float]] = {}
    numbered = []
    for judgment in judgments:
        given = grades.setdefault((judgment.query, judgment.item_id), [])
        given.append(judgment.grade)
        times = len(given)
        numbered.append(judgment if times == 1 else replace(judgment, item_id=f"{judgment.item_id}-{times}"))
    disputed = sum(min(given) != max(given) for given in grades.values())
    if disputed:
        _log.warning(
            "%s: %d titles have different grades for one query; without item_id each row is an item of its own",
            table.path,
            disputed,
        )
    return numbered
