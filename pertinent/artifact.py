"""A folder on disk that a stage writes and the next one reads, whole or not at all.

Every artifact has a ``manifest.json``: kind, format version, the config that made it, digests of
its inputs, metrics, and the size and SHA-256 of every other file. It is written aside and renamed,
so a reader sees the old folder or the new one, never a part. Nothing in it is ever unpickled.
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pertinent.errors import ArtifactError

MANIFEST = "manifest.json"
FORMAT_VERSION = 1
# A file that could run code when it is read never gets into an artifact.
REFUSED_SUFFIXES = {".pkl", ".pickle", ".pt", ".pth", ".bin", ".joblib", ".npy", ".npz", ".py"}


@dataclass(frozen=True, slots=True)
class Artifact:
    """An opened and checked artifact folder."""

    path: Path
    manifest: dict[str, Any]

    @property
    def kind(self) -> str:
        """What the folder holds: ``model``, ``index``, ``report``..."""
        return str(self.manifest["kind"])

    @property
    def version(self) -> str:
        """Twelve hexadecimal digits over the content: two equal versions have equal files."""
        return str(self.manifest["version"])

    @property
    def config(self) -> dict[str, Any]:
        """The settings that made it."""
        return dict(self.manifest["config"])

    @property
    def metrics(self) -> dict[str, Any]:
        """What was measured when it was made."""
        return dict(self.manifest["metrics"])

    def file(self, name: str) -> Path:
        """The path of a listed file. Raises ArtifactError for a file the manifest does not list."""
        if name not in self.manifest["files"]:
            raise ArtifactError(f"{self.path}: has no file {name}; it has {', '.join(sorted(self.manifest['files']))}")
        return self.path / name

    def has(self, name: str) -> bool:
        """Whether the manifest lists the file."""
        return name in self.manifest["files"]

    def json(self, name: str) -> Any:
        """The content of a listed JSON file."""
        return read_json(self.file(name))


@contextlib.contextmanager
def write_artifact(
    path: str | Path,
    kind: str,
    config: Mapping[str, Any],
    inputs: Mapping[str, str] | None = None,
    metrics: Mapping[str, Any] | None = None,
) -> Iterator[Path]:
    """A fresh folder to fill; on leaving the block it becomes ``path`` in one rename.

    An artifact that stood at ``path`` is replaced; any other folder or file there is refused. If
    the block raises, ``path`` is as it was before. ``metrics`` may be filled inside the block.
    """
    path = Path(path)
    refuse_foreign(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent))
    except OSError as error:
        raise ArtifactError(f"{path}: cannot write here: {error.strerror or error}") from None
    try:
        yield aside
        _seal(aside, kind, config, inputs or {}, metrics or {})
        aside.chmod(0o755)
        swap(aside, path)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def open_artifact(path: str | Path, kind: str | None = None, verify: bool = True) -> Artifact:
    """The artifact at ``path``; with ``verify`` every file is checked against its digest.

    Raises ArtifactError, naming file and digest, for a missing, cut, changed or added file, a
    manifest of another format version, or a folder of another kind.
    """
    path = Path(path)
    if not path.exists():
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*")], n=1)
        hint = f"; did you mean {path.parent / near[0]}?" if near else ""
        # What `swap` leaves when the machine stops between its two renames.
        old = sorted(path.parent.glob(f".{path.name}.*.old"))
        hint = f"; its last version is at {old[-1]}, rename it back" if old else hint
        raise ArtifactError(f"{path}: no such folder{hint}")
    if not (path / MANIFEST).is_file():
        raise ArtifactError(f"{path}: has no {MANIFEST}, so it is not an artifact of pertinent")
    manifest = read_json(path / MANIFEST)
    _check_manifest(path, manifest)
    if kind is not None and manifest["kind"] != kind:
        raise ArtifactError(f"{path}: is of kind {manifest['kind']!r}, but {kind!r} is needed here")
    if verify:
        _verify_files(path, manifest)
    return Artifact(path, manifest)


def refuse_foreign(path: Path) -> None:
    """Raises ArtifactError where something stands that an artifact must not replace.

    Long work asks before it begins; ``write_artifact`` asks again.
    """
    if path.exists() and not (path.is_dir() and ((path / MANIFEST).exists() or not any(path.iterdir()))):
        raise ArtifactError(f"{path}: exists and is not an artifact; choose another folder or remove it")


def swap(new: Path, path: Path) -> None:
    """Put folder ``new`` at ``path``; what stood there is removed afterwards."""
    if not path.exists():
        os.rename(new, path)
        return
    # Two renames: a folder cannot be replaced by one. Between them `path` is missing for some
    # microseconds; after a crash there the old content is still beside it, under `.old`.
    old = path.with_name(f".{path.name}.{os.getpid()}.old")
    os.rename(path, old)
    try:
        os.rename(new, path)
    except OSError:
        os.rename(old, path)
        raise
    shutil.rmtree(old, ignore_errors=True)


def write_json(path: Path, value: Any) -> None:
    """Write JSON, atomically, keys in the given order, numbers finite."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_text(path: str | Path, text: str) -> None:
    """Write a text file, atomically: the old content stays until the new is complete."""
    path = Path(path)
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(aside, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be written: {error.strerror or error}") from None
    finally:
        aside.unlink(missing_ok=True)


def read_json(path: Path) -> Any:
    """The content of a JSON file. Raises ArtifactError when it is missing or broken."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ArtifactError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ArtifactError(f"{path}: not readable as JSON ({error}); the file is damaged") from None


def sha256(path: str | Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def input_digests(paths: Mapping[str, str | Path]) -> dict[str, str]:
    """Digests of input files by name, for the manifest. Folders are left out."""
    return {name: sha256(path) for name, path in paths.items() if Path(path).is_file()}


def _seal(
    folder: Path, kind: str, config: Mapping[str, Any], inputs: Mapping[str, str], metrics: Mapping[str, Any]
) -> None:
    files = {}
    for file in sorted(p for p in folder.rglob("*") if p.is_file()):
        name = file.relative_to(folder).as_posix()
        assert file.suffix not in REFUSED_SUFFIXES, name
        files[name] = {"bytes": file.stat().st_size, "sha256": sha256(file)}
        with open(file, "rb") as handle:
            os.fsync(handle.fileno())
    content = json.dumps([kind, sorted((name, entry["sha256"]) for name, entry in files.items())])
    manifest = {
        "kind": kind,
        "format_version": FORMAT_VERSION,
        "version": hashlib.sha256(content.encode()).hexdigest()[:12],
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "config": dict(config),
        "inputs": dict(inputs),
        "metrics": dict(metrics),
        "files": files,
    }
    write_json(folder / MANIFEST, manifest)


def _check_manifest(path: Path, manifest: Any) -> None:
    wanted = {"kind": str, "format_version": int, "version": str, "config": dict, "metrics": dict, "files": dict}
    if not isinstance(manifest, dict) or not all(isinstance(manifest.get(k), t) for k, t in wanted.items()):
        raise ArtifactError(f"{path / MANIFEST}: not a manifest of pertinent; the file is damaged")
    if not all(isinstance(e, dict) and {"bytes", "sha256"} <= e.keys() for e in manifest["files"].values()):
        raise ArtifactError(f"{path / MANIFEST}: not a manifest of pertinent; the file is damaged")
    if manifest["format_version"] != FORMAT_VERSION:
        raise ArtifactError(
            f"{path}: format version {manifest['format_version']!r}, but this software reads {FORMAT_VERSION}; "
            "upgrade pertinent, or make the artifact again"
        )


def _verify_files(path: Path, manifest: Mapping[str, Any]) -> None:
    inside = path.resolve()
    for name, entry in manifest["files"].items():
        file = path / name
        # Links of any part of the way are refused, also those that would stay inside.
        if ".." in Path(name).parts or Path(name).is_absolute() or file.resolve() != inside / name:
            raise ArtifactError(f"{path}: refuses {name!r}: files must lie inside the folder, and not be links")
        if not file.is_file():
            raise ArtifactError(f"{file}: missing; copy the whole folder again")
        size = file.stat().st_size
        if size != entry["bytes"]:
            raise ArtifactError(f"{file}: has {size} bytes, the manifest says {entry['bytes']}; copy it again")
        digest = sha256(file)
        if digest != entry["sha256"]:
            raise ArtifactError(
                f"{file}: SHA-256 is {digest[:12]}..., the manifest says {entry['sha256'][:12]}...; "
                "the file is damaged, copy it again"
            )
    extra = {p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_file()} - {MANIFEST, *manifest["files"]}
    refused = sorted(name for name in extra if Path(name).suffix in REFUSED_SUFFIXES)
    if refused:
        raise ArtifactError(
            f"{path / refused[0]}: not listed in the manifest and of a kind that can run code; remove it"
        )
