"""The texts of pre-training as tokens, and batches of them with parts hidden, shuffled or swapped."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from pertinent.config import Config
from pertinent.errors import ArtifactError
from pertinent.lexicon.pairs import PairTokenizer
from pertinent.records import TokenRows
from pertinent.training.collate import Rows
from pertinent.training.masking import NO_LABEL, hide_words, shuffle_spans, word_numbers

if TYPE_CHECKING:
    from torch import Tensor

Sentence = Literal["none", "match", "order"]
SENTENCE_LABELS: dict[Sentence, int] = {"none": 0, "match": 2, "order": 3}
# What a row's two texts can be: as they belong, the item that another row has, the item first.
BELONG, OTHER, SWAPPED = 0, 1, 2


class Recipe(Config):
    """What pre-training asks: hidden words, and if wanted the order of tokens and how two texts belong together.

    ``masked`` is the share of hidden words, ``whole_words`` hides all pieces of a word together. With
    ``dynamic`` a row is hidden anew every time, else always the same way. ``word_order`` is the share of
    places at which three tokens are shuffled. ``sentence``: ``match`` asks whether the item is the row's own,
    ``order`` also whether the item comes first.
    """

    masked: float = Field(0.15, gt=0.0, lt=1.0)
    whole_words: bool = True
    dynamic: bool = True
    word_order: float = Field(0.0, ge=0.0, le=1.0)
    sentence: Sentence = "none"


class MLM(Recipe):
    """Hidden whole words only (ei-SRC, section 9)."""

    type: Literal["mlm"] = "mlm"


class BERT(Recipe):
    """Hidden whole words, the same in every epoch, and whether the item is the query's own."""

    type: Literal["bert"] = "bert"
    dynamic: bool = False
    sentence: Sentence = "match"


class RoBERTa(Recipe):
    """Hidden tokens, anew every time, and no question about two texts."""

    type: Literal["roberta"] = "roberta"
    whole_words: bool = False


class StructBERT(Recipe):
    """Hidden words, shuffled trigrams, and three ways in which two texts can stand together."""

    type: Literal["structbert"] = "structbert"
    word_order: float = Field(0.05, ge=0.0, le=1.0)
    sentence: Sentence = "order"


class Corpus:
    """Rows of a query and a title, either of which may be empty, as tokens.

    What is hidden in a batch depends on the seed, the rows and their order alone, so a resumed run
    sees what the killed one would have seen.
    """

    def __init__(self, pairs: PairTokenizer, texts: Sequence[tuple[str, str]], recipe: Recipe, seed: int) -> None:
        self.pairs, self.texts, self.recipe, self.seed = pairs, texts, recipe, seed
        queries, titles = [query for query, _ in texts], [title for _, title in texts]
        self.queries, self.items = pairs.encode_queries(queries), pairs.encode_items(titles)
        if recipe.sentence == "order":  # row n + i has the texts of row i in the other block
            self.queries = TokenRows.joined([self.queries, pairs.encode_queries(titles)])
            self.items = TokenRows.joined([self.items, pairs.encode_items(queries)])
        self.both = np.array([bool(query and title) for query, title in texts], dtype=bool)
        mask_id = pairs.tokenizer.token_to_id("[MASK]")
        if mask_id is None:
            raise ArtifactError("the tokenizer has no [MASK] token; pre-training hides words behind it")
        self.mask_id = int(mask_id)
        pieces = sorted(pairs.tokenizer.get_vocab().items(), key=lambda item: item[1])
        self.continues = np.zeros(pairs.vocabulary_size, dtype=bool)
        self.continues[[number for piece, number in pieces if piece.startswith("##")]] = True
        self.others = np.unique(np.concatenate([self.queries.ids, self.items.ids])).astype(np.int64)
        self._query_numbers, self._title_numbers = _numbers(queries), _numbers(titles)
        self._together = np.unique(self._codes(self._query_numbers, self._title_numbers))

    def __len__(self) -> int:
        return len(self.texts)

    def __getitems__(self, rows: Rows) -> dict[str, Tensor]:
        return self.batch(np.asarray(rows))  # what a DataLoader asks for

    @property
    def size_keys(self) -> Rows:
        """Numbers by which to sort rows, so that neighbors are about equally long in both blocks."""
        size = len(self)
        return self.items.lengths[:size] // 4 * 1024 + self.queries.lengths[:size]

    def take(self, rows: Rows) -> Self:
        """A corpus of the given rows."""
        return type(self)(self.pairs, [self.texts[row] for row in rows], self.recipe, self.seed)

    def fingerprint(self) -> str:
        """A digest of all texts as tokens, to tell whether a resumed run has the same."""
        import hashlib

        digest = hashlib.blake2b(digest_size=16)
        for part in (self.queries, self.items):
            for array in (part.ids, part.offsets):
                digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()

    def batch(self, rows: Rows, fixed: bool = False) -> dict[str, Tensor]:
        """The tensors of some rows: a network's inputs with parts hidden, and labels, negative where there is none.

        With ``fixed`` each row is treated in its own way, whatever the batch.
        """
        import torch

        recipe = self.recipe
        draw = _Draws(self.seed, rows, fixed or not recipe.dynamic, self.pairs.config.length)
        query_rows, item_rows, sentence = self._belonging(rows, draw)
        batch = self.pairs.assemble(self.queries, query_rows, self.items, item_rows, trim=True)
        # Where a column stands in the full layout: what a row is given does not depend on its batch mates' lengths.
        columns = np.arange(batch.token_ids.shape[1])
        columns = np.where(
            columns < batch.query_length, columns, columns - batch.query_length + self.pairs.config.query_length
        )
        draw.columns = columns
        ids = batch.token_ids
        content = batch.mask & ~np.isin(ids, (self.pairs.cls_id, self.pairs.sep_id))
        continues = self.continues[ids] & recipe.whole_words
        words = word_numbers(continues, content)
        ids, labels = hide_words(ids, content, words, recipe.masked, self.mask_id, self.others, draw)
        if recipe.word_order:
            free = content & (labels == NO_LABEL)
            ids, order = shuffle_spans(ids, free, batch.segment_ids, recipe.word_order, draw)
        else:
            order = np.full_like(ids, NO_LABEL)
        arrays: dict[str, NDArray[Any]] = {
            **batch.inputs(),
            "token_ids": ids,
            "token_labels": np.where(order == NO_LABEL, labels, order),
            "shuffled": order != NO_LABEL,
            "sentence_labels": sentence,
        }
        return {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}

    def _codes(self, query_numbers: Rows, title_numbers: Rows) -> Rows:
        return query_numbers * len(self) + title_numbers

    def _belonging(self, rows: Rows, draw: _Draws) -> tuple[Rows, Rows, Rows]:
        """Query rows and item rows with some items swapped or of other rows, and which is which (-1: no question)."""
        if self.recipe.sentence == "none":
            return rows, rows, np.full(len(rows), NO_LABEL, dtype=np.int64)
        number = SENTENCE_LABELS[self.recipe.sentence]
        first = draw()
        kind = (first[:, 0] * number).astype(np.int64)  # in two classes: as they belong, or another's
        pool = np.flatnonzero(self.both)
        others = pool[(first[:, 1] * len(pool)).astype(np.int64)] if len(pool) else rows
        # An item that stands with this query in another row belongs to it too.
        drawn = self._codes(self._query_numbers[rows], self._title_numbers[others])
        apart = ~np.isin(drawn, self._together)
        kind = np.where((kind == OTHER) & ~apart, BELONG, kind)
        kind = np.where(self.both[rows], kind, NO_LABEL)
        items = np.where(kind == OTHER, others, rows)
        query_rows = np.where(kind == SWAPPED, rows + len(self), rows)
        return query_rows, np.where(kind == SWAPPED, rows + len(self), items), kind


def _numbers(texts: Sequence[str]) -> Rows:
    numbers: dict[str, int] = {}
    return np.array([numbers.setdefault(text, len(numbers)) for text in texts], dtype=np.int64)


class _Draws:
    """Numbers from 0 up to 1 for each row and column; of each row alone, or of the batch."""

    def __init__(self, seed: int, rows: Rows, each: bool, length: int) -> None:
        self.shape, self.columns = (len(rows), length), np.arange(length)
        own = [[seed, row] for row in rows.tolist()] if each else [[seed, *rows.tolist()]]
        self.generators = [np.random.default_rng(numbers) for numbers in own]
        self.each = each

    def __call__(self) -> NDArray[np.float64]:
        if not self.each:
            found = self.generators[0].random(self.shape)
        else:
            found = (
                np.stack([one.random(self.shape[1]) for one in self.generators])
                if self.shape[0]
                else np.zeros(self.shape)
            )
        return found[:, self.columns]
