"""States of items that a late-join model computed ahead: how an index keeps them, and who writes them.

Below its ``join_layer`` such a model lets no title token see the query, so the states that title tokens
have there belong to the item alone. An index keeps them beside the tokens in ``states.safetensors``:
``item_states``, float16 ``[rows, hidden]`` end to end, and ``state_offsets``, int64 ``[items + 1]``.
They are of one model only; its ``version`` stands in the index, and another model's is refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pertinent.artifact import Artifact
from pertinent.engine.arrays import MappedFile, Ragged, map_arrays, offsets_fit
from pertinent.errors import ArtifactError
from pertinent.records import TokenRows

STATES_FILE = "states.safetensors"
STATE_ARRAYS = {"state_offsets": "I64", "item_states": "F16"}


class StateWriter(Protocol):
    """A model that computes states of items ahead.

    ``version`` is all that the states depend on: the model's version, and the layer and precision they
    are kept at. ``hidden`` is their width.
    """

    @property
    def version(self) -> str: ...

    @property
    def hidden(self) -> int: ...

    def states(self, items: TokenRows) -> Ragged:
        """The states of items: for each, rows of ``hidden`` float16; ``values`` is ``[rows, hidden]``.

        A row must not depend on the other items of the call: an index that was updated equals one that
        was built anew.
        """
        ...


@dataclass(frozen=True, slots=True)
class ItemStates:
    """The states of all items of an index, memory-mapped: float16 ``[rows, hidden]`` by item."""

    rows: Ragged
    version: str
    file: MappedFile

    @property
    def hidden(self) -> int:
        """The width of a state."""
        return int(self.rows.values.shape[1])

    def take(self, items: NDArray[np.int64]) -> Ragged:
        """The states of the given rows of the index, copied, in the given order."""
        return self.rows.take(items)


def described(writer: StateWriter | None) -> dict[str, Any] | None:
    """What an index says of its states; None for none."""
    return None if writer is None else {"version": writer.version, "hidden": writer.hidden}


def open_states(artifact: Artifact, items: int) -> ItemStates | None:
    """The states of an index of so many items; None where it has none. Raises ArtifactError for damage."""
    told = artifact.config.get("states")
    if told is None:
        return None
    path: Path = artifact.file(STATES_FILE)
    arrays = map_arrays(path, STATE_ARRAYS, "file of item states", "make the index again with: pertinent index")
    hidden = int(told["hidden"])
    values, offsets = arrays["item_states"], arrays["state_offsets"]
    if len(values) % hidden or not offsets_fit(offsets, items, len(values) // hidden):
        raise ArtifactError(f"{path}: its parts do not fit together; make the index again")
    return ItemStates(Ragged(values.reshape(-1, hidden), offsets), str(told["version"]), arrays.file)
