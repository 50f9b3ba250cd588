"""Typed settings: one frozen class a stage, read from YAML, changed by ``--set``, checked at once.

Precedence: the class default, then the YAML file, then ``--set a.b=value``. Unknown keys are
errors, and all problems of a file are reported together, each with its dotted path.
"""

from __future__ import annotations

import difflib
import zoneinfo
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Self, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError

from pertinent.errors import ConfigError, shorten

ConfigT = TypeVar("ConfigT", bound="Config")
_SETTINGS = "settings of its own are expected, one `key: value` a line"
_LIST = "a list is expected: [first, second]"
# What pydantic says in terms of Python, in terms of a YAML file.
_EXPECTED = {
    "dict_type": _SETTINGS,
    "model_type": _SETTINGS,
    "model_attributes_type": _SETTINGS,
    "list_type": _LIST,
    "tuple_type": _LIST,
}


def _known_zone(name: str) -> str:
    try:
        zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError("is not a time zone; name one such as UTC or Europe/Berlin") from None
    return name


TimeZone = Annotated[str, AfterValidator(_known_zone)]


class Config(BaseModel):
    """Base of every settings class: frozen, unknown keys refused, no silent conversion of text."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    @classmethod
    def build(cls, values: Mapping[str, Any], source: str = "config") -> Self:
        """Settings from plain values; all problems in one ConfigError, ``source`` in front."""
        try:
            return cls.model_validate(dict(values))
        except ValidationError as error:
            raise ConfigError("\n".join(_problems(cls, error, source))) from None

    @classmethod
    def load(cls, path: str | Path, overrides: Iterable[str] = ()) -> Self:
        """Settings from a YAML file, changed by ``a.b=value`` overrides.

        Raises ConfigError for a missing file, broken YAML, unknown keys and wrong values.
        """
        return cls.build(override(read_yaml(path), overrides), source=str(path))

    def plain(self) -> dict[str, Any]:
        """The settings as JSON-able values; ``build(plain())`` gives an equal object."""
        return self.model_dump(mode="json")


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file. Raises ConfigError with line and column where it is broken."""
    path = Path(path)
    try:
        values = _copy(_parse(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        near = difflib.get_close_matches(path.name, _names_beside(path), n=1)
        hint = f"; did you mean {path.parent / near[0]}?" if near else ""
        raise ConfigError(f"{path}: no such config file{hint}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as UTF-8 text: {error}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        spot = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        problem = getattr(error, "problem", None) or "not valid YAML"
        raise ConfigError(f"{path}: {spot}{problem}") from None
    except RecursionError:
        raise ConfigError(f"{path}: is nested too deep, or holds itself") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected settings as 'key: value' lines, got {shorten(values)}")
    return values


def override(values: dict[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """A copy with each ``a.b=value`` applied; values are read as YAML, list places as numbers.

    >>> override({"epochs": 1, "objective": [{"type": "softmax"}]},
    ...          ["epochs=3", "objective.0.weight=0.5"])
    {'epochs': 3, 'objective': [{'type': 'softmax', 'weight': 0.5}]}
    """
    values = _copy(values)
    for text in overrides:
        path, equals, raw = text.partition("=")
        if not equals or not path:
            raise ConfigError(f"--set {text}: expected a.b=value, such as --set epochs=3")
        try:
            value = _copy(_parse(raw))
        except (yaml.YAMLError, RecursionError):
            shown = path if len(text) > 100 else text
            raise ConfigError(f"--set {shown}: the value is not valid YAML; quote it") from None
        *parents, last = path.split(".")
        spot: Any = values
        for key in parents:
            spot = _enter(spot, key, text)
        if isinstance(spot, list):
            spot[_place(spot, last, text)] = value
        else:
            spot[last] = value
    return values


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader; where it fails in Python's own words, it says the place as elsewhere."""

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        # 2026-13-45 looks like a date and is none; a number may have too many digits.
        except (ValueError, OverflowError, LookupError, AttributeError, TypeError):
            problem = f"{shorten(node.value)} is not a value; quote it if it is text"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark) from None


def _parse(text: str) -> Any:
    return yaml.load(text, Loader=_Loader)


def _copy(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copy(item) for key, item in value.items()}
    return [_copy(item) for item in value] if isinstance(value, list) else value


def _enter(spot: Any, key: str, text: str) -> Any:
    if isinstance(spot, list):
        return spot[_place(spot, key, text)]
    if not isinstance(spot, dict):
        raise ConfigError(f"--set {text}: {key!r} has no settings below it")
    child = spot.setdefault(key, {})
    if not isinstance(child, (dict, list)):
        child = spot[key] = {}
    return child


def _place(spot: list[Any], key: str, text: str) -> int:
    if not key.isdigit() or int(key) >= len(spot):
        raise ConfigError(f"--set {text}: {key!r} is not a place in a list of {len(spot)}")
    return int(key)


def _problems(cls: type[Config], error: ValidationError, source: str) -> list[str]:
    lines = []
    problems = error.errors()
    spots = [problem["loc"] for problem in problems]
    for problem in problems:
        location, value = problem["loc"], problem.get("input")
        # A list whose only member is wrong is also reported as too short: that is no second problem.
        if problem["type"] == "too_short" and any(spot[: len(location)] == location != spot for spot in spots):
            continue
        dotted = ".".join(str(part) for part in _named(location, cls))
        if problem["type"] == "extra_forbidden":
            key = str(location[-1])
            near = difflib.get_close_matches(key, _keys_at(cls, location[:-1]), n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; allowed: {', '.join(_keys_at(cls, location[:-1]))}"
            lines.append(f"{source}: {dotted}: unknown key{hint}")
        elif problem["type"] == "missing":
            lines.append(f"{source}: {dotted}: this setting is required")
        elif problem["type"] in ("union_tag_invalid", "union_tag_not_found"):
            lines.append(f"{source}: {dotted}: {_untagged(problem)}")
        else:
            message = _EXPECTED.get(problem["type"]) or problem["msg"].removeprefix("Value error, ")
            # About several settings together; what came is all of them.
            lines.append(f"{source}: {dotted}: {message}, got {shorten(value)}" if dotted else f"{source}: {message}")
    return lines


def _untagged(problem: Any) -> str:
    """What to give where one of several kinds is chosen by a key such as ``type``."""
    context, value = problem["ctx"], problem.get("input")
    key = context["discriminator"].strip("'")
    if problem["type"] == "union_tag_not_found":
        return f"the key {key!r} is required and names the kind, got {shorten(value)}"
    kinds = [kind.strip("'") for kind in context["expected_tags"].split(", ")]
    near = difflib.get_close_matches(context["tag"][:60], kinds, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"allowed: {', '.join(kinds)}"
    return f"unknown {key} {shorten(context['tag'])}; {hint}"


def _named(location: tuple[int | str, ...], cls: Any) -> list[int | str]:
    """The location without the tags that pydantic puts in for members of a union."""
    named: list[int | str] = []
    for part in location:
        members = _members(cls)
        if isinstance(part, str) and len(members) > 1:
            tagged = [m for m in members if _tag(m) == part]
            if tagged:
                cls = tagged[0]
                continue
        named.append(part)
        cls = _below(cls, part)
    return named


def _keys_at(cls: Any, location: tuple[int | str, ...]) -> list[str]:
    for part in location:
        members = _members(cls)
        tagged = [m for m in members if _tag(m) == part] if len(members) > 1 else []
        cls = tagged[0] if tagged else _below(cls, part)
    keys = [key for member in _members(cls) for key in getattr(member, "model_fields", {})]
    return sorted(set(keys))


def _below(cls: Any, part: int | str) -> Any:
    for member in _members(cls):
        fields = getattr(member, "model_fields", {})
        if part in fields:
            return _with_metadata(fields[part])
        if isinstance(part, int) or get_origin(member) is dict:
            arguments = [a for a in get_args(member) if a is not Ellipsis]
            if arguments:
                return arguments[-1]
    return None


def _with_metadata(field: Any) -> Any:
    return field.annotation


def _members(cls: Any) -> list[Any]:
    if get_origin(cls) is Annotated:
        return _members(get_args(cls)[0])
    if get_origin(cls) in (Union, UnionType):
        return [member for part in get_args(cls) for member in _members(part)]
    return [cls]


def _tag(member: Any) -> str | None:
    field = getattr(member, "model_fields", {}).get("type")
    return None if field is None else field.default


def _names_beside(path: Path) -> list[str]:
    return [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
