"""The tagger: one text as many, saved as loaded, the best of all paths, the same bytes from the same input."""

from __future__ import annotations

import copy
import hashlib
import itertools
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pertinent.artifact import open_artifact
from pertinent.data.samples import sample_path
from pertinent.errors import ArtifactError, ConfigError, DataError
from pertinent.lexicon.classes import CLASS_IDS, OA_MINE_CLASSES, QUERYNER_CLASSES, TERM_CLASSES
from pertinent.lexicon.gazetteer import Gazetteer, GazetteerConfig, split_words
from pertinent.lexicon.labeled import (
    f1_interval,
    labeled,
    labels_of_titles,
    oa_mine,
    queryner,
    span_counts,
    span_scores,
)
from pertinent.lexicon.sequence import LABELS, CrfConfig, text_features, viterbi
from pertinent.lexicon.tagger import (
    SHIPPED,
    LabeledText,
    Tagger,
    TaggerConfig,
    TermSpan,
    token_classes,
    word_labels,
    word_spans,
)
from pertinent.records import Item
from pertinent.text import MAX_CHARACTERS, normalize

ITEMS = [
    Item("1", "Red wool socks", category="Clothing > Socks", attributes={"color": "Red", "material": "Wool"}),
    Item("2", "Steel water bottle", category="Bottles > Water Bottles", attributes={"material": "Steel"}),
    Item("3", "Blue cotton shirt", category="Shirts", attributes={"color": "Blue", "material": "Cotton"}),
]
GAZETTEER = Gazetteer.from_items(ITEMS, GazetteerConfig(min_count=1, min_titles=0))
CONFIG = TaggerConfig(gazetteer=GAZETTEER.config, crf=CrfConfig(passes=30))
HOSTILE = [
    "",
    " ",
    "\x00\x01\x1b[31m",
    "🧦" * 50,
    "جوارب صوف حمراء ١٢",
    "a\u202eb\u200bc",
    "\ud800 socks",
    "red " * 4000,
    "İẞﬁ 12V ｗｏｏｌ",
    "x" * 1_000_000,
    "1,2,3/4/5-6.7%°\"''--",
    "e\u0301 " * 40,
]


@pytest.fixture(scope="module")
def examples() -> list[LabeledText]:
    return queryner(sample_path("queryner") / "ner.parquet", "train")[:400]


@pytest.fixture(scope="module")
def tagger(examples: list[LabeledText]) -> Tagger:
    return Tagger.train(examples, GAZETTEER, CONFIG)


@pytest.fixture(scope="module")
def shipped() -> Tagger:
    return Tagger.shipped()


def digest(folder: Path) -> str:
    parts = [hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())]
    return "-".join(parts)


def test_ids_are_those_of_the_model() -> None:
    assert TERM_CLASSES == ("none", "material", "function", "usage", "specification", "style", "core")
    assert [CLASS_IDS[name] for name in TERM_CLASSES] == list(range(7))


def test_spans_are_in_order_apart_and_in_the_normalized_text(shipped: Tagger) -> None:
    for text in [*HOSTILE, "Wireless Bluetooth Headset, 12V, for women", "  RED  Wool\tSocks (2 pack)  "]:
        normal, last = normalize(text), 0
        for span in shipped.tag(text):
            assert span.text == normal[span.start : span.end] != ""
            assert last <= span.start < span.end <= len(normal) <= 2 * MAX_CHARACTERS
            assert span.term_class in TERM_CLASSES[1:]
            assert span.source in ("gazetteer", "pattern", "classifier")
            last = span.end


def test_one_text_and_many_give_the_same(shipped: Tagger) -> None:
    texts = [*HOSTILE, *(item.title for item in ITEMS), "wireless earbuds for running", "12v dc motor 2 pack"] * 2
    assert shipped.tag_many(texts) == [shipped.tag(text) for text in texts]
    assert shipped.tag_many([]) == []
    assert shipped.tag("") == []


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text(max_size=40), max_size=5))
def test_any_text_is_tagged_and_its_mates_do_not_matter(texts: list[str]) -> None:
    shipped = Tagger.shipped() if not _CACHE else _CACHE[0]
    _CACHE[:] = [shipped]
    assert shipped.tag_many(texts) == [shipped.tag(text) for text in texts]


_CACHE: list[Tagger] = []


def test_the_shipped_tagger_knows_ordinary_queries(shipped: Tagger) -> None:
    found = {span.text: span.term_class for span in shipped.tag("red leather handbag for women 12 inch")}
    assert found == {
        "red": "style",
        "leather": "material",
        "handbag": "core",
        "for women": "usage",
        "12 inch": "specification",
    }


def test_the_shipped_tagger_is_an_artifact_of_less_than_3_mb() -> None:
    artifact = open_artifact(SHIPPED, kind="tagger")
    assert sum(path.stat().st_size for path in SHIPPED.rglob("*")) < 3e6
    assert set(artifact.manifest["files"]) == {"tagger.json", "gazetteer.json", "tagger.safetensors"}
    assert artifact.metrics["queryner"]["test"]["micro"]["f1"] > 0.5


def test_threads_share_a_tagger(tagger: Tagger) -> None:
    texts = [f"red socks number {n} wool{n}" for n in range(300)]
    expected = tagger.tag_many(texts)
    fresh = Tagger(tagger.gazetteer, tagger.crf, tagger.config)
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(fresh.tag, texts)) == expected


def test_a_copy_finds_the_same(tagger: Tagger) -> None:
    texts = ["red wool socks 12v", "", "blue shirts for men"]
    assert copy.deepcopy(tagger).tag_many(texts) == tagger.tag_many(texts)


def test_long_texts_and_endless_words_are_bounded(tagger: Tagger) -> None:
    texts = ["red " * 2500, "a" * 10_000, "a-" * 5000, "1," * 5000, "red"] * 60
    assert all(len(word) < 600 for text in texts for word in split_words(normalize(text)).texts)
    assert tagger.tag_many(texts)[:5] == [tagger.tag(text) for text in texts[:5]]


def test_the_cache_of_words_is_bounded(tagger: Tagger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pertinent.lexicon.sequence._CACHED_WORDS", 20)
    texts = [f"red socks {n} wool{n} size{n}" for n in range(60)]
    expected = [tagger.tag(text) for text in texts]
    assert tagger.crf is not None
    assert len(tagger.crf._ids) < 40
    assert tagger.tag_many(texts) == expected


@pytest.mark.slow
def test_processes_give_what_one_process_gives(tmp_path: Path, tagger: Tagger) -> None:
    tagger.save(tmp_path)
    script = f"""
from pertinent.lexicon.tagger import Tagger
if __name__ == "__main__":
    tagger = Tagger.load({str(tmp_path)!r})
    texts = [f"red wool socks size {{n}}, 12v" for n in range(4100)]
    assert tagger.tag_many(texts, processes=2) == tagger.tag_many(texts)
"""
    (tmp_path / "many.py").write_text(script, encoding="utf-8")
    subprocess.run([sys.executable, str(tmp_path / "many.py")], check=True, timeout=300)


# ---------------------------------------------------------------- on disk


@pytest.mark.parametrize("mode", ["both", "gazetteer", "classifier"])
def test_a_tagger_is_loaded_as_it_was_saved(mode: str, examples: list[LabeledText], tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"mode": mode})
    made = Tagger.train(examples[:100], GAZETTEER, config)
    made.save(tmp_path / "a")
    again = Tagger.load(tmp_path / "a")
    again.save(tmp_path / "b")
    texts = [text.text for text in examples]
    assert again.tag_many(texts) == made.tag_many(texts)
    assert again.config == made.config
    assert again.digest == made.digest
    assert digest(tmp_path / "a") == digest(tmp_path / "b")


def test_the_same_input_gives_the_same_bytes(examples: list[LabeledText], tmp_path: Path) -> None:
    for name in "ab":
        gazetteer = Gazetteer.from_items(ITEMS if name == "a" else ITEMS[::-1], GAZETTEER.config)
        Tagger.train(examples[:100], gazetteer, CONFIG).save(tmp_path / name)
    assert digest(tmp_path / "a") == digest(tmp_path / "b")


def test_missing_and_damaged_files_are_refused(tagger: Tagger, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="missing"):
        Tagger.load(tmp_path)
    for name, content in (
        ("tagger.json", "[]"),
        ("tagger.json", '{"format": 9}'),
        ("tagger.json", '{"format": 1, "config": {"mode": "x"}}'),
        ("gazetteer.json", "{}"),
        ("tagger.safetensors", "no"),
    ):
        tagger.save(tmp_path)
        (tmp_path / name).write_text(content, encoding="utf-8")
        with pytest.raises(ArtifactError):
            Tagger.load(tmp_path)
    tagger.save(tmp_path)
    (tmp_path / "tagger.safetensors").unlink()
    with pytest.raises(ArtifactError, match="safetensors: missing"):
        Tagger.load(tmp_path)


def test_a_classifier_is_needed_where_the_settings_ask_for_it() -> None:
    with pytest.raises(ConfigError, match="needs a trained classifier"):
        Tagger(GAZETTEER, None, TaggerConfig())


def test_a_catalog_adds_its_terms(tagger: Tagger) -> None:
    catalog = [Item(str(n), "Zorblat frobs", category="Frobs", attributes={"color": "Zorblat"}) for n in range(3)]
    alone = Tagger(GAZETTEER, None, TaggerConfig(mode="gazetteer", gazetteer=GAZETTEER.config)).learn(catalog)
    assert [(s.text, s.term_class) for s in alone.tag("zorblat frob socks")] == [
        ("zorblat", "style"),
        ("frob", "core"),
        ("socks", "core"),
    ]
    assert tagger.learn(catalog).gazetteer.class_of("zorblat") == CLASS_IDS["style"]
    assert tagger.gazetteer.class_of("zorblat") == 0


def test_fill_takes_terms_that_the_classifier_left_out(tagger: Tagger) -> None:
    filled = Tagger(tagger.gazetteer, tagger.crf, tagger.config.model_copy(update={"fill": True}))
    for text in ("red wool socks 12v", "zzz 12v qqq", "women 3 in 1"):
        plain, more = tagger.tag(text), filled.tag(text)
        assert set(plain) <= set(more)
        assert more == sorted(more)


# ---------------------------------------------------------------- the classifier


def test_labels_are_the_best_of_all_paths(tagger: Tagger, examples: list[LabeledText]) -> None:
    """The oracle: every path, scored by the plain rule over the features that CRFsuite was given."""
    crf = tagger.crf
    assert crf is not None
    for text, _ in examples[:60]:
        words = split_words(text)
        if len(words.texts) > 3:
            words = type(words)(*(part[:3] for part in words))
        matches = tagger.gazetteer.matches(words)
        nothing = np.zeros(len(LABELS))
        state = [sum((crf.weights.get(f, nothing) for f in row), nothing) for row in text_features(words, matches)]
        np.testing.assert_allclose(crf.scores([words], [matches]), state, atol=1e-4)
        best, found = -np.inf, None
        for path in itertools.product(range(len(LABELS)), repeat=len(state)):
            legal = all(_legal(a, b) for a, b in itertools.pairwise((0, *path)))
            total = sum(row[label] for row, label in zip(state, path, strict=True))
            total += sum(crf.transitions[a, b] for a, b in itertools.pairwise(path))
            if legal and total > best:
                best, found = total, list(path)
        assert crf.decode([words], [matches]) == [found]


def _legal(before: int, label: int) -> bool:
    name = LABELS[label]
    return not name.startswith("I-") or LABELS[before][2:] == name[2:]


def test_training_learns_its_examples(tagger: Tagger, examples: list[LabeledText]) -> None:
    counts = span_counts(examples, tagger.tag_many([text.text for text in examples]))
    assert span_scores(counts)["micro"]["f1"] > 0.8


def test_viterbi_of_one_place_and_of_ties_takes_the_first_best() -> None:
    scores = np.zeros((1, 3, 2), dtype=np.float32)
    scores[0, 2, 1] = 1
    steps, first = np.zeros((3, 3), dtype=np.float32), np.zeros(3, dtype=np.float32)
    assert viterbi(scores, np.array([1, 1]), steps, first).tolist() == [[0, 2]]


# ---------------------------------------------------------------- labels and scores


def test_every_tag_of_the_data_sets_has_a_class() -> None:
    assert {*QUERYNER_CLASSES.values(), *OA_MINE_CLASSES.values()} <= set(TERM_CLASSES)
    for name, read, sizes in (
        ("queryner", queryner, {"train": 7841, "valid": 871, "test": 993}),
        ("oa_mine", oa_mine, {"train": 1288, "valid": 164, "test": 491}),
    ):
        path = sample_path(name) / "ner.parquet"
        for split, size in sizes.items():
            texts = read(path, split)
            assert len(texts) == size, (name, split)
            assert all(text.text == normalize(text.text) for text in texts)


def test_a_tag_without_a_class_is_refused() -> None:
    with pytest.raises(DataError, match="no term class for the tag 'thing'"):
        labeled("red", ["red"], ["B-thing"], QUERYNER_CLASSES)


def test_spans_and_labels_are_two_ways_to_say_the_same() -> None:
    words = split_words("red wool socks red shoes")
    labels = word_labels(words, [(0, 3, 5), (4, 14, 6), (15, 18, 5), (19, 24, 5)])
    assert word_spans(labels) == [(0, 1, 5), (1, 3, 6), (3, 4, 5), (4, 5, 5)]
    assert word_labels(split_words(""), []) == word_spans([]) == []


def test_scores_by_hand() -> None:
    truth = [LabeledText("red wool socks", ((0, 3, 5), (4, 8, 1), (9, 14, 6))), LabeledText("tea", ())]
    tagged = [
        [TermSpan(0, 3, "style", "red", ""), TermSpan(4, 14, "core", "wool socks", "")],
        [TermSpan(0, 3, "core", "tea", "")],
    ]
    counts = span_counts(truth, tagged)
    scores = span_scores(counts)
    assert scores["style"] == {"precision": 1.0, "recall": 1.0, "f1": 1.0, "spans": 1}
    assert scores["core"] == {"precision": 0.0, "recall": 0.0, "f1": 0.0, "spans": 1}
    assert scores["micro"] == {"precision": 1 / 3, "recall": 1 / 3, "f1": 1 / 3, "spans": 3}
    low, high = f1_interval(counts, 500, seed=0)
    assert 0 <= low <= 1 / 3 <= high <= 0.5
    assert f1_interval(counts, 500, seed=0) == (low, high)


def test_weak_labels_need_a_core_term_and_take_a_title_once() -> None:
    found = labels_of_titles([*ITEMS, ITEMS[0], Item("9", "no attributes 12v")], GAZETTEER.config, 10)
    assert [text.text for text in found] == ["red wool socks", "steel water bottle", "blue cotton shirt"]
    assert found[1].spans == ((0, 5, 1), (6, 18, 6))
    assert labels_of_titles(ITEMS, GAZETTEER.config, 0) == []


def test_tokens_take_the_class_of_the_span_they_begin_in() -> None:
    spans = [TermSpan(0, 3, "style", "red", ""), TermSpan(4, 14, "core", "wool socks", "")]
    offsets = [(0, 2), (2, 3), (3, 4), (4, 8), (9, 12), (12, 14), (15, 16)]
    assert token_classes(offsets, spans).tolist() == [5, 5, 0, 6, 6, 6, 0]
    assert token_classes([], spans).tolist() == []
    assert token_classes(offsets, []).tolist() == [0] * 7
