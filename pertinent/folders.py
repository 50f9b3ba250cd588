"""Where models and tokenizers lie: the one that comes with the package, folders, installed packages, the hub."""

from __future__ import annotations

from difflib import get_close_matches
from importlib.resources import files
from pathlib import Path

from pertinent.errors import ArtifactError, need

_WEIGHTS = ("*.json", "*.txt", "*.safetensors")
_STARTS = "give shipped, a model folder, a Hugging Face model folder, package:NAME/FOLDER or hub:OWNER/NAME"
# Models that come with the package, by the names that stand for their folders.
SHIPPED_MODELS = ("shipped", "shipped-late")


def shipped_folder() -> Path:
    """Where the model that comes with the package lies."""
    return Path(__file__).resolve().parent / "shipped"


def model_folder(model: str | Path | None) -> Path:
    """The folder of a model: the given one, or that of a model of the package, by its name; None is the first.

    >>> model_folder("runs/mine").as_posix(), model_folder("shipped-late").name, model_folder(None).name
    ('runs/mine', 'shipped_late', 'shipped')
    """
    if model is None or str(model) == "shipped":
        return shipped_folder()
    return shipped_folder().with_name("shipped_late") if str(model) == "shipped-late" else Path(model)


def locate(start: str | Path) -> Path:
    """The folder of pretrained weights: a path, ``package:name/folder``, ``owner/name`` or ``hub:owner/name``.

    The name of a model on the Hugging Face hub is looked for in the local cache. Only with ``hub:`` before it is
    it fetched where it is not there, so that a mistyped folder never asks the network.
    """
    text = str(start)
    if text in SHIPPED_MODELS:
        return model_folder(text)
    if text.startswith("package:"):
        package, _, inner = text.removeprefix("package:").partition("/")
        try:
            return Path(str(files(package) / inner))
        except ModuleNotFoundError:
            raise ArtifactError(f"{text}: package {package} is not installed; run: pip install {package}") from None
    path = Path(start)
    if path.is_dir():
        return path
    name = text.removeprefix("hub:")
    if name == text and (text.startswith((".", "/", "~")) or text.count("/") != 1):
        raise ArtifactError(f"{text}: no such folder; {_meant(path) or _STARTS}")
    hub = need("huggingface_hub", "train")
    try:
        found = hub.snapshot_download(name, allow_patterns=_WEIGHTS, local_files_only=name == text)
        return Path(found)
    except Exception as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        if name != text:
            raise ArtifactError(f"{text}: cannot be fetched ({first})") from None
        fix = _meant(path) or f"to fetch it: hub:{text}"
        raise ArtifactError(f"{text}: neither a folder here nor a model in the local cache of the hub; {fix}") from None


def _meant(path: Path) -> str | None:
    """A question for the folder, or model of the package, that was probably meant."""
    names = [each.name for each in path.parent.iterdir() if each.is_dir()] if path.parent.is_dir() else []
    names += SHIPPED_MODELS if path.parent == Path() else ()
    near = get_close_matches(path.name, names, n=1)
    return f"did you mean {path.parent / near[0]}?" if near else None
