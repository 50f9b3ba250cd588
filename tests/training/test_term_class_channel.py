"""Term classes from text to score: trained, saved, loaded, exported and indexed, all with the same scores."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from pertinent.artifact import Artifact
from pertinent.engine.index import ItemIndex
from pertinent.engine.scorer import Scorer
from pertinent.errors import ArtifactError, ConfigError
from pertinent.lexicon.classes import CLASS_IDS
from pertinent.lexicon.gazetteer import Gazetteer, GazetteerConfig
from pertinent.lexicon.pairs import PairConfig, PairTokenizer
from pertinent.lexicon.tagger import Tagger, TaggerConfig
from pertinent.models import MODELS
from pertinent.models.store import load_network, with_term_classes
from pertinent.records import Item
from pertinent.training.run import TrainConfig, starting_network, train

QUERY = "bal dam 12v"
TITLES = ["bal kur dam", "dam", "café 12v", "", "日本 kur", "bal " * 40]
TERMS = {"bal": "core", "dam": "style", "kur dam": "material"}
SIZES = {"hidden_size": 32, "layers": 2, "heads": 2, "feed_forward_size": 64, "term_classes": True}


@pytest.fixture(scope="module")
def tagger() -> Tagger:
    entries = {phrase: (CLASS_IDS[name], 1) for phrase, name in TERMS.items()}
    return Tagger(Gazetteer(entries, GazetteerConfig()), None, TaggerConfig(mode="gazetteer"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("term_classes")


@pytest.fixture(autouse=True, scope="module")
def small_tagger(tagger: Tagger) -> Iterator[None]:
    """The tiny tagger stands in for the shipped one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Tagger, "shipped", lambda: tagger)
        yield


@pytest.fixture(scope="module")
def config(folder: Path, tiny_tokenizer: Path, shop_rows: Any) -> Callable[..., TrainConfig]:
    path = folder / "judgments.csv"
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerows([["query", "title", "grade"], *shop_rows(40, 4, 0)])

    def build(**changes: Any) -> TrainConfig:
        settings = {
            "judgments": str(path),
            "start": None,
            "tokenizer": str(tiny_tokenizer),
            "model": SIZES,
            "pairs": {"query_length": 6, "item_length": 12},
            "split_fractions": [0.6, 0.2, 0.2],
            "max_steps": 4,
            "learning_rate": 5e-2,
            "bootstrap": 0,
            "device": "cpu",
            "out": str(folder / "model"),
        }
        return TrainConfig.build({**settings, **changes})

    return build


@pytest.fixture(scope="module")
def artifact(config: Callable[..., TrainConfig]) -> Artifact:
    return train(config())


def test_a_model_with_term_classes_keeps_its_tagger_and_every_backend_scores_alike(
    artifact: Artifact, tagger: Tagger, tmp_path: Path
) -> None:
    assert {"tagger/tagger.json", "tagger/gazetteer.json"} <= set(artifact.manifest["files"])
    onnx, torch = (Scorer.load(artifact.path, backend=name) for name in ("onnx", "torch"))
    assert onnx.pairs.tagger is not None
    assert onnx.pairs.tagger.digest == tagger.digest
    expected = torch.score(QUERY, TITLES)
    np.testing.assert_allclose(onnx.score(QUERY, TITLES), expected, atol=1e-4)
    items = [Item(str(number), title) for number, title in enumerate(TITLES)]
    ItemIndex.build(items, onnx.pairs, tmp_path / "index", onnx.version)
    index = ItemIndex.open(tmp_path / "index", onnx.pairs)
    np.testing.assert_allclose(onnx.score_index(QUERY, index), expected, atol=1e-4)
    with pytest.raises(ArtifactError):
        ItemIndex.open(tmp_path / "index", PairTokenizer(onnx.pairs.tokenizer, onnx.pairs.config))


def test_the_classes_reach_the_network_and_are_those_of_the_tagger(artifact: Artifact, tagger: Tagger) -> None:
    network, pairs = load_network(artifact)
    batch = pairs.pair([QUERY], ["bal kur dam"])
    classes = dict(
        zip(pairs.tokenizer.encode("bal dam").tokens, batch.term_class_ids[0, 1:3].tolist(), strict=True),
    )
    assert classes == {"bal": CLASS_IDS["core"], "dam": CLASS_IDS["style"]}
    title = batch.term_class_ids[0, batch.query_length :]
    assert title.tolist() == [6, 1, 1, 0]
    assert batch.term_class_ids[0, 0] == 0
    without = PairTokenizer(pairs.tokenizer, pairs.config)
    plain = without.pair([QUERY], ["bal kur dam"])
    assert not plain.term_class_ids.any()
    np.testing.assert_array_equal(plain.token_ids, batch.token_ids)
    scores = [_logits(network, b) for b in (batch, plain)]
    assert np.abs(scores[0] - scores[1]).max() > 1e-6


def test_a_score_does_not_depend_on_batch_mates(artifact: Artifact) -> None:
    network, pairs = load_network(artifact)
    together = _logits(network, pairs.pair([QUERY] * len(TITLES), TITLES))
    for number, title in enumerate(TITLES):
        np.testing.assert_allclose(_logits(network, pairs.pair([QUERY], [title]))[0], together[number], atol=1e-5)


def test_with_the_channel_off_nothing_changes(config: Callable[..., TrainConfig], artifact: Artifact) -> None:
    off = config(model={**SIZES, "term_classes": False}, out=f"{artifact.path}-off")
    _, pairs = starting_network(off)
    assert pairs.tagger is None
    assert "tagger" not in pairs.describe()
    assert pairs.encode_queries([QUERY]).term_classes is None
    # Not even where the tokenizer lies beside a tagger.
    beside = off.model_copy(update={"tokenizer": str(artifact.path)})
    assert starting_network(beside)[1].tagger is None
    assert not any(name.startswith("tagger/") for name in train(off).manifest["files"])


def test_training_goes_on_with_the_tagger_of_the_start(config: Callable[..., TrainConfig], artifact: Artifact) -> None:
    bare = {"tokenizer": None, "model": None, "pairs": None, "max_steps": 1}
    again = train(config(start=str(artifact.path), out=f"{artifact.path}-2", **bare))
    for name in ("tagger/tagger.json", "tagger/gazetteer.json", "tokenizer.json"):
        assert again.manifest["files"][name] == artifact.manifest["files"][name]


def test_a_model_without_its_tagger_is_refused(artifact: Artifact, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(artifact.path, tmp_path / "copy"))
    (copy / "tagger" / "gazetteer.json").unlink()
    with pytest.raises(ArtifactError):
        Scorer.load(copy)


def test_texts_that_are_not_normalized_have_no_term_classes(tiny_tokenizer: Path, tagger: Tagger) -> None:
    tokenizer = Tokenizer.from_file(str(tiny_tokenizer / "tokenizer.json"))
    with pytest.raises(ConfigError, match="normalize: false"):
        PairTokenizer(tokenizer, PairConfig(normalize=False), tagger)


def test_rows_of_any_text_have_a_class_for_each_token(tiny_tokenizer: Path, tagger: Tagger) -> None:
    pairs = PairTokenizer(Tokenizer.from_file(str(tiny_tokenizer / "tokenizer.json")), PairConfig(), tagger)
    texts = ["", "\x00", "bal" * 5000, "İẞﬁ bal", "🧦 dam", "\ud800", "a\u0301 " * 30, "kur dam " * 30]
    for rows in (pairs.encode_queries(texts), pairs.encode_items(texts), pairs.encode_items([])):
        assert rows.term_classes is not None
        assert len(rows.term_classes) == len(rows.ids) == rows.offsets[-1]
        assert rows.term_classes.dtype == np.int8


def _logits(network: Any, batch: Any) -> np.ndarray:
    import torch

    with torch.no_grad():
        return network(**{name: torch.from_numpy(array) for name, array in batch.inputs().items()}).numpy()


@pytest.mark.parametrize("name", sorted(MODELS))
def test_a_channel_given_to_a_network_changes_no_score_before_it_has_learned(
    network_maker: Any, tiny_pairs: PairTokenizer, name: str
) -> None:
    settings = {"target_encoder": "transformer"} if name == "barl_ase" else {}
    network = network_maker(name, tiny_pairs.vocabulary_size, **settings)
    if name in ("dssm", "bert2dnn"):
        with pytest.raises(ConfigError, match="term_classes"):
            with_term_classes(network)
        return
    grown = with_term_classes(network)
    assert grown.config.term_classes and not network.config.term_classes
    assert with_term_classes(grown) is grown
    inputs = tiny_pairs.pair([QUERY, ""], ["usb cable", "größe 3"]).inputs()
    plain = {key: torch.from_numpy(value) for key, value in inputs.items()}
    tagged = {**plain, "term_class_ids": torch.full_like(plain["term_class_ids"], 2)}
    with torch.inference_mode():
        assert torch.equal(grown(**tagged), network(**plain))
