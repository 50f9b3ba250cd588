"""Negatives for clicked pairs: other items of the same batch, never one that was clicked for the query.

ei-SRC, section 3.3. Which items are drawn depends on the seed and the pairs of the batch alone, so
a resumed run draws what the killed one would have drawn.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.int64]


class BatchNegatives:
    """Draws items for the clicked pairs of a batch.

    Rows of queries are those of normalized queries and rows of items those of normalized titles, so a
    title that another item shares with a clicked one counts as clicked too.

    Args:
        query_rows: Query rows of all clicked pairs, also of those not trained on, ``[clicks]``.
        item_rows: Their item rows, ``[clicks]``.
        clicked_pairs: How many of the first training pairs are clicked ones; others get no negatives.
        each: Negatives for each clicked pair; fewer where the batch has fewer to offer.
        seed: Of the draws.
    """

    def __init__(self, query_rows: Rows, item_rows: Rows, clicked_pairs: int, each: int, seed: int) -> None:
        self.items = int(item_rows.max(initial=0)) + 1
        self.codes = np.unique(query_rows * self.items + item_rows)  # sorted
        self.clicked_pairs, self.each, self.seed = clicked_pairs, each, seed

    def draw(self, rows: Rows, query_rows: Rows, item_rows: Rows) -> tuple[Rows, Rows]:
        """Query rows and item rows of the negatives of a batch, both ``[negatives]``.

        ``rows`` are the numbers of the batch's pairs, with their ``query_rows`` and ``item_rows``.
        """
        clicked = rows < self.clicked_pairs
        queries, offered = query_rows[clicked], np.unique(item_rows[clicked])
        allowed = ~self.is_clicked(queries[:, None], offered[None])  # [pairs, items]
        chance = np.random.default_rng([self.seed, *rows.tolist()]).random(allowed.shape)
        order = np.argsort(np.where(allowed, chance, 2.0), axis=1)[:, : self.each]  # what is not allowed comes last
        drawn = np.take_along_axis(allowed, order, axis=1)
        return np.repeat(queries, drawn.sum(1)), offered[order[drawn]]

    def is_clicked(self, query_rows: Rows, item_rows: Rows) -> NDArray[np.bool_]:
        """Whether an item was clicked for a query anywhere in the log, for arrays of rows that broadcast."""
        codes = query_rows * self.items + item_rows
        places = np.searchsorted(self.codes, codes).clip(max=len(self.codes) - 1)
        found: NDArray[np.bool_] = (self.codes[places] == codes) & (item_rows < self.items)
        return found
