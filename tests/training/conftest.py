"""A tiny shop: a hundred words, queries that name one or two of them, titles that have them or not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

WORDS = [f"{a}{b}{c}" for a in "bdfgk" for b in "aeiou" for c in "lmnr"]


@pytest.fixture(scope="session")
def tiny_tokenizer() -> Tokenizer:
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "café", *WORDS]
    tokenizer = Tokenizer(models.WordPiece({word: i for i, word in enumerate(vocabulary)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True, strip_accents=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
    return tokenizer


@pytest.fixture(scope="session")
def tiny_tokenizer_folder(tiny_tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    tiny_tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def shop(queries: int, titles_per_query: int, seed: int = 0) -> list[tuple[str, str, float]]:
    """Query, title and grade: 1 where the title has all words of the query, 0.5 for some, 0 for none."""
    generator = np.random.default_rng(seed)
    rows = []
    for number in range(queries):
        query = generator.choice(WORDS, size=2, replace=False).tolist()
        for place in range(titles_per_query):
            others = generator.choice(WORDS, size=int(generator.integers(2, 6)), replace=False).tolist()
            others = [word for word in others if word not in query]
            kept = [query, query[:1], []][(place + number) % 3]
            title = generator.permutation([*kept, *others]).tolist()
            rows.append((" ".join(query), " ".join(title), len(kept) / 2))
    return rows


@pytest.fixture(scope="session")
def shop_rows() -> list[tuple[str, str, float]]:
    return shop(30, 6)
