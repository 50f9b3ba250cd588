"""Laws of added words: whole words only, all other text as before, the same ids everywhere."""

from __future__ import annotations

import unicodedata
from collections import Counter
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models

from pertinent.data.readers import read_table
from pertinent.data.samples import sample_path
from pertinent.errors import ArtifactError
from pertinent.folders import shipped_folder
from pertinent.lexicon.classes import CLASS_IDS
from pertinent.lexicon.gazetteer import Gazetteer, GazetteerConfig
from pertinent.lexicon.pairs import TOKENIZER_FILE, PairConfig, PairTokenizer
from pertinent.lexicon.tagger import Tagger, TaggerConfig, token_classes
from pertinent.lexicon.terms import DomainWord, domain_words, need_word_pieces, splitting_words, word_counts
from pertinent.lexicon.vocabulary import (
    Subtokens,
    added_words,
    extend_embedding,
    extend_pairs,
    extend_tokenizer,
    pair_subtokens,
    subtoken_report,
    text_subtokens,
    token_counts,
    word_subtokens,
)
from pertinent.text import JOINT, normalize, words

WORDS = [
    *("oem", "100%", "12v", "bluetooth", "makita", "usb-c", "1.5mm", "café-crème", "größenverstellbar"),
    *("waterproof", "don’t", "сковорода", "hoodie", "6ft"),
]


@cache
def base() -> Tokenizer:
    return Tokenizer.from_file(str(shipped_folder() / TOKENIZER_FILE))


@cache
def extended() -> Tokenizer:
    return extend_tokenizer(base(), WORDS)


@cache
def real_titles() -> list[str]:
    samples = ("esci", "icecat", "pricerunner", "fashion")
    return [t for name in samples for t in read_table(sample_path(name) / "items.parquet").need_texts("title")[::12]]


@cache
def real_extended() -> Tokenizer:
    added = domain_words(word_counts(real_titles()), base(), 20_000, 1)
    return extend_tokenizer(base(), [each.word for each in added])


def tokens(tokenizer: Tokenizer, text: str) -> list[str]:
    ids = tokenizer.encode(normalize(text), add_special_tokens=False).ids
    return [str(tokenizer.id_to_token(number)).replace(JOINT, "") for number in ids]


def new_tokens(text: str) -> list[str]:
    return [token for token in tokens(extended(), text) if base().token_to_id(token) is None]


# The example of the paper


def test_the_papers_example_goes_from_20_to_13_tokens() -> None:
    query, title = "waterproof bluetooth headset", "xiaomi high-quality waterproof bluetooth headset"
    more = extend_tokenizer(base(), ["waterproof", "xiaomi", "bluetooth", "headset"])
    row = pair_subtokens([(query, title)], base(), more)
    assert (row.base, row.extended) == (20, 13)
    assert tokens(more, title) == ["xiaomi", "high", "-", "quality", "waterproof", "bluetooth", "headset"]
    assert row.saving == pytest.approx(7 / 20)
    config = PairConfig(positions="running")
    assert [PairTokenizer(each, config).pair([query], [title]).mask.sum() for each in (base(), more)] == [20, 13]


# Whole words


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("OEM part", ["oem"]),
        ("poem, oems, oem2, oem_x, xoem, noem", []),
        ("(oem) oem's oem-x oem/oem", ["oem"] * 5),
        ("ＯＥＭ １２Ｖ", ["oem", "12v"]),
        ("100% cotton, 100%.", ["100%", "100%"]),
        ("100%cotton 100%6ft", ["100%", "100%", "6ft"]),
        ("1100% 100 %", []),
        ("6ft .6ft 2x 6ft. 12,6ft, 6ft/2", ["6ft"] * 4),
        ("5.6ft 1,6ft 1.5.6ft x6ft", []),
        ("11.5mm 2.1.5mm 1.5mm. 1.5mm, 1.5mm.2", ["1.5mm"] * 3),
        ("12v 12V/5a -12v", ["12v"] * 3),
        ("12vdc 112v", []),
        ("makita makitas makita.", ["makita"] * 2),
        ("usb-c USB-C, usb-c-hub", ["usb-c"] * 3),
        ("usb-cable usb c", []),
        ("1.5mm 1.5mm²", ["1.5mm"]),  # the square becomes a 2
        ("CAFÉ-CRÈME cafe-creme", ["cafe-creme"] * 2),
        ("größenverstellbar GRÖSSENVERSTELLBAR", ["großenverstellbar"]),
        ("сковорода СКОВОРОДА сковородами", ["сковорода"] * 2),
        ("無線bluetooth無線", ["bluetooth"]),
        ("bluetoothワイヤレス", []),
        ("blue\u200btooth\u00ad", ["bluetooth"]),
        ("waterproof\nhoodie\thoodie", ["waterproof", "hoodie", "hoodie"]),
        ("", []),
    ],
)
def test_added_words_are_found_as_whole_words(text: str, found: list[str]) -> None:
    assert new_tokens(text) == found


def test_texts_without_an_added_word_have_the_tokens_they_had() -> None:
    for text in ("poem", "makitas", "oems 12vdc", "xbluetooth", "200 % 1.5mmx", "日本語", "[SEP] oe m"):
        assert tokens(extended(), text) == tokens(base(), text)


def joins_words(character: str) -> bool:
    """Letters, digits and underscores; Chinese characters are words of their own."""
    if "IDEOGRAPH" in unicodedata.name(character, ""):
        return False
    category = unicodedata.category(character)
    return category[0] == "L" or category == "Nd" or character == "_"


any_text = st.text(st.characters(exclude_categories=()), max_size=40)
near_words = st.sampled_from([*WORDS, "a", "s", "-", ".", "%", "_", " ", "日", "é", "2", "'", "\u0301"])


@given(st.lists(near_words | any_text, max_size=8).map("".join))
@settings(max_examples=200, deadline=None)
def test_a_new_token_stands_between_what_is_no_letter_digit_or_underscore(text: str) -> None:
    normal = normalize(text)
    encoding = extended().encode(normal, add_special_tokens=False)
    for number, (start, end) in zip(encoding.ids, encoding.offsets, strict=True):
        if number >= base().get_vocab_size():
            after = "" if normal[end - 1] == "%" else normal[end : end + 1]
            for neighbor in (normal[start - 1 : start], after):
                assert not neighbor or not joins_words(neighbor)
    if not any(number >= base().get_vocab_size() for number in encoding.ids):
        assert encoding.ids == base().encode(normal, add_special_tokens=False).ids


def whole_words(text: str, word: str) -> int:
    """How often a word stands in a text as a whole word: the rule once more, character by character."""
    found, at = 0, 0
    while (at := text.find(word, at)) >= 0:
        end = at + len(word)
        before, after = text[max(at - 2, 0) : at].rjust(2), text[end : end + 2].ljust(2)
        within_number = before[1] in ".," and before[0].isdecimal() and word[0].isdecimal()
        goes_on = after[0] in ".," and after[1].isdecimal() and word[-1].isdecimal()
        bound = word[-1] == "%" or not (joins_words(after[0]) or goes_on)
        whole = not joins_words(before[1]) and not within_number and bound
        found, at = found + whole, end if whole else at + 1
    return found


@cache
def extended_by(word: str) -> Tokenizer:
    return extend_tokenizer(base(), [word])


around = st.sampled_from(["oem", "100%", "12v", "6ft", "1.5mm", "p", "5", ".", ",", "%", "-", "/", " ", "_", "日", "x"])


@pytest.mark.parametrize("word", ["oem", "100%", "12v", "6ft", "1.5mm"])
@given(text=st.lists(around, max_size=9).map("".join))
@settings(max_examples=60, deadline=None)
def test_a_whole_word_is_one_token_and_a_text_without_it_is_cut_as_before(word: str, text: str) -> None:
    normal = normalize(text)
    encoding = extended_by(word).encode(normal, add_special_tokens=False)
    number = extended_by(word).token_to_id(word)
    assert encoding.ids.count(number) == whole_words(normal, word)
    assert [
        normal[start:end] for own, (start, end) in zip(encoding.ids, encoding.offsets, strict=True) if own == number
    ] == [word] * whole_words(normal, word)
    # What is counted as a word is found as one.
    assert words(normal).count(word) <= encoding.ids.count(number)
    if number not in encoding.ids:
        assert encoding.ids == base().encode(normal, add_special_tokens=False).ids
        assert encoding.offsets == base().encode(normal, add_special_tokens=False).offsets


@pytest.mark.parametrize(
    ("text", "classes"),
    [
        ("100%cotton", {"100%": 1, "cotton": 0}),
        ("100% cotton", {"100%": 1, "cotton": 0}),
        ("cable 6ft", {"cable": 0, "6ft": 1}),
        ("5.6ft", {"5": 1, ".": 1, "6": 1, "ft": 1}),
        ("1/6ft", {"1": 1, "/": 1, "6ft": 1}),
        ("12v/6ft", {"12v": 1, "/": 0, "6ft": 1}),
        (".6ft 12v", {".": 0, "6ft": 1, "12v": 1}),
        ("1100%", {"1100": 1, "%": 1}),
    ],
)
def test_tokens_of_numbers_with_units_have_the_class_of_the_word_that_the_tagger_sees(
    text: str, classes: dict[str, int]
) -> None:
    tagger = Tagger(Gazetteer({}, GazetteerConfig()), None, TaggerConfig(mode="gazetteer"))
    encoding = extended().encode(text, add_special_tokens=False)
    found = (token_classes(encoding.offsets, tagger.tag(text)) == CLASS_IDS["specification"]).astype(int).tolist()
    assert [text[start:end] for start, end in encoding.offsets] == list(classes)
    assert found == list(classes.values())


def test_an_extended_tokenizer_can_be_extended_again() -> None:
    twice = extend_tokenizer(extend_tokenizer(base(), ["1.5mm"]), ["1.5mm-oem", "6ft"])
    assert added_words(twice) == ("1.5mm", "1.5mm-oem", "6ft")
    assert tokens(twice, "1.5mm 1.5mm-oem 5.6ft 6ft")[:2] == ["1.5mm", "1.5mm-oem"]
    assert splitting_words(twice, ["1.5mm-x"]) == {"1.5mm-x": ("1.5mm", "-", "x")}


def test_a_tokenizer_that_cuts_elsewhere_gets_words_and_keeps_its_own_borders() -> None:
    plain = Tokenizer(models.WordPiece({"[UNK]": 0, "oem": 1, "p": 2, "##oem": 3}, unk_token="[UNK]"))
    more = extend_tokenizer(plain, ["poem"])
    assert more.normalizer is None
    assert more.encode("poem").ids == [4]


# Real titles, with thousands of words


def test_words_of_real_titles_without_a_new_token_are_cut_as_before() -> None:
    limit = base().get_vocab_size()
    for title in real_titles():
        whole = real_extended().encode(normalize(title), add_special_tokens=False).ids
        # Titles are cut word by word: what stands beside a word changes nothing in it.
        parts = [real_extended().encode(word, add_special_tokens=False).ids for word in normalize(title).split()]
        assert whole == [number for part in parts for number in part]
        for word, part in zip(normalize(title).split(), parts, strict=True):
            if max(part, default=0) < limit:
                assert part == base().encode(word, add_special_tokens=False).ids


def test_every_added_word_is_one_token_and_saves_what_it_should() -> None:
    added = domain_words(word_counts(real_titles()), base(), 20_000, 1)
    assert added_words(real_extended()) == tuple(each.word for each in added)
    counts = token_counts(real_extended(), [each.word for each in added])
    assert set(counts) == {1}
    assert [len(each.pieces) for each in added] == token_counts(base(), [each.word for each in added]).tolist()
    row = text_subtokens(real_titles(), base(), real_extended())
    assert row.saving > 0.2


def test_hugging_face_gives_the_same_ids(tmp_path: Path) -> None:
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    from pertinent.artifact import write_json

    pairs = PairTokenizer(real_extended(), PairConfig(query_length=512, item_length=512))
    pairs.save(tmp_path)
    write_json(tmp_path / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast"})
    write_json(tmp_path / "config.json", {"model_type": "bert"})
    texts = [normalize(title) for title in [*real_titles(), *WORDS, "poem makitas 100%cotton"]]
    rows = pairs.encode_items(texts)
    ours = [rows.row(number).tolist() for number in range(len(rows))]
    fast = PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / TOKENIZER_FILE))
    assert fast(texts, add_special_tokens=False)["input_ids"] == ours
    auto = AutoTokenizer.from_pretrained(tmp_path)
    assert auto(texts, add_special_tokens=False)["input_ids"] == ours
    auto.save_pretrained(tmp_path / "again")
    again = PairTokenizer.load(tmp_path / "again", pairs.config).encode_items(texts)
    np.testing.assert_array_equal(again.ids, rows.ids)


# Which words


def test_words_are_counted_after_the_one_normalizer() -> None:
    counts = word_counts(["ＯＥＭ oem's", "Oem 12V", ""])
    assert counts == {"oem": 2, "oem's": 1, "12v": 1}
    assert word_counts(["oem oem", "12v"], [3, 1]) == {"oem": 6, "12v": 1}
    assert word_counts([]) == Counter()


def test_the_most_frequent_words_that_split_are_taken_and_ties_go_by_the_word() -> None:
    counts = {"cable": 9, "xiaomi": 2, "bluetooth": 5, "waterproof": 2, "hoodie": 1, "日本語": 9, "❤": 9}
    found = domain_words(counts, base(), 10, 2)
    assert [(each.word, each.count) for each in found] == [("bluetooth", 5), ("waterproof", 2), ("xiaomi", 2)]
    assert found[0] == DomainWord("bluetooth", 5, ("blue", "##tooth"))
    assert domain_words(dict(reversed(counts.items())), base(), 2, 1) == found[:2]
    assert domain_words({}, base(), 10, 1) == []


def test_spellings_that_the_tokenizer_cannot_tell_apart_count_as_one() -> None:
    found = domain_words({"crème-brûlée": 2, "creme-brulee": 3, "crème-brulée": 1}, base(), 10, 6)
    assert [(each.word, each.count) for each in found] == [("creme-brulee", 6)]


def test_words_that_are_known_unreadable_or_parted_by_spaces_are_not_added() -> None:
    words_ = ["cable", "", "日本", "無線bluetooth", "❤", "a" * 200, "usb c", "bluetooth", "Bluetooth"]
    assert list(splitting_words(base(), words_)) == ["bluetooth"]
    again = extend_tokenizer(extended(), WORDS)
    assert again.get_vocab_size() == extended().get_vocab_size()
    assert extend_tokenizer(base(), []).to_str() == base().to_str()


def test_the_given_tokenizer_stays_as_it_is() -> None:
    before = base().to_str()
    extend_tokenizer(base(), ["bluetooth"])
    assert base().to_str() == before


def test_other_kinds_of_tokenizers_are_refused() -> None:
    need_word_pieces(base(), "shipped")
    with pytest.raises(ArtifactError, match="here: is a BPE tokenizer; words can be added to WordPiece"):
        need_word_pieces(Tokenizer(models.BPE()), "here")


# Rows


def test_new_rows_are_means_of_the_rows_of_the_old_pieces() -> None:
    pairs = PairTokenizer(base(), PairConfig())
    more, pieces = extend_pairs(pairs, WORDS)
    rows = np.random.default_rng(0).normal(size=(pairs.vocabulary_size, 4)).astype(np.float32)
    out = extend_embedding(rows, pieces)
    assert out.shape == (more.vocabulary_size, 4) and out.dtype == np.float32
    np.testing.assert_array_equal(out[: len(rows)], rows)
    for word in added_words(more.tokenizer):
        old = base().encode(word, add_special_tokens=False).ids
        row = out[more.tokenizer.token_to_id(word)]
        np.testing.assert_allclose(row, np.mean([rows[number] for number in old], axis=0), atol=1e-6)
    assert extend_embedding(rows, []).shape == rows.shape


# What it saves


def test_average_tokens_by_hand() -> None:
    more = extend_tokenizer(base(), ["bluetooth"])
    titles = ["Bluetooth cable", "cable, cable"]
    assert text_subtokens(titles, base(), more) == Subtokens(2, 2.0, 3.0, 2.5)
    assert word_subtokens(titles, base(), more) == Subtokens(4, 1.0, 1.25, 1.0)
    assert pair_subtokens([("bluetooth", "bluetooth")], base(), more) == Subtokens(1, 2.0, 7.0, 5.0)
    assert set(subtoken_report(titles, [], base(), more)) == {"word", "title"}
    assert subtoken_report([], [], base(), more) == {}
    assert Subtokens(0, 0.0, 0.0, 0.0).saving == 0.0
    assert text_subtokens(titles, base(), more).plain()["saving"] == 0.1667


def test_words_of_a_text_are_what_is_counted() -> None:
    assert all(normalize(word) == word for title in real_titles()[:200] for word in words(title))
