"""Every loss of the union is held to the same laws, so a new one joins by itself."""

from __future__ import annotations

import math
import subprocess
import sys
from typing import get_args

import pytest
import torch

from pertinent.config import Config
from pertinent.errors import ConfigError
from pertinent.objectives.spec import (
    MarginMSE,
    Objective,
    ScoreMSE,
    Softmax,
    SoftTarget,
    Targets,
    loss_names,
    needed_column,
    needs_groups,
    objective_loss,
)

CLASSES = get_args(get_args(Objective)[0])
SPECS = [
    *(cls() for cls in CLASSES),
    Softmax(inverse_temperature=4.0, final_inverse_temperature=0.5),
    SoftTarget(source="teacher", subtract_entropy=True),
    MarginMSE(space="probability"),
    ScoreMSE(space="probability"),
]


class Recipe(Config):
    objective: tuple[Objective, ...]


def targets(rows: int, value: float | None = None) -> Targets:
    generator = torch.manual_seed(7)
    grade = torch.rand(rows, generator=generator) if value is None else torch.full((rows,), value)
    teacher = 6 * grade - 3
    return Targets((grade >= 0.5).float() if value is None else grade, grade, teacher, torch.arange(rows) // 3)


@pytest.mark.parametrize("spec", SPECS, ids=repr)
@pytest.mark.parametrize("labels", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_loss_is_a_finite_scalar_with_finite_gradients(spec: Objective, labels: int, dtype: torch.dtype) -> None:
    logits = (20 * torch.randn(11, labels, generator=torch.manual_seed(1))).to(dtype).requires_grad_()
    loss = objective_loss(spec, logits, targets(11), 0.5)
    loss.backward()
    assert loss.shape == () and loss.isfinite() and loss.item() >= 0
    assert logits.grad is not None and logits.grad.isfinite().all() and logits.grad.abs().sum() > 0


@pytest.mark.parametrize("spec", SPECS, ids=repr)
def test_rows_without_target_take_no_part(spec: Objective) -> None:
    logits, full = torch.randn(9, 2, generator=torch.manual_seed(1)), targets(9)
    column = getattr(full, needed_column(spec))
    longer = torch.cat([logits, torch.randn(3, 2)]).requires_grad_()
    nan = torch.full((3,), math.nan)
    padded = Targets(
        nan.repeat(4), nan.repeat(4), nan.repeat(4), torch.cat([full.group, torch.zeros(3, dtype=torch.long)])
    )
    getattr(padded, needed_column(spec))[:9] = column
    loss = objective_loss(spec, longer, padded, 0.0)
    torch.testing.assert_close(loss, objective_loss(spec, logits, full, 0.0))
    loss.backward()
    assert longer.grad is not None and (longer.grad[9:] == 0).all()


@pytest.mark.parametrize("spec", SPECS, ids=repr)
@pytest.mark.parametrize("rows", [0, 1, 4])
def test_nothing_to_learn_from_gives_zero(spec: Objective, rows: int) -> None:
    logits = torch.ones(rows, 2, requires_grad=True)
    loss = objective_loss(spec, logits, targets(rows, math.nan), 0.0)
    loss.backward()
    assert loss.item() == 0.0


@pytest.mark.parametrize("spec", SPECS, ids=repr)
def test_order_of_rows_does_not_matter(spec: Objective) -> None:
    logits, full, order = torch.randn(10, 2), targets(10), torch.randperm(10)
    moved = Targets(full.relevant[order], full.grade[order], full.teacher[order], full.group[order])
    torch.testing.assert_close(objective_loss(spec, logits, full, 0.3), objective_loss(spec, logits[order], moved, 0.3))


@pytest.mark.parametrize("spec", SPECS, ids=repr)
def test_settings_survive_a_round_trip(spec: Objective) -> None:
    recipe = Recipe(objective=(spec,))
    assert Recipe.build(recipe.plain()) == recipe


def test_annealed_softmax_ends_where_it_is_told() -> None:
    logits, full = torch.randn(6, 2), targets(6)
    moving = Softmax(inverse_temperature=4.0, final_inverse_temperature=0.5)
    for progress, heat in ((0.0, 4.0), (1.0, 0.5)):
        torch.testing.assert_close(
            objective_loss(moving, logits, full, progress),
            objective_loss(Softmax(inverse_temperature=heat), logits, full, 0.0),
        )


def test_teacher_logits_are_clipped() -> None:
    wild = Targets(*[torch.tensor([100.0, -100.0])] * 3, group=torch.zeros(2, dtype=torch.long))
    at_clip = torch.tensor([[0.0, 8.0], [0.0, -8.0]])
    for spec in (MarginMSE(), ScoreMSE()):
        assert objective_loss(spec, at_clip, wild, 0.0).item() == pytest.approx(0.0)


def test_groups_and_names() -> None:
    assert needs_groups([SoftTarget(), MarginMSE()])
    assert not needs_groups([])
    assert loss_names([MarginMSE(), MarginMSE(), Softmax()]) == ["margin_mse", "margin_mse_2", "softmax"]


@pytest.mark.parametrize(
    ("objective", "words"),
    [
        ([{"type": "softmax", "wieght": 2.0}], ["objective.0.wieght", "did you mean 'weight'"]),
        ([{"type": "softmx"}], ["objective.0", "softmx"]),
        ([{"type": "softmax", "weight": 0}], ["objective.0.weight", "greater than 0"]),
    ],
)
def test_a_typo_is_named_with_its_path(objective: list[dict[str, object]], words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        Recipe.build({"objective": objective}, "train.yaml")
    assert all(word in str(caught.value) for word in words)


def test_settings_do_not_need_torch() -> None:
    code = "import sys; import pertinent.objectives.spec; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
