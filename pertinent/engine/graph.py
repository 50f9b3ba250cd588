"""What is inside an ONNX file, read without the onnx package, and whether it is safe to run.

A graph file is data from elsewhere. Before ONNX Runtime sees it, it is walked as plain protobuf:
operators must be on a list, control flow, functions, custom domains and huge files are refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from math import prod

from pertinent.errors import ArtifactError

GRAPH_FILE = "graph.onnx"
INT8_GRAPH_FILE = "graph.int8.onnx"
# Of a model that joins query and title late: titles ahead of the query, and a query with such titles.
AHEAD_GRAPH_FILE = "graph.ahead.onnx"
JOIN_GRAPH_FILE = "graph.join.onnx"
AHEAD_INPUTS = ("token_ids", "mask", "position_ids", "term_class_ids")
JOIN_INPUTS = ("token_ids", "position_ids", "term_class_ids", "item_states", "item_mask")
MAX_GRAPH_BYTES = 256 * 2**20
MAX_TENSOR_ELEMENTS = 2**29
# Stored weights that a graph reads transposed have this after their name.
TRANSPOSED = "^T"
_FLOAT = 1  # TensorProto.DataType.FLOAT

# What an encoder needs, in fp32 and int8: arithmetic, shapes and look-ups. No control flow, no
# text, no random numbers, nothing that reads a file.
_ALLOWED = """
    Abs Add And Attention Cast CastLike Ceil Clip Concat Constant ConstantOfShape CumSum DequantizeLinear Div
    DynamicQuantizeLinear Einsum Equal Erf Exp Expand Flatten Floor Gather GatherElements GatherND Gelu Gemm
    Greater GreaterOrEqual Identity IsInf IsNaN LayerNormalization Less LessOrEqual Log LogSoftmax LpNormalization
    MatMul MatMulInteger Max Mean Min Mod Mul Neg Not Or Pow QuantizeLinear Range Reciprocal ReduceL2 ReduceMax
    ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare Relu Reshape RMSNormalization Shape Sigmoid Sign
    Size Slice Softmax Softplus Split Sqrt Squeeze Sub Sum Tanh Tile TopK Transpose Trilu Unsqueeze Where Xor
"""
ALLOWED_OPS = frozenset(_ALLOWED.split())


@dataclass(slots=True)
class GraphSummary:
    """Operators, inputs and outputs of a graph; ``external`` has the shapes of weights kept elsewhere."""

    operators: set[str] = field(default_factory=set)
    inputs: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    external: dict[str, tuple[int, ...]] = field(default_factory=dict)


def check_graph(content: bytes, source: str) -> GraphSummary:
    """The summary of a graph file that is safe to run. Raises ArtifactError naming what is not."""
    if len(content) > MAX_GRAPH_BYTES:
        raise ArtifactError(
            f"{source}: has {len(content):,} bytes, at most {MAX_GRAPH_BYTES:,} are read; export the model again"
        )
    summary = GraphSummary()
    try:
        _model(content, summary, source)
    except (ValueError, IndexError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{source}: not a readable ONNX graph ({error}); export the model again") from None
    refused = sorted(summary.operators - ALLOWED_OPS)
    if refused:
        raise ArtifactError(
            f"{source}: refuses the operators {', '.join(refused)}: they are not among the {len(ALLOWED_OPS)} that "
            "a relevance model needs; export the model with 'pertinent export'"
        )
    if not summary.outputs:
        raise ArtifactError(f"{source}: has no graph output; export the model again")
    return summary


def fields(message: bytes | memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Field numbers and values of one protobuf message: integers, or bytes as a view.

    >>> [(number, value if isinstance(value, int) else bytes(value))
    ...  for number, value in fields(bytes([8, 150, 1, 18, 2, 72, 105]))]
    [(1, 150), (2, b'Hi')]
    """
    view, place = memoryview(message), 0
    while place < len(view):
        key, place = _varint(view, place)
        kind = key & 7
        if kind == 0:
            value, place = _varint(view, place)
            yield key >> 3, value
            continue
        if kind == 2:
            size, place = _varint(view, place)
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
        else:
            raise ValueError(f"protobuf wire type {kind}")
        if place + size > len(view):
            raise ValueError("the file is cut")
        yield key >> 3, view[place : place + size]
        place += size


def _varint(view: memoryview, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if place >= len(view):
            raise ValueError("the file is cut")
        byte = view[place]
        place += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, place
        shift += 7
        if shift > 63:
            raise ValueError("a number has more than 64 bits")


def _bytes(value: int | memoryview) -> memoryview:
    if isinstance(value, int):
        raise ValueError("a number where a message is expected")
    return value


def _text(value: int | memoryview) -> str:
    return bytes(_bytes(value)).decode("utf-8")


# Field numbers below are those of onnx.proto: they never change.
def _model(content: bytes, summary: GraphSummary, source: str) -> None:
    graphs = 0
    for number, value in fields(content):
        if number == 7:
            graphs += 1
            _graph(_bytes(value), summary, source)
        elif number in (20, 25):
            raise ArtifactError(f"{source}: holds functions or training steps, which are refused; export it again")
    if graphs != 1:
        raise ValueError(f"{graphs} graphs")


def _graph(message: memoryview, summary: GraphSummary, source: str) -> None:
    for number, value in fields(message):
        if number == 1:
            _node(_bytes(value), summary, source)
        elif number == 5:
            _initializer(_bytes(value), summary, source)
        elif number == 15:
            raise ArtifactError(f"{source}: holds sparse weights, which are refused; export it again")
        elif number in (11, 12):
            names = summary.inputs if number == 11 else summary.outputs
            names.extend(_text(part) for key, part in fields(_bytes(value)) if key == 1)


def _node(message: memoryview, summary: GraphSummary, source: str) -> None:
    operator = domain = ""
    for number, value in fields(message):
        if number == 4:
            operator = _text(value)
        elif number == 7:
            domain = _text(value)
        elif number == 5:
            _attribute(_bytes(value), source)
    summary.operators.add(operator if domain in ("", "ai.onnx") else f"{domain}.{operator}")


def _attribute(message: memoryview, source: str) -> None:
    for number, value in fields(message):
        if number in (6, 11):
            raise ArtifactError(f"{source}: holds a graph inside a graph (control flow), which is refused")
        if number in (5, 10) and _tensor(_bytes(value))[3]:
            raise ArtifactError(f"{source}: an attribute points to another file, which is refused")
        if number in (22, 23):
            raise ArtifactError(f"{source}: holds sparse weights, which are refused; export it again")


def _initializer(message: memoryview, summary: GraphSummary, source: str) -> None:
    name, shape, kind, external = _tensor(message)
    if prod(shape) > MAX_TENSOR_ELEMENTS or any(size < 0 for size in shape):
        raise ArtifactError(f"{source}: weight {name!r} has shape {shape}, which is beyond the limit")
    if external:
        if kind != _FLOAT:
            raise ArtifactError(f"{source}: weight {name!r} is kept elsewhere but is not float32")
        summary.external[name] = shape


def _tensor(message: memoryview) -> tuple[str, tuple[int, ...], int, bool]:
    name, kind, external = "", 0, False
    shape: list[int] = []
    for number, value in fields(message):
        if number == 1:
            shape.extend(_numbers(value))
        elif number == 2 and isinstance(value, int):
            kind = value
        elif number == 8:
            name = _text(value)
        elif number == 13 or (number == 14 and value == 1):
            external = True
    return name, tuple(shape), kind, external


def _numbers(value: int | memoryview) -> Iterator[int]:
    if isinstance(value, int):
        yield value
        return
    place = 0
    while place < len(value):
        number, place = _varint(value, place)
        yield number
