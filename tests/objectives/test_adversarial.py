"""Laws of perturbations and of the divergence between two views (ei-SRC, section 15)."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch.nn import functional as F

from pertinent.objectives.adversarial import consistency, perturbation, within
from pertinent.objectives.classification import annealed


def gradients(scale: float = 1.0) -> torch.Tensor:
    return scale * torch.randn(4, 7, 5, generator=torch.manual_seed(3))


@pytest.mark.parametrize("scale", [1.0, 1e-25, 1e18])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_example_moves_by_epsilon_over_all_its_tokens_and_dimensions(scale: float, dtype: torch.dtype) -> None:
    (step,) = perturbation([gradients(scale).to(dtype)], 5.0)
    assert step.dtype == torch.float32
    # The smallest gradients come near the constant that guards against dividing by 0, and move less.
    if scale >= 1:
        torch.testing.assert_close(step.norm(dim=(1, 2)), torch.full((4,), 5.0), rtol=1e-4, atol=0)
    assert step.isfinite().all()


def test_tiny_gradients_still_give_a_whole_step() -> None:
    (step,) = perturbation([gradients(1e-9)], 5.0)
    torch.testing.assert_close(step.norm(dim=(1, 2)), torch.full((4,), 5.0), rtol=5e-3, atol=0)


def test_a_step_points_where_its_gradient_points_whatever_the_other_examples_do() -> None:
    both = gradients()
    (step,) = perturbation([both], 2.0)
    torch.testing.assert_close(step, 2.0 * both / both.norm(dim=(1, 2), keepdim=True))
    (alone,) = perturbation([both[1:2]], 2.0)
    torch.testing.assert_close(alone, step[1:2])


def test_padding_does_not_move_and_does_not_count() -> None:
    mask = torch.ones(4, 7, dtype=torch.bool)
    mask[1, 5:], mask[3, :] = False, False
    (step,) = perturbation([gradients()], 5.0, [mask])
    assert (step[~mask] == 0).all()
    (short,) = perturbation([gradients()[1:2, :5]], 5.0)
    torch.testing.assert_close(step[1:2, :5], short)
    assert (step[3] == 0).all()  # all masked: stays


def test_blocks_of_one_example_share_its_norm() -> None:
    whole = gradients()
    parts = perturbation([whole[:, :3], whole[:, 3:]], 5.0)
    torch.testing.assert_close(torch.cat(parts, dim=1), perturbation([whole], 5.0)[0])


@pytest.mark.parametrize("batch", [0, 1])
def test_nothing_and_no_gradient_give_no_step(batch: int) -> None:
    (step,) = perturbation([torch.zeros(batch, 3, 2)], 5.0)
    assert step.shape == (batch, 3, 2) and (step == 0).all()
    assert perturbation([torch.zeros(batch, 0, 2)], 5.0)[0].shape == (batch, 0, 2)


def test_steps_are_shortened_to_the_radius_and_never_lengthened() -> None:
    (inside,), (outside,) = within([0.01 * gradients()], 5.0), within([100 * gradients()], 5.0)
    torch.testing.assert_close(inside, 0.01 * gradients())
    torch.testing.assert_close(outside.norm(dim=(1, 2)), torch.full((4,), 5.0))


@pytest.mark.parametrize("labels", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_consistency_is_both_divergences_of_two_class_probabilities(labels: int, dtype: torch.dtype) -> None:
    one, two = (torch.randn(9, labels, generator=torch.manual_seed(n)).to(dtype).float() for n in (1, 2))

    def log_probabilities(logits: torch.Tensor) -> torch.Tensor:
        full = logits if labels == 2 else torch.cat([torch.zeros_like(logits), logits], dim=1)
        return F.log_softmax(full, dim=1)

    p, q = log_probabilities(one), log_probabilities(two)
    both = sum(F.kl_div(b, a, log_target=True, reduction="batchmean") for a, b in ((p, q), (q, p)))
    torch.testing.assert_close(consistency(one.to(dtype), two.to(dtype), False), both / 2, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(consistency(one, two, False), consistency(two, one, False))


def test_consistency_is_zero_for_equal_views_and_finite_for_extreme_ones() -> None:
    one = torch.randn(5, 2)
    assert consistency(one, one, False).item() == 0.0
    far = consistency(torch.tensor([[0.0, 1e4]]), torch.tensor([[1e4, 0.0]], requires_grad=True), False)
    assert far.isfinite() and far > 0
    assert consistency(torch.zeros(0, 2), torch.zeros(0, 2), False).item() == 0.0


def test_consistency_pulls_both_views_unless_one_is_detached() -> None:
    for detach in (False, True):
        one, two = torch.zeros(3, 1, requires_grad=True), torch.ones(3, 1, requires_grad=True)
        consistency(one, two, detach).backward()
        assert two.grad is not None and (two.grad > 0).all()
        assert (one.grad is None) if detach else (one.grad < 0).all()


def test_masked_rows_take_no_part() -> None:
    one, two = torch.tensor([[0.0], [float("nan")]]), torch.tensor([[1.0], [1.0]], requires_grad=True)
    mask = torch.tensor([True, False])
    loss = consistency(one, two, False, mask)
    loss.backward()
    torch.testing.assert_close(loss, consistency(one[:1], two[:1], False))
    assert two.grad is not None and two.grad[1].item() == 0.0


def test_annealing_goes_from_four_over_one_to_a_half_and_only_falls() -> None:
    assert [annealed(t, 4.0, 0.5) for t in (0.0, 2 / 3, 1.0)] == pytest.approx([4.0, 1.0, 0.5])
    values = [annealed(n / 50, 4.0, 0.5) for n in range(51)]
    assert all(a > b for a, b in itertools.pairwise(values))
