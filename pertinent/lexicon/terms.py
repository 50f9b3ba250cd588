"""Which words deserve a token of their own (ei-SRC, section 4)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from tokenizers import Tokenizer, models

from pertinent.errors import ArtifactError
from pertinent.text import JOINT, words


@dataclass(frozen=True, slots=True)
class DomainWord:
    """A word that a tokenizer splits, how often it occurs, and what it is split into."""

    word: str
    count: int
    pieces: tuple[str, ...]


def word_counts(texts: Iterable[str], weights: Iterable[int] | None = None) -> Counter[str]:
    """How often each word occurs, after the one normalizer; a text with weight n counts n times.

    >>> word_counts(["OEM cable", "ｏｅｍ, 12V"]).most_common(1)
    [('oem', 2)]
    >>> word_counts(["12v tv"], [3])["tv"]
    3
    """
    counts: Counter[str] = Counter()
    if weights is None:
        for text in texts:
            counts.update(words(text))
        return counts
    for text, weight in zip(texts, weights, strict=True):
        for word in words(text):
            counts[word] += weight
    return counts


def domain_words(counts: Mapping[str, int], tokenizer: Tokenizer, limit: int, min_count: int) -> list[DomainWord]:
    """The most frequent words that the tokenizer splits into two pieces or more, at most ``limit``.

    Words are first folded as the tokenizer folds text (an uncased BERT strips accents), so that
    spellings which it cannot tell apart count as one. Equal counts come in order of the words.
    """
    split = splitting_words(tokenizer, counts)
    folded: Counter[str] = Counter()
    for word, own in zip(counts, fold(tokenizer, counts), strict=True):
        if own in split:
            folded[own] += counts[word]
    ranked = sorted((-count, word) for word, count in folded.items() if count >= min_count)
    return [DomainWord(word, -count, split[word]) for count, word in ranked[:limit]]


def splitting_words(tokenizer: Tokenizer, candidates: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """The candidates that the tokenizer splits, folded and once each, with their pieces.

    Left out are words it knows already, words it cannot read at all, and words that it parts with
    spaces: every Chinese character is a word of its own to a BERT, so a run of them is no word.
    """
    distinct = [word for word in dict.fromkeys(fold(tokenizer, candidates)) if word and not _has_space(word)]
    encodings = tokenizer.encode_batch(distinct, add_special_tokens=False)
    return {
        word: tuple(token.replace(JOINT, "") for token in encoding.tokens)
        for word, encoding in zip(distinct, encodings, strict=True)
        if len(encoding.ids) >= 2 and tokenizer.token_to_id(word) is None
    }


def fold(tokenizer: Tokenizer, texts: Iterable[str]) -> list[str]:
    """Texts as the tokenizer's own normalizer makes them: lower case, and without accents in most BERTs."""
    normalizer = tokenizer.normalizer
    # An extended tokenizer has joints within numbers, which are no part of the text.
    return list(texts) if normalizer is None else [normalizer.normalize_str(text).replace(JOINT, "") for text in texts]


def need_word_pieces(tokenizer: Tokenizer, source: str) -> None:
    """Raise ArtifactError unless it is a WordPiece tokenizer, whose pieces of a word can be averaged."""
    if not isinstance(tokenizer.model, models.WordPiece):
        raise ArtifactError(
            f"{source}: is a {type(tokenizer.model).__name__} tokenizer; words can be added to WordPiece tokenizers "
            "only, such as those of BERT"
        )


def _has_space(word: str) -> bool:
    return any(character.isspace() for character in word)
