"""Models in and out: Hugging Face BERT folders, and cross-encoders as sentence-transformers saves them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor, nn

from pertinent.artifact import read_json, write_json
from pertinent.errors import ArtifactError, ConfigError
from pertinent.folders import locate
from pertinent.lexicon.pairs import PairConfig, PairTokenizer
from pertinent.models.ei_src import EiSRC, EiSRCConfig
from pertinent.models.store import build_network, model_class
from pertinent.probability import Platt

_log = logging.getLogger(__name__)


def start_from(
    start: str | Path,
    layers: Sequence[int] | None,
    model: dict[str, Any] | None,
    pairs: PairConfig,
) -> tuple[nn.Module, PairTokenizer]:
    """A network that starts from a pretrained BERT, keeping the layers given (all if None).

    Args:
        start: A Hugging Face folder, a hub name, or ``package:name/folder`` for weights that an
            installed Python package carries.
        layers: Which of its layers become ours, in order, such as ``[0, 2, 4]``.
        model: Settings of our network; sizes that the pretrained weights decide are filled in.
        pairs: The layout of pairs.

    Raises:
        ConfigError: A layer that the start does not have, or a size that contradicts it.
        ArtifactError: The folder is missing or holds no BERT.
    """
    folder = locate(start)
    theirs = _bert_config(folder)
    chosen = list(range(theirs["num_hidden_layers"])) if layers is None else list(layers)
    beyond = [number for number in chosen if number >= theirs["num_hidden_layers"] or number < 0]
    if beyond:
        raise ConfigError(
            f"layers: {beyond} not in {folder.name}, which has layers 0 to {theirs['num_hidden_layers'] - 1}"
        )
    sizes = _sizes(theirs, len(chosen))
    settings = {"type": "ei_src", **sizes, **(model or {})}
    if not hasattr(model_class(settings["type"]), "bert_names"):
        raise ConfigError(f"start: a model of type {settings['type']} holds no BERT to start; set start: null")
    clash = {key: settings[key] for key in sizes if key != "max_positions" and settings[key] != sizes[key]}
    if clash:
        key, value = next(iter(clash.items()))
        raise ConfigError(f"model.{key}: {value}, but the pretrained start has {sizes[key]}; leave it out")
    if settings["max_positions"] > sizes["max_positions"]:
        raise ConfigError(
            f"model.max_positions: {settings['max_positions']}, but the pretrained start has {sizes['max_positions']}"
        )
    if pairs.length > settings["max_positions"]:
        raise ConfigError(
            f"pairs: {pairs.length} tokens a pair, but {folder.name} has {settings['max_positions']} positions"
        )
    network = build_network(settings)
    names = model_class(settings["type"]).bert_names(chosen)
    _copy_weights(network, _state(folder), names, skip=("classifier.weight", "classifier.bias"))
    return network, _pairs(folder, pairs, settings["vocabulary_size"])


def import_hugging_face(
    folder: str | Path, query_length: int = 64, item_length: int = 192
) -> tuple[EiSRC, PairTokenizer]:
    """A BERT cross-encoder folder as our network with ``positions: running``; logits are equal.

    Scores are the sigmoid of the logit, or with two labels the softmax. CrossEncoder gives the same
    where its activation function is Sigmoid, the default for one label. For a folder that names
    another one a warning says that the numbers differ; with Identity the order is the same.

    Where it has fewer positions than both lengths together, they are cut to fit; the query keeps
    at least a quarter. Raises ArtifactError for a folder that is no BERT with a one- or two-label
    classifier.
    """
    folder = locate(folder)
    theirs = _bert_config(folder)
    state = _state(folder)
    if "classifier.weight" not in state:
        raise ArtifactError(f"{folder}: has no classifier, so it is no cross-encoder; use it as `start` to train one")
    labels = len(state["classifier.weight"])
    if labels not in (1, 2):
        raise ArtifactError(f"{folder}: its classifier has {labels} labels; 1 or 2 are supported")
    activation = _activation(folder, theirs)
    if activation not in (None, "Sigmoid"):
        _log.warning(
            "%s: CrossEncoder applies %s to this model's logits; scores here are sigmoid(logit), so the numbers "
            "and thresholds differ",
            folder,
            activation,
        )
    room = theirs["max_position_embeddings"]
    query_length = min(query_length, max(room // 4, room - item_length))
    lengths = {"query_length": query_length, "item_length": min(item_length, room - query_length)}
    pairs = PairConfig.build({**lengths, "positions": "running", "normalize": False}, "lengths")
    layers = list(range(theirs["num_hidden_layers"]))
    sizes = {**_sizes(theirs, len(layers)), "labels": labels}
    network = EiSRC(EiSRCConfig.build(sizes, str(folder / "config.json")))
    _copy_weights(network, state, EiSRC.bert_names(layers), skip=())
    return network.eval(), _pairs(folder, pairs, sizes["vocabulary_size"])


def export_hugging_face(
    network: nn.Module, pairs: PairTokenizer, folder: str | Path, calibration: Platt | None = None
) -> None:
    """Write a plain BERT cross-encoder folder that sentence-transformers' ``CrossEncoder`` loads.

    One label: with two logits its weights are their difference, so its sigmoid is our probability. The
    slope and intercept of a calibration become part of its weights, so predictions are calibrated.
    Raises ArtifactError for what plain BERT cannot express: block positions, term classes, a late join.
    """
    if not isinstance(network, EiSRC):
        raise ArtifactError(f"a {type(network).__name__} is no plain BERT cross-encoder; only ei_src can be exchanged")
    if pairs.config.positions != "running":
        raise ArtifactError(
            "the model has `positions: block`, which plain BERT has not; train with `positions: running`"
        )
    if network.config.joins_late:
        raise ArtifactError(
            "the model joins query and title late, which plain BERT does not; train with `join_layer: 0`"
        )
    if network.config.term_classes:
        raise ArtifactError("the model reads term classes, which plain BERT has not; train with `term_classes: false`")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    state = network.state_dict()
    out = {theirs: state[ours] for ours, theirs in EiSRC.bert_names(list(range(network.config.layers))).items()}
    if network.config.labels == 2:
        for kind in ("weight", "bias"):
            two = out[f"classifier.{kind}"]
            out[f"classifier.{kind}"] = two[1:] - two[:1]
    if calibration is not None:
        out["classifier.weight"] = out["classifier.weight"] * calibration.slope
        out["classifier.bias"] = out["classifier.bias"] * calibration.slope + calibration.intercept
    save_file(
        {k: v.detach().contiguous().clone() for k, v in out.items()}, folder / "model.safetensors", {"format": "pt"}
    )
    write_json(folder / "config.json", _hugging_face_config(network.config, pairs.pad_id))
    _save_packed_tokenizer(pairs, folder)


def _hugging_face_config(config: EiSRCConfig, pad_id: int) -> dict[str, Any]:
    return {
        "architectures": ["BertForSequenceClassification"],
        "model_type": "bert",
        "vocab_size": config.vocabulary_size,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "intermediate_size": config.feed_forward_size,
        "hidden_act": "gelu",
        "hidden_dropout_prob": config.dropout,
        "attention_probs_dropout_prob": config.dropout,
        "max_position_embeddings": config.max_positions,
        "type_vocab_size": 2,
        "layer_norm_eps": config.layer_norm_eps,
        "pad_token_id": pad_id,
        "id2label": {"0": "LABEL_0"},
        "label2id": {"LABEL_0": 0},
        "sentence_transformers": {"activation_fn": "torch.nn.modules.activation.Sigmoid", "version": "5.0.0"},
    }


def plain_tokenizer(pairs: PairTokenizer) -> Tokenizer:
    """A copy of the tokenizer for other toolkits, which do not normalize: it does so itself.

    Control tokens are left as the tokenizer has them, so typed ones are found where the toolkit looks for them.
    """
    from tokenizers import normalizers

    tokenizer = Tokenizer.from_str(pairs.tokenizer.to_str())
    tokenizer.encode_special_tokens = False
    if pairs.config.normalize:  # what `normalize` does and BERT's own cleaning does not
        own = [tokenizer.normalizer] if tokenizer.normalizer else []
        tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase(), *own])
    return tokenizer


def _save_packed_tokenizer(pairs: PairTokenizer, folder: Path) -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer = plain_tokenizer(pairs)
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", pairs.cls_id), ("[SEP]", pairs.sep_id)],
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": pairs.config.length,
            "cls_token": "[CLS]",
            "sep_token": "[SEP]",
            "pad_token": "[PAD]",
            "unk_token": "[UNK]",
            "mask_token": "[MASK]",
            "model_input_names": ["input_ids", "token_type_ids", "attention_mask"],
        },
    )


def _bert_config(folder: Path) -> dict[str, Any]:
    if not (folder / "config.json").is_file():
        raise ArtifactError(f"{folder}: has no config.json, so it is no Hugging Face model folder")
    config = read_json(folder / "config.json")
    if not isinstance(config, dict) or config.get("model_type") is None:
        raise ArtifactError(f"{folder}: config.json names no model_type, so it is no Hugging Face model folder")
    if config["model_type"] != "bert":
        raise ArtifactError(f"{folder}: model_type is {config.get('model_type')!r}; only 'bert' can be loaded")
    if config.get("hidden_act", "gelu") != "gelu":
        raise ArtifactError(f"{folder}: hidden_act is {config['hidden_act']!r}; only 'gelu' is supported")
    if config.get("position_embedding_type", "absolute") != "absolute":
        raise ArtifactError(
            f"{folder}: position_embedding_type is {config['position_embedding_type']!r}; only 'absolute' is supported"
        )
    broken = [name for name in _BERT_SIZES if not isinstance(config.get(name), int) or config[name] < 1]
    if broken:
        raise ArtifactError(f"{folder / 'config.json'}: no usable {', '.join(broken)}; the folder is no complete BERT")
    return dict(config)


_BERT_SIZES = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "max_position_embeddings",
)


def _activation(folder: Path, config: dict[str, Any]) -> str | None:
    """What CrossEncoder applies to the logits, such as ``Sigmoid``; None where the folder names nothing.

    sentence-transformers has written it to three places, and looks for it in this order.
    """
    path = folder / "config_sentence_transformers.json"
    own = read_json(path) if path.is_file() else None
    for settings, key in (
        (own, "activation_fn"),
        (config.get("sentence_transformers"), "activation_fn"),
        (config, "sbert_ce_default_activation_function"),
    ):
        if isinstance(settings, dict) and isinstance(settings.get(key), str):
            return str(settings[key]).rpartition(".")[2]
    return None


def _sizes(theirs: dict[str, Any], layers: int) -> dict[str, Any]:
    return {
        "vocabulary_size": theirs["vocab_size"],
        "hidden_size": theirs["hidden_size"],
        "layers": layers,
        "heads": theirs["num_attention_heads"],
        "feed_forward_size": theirs["intermediate_size"],
        "max_positions": theirs["max_position_embeddings"],
        "layer_norm_eps": theirs.get("layer_norm_eps", 1e-12),
    }


def _state(folder: Path) -> dict[str, Tensor]:
    path = folder / "model.safetensors"
    if not path.is_file():
        raise ArtifactError(f"{path}: missing; pickled weights (.bin, .pt) are not read, convert them to safetensors")
    try:
        state = load_file(path)
    except Exception as error:
        raise ArtifactError(f"{path}: not readable as safetensors ({error})") from None
    # A bare encoder has no `bert.` in front, a classifier has.
    return {
        name if name.startswith(("bert.", "classifier.")) else f"bert.{name}": value for name, value in state.items()
    }


def _copy_weights(network: nn.Module, state: dict[str, Tensor], names: dict[str, str], skip: tuple[str, ...]) -> None:
    own = network.state_dict()
    for ours, theirs in names.items():
        if ours in skip or ours not in own:
            continue
        if theirs not in state:
            raise ArtifactError(f"the pretrained weights have no {theirs}; the folder is no complete BERT")
        value = state[theirs]
        if ours == "embeddings.position.weight":
            value = value[: len(own[ours])]  # a network for short texts needs only the first positions
        if value.shape != own[ours].shape:
            raise ArtifactError(f"{theirs} has shape {tuple(value.shape)}, expected {tuple(own[ours].shape)}")
        own[ours].copy_(value.to(torch.float32))


def _pairs(folder: Path, config: PairConfig, vocabulary_size: int) -> PairTokenizer:
    pairs = PairTokenizer(_tokenizer(folder), config)
    if pairs.vocabulary_size > vocabulary_size:
        raise ArtifactError(
            f"{folder}: the tokenizer has {pairs.vocabulary_size} tokens but the model has rows for "
            f"{vocabulary_size}; tokenizer and weights come from different models"
        )
    return pairs


def _tokenizer(folder: Path) -> Tokenizer:
    path = folder / "tokenizer.json"
    if path.is_file():
        try:
            return Tokenizer.from_file(str(path))
        except Exception as error:
            raise ArtifactError(f"{path}: not a readable tokenizer ({error})") from None
    if not (folder / "vocab.txt").is_file():
        raise ArtifactError(f"{folder}: has neither tokenizer.json nor vocab.txt")
    from tokenizers.implementations import BertWordPieceTokenizer

    settings_file = folder / "tokenizer_config.json"
    lower = read_json(settings_file).get("do_lower_case", True) if settings_file.is_file() else True
    tokenizer = BertWordPieceTokenizer(str(folder / "vocab.txt"), lowercase=lower)
    return Tokenizer.from_str(tokenizer.to_str())
