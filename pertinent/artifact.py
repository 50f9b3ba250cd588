"""A folder on disk that a stage writes and the next one reads, whole or not at all.

Every artifact has a ``manifest.json``: kind, format version, the config that made it, digests of
its inputs, metrics, and the size and SHA-256 of every other file. It is written aside and renamed,
so a reader sees the old folder or the new one, never a part. Nothing in it is ever unpickled, and
nothing but an artifact of the same kind is ever replaced.
"""

from __future__ import annotations

import contextlib
import ctypes
import difflib
import glob
import hashlib
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pertinent.errors import ArtifactError, shorten

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
    dated: bool = True,
    replaces: str | None = None,
) -> Iterator[Path]:
    """A fresh folder to fill; on leaving the block it becomes ``path`` in one step, see `swap`.

    An artifact of the same kind that stood at ``path`` is replaced; anything else there is refused,
    see `refuse_foreign`. Where ``path`` is a link to a folder, that folder is written and the link
    stays. If the block raises, ``path`` is as it was before. ``metrics`` may be filled inside the block.
    What is made from data alone is not ``dated``: its manifest has no time, so the same input gives the
    same bytes. ``replaces`` is the version it was made from, where it is a change of what stands there: if
    something else does when the block is left, that stays and ArtifactError is raised.
    """
    path = Path(path)
    refuse_foreign(path, kind)
    path = _behind_link(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent))
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path}: cannot write here: {getattr(error, 'strerror', None) or error}") from None
    try:
        yield aside
        _seal(aside, kind, config, inputs or {}, metrics or {}, dated)
        aside.chmod(0o755)
        refuse_foreign(path, kind)  # the block may have taken hours
        if replaces is not None:
            what = f"{path}: was changed by something else while this change of version {replaces} was made"
            _check_still(path, kind, replaces, f"{what}; nothing was written, run the same again")
        swap(aside, path)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def open_artifact(path: str | Path, kind: str | None = None, verify: bool = True) -> Artifact:
    """The artifact at ``path``; with ``verify`` every file is checked against its digest.

    Raises ArtifactError, naming file and digest, for a missing, cut or changed file, an added one that
    could run code, a damaged manifest or one of another format version, and a folder of another kind.
    """
    path = Path(path)
    if not path.exists():
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*")], n=1)
        hint = f"; did you mean {path.parent / near[0]}?" if near else ""
        # What `swap` leaves when the machine stops between its two renames.
        old = sorted(path.parent.glob(f".{glob.escape(path.name)}.*.old"))
        hint = f"; its last version is at {old[-1]}, rename it back" if old else hint
        raise ArtifactError(f"{path}: no such folder{hint}")
    if not (path / MANIFEST).is_file():
        if kind in (None, "model") and (path / "config.json").is_file():
            raise ArtifactError(
                f"{path}: is a Hugging Face folder; make it a model with: pertinent export {path} --no-int8 --out OUT"
            )
        raise ArtifactError(f"{path}: has no {MANIFEST}, so it is not an artifact of pertinent")
    manifest = read_json(path / MANIFEST)
    _check_manifest(path, manifest)
    if kind is not None and manifest["kind"] != kind:
        raise ArtifactError(f"{path}: is of kind {shorten(manifest['kind'])}, but {kind!r} is needed here")
    if verify:
        _verify_files(path, manifest)
    return Artifact(path, manifest)


@contextlib.contextmanager
def opened(path: str | Path, kind: str | None = None, verify: bool = True) -> Iterator[Artifact]:
    """The artifact at ``path`` for a block that reads its files, all of them from the folder that was checked.

    Raises ArtifactError, as ``open_artifact`` does, and where the folder is replaced before the block is left.
    """
    path = Path(path)
    before = identity(path)
    try:
        yield open_artifact(path, kind, verify)
    finally:  # an error in the block may come from the change
        if identity(path) != before:
            raise ArtifactError(f"{path}: was replaced while it was read; read it again")


def identity(path: Path) -> tuple[int, ...]:
    """Numbers that differ for two artifact folders that stood at ``path``, equal content or not; none for no artifact.

    The times are those of the change of the entry itself, which copies do not take over. Numbers of inodes are left
    out: some network mounts give a file another one each time.
    """
    try:
        folder, manifest = path.stat(), (path / MANIFEST).stat()
    except OSError:
        return ()
    return folder.st_ctime_ns, manifest.st_ctime_ns, manifest.st_size


def made_at(path: Path) -> float:
    """When the artifact at ``path`` was made, in Unix time; where it does not say, when it was put there."""
    created = read_json(path / MANIFEST).get("created")
    try:
        return datetime.fromisoformat(str(created)).timestamp()
    except ValueError:
        return (path / MANIFEST).stat().st_mtime


@contextlib.contextmanager
def unchanged(artifact: Artifact) -> Iterator[None]:
    """A block that reads more files of an artifact that was opened before, all of the version that was opened.

    Raises ArtifactError where another version stands in its folder before the block or after it.
    """
    what = f"{artifact.path}: is no longer the one that was opened, version {artifact.version}; load it again"
    _check_still(artifact.path, artifact.kind, artifact.version, what)
    try:
        yield
    finally:  # an error in the block may come from the change
        _check_still(artifact.path, artifact.kind, artifact.version, what)


def refuse_foreign(path: str | Path, kind: str) -> None:
    """Raises ArtifactError where something stands that an artifact of this kind must not replace.

    It may replace nothing, an empty folder, and an artifact of its own kind that holds the files its
    manifest lists and no others. Long work asks before it begins; ``write_artifact`` asks again.
    """
    path = Path(path)
    if path.name in ("", ".."):
        raise ArtifactError(f"{path}: is not the name of a new folder; choose another, such as {path / kind}")
    path = _behind_link(path)
    if path.is_symlink():
        raise ArtifactError(f"{path}: is a link that leads back to itself; choose another folder or remove it")
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return
    if not (path / MANIFEST).is_file():
        raise ArtifactError(f"{path}: exists and is not an artifact; choose another folder or remove it")
    try:
        listed = open_artifact(path, kind, verify=False).manifest["files"]
    except ArtifactError as error:
        raise ArtifactError(f"{error}; it is not replaced: choose another folder to write to") from None
    others = _files_in(path) - {MANIFEST, *listed}
    if others:
        raise ArtifactError(
            f"{path}: holds {shorten(min(others))}, which is no part of the {kind} there and would be lost; "
            "choose another folder, or move it away"
        )


def swap(new: Path, path: Path) -> None:
    """Put folder ``new`` at ``path``; what stood there is removed afterwards."""
    if not path.exists():
        os.rename(new, path)
        return
    if _exchange(new, path):
        shutil.rmtree(new, ignore_errors=True)
        return
    # Two renames, where the system cannot exchange two folders in one step. Between them `path` is missing
    # for some microseconds; after a crash there the old content is still beside it, under `.old`.
    old = path.with_name(f".{path.name}.{os.getpid()}.old")
    os.rename(path, old)
    try:
        os.rename(new, path)
    except OSError:
        os.rename(old, path)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _exchange(first: Path, second: Path) -> bool:
    """Whether two folders have changed names in one step; Linux can, on most file systems."""
    rename = getattr(ctypes.CDLL(None), "renameat2", None) if sys.platform == "linux" else None
    if rename is None:
        return False
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return bool(rename(here, os.fsencode(first), here, os.fsencode(second), exchange) == 0)


def restore(path: Path, kind: str) -> Path | None:
    """Put back what `swap` had moved aside when the machine stopped between its two renames, and say where it was.

    For a path where nothing is; None where nothing is left beside it either. Of several the latest is taken.
    Raises ArtifactError where that is damaged or of another kind.
    """
    left = sorted(path.parent.glob(f".{glob.escape(path.name)}.*.old"), key=lambda old: (old.stat().st_mtime, old.name))
    if not left:
        return None
    open_artifact(left[-1], kind)
    os.rename(left[-1], path)
    return left[-1]


def write_json(path: Path, value: Any) -> None:
    """Write JSON, atomically, keys in the given order, numbers finite."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_text(path: str | Path, text: str) -> None:
    """Write a text file, atomically: the old content stays until the new is complete.

    Halves of characters, which JSON can hold and UTF-8 cannot, become question marks.
    """
    path = Path(path)
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(aside, "w", encoding="utf-8", errors="replace") as file:
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
    # ValueError: text that is not UTF-8 or not JSON, and whole numbers of thousands of digits.
    except (OSError, ValueError, RecursionError) as error:
        raise ArtifactError(f"{path}: not readable as JSON ({error}); the file is damaged") from None


def sha256(path: str | Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def input_digests(paths: Mapping[str, str | Path]) -> dict[str, str]:
    """Digests of input files by name, for the manifest. Folders are left out."""
    return {name: sha256(path) for name, path in paths.items() if Path(path).is_file()}


def _seal(
    folder: Path,
    kind: str,
    config: Mapping[str, Any],
    inputs: Mapping[str, str],
    metrics: Mapping[str, Any],
    dated: bool,
) -> None:
    files = {}
    for file in sorted(p for p in folder.rglob("*") if p.is_file()):
        name = file.relative_to(folder).as_posix()
        assert file.suffix not in REFUSED_SUFFIXES, name
        files[name] = {"bytes": file.stat().st_size, "sha256": sha256(file)}
        with open(file, "rb") as handle:
            os.fsync(handle.fileno())
    manifest = {
        "kind": kind,
        "format_version": FORMAT_VERSION,
        "version": _version(kind, files),
        **({"created": datetime.now(UTC).isoformat(timespec="seconds")} if dated else {}),
        "config": dict(config),
        "inputs": dict(inputs),
        "metrics": dict(metrics),
    }
    manifest = json.loads(json.dumps(manifest))  # as a reader will see it, for the digest
    write_json(folder / MANIFEST, {**manifest, "record_sha256": _record_digest(manifest), "files": files})


def _version(kind: str, files: Mapping[str, Mapping[str, Any]]) -> str:
    content = json.dumps([kind, sorted((name, entry["sha256"]) for name, entry in files.items())])
    return hashlib.sha256(content.encode()).hexdigest()[:12]


def _record_digest(manifest: Mapping[str, Any]) -> str:
    """Digest of what the manifest tells about the making, which ``version`` does not cover."""
    told = json.dumps([manifest.get(part) for part in ("created", "config", "inputs", "metrics")], sort_keys=True)
    return hashlib.sha256(told.encode()).hexdigest()


def _check_manifest(path: Path, manifest: Any) -> None:
    damaged = ArtifactError(f"{path / MANIFEST}: not a manifest of pertinent; the file is damaged")
    if not isinstance(manifest, dict) or type(manifest.get("format_version")) is not int:
        raise damaged
    if manifest["format_version"] != FORMAT_VERSION:
        raise ArtifactError(
            f"{path}: format version {shorten(manifest['format_version'])}, but this software reads {FORMAT_VERSION}; "
            "upgrade pertinent, or make the artifact again"
        )
    wanted = {"kind": str, "version": str, "config": dict, "metrics": dict, "files": dict}
    if not all(isinstance(manifest.get(k), t) for k, t in wanted.items()):
        raise damaged
    if not isinstance(manifest.get("inputs", {}), dict):
        raise damaged
    for name, entry in manifest["files"].items():
        if not (isinstance(entry, dict) and type(entry.get("bytes")) is int and 0 <= entry["bytes"] < 1 << 63):
            raise damaged
        if not (isinstance(entry.get("sha256"), str) and re.fullmatch("[0-9a-f]{64}", entry["sha256"])):
            raise damaged
        # Control characters, NUL among them, and halves of characters are in no name that we write.
        if not name or re.search("[\x00-\x1f\x7f\ud800-\udfff]", name):
            raise damaged
        if ".." in Path(name).parts or Path(name).is_absolute():
            raise ArtifactError(f"{path}: refuses {shorten(name)}: files must lie inside the folder, and not be links")
    try:
        record = _record_digest(manifest)
    except RecursionError:
        raise damaged from None
    # Older manifests have no digest of the record.
    if manifest["version"] != _version(manifest["kind"], manifest["files"]) or (
        manifest.get("record_sha256", record) != record
    ):
        raise ArtifactError(f"{path / MANIFEST}: was changed after it was written; copy the whole folder again")


def _verify_files(path: Path, manifest: Mapping[str, Any]) -> None:
    inside = os.path.realpath(path)
    for name in (MANIFEST, *manifest["files"]):
        # Links of any part of the way are refused, also those that would stay inside.
        if os.path.realpath(path / name) != os.path.join(inside, name):
            raise ArtifactError(f"{path}: refuses {shorten(name)}: files must lie inside the folder, and not be links")
    for name, entry in manifest["files"].items():
        file = path / name
        try:
            if not file.exists():
                raise ArtifactError(f"{file}: missing; copy the whole folder again")
            if not file.is_file():  # reading a pipe would wait for ever, a device might never end
                raise ArtifactError(f"{file}: refused, it is not a regular file; copy the whole folder again")
            size = file.stat().st_size
            if size != entry["bytes"]:
                raise ArtifactError(f"{file}: has {size} bytes, the manifest says {entry['bytes']}; copy it again")
            digest = sha256(file)
        except OSError as error:
            raise ArtifactError(f"{file}: cannot be read: {error.strerror or error}") from None
        if digest != entry["sha256"]:
            raise ArtifactError(
                f"{file}: SHA-256 is {digest[:12]}..., the manifest says {entry['sha256'][:12]}...; "
                "the file is damaged, copy it again"
            )
    extra = _files_in(path) - {MANIFEST, *manifest["files"]}
    refused = sorted(name for name in extra if Path(name).suffix in REFUSED_SUFFIXES)
    if refused:
        raise ArtifactError(
            f"{path / refused[0]}: not listed in the manifest and of a kind that can run code; remove it"
        )


def _files_in(path: Path) -> set[str]:
    """Names of all that is no folder, links included."""
    return {p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_symlink() or not p.is_dir()}


def _check_still(path: Path, kind: str, version: str, what: str) -> None:
    """Raises ArtifactError that says ``what`` unless this version is at ``path``."""
    try:
        found = open_artifact(path, kind, verify=False).version
    except ArtifactError as error:
        raise ArtifactError(f"{what} ({error})") from None
    if found != version:
        raise ArtifactError(what)


def _behind_link(path: Path) -> Path:
    """The place that a link stands for; any other path as it is."""
    return Path(os.path.realpath(path)) if path.is_symlink() else path
