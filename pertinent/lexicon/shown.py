"""A text as a model reads it, for people: its tokens, which of them fit, and the classes of its terms."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from pertinent.lexicon.classes import TERM_CLASSES
from pertinent.lexicon.pairs import PairTokenizer
from pertinent.lexicon.tagger import Tagger, token_classes
from pertinent.text import JOINT, normalize

# Of longer texts nothing that a model reads comes later.
_MOST_CHARACTERS = 10_000


@dataclass(frozen=True, slots=True)
class Token:
    """A piece of a text as the model reads it; ``read`` is False beyond the model's length."""

    text: str
    term_class: str
    read: bool


@dataclass(frozen=True, slots=True)
class Term:
    """A term with its class, and what gave it: gazetteer, pattern or classifier."""

    text: str
    term_class: str
    source: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class ExplainedText:
    """A text as it was read: normalized, its tokens and its terms."""

    text: str
    tokens: tuple[Token, ...]
    terms: tuple[Term, ...]


def explain_query(text: str, pairs: PairTokenizer, tagger: Tagger) -> ExplainedText:
    """A query's tokens and terms."""
    return explain_text(text, pairs, tagger, pairs.config.query_length - 2)


def explain_title(text: str, pairs: PairTokenizer, tagger: Tagger) -> ExplainedText:
    """A title's tokens and terms."""
    return explain_text(text, pairs, tagger, pairs.config.item_length - 1)


def explain_text(text: str, pairs: PairTokenizer, tagger: Tagger, limit: int) -> ExplainedText:
    """A text's tokens and terms; tokens from ``limit`` on are not read by the model."""
    normal = normalize(text[:_MOST_CHARACTERS])
    spans = tagger.tag_normalized([normal])[0]
    encoding = pairs.tokenizer.encode(normal, add_special_tokens=False)
    classes = [TERM_CLASSES[number] for number in token_classes(encoding.offsets, spans)]
    pieces = zip(encoding.tokens, classes, strict=True)
    tokens = tuple(Token(piece.replace(JOINT, ""), name, place < limit) for place, (piece, name) in enumerate(pieces))
    return ExplainedText(normal, tokens, tuple(Term(s.text, s.term_class, s.source, s.start, s.end) for s in spans))


def tagger_of(pairs: PairTokenizer) -> Tagger:
    """The model's own tagger, else the one that comes with pertinent."""
    return pairs.tagger or _shipped()


@cache
def _shipped() -> Tagger:
    return Tagger.shipped()
