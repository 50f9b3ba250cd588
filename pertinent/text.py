"""The one text normalizer: counting, lexicon, caches and tokenizer all read the same text."""

from __future__ import annotations

import re
import unicodedata

# Longer inputs are cut before anything looks at them: tokenizing 1 MB takes a second, and
# what lies beyond is never read (a block of 512 tokens is some 3,000 characters).
MAX_CHARACTERS = 10_000
# One more whenever `normalize` gives another text for any input: cached scores are found by normalized queries.
NORMALIZER = 1

# A zero-width joiner, which no normalized text has: extended tokenizers set it within numbers, for themselves.
JOINT = "\u200d"

_SPACES = re.compile(r"\s+")
_WORD = re.compile(r"\w+(?:[.,'’-]\w+)*[%°]?", re.UNICODE)


def normalize(text: str, max_characters: int = MAX_CHARACTERS) -> str:
    """Text in canonical form: NFKC, no control or invisible characters, single spaces, lower case.

    Full-width letters are folded to ASCII ones, bidirectional marks, zero-width characters, NUL
    and lone surrogates are removed. Accents are kept (the tokenizer strips them where its
    vocabulary has none). Idempotent. Text beyond ``max_characters`` is dropped first.

    >>> normalize("  ＷＩＲＥＬＥＳＳ\\u200b\\tEarbuds ")
    'wireless earbuds'
    """
    text = text[:max_characters]
    if text.isascii():
        text = text if text.isprintable() else "".join(c for c in text if c.isprintable() or c.isspace())
    else:
        text = unicodedata.normalize("NFKC", text)
        text = "".join(c for c in text if _visible(c))
    text = _SPACES.sub(" ", text).strip().lower()
    # Lower-casing can leave decomposed forms behind ("İ"): compose again, so a second pass changes nothing.
    return text if text.isascii() else unicodedata.normalize("NFKC", text)


def words(text: str) -> list[str]:
    """The words of a text after ``normalize``: letters and digits, with inner hyphens and points.

    >>> words("USB-C Cable, 1.5 m (100% copper)")
    ['usb-c', 'cable', '1.5', 'm', '100%', 'copper']
    """
    return _WORD.findall(normalize(text))


def _visible(character: str) -> bool:
    category = unicodedata.category(character)
    # Cc control, Cf invisible format (bidi marks, zero width), Cs lone surrogate, Co private use.
    return category[0] != "C" or character.isspace()
