from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from pertinent.artifact import Artifact, open_artifact, write_artifact
from pertinent.errors import ArtifactError, ConfigError
from pertinent.lexicon.pairs import PairConfig, PairTokenizer
from pertinent.models import MODELS
from pertinent.models.blocks import relevance_logit
from pertinent.models.store import (
    MODEL_FILE,
    WEIGHTS_FILE,
    build_network,
    load_network,
    load_pairs,
    model_class,
    model_config,
    rounded,
    save_network,
)

QUERIES = ["wireless earbuds", "", "größe 3", "red mug"]
TITLES = ["bluetooth headphones", "usb cable", "", "日本語 mug"]


def logits(network: Any, pairs: PairTokenizer) -> Any:
    inputs = pairs.pair(QUERIES, TITLES).inputs()
    with torch.inference_mode():
        return relevance_logit(network(**{name: torch.from_numpy(value) for name, value in inputs.items()}))


def save(folder: Path, network: Any, pairs: PairTokenizer, dtype: Any = "float32") -> Artifact:
    with write_artifact(folder, "model", {}) as aside:
        save_network(aside, network, pairs, dtype)
    return open_artifact(folder)


def change_settings(artifact: Artifact, change: Any) -> Artifact:
    """The artifact after ``model.json`` was changed; its digest is not looked at again."""
    path = artifact.path / MODEL_FILE
    settings = json.loads(path.read_text())
    change(settings)
    path.write_text(json.dumps(settings))
    return artifact


def reads_classes(name: str) -> bool:
    """Whether a network of this kind can have a term-class channel."""
    try:
        return bool(model_config(name).build({"term_classes": True}))
    except ConfigError:
        return False


@pytest.mark.parametrize("name", sorted(MODELS))
@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
def test_what_is_loaded_is_what_was_saved(
    tmp_path: Path, network_maker: Any, tiny_pairs: PairTokenizer, name: str, dtype: Any
) -> None:
    network = network_maker(name, tiny_pairs.vocabulary_size, **({"term_classes": True} if reads_classes(name) else {}))
    artifact = save(tmp_path / "model", network, tiny_pairs, dtype)
    loaded, pairs = load_network(artifact)
    assert not loaded.training and loaded.config == network.config
    assert pairs.describe() == tiny_pairs.describe()
    assert {value.dtype for value in loaded.state_dict().values() if value.is_floating_point()} == {torch.float32}
    # Storing rounds once: what `rounded` gives is, to the bit, what will be read.
    expected = rounded(network, dtype)
    for key, value in loaded.state_dict().items():
        assert torch.equal(value, expected.state_dict()[key]), key
    assert torch.equal(logits(loaded, pairs), logits(expected, tiny_pairs))
    error = (logits(loaded, pairs) - logits(network, tiny_pairs)).abs().max()
    assert error <= {"float32": 0, "float16": 0.02, "int8": 0.3}[dtype]
    # Saved again, the same bytes.
    again = save(tmp_path / "again", expected, pairs, dtype)
    if dtype != "int8":
        assert again.version == artifact.version


def test_rounding_leaves_the_network_alone(tiny_network: Any) -> None:
    before = copy.deepcopy(tiny_network.state_dict())
    other = rounded(tiny_network, "int8")
    assert all(torch.equal(value, before[key]) for key, value in tiny_network.state_dict().items())
    assert not torch.equal(other.state_dict()["pooler.weight"], before["pooler.weight"])


def test_smaller_types_take_less_room(tmp_path: Path, tiny_network: Any, tiny_pairs: PairTokenizer) -> None:
    sizes = []
    for dtype in ("float32", "float16", "int8"):
        save(tmp_path / dtype, tiny_network, tiny_pairs, dtype)
        arrays = load_file(tmp_path / dtype / WEIGHTS_FILE)
        sizes.append(sum(value.nbytes for value in arrays.values()))
    assert sizes[1] == sizes[0] / 2 and sizes[2] < 0.45 * sizes[0]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(
    tmp_path: Path, tiny_network: Any, tiny_pairs: PairTokenizer, value: float
) -> None:
    network = copy.deepcopy(tiny_network)
    with torch.no_grad():
        network.pooler.bias[3] = value
    with pytest.raises(ArtifactError, match=r"not finite in pooler\.bias; nothing was written"):
        save_network(tmp_path, network, tiny_pairs)
    assert not list(tmp_path.iterdir())


def test_weights_beyond_the_range_of_float16_are_refused(
    tmp_path: Path, tiny_network: Any, tiny_pairs: PairTokenizer
) -> None:
    network = copy.deepcopy(tiny_network)
    with torch.no_grad():
        network.pooler.weight[0, 0] = 1e6
    with pytest.raises(ArtifactError, match=r"too large for float16 in pooler\.weight; nothing was written"):
        save_network(tmp_path, network, tiny_pairs, "float16")
    assert not list(tmp_path.iterdir())
    save_network(tmp_path, network, tiny_pairs, "int8")


def test_weights_that_do_not_fit_the_sizes_are_refused(
    tmp_path: Path, tiny_network: Any, tiny_pairs: PairTokenizer
) -> None:
    artifact = save(tmp_path / "model", tiny_network, tiny_pairs)
    change_settings(artifact, lambda s: s["network"].update(hidden_size=8))
    with pytest.raises(ArtifactError, match=r"model\.safetensors: does not fit model\.json: size mismatch"):
        load_network(artifact)
    change_settings(artifact, lambda s: s["network"].update(hidden_size=16, layers=1))
    with pytest.raises(ArtifactError, match=r"does not fit model\.json: Unexpected key"):
        load_network(artifact)


def test_missing_and_damaged_weights_are_refused(tmp_path: Path, tiny_network: Any, tiny_pairs: PairTokenizer) -> None:
    artifact = save(tmp_path / "model", tiny_network, tiny_pairs)
    path = artifact.path / WEIGHTS_FILE
    arrays = load_file(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ArtifactError, match="not readable as safetensors"):
        load_network(artifact)
    arrays.pop("classifier.bias")
    save_file(arrays, path)
    with pytest.raises(ArtifactError, match=r"Missing key.*classifier\.bias"):
        load_network(artifact)
    with pytest.raises(ArtifactError, match=r"model\.safetensors"):
        open_artifact(artifact.path)


def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path, network_maker: Any, tiny_pairs: PairTokenizer) -> None:
    network = network_maker("ei_src", tiny_pairs.vocabulary_size - 1)
    artifact = save(tmp_path / "model", network, tiny_pairs)
    for load in (load_pairs, load_network):
        with pytest.raises(ArtifactError, match="tokenizer and weights come from different models"):
            load(artifact)
    # Spare rows are usual, and fine.
    load_network(save(tmp_path / "spare", network_maker("ei_src", tiny_pairs.vocabulary_size + 5), tiny_pairs))


@pytest.mark.parametrize("content", ["[]", "{}", '{"network": {}}', '{"network": 1, "pairs": {}}', "{", ""])
def test_damaged_settings_are_refused(
    tmp_path: Path, tiny_network: Any, tiny_pairs: PairTokenizer, content: str
) -> None:
    artifact = save(tmp_path / "model", tiny_network, tiny_pairs)
    (artifact.path / MODEL_FILE).write_text(content)
    with pytest.raises(ArtifactError, match=r"model\.json"):
        load_pairs(artifact)


def test_settings_of_another_version_are_named(tmp_path: Path, tiny_network: Any, tiny_pairs: PairTokenizer) -> None:
    artifact = save(tmp_path / "model", tiny_network, tiny_pairs)
    change_settings(artifact, lambda s: s["network"].update(gates=3))
    with pytest.raises(ConfigError, match=r"model\.json: gates: unknown key"):
        load_network(artifact)
    change_settings(artifact, lambda s: s["pairs"].update(query_length=1))
    with pytest.raises(ConfigError, match=r"model\.json: pairs: query_length"):
        load_pairs(artifact)
    change_settings(artifact, lambda s: (s["pairs"].update(query_length=16), s["network"].pop("vocabulary_size")))
    with pytest.raises(ArtifactError, match="rows for 0"):
        load_pairs(artifact)


@pytest.mark.parametrize("name", ["vocabulary_size", "max_positions"])
@pytest.mark.parametrize("value", ["x", None, [], 0, -1, 2.5, True, 10**400, float("nan")])
def test_sizes_that_are_no_numbers_are_refused(
    tmp_path: Path, tiny_network: Any, tiny_pairs: PairTokenizer, name: str, value: Any
) -> None:
    artifact = save(tmp_path / "model", tiny_network, tiny_pairs)
    change_settings(artifact, lambda s: s["network"].update({name: value}))
    for load in (load_pairs, load_network):
        with pytest.raises(ArtifactError, match=rf"model\.json: network\.{name} is .*, not a whole number") as caught:
            load(artifact)
        assert len(str(caught.value)) < 300


@pytest.mark.parametrize("kind", ["bert", [], {}, None, 1])
def test_a_network_of_no_known_type_is_refused(
    tmp_path: Path, tiny_network: Any, tiny_pairs: PairTokenizer, kind: Any
) -> None:
    artifact = save(tmp_path / "model", tiny_network, tiny_pairs)
    change_settings(artifact, lambda s: s["network"].update(type=kind))
    with pytest.raises(ConfigError, match=r"is not a model; allowed: .*ei_src, .*sbert"):
        load_network(artifact)


def test_layout_is_kept(tmp_path: Path, tiny_network: Any, tiny_pairs: PairTokenizer) -> None:
    layout = PairConfig(query_length=8, item_length=20, positions="running", normalize=False)
    artifact = save(tmp_path / "model", tiny_network, PairTokenizer(tiny_pairs.tokenizer, layout))
    assert load_pairs(artifact).config == layout


def test_networks_are_found_by_name() -> None:
    for name in MODELS:
        assert model_config(name)().plain()["type"] == name
        assert issubclass(model_class(name), torch.nn.Module)
    for look_up in (model_class, model_config):
        with pytest.raises(ConfigError, match=r"model\.type: 'bert' is not a model; allowed: .*ei_src, .*sbert"):
            look_up("bert")
    with pytest.raises(ConfigError, match=r"model: hidden_size"):
        build_network({"hidden_size": 0})
    network: Any = build_network({"vocabulary_size": 10, "hidden_size": 8, "layers": 1, "heads": 2})
    assert type(network).__name__ == "EiSRC"
    assert all(np.isfinite(value.numpy()).all() for value in network.state_dict().values())
