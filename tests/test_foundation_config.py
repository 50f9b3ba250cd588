from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from pertinent.config import Config, override, read_yaml
from pertinent.errors import ConfigError


class Softmax(Config):
    type: Literal["softmax"] = "softmax"
    weight: float = 1.0


class Adversarial(Config):
    type: Literal["adversarial"] = "adversarial"
    norm: Literal["l1", "l2"] = "l2"


class Pairs(Config):
    query_length: int = Field(16, ge=1)


class Run(Config):
    judgments: str
    epochs: int = Field(2, ge=1)
    pairs: Pairs = Pairs()
    objective: list[Annotated[Softmax | Adversarial, Field(discriminator="type")]] = [Softmax()]
    extra: dict[str, float] = {}
    start: str | None = None


def written(folder: Path, text: str) -> Path:
    path = folder / "train.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def message(call: Any, *arguments: Any, **named: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        call(*arguments, **named)
    return str(caught.value)


def test_all_problems_are_reported_together_with_dotted_path_and_suggestion(tmp_path: Path) -> None:
    path = written(tmp_path, "epohcs: 3\npairs: {query_length: 0}\nobjective: [{type: adversarial, nrom: l1}]\n")
    lines = message(Run.load, path).splitlines()
    assert f"{path}: judgments: this setting is required" in lines
    assert f"{path}: epohcs: unknown key; did you mean 'epochs'?" in lines
    assert f"{path}: objective.0.nrom: unknown key; did you mean 'norm'?" in lines
    assert any(line.startswith(f"{path}: pairs.query_length:") and line.endswith("got 0") for line in lines)
    assert len(lines) == 4


def test_a_key_that_resembles_none_gets_the_list_of_keys() -> None:
    text = message(Run.build, {"judgments": "a", "pairs": {"xyz": 1}}, source="train.yaml")
    assert text == "train.yaml: pairs.xyz: unknown key; allowed: query_length"


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"objective": [{"type": "softmx"}]}, "objective.0: unknown type 'softmx'; did you mean 'softmax'?"),
        ({"objective": [{"type": 3}]}, "objective.0: unknown type '3'; allowed: softmax, adversarial"),
        (
            {"objective": [{"weight": 1}]},
            "objective.0: the key 'type' is required and names the kind, got {'weight': 1}",
        ),
        ({"objective": "softmax"}, "objective: a list is expected: [first, second], got 'softmax'"),
        ({"extra": 3}, "extra: settings of its own are expected, one `key: value` a line, got 3"),
    ],
)
def test_a_wrong_kind_is_told_in_the_words_of_the_file(values: dict[str, Any], expected: str) -> None:
    assert message(Run.build, {"judgments": "a", **values}, source="train.yaml") == f"train.yaml: {expected}"


def test_precedence_is_default_then_file_then_override(tmp_path: Path) -> None:
    path = written(tmp_path, "judgments: a.csv\nepochs: 5\n")
    assert Run.load(path).epochs == 5
    assert Run.load(path, ["epochs=7"]).epochs == 7
    assert Run.load(path, ["epochs=7", "epochs=8"]).epochs == 8
    assert Run.load(path).pairs.query_length == 16
    assert Run.load(path, ["pairs.query_length=8"]).pairs.query_length == 8


def test_plain_and_back_is_equal() -> None:
    run = Run(judgments="a", objective=[Softmax(weight=0.5), Adversarial(norm="l1")], extra={"é": 1.5})
    assert Run.build(run.plain()) == run
    assert Run.build(yaml.safe_load(yaml.safe_dump(run.plain()))) == run


def test_configs_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Run(judgments="a").epochs = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: [1,\n", "line 2, column 1"),
        ("a: 1\n b: 2\n", "line 2, column 3"),
        ("- 1\n- 2\n", "expected settings as 'key: value' lines"),
        ("just words\n", "expected settings as 'key: value' lines"),
        ("a: \x00\n", "train.yaml"),
        ("a: 1\nout: 2026-13-45\n", "line 2, column 6: '2026-13-45' is not a value; quote it"),
        ("a: {b: [2001-12-14 21:59:43 +99:99]}\n", "line 1, column 9: '2001-12-14 21:59:43 +99:99' is not a value"),
        ("epochs: " + "1" * 5000 + "\n", "line 1, column 9: '1111"),
        ("a: !!int ''\n", "line 1, column 4: '' is not a value"),
        ("a: !!bool x\n", "line 1, column 4: 'x' is not a value"),
        ("a: !!timestamp x\n", "line 1, column 4: 'x' is not a value"),
        ("a: " + "[" * 5000 + "\n", "nested too deep"),
        ("a: &x [*x]\n", "nested too deep, or holds itself"),
    ],
)
def test_broken_yaml_says_where(tmp_path: Path, text: str, expected: str) -> None:
    path = written(tmp_path, text)
    said = message(read_yaml, path)
    assert said.startswith(str(path))
    assert expected in said
    assert "\n" not in said


def test_an_empty_file_has_no_settings(tmp_path: Path) -> None:
    assert read_yaml(written(tmp_path, "")) == {}
    assert read_yaml(written(tmp_path, "# nothing\n")) == {}


def test_a_missing_file_suggests_the_nearest(tmp_path: Path) -> None:
    written(tmp_path, "a: 1\n")
    assert "did you mean" in message(read_yaml, tmp_path / "tran.yaml")
    assert "no such config file" in message(read_yaml, tmp_path / "nowhere" / "x.yaml")


def test_what_is_not_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "train.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    assert "UTF-8" in message(read_yaml, path)
    assert "cannot be read" in message(read_yaml, tmp_path)


def test_yaml_cannot_make_objects(tmp_path: Path) -> None:
    path = written(tmp_path, "a: !!python/object/apply:os.system ['echo no']\n")
    assert "train.yaml" in message(read_yaml, path)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("epochs", "expected a.b=value"),
        ("=3", "expected a.b=value"),
        ("objective.5.weight=1", "'5' is not a place in a list of 1"),
        ("objective.x=1", "'x' is not a place in a list of 1"),
        ("epochs=[1", "not valid YAML"),
        ("out=2026-13-45", "the value is not valid YAML; quote it"),
        ("out=!!int ''", "the value is not valid YAML; quote it"),
        ("out=&x [*x]", "the value is not valid YAML; quote it"),
    ],
)
def test_a_wrong_override_is_named(text: str, expected: str) -> None:
    said = message(override, {"objective": [{"type": "softmax"}]}, [text])
    assert said.startswith(f"--set {text}: ")
    assert expected in said


def test_a_number_of_too_many_digits_is_not_printed() -> None:
    assert message(override, {}, ["a.b=" + "1" * 5000]) == "--set a.b: the value is not valid YAML; quote it"


@pytest.mark.parametrize("raw", ["3", "0.5", "true", "null", "[1, 2]", "{a: 1}", "2.0e-5", "a=b", "'12:30'", "é"])
def test_override_values_are_yaml(raw: str) -> None:
    assert override({}, [f"a.b={raw}"]) == {"a": {"b": yaml.safe_load(raw)}}


@given(st.dictionaries(st.sampled_from("abc"), st.integers() | st.lists(st.integers(), min_size=1), max_size=3))
def test_override_leaves_its_argument_alone(values: dict[str, Any]) -> None:
    before = yaml.safe_dump(values)
    override(values, ["a=1", "new.deep.key=2"])
    assert yaml.safe_dump(values) == before


def test_override_can_replace_a_scalar_by_settings() -> None:
    assert override({"start": "x", "list": [[1, 2]]}, ["start.folder=y", "list.0.1=5"]) == {
        "start": {"folder": "y"},
        "list": [[1, 5]],
    }
