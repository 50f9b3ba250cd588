"""Laws of a training run: it learns, it repeats itself, it survives being killed, it stops on NaN."""

from __future__ import annotations

import copy
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from pertinent.errors import ArtifactError, ConfigError, DataError, TrainingError
from pertinent.lexicon.pairs import PairTokenizer
from pertinent.models.blocks import relevance_logit
from pertinent.models.ei_src import EiSRC
from pertinent.models.store import rounded, straight_through
from pertinent.objectives.spec import MarginMSE, Softmax, SoftTarget
from pertinent.training import checkpoints
from pertinent.training.collate import TrainingSet, collate, network_inputs
from pertinent.training.fit import FitConfig, fit
from pertinent.training.trainer import all_logits, make_optimizer

Build = Callable[[int, int, int], TrainingSet]
QUICK = {"epochs": 2, "batch_size": 32, "learning_rate": 2e-3, "device": "cpu"}


def weights(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in network.state_dict().items()}


def equal(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_network_learns_and_ends_with_its_best_weights(
    tiny_network: EiSRC, tiny_pairs: PairTokenizer, shop_set: Build
) -> None:
    validation = shop_set(40, 6, 1)
    config = FitConfig(**QUICK, objective=[Softmax(), SoftTarget(weight=0.5), MarginMSE(weight=0.1)])
    result = fit(tiny_network, tiny_pairs, shop_set(150, 6, 0), config, validation)
    assert result.metrics["auc"] > 0.7
    evaluated = [entry["eval_score"] for entry in result.history if "eval_score" in entry]
    assert result.metrics["score"] == max(evaluated) == result.metrics["auc"]
    scores = relevance_logit(torch.from_numpy(all_logits(tiny_network, tiny_pairs, validation, 64)))
    from pertinent.evaluation.metrics import auc

    assert auc(scores.numpy(), validation.relevant > 0.5) == pytest.approx(result.metrics["auc"])
    assert not tiny_network.training
    losses = [entry for entry in result.history if "loss" in entry]
    assert {"loss_softmax", "loss_soft_target", "loss_margin_mse", "learning_rate", "grad_norm"} <= losses[0].keys()
    parts = losses[0]
    total = parts["loss_softmax"] + 0.5 * parts["loss_soft_target"] + 0.1 * parts["loss_margin_mse"]
    assert parts["loss"] == pytest.approx(total, abs=1e-4)


def test_the_same_seed_gives_the_same_weights(tiny_network: EiSRC, tiny_pairs: PairTokenizer, shop_set: Build) -> None:
    ends = []
    for seed in (0, 0, 1):
        network = copy.deepcopy(tiny_network)
        fit(network, tiny_pairs, shop_set(20, 3, 0), FitConfig(**QUICK, seed=seed))
        ends.append(weights(network))
    assert equal(ends[0], ends[1])
    assert not equal(ends[0], ends[2])


def test_distillation_needs_no_labels_and_selects_by_its_objective(
    tiny_network: EiSRC, tiny_pairs: PairTokenizer, shop_set: Build, shop_rows: Any
) -> None:
    rows = shop_rows(20, 4, 3)
    queries, titles, grades = (list(column) for column in zip(*rows, strict=True))
    unlabeled = TrainingSet.build(tiny_pairs, queries, titles, teacher=[6 * grade - 3 for grade in grades])
    config = FitConfig(**QUICK, objective=MarginMSE().plain(), eval_every=2, early_stopping=0)
    result = fit(tiny_network, tiny_pairs, unlabeled, config, unlabeled)
    assert "auc" not in result.metrics
    assert result.metrics["score"] == pytest.approx(-result.metrics["loss"])


def test_evaluation_changes_nothing_about_training(
    tiny_network: EiSRC, tiny_pairs: PairTokenizer, shop_set: Build
) -> None:
    ends = []
    for every in (1, 100):
        network = copy.deepcopy(tiny_network)
        config = FitConfig(**{**QUICK, "epochs": 1}, eval_every=every, early_stopping=0)
        result = fit(network, tiny_pairs, shop_set(20, 4, 0), config, shop_set(8, 3, 1))
        ends.append((result.history[-1]["train_loss"], [e["eval_auc"] for e in result.history if "eval_auc" in e][-1]))
    assert ends[0] == pytest.approx(ends[1])


def test_the_last_weights_stay_where_that_is_asked_for(
    tiny_network: EiSRC, tiny_pairs: PairTokenizer, shop_set: Build, tmp_path: Path
) -> None:
    plain, last = copy.deepcopy(tiny_network), copy.deepcopy(tiny_network)
    config = FitConfig(**{**QUICK, "epochs": 2}, early_stopping=0)
    fit(plain, tiny_pairs, shop_set(20, 4, 0), config)  # nothing to choose by: the last weights
    kept = config.model_copy(update={"keep": "last"})
    result = fit(last, tiny_pairs, shop_set(20, 4, 0), kept, shop_set(8, 3, 1), tmp_path / "run")
    assert equal(weights(plain), weights(last))
    assert result.best_step == result.steps
    again = copy.deepcopy(tiny_network)
    fit(again, tiny_pairs, shop_set(20, 4, 0), kept, shop_set(8, 3, 1), tmp_path / "run", resume=True)
    assert equal(weights(again), weights(last))


def test_frozen_parameters_stay_and_all_others_are_trained(
    tiny_network: EiSRC, tiny_pairs: PairTokenizer, shop_set: Build
) -> None:
    before = weights(tiny_network)
    fit(tiny_network, tiny_pairs, shop_set(20, 4, 0), FitConfig(**QUICK, frozen=["embeddings.token", "pooler"]))
    still = {name for name, value in tiny_network.state_dict().items() if torch.equal(value, before[name])}
    assert still == {"embeddings.token.weight", "pooler.weight", "pooler.bias"}
    assert all(parameter.requires_grad for parameter in tiny_network.parameters()), "given back as they came"
    for names, words in (
        (["embeddings.tok"], "no parameter is called embeddings.tok; names begin with classifier"),
        (["embeddings", "encoder", "pooler", "classifier"], "leaves nothing to train"),
    ):
        with pytest.raises(ConfigError, match=words):
            fit(tiny_network, tiny_pairs, shop_set(20, 4, 0), FitConfig(**QUICK, frozen=names))


def test_a_straight_through_pass_sees_the_stored_weights_and_moves_the_others(tiny_network: EiSRC) -> None:
    stored = dict(rounded(tiny_network, "int8").named_parameters())
    tiny_network.pooler.weight.requires_grad_(False)
    still: dict[str, torch.Tensor] = {}
    for _ in range(2):
        seen = straight_through(tiny_network, "int8", still)
        for name, value in seen.items():
            torch.testing.assert_close(value, stored[name], atol=1e-7, rtol=0)
    assert list(still) == ["pooler.weight"]
    assert not torch.equal(stored["classifier.weight"], tiny_network.classifier.weight)
    seen["classifier.weight"].square().sum().backward()
    torch.testing.assert_close(tiny_network.classifier.weight.grad, 2 * stored["classifier.weight"])


def test_rounded_training_reaches_weights_that_small_steps_on_a_grid_cannot(
    tiny_network: EiSRC, tiny_pairs: PairTokenizer, shop_set: Build
) -> None:
    start = rounded(tiny_network, "int8")
    settings = {**QUICK, "learning_rate": 2e-4, "epochs": 4, "keep": "last", "early_stopping": 0}
    validation, ends = shop_set(40, 6, 1), {}
    for type_ in (None, "int8"):
        network = copy.deepcopy(start)
        result = fit(network, tiny_pairs, shop_set(40, 6, 0), FitConfig(**settings, round_weights=type_), validation)
        logits = torch.from_numpy(all_logits(rounded(network, "int8"), tiny_pairs, validation, 64))
        ends[type_] = float(F.cross_entropy(logits, torch.from_numpy(validation.relevant).long()))
    assert result.metrics["loss"] == pytest.approx(ends["int8"], abs=1e-5), "measured as it will be stored"
    assert ends["int8"] < ends[None]


def test_early_stopping_and_max_steps(tiny_network: EiSRC, tiny_pairs: PairTokenizer, shop_set: Build) -> None:
    frozen = FitConfig(**{**QUICK, "learning_rate": 1e-12, "epochs": 9}, eval_every=1, early_stopping=3)
    result = fit(tiny_network, tiny_pairs, shop_set(30, 3, 0), frozen, shop_set(8, 3, 1))
    assert result.stopped_early
    assert result.steps == 4  # the first is best, three did no better
    assert result.best_step == 1
    short = fit(tiny_network, tiny_pairs, shop_set(30, 3, 0), FitConfig(**QUICK, max_steps=2))
    assert (short.steps, short.stopped_early, short.metrics) == (2, False, {})


def test_scores_do_not_depend_on_batch_mates(tiny_network: EiSRC, tiny_pairs: PairTokenizer, shop_set: Build) -> None:
    examples = shop_set(5, 4, 2)
    alone, together = (all_logits(tiny_network, tiny_pairs, examples, size) for size in (1, 7))
    np.testing.assert_allclose(alone, together, atol=1e-5)
    batch = collate(examples, np.array([3]), tiny_pairs)
    tiny_network.eval()
    np.testing.assert_allclose(tiny_network(*network_inputs(batch)).detach().numpy()[0], together[3], atol=1e-5)
    assert all_logits(tiny_network, tiny_pairs, examples.take(np.array([], dtype=np.int64)), 4).shape == (0, 1)


def test_schedule_and_decay_groups(tiny_network: EiSRC) -> None:
    optimizer, schedule = make_optimizer(tiny_network, 1.0, 0.01, 4, 20)
    decayed, free = optimizer.param_groups
    names = {id(parameter): name for name, parameter in tiny_network.named_parameters()}
    assert all("norm" not in names[id(p)] and "bias" not in names[id(p)] for p in decayed["params"])
    assert all("norm" in names[id(p)] or "bias" in names[id(p)] for p in free["params"])
    assert (decayed["weight_decay"], free["weight_decay"]) == (0.01, 0.0)
    rates = []
    for _ in range(21):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert rates[12] == pytest.approx(0.5)
    assert rates[20] == 0.0


# Killing and resuming

CHILD = """
import importlib.util, os, signal, sys
import torch

torch.set_num_threads(1)
spec = importlib.util.spec_from_file_location("tiny", sys.argv[1])
tiny = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tiny)
from pertinent.training.fit import fit

pairs = tiny.make_pairs()
network = tiny.make_network(pairs)
calls = [0]

def count(*_):
    calls[0] += network.training
    if calls[0] == 7:
        os.kill(os.getpid(), signal.SIGKILL)

network.register_forward_pre_hook(count)
training, validation = tiny.make_set(pairs, 25, 4, 0), tiny.make_set(pairs, 10, 4, 1)
fit(network, pairs, training, tiny.resumable_config(), validation, sys.argv[2])
"""


@pytest.mark.usefixtures("one_thread")
def test_a_killed_run_resumes_bit_for_bit(
    tiny_network: EiSRC, tiny_pairs: PairTokenizer, shop_set: Build, resumable: FitConfig, tmp_path: Path
) -> None:
    """The child is killed with SIGKILL in the middle of a step between two checkpoints."""
    config, training, validation = resumable, shop_set(25, 4, 0), shop_set(10, 4, 1)
    straight = copy.deepcopy(tiny_network)
    one_go = fit(straight, tiny_pairs, training, config, validation, tmp_path / "straight")

    folder = tmp_path / "killed"
    arguments = [sys.executable, "-c", CHILD, str(Path(__file__).with_name("conftest.py")), str(folder)]
    assert subprocess.run(arguments, check=False).returncode == -signal.SIGKILL
    assert (folder / "checkpoint-4" / checkpoints.COMPLETE).is_file()

    # What a kill in the middle of a save leaves behind must not be taken for a checkpoint.
    (folder / "checkpoint-8").mkdir()
    (folder / "checkpoint-8" / "model.safetensors").write_bytes(b"half")
    resumed = copy.deepcopy(tiny_network)
    rest = fit(resumed, tiny_pairs, training, config, validation, folder, resume=True)
    assert rest.resumed_from == 4
    assert equal(weights(straight), weights(resumed))
    assert rest.metrics == one_go.metrics
    last = f"checkpoint-{one_go.steps}/model.safetensors"
    assert equal(load_file(tmp_path / "straight" / last), load_file(folder / last))

    def reported(history: list[dict[str, float]]) -> list[dict[str, float]]:
        return [{k: v for k, v in entry.items() if not k.startswith("train_")} for entry in history[:-1]]

    assert reported(rest.history) == reported(one_go.history)


def test_a_finished_run_resumes_to_its_result_without_training(
    tiny_network: EiSRC, tiny_pairs: PairTokenizer, shop_set: Build, resumable: FitConfig, tmp_path: Path
) -> None:
    config, training, validation = resumable, shop_set(25, 4, 0), shop_set(10, 4, 1)
    for valid in (validation, None):
        first, again = copy.deepcopy(tiny_network), copy.deepcopy(tiny_network)
        folder = tmp_path / str(valid is None)
        before = fit(first, tiny_pairs, training, config, valid, folder)
        after = fit(again, tiny_pairs, training, config, valid, folder, resume=True)
        assert after.resumed_from == before.steps
        assert equal(weights(first), weights(again))
        assert after.metrics == before.metrics


def test_other_settings_or_data_do_not_resume(
    tiny_network: EiSRC,
    tiny_pairs: PairTokenizer,
    shop_set: Build,
    resumable: FitConfig,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    config, training, validation = resumable, shop_set(25, 4, 0), shop_set(10, 4, 1)
    fit(tiny_network, tiny_pairs, training, config, validation, tmp_path)
    assert "begins anew" not in caplog.text
    other = config.model_copy(update={"seed": 5, "log_every": 1})
    with pytest.raises(ConfigError, match=r"begun with other seed; set them back, or set resume: false"):
        fit(tiny_network, tiny_pairs, training, other, validation, tmp_path, resume=True)
    with pytest.raises(ConfigError, match="training pairs"):
        fit(tiny_network, tiny_pairs, shop_set(25, 4, 7), config, validation, tmp_path, resume=True)
    assert fit(tiny_network, tiny_pairs, training, other, validation, tmp_path).resumed_from == 0
    assert "is removed, training begins anew; with --resume and the same settings it would" in caplog.text


def test_a_second_run_in_the_same_folder_is_told_so(
    tiny_network: EiSRC, tiny_pairs: PairTokenizer, shop_set: Build, tmp_path: Path
) -> None:
    code = (
        "import sys, time; from pathlib import Path; from pertinent.training.checkpoints import locked\n"
        "with locked(sys.argv[1]) as f: print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(ArtifactError, match=rf"another run \(process {other.pid}\) is working here"):
            fit(tiny_network, tiny_pairs, shop_set(3, 3, 0), FitConfig(**QUICK), folder=tmp_path)
        other.kill()
    with checkpoints.locked(tmp_path):  # a killed run leaves no lock behind
        pass


# What must not be survived


def test_a_nan_stops_the_run_saves_the_batch_and_writes_no_weights(
    tiny_network: EiSRC, tiny_pairs: PairTokenizer, shop_set: Build, tmp_path: Path
) -> None:
    calls = [0]

    def spoil(module: torch.nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        calls[0] += module.training
        return output * torch.nan if calls[0] == 3 and module.training else output

    tiny_network.register_forward_hook(spoil)
    training = shop_set(30, 4, 0)
    with pytest.raises(TrainingError, match=r"step 3: the loss is nan; the batch is saved in .*broken-batch"):
        fit(tiny_network, tiny_pairs, training, FitConfig(**QUICK, eval_every=2), shop_set(5, 3, 1), tmp_path)
    batch = load_file(tmp_path / "broken-batch.safetensors")
    assert {"token_ids", "mask", "relevant", "group"} <= batch.keys()
    assert len(batch["token_ids"]) == 32
    assert (tmp_path / "checkpoint-2" / checkpoints.COMPLETE).is_file()
    for file in tmp_path.rglob("*.safetensors"):
        if file.name != "broken-batch.safetensors":
            assert all(value.isfinite().all() for value in load_file(file).values())


def test_an_infinite_gradient_stops_the_run(
    tiny_network: EiSRC, tiny_pairs: PairTokenizer, shop_set: Build, tmp_path: Path
) -> None:
    tiny_network.classifier.weight.register_hook(lambda gradient: gradient * torch.inf)
    before = weights(tiny_network)
    with pytest.raises(TrainingError, match="the gradient norm is"):
        fit(tiny_network, tiny_pairs, shop_set(10, 4, 0), FitConfig(**QUICK), folder=tmp_path)
    assert equal(before, weights(tiny_network))


def test_weights_that_are_not_finite_are_never_written(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    checkpoints.save_weights(path, {"a": torch.ones(2)})
    with pytest.raises(ArtifactError, match="not finite in a"):
        checkpoints.save_weights(path, {"a": torch.tensor([1.0, torch.nan])})
    assert checkpoints.load_weights(path)["a"].tolist() == [1.0, 1.0]
    path.write_bytes(b"damaged")
    with pytest.raises(ArtifactError, match="resume: false"):
        checkpoints.load_weights(path)


def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before(
    tiny_network: EiSRC,
    tiny_pairs: PairTokenizer,
    shop_set: Build,
    resumable: FitConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    save = torch.save
    monkeypatch.setattr(torch, "save", lambda *a, **k: _full_disk() if "checkpoint-4" in str(a[1]) else save(*a, **k))
    config, training, validation = resumable, shop_set(25, 4, 0), shop_set(10, 4, 1)
    config = config.model_copy(update={"eval_every": 2})
    with pytest.raises(ArtifactError, match=r"checkpoint 4 cannot be written .*resume: true"):
        fit(copy.deepcopy(tiny_network), tiny_pairs, training, config, validation, tmp_path)
    monkeypatch.undo()
    assert fit(tiny_network, tiny_pairs, training, config, validation, tmp_path, resume=True).resumed_from == 2


def _full_disk() -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize(
    ("objective", "change", "words"),
    [
        ([Softmax()], {"relevant": np.ones(6, dtype=np.float32)}, "all 6 training pairs are relevant"),
        ([Softmax()], {"relevant": np.zeros(6, dtype=np.float32)}, "irrelevant.*positive_grade"),
        ([MarginMSE()], {"teacher": np.full(6, np.nan, dtype=np.float32)}, "margin_mse needs a teacher_logit"),
    ],
)
def test_nothing_to_learn_from_is_said_before_training(
    tiny_network: EiSRC, tiny_pairs: PairTokenizer, shop_set: Build, objective: Any, change: Any, words: str
) -> None:
    from dataclasses import replace

    with pytest.raises(DataError, match=words):
        fit(tiny_network, tiny_pairs, replace(shop_set(2, 3, 0), **change), FitConfig(**QUICK, objective=objective))
    with pytest.raises(DataError, match="no pairs to train on"):
        fit(tiny_network, tiny_pairs, shop_set(2, 3, 0).take(np.array([], dtype=np.int64)), FitConfig(**QUICK))


def test_all_labels_equal_and_groups_of_one_still_train(
    tiny_network: EiSRC, tiny_pairs: PairTokenizer, shop_set: Build
) -> None:
    """Margins have nothing to say about single items: the loss is 0, the weights stay finite."""
    singles = shop_set(6, 1, 0)
    fit(tiny_network, tiny_pairs, singles, FitConfig(**QUICK, objective=[MarginMSE()]), singles)
    assert all(value.isfinite().all() for value in weights(tiny_network).values())


def test_bf16_is_refused_on_a_cpu(tiny_network: EiSRC, tiny_pairs: PairTokenizer, shop_set: Build) -> None:
    with pytest.raises(ConfigError, match="bf16 is slower than float32 on a CPU"):
        fit(tiny_network, tiny_pairs, shop_set(2, 3, 0), FitConfig(**QUICK, precision="bf16"))


# What a user sees


def test_nothing_is_printed_by_default(
    tiny_network: EiSRC, tiny_pairs: PairTokenizer, shop_set: Build, capfd: pytest.CaptureFixture[str]
) -> None:
    fit(tiny_network, tiny_pairs, shop_set(9, 3, 0), FitConfig(**QUICK, log_every=1), shop_set(4, 3, 1))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("terminal", [False, True])
def test_progress_goes_to_the_error_stream(
    tiny_network: EiSRC,
    tiny_pairs: PairTokenizer,
    shop_set: Build,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    terminal: bool,
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    config = FitConfig(**QUICK, progress=True)
    fit(tiny_network, tiny_pairs, shop_set(9, 3, 0), config, shop_set(4, 3, 1), title="stage one")
    out, err = capsys.readouterr()
    assert out == ""
    assert "stage one" in err
    if not terminal:
        assert "step 2 of 2, eval_score" in err


def test_tensorboard_writes_beside_the_checkpoints(
    tiny_network: EiSRC, tiny_pairs: PairTokenizer, shop_set: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorboard")
    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR", raising=False)
    config = FitConfig(**QUICK, report_to="tensorboard")
    fit(tiny_network, tiny_pairs, shop_set(9, 3, 0), config, folder=tmp_path / "m.checkpoints")
    assert list((tmp_path / "m.logs").rglob("events.out.tfevents.*"))
    assert "TENSORBOARD_LOGGING_DIR" not in os.environ


def test_an_unknown_tracker_is_a_config_error(tiny_network: EiSRC, tiny_pairs: PairTokenizer, shop_set: Build) -> None:
    with pytest.raises(ConfigError, match=r"report_to: tensorbord.*is not supported"):
        fit(tiny_network, tiny_pairs, shop_set(2, 3, 0), FitConfig(**QUICK, report_to=["tensorbord"]))


def test_settings_are_read_without_torch() -> None:
    code = "import sys, pertinent.training.run; bad = {'torch', 'transformers'} & set(sys.modules); assert not bad, bad"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_time_of_a_step_outside_the_network_is_small(tiny_pairs: PairTokenizer, shop_set: Build) -> None:
    """Making a batch of 256 pairs is well under five milliseconds on any machine that runs the tests."""
    examples = shop_set(100, 6, 0)
    rows = np.random.default_rng(0).integers(0, len(examples), (20, 256))
    collate(examples, rows[0], tiny_pairs)
    times = []
    for batch in rows:
        started = time.perf_counter()
        collate(examples, batch, tiny_pairs)
        times.append(time.perf_counter() - started)
    assert sorted(times)[5] < 0.005


def test_run_file_says_what_the_checkpoints_belong_to(
    tiny_network: EiSRC, tiny_pairs: PairTokenizer, shop_set: Build, tmp_path: Path
) -> None:
    fit(tiny_network, tiny_pairs, shop_set(6, 3, 0), FitConfig(**QUICK), folder=tmp_path)
    run = json.loads((tmp_path / checkpoints.RUN).read_text())
    assert run["seed"] == 0
    assert run["validation pairs"] is None
    assert "progress" not in run
    (tmp_path / "mine.txt").write_text("kept")
    checkpoints.remove(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["mine.txt"]
