from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import save_file

from pertinent.artifact import Artifact
from pertinent.engine import graph as graph_module
from pertinent.engine.graph import check_graph, fields
from pertinent.engine.onnx_backend import open_session
from pertinent.errors import ArtifactError


def model_of(nodes: list[Any], initializers: list[Any] | None = None, **more: Any) -> bytes:
    inputs = [helper.make_tensor_value_info("token_ids", TensorProto.INT64, ["batch", "length"])]
    outputs = [helper.make_tensor_value_info("logit", TensorProto.FLOAT, ["batch"])]
    content = helper.make_graph(nodes, "main", inputs, outputs, initializers or [])
    model = helper.make_model(content, opset_imports=[helper.make_opsetid("", 20)], ir_version=10, **more)
    data: bytes = model.SerializeToString()
    return data


CAST = helper.make_node("Cast", ["token_ids"], ["logit"], to=TensorProto.FLOAT)


def test_a_good_graph_is_summed_up() -> None:
    weight = numpy_helper.from_array(np.ones((2, 3), dtype=np.float32), "weight")
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="model.safetensors")
    summary = check_graph(model_of([CAST], [weight]), "graph.onnx")
    assert summary.operators == {"Cast"}
    assert (summary.inputs, summary.outputs) == (["token_ids"], ["logit"])
    assert summary.external == {"weight": (2, 3)}


def test_the_walk_agrees_with_the_onnx_package(tiny_artifact: Artifact) -> None:
    path = tiny_artifact.file("graph.onnx")
    summary = check_graph(path.read_bytes(), str(path))
    model = onnx.load(path, load_external_data=False)
    assert summary.operators == {node.op_type for node in model.graph.node}
    assert summary.inputs == [value.name for value in model.graph.input]
    outside = {t.name: tuple(t.dims) for t in model.graph.initializer if t.data_location == TensorProto.EXTERNAL}
    assert summary.external == outside
    assert len(outside) > 20


def _branch() -> Any:
    return helper.make_graph([CAST], "branch", [], [helper.make_tensor_value_info("logit", TensorProto.FLOAT, None)])


def _external(kind: int) -> Any:
    tensor = helper.make_tensor("weight", kind, [1], [1])
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="/etc/passwd")
    return tensor


def _sparse() -> Any:
    values = helper.make_tensor("values", TensorProto.FLOAT, [1], [1.0])
    places = helper.make_tensor("places", TensorProto.INT64, [1], [0])
    return helper.make_sparse_tensor(values, places, [3])


BAD = {
    "unknown operator": (
        lambda: model_of([helper.make_node("RandomNormal", [], ["logit"], shape=[1])]),
        "RandomNormal",
    ),
    "custom domain": (
        lambda: model_of([helper.make_node("Cast", ["token_ids"], ["logit"], domain="evil")]),
        "evil.Cast",
    ),
    "control flow": (
        lambda: model_of(
            [helper.make_node("If", ["token_ids"], ["logit"], then_branch=_branch(), else_branch=_branch())]
        ),
        "control flow",
    ),
    "attribute elsewhere": (
        lambda: model_of([helper.make_node("Constant", [], ["logit"], value=_external(TensorProto.FLOAT))]),
        "points to another file",
    ),
    "sparse attribute": (
        lambda: model_of([helper.make_node("Constant", [], ["logit"], sparse_value=_sparse())]),
        "sparse weights",
    ),
    "weight of another type elsewhere": (lambda: model_of([CAST], [_external(TensorProto.INT64)]), "not float32"),
    "huge shape": (
        lambda: model_of([CAST], [TensorProto(name="weight", data_type=1, dims=[2**20, 2**20])]),
        "beyond the limit",
    ),
    "function": (
        lambda: model_of(
            [CAST],
            functions=[helper.make_function("d", "f", ["x"], ["y"], [helper.make_node("Abs", ["x"], ["y"])], [])],
        ),
        "functions",
    ),
    "empty": (lambda: b"", "0 graphs"),
    "error page": (lambda: b"<html><body>404 not found</body></html>", "not a readable ONNX graph"),
    "cut": (lambda: model_of([CAST])[:-9], "is cut"),
    "endless number": (lambda: b"\xff" * 40, "64 bits"),
    "number for a graph": (lambda: b"\x38\x01", "a number where a message"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_graphs_are_refused_with_the_reason(name: str) -> None:
    make, reason = BAD[name]
    with pytest.raises(ArtifactError, match=reason) as caught:
        check_graph(make(), "folder/graph.onnx")
    assert "folder/graph.onnx" in str(caught.value)


def test_no_output_sparse_and_oversized_graphs_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = onnx.ModelProto.FromString(model_of([CAST]))
    del model.graph.output[:]
    with pytest.raises(ArtifactError, match="no graph output"):
        check_graph(model.SerializeToString(), "g")
    model.graph.sparse_initializer.add()
    with pytest.raises(ArtifactError, match="sparse"):
        check_graph(model.SerializeToString(), "g")
    monkeypatch.setattr(graph_module, "MAX_GRAPH_BYTES", 10)
    with pytest.raises(ArtifactError, match="at most 10 are read"):
        check_graph(model_of([CAST]), "g")


def test_unpacked_dims_and_fixed_width_fields_are_read() -> None:
    assert [number for number, _ in fields(b"\x0d\x00\x00\x00\x00\x11" + bytes(8))] == [1, 2]
    tensor = b"\x08\x02\x08\x03\x10\x01\x42\x01w\x70\x01"  # dims 2, 3 one by one; float; name w; external
    summary = graph_module.GraphSummary()
    graph_module._initializer(memoryview(tensor), summary, "g")
    assert summary.external == {"w": (2, 3)}
    with pytest.raises(ValueError, match="wire type"):
        list(fields(b"\x0b"))


def _graph_with_weight(path: Path, shape: tuple[int, ...] = (3,), name: str = "weight") -> None:
    weight = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=shape)
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="model.safetensors")
    nodes = [helper.make_node("Cast", ["token_ids"], ["x"], to=1), helper.make_node("Add", ["x", name], ["logit"])]
    path.write_bytes(model_of(nodes, [weight]))


def test_weights_reach_the_session_as_float32(tmp_path: Path) -> None:
    _graph_with_weight(tmp_path / "graph.onnx")
    save_file({"weight": np.array([1, 2, 3], dtype=np.float16)}, tmp_path / "model.safetensors")
    session = open_session(tmp_path / "graph.onnx", tmp_path / "model.safetensors")
    assert session.run(["logit"], {"token_ids": np.zeros((1, 3), dtype=np.int64)})[0].tolist() == [[1.0, 2.0, 3.0]]


@pytest.mark.parametrize(
    ("stored", "reason"),
    [({"other": np.ones(3)}, "has no weight 'weight'"), ({"weight": np.ones(4)}, "the graph needs")],
)
def test_weights_that_do_not_fit_are_refused(tmp_path: Path, stored: dict[str, Any], reason: str) -> None:
    _graph_with_weight(tmp_path / "graph.onnx")
    save_file({key: value.astype(np.float32) for key, value in stored.items()}, tmp_path / "model.safetensors")
    with pytest.raises(ArtifactError, match=reason):
        open_session(tmp_path / "graph.onnx", tmp_path / "model.safetensors")


def test_broken_weights_and_graphs_that_do_not_run_are_refused(tmp_path: Path) -> None:
    _graph_with_weight(tmp_path / "graph.onnx")
    (tmp_path / "model.safetensors").write_bytes(b"<html>")
    with pytest.raises(ArtifactError, match="not readable as safetensors"):
        open_session(tmp_path / "graph.onnx", tmp_path / "model.safetensors")
    (tmp_path / "graph.onnx").write_bytes(model_of([helper.make_node("Relu", ["nowhere"], ["logit"])]))
    save_file({"weight": np.ones(3, dtype=np.float32)}, tmp_path / "model.safetensors")
    with pytest.raises(ArtifactError, match="cannot open it"):
        open_session(tmp_path / "graph.onnx", tmp_path / "model.safetensors")


def test_a_graph_with_other_inputs_is_refused(tmp_path: Path) -> None:
    model = onnx.ModelProto.FromString(model_of([CAST]))
    model.graph.input[0].name = "pixels"
    (tmp_path / "graph.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ArtifactError, match="reads pixels"):
        open_session(tmp_path / "graph.onnx", tmp_path / "model.safetensors")
