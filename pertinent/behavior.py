"""``pertinent behavior``: encode the neighbor lists of a mined log with a model, ahead of use; made anew every day."""

from __future__ import annotations

from pertinent.artifact import Artifact, open_artifact
from pertinent.config import Config
from pertinent.errors import ConfigError


class BehaviorConfig(Config):
    """Settings of ``pertinent behavior``: the model, the mined log, the catalog with the titles, and where to."""

    model: str | None = None
    neighbors: str | None = None
    items: str | None = None
    columns: dict[str, str] = {}
    out: str | None = None


def make_behavior(config: BehaviorConfig) -> Artifact:
    """The artifact of encoded neighbors at ``config.out``, swapped in as a whole; what stood there is replaced."""
    from pertinent.data.neighbors import MINED, read_exposures, read_lists
    from pertinent.data.readers import read_items
    from pertinent.engine.behavior import KIND, Behavior

    missing = [name for name in ("model", "neighbors", "items", "out") if getattr(config, name) is None]
    if missing:
        flags = {"model": "MODEL", **{name: f"--{name}" for name in ("neighbors", "items", "out")}}
        raise ConfigError("\n".join(f"{flags[name]} is required; see: pertinent behavior --help" for name in missing))
    assert config.model is not None
    assert config.neighbors is not None
    assert config.items is not None
    assert config.out is not None
    mined = open_artifact(config.neighbors, MINED, verify=False)
    titles = {item.item_id: item.title for item in read_items(config.items, rename=config.columns)}
    inputs = {"neighbors": mined.version}
    Behavior.build(config.model, read_lists(mined), titles, read_exposures(mined), config.out, inputs)
    return open_artifact(config.out, KIND, verify=False)
