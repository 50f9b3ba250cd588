"""Where models and tokenizers lie: the one that comes with the package, folders, installed packages, the hub."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from pertinent.errors import ArtifactError, need


def shipped_folder() -> Path:
    """Where the model that comes with the package lies."""
    return Path(__file__).resolve().parent / "shipped"


def locate(start: str | Path) -> Path:
    """The folder of pretrained weights: a path, ``package:name/folder``, or a hub name.

    A hub name is looked for in the local hub cache, and fetched only where the environment allows.
    """
    text = str(start)
    if text.startswith("package:"):
        package, _, inner = text.removeprefix("package:").partition("/")
        try:
            return Path(str(files(package) / inner))
        except ModuleNotFoundError:
            raise ArtifactError(f"{text}: package {package} is not installed; run: pip install {package}") from None
    path = Path(start)
    if path.is_dir():
        return path
    if text.startswith((".", "/", "~")) or text.count("/") > 1:
        raise ArtifactError(f"{text}: no such folder; give a Hugging Face model folder or a hub name")
    hub = need("huggingface_hub", "train")
    try:
        return Path(hub.snapshot_download(text, allow_patterns=["*.json", "*.txt", "*.safetensors"]))
    except Exception as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ArtifactError(f"{text}: neither a folder here nor a model that could be fetched ({first})") from None
