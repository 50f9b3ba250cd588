"""The reference backend: the network itself, in torch, float32."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from pertinent.artifact import Artifact
from pertinent.errors import need
from pertinent.models.store import load_network
from pertinent.records import TokenBatch


class TorchBackend:
    """Runs the network as it was trained. One batch at a time: torch spreads it over the cores."""

    name = "torch"
    workers = 1

    def __init__(self, network: Any, threads: int) -> None:
        self._torch = need("torch", extra="train")
        self.network = network.eval()
        self.threads = threads

    @classmethod
    def open(cls, artifact: Artifact, threads: int) -> Self:
        """The network of a model artifact. Raises MissingExtraError where torch is not installed."""
        need("torch", extra="train")
        network, _ = load_network(artifact)
        return cls(network, threads)

    def forward(self, batch: TokenBatch) -> NDArray[np.float32]:
        """The relevance logit of each pair, ``[batch]``."""
        from pertinent.models.blocks import relevance_logit

        return self._run(lambda inputs: relevance_logit(self.network(**inputs)), batch.inputs())

    def ahead(self, inputs: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        """What a late join knows of titles before the query, ``[batch, length, state width]``, in float32."""
        return self._run(lambda tensors: self.network.ahead(**tensors), inputs)

    def join(self, inputs: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        """The relevance logits of one query with titles known ahead, ``[batch]``."""
        from pertinent.models.blocks import relevance_logit

        return self._run(lambda tensors: relevance_logit(self.network.join(**tensors)), inputs)

    def _run(self, call: Callable[[dict[str, Any]], Any], inputs: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        torch = self._torch
        if torch.get_num_threads() != self.threads:
            torch.set_num_threads(self.threads)  # a setting of the whole process
        device = next(self.network.parameters()).device
        with torch.inference_mode():
            found = call({name: torch.from_numpy(array).to(device) for name, array in inputs.items()})
        result: NDArray[np.float32] = found.float().cpu().numpy()
        return result
