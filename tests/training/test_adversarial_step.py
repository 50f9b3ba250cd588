"""Laws of steps with several passes: CAT, its parts, R-Drop and FreeLB (ei-SRC, section 15)."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import nn

from pertinent.errors import ConfigError
from pertinent.evaluation.metrics import auc
from pertinent.lexicon.pairs import PairTokenizer
from pertinent.models.blocks import relevance_logit
from pertinent.models.ei_src import EiSRC
from pertinent.models.store import build_network
from pertinent.models.towers import SBERT, SBERTConfig
from pertinent.objectives.classification import softmax
from pertinent.objectives.spec import AT, CAT, KL, Adversary, FreeLB, MarginMSE, RDrop, Softmax, SoftTarget
from pertinent.training.adversarial import (
    EmbeddingTap,
    Outcome,
    adversarial_step,
    dropped_tokens,
    fold_heat,
    logit_slope,
    settled,
)
from pertinent.training.collate import TrainingSet, collate, network_inputs
from pertinent.training.fit import FitConfig, fit
from pertinent.training.trainer import all_logits

Build = Callable[[int, int, int], TrainingSet]
METHODS = [cls() for cls in get_args(get_args(Adversary)[0])]
SIZES = {"hidden_size": 32, "layers": 2, "heads": 2, "feed_forward_size": 64, "max_positions": 18}
QUICK = {"epochs": 2, "batch_size": 32, "learning_rate": 2e-3, "device": "cpu"}


@pytest.fixture(scope="module")
def batch(shop_set: Build, tiny_pairs: PairTokenizer) -> dict[str, torch.Tensor]:
    return collate(shop_set(6, 3, 0), np.arange(18), tiny_pairs)


def step(network: nn.Module, batch: dict[str, torch.Tensor], spec: Any, progress: float = 0.0) -> Outcome:
    def objective(logits: torch.Tensor) -> torch.Tensor:
        return softmax(logits, batch["relevant"], 1.0)

    return adversarial_step(spec, network, lambda b: network(*network_inputs(b)), batch, objective, (2, 3), progress)


def without_dropout(network: EiSRC) -> EiSRC:
    return network.eval()


def gradients(network: nn.Module, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    network.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("spec", METHODS, ids=lambda spec: spec.type)
def test_a_step_calls_the_encoder_twice_and_freelb_once_a_pass(
    tiny_network: EiSRC, batch: dict[str, torch.Tensor], spec: Adversary
) -> None:
    calls = []
    tiny_network.encoder.register_forward_hook(lambda *_: calls.append(1))
    outcome = step(tiny_network.train(), batch, spec)
    assert len(calls) == (spec.steps if isinstance(spec, FreeLB) else 2)
    assert outcome.loss.isfinite()
    assert "forward" not in vars(tiny_network.embeddings)  # as it was


def test_without_perturbation_and_dropout_both_passes_are_one(
    tiny_network: EiSRC, batch: dict[str, torch.Tensor]
) -> None:
    outcome = step(without_dropout(tiny_network), batch, CAT(epsilon=0.0, word_drop=0.0))
    clean = softmax(outcome.logits, batch["relevant"], 1.0)
    torch.testing.assert_close(outcome.parts["adversarial"], clean)
    assert outcome.parts["consistency"].item() == pytest.approx(0.0, abs=1e-10)
    torch.testing.assert_close(outcome.loss, clean)  # 0.5 + 0.5


def test_the_total_is_the_weighted_sum_of_the_paper(tiny_network: EiSRC, batch: dict[str, torch.Tensor]) -> None:
    outcome = step(tiny_network.train(), batch, CAT())
    clean = softmax(outcome.logits, batch["relevant"], 1.0)
    parts = outcome.parts
    torch.testing.assert_close(outcome.loss, 0.5 * clean + 0.5 * parts["adversarial"] + 0.01 * parts["consistency"])
    assert parts["consistency"] > 0  # dropout alone makes the passes differ


def test_a_small_perturbation_raises_the_loss(tiny_network: EiSRC, batch: dict[str, torch.Tensor]) -> None:
    outcome = step(without_dropout(tiny_network), batch, AT(epsilon=0.1))
    assert outcome.parts["adversarial"] > softmax(outcome.logits, batch["relevant"], 1.0)


def test_what_moves_is_each_example_by_epsilon_and_no_padding(
    tiny_network: EiSRC, batch: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks: list[torch.Tensor] = []
    tiny_network.encoder.register_forward_pre_hook(lambda _, inputs: blocks.append(inputs[0].detach()))
    step(tiny_network.train(), batch, AT(epsilon=3.0))
    moved = blocks[1] - blocks[0]
    torch.testing.assert_close(moved.norm(dim=(1, 2)), torch.full((18,), 3.0), rtol=1e-4, atol=0)
    assert not batch["mask"].all()
    assert (moved[~batch["mask"]] == 0).all()


def test_a_pair_is_moved_the_same_whatever_padding_and_batch_mates_it_has(
    tiny_network: EiSRC, tiny_pairs: PairTokenizer, shop_set: Build
) -> None:
    network, examples, moved = without_dropout(tiny_network), shop_set(6, 3, 0), []
    shortest = int(np.argmin(examples.items.lengths[examples.item_rows]))
    for rows in (np.array([shortest]), np.array([shortest, *(n for n in range(18) if n != shortest)])):
        batch = collate(examples, rows, tiny_pairs)
        blocks: list[torch.Tensor] = []
        hook = network.encoder.register_forward_pre_hook(lambda _, inputs, blocks=blocks: blocks.append(inputs[0]))
        outcome = step(network, batch, AT(epsilon=3.0))
        hook.remove()
        moved.append(((blocks[1] - blocks[0])[0][batch["mask"][0]], outcome.logits[0]))
    torch.testing.assert_close(moved[0][0], moved[1][0], atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(moved[0][1], moved[1][1])


def test_gradients_flow_through_the_clean_view_of_the_consistency(
    tiny_network: EiSRC, batch: dict[str, torch.Tensor]
) -> None:
    found = [
        gradients(tiny_network, step(without_dropout(tiny_network), batch, spec).loss)
        for spec in (KL(consistency_weight=5.0), KL(consistency_weight=5.0, detach_clean=True))
    ]
    assert any(not torch.allclose(found[0][name], found[1][name]) for name in found[0])


def test_a_step_gives_the_gradient_of_its_loss_with_the_perturbation_held_fixed(
    tiny_network: EiSRC, batch: dict[str, torch.Tensor]
) -> None:
    network, spec = without_dropout(tiny_network), AT(epsilon=1.0)
    found = gradients(network, step(network, batch, spec).loss)
    inputs = network_inputs(batch)
    with EmbeddingTap(network) as tap:
        clean = softmax(network(*inputs), batch["relevant"], 1.0)
    (raw,) = torch.autograd.grad(clean, tap.states)
    fixed = raw / raw.norm(dim=(1, 2), keepdim=True)
    network.zero_grad()
    states = network.embeddings(inputs[0], inputs[2], inputs[3], inputs[4])
    losses = [
        softmax(network.head(network.encoder(s, inputs[1], first_only=True)), batch["relevant"], 1.0)
        for s in (states, states + fixed)
    ]
    expected = gradients(network, sum(losses) / 2)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("spec", METHODS, ids=lambda spec: spec.type)
def test_towers_are_moved_too(tiny_pairs: PairTokenizer, batch: dict[str, torch.Tensor], spec: Adversary) -> None:
    torch.manual_seed(0)
    network = SBERT(SBERTConfig(vocabulary_size=tiny_pairs.vocabulary_size, **SIZES)).train()
    if isinstance(spec, (CAT, AT, KL)):
        with EmbeddingTap(network) as tap:
            network(*network_inputs(batch))
        assert len(tap.states) == 2
    found = gradients(network, step(network, batch, spec).loss)
    assert all(value.isfinite().all() for value in found.values())


@pytest.mark.parametrize("name", ["interactor", "repr_bert"])
def test_other_networks_with_embeddings_are_moved(
    tiny_pairs: PairTokenizer, batch: dict[str, torch.Tensor], name: str
) -> None:
    torch.manual_seed(0)
    sizes = {**SIZES, "layers": 3}
    network = build_network({"type": name, "vocabulary_size": tiny_pairs.vocabulary_size, **sizes}).train()
    assert step(network, batch, CAT()).parts["consistency"] > 0


def test_a_network_that_never_calls_its_embeddings_is_told(batch: dict[str, torch.Tensor]) -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embeddings, self.classifier = nn.Embedding(200, 4), nn.Linear(4, 2)

        def forward(self, token_ids: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
            return self.classifier(self.embeddings.weight[token_ids].mean(1))

    with pytest.raises(ConfigError, match="does not call its embeddings"):
        step(Own(), batch, AT())


def test_heat_multiplies_the_logits_of_both_passes(tiny_network: EiSRC, batch: dict[str, torch.Tensor]) -> None:
    network = without_dropout(tiny_network)
    plain, heated = (step(network, batch, spec, 0.0) for spec in (CAT(inverse_temperature=1.0), CAT()))
    torch.testing.assert_close(heated.logits, 4.0 * plain.logits)
    torch.testing.assert_close(step(network, batch, CAT(), 1.0).logits, 0.5 * plain.logits)


# Word dropping


def test_only_words_without_a_class_are_dropped_and_each_side_keeps_one(
    batch: dict[str, torch.Tensor],
) -> None:
    classes = torch.zeros_like(batch["token_ids"])
    classes[:, 1] = 6
    tagged = {**batch, "term_class_ids": classes}
    content = batch["mask"] & ~torch.isin(batch["token_ids"], torch.tensor([2, 3]))
    torch.manual_seed(0)
    for share in (0.3, 0.999999):
        dropped = dropped_tokens(tagged, share, (2, 3))
        assert dropped.any()
        assert not (dropped & ~content).any()
        assert not dropped[:, 1].any()
        for side in (0, 1):
            here = content & (batch["segment_ids"] == side)
            assert ((here & ~dropped).sum(1) >= here.any(1)).all()
    assert not dropped_tokens(tagged, 0.0, (2, 3)).any()


def test_about_the_asked_share_is_dropped(tiny_pairs: PairTokenizer, shop_set: Build) -> None:
    batch = collate(shop_set(100, 6, 0), np.arange(600), tiny_pairs)
    torch.manual_seed(0)
    content = batch["mask"] & ~torch.isin(batch["token_ids"], torch.tensor([2, 3]))
    shares = [dropped_tokens(batch, 0.1, (2, 3)).sum() / content.sum() for _ in range(10)]
    assert np.mean(shares) == pytest.approx(0.1, abs=0.02)


def test_texts_without_words_drop_nothing(tiny_pairs: PairTokenizer) -> None:
    empty = collate(TrainingSet.build(tiny_pairs, ["", "bal"], ["", ""]), np.arange(2), tiny_pairs)
    assert not dropped_tokens(empty, 0.999999, (2, 3)).any()
    none = {name: value[:0] for name, value in empty.items()}
    assert dropped_tokens(none, 0.5, (2, 3)).shape == none["token_ids"].shape


def test_dropping_needs_term_classes(tiny_network: EiSRC, tiny_pairs: PairTokenizer, shop_set: Build) -> None:
    with pytest.raises(ConfigError, match="word_drop: drops words without a term class"):
        fit(tiny_network, tiny_pairs, shop_set(4, 3, 0), FitConfig(adversarial="cat"))


# How far pairs are moved


def with_sharper_head(network: EiSRC) -> EiSRC:
    """The network with logits that differ as those of a trained one do."""
    with torch.no_grad():
        network.classifier.weight.mul_(1000.0)
    return network


def test_a_new_head_is_moved_by_five_and_one_that_tells_pairs_apart_by_what_shifts_its_logit_so_far(
    tiny_network: EiSRC, tiny_pairs: PairTokenizer, shop_set: Build
) -> None:
    examples = shop_set(10, 4, 0)
    assert settled(AT(), tiny_network, tiny_pairs, examples).length == 5.0
    network = with_sharper_head(tiny_network).train()
    length = settled(AT(shift=0.03), network, tiny_pairs, examples).length
    assert length < 0.1
    assert network.training
    inputs = network_inputs(collate(examples, np.arange(40), tiny_pairs))
    network.eval()
    with EmbeddingTap(network) as tap:
        score = relevance_logit(network(*inputs))
    (up,) = torch.autograd.grad(score.sum(), tap.states)
    with EmbeddingTap(network, [tap.states[0] + length * up / up.norm(dim=(1, 2), keepdim=True)]):
        moved = relevance_logit(network(*inputs))
    assert (moved - score).mean().item() == pytest.approx(0.03, rel=0.02)


def test_a_step_does_not_turn_what_a_start_with_a_trained_head_decides(
    tiny_network: EiSRC, tiny_pairs: PairTokenizer, shop_set: Build
) -> None:
    examples = shop_set(10, 4, 0)
    network = with_sharper_head(tiny_network).eval()
    batch = collate(examples, np.arange(40), tiny_pairs)
    plain = CAT(inverse_temperature=1.0, final_inverse_temperature=None, word_drop=0.0)
    near, far = (step(network, batch, spec) for spec in (settled(plain, network, tiny_pairs, examples), plain))
    clean = softmax(near.logits, batch["relevant"], 1.0)
    assert clean < near.parts["adversarial"] < clean + 0.3 * 1.05  # the loss changes by no more than the logit
    assert far.parts["adversarial"] > clean + 1


@pytest.mark.parametrize("spec", [CAT(epsilon=2.0), FreeLB(epsilon=2.0), RDrop()], ids=lambda spec: spec.type)
def test_a_named_length_stays(tiny_network: EiSRC, tiny_pairs: PairTokenizer, shop_set: Build, spec: Adversary) -> None:
    assert settled(spec, with_sharper_head(tiny_network), tiny_pairs, shop_set(4, 3, 0)) is spec


def test_the_length_is_measured_on_towers_and_on_frozen_embeddings_too(
    tiny_network: EiSRC, tiny_pairs: PairTokenizer, shop_set: Build
) -> None:
    examples = shop_set(4, 3, 0)
    network = with_sharper_head(tiny_network)
    length = settled(FreeLB(), network, tiny_pairs, examples).length
    network.embeddings.requires_grad_(False)
    assert settled(FreeLB(), network, tiny_pairs, examples).length == pytest.approx(length)
    towers = SBERT(SBERTConfig(vocabulary_size=tiny_pairs.vocabulary_size, **SIZES))
    assert 0 < logit_slope(towers, collate(examples, np.arange(12), tiny_pairs)) < 1


def test_a_run_says_how_far_it_moved_pairs(tiny_network: EiSRC, tiny_pairs: PairTokenizer, shop_set: Build) -> None:
    examples = shop_set(20, 4, 0)
    config = FitConfig(**{**QUICK, "epochs": 1}, adversarial="at")
    expected = settled(AT(), copy.deepcopy(with_sharper_head(tiny_network)), tiny_pairs, examples).length
    assert fit(tiny_network, tiny_pairs, examples, config).epsilon == pytest.approx(expected)


# In a training run


@pytest.mark.parametrize(
    "method", [CAT(word_drop=0.0, epsilon=0.5), RDrop(), FreeLB(epsilon=1.0, step_size=0.5)], ids=lambda spec: spec.type
)
def test_every_method_learns_beside_other_losses(
    tiny_network: EiSRC, tiny_pairs: PairTokenizer, shop_set: Build, method: Adversary
) -> None:
    objective = [Softmax(), SoftTarget(weight=0.5), MarginMSE(weight=0.02)]
    config = FitConfig(**QUICK, objective=objective, adversarial=method)
    result = fit(tiny_network, tiny_pairs, shop_set(120, 6, 0), config, shop_set(40, 6, 1))
    assert result.metrics["auc"] > 0.6
    reported = next(entry for entry in result.history if "loss" in entry)
    assert {"loss_softmax", "loss_margin_mse", "loss_adversarial"} <= reported.keys()
    assert ("loss_consistency" in reported) == (method.type != "freelb")


def test_the_kept_inverse_temperature_becomes_part_of_the_model_and_moves_no_auc(
    tiny_network: EiSRC, tiny_pairs: PairTokenizer, shop_set: Build
) -> None:
    examples = shop_set(20, 4, 1)
    before = all_logits(tiny_network, tiny_pairs, examples, 64)
    config = FitConfig(**{**QUICK, "learning_rate": 1e-12}, adversarial=CAT(word_drop=0.0), keep="last")
    result = fit(tiny_network, tiny_pairs, examples, config)
    assert result.inverse_temperature == pytest.approx(0.5)
    after = all_logits(tiny_network, tiny_pairs, examples, 64)
    np.testing.assert_allclose(after, 0.5 * before, atol=1e-6)
    relevant = examples.relevant > 0.5
    ranks = [auc(relevance_logit(torch.from_numpy(each)).numpy(), relevant) for each in (before, after)]
    assert ranks[0] == pytest.approx(ranks[1])


def test_an_early_step_keeps_the_inverse_temperature_of_that_step(
    tiny_network: EiSRC, tiny_pairs: PairTokenizer, shop_set: Build
) -> None:
    config = FitConfig(
        **{**QUICK, "learning_rate": 1e-12}, adversarial=CAT(word_drop=0.0), eval_every=1, early_stopping=0
    )
    result = fit(tiny_network, tiny_pairs, shop_set(20, 4, 0), config, shop_set(8, 3, 1))
    assert result.inverse_temperature == pytest.approx(CAT().heat(result.best_step / result.steps))


def test_a_stopped_run_goes_on_as_if_it_had_not_been(
    tiny_network: EiSRC, tiny_pairs: PairTokenizer, shop_set: Build, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = shop_set(20, 4, 0)
    training = replace(training, queries=_classed(training.queries), items=_classed(training.items))
    config = FitConfig(**QUICK, adversarial=CAT(word_drop=0.2), eval_every=2, early_stopping=0)
    straight, stopped = copy.deepcopy(tiny_network), copy.deepcopy(tiny_network)
    fit(straight, tiny_pairs, training, config, None, tmp_path / "straight")
    from pertinent.training.trainer import Trainer

    compute = Trainer.compute_loss

    def until_three(self: Trainer, *arguments: Any, **named: Any) -> Any:
        if self.state.global_step == 3:
            raise KeyboardInterrupt
        return compute(self, *arguments, **named)

    monkeypatch.setattr(Trainer, "compute_loss", until_three)
    with pytest.raises(KeyboardInterrupt):
        fit(copy.deepcopy(stopped), tiny_pairs, training, config, None, tmp_path / "stopped")
    monkeypatch.undo()
    result = fit(stopped, tiny_pairs, training, config, None, tmp_path / "stopped", resume=True)
    assert result.resumed_from == 2
    for name, value in straight.state_dict().items():
        torch.testing.assert_close(stopped.state_dict()[name], value, atol=1e-6, rtol=1e-5)


def _classed(rows: Any) -> Any:
    return replace(rows, term_classes=np.zeros(len(rows.ids), dtype=np.int8))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"adversarial": "cta"}, ["adversarial", "cta"]),
        ({"adversarial": {"type": "cat", "epsilom": 1}}, ["adversarial", "epsilom", "epsilon"]),
        ({"adversarial": {"type": "at", "adversarial_weight": 0}}, ["both 0"]),
        ({"adversarial": "cat", "objective": {"type": "softmax", "inverse_temperature": 2}}, ["set there"]),
    ],
)
def test_wrong_settings_are_named(settings: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        FitConfig.build(settings, "train.yaml")
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_a_network_without_a_classifier_keeps_an_inverse_temperature_of_one(
    tiny_pairs: PairTokenizer, shop_set: Build
) -> None:
    network = SBERT(SBERTConfig(vocabulary_size=tiny_pairs.vocabulary_size, head="cosine", **SIZES))
    with pytest.raises(ConfigError, match="inverse_temperature: becomes part of a classifier"):
        fit(network, tiny_pairs, shop_set(4, 3, 0), FitConfig(adversarial=CAT(word_drop=0.0)))
    fit(network, tiny_pairs, shop_set(4, 3, 0), FitConfig(adversarial="at", epochs=1, device="cpu"))


def test_folding_multiplies_logits(tiny_network: EiSRC, batch: dict[str, torch.Tensor]) -> None:
    network = without_dropout(tiny_network)
    before = network(*network_inputs(batch))
    fold_heat(network, 0.5)
    torch.testing.assert_close(network(*network_inputs(batch)), 0.5 * before)
