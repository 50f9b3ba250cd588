"""A table in memory that knows which line of the file each row came from.

The columns that items and judgments may have are those of the records: a field without a default
is a column that must be there.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pertinent.errors import DataError
from pertinent.records import Item, Judgment

# No text of a product is this long; a field beyond it is a quote that was never closed, or an attack. Titles and
# queries have at most some hundred characters, and models read the first 10,000: a longer one is something else.
MAX_FIELD_CHARACTERS = 10_000_000
MAX_TEXT_CHARACTERS = 100_000
_MAX_CHARACTERS = {"title": MAX_TEXT_CHARACTERS, "query": MAX_TEXT_CHARACTERS}


def contract(record: type) -> dict[str, bool]:
    """The columns of a record class, each with whether it must be there.

    >>> [name for name, required in contract(Item).items() if required]
    ['item_id', 'title']
    """
    missing = dataclasses.MISSING
    return {
        each.name: each.default is missing and each.default_factory is missing for each in dataclasses.fields(record)
    }


ITEM_COLUMNS = contract(Item)
JUDGMENT_COLUMNS = contract(Judgment)


@dataclass(frozen=True, slots=True)
class Table:
    """Columns of equal length. ``lines[i]`` is the line of ``path`` on which row i begins, from 1.

    In Parquet files and JSON lists, which have no lines, it is the row's number from 1. An empty
    cell is None.

    >>> table = Table({"query": ["tv", "hat"]}, "queries.csv", [2, 3])
    >>> len(table), table.column("query"), table.has("title")
    (2, ['tv', 'hat'], False)
    """

    columns: dict[str, list[Any]]
    path: str
    lines: list[int]
    # The names that columns have in the file, of those that were renamed.
    renamed: Mapping[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.lines)

    def has(self, name: str) -> bool:
        """Whether the table has the column."""
        return name in self.columns

    def column(self, name: str) -> list[Any]:
        """The values of one column. Raises DataError that names the nearest column there is."""
        if name not in self.columns:
            raise self.missing(name)
        return self.columns[name]

    def column_or_none(self, name: str) -> list[Any]:
        """The values of one column, or as many None where the table does not have it."""
        return self.columns.get(name) or [None] * len(self)

    def missing(self, name: str, fix: str | None = None, flag: str | None = "--columns") -> DataError:
        """The error that says that a column is not there, with the nearest one that is.

        A column of ours may have another name in the file: then ``flag`` of the command line can rename it.
        """
        near = nearest(name, self.columns)
        if near is not None and near in self.renamed and fix is None and flag is not None:
            yours = self.renamed[near]
            flag, fix = None, f"{near!r} is no name of ours, did you mean {flag} {yours}={name}?"
        if fix is None and near is not None:
            fix = f"rename the column {near!r} to {name!r}, if that is what it holds"
        if flag is not None and (name in ITEM_COLUMNS or name in JUDGMENT_COLUMNS):
            first = "say which one it is" if fix is None else f"{fix}, or"
            fix = f"{first}: {flag} {near or 'yours'}={name}"
        there = ", ".join(list(self.columns)[:20])
        return DataError(f"has no column {name!r}; it has {there}", path=self.path, fix=fix)

    def wrong(self, row: int, column: str, problem: str, fix: str | None = None) -> DataError:
        """The error for one cell: path, line, column and value are filled in."""
        value = self.columns[column][row] if column in self.columns else None
        return DataError(problem, path=self.path, line=self.lines[row], column=column, value=value, fix=fix)

    def text(self, row: int, column: str) -> str | None:
        """A cell as text without white space around it, or None where it is empty.

        Raises DataError for bytes that are not UTF-8, for lists and objects, and for a text of more than
        10,000,000 characters, a title or query of more than 100,000.
        """
        value = self.columns[column][row]
        if isinstance(value, bytes):
            try:
                value = value.decode("utf-8")
            except UnicodeDecodeError:
                raise self.wrong(row, column, "is bytes that are not UTF-8 text", "store text") from None
        if isinstance(value, (list, tuple, dict)):
            raise self.wrong(row, column, f"is a {type(value).__name__}", "give one text")
        text = plain(value)
        most = _MAX_CHARACTERS.get(column, MAX_FIELD_CHARACTERS)
        if len(text) > most:
            problem = f"has {len(text):,} characters, {most:,} are allowed"
            raise self.wrong(row, column, problem, "shorten it; this may be a quote that is not closed")
        return text or None

    def texts(self, column: str) -> list[str | None]:
        """A whole column as `text` gives its cells."""
        return [
            (value.strip() or None)
            if type(value) is str and len(value) <= MAX_TEXT_CHARACTERS
            else self.text(row, column)
            for row, value in enumerate(self.column(column))
        ]

    def need_texts(self, column: str) -> list[str]:
        """A whole column as `need_text` gives its cells."""
        return [text or self.need_text(row, column) for row, text in enumerate(self.texts(column))]

    def need_text(self, row: int, column: str) -> str:
        """A cell as text. Raises DataError where it is empty."""
        text = self.text(row, column)
        if text is None:
            raise self.wrong(row, column, "is empty", f"give every row a {column}, or remove the row")
        return text

    def number(self, row: int, column: str, low: float, high: float, fix: str) -> float:
        """A cell as a finite number from ``low`` to ``high``. Raises DataError with ``fix``."""
        value = self.columns[column][row]
        try:
            number = float(value)
        except OverflowError:  # a whole number of hundreds of digits
            number = math.inf
        except (TypeError, ValueError):
            raise self.wrong(row, column, "is empty" if value is None else "is not a number", fix) from None
        if math.isnan(number):
            raise self.wrong(row, column, "is NaN", fix)
        if not low <= number <= high:
            raise self.wrong(row, column, f"is not from {low:g} to {high:g}", fix)
        return number


def nearest(name: str, names: Iterable[str]) -> str | None:
    """The name most like the one asked for, or None where none is.

    >>> nearest("title", ["product_title", "price"]), nearest("title", ["price"])
    ('product_title', None)
    """
    names = list(names)
    inside = [n for n in names if name in n.lower() or (len(n) > 1 and n.lower() in name)]
    close = difflib.get_close_matches(name, names, n=1)
    alike = [n for n in names if set(name.split("_")) & set(n.lower().split("_"))]
    return next(iter(close + inside + alike), None)


def plain(value: object) -> str:
    """A scalar as a person would write it, without white space around it.

    >>> plain(12.0), plain(True), plain(" 1.5 m "), plain(None)
    ('12', 'true', '1.5 m', '')
    """
    if isinstance(value, str):
        return value.strip()
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    # Whole numbers with a missing value among them arrive as floats: 12 must stay the id "12".
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)
