"""Makes the term tagger that ships with pertinent, from the sample data alone, and measures it.

    1. gazetteer   values of the samples' categories and attributes (no query label is read)
    2. examples    training splits of QueryNER and OA-Mine in our classes, and titles of two catalogs
                   labeled by their own attributes and by pattern rules
    3. classifier  one that sees the gazetteer's matches (shipped), one that does not (to compare)
    4. measure     precision, recall and F1 by span on the validation and test splits, with intervals

    python recipes/term_tagger.py            # into runs/term_tagger and benchmarks/term_classes.json
    python recipes/term_tagger.py --install  # also into the package
    python recipes/term_tagger.py --search   # the settings that were tried, by their validation scores

The test splits are read in step 4 alone. The same input gives the same bytes.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pertinent.artifact import input_digests, open_artifact, read_json, write_artifact, write_json
from pertinent.data.readers import read_items, read_table
from pertinent.data.samples import sample_path
from pertinent.data.splits import bucket
from pertinent.lexicon.gazetteer import Gazetteer, GazetteerConfig
from pertinent.lexicon.labeled import (
    Split,
    f1_interval,
    labels_of_titles,
    oa_mine,
    queryner,
    span_counts,
    span_scores,
)
from pertinent.lexicon.sequence import CrfConfig
from pertinent.lexicon.tagger import SHIPPED, LabeledText, Tagger, TaggerConfig
from pertinent.records import Item

logger = logging.getLogger("recipe")
RESULTS = Path(__file__).resolve().parents[1] / "benchmarks" / "term_classes.json"
CATALOGS = ("esci", "fashion", "icecat", "pricerunner")
LABELED = {"queryner": queryner, "oa_mine": oa_mine}
# Titles with weak labels, by catalog.
WEAK = {"fashion": 1000, "icecat": 1000}
# Terms that one item names are kept here: the samples are small pieces of their catalogs.
GAZETTEER = GazetteerConfig(min_count=1, min_titles=1)
CRF = CrfConfig()
CONFIG = TaggerConfig(gazetteer=GAZETTEER, crf=CRF)
TRIED = [
    {"crf": CRF.model_copy(update=change)}
    for change in (
        {},
        {"c1": 0.2, "c2": 0.02},
        {"c1": 0.05, "c2": 0.05},
        {"c1": 0.5, "c2": 0.02},
        {"c1": 0.02, "c2": 0.5},
        {"c1": 0.3, "c2": 0.3},
    )
] + [{"fill": True}]
DRAWS, SEED = 2000, 0


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/term_tagger"), help="where the two taggers go")
    parser.add_argument("--search", action="store_true", help="try other settings on the validation splits and leave")
    parser.add_argument("--install", action="store_true", help="put the tagger into the package")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)

    catalogs = {name: read_items(sample_path(name) / "items.parquet") for name in CATALOGS}
    gazetteer = Gazetteer.from_items([item for items in catalogs.values() for item in items] + furniture(), GAZETTEER)
    logger.info("gazetteer: %d terms", len(gazetteer))
    examples = training_texts(catalogs)
    logger.info("examples: %d texts", len(examples))
    if options.search:
        search(examples, gazetteer)
        return
    systems = {"gazetteer alone": Tagger(gazetteer, None, CONFIG.model_copy(update={"mode": "gazetteer"}))}
    for name, mode in (("classifier alone", "classifier"), ("both", "both")):
        systems[name] = Tagger.train(examples, gazetteer, CONFIG.model_copy(update={"mode": mode}))
        logger.info("%s: %d weights", name, sum((w != 0).sum() for w in systems[name].crf.weights.values()))  # type: ignore[union-attr]
    measured = {name: measure(system) for name, system in systems.items()}
    for name, system in systems.items():
        system.save(options.work / name.replace(" ", "_"))
    record = read_json(RESULTS) if RESULTS.is_file() else {}
    write_json(RESULTS, {**record, "quality": measured})
    print(table(measured))
    if options.install:
        install(systems["both"], measured["both"])
        logger.info("installed version %s", open_artifact(SHIPPED, kind="tagger").version)


def training_texts(catalogs: dict[str, list[Item]]) -> list[LabeledText]:
    """People's labels first, then the weak ones."""
    texts = [text for name, read in LABELED.items() for text in read(labels_path(name), "train")]
    for name, limit in WEAK.items():
        # The order of an id's hash is a random order that does not change.
        chosen = sorted(catalogs[name], key=lambda item: bucket(item.item_id, salt="weak"))
        texts += labels_of_titles(chosen, GAZETTEER, limit)
    return texts


def furniture() -> list[Item]:
    """The queries of WANDS as titles, with their product class as category."""
    rows = read_table(sample_path("wands") / "queries.parquet")
    columns = zip(*(rows.column(name) for name in ("query_id", "query", "category")), strict=True)
    return [Item(f"wands-{number}", query, category=category) for number, query, category in columns]


def labels_path(name: str) -> Path:
    return sample_path(name) / "ner.parquet"


def search(examples: Sequence[LabeledText], gazetteer: Gazetteer) -> None:
    """Print the validation micro F1 of each setting tried."""
    for change in TRIED:
        tagger = Tagger.train(examples, gazetteer, CONFIG.model_copy(update=change))
        found = [f"{name} {scores(tagger, name, 'valid')['micro']['f1']:.4f}" for name in LABELED]
        print(", ".join(found), {key: getattr(value, "plain", lambda: value)() for key, value in change.items()})  # noqa: B023


def scores(tagger: Tagger, name: str, split: Split) -> dict[str, Any]:
    texts = LABELED[name](labels_path(name), split)
    counts = span_counts(texts, tagger.tag_many([text.text for text in texts]))
    low, high = f1_interval(counts, DRAWS, SEED)
    return {**span_scores(counts), "texts": len(texts), "micro_f1_interval": [low, high]}


def measure(tagger: Tagger) -> dict[str, Any]:
    """Scores by data set and split."""
    return {name: {split: scores(tagger, name, split) for split in ("valid", "test")} for name in LABELED}  # type: ignore[arg-type]


def table(measured: dict[str, Any]) -> str:
    """The test scores as a Markdown table, as it stands in the docs."""
    lines = []
    for data in LABELED:
        lines += [f"{data}, test", ""]
        lines += ["| class | spans | " + " | ".join(f"{name}: P | R | F1" for name in measured) + " |"]
        lines += ["|---|---|" + "---|" * (3 * len(measured))]
        for row in next(iter(measured.values()))[data]["test"]:
            cells = [system[data]["test"].get(row) for system in measured.values()]
            if isinstance(cells[0], dict):
                numbers = [f"{cell[key]:.3f}" for cell in cells for key in ("precision", "recall", "f1")]
                lines.append(f"| {row} | {cells[0]['spans']} | " + " | ".join(numbers) + " |")
        ranges = ["{:.3f} to {:.3f}".format(*system[data]["test"]["micro_f1_interval"]) for system in measured.values()]
        lines += ["| micro F1, 95 % | | " + " | ".join(f"| | {cell}" for cell in ranges) + " |", ""]
    return "\n".join(lines)


def install(tagger: Tagger, measured: dict[str, Any]) -> None:
    """The tagger into the package, as an artifact."""
    paths = {f"{name}/{file}": sample_path(name) / file for name, file in inputs()}
    with write_artifact(SHIPPED, "tagger", CONFIG.plain(), input_digests(paths), measured, dated=False) as folder:
        tagger.save(folder)


def inputs() -> list[tuple[str, str]]:
    files = [(name, "items.parquet") for name in CATALOGS] + [(name, "ner.parquet") for name in LABELED]
    return [*files, ("wands", "queries.parquet")]


if __name__ == "__main__":
    main()
