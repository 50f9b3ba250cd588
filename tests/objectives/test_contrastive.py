from __future__ import annotations

import math

import pytest
import torch

from pertinent.objectives.contrastive import info_nce, neighbor_target
from pertinent.objectives.mutual import mutual_views

PRESENT = torch.tensor([True, True, True, True])
IDS = torch.tensor([1, 2, 3, 4])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [1, 2, 50])
def test_identical_vectors_cost_the_log_of_the_batch(dtype: torch.dtype, size: int) -> None:
    same = torch.full((size, 4), 0.5, dtype=dtype)
    assert info_nce(same, same, 0.2).item() == pytest.approx(math.log(size), abs=1e-5)


@pytest.mark.parametrize("size", [2, 8, 30])
def test_orthonormal_pairs_cost_the_closed_form(size: int) -> None:
    eye = torch.eye(size)
    assert info_nce(eye, eye, 0.2).item() == pytest.approx(math.log(1 + (size - 1) * math.exp(-5)), rel=1e-5)
    assert info_nce(eye, eye, 0.01).item() == pytest.approx(0.0, abs=1e-6)
    # Without the positive in the sum: log((B - 1) exp(0)) - 5.
    assert info_nce(eye, eye, 0.2, decoupled=True).item() == pytest.approx(math.log(size - 1) - 5, rel=1e-5)


def test_it_is_the_mean_of_the_written_out_rows() -> None:
    torch.manual_seed(0)
    a, b = torch.randn(6, 3), torch.randn(6, 3)
    rows = [
        -math.log(math.exp(a[i] @ b[i] / 0.5) / sum(math.exp(a[i] @ b[j] / 0.5) for j in range(6))) for i in range(6)
    ]
    assert info_nce(a, b, 0.5).item() == pytest.approx(sum(rows) / 6, rel=1e-5)
    mask = torch.tensor([True, False, True, False, False, False])
    assert info_nce(a, b, 0.5, mask).item() == pytest.approx((rows[0] + rows[2]) / 2, rel=1e-5)


def test_one_and_the_same_query_is_no_negative_of_itself() -> None:
    eye = torch.eye(4)
    ids = torch.tensor([7, 7, 8, 9])
    value = neighbor_target(eye, eye, ids, PRESENT, 0.2).item()
    rows = [math.log(1 + 2 * math.exp(-5))] * 2 + [math.log(1 + 3 * math.exp(-5))] * 2
    assert value == pytest.approx(sum(rows) / 4, rel=1e-4)
    one = torch.ones(3, 2)
    assert neighbor_target(one, one, torch.tensor([7, 7, 7]), PRESENT[:3], 0.2).item() == pytest.approx(0.0, abs=1e-6)


def test_masked_rows_change_nothing_and_pass_no_gradient() -> None:
    anchors = torch.eye(4, requires_grad=True)
    present = torch.tensor([True, True, False, True])
    value = neighbor_target(anchors, torch.eye(4), IDS, present, 0.2)
    broken = torch.eye(4)
    broken[2] = torch.nan
    assert neighbor_target(broken, torch.eye(4), IDS, present, 0.2).item() == pytest.approx(value.item())
    value.backward()
    assert anchors.grad is not None
    assert torch.isfinite(anchors.grad).all()
    assert (anchors.grad[2] == 0).all()


@pytest.mark.parametrize("decoupled", [False, True])
@pytest.mark.parametrize("symmetric", [False, True])
def test_nothing_to_compare_costs_nothing(symmetric: bool, decoupled: bool) -> None:
    for size in (0, 1, 4):
        vectors = torch.ones(size, 2, requires_grad=True)
        nobody = torch.zeros(size, dtype=torch.bool)
        value = neighbor_target(vectors, vectors, torch.arange(size), nobody, 0.2, symmetric, decoupled)
        value.backward()
        assert value.item() == 0
        assert torch.isfinite(vectors.grad).all()


@pytest.mark.parametrize("symmetric", [False, True])
def test_a_row_without_any_negative_takes_no_part(symmetric: bool) -> None:
    vectors = torch.eye(4, requires_grad=True)
    alone = torch.tensor([True, False, False, False])
    lonely = neighbor_target(vectors, vectors, IDS, alone, 0.2, symmetric, decoupled=True)
    lonely.backward()
    assert abs(lonely.item()) < 10
    assert torch.isfinite(vectors.grad).all()
    same = torch.full((4,), 7)
    assert neighbor_target(vectors, vectors, same, PRESENT, 0.2, symmetric, decoupled=True).item() == 0
    # Three rows are one and the same thing, the fourth is their only negative.
    value = neighbor_target(vectors, vectors, torch.tensor([7, 7, 7, 8]), PRESENT, 0.2, symmetric, decoupled=True)
    rows = [-5.0] * 3 + [math.log(3) - 5]
    assert value.item() == pytest.approx(sum(rows) / 4, rel=1e-4)


def test_symmetric_is_the_mean_of_both_directions() -> None:
    torch.manual_seed(1)
    a, b = torch.randn(4, 3), torch.randn(4, 3)
    both = neighbor_target(a, b, IDS, PRESENT, 0.5, symmetric=True)
    assert both.item() == pytest.approx(((info_nce(a, b, 0.5) + info_nce(b, a, 0.5)) / 2).item(), rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_mutual_views_are_squared_differences(dtype: torch.dtype) -> None:
    text, behavior = torch.tensor([0.0, 1.0], dtype=dtype), torch.tensor([0.0, -1.0], dtype=dtype)
    apart = (1 / (1 + math.exp(-1)) - 1 / (1 + math.exp(1))) ** 2
    assert mutual_views(text, behavior, "probability").item() == pytest.approx(apart / 2, rel=1e-5)
    assert mutual_views(text, behavior, "logit").item() == pytest.approx(2.0)
    mask = torch.tensor([True, False])
    assert mutual_views(text, behavior, "logit", mask).item() == 0
    assert mutual_views(text, text, "probability").item() == 0
    assert mutual_views(text[:0], text[:0], "probability").item() == 0


def test_mutual_views_pull_both() -> None:
    text, behavior = torch.tensor([2.0], requires_grad=True), torch.tensor([-2.0], requires_grad=True)
    mutual_views(text, behavior, "probability").backward()
    assert text.grad.item() > 0 > behavior.grad.item()
    both = text.grad.clone()
    text.grad, behavior.grad = None, None
    mutual_views(text, behavior, "probability", pull="text").backward()
    assert text.grad == both and behavior.grad is None
