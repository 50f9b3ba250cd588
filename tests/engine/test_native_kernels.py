"""Every native kernel against the same in float64, on every instruction set that this processor runs."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pertinent.engine.native_backend import native_module

native: Any = native_module()
pytestmark = pytest.mark.skipif(native is None, reason="the native engine is not built")
SETS = native.instructions() if native is not None else []
Floats = NDArray[np.float32]

every_set = pytest.mark.parametrize("instructions", SETS)
shapes = settings(max_examples=40, deadline=None, derandomize=True)
# Lengths of texts, and widths with and without a rest behind whole vectors.
rows = st.integers(1, 40)
widths = st.sampled_from([1, 3, 4, 8, 12, 16, 17, 31, 32, 33, 48, 64, 96, 100, 128])


def drawn(seed: int, *shape: int) -> Floats:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def exact_gelu(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return 0.5 * x * (1.0 + np.vectorize(math.erf, otypes=[float])(x / math.sqrt(2)))


def softmax2(x: NDArray[np.float64]) -> NDArray[np.float64]:
    powers = np.exp2(x - x.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


@every_set
@shapes
@given(rows, widths, widths, st.sampled_from(["store", "add", "gelu"]), st.integers(0, 9))
def test_linear_equals_its_definition(
    instructions: str, m: int, inputs: int, outputs: int, epilogue: str, seed: int
) -> None:
    a, w, b, c = drawn(seed, m, inputs), drawn(seed + 1, outputs, inputs), drawn(seed, outputs), drawn(seed, m, outputs)
    found = native.kernels.linear(instructions, a, w, b, c if epilogue == "add" else None, epilogue == "gelu")
    wanted = a.astype(np.float64) @ w.T.astype(np.float64) + b
    wanted = wanted + c if epilogue == "add" else exact_gelu(wanted) if epilogue == "gelu" else wanted
    np.testing.assert_allclose(found.reshape(m, outputs), wanted, atol=1e-6 * (4 + inputs), rtol=1e-5)


@every_set
def test_a_row_of_a_product_is_the_same_bits_in_any_company(instructions: str) -> None:
    a, w, b = drawn(0, 40, 128), drawn(1, 96, 128), drawn(2, 96)
    whole = native.kernels.linear(instructions, a, w, b).reshape(40, 96)
    for m in range(1, 40):
        np.testing.assert_array_equal(native.kernels.linear(instructions, a[:m], w, b).reshape(m, 96), whole[:m])


def whole_numbers(seed: int, *shape: int) -> Floats:
    """Numbers from -127 to 127 with a 127 in each row: rounding to 8 bits leaves them as they are."""
    found = np.random.default_rng(seed).integers(-127, 128, shape).astype(np.float32)
    found[np.arange(shape[0]), np.arange(shape[0]) % shape[1]] = 127
    return found


def int8(instructions: str, a: Floats, w: Floats, b: Floats, c: Floats | None = None, gelu: bool = False) -> Floats:
    found = native.kernels.linear_int8(instructions, a, w, b, c, gelu)
    return found[: len(a) * len(w)].reshape(len(a), len(w))


@every_set
@shapes
@given(rows, st.sampled_from([1, 2, 3, 5, 31, 64, 100, 384, 1536]), widths, st.integers(0, 9))
def test_products_of_whole_numbers_are_exact_in_8_bits(
    instructions: str, m: int, inputs: int, outputs: int, seed: int
) -> None:
    a, w, b = whole_numbers(seed, m, inputs), whole_numbers(seed + 1, outputs, inputs), drawn(seed, outputs)
    powers = np.exp2(np.random.default_rng(seed).integers(-9, 9, m)).astype(np.float32)[:, None]
    wanted = powers * (a.astype(np.float64) @ w.T.astype(np.float64)) + b
    np.testing.assert_allclose(int8(instructions, a * powers, w, b), wanted, rtol=3e-7, atol=1e-4 * powers.max())
    most = np.full_like(a, 127)  # no sum leaves its bits
    for sign in (1, -1):
        found = int8(instructions, most, np.full_like(w, 127 * sign), 0 * b)
        np.testing.assert_allclose(found, sign * 127.0**2 * inputs, rtol=3e-7)


@every_set
@shapes
@given(rows, widths, widths, st.sampled_from(["store", "add", "gelu"]), st.integers(0, 9))
def test_products_in_8_bits_are_as_near_as_rounding_allows(
    instructions: str, m: int, inputs: int, outputs: int, epilogue: str, seed: int
) -> None:
    a, w, b, c = drawn(seed, m, inputs), drawn(seed + 1, outputs, inputs), drawn(seed, outputs), drawn(seed, m, outputs)
    found = int8(instructions, a, w, b, c if epilogue == "add" else None, epilogue == "gelu")
    wanted = a.astype(np.float64) @ w.T.astype(np.float64) + b
    wanted = wanted + c if epilogue == "add" else exact_gelu(wanted) if epilogue == "gelu" else wanted
    largest_a, largest_w = np.abs(a).max(1)[:, None], np.abs(w).max(1)[None]
    half = 0.502 / 127  # of a step, with some room for float32
    bound = half * (largest_a * np.abs(w).sum(1)[None] + largest_w * np.abs(a).sum(1)[:, None])
    bound = bound + inputs * half**2 * largest_a * largest_w
    assert (np.abs(found - wanted) <= 1.13 * bound + 1e-5).all()  # the slope of GELU is at most 1.129


def test_all_instruction_sets_find_the_same_products_in_8_bits() -> None:
    a, w, b = drawn(0, 40, 132), drawn(1, 70, 132), drawn(2, 70)
    found = [int8(instructions, a, w, b) for instructions in SETS]
    for other in found[1:]:
        np.testing.assert_allclose(other, found[0], atol=2e-6 * np.abs(found[0]).max())


@every_set
def test_rows_in_8_bits_keep_to_themselves(instructions: str) -> None:
    a, w, b = drawn(0, 40, 130), drawn(1, 96, 130), drawn(2, 96)
    whole = int8(instructions, a, w, b)
    for m in range(1, 40):
        np.testing.assert_array_equal(int8(instructions, a[:m], w, b), whole[:m])
    broken = a.copy()
    broken[3, 129], broken[5, 0], broken[7] = np.nan, np.inf, 0.0
    found = int8(instructions, broken, w, b)
    assert np.isnan(found[[3, 5]]).all()
    np.testing.assert_array_equal(found[7], b)
    others = np.delete(np.arange(40), [3, 5, 7])
    np.testing.assert_array_equal(found[others], whole[others])
    w[4, 17] = np.nan
    assert np.isnan(int8(instructions, a, w, b)[:, 4]).all()


@every_set
@shapes
@given(rows, widths, st.integers(0, 9))
def test_layer_norm_equals_its_definition(instructions: str, m: int, width: int, seed: int) -> None:
    x, gain, shift = 3 + drawn(seed, m, width), drawn(seed + 1, width), drawn(seed + 2, width)
    found = native.kernels.layer_norm(instructions, x, gain, shift, 1e-5)
    wide = x.astype(np.float64)
    wanted = (wide - wide.mean(1, keepdims=True)) / np.sqrt(wide.var(1, keepdims=True) + 1e-5) * gain + shift
    np.testing.assert_allclose(found.reshape(m, width), wanted, atol=2e-4, rtol=1e-4)


@every_set
@shapes
@given(rows, rows, widths, st.sampled_from([0.1, 1.0, 30.0]), st.integers(0, 9))
def test_attention_equals_its_definition(
    instructions: str, queries: int, keys: int, width: int, size: float, seed: int
) -> None:
    q, k, v = size * drawn(seed, queries, width), drawn(seed + 1, keys, width), drawn(seed + 2, keys, width)
    found = native.kernels.attention(instructions, q, k, v).reshape(queries, width)
    wanted = softmax2(q.astype(np.float64) @ k.T.astype(np.float64)) @ v
    np.testing.assert_allclose(found, wanted, atol=3e-5 * max(size, 1.0))


@every_set
@shapes
@given(st.integers(1, 13), rows, widths, st.integers(0, 9))
def test_pooled_attention_equals_its_definition(
    instructions: str, heads: int, length: int, width: int, seed: int
) -> None:
    qk, x = drawn(seed, heads, width), drawn(seed + 1, length, width)
    found = native.kernels.pooled_attention(instructions, qk, x).reshape(heads, width)
    np.testing.assert_allclose(found, softmax2(qk.astype(np.float64) @ x.T.astype(np.float64)) @ x, atol=5e-5)


@every_set
def test_curves_hold_over_the_whole_range(instructions: str) -> None:
    x = np.concatenate([np.linspace(-20, 20, 4_001), [-1e30, 1e30, 0.0]]).astype(np.float32)
    wide = x.astype(np.float64)
    np.testing.assert_allclose(native.kernels.each(instructions, "gelu", x)[:-3], exact_gelu(wide[:-3]), atol=2e-6)
    np.testing.assert_allclose(native.kernels.each(instructions, "tanh", x), np.tanh(wide), atol=5e-7)
    np.testing.assert_allclose(native.kernels.each(instructions, "exp2", x)[:-3], np.exp2(wide[:-3]), rtol=1e-6)
    ends = native.kernels.each(instructions, "gelu", x)[-3:]
    np.testing.assert_allclose(ends, [0.0, 1e30, 0.0], rtol=1e-6, atol=1e-6)


@every_set
@pytest.mark.parametrize("name", ["gelu", "tanh", "exp2"])
def test_what_is_no_number_stays_none(instructions: str, name: str) -> None:
    x = np.array([1.0, np.nan, -1.0] * 7, dtype=np.float32)
    assert np.isnan(native.kernels.each(instructions, name, x)).tolist() == np.isnan(x).tolist()


@every_set
def test_one_damaged_weight_reaches_the_result(instructions: str) -> None:
    w = drawn(1, 64, 32)
    w[5, 7] = np.nan
    found = native.kernels.linear(instructions, drawn(0, 9, 32), w, drawn(2, 64), gelu=True).reshape(9, 64)
    assert np.isnan(found[:, 5]).all() and np.isfinite(np.delete(found, 5, axis=1)).all()
