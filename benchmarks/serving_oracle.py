"""Questions in several dialects, and what is wrong with an answer: every score is compared with the library's.

The benchmark of mixed faults asks these. An answer names its version; the scores of each model for every text, and
the rows of each generation of the index, are known before.
"""

from __future__ import annotations

import base64
import csv
import json
import random
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from pertinent.engine.fallback import LEXICAL, lexical_scores
from pertinent.engine.index import IndexConfig, ItemIndex
from pertinent.engine.scorer import Scorer
from pertinent.lexicon.pairs import PairTokenizer
from pertinent.load.client import Reply
from pertinent.load.plan import DIALECTS
from pertinent.records import Item

QUERIES = 16
TOLERANCE = 1e-5
Rows = NDArray[np.int64]
By = Literal["texts", "ids", "rows"]
# Of the dialects: where the scores are, under which name, and whether they are in the order of relevance.
READ: dict[str, tuple[str | None, str, bool]] = {
    "cohere": ("results", "relevance_score", True),
    "jina": ("results", "relevance_score", True),
    "mixedbread": ("data", "score", True),
    "tei": (None, "score", True),
    "vllm-score": ("data", "score", False),
}


@dataclass(frozen=True, slots=True)
class Question:
    """A request. ``items`` are numbers of texts or items, or rows of the index, by what ``by`` says."""

    kind: str
    path: str
    body: bytes
    query: int
    by: By
    items: Rows
    top: int | None = None
    deadline_ms: int | None = None
    partial: bool = False
    fallback: bool = False


@dataclass(frozen=True, slots=True)
class Generation:
    """An index: its folder, the text of each row, and the row of each item, -1 for none; all by number."""

    folder: Path
    texts: Rows
    rows: Rows


class Catalog:
    """A catalog that changes twice, an index of each state, and one that is never served."""

    def __init__(self, items: Sequence[Item], pairs: PairTokenizer, folder: Path) -> None:
        count = len(items)
        first, later = items[: count * 9 // 10], items[count * 9 // 10 :]
        self.ids = [item.item_id for item in items]
        changed = [Item(item.item_id, f"{item.title} renewed") for item in first[::10]]
        gone = [item.item_id for item in first[5::20]]
        self.update = folder / "update.csv"
        with open(self.update, "w", encoding="utf-8", newline="") as file:
            rows = [("item_id", "title"), *((item.item_id, item.title) for item in [*changed, *later])]
            csv.writer(file).writerows(rows)
        states = [{item.item_id: item.title for item in first}]
        states.append({**states[0], **{item.item_id: item.title for item in [*changed, *later]}})
        states.append({name: title for name, title in states[1].items() if name not in set(gone)})
        self.texts = list(dict.fromkeys(title for state in states for title in state.values()))
        quiet = IndexConfig(progress=False)
        folders = [folder / f"index-{number}" for number in range(4)]
        ItemIndex.build(first, pairs, folders[0], config=quiet)
        for place, (items_, delete) in enumerate(((changed + list(later), []), ([], gone), ([], self.ids[1::30]))):
            shutil.copytree(folders[place], folders[place + 1])
            ItemIndex.update(folders[place + 1], pairs, items_, delete, config=quiet)
        self.unserved = folders.pop()
        self.generations = dict(self._read(*each) for each in zip(folders, states, strict=True))

    def _read(self, folder: Path, titles: dict[str, str]) -> tuple[str, Generation]:
        index = ItemIndex.open(folder)
        number = {text: place for place, text in enumerate(self.texts)}
        ids = [item.item_id for item in index.items(range(len(index)))]
        assert sorted(ids) == sorted(titles)
        row_of = {name: row for row, name in enumerate(ids)}
        texts = np.array([number[titles[name]] for name in ids], dtype=np.int64)
        rows = np.array([row_of.get(name, -1) for name in self.ids], dtype=np.int64)
        return index.version, Generation(folder, texts, rows)


class Oracle:
    """What each version answers, and the questions."""

    def __init__(self, models: Sequence[Path], catalog: Catalog, most: int, seed: int) -> None:
        draw = random.Random(seed)
        self.catalog, self.worst = catalog, 0.0
        self.queries = [" ".join(draw.choice(catalog.texts).split()[:3]) for _ in range(QUERIES)]
        self.scores: dict[str, NDArray[np.float32]] = {}  # by version of the model, [queries, texts]
        for model in models:
            scorer = Scorer.load(model, threads=1)
            self.scores[scorer.version] = np.stack([scorer.score(query, catalog.texts) for query in self.queries])
            scorer.close()
        self.questions = [self._question(kind, size, draw) for kind in KINDS for size in sizes(most) for _ in range(4)]
        self.weights = [1 / len(question.items) ** 0.3 for question in self.questions]

    def _question(self, kind: str, size: int, draw: random.Random) -> Question:
        query, catalog = draw.randrange(QUERIES), self.catalog
        by: By = "ids" if "ids" in kind else "rows" if "rows" in kind else "texts"
        among = {"texts": len(catalog.texts), "ids": len(catalog.ids), "rows": len(catalog.ids)}[by]
        items = np.array([draw.randrange(among) for _ in range(size)], dtype=np.int64)
        if by == "texts":
            path, build = DIALECTS[kind.split(",")[0]]
            body = build(self.queries[query], [catalog.texts[item] for item in items])
        else:
            path, body = "/v1/relevance", {"query": self.queries[query]}
            packed = base64.b64encode(items.astype("<i4").tobytes()).decode()
            body |= {"rows": packed} if by == "rows" else {"item_ids": [catalog.ids[item] for item in items]}
        top = 10 if "top" in kind else None
        if top:
            body["top_n" if by == "texts" else "top"] = top
        deadline = 25 if "partial" in kind or "fallback" in kind else 2_000 if "deadline" in kind else None
        body |= {"deadline_ms": deadline} if deadline else {}
        body |= {"partial": True} if "partial" in kind else {"fallback": True} if "fallback" in kind else {}
        content = json.dumps(body).encode()
        return Question(
            kind, path, content, query, by, items, top, deadline, partial="partial" in kind, fallback="fallback" in kind
        )

    def problem(self, question: Question, reply: Reply) -> str:
        """What is wrong with an answer of status 200, empty for nothing."""
        version = reply.headers.get("x-model-version", "")
        model, _, index = version.partition("-")
        if model not in self.scores or index not in self.catalog.generations:
            return f"the version {version!r} was never to be served"
        texts = self._texts(question, self.catalog.generations[index])
        known = texts >= 0
        wanted = np.where(known, self.scores[model][question.query][texts], np.nan)
        try:
            answer = msgspec.json.decode(reply.body)
            if question.path == "/v1/relevance":
                if answer["version"] != version:
                    return "header and body name two versions"
                return self._relevance(question, answer, texts, wanted)
            field, name, ordered = READ[question.kind.split(",")[0]]
            rows = answer if field is None else answer[field]
            places = np.array([row["index"] for row in rows], dtype=np.int64)
            scores = np.array([row[name] for row in rows], dtype=np.float64)
        except (msgspec.DecodeError, KeyError, TypeError, ValueError) as error:
            return f"it cannot be read: {error!r}"
        return self._compared(question, places, scores, wanted, np.arange(len(texts)), ordered)

    def _texts(self, question: Question, generation: Generation) -> Rows:
        """The numbers of the texts that are asked for, -1 for what the generation does not have."""
        if question.by == "texts":
            return question.items
        rows = generation.rows[question.items] if question.by == "ids" else question.items
        inside = (rows >= 0) & (rows < len(generation.texts))
        return np.where(inside, generation.texts[np.where(inside, rows, 0)], -1)

    def _relevance(self, question: Question, answer: dict[str, Any], texts: Rows, wanted: NDArray[np.floating]) -> str:
        places = np.array(answer["index"], dtype=np.int64)
        relevance = np.array(answer["relevance"], dtype=np.float64)
        unscored = np.array(answer.get("unscored", []), dtype=np.int64)
        partial, by = answer.get("partial", False), answer.get("scorers") or ["model"] * len(places)
        if partial and not (question.partial or question.fallback):
            return "it is partial, which was not asked for"
        if len(unscored) and not (partial and question.partial):
            return "items are left unscored, which was not asked for"
        if answer.get("unknown", []) != np.flatnonzero(texts < 0).tolist():
            return "it does not tell the unknown items"
        stood_in = np.array([name == LEXICAL for name in by])
        if set(by) - {"cached", "model", LEXICAL} or (stood_in.any() and not question.fallback):
            return f"it was scored by {', '.join(sorted(set(by)))}"
        if answer.get("stood_in") != ("deadline" if stood_in.any() else None):
            return f"word overlap stands in: {answer.get('stood_in')}"
        names: Sequence[Any] = places.tolist()
        if question.by != "texts":
            given = question.items[places].tolist()
            names = [self.catalog.ids[item] for item in given] if question.by == "ids" else given
        if answer["ids"] != list(names):
            return "the ids are not those of the places"
        count = len(places) - int(stood_in.sum())
        if stood_in[:count].any():
            return "word overlap stands before scores of the model"
        left = unscored
        if stood_in.any():
            left = np.sort(places[count:])
            overlap = lexical_scores(self.queries[question.query], [self.catalog.texts[texts[place]] for place in left])
            if not np.abs(overlap[np.searchsorted(left, places[count:])] - relevance[count:]).max() <= TOLERANCE:
                return "word overlap is another"
        among = np.setdiff1d(np.flatnonzero(texts >= 0), left)
        return self._compared(question, places[:count], relevance[:count], wanted, among, True)

    def _compared(
        self,
        question: Question,
        places: Rows,
        scores: NDArray[np.float64],
        wanted: NDArray[np.floating],
        among: Rows,
        ordered: bool,
    ) -> str:
        """What is wrong with scores of ``places`` of the request, of which ``among`` had to be scored."""
        count = len(among) if question.top is None else min(question.top, len(among))
        if len(places) != count or len(np.unique(places)) != count or not np.isin(places, among).all():
            return f"{len(places)} items of {count}, or not the ones that were asked for"
        if not count:
            return ""
        difference = float(np.abs(scores - wanted[places]).max())
        if not difference <= TOLERANCE:
            return f"a score is {difference:.3g} off"
        self.worst = max(self.worst, difference)
        if ordered and not (np.lexsort((places, -scores)) == np.arange(count)).all():
            return "the order is not that of the scores"
        left = np.setdiff1d(among, places)
        if len(left) and wanted[left].max() > scores.min() + TOLERANCE:
            return "a better item is left out"
        return ""


KINDS = (
    *("cohere", "tei", "jina, top", "mixedbread", "vllm-score", "relevance", "ids", "ids, top"),
    *("ids, deadline", "rows", "rows, partial", "ids, fallback"),
)


def sizes(most: int) -> list[int]:
    """How many items questions have.

    >>> sizes(3000)
    [1, 10, 100, 1000, 3000]
    """
    return sorted({size for size in (1, 10, 100, most // 3, most) if 1 <= size <= most})
