from __future__ import annotations

import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pertinent.text import MAX_CHARACTERS, normalize, words

# Surrogates too: they come out of broken JSON.
ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=60)


@given(ANY_TEXT)
@example("İ")
@example("ǰ\u0323")
@example("ﬃ Ⅷ ㎏")
@example("\u1e9e\u0345")
@example("a\u200bb\u00adc")
@example("e\u200d\u0301")
def test_a_second_pass_changes_nothing(text: str) -> None:
    once = normalize(text)
    assert normalize(once) == once


@given(ANY_TEXT)
def test_the_result_is_clean(text: str) -> None:
    out = normalize(text)
    assert out == out.strip()
    assert "  " not in out
    assert unicodedata.is_normalized("NFKC", out)
    assert not any(unicodedata.category(c).startswith("C") for c in out)
    out.encode("utf-8")


@given(ANY_TEXT, ANY_TEXT)
def test_spaces_of_any_kind_are_the_same(left: str, right: str) -> None:
    assert normalize(f"{left} {right}") == normalize(f" {left}\t\n\u00a0\u3000{right} ")


@given(st.text(st.characters(codec="ascii"), max_size=60))
def test_ascii_takes_a_shortcut_with_the_same_result(text: str) -> None:
    # A character outside ASCII sends the text down the other way; it goes as it came.
    assert normalize(text + " é") == f"{normalize(text)} é".strip()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ""),
        (" \t\n", ""),
        ("a\x00b", "ab"),
        ("a\x1fb", "a b"),  # the unit separator counts as a space in Python, as the tab does
        ("\ud800x", "x"),
        ("\u202eabc\u202c", "abc"),
        ("ＵＳＢ－Ｃ", "usb-c"),
        ("무선 이어폰", "무선 이어폰"),
        ("Ärger Straße", "ärger straße"),
        ("x\ue000y", "xy"),
    ],
)
def test_normalize_by_hand(text: str, expected: str) -> None:
    assert normalize(text) == expected


def test_a_megabyte_is_cut_before_it_is_read() -> None:
    assert len(normalize("word " * 200_000)) <= MAX_CHARACTERS
    assert normalize("abc", max_characters=2) == "ab"


@given(ANY_TEXT)
def test_words_are_whole_and_in_order(text: str) -> None:
    place, whole = 0, normalize(text)
    for word in words(text):
        assert " " not in word
        place = whole.index(word, place) + len(word)


def test_words_by_hand() -> None:
    assert words("") == []
    assert words("--- ...") == []
    assert words("Levi's 501® jeans, W32/L34") == ["levi's", "501", "jeans", "w32", "l34"]
    assert words("ワイヤレス イヤホン 5.1ch") == ["ワイヤレス", "イヤホン", "5.1ch"]
