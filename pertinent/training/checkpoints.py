"""The folder a run works in: one run at a time, checkpoints that are whole, the best weights so far.

A checkpoint counts once its ``complete.json`` is written, which is the last thing done; what a
killed process left half-written is ignored and removed. Weights are safetensors; the optimizer's
state is Hugging Face's own file, read back with ``weights_only``.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from pertinent.artifact import read_json, write_json
from pertinent.errors import ArtifactError, ConfigError

if TYPE_CHECKING:
    from torch import Tensor

_log = logging.getLogger(__name__)

COMPLETE = "complete.json"
RUN = "run.json"
BEST = "best.safetensors"
LOCK = "lock"
WEIGHTS = "model.safetensors"  # the name under which the Hugging Face Trainer looks for them


@contextlib.contextmanager
def locked(folder: str | Path) -> Iterator[Path]:
    """The folder, made if missing, for one run alone until the block ends.

    The lock belongs to the process, so a killed run leaves none behind. Raises ArtifactError,
    naming the process that holds it, when another run works there.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = open(folder / LOCK, "a+", encoding="utf-8")  # noqa: SIM115 - closed below, with the lock
    except OSError as error:
        raise ArtifactError(f"{folder}: cannot write here: {error.strerror or error}") from None
    with file:
        if not _try_lock(file):
            file.seek(0)
            owner = file.read().strip() or "unknown"
            raise ArtifactError(
                f"{folder}: another run (process {owner}) is working here; wait for it, or choose another `out`"
            )
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield folder


def begin(folder: Path, run: Mapping[str, Any], resume: bool) -> Path | None:
    """The checkpoint to go on from, or None for a fresh start.

    ``run`` holds what decides the numbers: settings and digests of the data. Without ``resume``
    what an earlier run left is removed. Raises ConfigError when ``run`` is not that of the
    checkpoints.
    """
    if not resume:
        left = latest(folder)
        if left is not None:
            _log.warning(
                "%s: the checkpoint of step %d is removed, training begins anew; "
                "with --resume and the same settings it would have gone on from there",
                folder,
                _step(left),
            )
        clear(folder)
    found = latest(folder)
    if found is not None:
        before = read_json(folder / RUN)
        changed = sorted(key for key in {*run, *before} if run.get(key) != before.get(key))
        if changed:
            raise ConfigError(
                f"{folder}: was begun with other {', '.join(changed)}; "
                "set them back, or set resume: false to start again"
            )
        return found
    clear(folder)
    write_json(folder / RUN, dict(run))
    return None


def latest(folder: Path) -> Path | None:
    """The newest whole checkpoint; half-written ones are removed."""
    whole = []
    for path in folder.glob("checkpoint-*"):
        if (path / COMPLETE).is_file() and (folder / RUN).is_file():
            whole.append(path)
        else:
            shutil.rmtree(path, ignore_errors=True)
    return max(whole, key=_step, default=None)


def seal(folder: Path, step: int) -> None:
    """Declare the checkpoint of a step whole, and remove the older ones."""
    write_json(folder / f"checkpoint-{step}" / COMPLETE, {"step": step})
    for path in folder.glob("checkpoint-*"):
        if _step(path) < step:
            shutil.rmtree(path, ignore_errors=True)


def clear(folder: Path) -> None:
    """Remove what runs have left in the folder; the lock stays, and so do files of others."""
    for path in folder.glob("checkpoint-*"):
        shutil.rmtree(path, ignore_errors=True)
    for name in (RUN, BEST):
        (folder / name).unlink(missing_ok=True)


def remove(folder: Path) -> None:
    """Remove all of a finished run, and the folder where nothing else is in it."""
    clear(folder)
    (folder / LOCK).unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # something of the user's lies there
        folder.rmdir()


def save_weights(path: Path, state: Mapping[str, Tensor]) -> None:
    """Write tensors as safetensors, atomically. Refuses weights that are not finite."""
    from safetensors.torch import save_file

    broken = [name for name, value in state.items() if value.is_floating_point() and not value.isfinite().all()]
    if broken:
        raise ArtifactError(f"{path}: not written, weights are not finite in {', '.join(broken[:3])}")
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({name: value.detach().contiguous() for name, value in state.items()}, aside, {"format": "pt"})
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def load_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file. Raises ArtifactError when it is missing or damaged."""
    from safetensors.torch import load_file

    try:
        return dict(load_file(path))
    except Exception as error:
        raise ArtifactError(
            f"{path}: not readable as safetensors ({error}); set resume: false to start again"
        ) from None


def _step(path: Path) -> int:
    number = path.name.rpartition("-")[2]
    return int(number) if number.isdigit() else -1


def _try_lock(file: IO[str]) -> bool:
    try:
        import fcntl
    except ImportError:  # Windows
        import msvcrt

        try:
            file.seek(0)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined,unused-ignore]
        except OSError:
            return False
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
