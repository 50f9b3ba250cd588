"""Laws of the losses against labels."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from pertinent.objectives.classification import annealed, entropy, masked_mean, relevance_score, soft_target, softmax

DTYPES = [torch.float32, torch.bfloat16]


def test_softmax_hand_computed() -> None:
    logits = torch.tensor([[0.0, 0.0], [0.0, 2.0]])
    # -log(1/2) for the first; heat 2 makes the second margin 4: -log(1 - sigmoid(4)) = log(1 + e^4)
    expected = (math.log(2) + math.log(1 + math.exp(4.0))) / 2
    assert softmax(logits, torch.tensor([1, 0]), 2.0).item() == pytest.approx(expected, abs=1e-6)


def test_softmax_with_two_labels_is_cross_entropy() -> None:
    logits, targets = torch.randn(50, 2, generator=torch.manual_seed(0)), torch.arange(50) % 2
    torch.testing.assert_close(softmax(logits, targets, 3.0), F.cross_entropy(3.0 * logits, targets))


def test_one_label_and_two_labels_agree() -> None:
    margin, targets = torch.tensor([0.3, -2.0, 5.0]), torch.tensor([1, 0, 0])
    two = torch.stack([torch.ones(3), 1 + margin], dim=1)
    torch.testing.assert_close(softmax(margin[:, None], targets, 1.0), softmax(two, targets, 1.0))
    torch.testing.assert_close(relevance_score(margin), relevance_score(two))


def test_heated_gradient_is_inverse_temperature_times_the_error() -> None:
    logits = torch.tensor([[0.2, 0.9]], requires_grad=True)
    softmax(logits, torch.tensor([0]), 4.0).backward()
    assert logits.grad is not None
    probability = torch.sigmoid(torch.tensor(4.0 * 0.7)).item()
    assert logits.grad[0, 1].item() == pytest.approx(4.0 * probability, abs=1e-5)


@pytest.mark.parametrize("target", [0.0, 0.25, 0.5, 0.9, 1.0])
def test_soft_target_has_zero_gradient_where_the_model_is_right(target: float) -> None:
    score = torch.logit(torch.tensor([[target]]), eps=1e-9).requires_grad_()
    soft_target(score, torch.tensor([target]), True).backward()
    assert score.grad is not None
    assert abs(score.grad.item()) < 1e-6


@pytest.mark.parametrize("target", [0.1, 0.5, 0.8])
def test_subtracting_the_entropy_changes_the_value_and_not_the_gradient(target: float) -> None:
    values, gradients = [], []
    for subtract in (False, True):
        logits = torch.tensor([[0.4, 1.0]], requires_grad=True)
        loss = soft_target(logits, torch.tensor([target]), subtract)
        loss.backward()
        values.append(loss.item())
        gradients.append(logits.grad)
    assert values[0] - values[1] == pytest.approx(entropy(torch.tensor(target)).item(), abs=1e-6)
    torch.testing.assert_close(gradients[0], gradients[1])
    assert values[1] >= 0


@pytest.mark.parametrize("dtype", DTYPES)
def test_values_are_float32_and_gradients_finite_for_extreme_logits(dtype: torch.dtype) -> None:
    logits = torch.tensor([[1e4, -1e4], [-1e4, 1e4], [0.0, 0.0]], dtype=dtype, requires_grad=True)
    loss = softmax(logits, torch.tensor([1, 0, 1]), 4.0) + soft_target(logits, torch.tensor([0.0, 1.0, 0.5]), True)
    loss.backward()
    assert loss.dtype == torch.float32
    assert logits.grad is not None
    assert loss.isfinite() and logits.grad.isfinite().all()


def test_bfloat16_and_float32_agree_to_the_rounding_of_the_input() -> None:
    logits, targets = torch.randn(64, 2, generator=torch.manual_seed(1)), torch.arange(64) % 2
    torch.testing.assert_close(
        softmax(logits.bfloat16(), targets, 1.0), softmax(logits, targets, 1.0), atol=5e-3, rtol=0
    )


def test_masked_rows_change_nothing_even_when_nan() -> None:
    logits = torch.tensor([[0.0, 1.0], [0.5, 0.0], [math.nan, math.inf]], requires_grad=True)
    mask, targets = torch.tensor([True, True, False]), torch.tensor([1.0, 0.0, math.nan])
    for loss, plain in (
        (softmax(logits, targets, 2.0, mask), softmax(logits[:2], targets[:2], 2.0)),
        (soft_target(logits, targets, True, mask), soft_target(logits[:2], targets[:2], True)),
    ):
        torch.testing.assert_close(loss, plain)
        logits.grad = None
        loss.backward()
        assert logits.grad is not None
        assert logits.grad.isfinite().all() and (logits.grad[2] == 0).all()


@pytest.mark.parametrize("rows", [0, 3])
def test_empty_or_all_masked_gives_zero(rows: int) -> None:
    logits = torch.zeros(rows, 2, requires_grad=True)
    targets, mask = torch.full((rows,), math.nan), torch.zeros(rows, dtype=torch.bool)
    loss = softmax(logits, targets, 1.0, mask) + soft_target(logits, targets, False, mask)
    loss.backward()
    assert loss.item() == 0.0
    assert softmax(torch.zeros(0, 1), torch.zeros(0), 1.0).item() == 0.0


def test_order_of_rows_does_not_matter() -> None:
    generator = torch.manual_seed(2)
    logits, targets, order = torch.randn(20, 2), torch.rand(20), torch.randperm(20, generator=generator)
    torch.testing.assert_close(soft_target(logits, targets, False), soft_target(logits[order], targets[order], False))


def test_masked_mean_without_mask_is_the_mean() -> None:
    assert masked_mean(torch.tensor([1.0, 2.0, 6.0]), None).item() == pytest.approx(3.0)


def test_annealing_stays_between_its_ends() -> None:
    values = [annealed(t, 4.0, 0.5) for t in (-1.0, 0.0, 0.3, 0.7, 1.0, 2.0)]
    assert values == sorted(values, reverse=True)
    assert (values[0], values[-1]) == (4.0, 0.5)
