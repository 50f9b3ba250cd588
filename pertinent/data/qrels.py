"""Retrieval collections in the layouts of BEIR and TREC: queries, documents and relevance scores."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from pertinent.data.files import open_text, read_file
from pertinent.data.public import PublicData, folder_of, known, texts_by_id
from pertinent.data.readers import SPLIT_WORDS
from pertinent.data.tables import Table
from pertinent.errors import DataError
from pertinent.records import Item, Judgment, Split

OWNERS = "that of the data set's owner: see its own documentation"


def beir(path: str | Path) -> PublicData:
    """Any BEIR folder: ``corpus.jsonl``, ``queries.jsonl`` and ``qrels/{train,dev,test}.tsv``.

    The grade is the score over the highest score of the data set; negative scores count as 0.
    """
    folder = folder_of(path)
    corpus = read_file(_present(folder, "corpus.jsonl", "corpus.jsonl.gz"))
    queries = texts_by_id(read_file(_present(folder, "queries.jsonl", "queries.jsonl.gz")), "_id", "text")
    items = {}
    for row in range(len(corpus)):
        item_id = corpus.need_text(row, "_id")
        title = corpus.text(row, "title") if corpus.has("title") else None
        text = corpus.text(row, "text") if corpus.has("text") else None
        items[item_id] = Item(item_id, title or text or "", text if title else None)
    files = sorted((folder / "qrels").glob("*.tsv"))
    if not files:
        raise DataError("has no qrels/*.tsv", path=folder, fix="give a folder in the layout of BEIR")
    tables = [(SPLIT_WORDS.get(file.stem), read_file(file)) for file in files]
    scores = [[t.number(row, "score", -1e9, 1e9, "give a number") for row in range(len(t))] for _, t in tables]
    top = max((score for column in scores for score in column), default=1.0) or 1.0
    judgments = []
    for (split, table), column in zip(tables, scores, strict=True):
        for row, score in enumerate(column):
            query = known(table, row, "query-id", queries, "queries.jsonl")
            item = known(table, row, "corpus-id", items, "corpus.jsonl")
            judgments.append(_scored(query, item, score, top, split))
    citation = "Thakur et al. 2021, BEIR: A Heterogenous Benchmark for Zero-shot Evaluation of Information Retrieval"
    return PublicData(list(items.values()), judgments, OWNERS, citation)


def trec(path: str | Path) -> PublicData:
    """A TREC collection: one file each of qrels, topics and documents in a folder. No split.

    Qrels (``*qrel*``) are ``query 0 document score``. Topics (``*topic*``, ``*quer*``) are lines of id,
    tab, text, or ``<top>`` records. Documents (``*docs*``, ``*corpus*``, ``*collection*``) are
    ``<DOC>`` records, JSONL, or lines of id, tab, title, tab, text. All may end in ``.gz``.
    The grade is the score over the highest score; negative scores count as 0.
    """
    folder = folder_of(path)
    qrels = _present(folder, "*qrel*")
    queries = dict(_topics(_present(folder, "*topic*", "*quer*")))
    items = {item.item_id: item for item in _documents(_present(folder, "*docs*", "*corpus*", "*collection*"))}
    rows: list[list[str]] = []
    lines: list[int] = []
    with open_text(qrels) as file:
        for number, line in enumerate(file, 1):
            cells = line.split()
            if cells and len(cells) != 4:
                fix = "write: query 0 document score"
                raise DataError(f"has {len(cells)} fields, not 4", path=qrels, line=number, value=line.strip(), fix=fix)
            if cells:
                rows.append(cells)
                lines.append(number)
    names = ("query_id", "iteration", "item_id", "score")
    table = Table({name: [row[i] for row in rows] for i, name in enumerate(names)}, str(qrels), lines)
    scores = [table.number(row, "score", -1e9, 1e9, "give a number") for row in range(len(table))]
    top = max(scores, default=1.0) or 1.0
    judgments = [
        _scored(known(table, row, "query_id", queries, "the topics"), item, score, top, None)
        for row, score in enumerate(scores)
        for item in [known(table, row, "item_id", items, "the documents")]
    ]
    return PublicData(list(items.values()), judgments, OWNERS, "the TREC track of the collection")


def _present(folder: Path, *patterns: str) -> Path:
    for pattern in patterns:
        found = sorted(p for p in folder.glob(pattern) if p.is_file())
        if found:
            return found[0]
    raise DataError(f"has no file {' or '.join(patterns)}", path=folder, fix="see the layout in pertinent.data.qrels")


def _scored(query: str, item: Item, score: float, top: float, split: Split | None) -> Judgment:
    return Judgment(query, item.item_id, max(0.0, score / top), item.title, f"{score:g}", split)


def _topics(path: Path) -> Iterator[tuple[str, str]]:
    with open_text(path) as file:
        text = file.read()
    if "<top>" not in text:
        yield from ((key.strip(), rest.strip()) for key, tab, rest in (ln.partition("\t") for ln in text.splitlines()))
        return
    for record in re.findall(r"<top>(.*?)</top>", text, re.DOTALL):
        number = re.search(r"<num>\s*(?:Number:)?\s*(\S+?)\s*(?:<|\n)", record)
        title = re.search(r"<title>\s*(?:Topic:)?\s*(.*?)\s*(?:</?\w+>|\n\s*\n|\Z)", record, re.DOTALL)
        if number and title:
            yield number[1], " ".join(title[1].split())


def _documents(path: Path) -> Iterator[Item]:
    if ".jsonl" in path.name:
        yield from _json_documents(read_file(path))
        return
    with open_text(path) as file:
        text = file.read()
    if "<DOC>" not in text:
        for line in text.splitlines():
            item_id, title, body = (*line.split("\t", 2), "", "")[:3]
            yield Item(item_id.strip(), title.strip(), body.strip() or None)
        return
    for record in re.findall(r"<DOC>(.*?)</DOC>", text, re.DOTALL):
        fields = {name: " ".join(body.split()) for name, body in re.findall(r"<(\w+)>(.*?)</\1>", record, re.DOTALL)}
        title, body = fields.get("TITLE", ""), fields.get("TEXT", "")
        yield Item(fields.get("DOCNO", ""), title or body, body if title else None)


def _json_documents(table: Table) -> Iterator[Item]:
    key = next((name for name in ("docno", "docid", "doc_id", "_id", "id") if table.has(name)), "docid")
    names = [name for name in ("title", "text", "contents", "description") if table.has(name)]
    table.column(key)
    for row in range(len(table)):
        texts = [text for name in names if (text := table.text(row, name))]
        yield Item(table.need_text(row, key), texts[0] if texts else "", texts[1] if len(texts) > 1 else None)
