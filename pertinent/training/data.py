"""From files to training sets: judgments in three splits, extra examples without a leak."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pertinent.data.grades import GradeScale, judged_scale, lowest_relevant, relevant
from pertinent.data.neighbors import NeighborHistory
from pertinent.data.readers import judgments_of, read_items, read_table, renames_by_file
from pertinent.data.samples import read_sample, sample_path
from pertinent.data.splits import SPLITS, refuse_leaks, split_by_query
from pertinent.data.tables import Table
from pertinent.errors import DataError
from pertinent.lexicon.pairs import PairTokenizer
from pertinent.records import Judgment, Split
from pertinent.text import normalize
from pertinent.training.collate import NeighborRows, TrainingSet

logger = logging.getLogger(__name__)

SplitBy = Literal["auto", "column", "query"]
Fractions = tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class JudgedData:
    """Judgments with their splits, and what it takes to read them as targets."""

    judgments: list[Judgment]
    scale: GradeScale | None
    positive_grade: float
    files: dict[str, Path] = field(default_factory=dict)
    neighbors: NeighborHistory | None = None

    def of(self, split: Split) -> list[Judgment]:
        """The judgments of one split, in file order."""
        return [judgment for judgment in self.judgments if judgment.split == split]

    def training_set(self, judgments: Sequence[Judgment], pairs: PairTokenizer) -> TrainingSet:
        """The judgments as tokenized pairs with hard labels, soft targets and, where a log is known, neighbors."""
        grades = np.array([judgment.grade for judgment in judgments], dtype=np.float32)
        queries = [judgment.query for judgment in judgments]
        built = TrainingSet.build(
            pairs,
            queries,
            [judgment.title for judgment in judgments],
            relevant=self.relevant(judgments),
            grade=np.array([soft_target(judgment, self.scale) for judgment in judgments], dtype=np.float32),
            teacher=np.full(len(grades), np.nan),
        )
        if self.neighbors is None:
            return built
        found = self.neighbors.examples(queries, [judgment.item_id for judgment in judgments])
        return replace(built, neighbors=NeighborRows.build(pairs, found))

    def relevant(self, judgments: Sequence[Judgment]) -> NDArray[np.bool_]:
        """Which judgments have at least the positive grade, ``[judgments]``."""
        return relevant([judgment.grade for judgment in judgments], self.positive_grade)


def read_judged(
    judgments: str | None,
    sample: str | None,
    items: str | None,
    columns: Mapping[str, str],
    scale: str | None,
    positive_grade: float | None,
    split_by: SplitBy,
    fractions: Fractions,
    salt: str,
) -> JudgedData:
    """The judgments of a file or sample, each with a split; refuses a query in two splits.

    Raises DataError for what is wrong in the files, an empty split, and a leak.
    """
    files: dict[str, Path] = {}
    table: Table | None = None
    if sample is not None:
        rows = read_sample(sample)[1]
        files["judgments"] = sample_path(sample) / "judgments.parquet"
    else:
        assert judgments is not None
        renames = renames_by_file([items, judgments], columns)
        known = None if items is None else read_items(items, rename=renames[items])
        table = read_table(judgments, renames[judgments])
        rows = judgments_of(table, known, scale)
        files["judgments"] = Path(judgments)
        if items is not None:
            files["items"] = Path(items)
    chosen = judged_scale(rows, scale)
    grade = positive_grade if positive_grade is not None else lowest_relevant(rows, scale)
    rows = with_splits(rows, split_by, fractions, salt, table)
    refuse_leaks(rows)
    for split in SPLITS[:2]:
        if not any(row.split == split for row in rows):
            raise DataError(
                f"no judgment is in the {split} split",
                path=files["judgments"],
                fix="give more queries, other split_fractions, or a column 'split'",
            )
    return JudgedData(rows, chosen, grade, files)


def with_splits(
    judgments: Sequence[Judgment], split_by: SplitBy, fractions: Fractions, salt: str, table: Table | None = None
) -> list[Judgment]:
    """The judgments with a split each: that of their file, or one by query.

    ``auto`` takes those of the file where it has any, which every judgment must then have: a file
    that names its test queries keeps them out of training. Where the file names no validation
    queries, they are taken out of its training queries. ``table`` is for the line in messages.

    >>> rows = [Judgment("lamp", "1", 1.0, split="train"), Judgment("tv", "1", 1.0, split="test")]
    >>> [row.split for row in with_splits(rows, "auto", (0.8, 0.1, 0.1), "")]
    ['train', 'test']
    """
    named = [judgment.split is not None for judgment in judgments]
    if split_by == "query" or (split_by == "auto" and not any(named)):
        splits = split_by_query([judgment.query for judgment in judgments], fractions, salt)
        return [replace(judgment, split=split) for judgment, split in zip(judgments, splits, strict=True)]
    if not all(named):
        raise DataError(
            f"{named.count(False)} of {len(named)} judgments have no split",
            path=None if table is None else table.path,
            line=None if table is None else _line_without_split(table),
            column="split",
            fix="fill the column, or set split_by: query",
        )
    if any(judgment.split == "valid" for judgment in judgments):
        return list(judgments)
    train_share, valid_share = fractions[0], fractions[1]
    share = valid_share / (train_share + valid_share)
    held_out = split_by_query([judgment.query for judgment in judgments], (1 - share, share, 0.0), salt)
    return [
        replace(judgment, split=split) if judgment.split == "train" else judgment
        for judgment, split in zip(judgments, held_out, strict=True)
    ]


def soft_target(judgment: Judgment, scale: GradeScale | None) -> float:
    """The probability of relevance to train towards: that of the label on its scale, or the grade.

    >>> from pertinent.data.grades import SCALES
    >>> soft_target(Judgment("tv", "1", 0.1, label="S"), SCALES["esci"])
    0.5
    """
    if scale is not None and judgment.label is not None and scale.knows(judgment.label):
        return scale.soft_target(judgment.label)
    return judgment.grade


def read_examples(
    path: str, pairs: PairTokenizer, positive_grade: float, held_out: frozenset[str]
) -> tuple[TrainingSet, int]:
    """Extra training pairs of a table, and how many were left out because their query is held out.

    The table has ``query``, ``title``, and ``teacher_logit`` or ``grade`` or both; an empty cell is
    a target that is not there. ``held_out`` are normalized queries of validation and test.
    """
    table = read_table(path)
    queries = table.column("query")
    table.column("title")
    if not table.has("teacher_logit") and not table.has("grade"):
        raise table.missing("teacher_logit", "it is needed, or a column 'grade'")
    allowed = {query: normalize(str(query)) not in held_out for query in set(queries)}
    rows = [row for row, query in enumerate(queries) if allowed[query]]
    dropped = len(queries) - len(rows)
    if dropped:
        logger.warning("%s: %d pairs are left out, their queries are held out for validation or test", path, dropped)
    if not rows:
        raise DataError("has no pairs to train on", path=path, fix="every query in it is held out, or it is empty")

    def numbers(column: str, low: float, high: float, fix: str) -> NDArray[np.float64]:
        if not table.has(column):
            return np.full(len(rows), np.nan)
        cells = table.columns[column]
        values = [np.nan if cells[row] in (None, "") else table.number(row, column, low, high, fix) for row in rows]
        return np.array(values, dtype=np.float64)

    grade = numbers("grade", 0.0, 1.0, "give a number from 0 to 1")
    teacher = numbers("teacher_logit", -1e4, 1e4, "give the teacher's log odds of relevance")
    hard = np.where(np.isnan(grade), np.nan, relevant(grade, positive_grade)).astype(np.float32)
    texts = [table.need_text(row, "query") for row in rows], [table.need_text(row, "title") for row in rows]
    return TrainingSet.build(pairs, *texts, relevant=hard, grade=grade, teacher=teacher), dropped


def _line_without_split(table: Table) -> int | None:
    cells = table.texts("split") if table.has("split") else [None] * len(table)
    return next((line for line, cell in zip(table.lines, cells, strict=True) if cell is None), None)
