"""Networks on disk: weights as safetensors, sizes and layout as JSON, the tokenizer beside them."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pertinent.artifact import Artifact, read_json, write_json
from pertinent.config import Config
from pertinent.errors import ArtifactError, ConfigError, shorten
from pertinent.lexicon.pairs import PairConfig, PairTokenizer
from pertinent.lexicon.vocabulary import extend_embedding, extend_pairs
from pertinent.models import MODELS
from pertinent.models.weights import WeightsType, load_weights, pack, unpack
from pertinent.text import JOINT

if TYPE_CHECKING:
    from torch import Tensor, nn

WEIGHTS_FILE = "model.safetensors"
MODEL_FILE = "model.json"
# The parameter with one row a token, in every network.
TOKEN_ROWS = "embeddings.token.weight"
# Settings that say which tokens read which: they change scores but no weight.
WIRING = ("join_layer", "one_way")
# What texts and layout are held against without loading the network.
_COUNTS = ("vocabulary_size", "max_positions")


def model_class(name: str) -> Any:
    """The network class called ``name`` in configs. Raises ConfigError for an unknown name."""
    return _resolve(_entry(name)[0])


def model_config(name: str) -> type[Config]:
    """The config class of the network called ``name``."""
    resolved: type[Config] = _resolve(_entry(name)[1])
    return resolved


def build_network(settings: dict[str, Any], source: str = "model") -> nn.Module:
    """A network with fresh weights from its settings; ``type`` names the class."""
    name = settings.get("type", "ei_src")
    network: nn.Module = model_class(name)(model_config(name).build(settings, source))
    return network


def save_network(folder: str | Path, network: nn.Module, pairs: PairTokenizer, dtype: WeightsType = "float32") -> None:
    """Write ``model.safetensors``, ``model.json`` and ``tokenizer.json`` into an open artifact folder.

    ``float16`` and ``int8`` take a half and a quarter of the bytes; scores then differ a little from
    the trained ones (``rounded`` gives the network that will be read back). Weights that are not
    finite are refused: nothing is written.
    """
    from safetensors.numpy import save_file

    state = _arrays(network)
    _refuse_not_finite(state, "weights are not finite in {}; nothing was written")
    stored = pack(state, dtype)
    _refuse_not_finite(stored, f"weights are too large for {dtype} in {{}}; nothing was written, use float32")
    folder = Path(folder)
    save_file(stored, folder / WEIGHTS_FILE)
    (folder / WEIGHTS_FILE).chmod(0o644)  # the library writes it for its owner alone
    config: Any = network.config
    write_json(folder / MODEL_FILE, {"network": config.plain(), "pairs": pairs.config.plain(), "weights": dtype})
    pairs.save(folder)


def rounded(network: nn.Module, dtype: WeightsType) -> nn.Module:
    """A copy with the weights as they will be after being stored in that type and read back."""
    network = copy.deepcopy(network)
    _load_arrays(network, unpack(pack(_arrays(network), dtype)))
    return network


def straight_through(network: nn.Module, dtype: WeightsType, still: dict[str, Tensor]) -> dict[str, Tensor]:
    """The network's parameters by name, as ``rounded`` would give them, for a pass that trains them.

    A gradient passes the rounding as if it were not there: it moves the weights themselves, which
    reach the next step of their type in their own time. What is not trained is rounded once, and
    kept in ``still`` for the next call.
    """
    weights: dict[str, Tensor] = dict(network.named_parameters())
    moved = {name: weight for name, weight in weights.items() if name not in still}
    stored = unpack(pack({name: weight.detach().to("cpu").numpy() for name, weight in moved.items()}, dtype))
    for name, weight in moved.items():
        value = weight.new_tensor(stored[name])
        if weight.requires_grad:
            weights[name] = weight + (value - weight.detach())
        else:
            still[name] = value
    return {**weights, **still}


def rewired(network: nn.Module, wiring: Mapping[str, Any]) -> nn.Module:
    """The network with other settings among ``WIRING`` and the same weights; itself where nothing changes.

    Raises ConfigError for a join that the network cannot have.
    """
    config: Any = network.config
    settings = {**config.plain(), **wiring}
    if settings == config.plain():
        return network
    changed = build_network(settings)
    changed.load_state_dict(network.state_dict())
    return changed.train(network.training)


def with_term_classes(network: nn.Module) -> nn.Module:
    """The network with a term-class channel whose vectors are zero, so that its scores are as before; itself where
    it has one.

    Raises ConfigError for a network that cannot have one.
    """
    config: Any = network.config
    if config.term_classes:
        return network
    grown = build_network({**config.plain(), "term_classes": True})
    state = grown.state_dict()
    state = {name: value.zero_() for name, value in state.items()} | dict(network.state_dict())
    grown.load_state_dict(state)
    return grown.train(network.training)


def load_network(artifact: Artifact) -> tuple[nn.Module, PairTokenizer]:
    """The network, in evaluation mode and float32, with its tokenizer.

    Raises ArtifactError when weights, sizes and tokenizer do not fit together.
    """
    pairs = load_pairs(artifact)
    network = build_network(model_settings(artifact)["network"], str(artifact.file(MODEL_FILE)))
    try:
        _load_arrays(network, load_weights(artifact.file(WEIGHTS_FILE)))
    except RuntimeError as error:
        first = str(error).splitlines()[-1].strip()
        raise ArtifactError(f"{artifact.path / WEIGHTS_FILE}: does not fit {MODEL_FILE}: {first}") from None
    return network.eval(), pairs


def extend_vocabulary(
    network: nn.Module, pairs: PairTokenizer, words: Iterable[str]
) -> tuple[nn.Module, PairTokenizer]:
    """Network and tokenizer with a token for each word that the tokenizer splits, if any.

    A new word's embedding is the mean of those of its old pieces (ei-SRC, section 4); all else is as
    it was, and so are the scores of texts without these words. The given network stays as it is.
    """
    import torch

    extended, pieces = extend_pairs(pairs, words)
    state = dict(network.state_dict())
    name = next((name for name in state if name.endswith(TOKEN_ROWS)), None)
    if name is None:
        raise ConfigError(
            f"lexicon: a {type(network).__name__} has no vectors of tokens to make new ones from; leave the lexicon out"
        )
    # Rows beyond the tokenizer's ids belong to no token: some folders round their number up.
    rows = state[name][: pairs.vocabulary_size].detach().to("cpu").numpy()
    state[name] = torch.from_numpy(extend_embedding(rows, pieces))
    config: Any = network.config
    bigger = build_network({**config.plain(), "vocabulary_size": len(state[name])})
    bigger.load_state_dict(state)
    return bigger.train(network.training), extended


def read_tokens(network: nn.Module, pairs: PairTokenizer) -> nn.Module:
    """The same network, told the texts of the tokens where it reads letters (DSSM)."""
    read = getattr(network, "read_tokens", None)
    if read is not None:
        tokens = [pairs.tokenizer.id_to_token(number) or "" for number in range(pairs.vocabulary_size)]
        read([token.replace(JOINT, "") for token in tokens])
    return network


def load_pairs(artifact: Artifact) -> PairTokenizer:
    """The tokenizer and layout of a model artifact; needs no torch."""
    settings = model_settings(artifact)
    pairs = PairTokenizer.load(
        artifact.path, PairConfig.build(settings["pairs"], str(artifact.path / MODEL_FILE) + ": pairs")
    )
    rows = settings["network"].get("vocabulary_size", 0)
    if pairs.vocabulary_size > rows:
        raise ArtifactError(
            f"{artifact.path}: the tokenizer has {pairs.vocabulary_size} tokens but the model has rows for "
            f"{rows}; tokenizer and weights come from different models"
        )
    return pairs


def model_settings(artifact: Artifact) -> dict[str, Any]:
    """The content of ``model.json``, checked for its parts and the sizes that need no network to be used."""
    settings = read_json(artifact.file(MODEL_FILE))
    if not isinstance(settings, dict) or not all(isinstance(settings.get(k), dict) for k in ("network", "pairs")):
        raise ArtifactError(f"{artifact.path / MODEL_FILE}: has no 'network' and 'pairs'; the file is damaged")
    for name in _COUNTS:
        value = settings["network"].get(name, 1)
        if type(value) is not int or not 0 < value < 1 << 31:
            raise ArtifactError(
                f"{artifact.path / MODEL_FILE}: network.{name} is {shorten(value)}, not a whole number from 1; "
                "the file is damaged"
            )
    return settings


def _refuse_not_finite(arrays: Mapping[str, Any], message: str) -> None:
    broken = [name for name, value in arrays.items() if not np.isfinite(value).all()]
    if broken:
        raise ArtifactError(message.format(", ".join(broken[:3])))


def _arrays(network: nn.Module) -> dict[str, Any]:
    return {name: value.detach().to("cpu").numpy() for name, value in network.state_dict().items()}


def _load_arrays(network: nn.Module, weights: Mapping[str, Any]) -> None:
    import torch

    network.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()})


def _entry(name: object) -> tuple[str, str]:
    if not isinstance(name, str) or name not in MODELS:
        raise ConfigError(f"model.type: {shorten(name)} is not a model; allowed: {', '.join(MODELS)}")
    return MODELS[name]


def _resolve(spot: str) -> Any:
    module, _, attribute = spot.partition(":")
    return getattr(importlib.import_module(module), attribute)
