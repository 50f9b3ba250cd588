"""The reference backend: the network itself, in torch, float32."""

from __future__ import annotations

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

        torch = self._torch
        if torch.get_num_threads() != self.threads:
            torch.set_num_threads(self.threads)  # a setting of the whole process
        device = next(self.network.parameters()).device
        inputs = {name: torch.from_numpy(array).to(device) for name, array in batch.inputs().items()}
        with torch.inference_mode():
            logits = relevance_logit(self.network(**inputs))
        result: NDArray[np.float32] = logits.float().cpu().numpy()
        return result
