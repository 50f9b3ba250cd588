"""What dynamic lengths, a score cache and added words save, counted and timed (ei-SRC, Table 1).

    python benchmarks/ei_src_table1.py --out benchmarks/ei_src_table1.json

Rows are cumulative: every pair padded to 16 + 36 tokens; dynamic lengths, in batches planned by length;
a cache of the 20 % most frequent pairs of a simulated log; 20,000 domain words at most with tokens of
their own, learned from all titles of the sample. Work is counted by torch (``FlopCounterMode``) and
predicted by ``pertinent.evaluation.cost``. The network is a 3-layer one of width 128 with random
weights: its speed does not depend on them. Requests follow Zipf's law over the sample's queries; the
cache is filled from the first half and the second half is measured.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from pertinent.data.samples import read_sample
from pertinent.engine.batching import plan
from pertinent.evaluation.cost import Sizes, compounded, pair_flops, plan_flops, saving
from pertinent.evaluation.speed import measure
from pertinent.folders import shipped_folder
from pertinent.lexicon.pairs import TOKENIZER_FILE, PairConfig, PairTokenizer
from pertinent.lexicon.run import LexiconConfig
from pertinent.lexicon.terms import domain_words, word_counts
from pertinent.lexicon.vocabulary import extend_tokenizer
from pertinent.models.store import build_network
from pertinent.records import by_query

BATCH = 64
HOT_SHARE = 0.2
PAPER = {"DRS": 0.3626, "+ cache": 0.4066, "+ vocabulary": 0.4615}  # latency, Table 1


class Run:
    """Pairs, in batches of one kind, for one network."""

    def __init__(self, pairs: PairTokenizer, texts: list[tuple[str, str]], trim: bool) -> None:
        self.pairs, self.texts = pairs, texts
        self.queries = pairs.encode_queries([query for query, _ in texts])
        self.items = pairs.encode_items([title for _, title in texts])
        lengths = self.queries.lengths + 2, self.items.lengths + 1
        if not trim:
            lengths = np.full(len(texts), 16), np.full(len(texts), 36)
        self.lengths = lengths
        rows = np.arange(len(texts))
        self.batches = plan(*lengths) if trim else [rows[at : at + BATCH] for at in range(0, len(rows), BATCH)]
        tokenized = [pairs.assemble(self.queries, rows, self.items, rows, trim) for rows in self.batches]
        self.inputs = [{k: torch.from_numpy(v) for k, v in batch.inputs().items()} for batch in tokenized]

    def score(self, network: Any) -> None:
        """Run all batches once."""
        with torch.inference_mode():
            for batch in self.inputs:
                network(**batch)

    def counted(self, network: Any) -> float:
        """Operations of the matrix products, as torch counts them."""
        counter = FlopCounterMode(display=False)
        with sdpa_kernel(SDPBackend.MATH), counter:
            self.score(network)
        return float(counter.get_total_flops())

    def predicted(self, sizes: Sizes) -> float:
        """The same by the cost model."""
        return plan_flops(sizes, self.batches, *self.lengths)


def requests(sample: str, count: int, seed: int) -> list[tuple[str, str]]:
    """Pairs as they come in: queries by Zipf's law, each with all its judged items."""
    judgments = read_sample(sample)[1]
    groups = [(query, [judgments[row].title for row in rows]) for query, rows in by_query(judgments) if len(rows) > 1]
    random = np.random.default_rng(seed)
    weights = 1 / np.arange(1, len(groups) + 1)
    drawn = random.permutation(len(groups))[random.choice(len(groups), count, p=weights / weights.sum())]
    return [(groups[place][0], title) for place in drawn for title in groups[place][1]]


def missed(log: list[tuple[str, str]]) -> tuple[list[tuple[str, str]], float]:
    """Pairs of the second half that a cache of the most frequent 20 % of the first half does not hold."""
    half = len(log) // 2
    seen: dict[tuple[str, str], int] = {}
    for pair in log[:half]:
        seen[pair] = seen.get(pair, 0) + 1
    hot = set(sorted(seen, key=lambda pair: -seen[pair])[: int(np.ceil(HOT_SHARE * len(seen)))])
    rest = [pair for pair in log[half:] if pair not in hot]
    return rest, 1 - len(rest) / (len(log) - half)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--sample", default="esci")
    parser.add_argument("--requests", type=int, default=400)
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    base = Tokenizer.from_file(str(shipped_folder() / TOKENIZER_FILE))
    titles = [item.title for item in read_sample(arguments.sample)[0]]
    limit, least = (LexiconConfig.model_fields[name].default for name in ("limit", "min_count"))
    words = [each.word for each in domain_words(word_counts(titles), base, limit, least)]
    plain, extended = (PairTokenizer(t, PairConfig()) for t in (base, extend_tokenizer(base, words)))
    network = build_network({"type": "ei_src", "vocabulary_size": extended.vocabulary_size}).eval()
    sizes = Sizes.of(network.config.plain())  # type: ignore[union-attr]
    log = requests(arguments.sample, arguments.requests, arguments.seed)
    measured = log[len(log) // 2 :]
    rest, hits = missed(log)
    runs = {
        "padded": Run(plain, measured, trim=False),
        "DRS": Run(plain, measured, trim=True),
        "+ cache": Run(plain, rest, trim=True),
        "+ vocabulary": Run(extended, rest, trim=True),
    }
    alone = {"vocabulary": Run(extended, measured, trim=True)}
    timings = measure({name: lambda run=run: run.score(network) for name, run in runs.items()}, arguments.turns, 1)
    work = {name: run.counted(network) for name, run in {**runs, **alone}.items()}
    predicted = {name: run.predicted(sizes) for name, run in {**runs, **alone}.items()}
    length = float((runs["DRS"].lengths[0] + runs["DRS"].lengths[1]).mean())
    together = compounded(
        [saving(predicted["padded"], predicted["DRS"]), hits, saving(predicted["DRS"], predicted["vocabulary"])]
    )
    report: dict[str, Any] = {
        "settings": {"sample": arguments.sample, "seed": arguments.seed, "turns": arguments.turns},
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, one used",
        "pairs": len(measured),
        "mean_tokens": length,
        "words_added": len(words),
        "cache_hit_rate": hits,
        "formula_at_mean_length": saving(float(pair_flops(sizes, 52)), float(pair_flops(sizes, length))),
        "rows": {},
    }
    print(
        "| row | pairs | work predicted | work counted | saved, predicted | counted | by the clock | paper, latency |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for name, run in runs.items():
        ratio = timings.ratio(name, "padded")
        row = {
            "pairs": len(run.texts),
            "gflop_predicted": predicted[name] / 1e9,
            "gflop_counted": work[name] / 1e9,
            "saved_predicted": saving(predicted["padded"], predicted[name]),
            "saved_counted": saving(work["padded"], work[name]),
            "time_ratio": ratio.plain(),
        }
        report["rows"][name] = row
        print(
            f"| {name} | {len(run.texts):,} | {row['gflop_predicted']:.2f} | {row['gflop_counted']:.2f} | "
            f"{row['saved_predicted']:.1%} | {row['saved_counted']:.1%} | "
            f"{1 - ratio.value:.1%} [{1 - ratio.high:.1%}, {1 - ratio.low:.1%}] | {PAPER.get(name, 0):.1%} |"
        )
    left = {"compounded": 1 - together, "counted": work["+ vocabulary"] / work["padded"]}
    report["compounded"] = {
        "saved_if_independent": together,
        "saved_counted": 1 - left["counted"],
        "work_left_ratio": left["counted"] / left["compounded"],
    }
    print(report["compounded"], f"hit rate {hits:.1%}, {length:.1f} tokens a pair, {len(words):,} words")
    arguments.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
