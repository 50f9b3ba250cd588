"""Grade scales in words: what raters write, as a grade from 0 to 1 and as a soft target.

A *grade* is the gain that ranking metrics use. A *soft target* is the probability of relevance to
train towards. The two differ where a benchmark has its own gains: a substitute (S) of ESCI gains
0.1 and is relevant with probability 0.5.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pertinent.errors import DataError, shorten
from pertinent.records import Judgment

# Grades are computed, from labels or by a mean of raters: what is this near to a grade is that grade.
GRADE_TOLERANCE = 1e-9


@dataclass(frozen=True, slots=True)
class GradeScale:
    """A scale of words, or of numbers from ``low`` to ``high`` that are graded in proportion.

    ``relevant`` is the lowest grade that counts as relevant where a yes or no is needed.

    >>> scale = SCALES["esci"]
    >>> scale.grade("S"), scale.soft_target("Substitute"), scale.grade("E") >= scale.relevant
    (0.1, 0.5, True)
    >>> SCALES["home_depot"].grade("2.5")
    0.75
    """

    name: str
    meaning: str
    relevant: float
    words: Mapping[str, float] = field(default_factory=dict)
    soft: Mapping[str, float] = field(default_factory=dict)
    low: float | None = None
    high: float | None = None

    def grade(self, label: object) -> float:
        """The grade of a label, 0 to 1. Case does not matter. Raises DataError for another word."""
        word = _key(label)
        return self.words[word] if word in self.words else self._proportion(word, label)

    def soft_target(self, label: object) -> float:
        """The probability of relevance that a label stands for; its grade where the scale has no own."""
        word = _key(label)
        return self.soft[word] if word in self.soft else self.grade(label)

    def knows(self, label: object) -> bool:
        """Whether the label is on the scale."""
        try:
            self.grade(label)
        except DataError:
            return False
        return True

    @property
    def allowed(self) -> str:
        """The words or numbers of the scale, for messages."""
        words = ", ".join(self.words)
        if self.low is None:
            return words
        numbers = f"numbers from {self.low:g} to {self.high:g}"
        return f"{words}, {numbers}" if words else numbers

    def _proportion(self, word: str, label: object) -> float:
        if self.low is not None and self.high is not None:
            try:
                number = float(word)
            except ValueError:
                number = math.nan
            if self.low <= number <= self.high:
                return (number - self.low) / (self.high - self.low)
        raise DataError(
            f"is not on the grade scale {self.name!r}",
            column="label",
            value=label,
            fix=f"allowed: {self.allowed}",
        )


def _words(groups: Mapping[str, float]) -> dict[str, float]:
    """Grades by single word, from groups of words that mean the same: ``{"e exact": 1.0}``."""
    return {word: value for group, value in groups.items() for word in group.split()}


_ESCI = _words({"e exact": 1.0, "s substitute": 0.1, "c complement": 0.01, "i irrelevant": 0.0})
_ESCI_SOFT = _words({"e exact": 1.0, "s substitute": 0.5, "c complement": 0.0, "i irrelevant": 0.0})

SCALES: dict[str, GradeScale] = {
    scale.name: scale
    for scale in (
        GradeScale("esci", "Amazon Shopping Queries; relevant means Exact", 1.0, _ESCI, _ESCI_SOFT),
        GradeScale("esci_gain", "ESCI with its ranking gains as targets too", 1.0, _ESCI),
        GradeScale(
            "wands", "Wayfair; partial is half relevant", 1.0, {"exact": 1.0, "partial": 0.5, "irrelevant": 0.0}
        ),
        GradeScale(
            "binary",
            "relevant or not",
            1.0,
            _words({"1 yes true relevant": 1.0, "0 no false irrelevant": 0.0}) | {"not relevant": 0.0},
        ),
        GradeScale("good_fair_bad", "all criteria, subject only, neither", 1.0, {"good": 1.0, "fair": 0.5, "bad": 0.0}),
        GradeScale("icecat", "Chorus ratings 0 to 3", 2 / 3, low=0.0, high=3.0),
        GradeScale("home_depot", "mean of raters, 1 to 3", 0.5, low=1.0, high=3.0),
        GradeScale("crowdflower", "median of raters, 1 to 4", 2 / 3, low=1.0, high=4.0),
        GradeScale(
            "five_level",
            "1 (bad) to 5 (perfect); 4 and 5 are relevant, 3 is half",
            0.75,
            _words({"perfect": 1.0, "excellent": 0.75, "good": 0.5, "fair": 0.25, "bad": 0.0}),
            _words({"perfect 5 excellent 4": 1.0, "good 3": 0.5, "fair 2 bad 1": 0.0}),
            low=1.0,
            high=5.0,
        ),
    )
}


def scale_named(name: str) -> GradeScale:
    """The scale of that name, in any case. Raises DataError with the names there are."""
    known = SCALES.get(name.casefold())
    if known is None:
        raise DataError(f"there is no grade scale {name!r}", fix=f"allowed: {', '.join(SCALES)}")
    return known


def scale_for(labels: Iterable[object]) -> GradeScale | None:
    """The scale that the labels are on, or None where none or more than one would do.

    Scales that give these labels the same grades and soft targets do equally well: the first is
    taken. Numbers fit many scales, so they are never guessed.

    >>> scale_for(["Exact", "Partial"]).name, scale_for(["E", "I", "S"]).name
    ('wands', 'esci')
    >>> scale_for(["1", "0"]) is None, scale_for(["great"]) is None, scale_for([]) is None
    (True, True, True)
    """
    found = {_key(label) for label in labels}
    if not found or any(_is_number(label) for label in found):
        return None
    fits = [scale for scale in SCALES.values() if all(scale.knows(label) for label in found)]
    # ESCI's gains are a variant of ESCI that is taken only when it is named.
    fits = [scale for scale in fits if scale.name != "esci_gain"]
    readings = {tuple((scale.grade(w), scale.soft_target(w)) for w in sorted(found)) for scale in fits}
    return fits[0] if len(readings) == 1 else None


def nearest_scales(labels: Iterable[object]) -> list[GradeScale]:
    """The scales of words that have most of the labels, where that is more than half of them: some are misspelled.

    >>> [scale.name for scale in nearest_scales(["Exact", "Substitute", "Irelevant"])], nearest_scales(["great", "E"])
    (['esci'], [])
    """
    found = {_key(label) for label in labels}
    if any(_is_number(label) for label in found):
        return []
    # As in `scale_for`, ESCI's gains are a variant that is taken only when it is named.
    known = {name: sum(map(scale.knows, found)) for name, scale in SCALES.items() if name != "esci_gain"}
    most = max(known.values())
    return [SCALES[name] for name in known if known[name] == most] if 2 * most > len(found) else []


def judged_scale(judgments: Iterable[Judgment], name: str | None = None) -> GradeScale | None:
    """The scale that judgments are on: the one named, else the one that their labels are recognized as.

    >>> rows = [Judgment("tv", "1", 1.0, label="perfect"), Judgment("tv", "2", 0.75, label="excellent")]
    >>> judged_scale(rows).name, judged_scale(rows, "wands").name, judged_scale([])
    ('five_level', 'wands', None)
    """
    if name is not None:
        return scale_named(name)
    return scale_for({judgment.label for judgment in judgments if judgment.label is not None})


def lowest_relevant(
    judgments: Iterable[Judgment], scale: str | None = None, wanted: float | str | None = None
) -> float:
    """The lowest grade that counts as relevant: the one wanted, else that of the scale, or 1.

    ``wanted`` is a grade above 0 and at most 1, or a label of the scale that the judgments are on. Training
    and evaluation both ask here, so one file has the same relevant pairs in both. Raises DataError.

    >>> rows = [Judgment("tv", "1", 0.75, label="excellent")]
    >>> [lowest_relevant(rows, wanted=wanted) for wanted in (None, "good", "0.3")], lowest_relevant([])
    ([0.75, 0.5, 0.3], 1.0)
    """
    if wanted is not None and _is_number(str(wanted)) and 0.0 < float(wanted) <= 1.0:
        return float(wanted)
    known = judged_scale(judgments, scale)
    if wanted is None:
        return 1.0 if known is None else known.relevant
    grade = known.grade(wanted) if known is not None and known.knows(wanted) else 0.0
    if grade <= 0.0:
        labels = "" if known is None else f", or a label of the scale {known.name!r} above its lowest: {known.allowed}"
        raise DataError(f"{shorten(wanted)} is no positive grade", fix=f"give a number above 0 and at most 1{labels}")
    return grade


def relevant(grades: ArrayLike, positive: float) -> NDArray[np.bool_]:
    """Which grades are at least the positive one, but for rounding; the shape of ``grades``. NaN is not.

    >>> relevant([0.1 + 0.2, 0.29, float("nan")], 0.3).tolist()
    [True, False, False]
    """
    return np.asarray(np.asarray(grades, dtype=np.float64) >= positive - GRADE_TOLERANCE)


def word_of_criteria(subject: bool, keywords: bool) -> str:
    """Good, Fair or Bad from two criteria: the same thing, and all core keywords present.

    >>> word_of_criteria(True, True), word_of_criteria(True, False), word_of_criteria(False, True)
    ('Good', 'Fair', 'Bad')
    """
    if not subject:
        return "Bad"
    return "Good" if keywords else "Fair"


def relevant_by_criteria(subject: bool, keywords: bool, units: bool) -> bool:
    """Whether a pair is relevant: same subject, all core keywords, and the units agree.

    >>> relevant_by_criteria(True, True, True), relevant_by_criteria(True, True, False)
    (True, False)
    """
    return subject and keywords and units


def _key(label: object) -> str:
    if isinstance(label, bool):
        return "true" if label else "false"
    word = " ".join(str(label).split()).casefold()
    # "3.0" and 3 are the same label; "2.33" stays what it is.
    return str(int(float(word))) if _is_number(word) and float(word).is_integer() else word


def _is_number(word: str) -> bool:
    try:
        return math.isfinite(float(word))
    except ValueError:
        return False
