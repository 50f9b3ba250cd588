"""Weights on disk as float32, float16, or int8 with one scale a row; always float32 in memory.

``int8`` keeps a matrix as whole numbers from -127 to 127 and, under ``NAME.scale``, the size of
one step for each row: a quarter of the bytes of float32, and each weight within half a step.
Vectors (biases, norms) stay float32. Needs numpy and safetensors only.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pertinent.errors import ArtifactError

WeightsType = Literal["float32", "float16", "int8"]
SCALE = ".scale"


def pack(weights: Mapping[str, NDArray[Any]], dtype: WeightsType) -> dict[str, NDArray[Any]]:
    """The arrays to store for the given weights.

    >>> packed = pack({"w": np.array([[0.5, -1.0], [0.0, 0.0]], dtype=np.float32)}, "int8")
    >>> packed["w"].tolist(), packed["w.scale"].shape
    ([[64, -127], [0, 0]], (2,))
    """
    stored: dict[str, NDArray[Any]] = {}
    for name, value in weights.items():
        if value.dtype.kind != "f":
            stored[name] = value
        elif dtype == "int8" and value.ndim == 2:
            scale = (np.abs(value).max(axis=1) / 127).astype(np.float32)  # [rows]
            steps = np.divide(
                value, scale[:, None], out=np.zeros_like(value, dtype=np.float32), where=scale[:, None] > 0
            )
            # A scale too small for float32 to hold well would push the largest step beyond 127.
            stored[name], stored[name + SCALE] = np.rint(steps).clip(-127, 127).astype(np.int8), scale
        else:
            with np.errstate(over="ignore"):  # beyond 65,504 float16 has infinity; who stores it refuses that
                stored[name] = value.astype(np.float16 if dtype == "float16" else np.float32)
    return {name: np.ascontiguousarray(value) for name, value in stored.items()}


def unpack(stored: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """The weights that ``pack`` was given, as near as its type keeps them.

    >>> unpack(pack({"b": np.array([0.25], dtype=np.float32)}, "float16"))["b"].tolist()
    [0.25]
    """
    return {
        name: _restore(value, stored.get(name + SCALE)) for name, value in stored.items() if not _is_scale(name, stored)
    }


def weight_names(file: Any) -> set[str]:
    """The names of the weights in an open safetensors file, without the scales that belong to them."""
    names = set(file.keys())
    return {name for name in names if not _is_scale(name, names)}


def read_weight(file: Any, name: str) -> NDArray[Any]:
    """One weight of an open safetensors file, as float32."""
    value = file.get_tensor(name)
    return _restore(value, file.get_tensor(name + SCALE) if value.dtype == np.int8 else None)


def load_weights(path: str | Path) -> dict[str, NDArray[Any]]:
    """All weights of a file, as float32. Raises ArtifactError when it is damaged."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            return {name: read_weight(file, name) for name in sorted(weight_names(file))}
    except (SafetensorError, OSError) as error:
        raise ArtifactError(f"{path}: not readable as safetensors ({error}); the file is damaged") from None


def _is_scale(name: str, names: Any) -> bool:
    return name.endswith(SCALE) and name.removesuffix(SCALE) in names


def _restore(value: NDArray[Any], scale: NDArray[Any] | None) -> NDArray[Any]:
    if scale is not None:
        return value.astype(np.float32) * scale[:, None]
    return value.astype(np.float32) if value.dtype.kind == "f" else value
