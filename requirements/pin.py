"""Write the pinned requirement files from what is installed beside this interpreter.

Run it in an environment whose tests pass, after upgrading something:

    .venv/bin/python requirements/pin.py

Direct dependencies come from pyproject.toml; what they bring along is found through their own
metadata and pinned too. A package stands in the first file that needs it:
torch, core, train, logs, scale, dev.
"""

from __future__ import annotations

import tomllib
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

HERE = Path(__file__).parent
HEADS = {
    "core": "What scoring needs. Written by requirements/pin.py.",
    "train": "What training and export add. torch is in torch.txt. Written by requirements/pin.py.",
    "logs": "What mining search logs adds. Written by requirements/pin.py.",
    "scale": "What mining on Spark and scoring on Ray add. Written by requirements/pin.py.",
    "dev": "What tests, checks and benchmarks add. Written by requirements/pin.py.",
}


def closure(names: list[str], seen: set[str]) -> dict[str, str]:
    """Package name -> version of the given requirements and of all they bring along."""
    found: dict[str, str] = {}
    waiting = [Requirement(name) for name in names]
    while waiting:
        requirement = waiting.pop()
        key = canonicalize_name(requirement.name)
        extras = requirement.extras or {""}
        if key in seen or (key in found and not requirement.extras):
            continue
        try:
            package = distribution(requirement.name)
        except PackageNotFoundError:
            continue
        found[key] = f"{package.metadata['Name']}=={package.version.partition('+')[0]}"
        for text in package.requires or []:
            child = Requirement(text)
            if child.marker is None or any(child.marker.evaluate({"extra": extra}) for extra in extras):
                waiting.append(child)
    return found


def main() -> None:
    """Write one file for each of ``HEADS``."""
    project = tomllib.loads((HERE.parent / "pyproject.toml").read_text())["project"]
    direct = {
        "core": project["dependencies"],
        "train": project["optional-dependencies"]["train"],
        "logs": project["optional-dependencies"]["logs"],
        "scale": project["optional-dependencies"]["scale"],
        "dev": project["optional-dependencies"]["dev"],
    }
    torch = closure(["torch"], set())
    pinned: set[str] = {"torch"}
    for name, requirements in direct.items():
        added = closure([*requirements, *(["setuptools"] if name == "train" else [])], pinned)
        pinned |= set(added)
        own = {canonicalize_name(Requirement(text).name) for text in requirements}
        lines = [f"# {HEADS[name]}", *sorted(added[key] for key in added if key in own)]
        lines += ["# Brought in by the above:", *sorted(added[key] for key in added if key not in own)]
        (HERE / f"{name}.txt").write_text("\n".join(lines) + "\n")
        print(f"{name}.txt: {len(added)} packages")
    print(f"torch brings {len(torch) - 1} packages of its own")


if __name__ == "__main__":
    main()
