from __future__ import annotations

import dataclasses
import gc
import json
import struct
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from pertinent.artifact import Artifact, open_artifact
from pertinent.engine import index as index_module
from pertinent.engine import pieces
from pertinent.engine.arrays import map_arrays
from pertinent.engine.index import IndexConfig, ItemIndex
from pertinent.engine.pieces import INDEX_ARRAYS, INDEX_FILE
from pertinent.engine.scorer import Scorer
from pertinent.errors import ArtifactError, DataError
from pertinent.lexicon.pairs import PairConfig, PairTokenizer
from pertinent.records import Item, TokenRows

ITEMS = [
    Item("b1", "wireless earbuds", brand="Acme"),
    Item("ü-2", "日本語 イヤホン"),
    Item("c3", ""),
    Item("d4", "usb cable " * 80),
    Item("e5", "tea pot"),
    Item("f6", "tea pot"),
]


@pytest.fixture
def index(tiny_pairs: PairTokenizer, tmp_path: Path) -> ItemIndex:
    return ItemIndex.build(ITEMS, tiny_pairs, tmp_path / "index", config=IndexConfig(chunk=4, progress=False))


def test_rows_ids_titles_and_tokens_come_back(index: ItemIndex, tiny_pairs: PairTokenizer) -> None:
    assert len(index) == len(ITEMS)
    assert [item.item_id for item in index.items(range(6))] == [item.item_id for item in ITEMS]
    assert [item.title for item in index.items([1, 0])] == ["日本語 イヤホン", "wireless earbuds"]
    assert index.rows(["e5", "ü-2", "e5"]).tolist() == [4, 1, 4]
    fresh = tiny_pairs.encode_items([item.title for item in ITEMS])
    np.testing.assert_array_equal(index.tokens.ids, fresh.ids)
    np.testing.assert_array_equal(index.tokens.offsets, fresh.offsets)
    assert index.tokens.truncated.tolist() == [False, False, False, True, False, False]


def test_find_tells_unknown_ids_by_minus_one(index: ItemIndex) -> None:
    assert index.find(["e5", "nothing", "ü-2", ""]).tolist() == [4, -1, 1, -1]
    assert index.find([]).tolist() == []


def test_indexed_items_score_and_rank_as_texts_do(index: ItemIndex, tiny_artifact: Artifact) -> None:
    scorer = Scorer.load(tiny_artifact.path)
    titles = [item.title for item in ITEMS]
    np.testing.assert_allclose(scorer.score_index("tea", index), scorer.score("tea", titles), atol=1e-6)
    some = np.array([4, 0])
    np.testing.assert_allclose(
        scorer.score_index("tea", index, some), scorer.score("tea", ["tea pot", titles[0]]), atol=1e-6
    )
    ranked = scorer.rank("tea", index, top=None)
    assert [s.item.item_id for s in ranked] == [s.item.item_id for s in scorer.rank("tea", ITEMS, top=None)]
    assert [s.item.item_id for s in ranked if s.truncated] == ["d4"]
    assert scorer.rank("tea", index, top=0) == []
    assert scorer.score_index("tea", index, np.zeros(0, dtype=np.int64)).shape == (0,)


def test_the_file_is_plain_safetensors_and_memory_mapped(index: ItemIndex) -> None:
    stored = load_file(index.path / INDEX_FILE)
    np.testing.assert_array_equal(stored["tokens"], index.tokens.ids)
    base: Any = index.tokens.ids
    while getattr(base, "base", None) is not None and not isinstance(base, np.memmap):
        base = base.base
    assert isinstance(base, np.memmap)
    assert not index.tokens.ids.flags.writeable


def test_an_empty_catalog_is_an_index_of_nothing(
    tiny_pairs: PairTokenizer, tiny_artifact: Artifact, tmp_path: Path
) -> None:
    index = ItemIndex.build([], tiny_pairs, tmp_path / "index")
    assert len(index) == 0
    assert Scorer.load(tiny_artifact.path).rank("tea", index) == []
    assert index.rows([]).tolist() == []


def test_chosen_fields_make_up_the_text_and_progress_is_shown(
    tiny_pairs: PairTokenizer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    index = ItemIndex.build(ITEMS, tiny_pairs, tmp_path / "i", "v1", IndexConfig(fields=("title", "brand")))
    assert index.items([0])[0].title == "wireless earbuds Acme"
    out, err = capsys.readouterr()
    assert out == ""
    assert "indexing" in err
    artifact = open_artifact(tmp_path / "i", kind="index")
    assert artifact.metrics["items"] == 6
    assert "seconds_per_million" not in artifact.metrics  # six items say nothing about a million
    assert artifact.config["model_version"] == "v1"


def test_time_for_a_million_is_said_from_a_thousand_items(tiny_pairs: PairTokenizer, tmp_path: Path) -> None:
    for count in (0, 999, 1000):
        ItemIndex.build([Item(str(n), "usb cable") for n in range(count)], tiny_pairs, tmp_path / "i", "v1")
        metrics = open_artifact(tmp_path / "i", kind="index").metrics
        assert ("seconds_per_million" in metrics) == (count >= 1000)
        assert ("megabytes_per_million" in metrics) == (count > 0)


def test_a_repeated_id_is_refused_and_the_old_index_stays(index: ItemIndex, tiny_pairs: PairTokenizer) -> None:
    with pytest.raises(DataError, match="'e5' comes twice, as item 5 and item 7"):
        ItemIndex.build([*ITEMS, Item("e5", "other")], tiny_pairs, index.path)
    assert len(ItemIndex.open(index.path, tiny_pairs)) == len(ITEMS)
    assert [p.name for p in index.path.parent.iterdir()] == [index.path.name]


def test_equal_digests_of_different_ids_are_told_apart(
    tiny_pairs: PairTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(pieces.ID_DIGESTS, "words", lambda ids: np.full(len(ids), 7, dtype=np.uint64))
    index = ItemIndex.build(ITEMS, tiny_pairs, tmp_path / "index")
    assert index.rows([item.item_id for item in ITEMS]).tolist() == list(range(6))
    with pytest.raises(DataError, match="'nope' is not in the index"):
        index.rows(["nope"])


def test_ids_of_any_length_and_script_are_found_and_nothing_else(tiny_pairs: PairTokenizer, tmp_path: Path) -> None:
    ids = ["a" * length for length in range(40)] + ["é" * 9, "日本", "a\0", "\0", "x" * 10_000, "0123456789"]
    index = ItemIndex.build([Item(item_id, "tea") for item_id in ids], tiny_pairs, tmp_path / "index")
    assert index.find(ids).tolist() == list(range(len(ids)))
    assert index.find([item_id + "b" for item_id in ids]).tolist() == [-1] * len(ids)
    assert index.find(["b", "日本", "日", "", "a" * 41]).tolist() == [-1, 41, -1, 0, -1]


def test_an_index_that_finds_ids_as_they_did_before_is_read_and_an_unknown_way_refused(
    tiny_pairs: PairTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (index_module, pieces):
        monkeypatch.setattr(module, "NEW_ID_DIGESTS", "blake2b")
    old = ItemIndex.build(ITEMS, tiny_pairs, tmp_path / "index")
    assert old.find([*(item.item_id for item in ITEMS), "nope"]).tolist() == [*range(6), -1]
    monkeypatch.setitem(pieces.ID_DIGESTS, "words2", pieces.blake_digests)
    monkeypatch.setattr(index_module, "NEW_ID_DIGESTS", "words2")
    newer = ItemIndex.build(ITEMS, tiny_pairs, tmp_path / "newer")
    monkeypatch.delitem(pieces.ID_DIGESTS, "words2")
    with pytest.raises(ArtifactError, match="finds ids by 'words2'"):
        ItemIndex.open(newer.path)


def test_unknown_ids_and_rows_outside_are_refused(index: ItemIndex) -> None:
    with pytest.raises(DataError, match="item id 'zzz' is not in the index"):
        index.rows(["b1", "zzz"])
    for rows, reason in (([6], "row 6 is outside"), ([-1], "row -1 is outside"), ([0.5], "give whole numbers")):
        with pytest.raises(DataError, match=reason):
            index.items(np.array(rows))


def test_an_index_of_another_layout_or_tokenizer_is_refused(
    index: ItemIndex, tiny_tokenizer: Any, tiny_pairs: PairTokenizer, tiny_artifact: Artifact
) -> None:
    other = PairTokenizer(tiny_tokenizer, PairConfig(item_length=20))
    with pytest.raises(ArtifactError, match="another tokenizer or pair layout"):
        ItemIndex.open(index.path, other)
    with pytest.raises(ArtifactError, match="another tokenizer"):
        Scorer(Scorer.load(tiny_artifact.path).backend, other).rank("tea", index)
    again = PairTokenizer(tiny_tokenizer, tiny_pairs.config)
    ItemIndex.open(index.path, again)
    with pytest.raises(ArtifactError, match="index"):
        ItemIndex.open(tiny_artifact.path)


def test_many_tokenizers_do_not_pile_up(tiny_tokenizer: Any) -> None:
    for length in range(10, 40):
        index_module.tokenizer_digest(PairTokenizer(tiny_tokenizer, PairConfig(item_length=length)))
    assert len(index_module._digests) <= 16


def test_a_tokenizer_that_is_done_with_goes(tiny_tokenizer: Any) -> None:
    pairs = PairTokenizer(tiny_tokenizer, PairConfig())
    wanted, gone = index_module.tokenizer_digest(pairs), weakref.ref(pairs)
    assert index_module.tokenizer_digest(pairs) == wanted
    del pairs
    gc.collect()
    assert gone() is None


def test_term_classes_are_kept(tiny_pairs: PairTokenizer, tmp_path: Path) -> None:
    class Tagging(PairTokenizer):
        def encode_items(self, titles: Any) -> TokenRows:
            rows = super().encode_items(titles)
            return dataclasses.replace(rows, term_classes=(rows.ids % 7).astype(np.int8))

    index = ItemIndex.build(ITEMS, Tagging(tiny_pairs.tokenizer, tiny_pairs.config), tmp_path / "index")
    assert index.tokens.term_classes is not None
    np.testing.assert_array_equal(index.tokens.term_classes, index.tokens.ids % 7)


def test_cut_and_damaged_files_are_refused_not_crashed_on(index: ItemIndex, tmp_path: Path) -> None:
    content = (index.path / INDEX_FILE).read_bytes()
    size = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + size])
    header["tokens"]["data_offsets"][1] += 1
    changed = json.dumps(header).encode()
    bad = tmp_path / "bad.safetensors"
    for broken in (
        b"",
        content[:5],
        content[:100],
        content[:-10],
        b"<html>error</html>" * 10,
        struct.pack("<Q", len(changed)) + changed + content[8 + size :],
        struct.pack("<Q", 2) + b"{}",
    ):
        bad.write_bytes(broken)
        with pytest.raises(ArtifactError, match="not a readable index"):
            map_arrays(bad, INDEX_ARRAYS, "index", "make it again")
    (index.path / INDEX_FILE).write_bytes(content[:-10])
    with pytest.raises(ArtifactError, match="bytes, the manifest says"):
        ItemIndex.open(index.path)


def test_offsets_that_lead_outside_are_refused(index: ItemIndex) -> None:
    path = index.path / INDEX_FILE
    content = bytearray(path.read_bytes())
    size = struct.unpack("<Q", content[:8])[0]
    content[8 + size + 8 : 8 + size + 16] = struct.pack("<q", 10**9)  # the second token offset
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match="do not fit together"):
        ItemIndex.open(index.path, verify=False)
