"""Gazetteer and pattern rules: longest match, counts decide, breaks divide, hostile text harms nothing."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pertinent.errors import ArtifactError, ConfigError
from pertinent.lexicon.classes import CLASS_IDS, TERM_CLASSES
from pertinent.lexicon.gazetteer import (
    COLUMN_CLASSES,
    Gazetteer,
    GazetteerConfig,
    other_number,
    pattern_matches,
    phrases,
    split_words,
)
from pertinent.records import Item
from pertinent.text import normalize

CONFIG = GazetteerConfig(min_count=1, min_titles=0)


def gazetteer(**classes: str) -> Gazetteer:
    return Gazetteer({phrase.replace("_", " "): (CLASS_IDS[name], 1) for phrase, name in classes.items()}, CONFIG)


def found(gazetteer: Gazetteer, text: str) -> list[tuple[str, str, str]]:
    words = split_words(normalize(text))
    return [
        (" ".join(words.texts[m.first : m.last]), TERM_CLASSES[m.class_id], m.source) for m in gazetteer.matches(words)
    ]


def rules(text: str) -> list[tuple[str, str]]:
    return [(term, name) for term, name, _ in found(Gazetteer({}, CONFIG), text)]


def test_the_longest_entry_wins() -> None:
    entries = gazetteer(coffee="style", coffee_table="core", table="core", coffee_table_book="usage")
    assert found(entries, "Coffee table legs") == [("coffee table", "core", "gazetteer")]
    assert found(entries, "coffee table book coffee") == [
        ("coffee table book", "usage", "gazetteer"),
        ("coffee", "style", "gazetteer"),
    ]


@pytest.mark.parametrize("text", ["coffee, table", "coffee (table)", "coffee | table", "coffee: table"])
def test_no_term_runs_over_a_hard_break(text: str) -> None:
    assert [term for term, _, _ in found(gazetteer(coffee_table="core"), text)] == []


def test_both_numbers_of_the_last_word_match_and_an_entry_of_its_own_keeps_its_class() -> None:
    entries = gazetteer(coffee_mug="core", glass="material", glasses="core", batteries="function")
    assert found(entries, "coffee mugs glass glasses battery") == [
        ("coffee mugs", "core", "gazetteer"),
        ("glass", "material", "gazetteer"),
        ("glasses", "core", "gazetteer"),
        ("battery", "function", "gazetteer"),
    ]
    without = Gazetteer(entries.entries, GazetteerConfig(plurals=False))
    assert [term for term, _, _ in found(without, "coffee mugs battery")] == []


@given(st.sampled_from(["mug", "watch", "glass", "battery", "box", "toy", "dress", "brush", "cable clip"]))
def test_plural_and_singular_lead_to_each_other(word: str) -> None:
    (plural,) = other_number(word)
    assert plural != word
    assert other_number(plural) == [word]


@pytest.mark.parametrize("word", ["", "a", "of m", "日本語", "12v", "virus", "100%"])
def test_words_without_a_regular_plural_have_none(word: str) -> None:
    assert other_number(word) == []


def items(*values: tuple[str, str], title: str = "") -> list[Item]:
    return [Item(str(n), title or value, attributes={name: value}) for n, (name, value) in enumerate(values)]


def test_the_most_frequent_class_decides_and_an_even_split_decides_nothing() -> None:
    many = items(("color", "Silver"), ("color", "Silver"), ("material", "Silver"))
    assert Gazetteer.from_items(many, CONFIG).entries == {"silver": (CLASS_IDS["style"], 2)}
    assert Gazetteer.from_items(items(("color", "Silver"), ("material", "Silver")), CONFIG).entries == {}
    tie = GazetteerConfig(min_count=1, min_titles=0, min_share=0.5)
    assert Gazetteer.from_items(items(("color", "Silver"), ("material", "Silver")), tie).class_of("silver") == 1


def test_rare_values_and_values_of_no_title_are_left_out() -> None:
    twice = items(("color", "Teal"), ("color", "Teal"), ("color", "Rust"))
    assert list(Gazetteer.from_items(twice, GazetteerConfig(min_count=2, min_titles=0)).entries) == ["teal"]
    unseen = items(("color", "Teal"), ("color", "Teal"), title="a mug")
    assert len(Gazetteer.from_items(unseen, GazetteerConfig(min_count=1, min_titles=1))) == 0
    # The other number in a title counts.
    plural = [Item("1", "coffee mugs", category="Kitchen > Coffee Mug")]
    assert len(Gazetteer.from_items(plural, GazetteerConfig(min_count=1, min_titles=1))) == 1


def test_the_order_of_items_changes_nothing() -> None:
    many = items(*[(name, value) for name in ("color", "material", "category_1") for value in ("A b", "C d", "E f")])
    shuffled = random.Random(0).sample(many, len(many))
    config = GazetteerConfig(min_count=1, min_titles=0, min_share=0)
    assert Gazetteer.from_items(many, config).plain() == Gazetteer.from_items(shuffled, config).plain()


def test_brands_columns_unknown_and_empty_values_give_no_terms() -> None:
    item = Item("1", "x", brand="Acme", attributes={"weight": "heavy", "color": "Yes", "material": "12", "size": "a"})
    assert len(Gazetteer.from_items([item], CONFIG)) == 0
    assert len(Gazetteer.from_items([], CONFIG)) == 0
    with_brand = GazetteerConfig(min_count=1, min_titles=0, classes={**COLUMN_CLASSES, "brand": "specification"})
    assert Gazetteer.from_items([item], with_brand).class_of("acme") == CLASS_IDS["specification"]


def test_a_value_is_cut_into_list_members_and_a_path_to_its_leaf() -> None:
    assert phrases("Home > Kitchen > Cups & Mugs") == ("cups", "mugs")
    assert phrases("tea " * 10_000) == (" ".join(["tea"] * 50),)
    assert phrases("") == phrases(" ,;|") == phrases("1.5, 2") == ()


def test_an_unknown_class_in_the_settings_is_refused() -> None:
    with pytest.raises(ConfigError, match="no term class colour"):
        GazetteerConfig.build({"classes": {"color": "colour"}})


@pytest.mark.parametrize(
    ("text", "terms"),
    [
        ("adapter 12V 1.5 m", ["12v", "1.5 m"]),
        ("100% cotton", ["100%"]),
        ("64GB / 128 gb", ["64gb", "128 gb"]),
        ("2x4 wood, 8 x 10 inch", ["2x4", "8 x 10 inch"]),
        ("shoes size 10", ["size 10"]),
        ("8 M US", ["8 m us"]),
        ("pack of 6", ["pack of 6"]),
        ("tea 20 count", ["20 count"]),
        ('monitor 15.6"', ['15.6"']),
        ("16 fl oz", ["16 fl oz"]),
        ("xxl shirt", ["xxl"]),
        ("1/2 inch", ["1/2"]),
        ("10 in skillet", ["10 in"]),
        ("5,000 mcg", ["5,000 mcg"]),
    ],
)
def test_units_and_sizes_are_specifications(text: str, terms: list[str]) -> None:
    assert rules(text) == [(term, "specification") for term in terms]


def test_what_only_looks_like_a_size_has_no_class() -> None:
    assert rules("iphone 12 pro of us in by m size poem oem 2020") == []
    assert rules("3 in 1 charger") == [("3 in 1", "function")]
    assert rules("12, volt") == []


def test_model_numbers_are_taken_on_request() -> None:
    text = split_words("hp dv7-1211ea notebook")
    assert pattern_matches(text) == {}
    (match,) = pattern_matches(text, model_numbers=True).values()
    assert (match.first, match.last, match.class_id) == (1, 2, CLASS_IDS["specification"])


@given(st.text(max_size=80))
def test_words_lie_in_the_text_in_order(text: str) -> None:
    normal = normalize(text)
    words = split_words(normal)
    assert [normal[a:b] for a, b in zip(words.starts, words.ends, strict=True)] == words.texts
    assert all(a < b for a, b in zip(words.starts, words.ends, strict=True))
    assert all(b <= a for b, a in zip(words.ends, words.starts[1:], strict=False))
    assert words.joined[:1] in ([], [False])
    matches = Gazetteer({}, CONFIG).matches(words)
    assert all(a.last <= b.first for a, b in itertools.pairwise(matches))


def test_a_gazetteer_comes_back_equal_from_plain_values() -> None:
    entries = gazetteer(coffee_table="core", red="style", 日本="usage")
    again = Gazetteer.build(entries.plain())
    assert again.plain() == entries.plain()
    assert found(again, "red coffee tables 日本") == found(entries, "red coffee tables 日本")


@pytest.mark.parametrize("values", [None, [], {}, {"entries": {}}, {"entries": {"a": 1}, "config": {}}])
def test_a_damaged_gazetteer_is_refused(values: object) -> None:
    with pytest.raises(ArtifactError, match="not readable"):
        Gazetteer.build(values)
