"""Tiny models that every test may use: real WordPiece, real networks, small enough for milliseconds."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from pertinent.artifact import Artifact, open_artifact, write_artifact
from pertinent.lexicon.pairs import PairConfig, PairTokenizer

_WORDS = """
    wireless earbuds bluetooth headphones noise cancelling case usb cable charger phone screen protector steel
    coffee mug tea pot green water bottle shoes men women black white red size pack of for with and the in to 2 3
"""
TINY_WORDS = _WORDS.split()
TINY_SIZES = {"hidden_size": 16, "layers": 2, "heads": 2, "feed_forward_size": 32, "max_positions": 64, "dropout": 0.1}


@pytest.fixture(scope="session")
def tiny_tokenizer() -> Tokenizer:
    """An uncased BERT-style WordPiece tokenizer: some words, and every letter and digit."""
    letters = "abcdefghijklmnopqrstuvwxyz0123456789éüñß日本語иям.,-!'&/"
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{c}" for c in letters), *TINY_WORDS]
    vocabulary = {token: number for number, token in enumerate(dict.fromkeys(tokens))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True, strip_accents=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
    return tokenizer


@pytest.fixture(scope="session")
def tiny_pairs(tiny_tokenizer: Tokenizer) -> PairTokenizer:
    """The default layout: 16 tokens of query, 36 of title, fixed block positions."""
    return PairTokenizer(tiny_tokenizer, PairConfig())


def make_network(name: str, vocabulary_size: int, seed: int = 0, **settings: Any) -> Any:
    """A tiny network of a kind in ``MODELS``, weights drawn wide enough that scores differ."""
    import torch

    from pertinent.models.store import build_network, model_config

    known = {key: value for key, value in TINY_SIZES.items() if key in model_config(name).model_fields}
    random = torch.random.get_rng_state()
    torch.manual_seed(seed)
    network = build_network({"type": name, "vocabulary_size": vocabulary_size, **known, **settings})
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    torch.random.set_rng_state(random)
    return network.eval()


def make_artifact(
    folder: Path, network: Any, pairs: PairTokenizer, dtype: Any = "float32", graph: bool = True
) -> Artifact:
    """A model folder, with its ONNX graph unless ``graph`` is False."""
    from pertinent.engine.export import write_graph
    from pertinent.models.store import save_network

    with write_artifact(folder, "model", {}) as aside:
        save_network(aside, network, pairs, dtype)
        if graph:
            write_graph(network, aside)
    return open_artifact(folder)


@pytest.fixture(scope="session")
def network_maker() -> Any:
    """``make_network``, for tests that need a network of another kind or seed."""
    return make_network


@pytest.fixture(scope="session")
def artifact_maker() -> Any:
    """``make_artifact``, for tests that need a model folder of their own."""
    return make_artifact


@pytest.fixture(scope="session")
def tiny_network(tiny_pairs: PairTokenizer) -> Any:
    """A two-layer ei-SRC network in evaluation mode. Shared: copy it before changing it."""
    return make_network("ei_src", tiny_pairs.vocabulary_size)


@pytest.fixture(scope="session")
def tiny_artifact(
    tmp_path_factory: pytest.TempPathFactory, tiny_pairs: PairTokenizer, request: pytest.FixtureRequest
) -> Artifact:
    """A model folder of the tiny network, float32, with ``graph.onnx``. Shared: never write into it.

    Whoever runs tests over and over may give a place for it, as making it takes longer than most tests.
    """
    given = os.environ.get("TINY_ARTIFACT")
    if given and Path(given).exists():
        return open_artifact(given)
    folder = Path(given) if given else tmp_path_factory.mktemp("tiny") / "model"
    return make_artifact(folder, request.getfixturevalue("tiny_network"), tiny_pairs)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


class RedisServer:
    """A Redis server of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        argv = ["redis-server", "--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
        self.process = subprocess.Popen([*argv, "--dir", str(self.folder)], stdout=subprocess.DEVNULL)
        self.wait()

    def wait(self) -> None:
        """Until it answers."""
        import redis

        end = time.monotonic() + 10
        while time.monotonic() < end:
            try:
                self.client().ping()
                return
            except redis.RedisError:
                time.sleep(0.01)
        raise AssertionError("redis-server does not answer")

    def client(self) -> Any:
        import redis

        return redis.Redis(port=self.port)

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


@pytest.fixture(scope="module")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A real Redis that the tests of a module share, may kill and start again."""
    pytest.importorskip("redis", reason="the redis client is not installed")
    if shutil.which("redis-server") is None:
        pytest.skip("redis-server is not installed: apt install redis-server")
    found = RedisServer(tmp_path_factory.mktemp("redis"))
    yield found
    found.kill()
