"""Every exception that pertinent raises for a user to read.

    PertinentError
    ├── ConfigError        a setting is wrong: file, dotted path, what is allowed
    ├── DataError          an input row is wrong: file, line, column, value
    ├── ArtifactError      a folder on disk is missing, damaged or of another kind
    ├── ScoringError       a scorer cannot answer: wrong shapes, not finite
    ├── TrainingError      a training run cannot go on: the loss is not finite
    └── MissingExtraError  an optional package is not installed (also an ImportError)

A message says what came, what is allowed and what to do, in one line. The command line prints
it after ``error:`` and exits with ``exit_code``. Mistakes of our own are ``assert``s, not these.
"""

from __future__ import annotations

import importlib
import re
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType


class PertinentError(Exception):
    """Base of everything a user can mend. ``exit_code`` is what the command line returns."""

    exit_code = 2


class ConfigError(PertinentError):
    """One or more settings are wrong; the message has one line a problem."""


class DataError(PertinentError):
    """Input data is wrong. ``path``, ``line``, ``column`` and ``value`` name the spot if known, ``problem`` the rest.

    >>> str(DataError("grade is NaN", path="j.csv", line=3, column="grade", value="nan",
    ...               fix="give a number from 0 to 1"))
    "j.csv: line 3, column 'grade', value 'nan': grade is NaN; give a number from 0 to 1"
    """

    def __init__(
        self,
        problem: str,
        *,
        path: str | Path | None = None,
        line: int | None = None,
        column: str | None = None,
        value: object = None,
        fix: str | None = None,
    ) -> None:
        self.path, self.line, self.column, self.value = path, line, column, value
        self.problem = problem if fix is None else f"{problem}; {fix}"
        spot = []
        if line is not None:
            spot.append(f"{place_word(path)} {line}")
        if column is not None:
            spot.append(f"column {column!r}")
        if value is not None:
            spot.append(f"value {shorten(value)}")
        parts = [str(path)] if path is not None else []
        if spot:
            parts.append(", ".join(spot))
        parts.append(self.problem)
        super().__init__(": ".join(parts))


def place_word(path: str | Path | None) -> str:
    """What the places of a file are called in messages: Parquet has rows, counted from 1, other files lines.

    >>> place_word("log.parquet"), place_word("log.csv")
    ('row', 'line')
    """
    return "row" if str(path).lower().endswith(".parquet") else "line"


class ArtifactError(PertinentError):
    """A folder on disk is missing, damaged, unreadable by this version, or of the wrong kind."""


class ScoringError(PertinentError):
    """A scorer was asked for something it cannot give, or produced what is not a score."""


class TrainingError(PertinentError):
    """A training run cannot go on; what it had written before is untouched."""


class MissingExtraError(PertinentError, ImportError):
    """A package of an optional extra is not installed; the message has the command."""


def need(module: str, extra: str) -> ModuleType:
    """The imported module, or a MissingExtraError with the command that installs it.

    >>> need("math", extra="train").__name__
    'math'
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        if error.name is not None and not module.startswith(error.name):
            raise  # the package is there, something inside it is broken: show that
        raise MissingExtraError(
            f"this needs {module.partition('.')[0]}, which is not installed; run: pip install 'pertinent[{extra}]'",
            name=module,
        ) from None


def missing_extra(error: ImportError) -> MissingExtraError | None:
    """What to install for a package that could not be imported, where one of our extras brings it.

    >>> missing_extra(ImportError(name="unheard.of")) is None
    True
    """
    from importlib.metadata import requires  # slow to import, and seldom needed

    module = (error.name or "").partition(".")[0]
    if not module or _installed(module):
        return None  # the package is there, something inside it is broken
    for requirement in requires("pertinent") or ():
        name, _, condition = requirement.partition(";")
        package = re.split(r"[^\w.-]", name.strip(), maxsplit=1)[0]
        extra = re.search(r"extra == ['\"](\w+)['\"]", condition)
        if extra and package.replace("-", "_").casefold() == module.casefold():
            return MissingExtraError(
                f"this needs {package}, which is not installed; run: pip install 'pertinent[{extra[1]}]'", name=module
            )
    return None


def _installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ValueError:  # a module that was put aside
        return False


def shorten(value: object, limit: int = 60) -> str:
    """``repr`` of a value, cut so that a message stays one readable line.

    >>> shorten("a" * 100, limit=10)
    "'aaaaaaaa... (100 characters)"
    """
    text = repr(value)
    if len(text) <= limit:
        return text
    size = len(value) if isinstance(value, (str, bytes)) else len(text)
    return f"{text[: limit - 1]}... ({size} characters)"
