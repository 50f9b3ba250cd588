from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from pertinent.evaluation.metrics import ndcg
from pertinent.objectives.ranking import pairwise


def double_loop(score: torch.Tensor, grade: torch.Tensor, group: torch.Tensor, by_gain: bool) -> float:
    means = []
    for query in group.unique():
        s, g = score[group == query].double().numpy(), grade[group == query].double().numpy()
        costs, weights = 0.0, 0.0
        for i in range(len(s)):
            for j in range(len(s)):
                if g[i] > g[j]:
                    weight = 1.0
                    if by_gain:
                        rank = {each: place for place, each in enumerate(np.argsort(-s))}
                        swapped = s.copy()
                        swapped[[i, j]] = s[[j, i]]
                        # Over the ideal gain, which is one number a query, and over the same sum below.
                        weight = abs(ndcg(s, g, k=len(s)) - ndcg(swapped, g, k=len(s)))
                        assert rank[i] != rank[j]
                    costs += weight * math.log1p(math.exp(s[j] - s[i]))
                    weights += weight
        if weights:
            means.append(costs / weights)
    return float(np.mean(means)) if means else 0.0


@pytest.mark.parametrize("by_gain", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_equals_the_double_loop(seed: int, by_gain: bool) -> None:
    generator = torch.manual_seed(seed)
    score = torch.randn(40, generator=generator)
    grade = torch.randint(0, 4, (40,), generator=generator) / 3
    group = torch.randint(0, 6, (40,), generator=generator) + 100
    expected = double_loop(score, grade, group, by_gain)
    assert pairwise(score, grade, group, by_gain=by_gain).item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("by_gain", [False, True])
def test_masked_rows_and_queries_of_one_grade_take_no_part(by_gain: bool) -> None:
    score = torch.tensor([1.0, 0.0, 3.0, 4.0, float("nan")], requires_grad=True)
    grade = torch.tensor([0.0, 1.0, 1.0, 1.0, float("nan")])
    group = torch.tensor([0, 0, 1, 1, 0])
    loss = pairwise(score, grade, group, ~grade.isnan(), by_gain)
    assert loss.item() == pytest.approx(math.log1p(math.e), rel=1e-6)
    loss.backward()  # type: ignore[no-untyped-call]
    assert score.grad is not None and score.grad[2:].tolist() == [0.0, 0.0, 0.0] and score.grad[1] < 0 < score.grad[0]


def test_nothing_to_compare_is_zero_and_has_a_gradient() -> None:
    score = torch.zeros(3, requires_grad=True)
    loss = pairwise(score, torch.ones(3), torch.zeros(3, dtype=torch.long))
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.item() == 0.0 and score.grad is not None and score.grad.isfinite().all()


def test_descent_puts_items_in_the_order_of_their_grades() -> None:
    grade, group = torch.tensor([0.0, 0.5, 1.0, 1.0, 0.0]), torch.tensor([0, 0, 0, 1, 1])
    score = torch.tensor([2.0, 1.0, 0.0, 0.0, 1.0], requires_grad=True)
    optimizer = torch.optim.SGD([score], lr=0.5)
    for _ in range(200):
        optimizer.zero_grad()
        pairwise(score, grade, group, by_gain=True).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert score[2] > score[1] > score[0] and score[3] > score[4]


def test_level_does_not_matter() -> None:
    score, grade, group = torch.randn(6), torch.tensor([0.0, 1.0, 0.5, 0.0, 1.0, 1.0]), torch.tensor([0, 0, 0, 1, 1, 1])
    moved = score + torch.where(group == 0, 10.0, -3.0)
    torch.testing.assert_close(pairwise(score, grade, group), pairwise(moved, grade, group), rtol=1e-4, atol=1e-5)
