"""``pertinent explain``: what it prints is what the model read, and the JSON says the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pertinent.artifact import Artifact
from pertinent.cli import main
from pertinent.engine.scorer import Scorer
from pertinent.explain import ExplainConfig, are_forms, explain, word_matches
from pertinent.lexicon.classes import TERM_CLASSES
from pertinent.text import normalize

ITEMS = """item_id,title
a,Wireless Earbuds with Case for Men
b,"Steel water bottle, 2 pack"
c,Kopfhörer für Männer “black”
d,日本語 \x1b[31mのケース
e,wireless headphones RED
"""
QUERY = "wireless earbud for women 12v"


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "items.csv").write_text(ITEMS.replace("RED", "red " * 40), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def answer(shop: Path, tiny_artifact: Artifact) -> Any:
    return explain(ExplainConfig(query=QUERY, items="items.csv", model=str(tiny_artifact.path), top=5))


def test_scores_and_order_are_those_of_score(answer: Any, shop: Path, tiny_artifact: Artifact) -> None:
    from pertinent.data.readers import read_items

    ranked = Scorer.load(tiny_artifact.path).rank(QUERY, read_items(shop / "items.csv"))
    assert [(row.item_id, row.score) for row in answer.results] == [(row.item.item_id, row.score) for row in ranked]
    assert [row.rank for row in answer.results] == [1, 2, 3, 4, 5]


def test_tokens_are_those_that_the_model_reads(answer: Any, tiny_artifact: Artifact) -> None:
    pairs = Scorer.load(tiny_artifact.path).pairs
    for texts, encode in (
        ([answer.query], pairs.encode_queries),
        ([row.read for row in answer.results], pairs.encode_items),
    ):
        rows = encode([text.text for text in texts])
        for number, text in enumerate(texts):
            read = [token.text for token in text.tokens if token.read]
            assert read == [pairs.tokenizer.id_to_token(int(token)) for token in rows.row(number)]
    long = next(row for row in answer.results if row.item_id == "e")
    assert [token.read for token in long.read.tokens] == [True] * 35 + [False] * 7


def test_terms_stand_in_the_normalized_text(answer: Any) -> None:
    assert answer.query.text == normalize(QUERY)
    found = {term.text: (term.term_class, term.source) for term in answer.query.terms}
    assert found["12v"] == ("specification", "pattern")
    for text in (answer.query, *(row.read for row in answer.results)):
        for term in text.terms:
            assert text.text[term.start : term.end] == term.text
            assert term.term_class in TERM_CLASSES[1:]
        assert {token.term_class for token in text.tokens} <= {*TERM_CLASSES}


def test_matched_words_are_exact_of_another_form_or_none(answer: Any) -> None:
    best = next(row for row in answer.results if row.item_id == "a")
    assert [(match.word, match.how, match.title_word) for match in best.matches] == [
        ("wireless", "exact", "wireless"),
        ("earbud", "form", "earbuds"),
        ("for", "exact", "for"),
        ("women", "none", None),
        ("12v", "none", None),
    ]
    assert [match.how for match in word_matches("", "tea")] == []
    assert [match.how for match in word_matches("tea", "")] == ["none"]
    assert [match.how for match in word_matches("ケース 日本語", "日本語 ケース")] == ["exact", "exact"]


SAME = [
    ("usb c cable 2 m", "USB-C Cable 2m Nylon-Braided", ["usb-c", "usb-c", "cable", "2m", "2m"]),
    ("usb-c 2m nylon braided", "USB C cable 2 m, nylon-braided", ["usb c", "2 m", "nylon-braided", "nylon-braided"]),
    ("noise cancelling", "Noise-Cancelling Headphones", ["noise-cancelling", "noise-cancelling"]),
    ("noise-cancelling", "Noise Cancelling Headphones", ["noise cancelling"]),
    ("t shirt", "Men's T-Shirt", ["t-shirt", "t-shirt"]),
    ("t-shirt", "T Shirt", ["t shirt"]),
    ("bluetooth", "Bluetooth-Ohrhörer", ["bluetooth-ohrhörer"]),
    ("ohrhörer", "Bluetooth-Ohrhörer", ["bluetooth-ohrhörer"]),
    ("aaa 1.5 v", "AA/AAA 1.5V", ["aaa", "1.5v", "1.5v"]),
    ("15.6 inch 10,000mah", '15.6" 39.6 cm inch 10,000 mAh', ['15.6"', "inch", "10,000 mah"]),
    ("usb_c 3m-12", "usb-c 3 m 12", ["usb-c", "3 m 12"]),
]


@pytest.mark.parametrize(("query", "title", "met"), SAME)
def test_hyphens_slashes_and_units_hide_no_word(query: str, title: str, met: list[str]) -> None:
    assert [(match.how, match.title_word) for match in word_matches(query, title)] == [("exact", word) for word in met]


@pytest.mark.parametrize(
    ("query", "title"),
    [
        ("12v", "12 desk v"),
        ("12v", "12, v"),
        ("usb-c", "usb-a c"),
        ("1.5v", "1 5v"),
        ("3", "3D 3rd"),
        ("2", "1/2 2x4 1.2m"),
        ("wi", "wifi"),
        ("c", "usb"),
        ("_", "a-b"),
        ("a-b", ""),
    ],
)
def test_parts_that_are_not_together_are_not_the_word(query: str, title: str) -> None:
    assert [match.how for match in word_matches(query, title)] == ["none"]


def test_a_part_may_be_another_form() -> None:
    found = word_matches("headphone noise-cancels t-shirts", "T Shirt, Noise Cancel, over-ear-headphones")
    assert [(match.how, match.title_word) for match in found] == [
        ("form", "over-ear-headphones"),
        ("form", "noise cancel"),
        ("form", "t shirt"),
    ]


@given(st.text(max_size=20))
def test_any_text_meets_itself(word: str) -> None:
    assert all(match.how == "exact" for match in word_matches(word, word))


FORMS = [
    *("mug mugs", "charge charging", "charge charged", "battery batteries", "tshirts t-shirt", "run running"),
    *(
        "dress dresses",
        "box boxes",
        "men men's",
        "women’s womens",
        "zip zipped",
        "paint painted",
        "tv tvs",
        "shoe shoes",
    ),
]
OTHERS = [
    *("corn corner", "water wat", "paper pap", "number numb", "rate rat", "charger charging", "12v 12", "glass glad"),
    *("usb-c usb-a", "red ring", "bras brass", "ear earring", "see seed", "th thing", "car care", "cap cape", "i is"),
    *("größe größes", "pin pine", "lamp lampe"),
]


@pytest.mark.parametrize("pair", FORMS)
def test_forms_of_a_word_meet(pair: str) -> None:
    one, other = pair.split()
    assert are_forms(one, other) and are_forms(other, one)
    assert [match.how for match in word_matches(one, f"a {other}")] == ["form"]


@pytest.mark.parametrize("pair", OTHERS)
def test_other_words_do_not_meet(pair: str) -> None:
    one, other = pair.split()
    assert not are_forms(one, other) and not are_forms(other, one)
    assert [match.how for match in word_matches(one, f"{other} desk")] == ["none"]


@given(st.text(max_size=8), st.text(max_size=8))
def test_being_a_form_goes_both_ways(one: str, other: str) -> None:
    assert are_forms(one, other) == are_forms(other, one)
    assert are_forms(one, one)


def test_print_and_json_say_the_same(
    shop: Path, tiny_artifact: Artifact, capsys: pytest.CaptureFixture[str], answer: Any
) -> None:
    argv = ["explain", QUERY, str(tiny_artifact.path), "--items", "items.csv", "--top", "5"]
    assert main([*argv, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == json.loads(json.dumps(answer.plain()))
    assert main(argv) == 0
    shown = capsys.readouterr().out
    assert "\x1b" not in shown
    assert "5 of 5 items" in shown
    for row in found["results"]:
        assert f"{row['rank']}. {row['item_id']}  {row['score']:.4f}" in shown
        for match in row["matches"]:
            line = {"exact": match["word"], "form": f"{match['word']} ~ {match['title_word']}", "none": "not there"}
            assert line[match["how"]] in shown
    for term in found["query"]["terms"]:
        assert term["text"] in shown and term["source"] in shown


def test_the_terms_of_a_lexicon_are_shown(shop: Path, tiny_artifact: Artifact) -> None:
    from pertinent.artifact import write_artifact
    from pertinent.lexicon.gazetteer import Gazetteer, GazetteerConfig
    from pertinent.lexicon.tagger import Tagger, TaggerConfig

    with write_artifact(shop / "lexicon", "lexicon", {}) as folder:
        Scorer.load(tiny_artifact.path).pairs.save(folder)
        own = Gazetteer({"wireless earbud": (1, 1)}, GazetteerConfig())
        Tagger(own, None, TaggerConfig(mode="gazetteer")).save(folder)
    config = ExplainConfig(query=QUERY, items="items.csv", model=str(tiny_artifact.path), lexicon="lexicon")
    terms = explain(config).query.terms
    assert [(term.text, term.term_class, term.source) for term in terms] == [
        ("wireless earbud", "material", "gazetteer"),
        ("12v", "specification", "pattern"),
    ]


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["explain", " ", "--items", "items.csv"], "the query is empty"),
        (["explain", "tea"], "--items is required"),
        (["explain", "tea", "--items", "none.csv"], "none.csv"),
        (["explain", "tea", "--items", "items.csv", "--lexicon", "none"], "none: no such folder"),
    ],
)
def test_what_is_missing_is_said(argv: list[str], words: str, shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv) == 2
    assert words in capsys.readouterr().err
