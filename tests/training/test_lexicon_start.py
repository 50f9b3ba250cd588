"""Laws of training with a lexicon: a start gets the words, keeps all else, and the model keeps both."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from pertinent.artifact import open_artifact, write_artifact
from pertinent.engine.scorer import Scorer
from pertinent.errors import ArtifactError
from pertinent.lexicon.pairs import PairConfig, PairTokenizer
from pertinent.lexicon.store import Lexicon
from pertinent.lexicon.vocabulary import added_words, extend_tokenizer
from pertinent.models.ei_src import EiSRC, EiSRCConfig
from pertinent.models.interchange import export_hugging_face, import_hugging_face
from pertinent.models.store import extend_vocabulary, load_network, save_network
from pertinent.training.run import TrainConfig, starting_network, train

# Words of the tiny shop that a letter-by-letter tokenizer splits.
ADDED = ["bal", "dam", "kur", "100%"]
SIZES = {"hidden_size": 32, "layers": 2, "heads": 2, "feed_forward_size": 64, "max_positions": 64}
TEXTS = ["bal dam", "dam 100%", "kur", "fen gol", "", "balx 1100%"]


@pytest.fixture(scope="module")
def letters() -> PairTokenizer:
    """A tokenizer that knows single letters only, so that every word splits."""
    signs = "abcdefghijklmnopqrstuvwxyz0123456789%"
    known = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *signs, *(f"##{sign}" for sign in signs)]
    tokenizer = Tokenizer(models.WordPiece({token: n for n, token in enumerate(known)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.add_special_tokens(known[:5])
    return PairTokenizer(tokenizer, PairConfig(query_length=16, item_length=32, positions="running"))


@pytest.fixture(scope="module")
def network(letters: PairTokenizer) -> EiSRC:
    torch.manual_seed(0)
    # Three rows more than tokens, as folders have that round the number up.
    network = EiSRC(EiSRCConfig(vocabulary_size=letters.vocabulary_size + 3, **SIZES)).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return network


@pytest.fixture
def lexicon(tmp_path: Path, letters: PairTokenizer) -> Path:
    from pertinent.lexicon.gazetteer import Gazetteer, GazetteerConfig
    from pertinent.lexicon.tagger import Tagger, TaggerConfig

    with write_artifact(tmp_path / "lexicon", "lexicon", {}) as folder:
        extend_tokenizer(letters.tokenizer, ADDED).save(str(folder / "tokenizer.json"))
        Tagger(Gazetteer({}, GazetteerConfig()), None, TaggerConfig(mode="gazetteer")).save(folder)
    return tmp_path / "lexicon"


@pytest.fixture
def artifact(tmp_path: Path, network: EiSRC, letters: PairTokenizer) -> Path:
    with write_artifact(tmp_path / "start", "model", {}) as folder:
        save_network(folder, network, letters)
    return tmp_path / "start"


@pytest.fixture
def bert(tmp_path: Path, network: EiSRC, letters: PairTokenizer) -> Path:
    export_hugging_face(network, letters, tmp_path / "bert")
    return tmp_path / "bert"


@pytest.fixture
def config(tmp_path: Path, lexicon: Path, shop_rows: Any) -> Callable[..., TrainConfig]:
    path = tmp_path / "judgments.csv"
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerows([["query", "title", "grade"], *shop_rows(40, 4, 0)])

    def build(**changes: Any) -> TrainConfig:
        settings = {
            "judgments": str(path),
            "lexicon": str(lexicon),
            "split_fractions": [0.6, 0.2, 0.2],
            "max_steps": 3,
            "bootstrap": 0,
            "device": "cpu",
            "out": str(tmp_path / "model"),
        }
        return TrainConfig.build({**settings, **changes})

    return build


def logits(network: Any, pairs: PairTokenizer, texts: list[str]) -> np.ndarray:
    batch = pairs.pair(["x"] * len(texts), texts)
    with torch.no_grad():
        return network(**{name: torch.from_numpy(array) for name, array in batch.inputs().items()}).numpy()


def test_scores_of_texts_without_an_added_word_stay_as_they_were(network: EiSRC, letters: PairTokenizer) -> None:
    more, pairs = extend_vocabulary(network, letters, ADDED)
    before, after = logits(network, letters, TEXTS), logits(more, pairs, TEXTS)
    np.testing.assert_array_equal(before[3:], after[3:])
    assert (np.abs(before[:3] - after[:3]).max(axis=1) > 1e-6).all()
    assert not more.training and more.config.vocabulary_size == pairs.vocabulary_size == letters.vocabulary_size + 4
    assert network.config.vocabulary_size == letters.vocabulary_size + 3
    for name, value in network.state_dict().items():
        if name != "embeddings.token.weight":
            assert torch.equal(more.state_dict()[name], value), name
    rows, old = more.state_dict()["embeddings.token.weight"], network.state_dict()["embeddings.token.weight"]
    number = pairs.tokenizer.token_to_id("bal")
    pieces = [letters.tokenizer.token_to_id(piece) for piece in ("b", "##a", "##l")]
    torch.testing.assert_close(rows[number], old[pieces].mean(dim=0))
    same, unchanged = extend_vocabulary(more, pairs, ADDED)
    assert unchanged.vocabulary_size == pairs.vocabulary_size
    np.testing.assert_array_equal(logits(same, unchanged, TEXTS), after)


def test_every_kind_of_start_gets_the_words(
    config: Callable[..., TrainConfig], artifact: Path, bert: Path, tmp_path: Path, network: EiSRC
) -> None:
    letters_only = {"start": None, "tokenizer": str(artifact), "model": SIZES}
    running = {"pairs": {"query_length": 16, "item_length": 32, "positions": "running"}}
    starts = [{"start": str(artifact)}, {"start": str(bert), **running}, {**letters_only, **running}]
    for start in starts:
        started, pairs = starting_network(config(**start))
        assert added_words(pairs.tokenizer) == tuple(ADDED)
        assert started.config.vocabulary_size == pairs.vocabulary_size
        assert pairs.encode_items(["bal 100%"]).lengths.tolist() == [2]
        bare, _ = starting_network(config(**start, lexicon=None))
        for name, value in bare.state_dict().items():
            if "token" not in name and "classifier" not in name:
                assert torch.equal(started.state_dict()[name], value), name


def test_a_trained_model_keeps_its_words_through_graph_exchange_and_return(
    config: Callable[..., TrainConfig], artifact: Path, tmp_path: Path
) -> None:
    from sentence_transformers import CrossEncoder

    made = train(config(start=str(artifact), graph=True, calibration="none"))
    assert TrainConfig.build(made.config).lexicon == str(tmp_path / "lexicon")
    assert made.manifest["inputs"]["lexicon"] == Lexicon.load(tmp_path / "lexicon").version
    assert "| lexicon |" in made.file("README.md").read_text()
    network, pairs = load_network(made)
    assert added_words(pairs.tokenizer) == tuple(ADDED)
    assert pairs.encode_items(["bal 100% balx"]).lengths.tolist() == [2 + 4]
    expected = Scorer.load(made.path, backend="torch").score("dam bal", TEXTS)
    onnx = Scorer.load(made.path, backend="onnx").score("dam bal", TEXTS)
    np.testing.assert_allclose(onnx, expected, atol=1e-4)
    export_hugging_face(network, pairs, tmp_path / "plain")
    theirs = CrossEncoder(str(tmp_path / "plain"), device="cpu").predict([("dam bal", text) for text in TEXTS])
    np.testing.assert_allclose(theirs, expected, atol=1e-4)
    back, again = import_hugging_face(tmp_path / "plain", 16, 32)
    assert added_words(again.tokenizer) == tuple(ADDED)
    np.testing.assert_array_equal(again.encode_items(TEXTS).ids, pairs.encode_items(TEXTS).ids)
    with write_artifact(tmp_path / "back", "model", {}) as folder:
        save_network(folder, back, again)
    np.testing.assert_allclose(Scorer.load(tmp_path / "back").score("dam bal", TEXTS), expected, atol=1e-4)


def test_training_moves_the_new_rows(config: Callable[..., TrainConfig], artifact: Path) -> None:
    before, pairs = starting_network(config(start=str(artifact)))
    after, _ = load_network(train(config(start=str(artifact), learning_rate=1e-2, graph=False, keep="last")))
    number = pairs.tokenizer.token_to_id("bal")
    rows = [network.state_dict()["embeddings.token.weight"][number] for network in (before, after)]
    assert (rows[0] - rows[1]).abs().max() > 1e-4


def test_a_network_with_term_classes_takes_the_tagger_of_the_lexicon(
    config: Callable[..., TrainConfig], artifact: Path, lexicon: Path
) -> None:
    model = {**SIZES, "term_classes": True}
    _, pairs = starting_network(config(start=None, tokenizer=str(artifact), model=model))
    assert pairs.tagger is not None
    assert pairs.tagger.digest == Lexicon.load(lexicon).tagger.digest
    assert pairs.encode_items(["bal 100%"]).term_classes is not None
    _, plain = starting_network(config(start=None, tokenizer=str(artifact), model=SIZES))
    assert plain.tagger is None


def test_a_lexicon_that_is_none_is_refused(config: Callable[..., TrainConfig], artifact: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="is of kind 'model', but 'lexicon' is needed here"):
        starting_network(config(start=str(artifact), lexicon=str(artifact)))
    with pytest.raises(ArtifactError, match=r"no such folder; did you mean .*lexicon"):
        starting_network(config(start=str(artifact), lexicon=str(tmp_path / "lexico")))


def test_an_opened_lexicon_has_its_words_version_and_tagger(lexicon: Path) -> None:
    opened = Lexicon.load(lexicon)
    assert opened.words == tuple(ADDED)
    assert opened.version == open_artifact(lexicon).version
    assert opened.tokenizer.encode("bal 100%", add_special_tokens=False).tokens == ["bal", "100%"]
    assert opened.tagger.tag("") == []
