"""A tiny shop: a hundred words, queries that name two of them, titles that have them or not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers

from pertinent.lexicon.pairs import PairConfig, PairTokenizer
from pertinent.models.ei_src import EiSRC, EiSRCConfig
from pertinent.training.collate import TrainingSet

WORDS = [f"{a}{b}{c}" for a in "bdfgk" for b in "aeiou" for c in "lmnr"]
Rows = list[tuple[str, str, float]]


def shop(queries: int, titles: int, seed: int) -> Rows:
    """Query, title and grade: 1 where the title has all words of the query, 0.5 for one, 0 for none."""
    generator = np.random.default_rng(seed)
    rows = []
    for number in range(queries):
        query = generator.choice(WORDS, size=2, replace=False).tolist()
        for place in range(titles):
            others = generator.choice(WORDS, size=int(generator.integers(2, 6)), replace=False).tolist()
            kept = [query, query[:1], []][(place + number) % 3]
            title = [*kept, *(word for word in others if word not in query)]
            rows.append((" ".join(query), " ".join(generator.permutation(title).tolist()), len(kept) / 2))
    return rows


@pytest.fixture(scope="session")
def shop_rows() -> Callable[[int, int, int], Rows]:
    return shop


@pytest.fixture(scope="session")
def tiny_pairs() -> PairTokenizer:
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "café", *WORDS]
    tokenizer = Tokenizer(models.WordPiece({word: i for i, word in enumerate(vocabulary)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
    return PairTokenizer(tokenizer, PairConfig(query_length=6, item_length=12))


@pytest.fixture(scope="session")
def tiny_tokenizer(tiny_pairs: PairTokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    tiny_pairs.save(folder)
    return folder


@pytest.fixture
def tiny_network(tiny_pairs: PairTokenizer) -> EiSRC:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "layers": 2, "heads": 2, "feed_forward_size": 64, "max_positions": 18}
    return EiSRC(EiSRCConfig(vocabulary_size=tiny_pairs.vocabulary_size, **sizes))


@pytest.fixture(scope="session")
def shop_set(tiny_pairs: PairTokenizer) -> Callable[[int, int, int], TrainingSet]:
    """Builds a training set with all three kinds of targets."""

    def build(queries: int, titles: int, seed: int) -> TrainingSet:
        rows = shop(queries, titles, seed)
        grades = np.array([grade for _, _, grade in rows])
        return TrainingSet.build(
            tiny_pairs,
            [query for query, _, _ in rows],
            [title for _, title, _ in rows],
            relevant=grades == 1,
            grade=grades,
            teacher=6 * grades - 3,
        )

    return build
