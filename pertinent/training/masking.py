"""What pre-training hides, shuffles and swaps: arrays in, arrays and labels out.

ei-SRC, section 9 (whole words, 15 %) and StructBERT (shuffled trigrams), in numpy; -1 means no label.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]
Mask = NDArray[np.bool_]
Draw = Callable[[], NDArray[np.float64]]

NO_LABEL = -1
# Of the chosen words: 80 % become [MASK], 10 % random tokens, 10 % stay (BERT).
MASKED, REPLACED = 0.8, 0.9
SPAN = 3  # tokens of a shuffled span
# All orders of three but the one that changes nothing.
ORDERS = np.array([[0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]])


def word_numbers(continues: Mask, content: Mask) -> Ids:
    """The number of the word that each token belongs to, from 0 in its row; -1 before the first word.

    ``continues`` is True on pieces that go on with the word before them; the first token of a run of
    ``content`` begins a word in any case. Both ``[batch, length]``.

    >>> word_numbers(np.array([[False, True, False, True]]), np.array([[True, True, True, True]])).tolist()
    [[0, 0, 1, 1]]
    """
    before = np.zeros_like(content)
    before[:, 1:] = content[:, :-1]
    starts = content & ~(continues & before)
    return np.cumsum(starts, axis=1) - 1


def hide_words(
    ids: Ids,
    content: Mask,
    words: Ids,
    share: float,
    mask_id: int,
    others: Ids,
    draw: Draw,
) -> tuple[Ids, Ids]:
    """Token ids with a ``share`` of the words hidden, and labels: the ids that were there, else -1.

    A word is hidden as a whole: all of its pieces become ``[MASK]``, or tokens drawn from ``others``, or
    stay. All arrays are ``[batch, length]`` but ``others``; ``draw`` gives such an array of numbers below 1.
    """
    first = words.clip(min=0)
    chance, fate = (np.take_along_axis(draw(), first, axis=1) for _ in range(2))
    chosen = content & (chance < share)
    hidden = np.where(chosen & (fate < MASKED), mask_id, ids)
    drawn = others[(draw() * len(others)).astype(np.int64)]
    hidden = np.where(chosen & (fate >= MASKED) & (fate < REPLACED), drawn, hidden)
    return hidden, np.where(chosen, ids, NO_LABEL)


def shuffle_spans(ids: Ids, free: Mask, segments: Ids, share: float, draw: Draw) -> tuple[Ids, Ids]:
    """Token ids with spans of three in another order, and labels: the ids that were there, else -1.

    A ``share`` of the places where three ``free`` tokens of one segment stand together begins such a
    span; spans do not overlap (StructBERT, word objective). All arrays are ``[batch, length]``, also those
    of numbers below 1 that ``draw`` gives.
    """
    size, length = ids.shape
    shuffled, labels = ids.copy(), np.full_like(ids, NO_LABEL)
    places = length - SPAN + 1
    if places < 1:
        return shuffled, labels
    whole = free[:, :places] & free[:, 1 : places + 1] & free[:, 2 : places + 2]
    whole &= segments[:, :places] == segments[:, 2 : places + 2]
    wanted = whole & (draw()[:, :places] < share)
    until = np.zeros(size, dtype=np.int64)
    for place in range(places):
        wanted[:, place] &= until <= place
        until = np.where(wanted[:, place], place + SPAN, until)
    rows, starts = np.nonzero(wanted)
    columns = starts[:, None] + np.arange(SPAN)  # [spans, 3]
    order = ORDERS[(draw()[rows, starts] * len(ORDERS)).astype(np.int64)]
    there = ids[rows[:, None], columns]
    shuffled[rows[:, None], columns] = np.take_along_axis(there, order, axis=1)
    labels[rows[:, None], columns] = there
    return shuffled, labels
