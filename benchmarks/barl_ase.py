"""What behavior neighbors are worth to BARL-ASe on the made-up shop, part by part.

    OMP_NUM_THREADS=1 python benchmarks/barl_ase.py --work runs/barl --out benchmarks/barl_ase.json

Three shops (texts and judgments of the ESCI sample, behavior simulated, 100 made-up queries each), ``--repeats``
models of each kind a shop. What a run found is kept in the work folder, so a stopped study goes on, and shops can be
run side by side (``--shops 0``); ``--report`` writes what is there. Half of the made-up queries are for training, 15 %
for choosing, 35 % for the test. Differences are means over runs of differences on the same test pairs; intervals and
p-values draw whole queries again inside each shop. Some rows are of the first shop alone.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import torch
from engine_vs_sentence_transformers import processor

from pertinent.artifact import write_json
from pertinent.data.neighbors import ExampleNeighbors, NeighborHistory, SlotTable
from pertinent.data.readers import read_items, read_judgments
from pertinent.data.splits import split_by_query
from pertinent.data.synthetic import SynthesizeConfig, synthesize
from pertinent.evaluation.calibration import fit_calibration
from pertinent.evaluation.metrics import auc, false_negative_rate, macro_f1
from pertinent.evaluation.resample import draws, interval
from pertinent.folders import shipped_folder
from pertinent.lexicon.pairs import PairConfig, PairTokenizer
from pertinent.mining.run import MineConfig, mine
from pertinent.models.barl_ase import BarlASe, BarlASeConfig
from pertinent.objectives.spec import ViewLosses
from pertinent.records import Judgment
from pertinent.text import normalize
from pertinent.training.barl import fit_views
from pertinent.training.collate import NeighborRows, collate, network_inputs
from pertinent.training.data import JudgedData
from pertinent.training.fit import FitConfig

LAYOUT = PairConfig(query_length=16, item_length=17)
SIZES: dict[str, Any] = {"hidden_size": 64, "attention_width": 64, "slots": 6, "agreement": True, "gains": True}
FIT: dict[str, Any] = {"epochs": 4, "batch_size": 128, "learning_rate": 1e-3, "early_stopping": 0, "warmup": 0.05}
LOSSES: dict[str, Any] = {"contrast": 0.5, "mutual": 0.3, "mutual_pull": "text"}
MINED: dict[str, Any] = {"min_exposures": 5, "min_ctr": 0.1}
RESAMPLES = 400
# Rows whose difference is told for each part of the test pairs.
BY_PART = ("text view alone", "noise neighbors", "tested on Icecat, text view alone")
ICECAT = {"sample": "icecat", "aliases": 60}


@dataclass(frozen=True)
class Setting:
    """One row of the study: what differs from the full model."""

    model: dict[str, Any] = field(default_factory=dict)
    losses: dict[str, Any] = field(default_factory=dict)
    change: Callable[[ExampleNeighbors, int], ExampleNeighbors] | None = None
    mined: dict[str, Any] = field(default_factory=dict)
    shop: dict[str, Any] = field(default_factory=dict)
    tested: dict[str, Any] | None = None  # another shop to test on; nothing of it is learned
    against: str = "full"  # the row that this one is compared with
    shops: tuple[int, ...] = (0, 1, 2)


def noise(found: ExampleNeighbors, seed: int) -> ExampleNeighbors:
    """As many neighbors as before, but any texts of the shop's lists."""
    rng = np.random.default_rng([seed, len(found)])

    def drawn(side: SlotTable) -> SlotTable:
        return replace(side, slots=rng.integers(0, max(1, len(side.texts)), side.slots.shape, dtype=np.int32))

    return ExampleNeighbors(drawn(found.queries), drawn(found.items))


def shuffled(found: ExampleNeighbors, seed: int) -> ExampleNeighbors:
    """The same neighbors in an order that says nothing."""
    rng = np.random.default_rng([seed, len(found)])

    def turned(side: SlotTable) -> SlotTable:
        slots = side.slots.copy()
        for row, count in zip(slots, side.counts, strict=True):
            row[:count] = rng.permutation(row[:count])
        return replace(side, slots=slots)

    return ExampleNeighbors(turned(found.queries), turned(found.items))


SETTINGS: dict[str, Setting] = {
    "full": Setting(),
    "text view alone": Setting({"behavior": False}),
    "noise neighbors": Setting(change=noise, against="text view alone"),
    "no agreement, as in the paper": Setting({"agreement": False}),
    "no gains": Setting({"gains": False}),
    "no neighbor co-attention": Setting({"neighbor_attention": False}),
    "no target co-attention": Setting({"target_attention": False}),
    "no contrast": Setting(losses={"contrast": 0.0}),
    "no mutual learning": Setting(losses={"mutual": 0.0}),
    "no gate": Setting({"gate": False}),
    "no neighbor block": Setting({"neighbor_block": False}),
    "attention not shared": Setting({"shared_attention": False}),
    "no slot positions": Setting({"slot_positions": False}),
    "contrast 0.1": Setting(losses={"contrast": 0.1}),
    "contrast 2": Setting(losses={"contrast": 2.0}, shops=(0,)),
    "mutual pulls both, 0.1": Setting(losses={"mutual": 0.1, "mutual_pull": "both"}),
    "mutual 1": Setting(losses={"mutual": 1.0}),
    "noise neighbors, mutual 1": Setting(losses={"mutual": 1.0}, change=noise, against="text view alone"),
    "temperature 0.05": Setting(losses={"temperature": 0.05}, shops=(0,)),
    "temperature 1": Setting(losses={"temperature": 1.0}, shops=(0,)),
    "neighbors in any order": Setting(change=shuffled, shops=(0,)),
    "3 slots": Setting({"slots": 3}, shops=(0,)),
    "12 slots": Setting({"slots": 12}, shops=(0,)),
    "lists: 100 exposures, 0.2": Setting(mined={"min_exposures": 100, "min_ctr": 0.2}, shops=(0,)),
    "lists: 20 exposures, 0.1": Setting(mined={"min_exposures": 20, "min_ctr": 0.1}, shops=(0,)),
    "30 % clicks by mistake": Setting(shop={"noise": 0.3}, shops=(0,)),
    "tested on Icecat": Setting(tested=ICECAT, against="tested on Icecat"),
    "tested on Icecat, text view alone": Setting({"behavior": False}, tested=ICECAT, against="tested on Icecat"),
}


class Shop:
    """A made-up shop with its mined lists: training sets and what the slices need."""

    def __init__(self, work: Path, seed: int, shop: dict[str, Any], mined: dict[str, Any], args: Any) -> None:
        name = "-".join(["shop", str(seed), *(f"{k}{v}" for k, v in shop.items())])
        lists = "-".join([name, "mined", *(f"{k}{v}" for k, v in mined.items())])
        self.folder, self.mined = work / name, work / lists
        if not self.folder.is_dir():
            planted = {"aliases": 100, "alias_share": 0.4, "events": args.events, **shop}
            synthesize(SynthesizeConfig(out=str(self.folder), seed=seed, **planted))
        if not self.mined.is_dir():
            settings = {"log": {"path": str(self.folder / "log.parquet")}, "items": str(self.folder / "items.parquet")}
            settings |= {"out": str(self.mined), "neighbors": MINED | mined, "progress": False}
            settings |= {"engine": {"type": "duckdb", "threads": 1}}
            mine(MineConfig.build(settings))
        self.items = read_items(self.folder / "items.parquet")
        rows = duckdb.sql(f"select distinct query, source from '{self.folder / 'judgments.parquet'}'").fetchall()
        self.aliases = {query for query, source in rows if source == "alias"}
        judgments = read_judgments(self.folder / "judgments.parquet", self.items)
        self.positive = 0.5 if "sample" in shop else 1.0  # Icecat has means of three raters
        self.judgments = [
            replace(row, split=split) for row, split in zip(judgments, self._splits(judgments), strict=True)
        ]
        sql = f"select item_id, sum(exposures) from '{self.mined / 'daily.parquet'}' group by item_id"
        self.shown = dict(duckdb.sql(sql).fetchall())

    def _splits(self, judgments: Sequence[Judgment]) -> list[Any]:
        drawn = split_by_query([row.query for row in judgments], (0.5, 0.15, 0.35), "aliases")
        return [d if row.query in self.aliases else row.split for row, d in zip(judgments, drawn, strict=True)]


def run(shop: Shop, tested: Shop, setting: Setting, seed: int, pairs: PairTokenizer) -> dict[str, Any]:
    """Train one model on a shop; its scores and gates on the test pairs of that one or another."""
    started = time.process_time()
    model = SIZES | setting.model
    sets, relevant = {}, {}
    for split, of in (("train", shop), ("valid", shop), ("test", tested)):
        titles = {item.item_id: item.title for item in of.items}
        history = NeighborHistory.open(of.mined, titles, model["slots"])
        data = JudgedData(of.judgments, None, of.positive)
        rows = data.of(split)
        relevant[split] = data.relevant(rows)
        found = history.examples([row.query for row in rows], [row.item_id for row in rows])
        found = found if setting.change is None else setting.change(found, seed)
        sets[split] = replace(data.training_set(rows, pairs), neighbors=NeighborRows.build(pairs, found))
    torch.manual_seed(seed)
    network = BarlASe(BarlASeConfig(vocabulary_size=pairs.vocabulary_size, **model))
    config = FitConfig(seed=seed, device="cpu", **FIT)
    losses = ViewLosses.build(LOSSES if model.get("behavior", True) else {"contrast": 0.0, "mutual": 0.0})
    losses = ViewLosses.build(losses.plain() | setting.losses)
    result = fit_views(network, pairs, sets["train"], config, losses, sets["valid"])
    logits, gates = {}, {}
    for split in ("valid", "test"):
        logits[split], gates[split] = views(network, sets[split], pairs)
    curve = fit_calibration("platt", logits["valid"], relevant["valid"].astype(np.float64))
    neighbors = sets["test"].neighbors
    assert neighbors is not None
    return {
        "logits": logits["test"].tolist(),
        "scores": curve(logits["test"]).tolist(),
        "gates": gates["test"].tolist(),
        "has_items": (neighbors.items.counts > 0).tolist(),
        "has_queries": (neighbors.queries.counts > 0).tolist(),
        "valid_auc": result.metrics["auc"],
        "step": result.best_step,
        "seconds": time.process_time() - started,
    }


def views(network: BarlASe, examples: Any, pairs: PairTokenizer) -> tuple[Any, Any]:
    """Logits and gates of all pairs."""
    logits, gates = [], []
    with torch.inference_mode():
        for start in range(0, len(examples), 256):
            rows = np.arange(start, min(start + 256, len(examples)))
            found = network.eval().views(*network_inputs(collate(examples, rows, pairs)))
            logits.append(found.logit.numpy())
            gates.append(found.gate.numpy())
    return np.concatenate(logits), np.concatenate(gates)


def slices(shop: Shop, test: Sequence[Judgment], result: dict[str, Any]) -> dict[str, Any]:
    """Which test pairs belong to each part."""
    items, queries = np.array(result["has_items"]), np.array(result["has_queries"])
    alias = np.array([row.query in shop.aliases for row in test])
    asked = np.array([row.frequency or 0 for row in test])
    shown = np.array([shop.shown.get(row.item_id, 0) for row in test])
    rare, niche = asked <= np.quantile(asked, 1 / 3), shown <= np.quantile(shown, 1 / 3)
    return {
        "all": np.ones(len(test), dtype=bool),
        "neighbor-aware": items | queries,
        "neighbor-free": ~(items | queries),
        "both sides": items & queries,
        "made-up queries": alias,
        "real queries": ~alias,
        "rare queries": rare,
        "niche items": niche,
    }


def measured(shop: Shop, test: Sequence[Judgment], relevant: Any, result: dict[str, Any], parts: Any) -> dict[str, Any]:
    """AUC of each part, and FNR, F1 and the mean gate."""
    logits, scores, gates = (np.array(result[name]) for name in ("logits", "scores", "gates"))
    aware = parts["neighbor-aware"]
    return {
        "auc": {name: float(auc(logits[rows], relevant[rows])) for name, rows in parts.items()},
        "fnr": float(false_negative_rate(scores, relevant)),
        "macro_f1": float(macro_f1(scores, relevant)),
        "gate": float(gates[aware].mean()) if aware.any() else 1.0,
        "valid_auc": result["valid_auc"],
        "step": result["step"],
    }


def paired(runs: Sequence[tuple[Any, Any, Any, Any, int]]) -> dict[str, Any]:
    """The mean difference in AUC, with interval and p-value; each run is queries, relevant, a, b and the shop.

    For all runs of a shop the same queries are drawn.
    """
    values, spreads = [], []
    for queries, relevant, a, b, number in runs:
        _, rows = np.unique(queries, return_inverse=True)
        values.append(auc(a, relevant) - auc(b, relevant))
        spread = []
        for counts in draws(int(rows.max()) + 1, RESAMPLES, number, 50):
            for each in counts:
                drawn = np.repeat(np.arange(len(rows)), each[rows].astype(int))
                spread.append(auc(a[drawn], relevant[drawn]) - auc(b[drawn], relevant[drawn]))
        spreads.append(np.array(spread))
    drawn = np.mean(spreads, axis=0)
    low, high = interval(drawn)
    beyond = min(int((drawn <= 0).sum()), int((drawn >= 0).sum()))
    p_value = min(1.0, 2 * (beyond + 1) / (len(drawn) + 1))
    return {"value": float(np.mean(values)), "low": low, "high": high, "p_value": p_value, "by_run": values}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--events", type=int, default=1_500_000)
    parser.add_argument("--only", nargs="*", help="names of settings; left out: all")
    parser.add_argument("--report", action="store_true", help="only of what was found before; nothing is trained")
    parser.add_argument("--shops", nargs="*", type=int, default=[0, 1, 2], help="which shops; left out: all")
    parser.add_argument("--repeats", type=int, default=1, help="trainings of each kind a shop, of seeds of their own")
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.work.mkdir(parents=True, exist_ok=True)
    loaded = PairTokenizer.load(shipped_folder(), LAYOUT)
    pairs = PairTokenizer(loaded.tokenizer, LAYOUT)
    wanted = args.only or list(SETTINGS)
    shops: dict[str, Shop] = {}
    rows: dict[str, Any] = {}
    compared: dict[str, list[Any]] = {}
    base: dict[tuple[str, str], Any] = {}
    for name in ["full", *(each for each in wanted if each != "full")]:
        setting = SETTINGS[name]
        repeats = range(args.repeats if len(setting.shops) > 1 and setting.tested is None else 1)
        for seed, repeat in ((each, turn) for each in setting.shops if each in args.shops for turn in repeats):
            drawn = f"{seed}" if repeat == 0 else f"{seed}.{repeat}"
            file = args.work / f"{name.replace(' ', '-').replace('%', '')}-{drawn}.json"
            if args.report and not file.is_file():
                continue
            shop, tested = (
                opened(shops, args, seed, each, setting.mined)
                for each in (setting.shop, setting.shop if setting.tested is None else setting.tested)
            )
            if not file.is_file():
                write_json(file, run(shop, tested, setting, seed + 10 * repeat, pairs))
            result = json.loads(file.read_text())
            test = [row for row in tested.judgments if row.split == "test"]
            relevant = np.array([row.grade >= tested.positive for row in test])
            base[name, drawn] = result
            if (setting.against, drawn) not in base:
                continue
            # The parts of the other row's neighbors, so that all rows of the table speak of the same pairs.
            other = base[setting.against, drawn]
            parts = slices(tested, test, other)
            found = measured(tested, test, relevant, result, parts)
            rows.setdefault(name, {})[drawn] = found
            queries = np.array([normalize(row.query) for row in test])
            one, two = (np.array(each["logits"]) for each in (other, result))
            compared.setdefault(name, []).append((queries, relevant, one, two, parts, seed))
            print(name, drawn, {k: round(v, 4) for k, v in found["auc"].items()}, flush=True)
    write_report(args, rows, compared)


def opened(shops: dict[str, Shop], args: Any, seed: int, planted: Any, mined: Any) -> Shop:
    """A shop with its lists, each opened once."""
    key = f"{seed}{planted}{mined}"
    if key not in shops:
        shops[key] = Shop(args.work, seed, planted, mined, args)
    return shops[key]


def write_report(args: Any, rows: dict[str, Any], compared: dict[str, list[Any]]) -> None:
    """The JSON of all settings: means over shops, spread, and the full model less each of the others."""
    report: dict[str, Any] = {
        "command": "python " + " ".join(sys.argv),
        "machine": f"{processor()}, Python {platform.python_version()}, one thread",
        "model": SIZES,
        "fit": FIT,
        "losses": LOSSES,
        "lists": MINED,
        "settings": {},
    }
    for name, found in rows.items():
        parts = next(iter(found.values()))["auc"]
        entry: dict[str, Any] = {
            "runs": sorted(found),
            "auc": {part: float(np.mean([each["auc"][part] for each in found.values()])) for part in parts},
            "auc_by_run": [each["auc"]["all"] for each in found.values()],
            **{
                each: float(np.mean([f[each] for f in found.values()]))
                for each in ("fnr", "macro_f1", "gate", "valid_auc")
            },
        }
        against = SETTINGS[name].against
        if name != against:
            key = f"{against.replace(' ', '_')}_less_this"
            entry[key] = {
                part: paired(
                    [(q[k[part]], r[k[part]], a[k[part]], b[k[part]], shop) for q, r, a, b, k, shop in compared[name]]
                )
                for part in (compared[name][0][4] if name in BY_PART else ("all",))
            }
            entry["gain_percent"] = 100 * entry[key]["all"]["value"] / entry["auc"]["all"]
            print(key, entry[key]["all"])
        report["settings"][name] = entry
        print(name, round(entry["auc"]["all"], 4), flush=True)
    if args.out is not None:
        write_json(args.out, report)


if __name__ == "__main__":
    main()
