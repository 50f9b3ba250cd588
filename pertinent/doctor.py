"""What this machine can do, what is missing, and the command that adds it."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shutil
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from pertinent.artifact import open_artifact
from pertinent.config import Config
from pertinent.errors import MissingExtraError, PertinentError

State = Literal["ok", "missing", "problem"]
# What a CPU calls the instructions that make the engine fast, best last.
CPU_FLAGS = {
    "avx2": "avx2",
    "avx512f": "avx512",
    "avx512_vnni": "avx512 vnni",
    "avx_vnni": "avx vnni",
    "amx_int8": "amx",
}
LOW_DISK_BYTES = 1 << 30
_PROBE_BYTES = 1 << 16
_LOAD_FIX = "install its library again, and set HOME and TMPDIR to folders that can be written"


class DoctorConfig(Config):
    """Settings of ``pertinent doctor``."""

    model: str | None = None


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at; ``fix`` is the command or the step that mends it."""

    name: str
    state: State
    detail: str
    fix: str | None = None


@dataclass(frozen=True, slots=True)
class Health:
    """All checks. ``can_score`` says whether ``pertinent score`` works here."""

    checks: tuple[Check, ...]
    can_score: bool

    @property
    def exit_code(self) -> int:
        """0 when scoring works."""
        return 0 if self.can_score else 1

    def plain(self) -> dict[str, Any]:
        """JSON-able values."""
        return {"can_score": self.can_score, "checks": [asdict(check) for check in self.checks]}


def examine(config: DoctorConfig) -> Health:
    """The state of this machine, of the installation and of the model."""
    checks = [*_machine(), *_packages()]
    model = _model(config.model)
    backends = _backends(config.model) if model.state == "ok" else []
    return Health((*checks, model, *backends), any(check.state == "ok" for check in backends))


def cpu_flags(text: str) -> list[str]:
    """The instructions that matter, from the text of ``/proc/cpuinfo``.

    >>> cpu_flags("flags : fpu avx2 avx512f avx512_vnni")
    ['avx2', 'avx512', 'avx512 vnni']
    """
    found = re.search(r"^(?:flags|Features)\s*:(.*)$", text, re.MULTILINE)
    flags = set(found.group(1).split()) if found else set()
    return [name for flag, name in CPU_FLAGS.items() if flag in flags]


def extras_of(requirements: list[str]) -> dict[str, list[str]]:
    """Package names by extra, from the requirement lines of a package's metadata.

    >>> extras_of(["numpy>=2", "torch>=2.8; extra == 'train'", "sybil[pytest]<10; extra == 'dev'"])
    {'': ['numpy'], 'train': ['torch'], 'dev': ['sybil']}
    """
    extras: dict[str, list[str]] = {}
    for text in requirements:
        name = re.match(r"[A-Za-z0-9._-]+", text)
        extra = re.search(r"extra\s*==\s*['\"]([^'\"]+)['\"]", text)
        if name is not None:
            extras.setdefault(extra.group(1) if extra else "", []).append(name.group())
    return extras


def _machine() -> list[Check]:
    from pertinent.engine.backends import available_cores

    python = Check("python", "ok", f"{platform.python_version()} ({sys.executable})")
    try:
        flags = cpu_flags(Path("/proc/cpuinfo").read_text())
    except OSError:
        flags = []
    detail = f"{platform.machine()}, {', '.join(flags) or 'vector instructions not known'}"
    if platform.machine() in ("x86_64", "AMD64") and not any("vnni" in flag for flag in flags):
        detail += "; no VNNI, so int8 gains less"
    free = shutil.disk_usage(Path.cwd()).free
    disk = f"{free / (1 << 30):.1f} GB free in {Path.cwd()}"
    return [
        python,
        Check("cpu", "ok", detail),
        Check("cores", "ok", f"{available_cores()} of {os.cpu_count()} usable (affinity and container quota)"),
        Check("disk", "ok", disk)
        if free >= LOW_DISK_BYTES
        else Check("disk", "problem", disk, "training and indexing want more; free some, or choose --out elsewhere"),
        _temporary(),
    ]


def _temporary() -> Check:
    try:
        with tempfile.TemporaryFile() as file:
            file.write(bytes(_PROBE_BYTES))
            file.flush()
    except OSError as error:
        fix = "scoring and serving do without; for the rest make room there, or set TMPDIR to a folder with room"
        return Check("temporary folder", "problem", f"nothing can be written ({error.strerror or error})", fix)
    return Check("temporary folder", "ok", tempfile.gettempdir())


def _packages() -> list[Check]:
    try:
        extras = extras_of(importlib.metadata.requires("pertinent") or [])
    except importlib.metadata.PackageNotFoundError:
        return [Check("packages", "problem", "pertinent is imported but not installed", "pip install -e .")]
    checks = []
    extras.pop("dev", None)  # for work on pertinent itself
    for extra, packages in extras.items():
        versions = {name: _version(name) for name in packages}
        absent = [name for name, version in versions.items() if version is None]
        detail = ", ".join(f"{name} {version}" for name, version in versions.items() if version is not None)
        name = f"extra {extra}" if extra else "core"
        fix = f"pip install 'pertinent[{extra}]'" if extra else "pip install pertinent"
        if absent:
            state: State = "missing" if extra else "problem"
            checks.append(Check(name, state, f"without {', '.join(absent)}", fix))
        else:
            checks.append(Check(name, "ok", detail))
    return checks


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _model(path: str | None) -> Check:
    from pertinent.folders import model_folder

    name = "model" if path else "shipped model"
    try:
        folder = model_folder(path or None)
        artifact = open_artifact(folder, kind="model", verify=True)
    except PertinentError as error:
        fix = "give another folder" if path else "pip install --force-reinstall --no-deps pertinent"
        return Check(name, "problem", str(error), fix)
    size = sum(entry["bytes"] for entry in artifact.manifest["files"].values()) / 1e6
    return Check(name, "ok", f"version {artifact.version}, {size:.1f} MB, all digests right ({artifact.path})")


def _backends(path: str | None) -> list[Check]:
    from pertinent.engine.backends import BACKENDS
    from pertinent.engine.scorer import Scorer

    checks = []
    for name in BACKENDS:
        started = time.perf_counter()
        try:
            score = float(Scorer.load(path, backend=name).score("wireless earbuds", ["wireless earbuds"])[0])
        except MissingExtraError as error:
            checks.append(Check(f"backend {name}", "missing", *_problem_and_fix(error)))
        except PertinentError as error:
            checks.append(Check(f"backend {name}", "missing", str(error)))
        except (OSError, ImportError) as error:  # a library that does not start here, for want of a folder or a file
            checks.append(Check(f"backend {name}", "problem", f"cannot be loaded: {error}", _LOAD_FIX))
        else:
            took = time.perf_counter() - started
            checks.append(Check(f"backend {name}", "ok", f"loaded and scored {score:.2f} in {took:.2f} s"))
    return checks


def _problem_and_fix(error: Exception) -> tuple[str, str | None]:
    problem, _, fix = str(error).partition("; run: ")
    return problem, fix or None
