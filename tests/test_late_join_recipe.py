"""The recipe of the late join: logits are those of the model and the pairs that were asked for."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from pertinent.artifact import Artifact
from pertinent.engine.scorer import Scorer

RECIPE = Path(__file__).parents[1] / "recipes" / "late_join.py"


@pytest.fixture(scope="module")
def recipe() -> Any:
    spec = importlib.util.spec_from_file_location("late_join", RECIPE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_logits_are_kept_until_model_files_or_limit_change(
    recipe: Any, tiny_artifact: Artifact, network_maker: Any, artifact_maker: Any, tiny_pairs: Any, tmp_path: Path
) -> None:
    network = network_maker("ei_src", tiny_pairs.vocabulary_size, 7)
    other = artifact_maker(tmp_path / "other", network, tiny_pairs, graph=False)
    scorers = [Scorer.load(folder.path, backend="torch", threads=1) for folder in (tiny_artifact, other)]
    judgments, pairs, out = tmp_path / "judgments.csv", tmp_path / "pairs.csv", tmp_path / "late_pairs.csv"
    judgments.write_text("query,title,grade,split\nmug,coffee mug,1,train\nmug,tea pot,0,test\n")
    pairs.write_text("query,title\nnaïve,green water bottle\nusb,usb cable\n")

    def made(scorer: int = 0, limit: int = 10) -> bool:
        return bool(recipe.need_exact_pairs(out, scorers[scorer], judgments, pairs, limit))

    assert made()
    first = out.read_text()
    assert len(first.splitlines()) == 4
    assert not made()
    assert made(scorer=1)
    assert out.read_text() != first
    assert made()
    assert out.read_text() == first
    assert made(limit=2)
    assert len(out.read_text().splitlines()) == 3
    pairs.write_text("query,title\nusb,usb charger\n")
    assert made(limit=2)
    judgments.write_text("query,title,grade,split\nmug,coffee mug,1,train\nmug,tea pot,0,valid\n")
    assert made(limit=2)
    assert not made(limit=2)
    out.with_suffix(".json").unlink()  # killed before the note was written
    assert made(limit=2)
