"""Distills a late-join sibling of a model: ``python recipes/late_join.py --judgments FILE --pairs FILE``.

    1. exact     the exact model's logits of the judged training pairs and of more real pairs
    2. distill   the same weights, joined later, learn its margins and probabilities (configs/late-join.yaml)
    3. int8      the gate of the native engine's 8-bit products, on judgments of held-out queries
    4. compare   AUC and NDCG@10 of both on held-out queries, with paired intervals

Without arguments it makes the sibling of the shipped model from what ``recipes/shipped_model.py --until
pairs`` leaves in its work folder; ``--install`` puts it into the package, its card completed (``make late``
does both). A killed training goes on where it stopped; logits are made anew where the model, the judgments,
the pairs or the limit are others.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import logging
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pertinent.artifact import input_digests, open_artifact, read_json, write_artifact, write_json, write_text
from pertinent.commands import export
from pertinent.data.readers import read_judgments, read_table
from pertinent.engine.export import ExportConfig
from pertinent.engine.scorer import Scorer
from pertinent.evaluation.compare import compare
from pertinent.evaluation.evaluate import evaluate
from pertinent.folders import model_folder
from pertinent.records import Judgment, Pair
from pertinent.training.run import TrainConfig, train

logger = logging.getLogger("recipe")
CONFIG = Path(__file__).resolve().parents[1] / "configs" / "late-join.yaml"
CHUNK = 4_096


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="the exact model; left out: the shipped one")
    parser.add_argument("--judgments", type=Path, default=Path("runs/shipped/judgments-both.csv"))
    parser.add_argument("--pairs", type=Path, default=Path("runs/shipped/teacher_pairs.csv"), help="query, title")
    parser.add_argument("--limit", type=int, default=27_000, help="so many pairs are scored at most")
    parser.add_argument("--out", type=Path, default=Path("runs/late"))
    parser.add_argument("--install", action="store_true", help="put the result into the package at the end")
    parser.add_argument("--set", dest="changes", action="append", default=[], help="a setting, as in pertinent train")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    judgments = read_judgments(options.judgments)
    examples = options.out.with_name(f"{options.out.name}_pairs.csv")
    examples.parent.mkdir(parents=True, exist_ok=True)
    exact = Scorer.load(options.model)
    need_exact_pairs(examples, exact, options.judgments, options.pairs, options.limit)
    settings = {
        "judgments": str(options.judgments),
        "examples": [str(examples)],
        "start": "shipped" if options.model is None else str(options.model),
        "out": str(options.out),
        "licenses": open_artifact(model_folder(options.model), kind="model").config.get("licenses", {}),
        "resume": True,
    }
    train(
        TrainConfig.load(CONFIG, [*(f"{key}={json.dumps(value)}" for key, value in settings.items()), *options.changes])
    )
    gated = options.out.with_name(f"{options.out.name}-with-int8")
    files = {"model": str(options.out), "out": str(gated), "judgments": str(options.judgments)}
    export(ExportConfig(**files, int8_backends=("native-int8",)))
    found = compared(exact, Scorer.load(gated), judgments)
    write_json(options.out.with_name(f"{options.out.name}_compared.json"), found)
    logger.info("%s", json.dumps(found, indent=2))
    if options.install:
        install(gated, model_folder("shipped-late"), found)


def install(made: Path, place: Path, found: Mapping[str, Mapping[str, Any]]) -> None:
    """The trained sibling at its place in the package, its card completed by what it costs."""
    model = open_artifact(made, kind="model")
    text = model.file("README.md").read_text(encoding="utf-8")
    text = text.replace(f"# {made.name}\n", "# shipped-late\n", 1)
    text = text.replace(f'Scorer.load("path/to/{made.name}")', 'Scorer.load("shipped-late")') + card_of_join(found)
    with write_artifact(place, "model", model.config, model.manifest["inputs"], model.metrics) as folder:
        for name in model.manifest["files"]:
            shutil.copyfile(model.path / name, folder / name)
        write_text(folder / "README.md", text)
    logger.info("installed version %s", open_artifact(place, kind="model").version)


def card_of_join(found: Mapping[str, Mapping[str, Any]]) -> str:
    """What the join costs beside the exact model, as a section of a card."""
    lines = [
        "",
        "## Beside the exact model",
        "",
        "Titles are read apart from the query, so that an index can keep what the model knows of them. It learned the",
        "scores of the exact model, `Scorer.load()`. What that costs, paired by query, with 95% intervals:",
        "",
        "| split | pairs | metric | exact | late join | late join above exact |",
        "|---|---|---|---|---|---|",
    ]
    for part, values in found.items():
        for name in ("auc", "ndcg@10"):
            exact, late, above = (values[name][each] for each in ("exact", "late", "difference"))
            told = f"{above['value']:+.3f} [{above['low']:+.3f}, {above['high']:+.3f}]"
            figures = f"{exact['value']:.3f} | {late['value']:.3f} | {told}"
            lines.append(f"| {part} | {values['pairs']:,} | {name} | {figures} |")
    lines += ["", "Weights and calibration were chosen on the validation split.", ""]
    return "\n".join(lines)


def need_exact_pairs(examples: Path, exact: Scorer, judgments: Path, pairs: Path, limit: int) -> bool:
    """Whether the exact model's logits had to be made: they are kept where model, files and limit are the same.

    What they were made from is in a JSON note beside them.
    """
    note = examples.with_suffix(".json")
    made_from = {
        "model": exact.version,
        "inputs": input_digests({"judgments": judgments, "pairs": pairs}),
        "limit": limit,
    }
    if examples.is_file() and note.is_file() and read_json(note) == made_from:
        return False
    note.unlink(missing_ok=True)  # a run killed from here on leaves logits that nothing vouches for
    write_exact_pairs(examples, exact, real_pairs(read_judgments(judgments), pairs, limit))
    write_json(note, made_from)
    return True


def real_pairs(judgments: Sequence[Judgment], path: Path, limit: int) -> list[Pair]:
    """Judged training pairs, then whole queries of the table in an order that depends on their texts alone."""
    held_out = {judgment.query for judgment in judgments if judgment.split in ("valid", "test")}
    pairs = [Pair(judgment.query, judgment.title) for judgment in judgments if judgment.split == "train"]
    table = read_table(path)
    titles: dict[str, list[str]] = {}
    for query, title in zip(table.column("query"), table.column("title"), strict=True):
        if query not in held_out:
            titles.setdefault(query, []).append(title)
    for query in sorted(titles, key=lambda text: hashlib.md5(text.encode()).hexdigest()):
        if len(pairs) >= limit:
            break
        pairs += [Pair(query, title) for title in titles[query]]
    return pairs


def write_exact_pairs(path: Path, exact: Scorer, pairs: Sequence[Pair]) -> None:
    """The pairs with the exact model's logits, as a table to train on."""
    aside = path.with_suffix(".part")
    with open(aside, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["query", "title", "teacher_logit"])
        for start in range(0, len(pairs), CHUNK):
            chunk = pairs[start : start + CHUNK]
            for pair, logit in zip(chunk, exact.pair_logits(chunk), strict=True):
                writer.writerow([*pair, f"{logit:.4f}"])
            logger.info("%d of %d pairs scored", start + len(chunk), len(pairs))
    aside.replace(path)


def compared(exact: Scorer, late: Scorer, judgments: Sequence[Judgment]) -> dict[str, dict[str, object]]:
    """Both models on held-out pairs, and how far the late join is above the exact one, paired by query."""
    found: dict[str, dict[str, object]] = {}
    parts = [
        ("valid", None),
        ("test", None),
        *(("test", shop) for shop in sorted({j.segment or "" for j in judgments})),
    ]
    for split, segment in parts:
        rows = [j for j in judgments if j.split == split and segment in (None, j.segment or "")]
        if len({judgment.grade >= 1 for judgment in rows}) < 2:
            continue
        results = [evaluate(scorer, rows, positive_grade=1.0, segment_by=()) for scorer in (exact, late)]
        differences = compare(results[1], results[0])
        found[split if segment is None else f"{split}, {segment}"] = {
            "pairs": len(rows),
            **{
                name: {
                    "exact": results[0].metrics[name].plain(),
                    "late": results[1].metrics[name].plain(),
                    "difference": differences[name].plain(),
                }
                for name in ("auc", "ndcg@10")
            },
        }
    return found


if __name__ == "__main__":
    main()
