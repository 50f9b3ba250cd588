"""Laws of what pre-training hides and shuffles: whole words, the asked share, nothing that is no word."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from pertinent.training.masking import NO_LABEL, hide_words, shuffle_spans, word_numbers

MASK_ID, LENGTH = 4, 24
OTHERS = np.arange(10, 60)


def draw(seed: int, rows: int, length: int = LENGTH) -> Callable[[], np.ndarray]:
    generator = np.random.default_rng(seed)
    return lambda: generator.random((rows, length))


def batch(rows: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ids, which are pieces that go on, and which are words; two control tokens and padding at the end."""
    generator = np.random.default_rng(seed)
    ids = generator.integers(10, 60, (rows, LENGTH))
    continues = generator.random((rows, LENGTH)) < 0.3
    content = np.arange(LENGTH)[None] < generator.integers(1, LENGTH, (rows, 1))
    content[:, 0] = False
    return ids, continues, content


def test_a_word_is_hidden_as_a_whole_or_not_at_all() -> None:
    ids, continues, content = batch(400)
    words = word_numbers(continues, content)
    hidden, labels = hide_words(ids, content, words, 0.3, MASK_ID, OTHERS, draw(1, 400))
    for row in range(400):
        for word in range(words[row].max() + 1):
            own = content[row] & (words[row] == word)
            chosen = labels[row][own] != NO_LABEL
            assert chosen.all() or not chosen.any()
            masked = hidden[row][own] == MASK_ID
            assert masked.all() or not masked.any()


def test_labels_are_what_was_there_and_all_else_is_as_it_was() -> None:
    ids, continues, content = batch(200)
    hidden, labels = hide_words(ids, content, word_numbers(continues, content), 0.15, MASK_ID, OTHERS, draw(2, 200))
    chosen = labels != NO_LABEL
    assert (labels[chosen] == ids[chosen]).all()
    assert (hidden[~chosen] == ids[~chosen]).all()
    assert not (chosen & ~content).any()


def test_about_the_asked_shares_are_hidden_and_how() -> None:
    ids, continues, content = batch(4000)
    hidden, labels = hide_words(ids, content, word_numbers(continues, content), 0.15, MASK_ID, OTHERS, draw(3, 4000))
    chosen = labels != NO_LABEL
    assert chosen.sum() / content.sum() == pytest.approx(0.15, abs=0.01)
    assert (hidden[chosen] == MASK_ID).mean() == pytest.approx(0.8, abs=0.02)
    kept = (hidden[chosen] == ids[chosen]).mean()  # and one in fifty of the random ones
    assert kept == pytest.approx(0.1 + 0.1 / 50, abs=0.02)


def test_words_begin_after_what_is_no_word() -> None:
    content = np.array([[False, True, True, False, True, True]])
    continues = np.array([[False, True, True, False, True, False]])
    assert word_numbers(continues, content)[content].tolist() == [0, 0, 1, 2]


@pytest.mark.parametrize("rows", [0, 1])
def test_empty_batches_and_batches_without_words_stay(rows: int) -> None:
    ids = np.full((rows, LENGTH), 7)
    content = np.zeros((rows, LENGTH), dtype=bool)
    hidden, labels = hide_words(ids, content, word_numbers(content, content), 0.9, MASK_ID, OTHERS, draw(0, rows))
    assert (hidden == ids).all() and (labels == NO_LABEL).all()
    shuffled, labels = shuffle_spans(ids, content, ids, 1.0, draw(0, rows))
    assert (shuffled == ids).all() and (labels == NO_LABEL).all()
    short = np.ones((rows, 2), dtype=bool)
    assert (shuffle_spans(ids[:, :2], short, ids[:, :2], 1.0, draw(0, rows, 2))[1] == NO_LABEL).all()


@pytest.mark.parametrize("share", [0.05, 1.0])
def test_spans_of_three_free_tokens_of_one_segment_are_reordered(share: float) -> None:
    generator = np.random.default_rng(0)
    ids = np.arange(300 * LENGTH).reshape(300, LENGTH)  # all differ, so an order shows
    free = generator.random((300, LENGTH)) < 0.8
    segments = np.broadcast_to((np.arange(LENGTH) >= 10).astype(np.int64), ids.shape)
    shuffled, labels = shuffle_spans(ids, free, segments, share, draw(5, 300))
    moved = labels != NO_LABEL
    assert moved.any()
    assert not (moved & ~free).any()
    assert (labels[moved] == ids[moved]).all() and (shuffled[~moved] == ids[~moved]).all()
    for row in range(300):
        columns = np.flatnonzero(moved[row])
        assert len(columns) % 3 == 0
        for span in columns.reshape(-1, 3):
            assert (np.diff(span) == 1).all()
            assert len(set(segments[row, span].tolist())) == 1
            assert sorted(shuffled[row, span]) == sorted(ids[row, span])
            assert (shuffled[row, span] != ids[row, span]).any()


def test_about_the_asked_share_of_places_begins_a_span() -> None:
    ids = np.arange(3000 * LENGTH).reshape(3000, LENGTH)
    free = np.ones_like(ids, dtype=bool)
    _, labels = shuffle_spans(ids, free, np.zeros_like(ids), 0.05, draw(6, 3000))
    spans = (labels != NO_LABEL).sum() / 3
    assert spans / (3000 * (LENGTH - 2)) == pytest.approx(0.05, abs=0.006)  # a few fall to overlaps
