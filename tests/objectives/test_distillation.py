"""Laws of the losses against a teacher's scores."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from pertinent.objectives.distillation import margin_mse, score_mse


def double_loop(student: Tensor, teacher: Tensor, group: Tensor) -> float:
    """The definition: all pairs i < j of a query, mean over pairs, then over queries with pairs."""
    losses = []
    for number in sorted(set(group.tolist())):
        rows = [i for i, g in enumerate(group.tolist()) if g == number]
        pairs = [(i, j) for a, i in enumerate(rows) for j in rows[a + 1 :]]
        if pairs:
            errors = [((teacher[i] - teacher[j]) - (student[i] - student[j])).item() ** 2 for i, j in pairs]
            losses.append(sum(errors) / len(errors))
    return sum(losses) / len(losses) if losses else 0.0


def test_hand_computed() -> None:
    # residuals 1, 2, 4 of one query: margins 1, 3, 2, squares 1 + 9 + 4 over three pairs
    student, teacher = torch.zeros(3), torch.tensor([1.0, 2.0, 4.0])
    assert margin_mse(student, teacher, torch.zeros(3, dtype=torch.long)).item() == pytest.approx(14 / 3, abs=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_equals_the_double_loop(seed: int) -> None:
    generator = torch.manual_seed(seed)
    student, teacher = torch.randn(40, generator=generator), 3 * torch.randn(40, generator=generator)
    group = torch.randint(0, 12, (40,), generator=generator) * 1000
    assert margin_mse(student, teacher, group).item() == pytest.approx(double_loop(student, teacher, group), rel=1e-5)


def test_a_constant_per_query_changes_nothing_even_a_large_one() -> None:
    teacher, group = torch.tensor([1.0, -2.0, 0.5, 3.0]), torch.tensor([0, 0, 1, 1])
    offset = torch.tensor([1000.0, 1000.0, -7.0, -7.0])
    assert margin_mse(teacher + offset, teacher, group).item() == pytest.approx(0.0, abs=1e-6)


def test_gradient_sums_to_zero_in_each_query() -> None:
    generator = torch.manual_seed(3)
    student = torch.randn(30, generator=generator).requires_grad_()
    group = torch.arange(30) % 4
    margin_mse(student, torch.randn(30, generator=generator), group).backward()
    assert student.grad is not None
    sums = torch.zeros(4).index_add(0, group, student.grad)
    torch.testing.assert_close(sums, torch.zeros(4), atol=1e-6, rtol=0)


def test_queries_weigh_the_same_whatever_their_size() -> None:
    # one query with two items and error 4, one with ten items and error 0
    student, teacher = torch.zeros(12), torch.tensor([0.0, 2.0] + [1.0] * 10)
    assert margin_mse(student, teacher, torch.tensor([0, 0] + [1] * 10)).item() == pytest.approx(2.0)


def test_singletons_give_zero_and_weigh_nothing() -> None:
    student = torch.tensor([5.0, 1.0], requires_grad=True)
    loss = margin_mse(student, torch.zeros(2), torch.tensor([0, 1]))
    loss.backward()
    assert loss.item() == 0.0
    assert student.grad is not None and (student.grad == 0).all()
    with_pair = margin_mse(torch.zeros(3), torch.tensor([0.0, 3.0, 9.0]), torch.tensor([0, 0, 1]))
    assert with_pair.item() == pytest.approx(9.0)


def test_order_and_numbering_do_not_matter() -> None:
    generator = torch.manual_seed(4)
    student, teacher, group = torch.randn(25), torch.randn(25), torch.arange(25) // 4
    order = torch.randperm(25, generator=generator)
    torch.testing.assert_close(
        margin_mse(student, teacher, group), margin_mse(student[order], teacher[order], 100 - group[order])
    )


def test_masked_rows_change_nothing_even_when_nan() -> None:
    student = torch.tensor([0.0, 1.0, math.nan, 4.0], requires_grad=True)
    teacher, group = torch.tensor([2.0, 1.0, 1.0, math.nan]), torch.zeros(4, dtype=torch.long)
    mask = torch.tensor([True, True, False, False])
    loss = margin_mse(student, teacher, group, mask) + score_mse(student, teacher, mask)
    loss.backward()
    assert loss.item() == pytest.approx(4.0 + 2.0)
    assert student.grad is not None
    assert student.grad.isfinite().all() and (student.grad[2:] == 0).all()


@pytest.mark.parametrize("rows", [0, 3])
def test_empty_or_all_masked_gives_zero(rows: int) -> None:
    student = torch.ones(rows, requires_grad=True)
    teacher, group = torch.full((rows,), math.nan), torch.zeros(rows, dtype=torch.long)
    mask = torch.zeros(rows, dtype=torch.bool)
    loss = margin_mse(student, teacher, group, mask) + score_mse(student, teacher, mask)
    loss.backward()
    assert loss.item() == 0.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_values_are_float32_whatever_comes(dtype: torch.dtype) -> None:
    student = torch.tensor([1.0, 300.0], dtype=dtype, requires_grad=True)
    loss = margin_mse(student, torch.tensor([0.0, 1.0], dtype=dtype), torch.zeros(2, dtype=torch.long))
    loss.backward()
    assert loss.dtype == torch.float32
    assert student.grad is not None and student.grad.isfinite().all()


def test_score_mse_sees_what_the_margin_does_not() -> None:
    teacher = torch.tensor([1.0, 2.0])
    assert score_mse(teacher + 3.0, teacher).item() == pytest.approx(9.0)
