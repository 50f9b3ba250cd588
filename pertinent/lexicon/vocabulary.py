"""Whole words added to a WordPiece tokenizer, their embedding rows, and what they save (ei-SRC, section 4).

An added word is matched before the text is cut into pieces, where it is a whole word: no letter, digit
or underscore beside it, as ``12v`` in ``12v/5a`` but ``oem`` not in ``poem``; a percent sign ends a word
by itself (``100%`` in ``100%cotton``), and a point or comma between two digits ends none (no ``6ft`` in
``5.6ft``). Of several words that begin at the same place the longest is tried. All other text is cut as
before. The result is an ordinary ``tokenizer.json``; Hugging Face tokenizers give the same ids.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import AddedToken, Regex, Tokenizer, normalizers, pre_tokenizers

from pertinent.lexicon.pairs import PairTokenizer
from pertinent.lexicon.terms import splitting_words, word_counts
from pertinent.text import JOINT, normalize, words

# [CLS] query [SEP] title [SEP]
PAIR_CONTROL_TOKENS = 3


@dataclass(frozen=True, slots=True)
class Subtokens:
    """Average tokens of a text under two vocabularies: a row of ei-SRC's Table 3."""

    texts: int
    words: float
    base: float
    extended: float

    @property
    def saving(self) -> float:
        """The share of tokens that the extended vocabulary saves."""
        return 1 - self.extended / self.base if self.base else 0.0

    def plain(self) -> dict[str, Any]:
        """JSON-able values, rounded so that they are the same on every machine."""
        return {
            "texts": self.texts,
            "words": round(self.words, 4),
            "base": round(self.base, 4),
            "extended": round(self.extended, 4),
            "saving": round(self.saving, 4),
        }


def extend_tokenizer(tokenizer: Tokenizer, added: Iterable[str]) -> Tokenizer:
    """A copy in which each of the given words is one token; ids follow those there are, in order.

    Words that the tokenizer does not split are left out; the given tokenizer stays as it is.
    """
    split = splitting_words(tokenizer, added)
    if not split:
        return Tokenizer.from_str(tokenizer.to_str())
    extended = with_borders(tokenizer)
    tokens = [AddedToken(word, single_word=True, normalized=True) for word in split]
    extended.add_tokens(tokens)
    return extended


def with_borders(tokenizer: Tokenizer) -> Tokenizer:
    """A copy that cuts every text as before, and finds whole words only, also beside percent signs and points.

    Added tokens are held against the letter, digit or underscore beside them, and nothing else. So the
    normalizer sets a space between a percent sign and a letter, and an invisible joiner, which counts as
    a letter, around a point or comma between digits; the joiner is taken out again before words are cut.
    A tokenizer that does not cut there anyway, or that reads the joiner itself, stays as it is.
    """
    copy = Tokenizer.from_str(tokenizer.to_str())
    own, cut = copy.normalizer, copy.pre_tokenizer
    if own is None or cut is None or own.normalize_str(f"1.5{JOINT}a") != "1.5a":
        return copy
    if [part for part, _ in cut.pre_tokenize_str("1.5,6%a")] != ["1", ".", "5", ",", "6", "%", "a"]:
        return copy
    between = [normalizers.Replace(Regex(rf"(?<=\d){re.escape(mark)}(?=\d)"), f"{JOINT}{mark}{JOINT}") for mark in ".,"]
    copy.normalizer = normalizers.Sequence([own, normalizers.Replace(Regex(r"%(?=\w)"), "% "), *between])
    copy.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(JOINT, "removed"), cut])
    return copy


def added_words(tokenizer: Tokenizer) -> tuple[str, ...]:
    """The whole words that were added to a tokenizer, in order of their ids; control tokens are not among them."""
    decoder = tokenizer.get_added_tokens_decoder()
    return tuple(token.content for _, token in sorted(decoder.items()) if token.single_word and not token.special)


def extend_pairs(pairs: PairTokenizer, added: Iterable[str]) -> tuple[PairTokenizer, list[list[int]]]:
    """The pair tokenizer with the given words, and the old pieces of each new id, in order of the ids."""
    split = splitting_words(pairs.tokenizer, added)
    number = pairs.tokenizer.get_vocab()
    pieces = [[number[piece] for piece in own] for own in split.values()]
    return PairTokenizer(extend_tokenizer(pairs.tokenizer, split), pairs.config, pairs.tagger), pieces


def extend_embedding(rows: NDArray[np.float32], pieces: Sequence[Sequence[int]]) -> NDArray[np.float32]:
    """Embedding rows ``[V, d]`` with one more for each list of pieces, its rows' mean: ``[V + N, d]``.

    >>> rows = np.array([[0.0, 1.0], [2.0, 3.0]], dtype=np.float32)
    >>> extend_embedding(rows, [[0, 1], [1]]).tolist()
    [[0.0, 1.0], [2.0, 3.0], [1.0, 2.0], [2.0, 3.0]]
    """
    new = [rows[list(own)].mean(axis=0, dtype=np.float64) for own in pieces]
    return np.concatenate([rows, np.array(new, dtype=rows.dtype).reshape(-1, rows.shape[1])])


def token_counts(tokenizer: Tokenizer, texts: Iterable[str]) -> NDArray[np.int64]:
    """How many tokens each text has after the one normalizer, ``[n]``, without control tokens."""
    encodings = tokenizer.encode_batch_fast([normalize(text) for text in texts], add_special_tokens=False)
    return np.array([len(encoding) for encoding in encodings], dtype=np.int64)


def text_subtokens(texts: Sequence[str], base: Tokenizer, extended: Tokenizer) -> Subtokens:
    """Average words and tokens a text."""
    counted = sum(len(words(text)) for text in texts)
    return _average(len(texts), counted, token_counts(base, texts).sum(), token_counts(extended, texts).sum())


def word_subtokens(texts: Iterable[str], base: Tokenizer, extended: Tokenizer) -> Subtokens:
    """Average tokens a word on its own, over the words of the texts as often as they occur."""
    counts = word_counts(texts)
    times = np.array(list(counts.values()), dtype=np.int64)
    sums = [(token_counts(tokenizer, counts) * times).sum() for tokenizer in (base, extended)]
    return _average(counts.total(), counts.total(), *sums)


def pair_subtokens(pairs: Sequence[tuple[str, str]], base: Tokenizer, extended: Tokenizer) -> Subtokens:
    """Average words and tokens a (query, title), one ``[CLS]`` and two ``[SEP]`` included."""
    texts = [text for pair in pairs for text in pair]
    both = text_subtokens(texts, base, extended)
    return Subtokens(
        len(pairs), 2 * both.words, 2 * both.base + PAIR_CONTROL_TOKENS, 2 * both.extended + PAIR_CONTROL_TOKENS
    )


def subtoken_report(
    titles: Sequence[str], pairs: Sequence[tuple[str, str]], base: Tokenizer, extended: Tokenizer
) -> dict[str, Subtokens]:
    """Average tokens a word, a title and a pair, as in Table 3 of ei-SRC; rows without texts are left out."""
    report = {}
    if titles:
        report["word"] = word_subtokens(titles, base, extended)
        report["title"] = text_subtokens(titles, base, extended)
    if pairs:
        report["pair"] = pair_subtokens(pairs, base, extended)
    return report


def _average(texts: int, words: int, base: Any, extended: Any) -> Subtokens:
    size = max(texts, 1)
    return Subtokens(texts, int(words) / size, int(base) / size, int(extended) / size)
