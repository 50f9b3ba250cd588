import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pertinent.data.grades import SCALES, relevant_by_criteria, scale_for, scale_named, word_of_criteria
from pertinent.errors import DataError


def labels_of(scale):
    numbers = [] if scale.low is None else [scale.low, scale.high, (scale.low + scale.high) / 2]
    return [*scale.words, *numbers]


@pytest.mark.parametrize("scale", SCALES.values(), ids=list(SCALES))
def test_every_scale_gives_grades_and_targets_from_0_to_1_and_reaches_both_ends(scale):
    grades = [scale.grade(label) for label in labels_of(scale)]
    targets = [scale.soft_target(label) for label in labels_of(scale)]
    assert min(grades) == 0
    assert max(grades) == 1
    assert all(0 <= value <= 1 for value in grades + targets)
    assert 0 < scale.relevant <= 1


@pytest.mark.parametrize("scale", SCALES.values(), ids=list(SCALES))
def test_a_better_grade_never_has_a_lower_soft_target(scale):
    pairs = sorted((scale.grade(label), scale.soft_target(label)) for label in labels_of(scale))
    targets = [target for _, target in pairs]
    assert targets == sorted(targets)


@pytest.mark.parametrize("scale", SCALES.values(), ids=list(SCALES))
def test_case_and_spaces_of_a_label_do_not_matter(scale):
    for label in labels_of(scale):
        assert scale.grade(f"  {str(label).upper()} ") == scale.grade(label)


def test_esci_has_gains_soft_targets_and_exact_as_relevant():
    scale = SCALES["esci"]
    assert [scale.grade(x) for x in "ESCI"] == [1.0, 0.1, 0.01, 0.0]
    assert [scale.soft_target(x) for x in "ESCI"] == [1.0, 0.5, 0.0, 0.0]
    assert [scale.grade(x) >= scale.relevant for x in "ESCI"] == [True, False, False, False]
    assert [SCALES["esci_gain"].soft_target(x) for x in "esci"] == [1.0, 0.1, 0.01, 0.0]


def test_wands_and_five_levels_map_as_the_teacher_of_the_student_wants():
    assert [SCALES["wands"].soft_target(x) for x in ("Exact", "Partial", "Irrelevant")] == [1, 0.5, 0]
    assert [SCALES["five_level"].soft_target(x) for x in (5, 4, 3, 2, 1)] == [1, 1, 0.5, 0, 0]
    assert [SCALES["five_level"].grade(x) for x in (5, 4, 3, 2, 1)] == [1, 0.75, 0.5, 0.25, 0]


def test_numbers_are_graded_in_proportion():
    assert SCALES["icecat"].grade(3.0) == SCALES["icecat"].grade("3") == 1
    assert SCALES["home_depot"].grade("2.33") == pytest.approx(0.665)
    assert SCALES["crowdflower"].grade(3) == pytest.approx(2 / 3)
    assert SCALES["crowdflower"].grade(3) >= SCALES["crowdflower"].relevant
    assert SCALES["icecat"].grade(2) >= SCALES["icecat"].relevant
    assert [SCALES["binary"].grade(x) for x in (True, False, 1, 0, "Yes", "not relevant")] == [1, 0, 1, 0, 1, 0]


@pytest.mark.parametrize("label", ["Great", "", None, 0.99, 3.01, math.nan, math.inf, "１", "1e400"])
def test_a_label_off_the_scale_is_refused_with_what_is_allowed(label):
    if label == "１":  # full-width digits are digits
        assert SCALES["home_depot"].grade(label) == 0
        return
    with pytest.raises(DataError, match=r"not on the grade scale 'home_depot'; allowed: numbers from 1 to 3"):
        SCALES["home_depot"].grade(label)


def test_an_unknown_word_names_the_words():
    with pytest.raises(DataError, match="value 'Exakt': is not on the grade scale 'wands'; allowed: exact, partial"):
        SCALES["wands"].grade("Exakt")
    assert "perfect" in SCALES["five_level"].allowed
    assert "from 1 to 5" in SCALES["five_level"].allowed


def test_an_unknown_scale_names_the_scales():
    assert scale_named("wands") is SCALES["wands"]
    with pytest.raises(DataError, match="no grade scale 'amazon'; allowed: esci, "):
        scale_named("amazon")


@pytest.mark.parametrize(
    ("labels", "name"),
    [
        (["E", "S", "C", "I"], "esci"),
        (["Exact", "Substitute"], "esci"),
        (["Exact", "Partial", "Irrelevant"], "wands"),
        (["exact", "irrelevant"], "esci"),  # the same grades and targets on both
        (["Good", "Fair", "Bad"], None),  # five levels have the same words with other grades
        (["yes", "no"], "binary"),
        (["0", "1"], None),
        (["1", "2", "3"], None),
        (["nice"], None),
        ([], None),
    ],
)
def test_a_scale_is_recognized_only_where_no_other_would_do(labels, name):
    found = scale_for(labels)
    assert (found.name if found else None) == name


@given(st.text())
def test_any_label_has_a_grade_or_a_data_error(label):
    for scale in SCALES.values():
        if scale.knows(label):
            assert 0 <= scale.grade(label) <= 1
        else:
            with pytest.raises(DataError):
                scale.soft_target(label)


@given(st.floats(1, 3), st.floats(1, 3))
def test_a_higher_number_never_has_a_lower_grade(a, b):
    grade = SCALES["home_depot"].grade
    assert (grade(a) <= grade(b)) == (a <= b) or math.isclose(a, b)


@pytest.mark.parametrize("units", [True, False])
def test_a_pair_is_relevant_only_if_all_three_criteria_hold(units):
    assert relevant_by_criteria(True, True, units) is units
    assert not relevant_by_criteria(False, True, units)
    assert word_of_criteria(False, False) == "Bad"
