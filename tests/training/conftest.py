"""A tiny shop: a hundred words, queries that name two of them, titles that have them or not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers

from pertinent.lexicon.pairs import PairConfig, PairTokenizer
from pertinent.models.ei_src import EiSRC, EiSRCConfig
from pertinent.objectives.spec import MarginMSE, Softmax
from pertinent.training.collate import TrainingSet
from pertinent.training.fit import FitConfig

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


def make_pairs() -> PairTokenizer:
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "café", *WORDS]
    tokenizer = Tokenizer(models.WordPiece({word: i for i, word in enumerate(vocabulary)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
    return PairTokenizer(tokenizer, PairConfig(query_length=6, item_length=12))


def make_network(pairs: PairTokenizer) -> EiSRC:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "layers": 2, "heads": 2, "feed_forward_size": 64, "max_positions": 18}
    return EiSRC(EiSRCConfig(vocabulary_size=pairs.vocabulary_size, **sizes))


def make_set(pairs: PairTokenizer, queries: int, titles: int, seed: int) -> TrainingSet:
    """A training set with all three kinds of targets."""
    rows = shop(queries, titles, seed)
    grades = np.array([grade for _, _, grade in rows])
    texts = [query for query, _, _ in rows], [title for _, title, _ in rows]
    return TrainingSet.build(pairs, *texts, relevant=grades == 1, grade=grades, teacher=6 * grades - 3)


def resumable_config() -> FitConfig:
    return FitConfig(
        objective=[Softmax(inverse_temperature=2.0, final_inverse_temperature=0.5), MarginMSE(weight=0.1)],
        epochs=3,
        batch_size=32,
        learning_rate=1e-3,
        device="cpu",
        eval_every=4,
        log_every=3,
        early_stopping=0,
    )


@pytest.fixture(scope="session")
def shop_rows() -> Callable[[int, int, int], Rows]:
    return shop


@pytest.fixture(scope="session")
def tiny_pairs() -> PairTokenizer:
    return make_pairs()


@pytest.fixture(scope="session")
def tiny_tokenizer(tiny_pairs: PairTokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    tiny_pairs.save(folder)
    return folder


@pytest.fixture
def tiny_network(tiny_pairs: PairTokenizer) -> EiSRC:
    return make_network(tiny_pairs)


@pytest.fixture(scope="session")
def shop_set(tiny_pairs: PairTokenizer) -> Callable[[int, int, int], TrainingSet]:
    return lambda queries, titles, seed: make_set(tiny_pairs, queries, titles, seed)


@pytest.fixture
def resumable() -> FitConfig:
    return resumable_config()


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Sums come out the same to the last bit only with the same number of threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
