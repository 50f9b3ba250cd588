"""The native engine as a backend: exact scores from token rows, on all cores, without torch or ONNX Runtime.

Unlike the others it does not want padded batches. Its C++ kernels take the rows of queries and items as
they are stored, compute what depends on one text only once, and pad nothing (``docs/engine.md``).
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Collection
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from pertinent.artifact import Artifact
from pertinent.engine.arrays import Ragged
from pertinent.errors import ArtifactError, ConfigError, DataError
from pertinent.lexicon.pairs import CONTROL_TOKENS, TOKENIZER_FILE, PairConfig
from pertinent.models.store import MODEL_FILE, TOKEN_ROWS, WEIGHTS_FILE, load_pairs, model_settings
from pertinent.models.weights import SCALE, read_weight, weight_names
from pertinent.records import TokenBatch, TokenRows

MODULE = "pertinent.engine._native"
NETWORKS = ("ei_src",)
NATIVE_GATE_FILE = "native_int8.json"
TERM_CLASS_ROWS = "embeddings.term_class.weight"


def native_module() -> Any | None:
    """The compiled module, or None where this installation has none."""
    try:
        return importlib.import_module(MODULE)
    except ImportError:
        return None


def usable(artifact: Artifact) -> bool:
    """Whether the native engine is built here and knows the kind of network that the model is."""
    return model_settings(artifact)["network"].get("type", "ei_src") in NETWORKS and native_module() is not None


class NativeBackend:
    """Runs the exact schedule in C++. One call uses all threads; calls from several threads are safe too."""

    name = "native"

    def __init__(self, engine: Any, specials: tuple[int, int], threads: int) -> None:
        self._engine = engine
        self._cls, self._sep = specials
        self.workers = threads

    @classmethod
    def open(cls, artifact: Artifact, threads: int, instructions: str | None = None) -> Self:
        """The engine over a model artifact; ``instructions`` is one of those of ``native_module``, None the best here.

        Raises ConfigError where the module was not built, ArtifactError where weights and sizes do not fit.
        """
        engine, specials = _open_engine(artifact, instructions, [])
        return cls(engine, specials, threads)

    @property
    def instructions(self) -> str:
        """The instruction set in use: avx512vnni, avx512, avx2 or portable."""
        return str(self._engine.instructions)

    def forward_rows(
        self,
        queries: TokenRows,
        query_rows: NDArray[np.int64],
        items: TokenRows,
        item_rows: NDArray[np.int64],
        threads: int | None = None,
    ) -> NDArray[np.float32]:
        """The logit of each pair of rows, ``[n]``, in the order given. ``threads`` None takes all that were given."""
        arguments = (*_arrays(queries, query_rows), *_arrays(items, item_rows))
        try:
            logits: NDArray[np.float32] = self._engine.score(*arguments, self.workers if threads is None else threads)
        except ValueError as error:
            raise DataError(f"token rows are not those of the model: {error}", fix="index the items again") from None
        return logits

    @property
    def state_width(self) -> int:
        """Numbers that a state of an item has (``pertinent.models.joining``); 0 where the network joins early."""
        return int(self._engine.state_width)

    def join_rows(
        self,
        queries: TokenRows,
        query_rows: NDArray[np.int64],
        states: Ragged,
        item_rows: NDArray[np.int64],
        threads: int | None = None,
    ) -> NDArray[np.float32]:
        """As ``forward_rows`` for a late join, with items whose ``states`` float16 ``[rows, width]`` are known."""
        values = np.ascontiguousarray(states.values, dtype=np.float16).view(np.uint16)
        offsets = np.ascontiguousarray(states.offsets, dtype=np.int64)
        chosen = np.ascontiguousarray(item_rows, dtype=np.int64)
        workers = self.workers if threads is None else threads
        try:
            logits: NDArray[np.float32] = self._engine.join(
                *_arrays(queries, query_rows), values, offsets, chosen, workers
            )
        except ValueError as error:
            raise DataError(f"item states are not those of the model: {error}", fix="index the items again") from None
        return logits

    def forward(self, batch: TokenBatch) -> NDArray[np.float32]:
        """The relevance logit of each pair of a padded batch, ``[batch]``, on this thread."""
        places = np.arange(len(batch))
        queries, items = batch.blocks()
        return self.forward_rows(queries, places, items, places, threads=1)


class NativeInt8Backend(NativeBackend):
    """The same schedule with 8-bit products, for models that have passed the gate of ``pertinent export``.

    Each row of numbers has a scale of its own, so that a score does not depend on the other titles of the call, as
    in float32. What stays float32: word vectors, attention, the parts that the gate named, and the head.
    """

    name = "native-int8"

    @classmethod
    def open(cls, artifact: Artifact, threads: int, instructions: str | None = None) -> Self:
        """The engine with the parts in 8 bits that the gate let pass. Raises ArtifactError where it let none pass."""
        export = f"run: pertinent export {artifact.path} --int8 --judgments FILE --out FOLDER"
        if not artifact.has(NATIVE_GATE_FILE):
            raise ArtifactError(f"{artifact.path}: has no {NATIVE_GATE_FILE}; {export}, or score with 'native'")
        found = artifact.json(NATIVE_GATE_FILE)
        try:
            passed, rounded, reasons = bool(found["passed"]), list(found["cheap"]), list(found["reasons"])
        except (KeyError, TypeError) as error:
            raise ArtifactError(
                f"{artifact.path / NATIVE_GATE_FILE}: not the outcome of a gate ({type(error).__name__} {error}); "
                f"{export}"
            ) from None
        if not passed:
            why = "; ".join(str(reason) for reason in reasons)
            raise ArtifactError(f"{artifact.path}: 8-bit products did not pass the gate ({why}); score with 'native'")
        return cls.open_rounded(artifact, threads, rounded, instructions)

    @classmethod
    def open_rounded(
        cls, artifact: Artifact, threads: int, rounded: Collection[str], instructions: str | None = None
    ) -> Self:
        """The engine with the given parts in 8 bits, whatever a gate says about it."""
        parts = native_parts(artifact)
        unknown = [part for part in rounded if part not in parts]
        if unknown:
            raise ArtifactError(f"{artifact.path}: the network has no part {unknown[0]!r}; it has {', '.join(parts)}")
        engine, specials = _open_engine(artifact, instructions, [part in rounded for part in parts])
        return cls(engine, specials, threads)


def native_parts(artifact: Artifact) -> list[str]:
    """The parts of the network that the native engine can compute in 8 bits: two a layer, in its order."""
    layers = int(model_settings(artifact)["network"].get("layers", 0))
    return [f"layer {layer} {part}" for layer in range(layers) for part in ("attention", "feed-forward")]


def _open_engine(artifact: Artifact, instructions: str | None, rounded: list[bool]) -> tuple[Any, tuple[int, int]]:
    """The C++ engine over a model artifact, and the ids of ``[CLS]`` and ``[SEP]``."""
    module = native_module()
    if module is None:
        raise ConfigError(
            "the native engine was not built when pertinent was installed; install a C++ compiler and run: "
            "pip install --force-reinstall --no-deps pertinent, or score with the backend 'onnx'"
        )
    settings = model_settings(artifact)
    kind = settings["network"].get("type", "ei_src")
    if kind not in NETWORKS:
        raise ConfigError(
            f"{artifact.path}: the native engine computes {', '.join(NETWORKS)}, not {kind}; "
            "score with the backend 'onnx' or 'torch'"
        )
    specials = special_ids(artifact)
    weights, token_rows, scales = _weights(artifact)
    sizes = _sizes(settings, weights, token_rows) | {"cls": specials[0], "sep": specials[1]}
    try:
        return module.Engine(sizes, weights, token_rows, scales, instructions, rounded), specials
    except (ValueError, TypeError) as error:
        raise ArtifactError(f"{artifact.path / WEIGHTS_FILE}: does not fit {MODEL_FILE}: {error}") from None


def special_ids(artifact: Artifact) -> tuple[int, int]:
    """The ids of ``[CLS]`` and ``[SEP]``."""
    try:
        added = json.loads(artifact.file(TOKENIZER_FILE).read_bytes())["added_tokens"]
        ids = {entry["content"]: int(entry["id"]) for entry in added}
        return ids[CONTROL_TOKENS[0]], ids[CONTROL_TOKENS[1]]
    except (KeyError, TypeError, ValueError):  # an unusual file: the tokenizer itself knows
        pairs = load_pairs(artifact)
        return pairs.cls_id, pairs.sep_id


def _weights(artifact: Artifact) -> tuple[dict[str, NDArray[np.float32]], NDArray[Any], NDArray[np.float32] | None]:
    """All weights as float32 but the word vectors, those as stored where they are int8, and their scales."""
    from safetensors import SafetensorError, safe_open

    path = artifact.file(WEIGHTS_FILE)
    try:
        with safe_open(path, framework="np") as file:
            names = weight_names(file) - {TOKEN_ROWS}
            weights = {name: np.ascontiguousarray(read_weight(file, name), dtype=np.float32) for name in sorted(names)}
            rows = file.get_tensor(TOKEN_ROWS)
            scales = file.get_tensor(TOKEN_ROWS + SCALE) if rows.dtype == np.int8 else None
    except (SafetensorError, OSError) as error:
        raise ArtifactError(f"{path}: not readable as safetensors ({error}); the file is damaged") from None
    return weights, rows if scales is not None else np.ascontiguousarray(rows, dtype=np.float32), scales


def _sizes(
    settings: dict[str, Any], weights: dict[str, NDArray[np.float32]], token_rows: NDArray[Any]
) -> dict[str, Any]:
    """What the engine must know, from the settings of a model and the shapes of its weights, which it checks."""
    network = settings["network"]
    pairs = PairConfig.build(settings["pairs"], f"{MODEL_FILE}: pairs")
    try:
        return {
            "vocabulary": len(token_rows),
            "hidden": token_rows.shape[1],
            "layers": int(network["layers"]),
            "heads": int(network["heads"]),
            "feed_forward": int(network["feed_forward_size"]),
            "positions": int(network["max_positions"]),
            "classes": len(weights[TERM_CLASS_ROWS]) if network["term_classes"] else 0,
            "labels": int(network["labels"]),
            "epsilon": float(network["layer_norm_eps"]),
            "query_length": pairs.query_length,
            "item_length": pairs.item_length,
            "running": pairs.positions == "running",
            "join_layer": int(network.get("join_layer", 0)),
            "one_way": bool(network.get("one_way", False)),
        }
    except (KeyError, TypeError, ValueError) as error:
        raise ArtifactError(f"{MODEL_FILE}: network: {type(error).__name__} {error}; the file is damaged") from None


def _arrays(rows: TokenRows, chosen: NDArray[np.int64]) -> tuple[Any, ...]:
    """What the engine takes of one side, of the types it reads; arrays that have them are not copied."""
    classes = None if rows.term_classes is None else np.ascontiguousarray(rows.term_classes, dtype=np.int8)
    return (
        np.ascontiguousarray(rows.ids, dtype=np.int32),
        np.ascontiguousarray(rows.offsets, dtype=np.int64),
        classes,
        np.ascontiguousarray(chosen, dtype=np.int64),
    )
