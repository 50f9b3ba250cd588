"""ONNX Runtime backends, float32 and int8. No torch, no onnx package.

A graph file holds the computation; its float32 weights stay in ``model.safetensors``, where they
are stored once for every backend (also as float16 or int8), and are handed to the session at load.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from pertinent.artifact import Artifact, unchanged
from pertinent.engine.graph import (
    AHEAD_GRAPH_FILE,
    AHEAD_INPUTS,
    GRAPH_FILE,
    INT8_GRAPH_FILE,
    JOIN_GRAPH_FILE,
    JOIN_INPUTS,
    TRANSPOSED,
    check_graph,
)
from pertinent.errors import ArtifactError
from pertinent.models.store import WEIGHTS_FILE
from pertinent.models.weights import read_weight, weight_names
from pertinent.records import MODEL_INPUTS, TokenBatch


class OnnxBackend:
    """Runs ``graph.onnx``: one session, whose every run stays on the thread that calls it.

    On small networks two single-threaded runs side by side beat one run on two threads, so the
    scorer calls ``forward`` from ``workers`` threads.
    """

    name = "onnx"
    graph_file = GRAPH_FILE

    def __init__(self, session: Any, workers: int, artifact: Artifact | None = None) -> None:
        self._session = session
        self._inputs = [entry.name for entry in session.get_inputs()]
        self.workers = workers
        self._artifact = artifact
        self._late: dict[str, Any] = {}
        self._lock = threading.Lock()

    @classmethod
    def open(cls, artifact: Artifact, threads: int) -> Self:
        """The session over a model artifact. Raises ArtifactError for a missing or unsafe graph."""
        if not artifact.has(cls.graph_file):
            int8 = cls.graph_file == INT8_GRAPH_FILE
            options = "--int8 --judgments FILE --out FOLDER" if int8 else "--no-int8"
            raise ArtifactError(
                f"{artifact.path}: has no {cls.graph_file}; run: pertinent export {artifact.path} {options}, "
                "or score with the backend 'torch'"
            )
        return cls(open_session(artifact.file(cls.graph_file), artifact.file(WEIGHTS_FILE)), threads, artifact)

    def forward(self, batch: TokenBatch) -> NDArray[np.float32]:
        """The relevance logit of each pair, ``[batch]``."""
        if len(batch) == 0:
            return np.zeros(0, dtype=np.float32)
        inputs = batch.inputs()
        result: NDArray[np.float32] = self._session.run(["logit"], {name: inputs[name] for name in self._inputs})[0]
        return result

    def ahead(self, inputs: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        """What a late join knows of titles before the query, ``[batch, length, state width]``, in float32."""
        return self._run_late(AHEAD_GRAPH_FILE, AHEAD_INPUTS, "states", inputs)

    def join(self, inputs: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        """The relevance logits of one query with titles known ahead, ``[batch]``; states in float16."""
        return self._run_late(JOIN_GRAPH_FILE, JOIN_INPUTS, "logit", inputs)

    def _run_late(
        self, name: str, wanted: Sequence[str], output: str, inputs: Mapping[str, NDArray[Any]]
    ) -> NDArray[np.float32]:
        with self._lock:
            if name not in self._late:
                if self._artifact is None or not self._artifact.has(name):
                    raise ArtifactError(f"{self._artifact and self._artifact.path}: has no {name}")
                weights = self._artifact.file(WEIGHTS_FILE)
                with unchanged(self._artifact):  # opened late: the folder may have been replaced
                    self._late[name] = open_session(self._artifact.file(name), weights, wanted, output)
        session = self._late[name]
        used = {entry.name: inputs[entry.name] for entry in session.get_inputs()}
        result: NDArray[np.float32] = session.run([output], used)[0]
        return result


class OnnxInt8Backend(OnnxBackend):
    """Runs ``graph.int8.onnx``: matrix products in 8 bits. Close to, not equal to, the float32 scores.

    The scales of a product follow the largest value of its batch, so a pair's logit moves a little
    with the pairs beside it.
    """

    name = "onnx-int8"
    graph_file = INT8_GRAPH_FILE


def open_session(graph: Path, weights: Path, inputs: Sequence[str] = MODEL_INPUTS, output: str = "logit") -> Any:
    """An ONNX Runtime session over a checked graph, its weights read from a safetensors file."""
    content = graph.read_bytes()
    summary = check_graph(content, str(graph))
    unknown = set(summary.inputs) - set(inputs) - summary.external.keys()
    if unknown or summary.outputs != [output]:
        raise ArtifactError(
            f"{graph}: reads {', '.join(summary.inputs)} and gives {', '.join(summary.outputs)}; expected inputs "
            f"among {', '.join(inputs)} and the one output {output}; export the model again"
        )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # what goes wrong reaches the caller as an exception
    tensors = read_weights(weights, summary.external)
    # The arrays must outlive the construction of the session, which copies or packs them.
    values = [onnxruntime.OrtValue.ortvalue_from_numpy(array) for array in tensors.values()]
    options.add_external_initializers(list(tensors), values)
    try:
        return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the runtime raises its own kinds, all plain Exceptions
        raise ArtifactError(f"{graph}: ONNX Runtime cannot open it ({str(error).splitlines()[0]})") from None


def read_weights(path: Path, wanted: Mapping[str, tuple[int, ...]]) -> dict[str, NDArray[np.float32]]:
    """The wanted weights as float32; a name that ends in ``^T`` is the transpose of a stored one."""
    found = {}
    try:
        with safe_open(path, framework="np") as file:
            stored = weight_names(file)
            for name, shape in wanted.items():
                key = name.removesuffix(TRANSPOSED)
                if key not in stored:
                    raise ArtifactError(f"{path}: has no weight {key!r}, which the graph needs; export the model again")
                array = read_weight(file, key)
                found[name] = np.ascontiguousarray(array.T if name.endswith(TRANSPOSED) else array)
                if found[name].shape != shape:
                    raise ArtifactError(
                        f"{path}: weight {key!r} has shape {found[name].shape}, the graph needs {shape}; "
                        "export the model again"
                    )
    except (SafetensorError, OSError) as error:
        raise ArtifactError(f"{path}: not readable as safetensors ({error}); the file is damaged") from None
    return found
