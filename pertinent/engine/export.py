"""From a network to the graph files that ONNX Runtime runs, each checked before it is kept.

``graph.onnx`` must give torch's logits to 1e-4, or nothing is written. ``graph.int8.onnx`` is
another, cheaper function: it is kept only where it ranks real pairs as the float32 model does.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import logging
import os
import re
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from pertinent.artifact import MANIFEST, Artifact, open_artifact, read_json, write_artifact, write_json
from pertinent.config import Config
from pertinent.engine.backends import available_cores
from pertinent.engine.gate import Gate, JudgedFalls, choose_parts
from pertinent.engine.golden import GOLDEN_FILE, golden_logits
from pertinent.engine.graph import (
    AHEAD_GRAPH_FILE,
    AHEAD_INPUTS,
    GRAPH_FILE,
    INT8_GRAPH_FILE,
    JOIN_GRAPH_FILE,
    JOIN_INPUTS,
    TRANSPOSED,
)
from pertinent.engine.late import join_inputs, query_inputs, title_inputs
from pertinent.engine.native_backend import (
    NATIVE_GATE_FILE,
    NativeBackend,
    NativeInt8Backend,
    native_parts,
    usable,
)
from pertinent.engine.onnx_backend import OnnxBackend, OnnxInt8Backend, open_session, read_weights
from pertinent.engine.scorer import Scorer
from pertinent.engine.torch_backend import TorchBackend
from pertinent.errors import ArtifactError, ConfigError, DataError, need
from pertinent.folders import model_folder
from pertinent.models.joining import state_width
from pertinent.models.store import WEIGHTS_FILE, load_network, load_pairs, save_network
from pertinent.models.weights import load_weights
from pertinent.probability import CALIBRATION_FILE, Platt, calibration_from
from pertinent.records import MODEL_INPUTS, Judgment, Pair, TokenBatch

_log = logging.getLogger(__name__)

PARITY = 1e-4
OPSET = 20  # the first with Gelu as one operator
IR_VERSION = 10  # what every ONNX Runtime that we allow can read
GATE_FILE = "int8_gate.json"
# Settings that mean nothing in other formats.
_FORMAT_SETTINGS = {
    ("engine",): ("judgments", "items", "scale", "int8_backends"),
    ("vespa",): ("probability", "rerank_count"),
    ("solr", "opensearch"): ("features", "definitions"),
}


class ExportConfig(Config):
    """Graph files for a model folder. ``int8`` is tried, and kept only where every limit holds.

    The limits compare int8 with float32 on judged pairs, of all queries together: rank correlation
    of the scores, how many of the ``top`` best pairs are the same, and how far rank correlation with
    the grades may fall; AUC and NDCG@10 may not fall beyond chance. Parts of the network that do harm
    go back to float32. Fewer than three times ``top`` pairs, or grades that are all equal, are no
    evidence, and int8 is not kept. Judgments of the split ``train`` are left out.
    ``int8_backends`` are the backends that it is tried for, each with a gate of its own; the native engine is
    left out where it is not built or does not know the network.
    Judgments without titles need ``items``, labels that are no grades need a ``scale``.

    ``model`` may be a cross-encoder folder as sentence-transformers saves it: it becomes a model of
    ours at ``out``, with equal scores. ``format: hugging_face`` is the way back.

    ``format: vespa`` writes an application that scores inside Vespa, where the ``rerank_count`` best hits are
    ranked again by log odds of relevance, or with ``probability`` by the probability itself. ``solr`` and
    ``opensearch`` write a linear stand-in for the LTR module of these engines, fitted to the model's scores of
    the pairs in ``features``, which has a number for each of the ``definitions``.
    """

    type: Literal["export"] = "export"
    model: str | None = None
    out: str | None = None
    format: Literal["engine", "hugging_face", "vespa", "solr", "opensearch"] = "engine"
    int8: bool = True
    int8_backends: tuple[Literal["onnx-int8", "native-int8"], ...] = ("onnx-int8", "native-int8")
    judgments: str | None = None
    items: str | None = None
    scale: str | None = None
    pairs: int = Field(2_000, ge=1)
    top: int = Field(100, ge=1)
    min_spearman: float = Field(0.999, ge=-1.0, le=1.0)
    min_top_overlap: float = Field(0.98, ge=0.0, le=1.0)
    max_judged_loss: float = Field(0.005, ge=0.0)
    probability: bool = False
    rerank_count: int = Field(100, ge=1)
    features: str | None = None
    definitions: str | None = None

    @model_validator(mode="after")
    def _of_one_format(self) -> ExportConfig:
        fields = ExportConfig.model_fields
        for formats, names in _FORMAT_SETTINGS.items():
            given = [name for name in names if getattr(self, name) != fields[name].default]
            if given and self.format not in formats:
                raise ValueError(
                    f"{', '.join(given)}: only for format: {' or '.join(formats)}; set that, or leave this out"
                )
        return self


def write_graph(network: Any, folder: str | Path) -> float:
    """Write ``graph.onnx`` beside the saved weights; the largest difference to torch that was seen.

    A late join also gets ``graph.ahead.onnx`` (titles ahead of the query) and ``graph.join.onnx`` (one
    query with such titles). ``save_network`` comes first: graphs hold no large weights of their own but
    read those of ``model.safetensors``, and are compared with torch on exactly these. Raises
    ArtifactError, and leaves no graph, where logits differ by more than 1e-4 on ragged batches.
    """
    folder = Path(folder)
    network = _as_saved(network, folder)
    weights = _stored_weights(folder)
    models = {}
    for part in _parts(network):
        models[part.file] = _trace(network, part)
        _externalize(models[part.file], weights)
    return _keep_if_equal(models, network, folder)


def write_int8_graph(folder: str | Path, floats: Sequence[str] = ()) -> None:
    """Write ``graph.int8.onnx`` from ``graph.onnx``: matrix products in 8 bits, scales taken from each batch.

    The parts ``floats`` stay float32. Word vectors stay in ``model.safetensors``. Whether the result is
    good enough is for the gate to say.
    """
    folder = Path(folder)
    onnx = need("onnx", extra="train")
    quantize = need("onnxruntime.quantization", extra="train").quantize_dynamic
    model = onnx.load(folder / GRAPH_FILE, load_external_data=False)
    shapes = {t.name: tuple(t.dims) for t in model.graph.initializer if t.data_location == t.EXTERNAL}
    weights = read_weights(folder / WEIGHTS_FILE, shapes)
    for tensor in model.graph.initializer:
        if tensor.name in weights:
            tensor.CopyFrom(onnx.numpy_helper.from_array(weights[tensor.name], tensor.name))
    nodes = [node.name for node in _products(model) if _part_of(node.input[1]) not in floats]
    with tempfile.TemporaryDirectory(dir=folder) as work, _quiet():
        source, target = Path(work, "float.onnx"), Path(work, "int8.onnx")
        onnx.save(model, source)
        # 7-bit weights: without VNNI the 8-bit products of this instruction set can saturate.
        quantize(source, target, ["MatMul"], per_channel=True, reduce_range=True, nodes_to_quantize=nodes)
        model = onnx.load(target)
    del model.metadata_props[:]
    _externalize(model, _stored_weights(folder))
    (folder / INT8_GRAPH_FILE).write_bytes(model.SerializeToString())
    open_session(folder / INT8_GRAPH_FILE, folder / WEIGHTS_FILE)  # refuses what it could not serve


def export(config: ExportConfig, judgments: Sequence[Judgment], falls: JudgedFalls | None = None) -> Artifact:
    """The model with its graph files, in place or at ``out``; int8 only where the gate lets it pass.

    ``judgments`` are real pairs to compare int8 with float32 on; without int8 they may be empty.
    ``falls`` measures judged quality on them, beside the rank correlation with the grades.
    The manifest's metrics tell what was kept and why. A cross-encoder folder of another toolkit is
    made a model first.
    """
    need("torch", extra="train")
    if config.int8 and not judgments:
        raise DataError("int8 is kept only after a comparison on real pairs", fix="give judgments, or set int8=false")
    if config.int8 and not _held_out(judgments):
        raise DataError("all judgments are of the split 'train'", fix="give judgments of 'valid' or 'test'")
    if is_hugging_face(config.model):
        made = _import_cross_encoder(config)
        if not config.int8:
            return made
        config = config.model_copy(update={"model": str(made.path)})
    artifact = open_artifact(model_folder(config.model), kind="model")
    network, pairs = load_network(artifact)
    metrics = {name: value for name, value in artifact.metrics.items() if name not in ("int8", "native_int8")}
    inputs = {**artifact.manifest.get("inputs", {}), "model": artifact.version}
    dropped = {GRAPH_FILE, INT8_GRAPH_FILE, AHEAD_GRAPH_FILE, JOIN_GRAPH_FILE, GATE_FILE, NATIVE_GATE_FILE}
    dropped.add(GOLDEN_FILE)
    with write_artifact(config.out or artifact.path, "model", artifact.config, inputs, metrics) as folder:
        for name in artifact.manifest["files"].keys() - dropped:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(artifact.path / name, folder / name)
        metrics["onnx_difference"] = write_graph(network, folder)
        if config.int8 and "onnx-int8" in config.int8_backends:
            metrics["int8"] = _keep_gate(folder / GATE_FILE, choose_int8(folder, pairs, judgments, config, falls))
        native = config.int8 and "native-int8" in config.int8_backends and usable(artifact)
        if native:
            found = choose_native_int8(artifact, judgments, config, falls)
            metrics["native_int8"] = _keep_gate(folder / NATIVE_GATE_FILE, found)
        if artifact.has(GOLDEN_FILE):
            golden = read_json(artifact.file(GOLDEN_FILE))
            rounded = NativeInt8Backend.open_rounded(artifact, 1, found.cheap) if native and found.passed else None
            write_golden(folder, [Pair(*pair) for pair in golden["pairs"]], network, pairs, rounded)
    return open_artifact(config.out or artifact.path, kind="model")


def _keep_gate(path: Path, found: Gate) -> dict[str, Any]:
    """What was measured, written beside the model."""
    name = "native int8" if path.name == NATIVE_GATE_FILE else "int8"
    if not found.passed:
        _log.warning("%s is not kept: %s", name, "; ".join(found.reasons))
    elif found.exact:
        _log.info("%s is kept, but for %s, which stay float32", name, ", ".join(found.exact))
    write_json(path, found.plain())
    return found.plain()


def is_hugging_face(model: str | None) -> bool:
    """Whether a path is a folder as Hugging Face saves models, and no artifact of ours."""
    return model is not None and (Path(model) / "config.json").is_file() and not (Path(model) / MANIFEST).exists()


def export_cross_encoder(config: ExportConfig) -> Path:
    """The folder, at ``out``, that sentence-transformers' ``CrossEncoder`` loads: complete or not there.

    Its predictions are the model's calibrated scores. Raises ArtifactError for models that plain BERT
    cannot express, isotonic calibrations among them, and for an ``out`` that exists.
    """
    need("torch", extra="train")
    from pertinent.models.interchange import export_hugging_face

    artifact = open_artifact(model_folder(config.model), kind="model")
    network, pairs = load_network(artifact)
    calibration = calibration_from(artifact.json(CALIBRATION_FILE)) if artifact.has(CALIBRATION_FILE) else Platt()
    if not isinstance(calibration, Platt):
        raise ArtifactError(
            f"{artifact.path}: its calibration is isotonic, which the classifier of a plain BERT cannot express; "
            "train with `calibration: platt` or `calibration: none`"
        )
    out = wanted_out(config)
    if out.exists():
        raise ArtifactError(f"{out}: exists; choose another folder or remove it")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as work:
        export_hugging_face(network, pairs, Path(work, "folder"), calibration)
        os.rename(Path(work, "folder"), out)
    return out


def _import_cross_encoder(config: ExportConfig) -> Artifact:
    from pertinent.models.interchange import import_hugging_face

    network, pairs = import_hugging_face(str(config.model))
    out = wanted_out(config)
    metrics: dict[str, Any] = {}
    with write_artifact(out, "model", config.plain(), {}, metrics) as folder:
        save_network(folder, network, pairs)
        metrics["onnx_difference"] = write_graph(network, folder)
    return open_artifact(out, kind="model")


def wanted_out(config: ExportConfig) -> Path:
    """The folder to write. Raises ConfigError where none is given."""
    if config.out is None:
        raise ConfigError("out: is required to turn a model into another format; give the folder to write")
    return Path(config.out)


def write_golden(
    folder: str | Path, pairs: Sequence[Pair], network: Any, tokenizer: Any, native: NativeInt8Backend | None = None
) -> None:
    """Write ``golden.json``: some 20 pairs, and the logits each backend of the open folder gives them.

    ``native`` is the native engine in 8 bits over the same weights, where the model may be scored with it.
    """
    folder = Path(folder)
    reference = TorchBackend(_as_saved(network, folder), 1)
    logits = {"float32": golden_logits(Scorer(reference, tokenizer).pair_logits, pairs)}
    if (folder / INT8_GRAPH_FILE).is_file():
        backend = OnnxInt8Backend(open_session(folder / INT8_GRAPH_FILE, folder / WEIGHTS_FILE), 1)
        logits[backend.name] = golden_logits(Scorer(backend, tokenizer).pair_logits, pairs)
    if native is not None:
        logits[native.name] = golden_logits(Scorer(native, tokenizer).pair_logits, pairs)
    rounded = {name: [round(float(value), 7) for value in values] for name, values in logits.items()}
    write_json(folder / GOLDEN_FILE, {"pairs": [list(pair) for pair in pairs], "logits": rounded})


def choose_int8(
    folder: Path, pairs: Any, judgments: Sequence[Judgment], config: ExportConfig, falls: JudgedFalls | None = None
) -> Gate:
    """Write ``graph.int8.onnx`` with as many parts in 8 bits as pass the gate; it is gone where none do.

    On the first ``config.pairs`` judgments, those of the split ``train`` left out.
    """
    judged = _held_out(judgments)[: config.pairs]
    texts = [Pair(judgment.query, judgment.title) for judgment in judged]
    exact = Scorer(OnnxBackend(open_session(folder / GRAPH_FILE, folder / WEIGHTS_FILE), available_cores()), pairs)
    wanted = exact.pair_logits(texts)
    parts = int8_parts(folder)

    def scores(floats: Sequence[str]) -> NDArray[np.float32]:
        write_int8_graph(folder, floats)
        session = open_session(folder / INT8_GRAPH_FILE, folder / WEIGHTS_FILE)
        return Scorer(OnnxInt8Backend(session, available_cores()), pairs).pair_logits(texts)

    found = choose_parts(parts, wanted, scores, judged, config, falls)
    if not found.passed:  # else the graph that was tried last is the one that passed
        (folder / INT8_GRAPH_FILE).unlink()
    return found


def choose_native_int8(
    artifact: Artifact, judgments: Sequence[Judgment], config: ExportConfig, falls: JudgedFalls | None = None
) -> Gate:
    """The gate of the native engine in 8 bits, on the same judgments as ``choose_int8``; nothing is written."""
    judged = _held_out(judgments)[: config.pairs]
    texts = [Pair(judgment.query, judgment.title) for judgment in judged]
    pairs, cores = load_pairs(artifact), available_cores()
    parts = native_parts(artifact)
    wanted = Scorer(NativeBackend.open(artifact, cores), pairs).pair_logits(texts)

    def scores(floats: Sequence[str]) -> NDArray[np.float32]:
        rounded = [part for part in parts if part not in floats]
        return Scorer(NativeInt8Backend.open_rounded(artifact, cores, rounded), pairs).pair_logits(texts)

    return choose_parts(parts, wanted, scores, judged, config, falls)


def int8_parts(folder: Path) -> list[str]:
    """The parts of the network in ``graph.onnx`` that can be computed in 8 bits, such as ``layer 0 attention``."""
    model = need("onnx", extra="train").load(folder / GRAPH_FILE, load_external_data=False)
    return list(dict.fromkeys(_part_of(node.input[1]) for node in _products(model)))


def _products(model: Any) -> list[Any]:
    """Products with a stored weight. Those of two activations, as in attention, gain little and lose much in 8 bits."""
    stored = {tensor.name for tensor in model.graph.initializer}
    return [node for node in model.graph.node if node.op_type == "MatMul" and node.input[1] in stored]


def _part_of(weight: str) -> str:
    """The part of a network that a weight belongs to.

    >>> _part_of("encoder.layers.1.feed_in.weight^T"), _part_of("pooler.weight^T")
    ('layer 1 feed-forward', 'head')
    """
    match = re.match(r"encoder\.layers\.(\d+)\.(\w+)", weight)
    if match is None:
        return "head"
    return f"layer {match[1]} {'feed-forward' if match[2].startswith('feed') else 'attention'}"


# Widths to try where a network counts no positions.
_POSITIONS = 64


def ragged_batches(settings: Any, seed: int = 0) -> Iterator[TokenBatch]:
    """Batches of random ids as a tokenizer lays them out: ragged blocks, one row, one token, full width."""
    random = np.random.default_rng(seed)
    longest = max(2, getattr(settings, "max_positions", _POSITIONS) // 2)
    for size, query, item in ((5, longest, longest), (1, 3, 2), (3, 3, longest), (7, longest, 2), (64, 8, longest)):
        query, item = min(query, longest), min(item, longest)
        q_real = random.integers(min(2, query), query + 1, size)
        i_real = random.integers(1, item + 1, size)
        q_real[0], i_real[0] = query, item
        columns = np.arange(query + item)[None]  # [1, length]
        mask = np.where(columns < query, columns < q_real[:, None], columns < query + i_real[:, None])
        ids = np.where(mask, random.integers(0, settings.vocabulary_size, mask.shape), 0)
        segments = np.broadcast_to((columns >= query).astype(np.int64), mask.shape).copy()
        positions = np.where(mask, np.cumsum(mask, axis=1) - 1, 0)
        classes = np.where(mask & (columns > 0), random.integers(0, 7, mask.shape), 0)
        yield TokenBatch(ids, mask, segments, positions, classes, query)


def _held_out(judgments: Sequence[Judgment]) -> list[Judgment]:
    """Those that no model was trained on; without splits, all."""
    return [judgment for judgment in judgments if judgment.split != "train"]


def _stored_weights(folder: Path) -> dict[str, NDArray[Any]]:
    """The saved weights by name, float32 where they are floats."""
    if not (folder / WEIGHTS_FILE).is_file():
        raise ArtifactError(f"{folder}: has no {WEIGHTS_FILE}; save the network before its graph")
    return load_weights(folder / WEIGHTS_FILE)


def _as_saved(network: Any, folder: Path) -> Any:
    """A copy of the network with the weights that are on disk, which may be rounded."""
    torch = need("torch", extra="train")
    network = copy.deepcopy(network).to("cpu").eval()
    network.load_state_dict({key: torch.from_numpy(value) for key, value in _stored_weights(folder).items()})
    return network


@dataclass(frozen=True, slots=True)
class _Part:
    """What a graph file computes: a call of the network, on inputs like these, with free sizes."""

    file: str
    call: Callable[..., Any]
    example: dict[str, NDArray[Any]]
    free: Mapping[str, tuple[int, ...]]
    output: str


def _parts(network: Any) -> list[_Part]:
    """The graph of whole pairs; for a late join also those of titles ahead and of a query with such titles."""
    from pertinent.models.blocks import relevance_logit

    batch = next(ragged_batches(network.config))
    both = dict.fromkeys(MODEL_INPUTS, (0, 1))
    parts = [_Part(GRAPH_FILE, lambda *inputs: relevance_logit(network(*inputs)), batch.inputs(), both, "logit")]
    if getattr(network.config, "joins_late", False) and hasattr(network, "ahead"):
        titles, states = title_inputs(batch), dict.fromkeys(AHEAD_INPUTS, (0, 1))
        parts.append(_Part(AHEAD_GRAPH_FILE, network.ahead, titles, states, "states"))
        width = state_width(network.config.plain())
        known = np.zeros((*titles["mask"].shape, width), dtype=np.float16)
        query = join_inputs(query_inputs(batch), known, titles["mask"])
        free = {name: (0, 1) if name.startswith("item") else (1,) for name in JOIN_INPUTS}
        parts.append(
            _Part(JOIN_GRAPH_FILE, lambda *inputs: relevance_logit(network.join(*inputs)), query, free, "logit")
        )
    return parts


def traced(network: Any, call: Callable[..., Any], example: dict[str, NDArray[Any]], output: str) -> Any:
    """What ``call`` computes with the network as an ONNX model, all weights inside, batch and length free.

    Its inputs are named and typed as in the ``example`` (arrays ``[batch, length]``), its only output as given.
    """
    return _trace(network, _Part("", call, example, dict.fromkeys(example, (0, 1)), output))


def _trace(network: Any, part: _Part) -> Any:
    """A part of the network as an ONNX model with all weights inside."""
    torch = need("torch", extra="train")
    need("onnxscript", extra="train")

    class Called(torch.nn.Module):  # type: ignore[name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, inputs: Any) -> Any:
            return part.call(*inputs)

    example = tuple(torch.from_numpy(value) for value in part.example.values())
    free = tuple(dict.fromkeys(part.free[name], torch.export.Dim.DYNAMIC) for name in part.example)
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            Called().eval(),
            (example,),
            dynamo=True,
            verbose=False,
            opset_version=OPSET,
            input_names=list(part.example),
            output_names=[part.output],
            dynamic_shapes=(free,),
        )
    model = program.model_proto
    # Names of source files and of the machine have no place in a model that is handed on.
    for node in model.graph.node:
        del node.metadata_props[:]
        node.ClearField("doc_string")
    for value in (*model.graph.value_info, *model.graph.input, *model.graph.output):
        del value.metadata_props[:]
    del model.graph.metadata_props[:], model.metadata_props[:], model.functions[:]
    return model


def _externalize(model: Any, weights: Mapping[str, NDArray[Any]]) -> None:
    """Empty every initializer that equals a stored weight, as it is or transposed, and name it so."""
    onnx = need("onnx", extra="train")
    stored: dict[str, str] = {}
    for weight, array in weights.items():
        stored.setdefault(_digest(array), weight)
        if array.ndim == 2:
            stored.setdefault(_digest(array.T), weight + TRANSPOSED)
    renamed: dict[str, str] = {}
    kept = []
    for tensor in model.graph.initializer:
        key = None
        if tensor.data_type == onnx.TensorProto.FLOAT and tensor.dims:
            key = stored.get(_digest(onnx.numpy_helper.to_array(tensor)))
        if key is None:
            kept.append(tensor)
            continue
        if key not in renamed.values():
            outside = onnx.TensorProto(name=key, data_type=tensor.data_type, dims=tensor.dims)
            outside.data_location = onnx.TensorProto.EXTERNAL
            outside.external_data.add(key="location", value=WEIGHTS_FILE)
            kept.append(outside)
        renamed[tensor.name] = key
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    for node in model.graph.node:
        for place, name in enumerate(node.input):
            node.input[place] = renamed.get(name, name)
    model.ir_version = min(model.ir_version, IR_VERSION)
    # Shapes are inferred again when the graph is loaded; they tripled the file.
    del model.graph.value_info[:]


def _digest(array: NDArray[Any]) -> str:
    content = json.dumps([array.dtype.str, array.shape]).encode() + np.ascontiguousarray(array).tobytes()
    return hashlib.sha256(content).hexdigest()


def parity(network: Any) -> float:
    """How far the logits of a graph may be from torch's: 1e-4, more where the head multiplies its input by much.

    A calibration that was folded into a head can be steep. What rounding moves in the layers below, some 5e-7 of
    each number that the head reads, is then multiplied with it.
    """
    if not hasattr(network, "classifier"):
        return PARITY
    return max(PARITY, 2e-6 * float(network.classifier.weight.detach().norm(dim=1).max()))


def _keep_if_equal(models: Mapping[str, Any], network: Any, folder: Path) -> float:
    """Put all graphs in their places if what they give is torch's; the largest difference that was seen."""
    aside = {name: folder / f".{name}.part" for name in models}
    limit = parity(network)
    try:
        for name, model in models.items():
            aside[name].write_bytes(model.SerializeToString())
        worst = 0.0
        for difference in _differences(network, aside, folder / WEIGHTS_FILE):
            worst = max(worst, float(difference.max(initial=0.0)))
            if not (np.isfinite(difference).all() and worst <= limit):
                raise ArtifactError(
                    f"the exported graph differs from torch by {worst:.2g} (at most {limit:.2g} is allowed), "
                    "so it is not kept; score with the backend 'torch'"
                )
        for name, path in aside.items():
            path.replace(folder / name)
    finally:
        for path in aside.values():
            path.unlink(missing_ok=True)
    return worst


def _differences(network: Any, graphs: Mapping[str, Path], weights: Path) -> Iterator[NDArray[np.float32]]:
    """How far logits of graphs are from torch's on ragged batches, and of titles known ahead from whole pairs."""
    reference = TorchBackend(network, 1)
    pairs = OnnxBackend(open_session(graphs[GRAPH_FILE], weights), 1)
    for batch in ragged_batches(network.config):
        yield np.abs(pairs.forward(batch) - reference.forward(batch))
    if JOIN_GRAPH_FILE not in graphs:
        return
    ahead = open_session(graphs[AHEAD_GRAPH_FILE], weights, AHEAD_INPUTS, "states")
    join = open_session(graphs[JOIN_GRAPH_FILE], weights, JOIN_INPUTS, "logit")
    for batch in ragged_batches(network.config):
        titles = title_inputs(batch)
        known = reference.ahead(titles)
        yield np.abs(_run(ahead, titles) - known)
        query = join_inputs(query_inputs(batch), known.astype(np.float16), titles["mask"])
        yield np.abs(_run(join, query) - reference.join(query))


def _run(session: Any, inputs: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
    found: NDArray[np.float32] = session.run(None, {entry.name: inputs[entry.name] for entry in session.get_inputs()})[
        0
    ]
    return found


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter and the quantizer warn and log about their own insides; a user can mend none of it."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir", "root", "")]
    levels = [logger.level for logger in loggers]
    handlers = list(logging.root.handlers)  # one who logs by `logging.warning` adds one, and changes all later lines
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            for logger in loggers:
                logger.setLevel(logging.ERROR)
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
            logging.root.handlers[:] = handlers
