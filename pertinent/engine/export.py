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
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from pertinent.artifact import MANIFEST, Artifact, open_artifact, read_json, write_artifact, write_json
from pertinent.config import Config
from pertinent.correlation import spearman
from pertinent.engine.backends import available_cores
from pertinent.engine.golden import GOLDEN_FILE, golden_logits
from pertinent.engine.graph import GRAPH_FILE, INT8_GRAPH_FILE, TRANSPOSED
from pertinent.engine.onnx_backend import OnnxBackend, OnnxInt8Backend, open_session, read_weights
from pertinent.engine.scorer import Scorer
from pertinent.engine.torch_backend import TorchBackend
from pertinent.errors import ArtifactError, ConfigError, DataError, need
from pertinent.folders import shipped_folder
from pertinent.models.store import WEIGHTS_FILE, load_network, save_network
from pertinent.models.weights import load_weights
from pertinent.probability import CALIBRATION_FILE, Platt, calibration_from
from pertinent.records import MODEL_INPUTS, Judgment, Pair, TokenBatch

_log = logging.getLogger(__name__)

PARITY = 1e-4
OPSET = 20  # the first with Gelu as one operator
IR_VERSION = 10  # what every ONNX Runtime that we allow can read
GATE_FILE = "int8_gate.json"
# The gate wants this many times as many pairs as it compares at the top: among fewer, most are in it anyhow.
EVIDENCE = 3
# Smaller weights than this stay inside the graph file.
_EXTERNAL_FROM = 8


class ExportConfig(Config):
    """Graph files for a model folder. ``int8`` is tried, and kept only where every limit holds.

    The limits compare int8 with float32 on judged pairs, of all queries together: rank correlation
    of the scores, how many of the ``top`` best pairs are the same, and how far rank correlation with
    the grades may fall. Fewer than three times ``top`` pairs, or grades that are all equal, are no
    evidence, and int8 is not kept. Judgments of the split ``train`` are left out.
    Judgments without titles need ``items``, labels that are no grades need a ``scale``.

    ``model`` may be a cross-encoder folder as sentence-transformers saves it: it becomes a model of
    ours at ``out``, with equal scores. ``format: hugging_face`` is the way back.
    """

    type: Literal["export"] = "export"
    model: str | None = None
    out: str | None = None
    format: Literal["engine", "hugging_face"] = "engine"
    int8: bool = True
    judgments: str | None = None
    items: str | None = None
    scale: str | None = None
    pairs: int = Field(2_000, ge=1)
    top: int = Field(100, ge=1)
    min_spearman: float = Field(0.999, ge=-1.0, le=1.0)
    min_top_overlap: float = Field(0.95, ge=0.0, le=1.0)
    max_judged_loss: float = Field(0.005, ge=0.0)


@dataclass(frozen=True, slots=True)
class Gate:
    """What was measured between int8 and float32, and whether it was enough.

    ``top_overlap`` is the share of equal pairs among the ``ExportConfig.top`` best of all pairs;
    ``judged_loss`` is how much the rank correlation with the grades fell. NaN where it is undefined.
    """

    passed: bool
    pairs: int
    spearman: float
    top_overlap: float
    judged_loss: float
    reasons: list[str]

    def plain(self) -> dict[str, Any]:
        """The fields as JSON-able values; None where a number is undefined."""
        return {name: None if value != value else value for name, value in asdict(self).items()}


def write_graph(network: Any, folder: str | Path) -> float:
    """Write ``graph.onnx`` beside the saved weights; the largest difference to torch that was seen.

    ``save_network`` comes first: the graph holds no large weights of its own but reads those of
    ``model.safetensors``, and is compared with torch on exactly these. Raises ArtifactError, and
    leaves no graph, where logits differ by more than 1e-4 on ragged batches.
    """
    folder = Path(folder)
    network = _as_saved(network, folder)
    model = _trace(network)
    _externalize(model, _stored_weights(folder))
    return _keep_if_equal(model, network, folder)


def write_int8_graph(folder: str | Path) -> None:
    """Write ``graph.int8.onnx`` from ``graph.onnx``: matrix products in 8 bits, scales taken from each batch.

    Word vectors stay in ``model.safetensors``. Whether the result is good enough is for
    ``int8_gate`` to say.
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
    # Products of two activations, as in attention, gain little and lose much.
    stored = {tensor.name for tensor in model.graph.initializer}
    nodes = [n.name for n in model.graph.node if n.op_type == "MatMul" and n.input[1] in stored]
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


def export(config: ExportConfig, judgments: Sequence[Judgment]) -> Artifact:
    """The model with its graph files, in place or at ``out``; int8 only where the gate lets it pass.

    ``judgments`` are real pairs to compare int8 with float32 on; without int8 they may be empty.
    The manifest's metrics tell what was kept and why. A cross-encoder folder of another toolkit is
    made a model first.
    """
    if config.int8 and not judgments:
        raise DataError("int8 is kept only after a comparison on real pairs", fix="give judgments, or set int8=false")
    if config.int8 and not _held_out(judgments):
        raise DataError("all judgments are of the split 'train'", fix="give judgments of 'valid' or 'test'")
    if is_hugging_face(config.model):
        made = _import_cross_encoder(config)
        if not config.int8:
            return made
        config = config.model_copy(update={"model": str(made.path)})
    artifact = open_artifact(config.model or shipped_folder(), kind="model")
    network, pairs = load_network(artifact)
    metrics = {name: value for name, value in artifact.metrics.items() if name != "int8"}  # of an earlier export
    inputs = {**artifact.manifest.get("inputs", {}), "model": artifact.version}
    dropped = {GRAPH_FILE, INT8_GRAPH_FILE, GATE_FILE, GOLDEN_FILE}
    with write_artifact(config.out or artifact.path, "model", artifact.config, inputs, metrics) as folder:
        for name in artifact.manifest["files"].keys() - dropped:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(artifact.path / name, folder / name)
        metrics["onnx_difference"] = write_graph(network, folder)
        if config.int8:
            write_int8_graph(folder)
            gate = int8_gate(folder, pairs, judgments, config)
            metrics["int8"] = gate.plain()
            if not gate.passed:
                (folder / INT8_GRAPH_FILE).unlink()
                _log.warning("int8 is not kept: %s", "; ".join(gate.reasons))
            write_json(folder / GATE_FILE, gate.plain())
        if artifact.has(GOLDEN_FILE):
            golden = read_json(artifact.file(GOLDEN_FILE))
            write_golden(folder, [Pair(*pair) for pair in golden["pairs"]], network, pairs)
    return open_artifact(config.out or artifact.path, kind="model")


def is_hugging_face(model: str | None) -> bool:
    """Whether a path is a folder as Hugging Face saves models, and no artifact of ours."""
    return model is not None and (Path(model) / "config.json").is_file() and not (Path(model) / MANIFEST).exists()


def export_cross_encoder(config: ExportConfig) -> Path:
    """The folder, at ``out``, that sentence-transformers' ``CrossEncoder`` loads: complete or not there.

    Its predictions are the model's calibrated scores. Raises ArtifactError for models that plain BERT
    cannot express, isotonic calibrations among them, and for an ``out`` that exists.
    """
    from pertinent.models.interchange import export_hugging_face

    artifact = open_artifact(config.model or shipped_folder(), kind="model")
    network, pairs = load_network(artifact)
    calibration = calibration_from(artifact.json(CALIBRATION_FILE)) if artifact.has(CALIBRATION_FILE) else Platt()
    if not isinstance(calibration, Platt):
        raise ArtifactError(
            f"{artifact.path}: its calibration is isotonic, which the classifier of a plain BERT cannot express; "
            "train with `calibration: platt` or `calibration: none`"
        )
    out = _wanted_out(config)
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
    out = _wanted_out(config)
    metrics: dict[str, Any] = {}
    with write_artifact(out, "model", config.plain(), {}, metrics) as folder:
        save_network(folder, network, pairs)
        metrics["onnx_difference"] = write_graph(network, folder)
    return open_artifact(out, kind="model")


def _wanted_out(config: ExportConfig) -> Path:
    if config.out is None:
        raise ConfigError("out: is required to turn a model into another format; give the folder to write")
    return Path(config.out)


def write_golden(folder: str | Path, pairs: Sequence[Pair], network: Any, tokenizer: Any) -> None:
    """Write ``golden.json``: some 20 pairs, and the logits each backend of the open folder gives them."""
    folder = Path(folder)
    reference = TorchBackend(_as_saved(network, folder), 1)
    logits = {"float32": golden_logits(Scorer(reference, tokenizer).pair_logits, pairs)}
    if (folder / INT8_GRAPH_FILE).is_file():
        backend = OnnxInt8Backend(open_session(folder / INT8_GRAPH_FILE, folder / WEIGHTS_FILE), 1)
        logits[backend.name] = golden_logits(Scorer(backend, tokenizer).pair_logits, pairs)
    rounded = {name: [round(float(value), 7) for value in values] for name, values in logits.items()}
    write_json(folder / GOLDEN_FILE, {"pairs": [list(pair) for pair in pairs], "logits": rounded})


def int8_gate(folder: Path, pairs: Any, judgments: Sequence[Judgment], config: ExportConfig) -> Gate:
    """How int8 compares with float32 in a folder being written.

    On the first ``config.pairs`` judgments, those of the split ``train`` left out.
    """
    judged = _held_out(judgments)[: config.pairs]
    texts = [Pair(j.query, j.title) for j in judged]
    cores = available_cores()
    scores = []
    for kind, graph in ((OnnxBackend, GRAPH_FILE), (OnnxInt8Backend, INT8_GRAPH_FILE)):
        backend = kind(open_session(folder / graph, folder / WEIGHTS_FILE), cores)
        scores.append(Scorer(backend, pairs).pair_logits(texts))
    exact, rounded = scores
    grades = np.array([j.grade for j in judged])
    agreement = spearman(exact, rounded)
    top = min(config.top, len(judged))
    overlap = len({*_top(exact, top)} & {*_top(rounded, top)}) / top
    loss = spearman(exact, grades) - spearman(rounded, grades)
    reasons = []
    if len(judged) < EVIDENCE * config.top:
        reasons.append(
            f"{len(judged)} judged pairs are too few to compare the top {config.top}, "
            f"at least {EVIDENCE * config.top} are wanted"
        )
    if len(np.unique(grades)) < 2:
        reasons.append("all grades are equal, so they tell nothing about an order")
    elif not loss <= config.max_judged_loss:
        reasons.append(f"rank correlation with the grades falls by {loss:.4f}, at most {config.max_judged_loss} may go")
    if not agreement >= config.min_spearman:
        reasons.append(f"rank correlation with float32 is {agreement:.5f}, at least {config.min_spearman} is wanted")
    if not overlap >= config.min_top_overlap:
        reasons.append(
            f"{overlap:.0%} of the top {top} pairs are the same, at least {config.min_top_overlap:.0%} are wanted"
        )
    return Gate(not reasons, len(judged), agreement, overlap, loss, reasons)


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


def _top(scores: NDArray[np.float32], count: int) -> list[int]:
    return [int(row) for row in np.argsort(-scores, kind="stable")[:count]]


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


def _trace(network: Any) -> Any:
    """The network as an ONNX model with all weights inside, batch and length free."""
    torch = need("torch", extra="train")
    need("onnxscript", extra="train")
    from pertinent.models.blocks import relevance_logit

    class Relevance(torch.nn.Module):  # type: ignore[name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, token_ids: Any, mask: Any, segment_ids: Any, position_ids: Any, term_class_ids: Any) -> Any:
            return relevance_logit(self.network(token_ids, mask, segment_ids, position_ids, term_class_ids))

    first = next(ragged_batches(network.config)).inputs()
    example = tuple(torch.from_numpy(first[name]) for name in MODEL_INPUTS)
    free = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            Relevance().eval(),
            example,
            dynamo=True,
            verbose=False,
            opset_version=OPSET,
            input_names=list(MODEL_INPUTS),
            output_names=["logit"],
            dynamic_shapes=tuple(free for _ in MODEL_INPUTS),
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
        if tensor.data_type == onnx.TensorProto.FLOAT and int(np.prod(tensor.dims)) >= _EXTERNAL_FROM:
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


def _keep_if_equal(model: Any, network: Any, folder: Path) -> float:
    aside = folder / f".{GRAPH_FILE}.part"
    try:
        aside.write_bytes(model.SerializeToString())
        exported = OnnxBackend(open_session(aside, folder / WEIGHTS_FILE), 1)
        reference = TorchBackend(network, 1)
        worst = 0.0
        for batch in ragged_batches(network.config):
            difference = np.abs(exported.forward(batch) - reference.forward(batch))
            worst = max(worst, float(difference.max(initial=0.0)))
            if not (np.isfinite(difference).all() and worst <= PARITY):
                raise ArtifactError(
                    f"the exported graph differs from torch by {worst:.2g} (at most {PARITY} is allowed), "
                    "so it is not kept; score with the backend 'torch'"
                )
        aside.replace(folder / GRAPH_FILE)
    finally:
        aside.unlink(missing_ok=True)
    return worst


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
