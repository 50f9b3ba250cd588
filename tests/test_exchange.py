"""A model goes out to sentence-transformers and comes back with the scores it had."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pertinent.artifact import open_artifact, write_artifact, write_json
from pertinent.cli import main
from pertinent.engine.scorer import Scorer
from pertinent.lexicon.pairs import PairConfig, PairTokenizer
from pertinent.models.store import save_network
from pertinent.probability import CALIBRATION_FILE, Isotonic, Platt

TITLES = ["wireless earbuds case", "usb cable 2 m", "steel water bottle", "café mug"]


@pytest.fixture
def model(tmp_path: Path, network_maker: Any, artifact_maker: Any, tiny_tokenizer: Any) -> Path:
    pairs = PairTokenizer(tiny_tokenizer, PairConfig(query_length=16, item_length=48, positions="running"))
    network = network_maker("ei_src", pairs.vocabulary_size)
    return Path(artifact_maker(tmp_path / "model", network, pairs).path)


def test_out_to_cross_encoder_and_back_by_command(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    from sentence_transformers import CrossEncoder

    plain, back = tmp_path / "plain", tmp_path / "back"
    assert main(["export", str(model), "--format", "hugging_face", "--out", str(plain)]) == 0
    assert main(["export", str(plain), "--no-int8", "--out", str(back)]) == 0
    assert str(plain) in capsys.readouterr().out
    ours = Scorer.load(model).score("usb cable", TITLES)
    theirs = CrossEncoder(str(plain)).predict([("usb cable", title) for title in TITLES])
    again = Scorer.load(back, backend="onnx").score("usb cable", TITLES)
    np.testing.assert_allclose(ours, theirs, atol=1e-4)
    np.testing.assert_allclose(ours, again, atol=1e-4)


@pytest.mark.parametrize("labels", [1, 2])
def test_calibrated_scores_stay_what_they_were(
    tmp_path: Path, network_maker: Any, tiny_tokenizer: Any, capsys: pytest.CaptureFixture, labels: int
) -> None:
    from sentence_transformers import CrossEncoder

    pairs = PairTokenizer(tiny_tokenizer, PairConfig(query_length=16, item_length=48, positions="running"))
    network = network_maker("ei_src", pairs.vocabulary_size, labels=labels)
    model, plain = tmp_path / "model", tmp_path / "plain"
    with write_artifact(model, "model", {}) as folder:
        save_network(folder, network, pairs)
        write_json(folder / CALIBRATION_FILE, Platt(1.7, -0.6).plain())
    assert main(["export", str(model), "--format", "hugging_face", "--out", str(plain)]) == 0
    ours = Scorer.load(model).score("usb cable", TITLES)
    theirs = CrossEncoder(str(plain), device="cpu").predict([("usb cable", title) for title in TITLES])
    np.testing.assert_allclose(ours, theirs, atol=1e-4)
    uncalibrated = 1 / (1 + np.exp(-Scorer.load(model).logits("usb cable", TITLES)))
    assert np.abs(ours - uncalibrated).max() > 0.05


def test_isotonic_calibrations_cannot_go_out(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    files = open_artifact(model)
    with write_artifact(tmp_path / "isotonic", "model", {}) as folder:
        for name in files.manifest["files"]:
            shutil.copyfile(files.file(name), folder / name)
        write_json(folder / CALIBRATION_FILE, Isotonic((0.0, 1.0), (0.2, 0.8), 0.001, Platt()).plain())
    out = tmp_path / "plain"
    assert main(["export", str(tmp_path / "isotonic"), "--format", "hugging_face", "--out", str(out)]) == 2
    assert "train with `calibration: platt` or `calibration: none`" in capsys.readouterr().err
    assert not out.exists()


def test_what_cannot_go_out_leaves_nothing(
    tiny_artifact: Any, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / "plain"
    assert main(["export", str(tiny_artifact.path), "--format", "hugging_face", "--out", str(out)]) == 2
    assert "train with `positions: running`" in capsys.readouterr().err
    assert main(["export", str(model), "--format", "hugging_face"]) == 2
    assert "out: is required" in capsys.readouterr().err
    assert main(["export", str(model), "--format", "hugging_face", "--out", str(model)]) == 2
    assert "exists; choose another folder" in capsys.readouterr().err
    assert not [path for path in tmp_path.iterdir() if path.name != "model"]


def test_a_typo_is_one_problem(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    config = tmp_path / "train.yaml"
    config.write_text("sample: esci\nobjective: [{type: softmax, wieght: 1}]\n")
    assert main(["train", "--config", str(config)]) == 2
    assert capsys.readouterr().err.strip().splitlines() == [
        f"error: {config}: objective.0.wieght: unknown key; did you mean 'weight'?"
    ]
