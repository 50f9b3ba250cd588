"""Sub-tokens before and after vocabulary extension on the sample catalogs, and what that costs in speed.

    python benchmarks/lexicon_subtokens.py --out benchmarks/lexicon_subtokens.json
    python benchmarks/lexicon_subtokens.py --draw benchmarks/lexicon_subtokens.json --page subtokens.html

The second draws what the first found: a table as ei-SRC's Table 3, and a figure.
Words are learned from titles alone, never from queries. ``catalog``: from all titles, as a shop does.
``held_out``: a tenth of the titles (by MD5), and all titles of judged pairs of the splits valid and
test, are not learned from; tokens of these are counted. Pairs are those of valid and test.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
import unicodedata
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from pertinent.charts import Axis, intervals
from pertinent.data.readers import judgments_of, read_items, read_table
from pertinent.data.samples import JUDGED, sample_path
from pertinent.data.splits import bucket
from pertinent.folders import shipped_folder
from pertinent.lexicon.pairs import TOKENIZER_FILE, PairConfig, PairTokenizer
from pertinent.lexicon.run import LexiconConfig
from pertinent.lexicon.terms import domain_words, word_counts
from pertinent.lexicon.vocabulary import extend_tokenizer, subtoken_report
from pertinent.page import grid, page, section, table
from pertinent.text import JOINT, normalize

CATALOGS = ("esci", "icecat", "pricerunner", "fashion")
SPEED_TITLES = 3_000
ROUNDS = 9
# No added word of the samples has more characters.
LONGEST = 48


def read(name: str) -> tuple[list[str], list[tuple[str, str]]]:
    """Titles of a sample catalog, and its judged pairs of valid and test."""
    folder = sample_path(name)
    titles = read_table(folder / "items.parquet").need_texts("title")
    if name not in JUDGED:
        return titles, []
    judgments = judgments_of(read_table(folder / "judgments.parquet"), read_items(folder / "items.parquet"))
    return titles, [(row.query, row.title) for row in judgments if row.split in ("valid", "test")]


def measure(
    titles: list[str], pairs: list[tuple[str, str]], base: Tokenizer, limit: int, min_count: int
) -> dict[str, Any]:
    """Both tables of the paper for one catalog."""
    judged = {normalize(title) for _, title in pairs}
    keys = [normalize(title) for title in titles]
    out = [key in judged or bucket(key, "lexicon") < 0.1 for key in keys]
    learned = [title for title, held in zip(titles, out, strict=True) if not held]
    held_out = list(dict.fromkeys(title for title, held in zip(titles, out, strict=True) if held))
    added = domain_words(word_counts(learned), base, limit, min_count)
    extended = extend_tokenizer(base, [each.word for each in added])
    unseen = subtoken_report(held_out, pairs, base, extended)
    added = domain_words(word_counts(titles), base, limit, min_count)
    extended = extend_tokenizer(base, [each.word for each in added])
    seen = subtoken_report(list(dict.fromkeys(titles)), pairs, base, extended)
    return {
        "words_added": len(added),
        "catalog": {name: row.plain() for name, row in seen.items()},
        "held_out": {name: row.plain() for name, row in unseen.items()},
        "top": [each.word for each in added[:20]],
    }


def speed(titles: list[str], base: Tokenizer) -> dict[str, Any]:
    """Seconds to load and to encode titles with and without 20,000 added words, the best of several rounds."""
    added = domain_words(word_counts(titles), base, 20_000, 1)
    extended = extend_tokenizer(base, [each.word for each in added])
    chosen = sorted(titles, key=lambda title: bucket(title, "speed"))[:SPEED_TITLES]
    found: dict[str, Any] = {"titles": len(chosen), "words_added": len(added)}
    pairs = {name: PairTokenizer(each, PairConfig()) for name, each in (("base", base), ("extended", extended))}
    for _ in range(ROUNDS):  # in turns, so that a busy moment hits both
        for name, each in pairs.items():
            start = time.perf_counter()
            each.encode_items(chosen)
            seconds = time.perf_counter() - start
            found[name] = round(min(found.get(name, seconds), seconds), 4)
    found["ratio"] = round(found["extended"] / found["base"], 3)
    for name, each in (("base", base), ("extended", extended)):
        text = each.to_str()
        start = time.perf_counter()
        Tokenizer.from_str(text)
        found[f"load_{name}"] = round(time.perf_counter() - start, 4)
    return found


def hidden(titles: list[str], base: Tokenizer) -> dict[str, int]:
    """Titles in which a longer added word that does not fit hides a shorter one that would.

    ``AddedToken`` tries the longest word at a place only; here every length is tried, from the longest.
    """
    added = {each.word for each in domain_words(word_counts(titles), base, 20_000, 1)}
    assert max(map(len, added)) <= LONGEST
    extended, known = extend_tokenizer(base, sorted(added)), base.get_vocab_size()
    texts = [base.normalizer.normalize_str(normalize(title)) for title in titles]
    encodings = extended.encode_batch_fast(texts, add_special_tokens=False)
    differ = 0
    for text, encoding in zip(texts, encodings, strict=True):
        found = [extended.id_to_token(number).replace(JOINT, "") for number in encoding.ids if number >= known]
        differ += found != whole_words(text, added)
    return {"titles": len(titles), "hidden": differ}


def whole_words(text: str, added: set[str]) -> list[str]:
    """The longest added words that fit, from left to right, by the rule of the docs: character by character."""
    joins = [_joins(character) for character in text]
    within = {at for at in range(1, len(text) - 1) if text[at] in ".," and _digits(text[at - 1] + text[at + 1])}
    starts = [at for at in range(len(text)) if not at or not (joins[at - 1] or at - 1 in within)]
    found, free = [], 0
    for start in starts:
        if start < free:
            continue
        for end in range(min(len(text), start + LONGEST), start, -1):
            ends = end == len(text) or text[end - 1] == "%" or not (joins[end] or end in within)
            if ends and text[start:end] in added:
                found.append(text[start:end])
                free = end
                break
    return found


def _digits(text: str) -> bool:
    return all(unicodedata.category(character) == "Nd" for character in text)


def _joins(character: str) -> bool:
    # \w of the tokenizers library: Alphabetic, marks, decimal digits, connectors; Python lacks the marks.
    return bool(character) and (
        character.isalpha()
        or character == "_"
        or unicodedata.category(character) in ("Mn", "Mc", "Me", "Nd", "Nl", "Pc")
    )


def draw(report: dict[str, Any]) -> str:
    """A page with the table and a figure of the savings on titles that were not learned from."""
    found = [
        (f"{name}, {per}", row)
        for name, catalog in report["catalogs"].items()
        for per, row in catalog["held_out"].items()
    ]
    catalogs = list(report["catalogs"])
    axis = Axis(0, 35, "% of the sub-tokens", (0, 10, 20, 30))
    nothing = float("nan")  # one catalog, no interval
    figure = intervals(
        "Sub-tokens saved by added words, titles not learned from",
        "Share of sub-tokens that is gone, for a word, a title and a pair.",
        axis,
        [(name, (100 * row["saving"], nothing, nothing), catalogs.index(name.split(",")[0])) for name, row in found],
    )
    rows = [
        [
            name,
            f"{row['texts']:,}",
            *(f"{row[key]:.2f}" for key in ("words", "base", "extended")),
            f"{row['saving']:.1%}",
        ]
        for name, row in found
    ]
    head = ["per", "texts", "words", "base WordPiece", "extended", "saved"]
    return page("Sub-tokens", [section("Sub-tokens, held out", grid([figure]), table("Averages", head, rows))])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--draw", type=Path, help="the results of an earlier run, to draw instead of measuring")
    parser.add_argument("--page", type=Path, help="where the page is written")
    parser.add_argument("--limit", type=int, default=LexiconConfig.model_fields["limit"].default)
    parser.add_argument("--min-count", type=int, default=LexiconConfig.model_fields["min_count"].default)
    arguments = parser.parse_args()
    if arguments.draw is not None and arguments.page is not None:
        arguments.page.write_text(draw(json.loads(arguments.draw.read_text(encoding="utf-8"))), encoding="utf-8")
        return
    if arguments.out is None:
        parser.error("give --out, or --draw and --page")
    base = Tokenizer.from_file(str(shipped_folder() / TOKENIZER_FILE))
    catalogs = {name: read(name) for name in CATALOGS}
    catalogs["all"] = (
        [title for titles, _ in catalogs.values() for title in titles],
        [pair for _, pairs in catalogs.values() for pair in pairs],
    )
    results = {}
    for name, (titles, pairs) in catalogs.items():
        results[name] = measure(titles, pairs, base, arguments.limit, arguments.min_count)
        for part in ("catalog", "held_out"):
            for per, row in results[name][part].items():
                print(
                    f"| {name} | {part} | {per} | {row['texts']:,} | {row['words']:.2f} | {row['base']:.2f} | "
                    f"{row['extended']:.2f} | {row['saving']:.1%} |"
                )
        print(f"{name}: {results[name]['words_added']:,} words, such as {', '.join(results[name]['top'])}\n")
    settings = {"limit": arguments.limit, "min_count": arguments.min_count}
    machine = f"{platform.machine()}, {os.cpu_count()} cores"
    titles = catalogs["all"][0]
    report = {"settings": settings, "machine": machine, "catalogs": results}
    report |= {"speed": speed(titles, base), "hidden": hidden(titles, base)}
    print(report["speed"], report["hidden"])
    arguments.out.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
