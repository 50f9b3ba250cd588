"""Query and title to ``TokenBatch``: the only place where pairs become tokens.

A pair is ``[CLS] query [SEP]`` in the query block and ``title [SEP]`` in the item block, each
left-aligned inside its own block (ei-SRC, section 2). Texts are tokenized apart, so item rows can
be stored once and joined with any query.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from tokenizers import Tokenizer

from pertinent.config import Config
from pertinent.errors import ArtifactError, ConfigError, DataError
from pertinent.lexicon.token_cache import TokenCache
from pertinent.records import Item, TokenBatch, TokenRows
from pertinent.text import MAX_CHARACTERS, normalize

if TYPE_CHECKING:
    from tokenizers import AddedToken, Encoding

    from pertinent.lexicon.tagger import Tagger

TOKENIZER_FILE = "tokenizer.json"
TAGGER_FOLDER = "tagger"
CONTROL_TOKENS = ("[CLS]", "[SEP]", "[PAD]")


class PairConfig(Config):
    """How a pair is laid out. Lengths count tokens, special tokens included.

    ``positions: block`` numbers the query block from 0 and the item block from ``query_length``,
    so nothing on the item side depends on the query. ``running`` counts real tokens through, as
    an ordinary packed BERT input does; models exchanged with other toolkits need it.
    ``normalize: false`` leaves the text to the tokenizer alone, also for exchanged models.
    """

    query_length: int = Field(16, ge=3, le=512)
    item_length: int = Field(36, ge=2, le=512)
    positions: Literal["block", "running"] = "block"
    normalize: bool = True

    @property
    def length(self) -> int:
        """Tokens of the full layout, both blocks."""
        return self.query_length + self.item_length


class PairTokenizer:
    """A WordPiece tokenizer and a layout: texts in, token rows and batches out.

    Text is always text: ``[SEP]`` typed by a user becomes ordinary pieces, never a control token.
    With a ``tagger`` the rows carry the term class of each token. ``cache`` may be set to a `TokenCache`, for
    items whose texts come again and again.
    """

    def __init__(self, tokenizer: Tokenizer, config: PairConfig, tagger: Tagger | None = None) -> None:
        if tagger is not None and not config.normalize:
            raise ConfigError("pairs.normalize: false, but term classes are found in normalized text; set it to true")
        self.config = config
        self.tagger = tagger
        self.cache: TokenCache | None = None
        self.tokenizer = Tokenizer.from_str(tokenizer.to_str())  # our settings must not leak into the caller's
        self.tokenizer.no_padding()
        self.tokenizer.no_truncation()
        self.tokenizer.encode_special_tokens = True
        self.cls_id, self.sep_id, self.pad_id = (self._special(t) for t in CONTROL_TOKENS)
        # Some folders list them as ordinary added words, which typed text would match. Adding takes
        # as long as loading where there are thousands of added words, so only what is not there.
        added = self.tokenizer.get_added_tokens_decoder()
        ordinary = [token for token in CONTROL_TOKENS if not _is_special(added.get(self._special(token)))]
        if ordinary:
            self.tokenizer.add_special_tokens(ordinary)

    @classmethod
    def load(cls, folder: str | Path, config: PairConfig) -> Self:
        """The tokenizer in ``tokenizer.json`` of a folder. Raises ArtifactError if it is unreadable."""
        path = Path(folder) / TOKENIZER_FILE
        if not path.is_file():
            raise ArtifactError(f"{path}: missing; a model folder needs its tokenizer")
        tagger = _read_tagger(Path(folder) / TAGGER_FOLDER)
        try:
            return cls(Tokenizer.from_file(str(path)), config, tagger)
        except ArtifactError as error:
            raise ArtifactError(f"{path}: {error}") from None
        except Exception as error:  # the library raises plain Exception for any broken file
            raise ArtifactError(f"{path}: not a readable tokenizer ({error})") from None

    def save(self, folder: str | Path) -> None:
        """Write ``tokenizer.json``, which Hugging Face tokenizers read too, and the tagger's folder."""
        self.tokenizer.save(str(Path(folder) / TOKENIZER_FILE))
        if self.tagger is not None:
            self.tagger.save(Path(folder) / TAGGER_FOLDER)

    @property
    def vocabulary_size(self) -> int:
        """Number of token ids, added words included."""
        return int(self.tokenizer.get_vocab_size(with_added_tokens=True))

    def encode_queries(self, queries: Sequence[str]) -> TokenRows:
        """Token rows of queries, without special tokens, at most ``query_length - 2`` a row."""
        return self._encode(queries, self.config.query_length - 2)

    def encode_items(self, titles: Sequence[str]) -> TokenRows:
        """Token rows of item texts, without special tokens, at most ``item_length - 1`` a row."""
        if self.cache is not None:
            return self.cache.rows(titles, self._encode_items)
        return self._encode_items(titles)

    def assemble(
        self,
        queries: TokenRows,
        query_rows: NDArray[np.int64],
        items: TokenRows,
        item_rows: NDArray[np.int64],
        trim: bool = True,
    ) -> TokenBatch:
        """A batch whose pair i is query row ``query_rows[i]`` with item row ``item_rows[i]``.

        With ``trim`` each block is as wide as its longest row (dynamic-length representation,
        ei-SRC section 7); without, both have their full configured width. Scores are the same.
        """
        config, size = self.config, len(query_rows)
        q_tokens, i_tokens = queries.lengths[query_rows], items.lengths[item_rows]  # [batch]
        q_width = int(q_tokens.max(initial=0)) + 2 if trim else config.query_length
        i_width = int(i_tokens.max(initial=0)) + 1 if trim else config.item_length
        width = q_width + i_width
        ids = np.full((size, width), self.pad_id, dtype=np.int64)
        classes = np.zeros((size, width), dtype=np.int64)
        columns = np.arange(width)[None]  # [1, width]
        rows = np.arange(size)
        q_place = (columns >= 1) & (columns < 1 + q_tokens[:, None])  # [batch, width]
        i_place = (columns >= q_width) & (columns < q_width + i_tokens[:, None])
        # Boolean assignment fills row by row, left to right: the order in which rows are stored.
        for source, chosen, place in ((queries, query_rows, q_place), (items, item_rows, i_place)):
            taken = source.take(chosen)
            ids[place] = taken.ids
            if taken.term_classes is not None:
                classes[place] = taken.term_classes
        ids[:, 0] = self.cls_id
        ids[rows, 1 + q_tokens] = self.sep_id
        ids[rows, q_width + i_tokens] = self.sep_id
        mask = np.where(columns < q_width, columns < q_tokens[:, None] + 2, columns <= q_width + i_tokens[:, None])
        segments = np.broadcast_to((columns >= q_width).astype(np.int64), (size, width)).copy()
        if config.positions == "block":
            layout = np.where(columns < q_width, columns, columns - q_width + config.query_length)
            positions = np.broadcast_to(layout.astype(np.int64), (size, width)).copy()
        else:
            positions = np.where(mask, np.cumsum(mask, axis=1) - 1, 0).astype(np.int64)
        return TokenBatch(ids, mask, segments, positions, classes, q_width)

    def pair(self, queries: Sequence[str], titles: Sequence[str], trim: bool = True) -> TokenBatch:
        """A batch of pairs given as two lists of texts of the same length."""
        if len(queries) != len(titles):
            raise DataError(f"{len(queries)} queries but {len(titles)} titles; give one title for each query")
        rows = np.arange(len(queries))
        return self.assemble(self.encode_queries(queries), rows, self.encode_items(titles), rows, trim)

    def prepare(self, text: str) -> str:
        """What the tokenizer sees of a text: two texts that are prepared alike have the same tokens."""
        return normalize(text) if self.config.normalize else _clean(text)

    def describe(self) -> dict[str, Any]:
        """What decides how a text becomes ids: equal for two tokenizers that give equal rows."""
        tagger = {} if self.tagger is None else {"tagger": self.tagger.digest}
        return {"config": self.config.plain(), "tokenizer": self.tokenizer.to_str(), **tagger}

    def _encode_items(self, titles: Sequence[str]) -> TokenRows:
        return self._encode(titles, self.config.item_length - 1)

    def _encode(self, texts: Sequence[str], limit: int) -> TokenRows:
        prepared = [self.prepare(text) for text in texts]
        # The fast way does not tell where tokens stand in the text.
        encode = self.tokenizer.encode_batch_fast if self.tagger is None else self.tokenizer.encode_batch
        encodings = encode(prepared, add_special_tokens=False)
        rows = [encoding.ids for encoding in encodings]
        truncated = [len(row) > limit or len(t) > MAX_CHARACTERS for row, t in zip(rows, texts, strict=True)]
        rows = [row[:limit] for row in rows]
        offsets = np.cumsum([0, *(len(row) for row in rows)], dtype=np.int64)
        ids = np.fromiter((token for row in rows for token in row), dtype=np.int32, count=int(offsets[-1]))
        return TokenRows(ids, offsets, np.array(truncated, dtype=np.bool_), self._classes(prepared, encodings, limit))

    def _classes(self, texts: Sequence[str], encodings: Sequence[Encoding], limit: int) -> NDArray[np.int8] | None:
        if self.tagger is None:
            return None
        from pertinent.lexicon.tagger import token_classes

        found = zip(encodings, self.tagger.tag_normalized(texts), strict=True)
        rows = [token_classes(encoding.offsets[:limit], spans) for encoding, spans in found]
        return np.concatenate([np.zeros(0, dtype=np.int8), *rows])

    def _special(self, token: str) -> int:
        number = self.tokenizer.token_to_id(token)
        if number is None:
            raise ArtifactError(f"the tokenizer has no {token} token; pertinent reads BERT-style WordPiece tokenizers")
        return int(number)


def _is_special(token: AddedToken | None) -> bool:
    return token is not None and token.special


def _read_tagger(folder: Path) -> Tagger | None:
    if not folder.is_dir():
        return None
    from pertinent.lexicon.tagger import Tagger

    return Tagger.load(folder)


def item_text(item: Item, fields: Sequence[str] = ("title",)) -> str:
    """The text of an item that a model reads: the named fields in order, empty ones left out.

    >>> item_text(Item("1", "USB cable", brand="Acme"), ("title", "brand", "category"))
    'USB cable Acme'
    """
    values = (getattr(item, field) if field in _ITEM_FIELDS else item.attributes.get(field) for field in fields)
    return " ".join(value for value in values if value)


_ITEM_FIELDS = {"title", "description", "brand", "category"}


def _clean(text: str) -> str:
    # The Rust tokenizer takes UTF-8 only: a lone surrogate cannot be encoded.
    return text[:MAX_CHARACTERS].encode("utf-8", "replace").decode("utf-8")
