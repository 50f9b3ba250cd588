from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors import safe_open
from safetensors.numpy import save_file

from pertinent.errors import ArtifactError
from pertinent.models.weights import load_weights, pack, read_weight, unpack, weight_names

matrices = hnp.arrays(
    np.float32, hnp.array_shapes(min_dims=2, max_dims=2, max_side=6), elements=st.floats(-1e4, 1e4, width=32)
)


@settings(max_examples=40, deadline=None)
@given(matrices)
def test_int8_is_within_half_a_step_of_each_row(matrix: Any) -> None:
    stored = pack({"w": matrix}, "int8")
    assert stored["w"].dtype == np.int8 and stored["w.scale"].shape == (len(matrix),)
    restored = unpack(stored)["w"]
    steps = np.abs(matrix).max(axis=1) / 127
    assert (np.abs(restored - matrix) <= steps[:, None] * 0.5001 + 1e-37).all()
    assert restored.dtype == np.float32 and restored.shape == matrix.shape
    # Storing what was read changes nothing more.
    again = unpack(pack({"w": restored}, "int8"))["w"]
    np.testing.assert_allclose(again, restored, rtol=1e-6, atol=1e-37)


@settings(max_examples=40, deadline=None)
@given(matrices)
def test_float16_is_within_its_precision(matrix: Any) -> None:
    stored = pack({"w": matrix}, "float16")
    assert stored["w"].dtype == np.float16
    np.testing.assert_allclose(unpack(stored)["w"], matrix, rtol=2**-11, atol=2**-24)


@settings(max_examples=40, deadline=None)
@given(matrices)
def test_float32_is_exact(matrix: Any) -> None:
    stored = pack({"w": matrix}, "float32")
    assert stored.keys() == {"w"}
    np.testing.assert_array_equal(unpack(stored)["w"], matrix)


def test_rows_of_zeros_stay_zero_and_signs_stay() -> None:
    matrix = np.array([[0, 0, 0], [1, -1, 0.001], [-0.0, 5, -5]], dtype=np.float32)
    restored = unpack(pack({"w": matrix}, "int8"))["w"]
    assert (restored[0] == 0).all()
    np.testing.assert_allclose(restored[1:], [[1, -1, 0], [0, 5, -5]], atol=1 / 127)


def test_tiny_and_huge_values_do_not_wrap_around() -> None:
    matrix = np.array([[2e-43, -1e-43], [3e38, -3e38], [1e-38, 0]], dtype=np.float32)
    restored = unpack(pack({"w": matrix}, "int8"))["w"]
    assert (np.sign(restored) * np.sign(matrix) >= 0).all()
    np.testing.assert_allclose(restored[1:], matrix[1:], rtol=1e-2)


def test_only_matrices_of_floats_become_int8() -> None:
    weights = {
        "bias": np.array([1e-3, 1.0], dtype=np.float32),
        "cube": np.ones((2, 2, 2), dtype=np.float32),
        "ids": np.array([[1, 2]], dtype=np.int64),
        "double": np.array([[0.1]], dtype=np.float64),
        "half": np.array([0.1], dtype=np.float16),
    }
    stored = pack(weights, "int8")
    assert {name: value.dtype.name for name, value in stored.items()} == {
        "bias": "float32",
        "cube": "float32",
        "ids": "int64",
        "double": "int8",
        "double.scale": "float32",
        "half": "float32",
    }
    restored = unpack(stored)
    assert restored.keys() == weights.keys()
    assert restored["ids"].dtype == np.int64
    np.testing.assert_array_equal(restored["bias"], weights["bias"])
    assert pack({}, "int8") == unpack({}) == {}


def test_views_are_stored_as_they_look(tmp_path: Path) -> None:
    matrix = np.arange(6, dtype=np.float32).reshape(2, 3).T
    save_file(pack({"w": matrix}, "float32"), tmp_path / "w.safetensors")
    np.testing.assert_array_equal(load_weights(tmp_path / "w.safetensors")["w"], matrix)


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
def test_files_give_back_what_was_packed(tmp_path: Path, dtype: Any) -> None:
    rng = np.random.default_rng(0)
    # A weight may itself be called `scale`.
    weights = {name: rng.normal(size=(3, 4)).astype(np.float32) for name in ("a", "b.c", "scale", "x.scale")}
    weights["bias"] = rng.normal(size=4).astype(np.float32)
    path = tmp_path / "w.safetensors"
    packed = pack(weights, dtype)
    save_file(packed, path)
    loaded = load_weights(path)
    assert loaded.keys() == weights.keys()
    with safe_open(path, framework="np") as file:
        assert weight_names(file) == set(weights)
        for name, value in unpack(packed).items():
            np.testing.assert_array_equal(loaded[name], value)
            np.testing.assert_array_equal(read_weight(file, name), value)


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    with pytest.raises(ArtifactError, match="not readable as safetensors"):
        load_weights(path)
    for content in (b"", b"not a safetensors file at all", b"\xff" * 64):
        path.write_bytes(content)
        with pytest.raises(ArtifactError, match=r"w\.safetensors: not readable as safetensors .* damaged"):
            load_weights(path)
    save_file({"w": np.ones((4, 4), dtype=np.float32)}, path)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(ArtifactError, match="not readable as safetensors"):
        load_weights(path)
    save_file({"w": np.ones((4, 4), dtype=np.int8)}, path)  # its steps are gone
    with pytest.raises(ArtifactError, match="not readable as safetensors"):
        load_weights(path)
