"""The docs say what the code does: flags, settings, names and links are compared with their source."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from pertinent.cli import COMMANDS, build_parser, load
from pertinent.data.grades import SCALES
from pertinent.data.public import DATASETS
from pertinent.data.tables import ITEM_COLUMNS, JUDGMENT_COLUMNS
from pertinent.engine.backends import BACKENDS
from pertinent.evaluation.metrics import METRICS
from pertinent.models import MODELS
from pertinent.objectives.spec import MarginMSE, ScoreMSE, Softmax, SoftTarget

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([ROOT / "README.md", *ROOT.glob("docs/**/*.md"), ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md"])
COMMON = {"--config", "--set", "--json", "--verbose", "--help"}
# Where the settings of a command that have no flag are described, with their defaults.
SETTINGS_PAGES = {
    "train": "training.md",
    "pretrain": "pretraining.md",
    "evaluate": "evaluation.md",
    "study": "evaluation.md",
    "compare": "compare.md",
    "review make": "compare.md",
    "review read": "compare.md",
    "export": "engine.md",
    "index": "engine.md",
    "bulk": "engine.md",
    "cache": "caches.md",
    "bench": "bench.md",
    "serve": "server.md",
    "load": "load.md",
    "data synthesize": "synthetic-shop.md",
    "data weak": "weak-pairs.md",
    "lexicon": "lexicon.md",
    "mine": "mining.md",
}


def page(name: str) -> str:
    return (ROOT / "docs" / name).read_text(encoding="utf-8")


def prose(text: str) -> str:
    """A page without its code blocks."""
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


def sections(text: str) -> dict[str, str]:
    """Second-level headings of a page, each with the text below it; what comes first is under ""."""
    parts = re.split(r"^## (.+)$", prose(text), flags=re.MULTILINE)
    return {"": parts[0], **dict(zip(parts[1::2], parts[2::2], strict=True))}


def first_cells(text: str) -> list[str]:
    """The first cell of each row of the tables in a text."""
    return [row.split("|")[1].strip() for row in text.splitlines() if row.startswith("| ")]


def code_words(cells: list[str]) -> set[str]:
    return {word for cell in cells for word in re.findall(r"`([^`]+)`", cell)}


def parser_of(command: str) -> argparse.ArgumentParser:
    actions = build_parser()._subparsers
    assert actions is not None
    choices: Any = actions._group_actions[0].choices
    found: argparse.ArgumentParser = choices[command]
    return found


def flags_of(command: str) -> set[str]:
    """What --help of a command lists: its flags by their long names, its places by the name shown."""
    found = set()
    for action in parser_of(command)._actions:
        long = [option for option in action.option_strings if option.startswith("--")]
        found |= set(long) if long else {str(action.metavar)}
    return found


def anchor(heading: str) -> str:
    """The name by which a heading is linked to, as code hosts make it."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def test_every_command_has_a_section_and_every_section_a_command() -> None:
    assert set(sections(page("cli.md"))) - {""} == set(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_flags_in_help_and_in_the_docs_are_the_same(command: str) -> None:
    documented = code_words(first_cells(sections(page("cli.md"))[command]))
    common = COMMON - {"--config"} if COMMANDS[command].file_place else COMMON
    assert documented == flags_of(command) - common


def test_common_flags_are_those_of_every_command() -> None:
    table = sections(page("cli.md"))[""]
    assert {word for word in code_words(first_cells(table)) if word.startswith("--")} == COMMON
    assert all(flags_of(name) >= COMMON - {"--config"} for name in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_setting_is_a_flag_or_documented(command: str) -> None:
    by_flag = {flag.setting for flag in COMMANDS[command].flags}
    without_flag = set(load(COMMANDS[command].config).model_fields) - by_flag
    told = code_words(first_cells(page(SETTINGS_PAGES[command]))) if command in SETTINGS_PAGES else set()
    if command == "export":
        told |= code_words(re.findall(r"^\|[^|]+\|([^|]+)\|", page("engine.md"), flags=re.MULTILINE))
    assert without_flag <= told


@pytest.mark.parametrize(
    ("name", "heading", "command"),
    [
        ("training.md", "Settings", "train"),
        ("pretraining.md", "Settings", "pretrain"),
        ("evaluation.md", "Settings without a flag", "evaluate"),
        ("evaluation.md", "Several systems: a study", "study"),
        ("engine.md", "Index", "index"),
        ("engine.md", "Export", "export"),
        ("caches.md", "Settings", "cache"),
        ("server.md", "Settings", "serve"),
        ("load.md", "Settings", "load"),
        ("synthetic-shop.md", "Settings", "data synthesize"),
        ("weak-pairs.md", "Settings", "data weak"),
        ("lexicon.md", "Settings", "lexicon"),
        ("mining.md", "Settings", "mine"),
    ],
)
def test_defaults_in_the_docs_are_those_of_the_code(name: str, heading: str, command: str) -> None:
    fields = load(COMMANDS[command].config).model_fields
    rows = re.findall(r"^\| `(\w+)` \| (`[^`]*`|required) \|", sections(page(name))[heading], flags=re.MULTILINE)
    rows += re.findall(r"^\|[^|]+\| `(\w+)` \| (`[^`]*`) \|$", sections(page(name))[heading], flags=re.MULTILINE)
    assert rows
    for setting, cell in rows:
        if cell == "required":
            assert fields[setting].is_required(), setting
            continue
        told = yaml.safe_load(cell.strip("`"))
        config = load(COMMANDS[command].config).model_construct()
        value = config.model_dump(mode="json", include={setting}, exclude_unset=False)[setting]
        if setting == "objective":
            assert [loss["type"] for loss in value] == [loss["type"] for loss in told]
        else:
            assert told == value, setting


@pytest.mark.parametrize(("heading", "setting"), [("Limits", "limits"), ("Under load", "queue")])
def test_limits_in_the_docs_are_those_of_the_server(heading: str, setting: str) -> None:
    rows = re.findall(r"^\| `(\w+)` \| `([^`]*)` \|", sections(page("server.md"))[heading], flags=re.MULTILINE)
    config = load(COMMANDS["serve"].config)()
    assert {name: yaml.safe_load(default) for name, default in rows} == getattr(config, setting).plain()


def test_cache_settings_in_the_docs_are_those_of_the_server() -> None:
    rows = re.findall(
        r"^\| `cache\.(\w+)` \| `([^`]*)` \|", sections(page("caches.md"))["Settings"], flags=re.MULTILINE
    )
    config = load(COMMANDS["serve"].config)()
    assert {name: yaml.safe_load(default) for name, default in rows} == config.cache.plain()


def test_training_has_a_row_for_each_setting() -> None:
    rows = code_words(first_cells(sections(page("training.md"))["Settings"]))
    assert rows == set(load(COMMANDS["train"].config).model_fields)


def test_losses_and_their_settings_are_documented() -> None:
    table = sections(page("training.md"))["Objectives"]
    for loss in (Softmax, SoftTarget, MarginMSE, ScoreMSE):
        row = next(line for line in table.splitlines() if line.startswith(f"| `{loss.model_fields['type'].default}` |"))
        assert code_words([row.split("|")[4]]) == set(loss.model_fields) - {"type"}


def test_metrics_scales_models_backends_and_data_sets_are_documented() -> None:
    metrics = {word.partition("@")[0] for word in code_words(first_cells(sections(page("evaluation.md"))["Metrics"]))}
    assert metrics - {"ece"} >= set(METRICS) - {"ece"} and "ece" in metrics
    guide = sections(page("which-data.md"))
    assert code_words([guide["Grade scales"]]) >= set(SCALES)
    files = code_words(first_cells(guide["Files"]))
    assert files >= set(ITEM_COLUMNS) | set(JUDGMENT_COLUMNS)
    assert code_words(first_cells(page("engine.md"))) >= set(BACKENDS)
    assert all(f"`{name}`" in page("methods.md") for name in MODELS)
    assert code_words(first_cells(page("data-card.md"))) >= set(DATASETS)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(path.read_text(encoding="utf-8"))):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, place = target.partition("#")
        file = path.parent / name if name else path
        assert file.exists(), target
        if place:
            headings = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), flags=re.MULTILINE)
            assert place in {anchor(heading) for heading in headings}, target


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_files_named_in_the_docs_are_there(path: Path) -> None:
    named = re.findall(r"\b(?:configs|recipes|examples|benchmarks)/[\w./-]+\.\w+", path.read_text(encoding="utf-8"))
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_decisions_are_numbered_and_listed() -> None:
    notes = sorted(file.name for file in (ROOT / "docs" / "decisions").glob("0*.md"))
    listed = re.findall(r"\((0[\w-]+\.md)\)", page("decisions/README.md"))
    assert listed == notes
    assert [int(name[:4]) for name in notes] == list(range(1, len(notes) + 1))
