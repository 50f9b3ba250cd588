"""Every file in configs/ is one that its command takes; a new file is tested by lying there."""

from __future__ import annotations

from pathlib import Path

import pytest

from pertinent.config import Config
from pertinent.data.synthetic import SynthesizeConfig
from pertinent.lexicon.run import LexiconConfig
from pertinent.mining.run import MineConfig
from pertinent.studies import StudyConfig
from pertinent.training.pretrain import PretrainConfig
from pertinent.training.run import TrainConfig

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
FILES = sorted(path for path in CONFIGS.rglob("*") if path.is_file())
# The class of a file, by the first pattern that its place under configs/ matches.
CLASSES: dict[str, type[Config]] = {
    "studies/*.yaml": StudyConfig,
    "train*.yaml": TrainConfig,
    "ei-src-pretrain.yaml": PretrainConfig,
    "ei-src-*.yaml": TrainConfig,
    "shipped-*.yaml": TrainConfig,
    "late-*.yaml": TrainConfig,
    "lexicon*.yaml": LexiconConfig,
    "synthesize*.yaml": SynthesizeConfig,
    "mine*.yaml": MineConfig,
}


def class_of(path: Path) -> type[Config]:
    place = path.relative_to(CONFIGS)
    found = [config for pattern, config in CLASSES.items() if place.match(pattern)]
    assert found, (
        f"{place}: no command is known for it; name it like one of {', '.join(CLASSES)}, or add its pattern here"
    )
    return found[0]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(CONFIGS).as_posix())
def test_every_file_loads_and_survives_a_round_trip(path: Path) -> None:
    settings = class_of(path).load(path)
    assert class_of(path).build(settings.plain()) == settings


def test_every_kind_of_file_is_there() -> None:
    assert {class_of(path) for path in FILES} == set(CLASSES.values())
    assert {"train-esci.yaml", "train-from-shipped.yaml"} <= {path.name for path in FILES}
