"""An updated index equals one that was built of the same items, row for row and byte for byte."""

from __future__ import annotations

import json
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pertinent.artifact import open_artifact
from pertinent.cli import main
from pertinent.engine.arrays import Ragged
from pertinent.engine.index import IndexConfig, ItemIndex
from pertinent.engine.pieces import INDEX_ARRAYS, INDEX_FILE
from pertinent.engine.states import STATES_FILE
from pertinent.errors import ArtifactError, ConfigError, DataError
from pertinent.lexicon.pairs import PairConfig, PairTokenizer
from pertinent.records import Item, TokenRows

TITLES = ["tea pot", "usb cable", "", "日本語 イヤホン", "coffee mug " * 30, "Tea Pot"]
ids = st.sampled_from(["a", "b", "ü", "d", "e", "f", "g", "日", "i", "j"])
catalogs = st.dictionaries(ids, st.sampled_from(TITLES), max_size=10)
QUIET = IndexConfig(progress=False, chunk=3)


class Counting(PairTokenizer):
    """Counts the texts that are tokenized, and gives them term classes."""

    texts = 0

    def encode_items(self, titles: Any) -> TokenRows:
        self.texts += len(titles)
        rows = super().encode_items(titles)
        return TokenRows(rows.ids, rows.offsets, rows.truncated, (rows.ids % 5).astype(np.int8))


class States:
    """States that follow from the tokens of each item alone, one row more than tokens."""

    hidden = 3

    def __init__(self, version: str = "model-1") -> None:
        self.version = version

    def states(self, items: TokenRows) -> Ragged:
        offsets = np.concatenate([[0], np.cumsum(items.lengths + 1)]).astype(np.int64)
        rows = np.concatenate([np.zeros(0), *([*items.row(n), 7.0] for n in range(len(items)))])
        return Ragged((rows[:, None] * [1, 0.5, -1]).astype(np.float16), offsets)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("generations")


@pytest.fixture
def pairs(tiny_pairs: PairTokenizer) -> Counting:
    return Counting(tiny_pairs.tokenizer, tiny_pairs.config)


def items_of(catalog: dict[str, str]) -> list[Item]:
    return [Item(item_id, title) for item_id, title in catalog.items()]


def files(index: ItemIndex) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in index.path.glob("*.safetensors")}


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(catalogs, catalogs, st.sets(ids), st.booleans())
def test_an_update_equals_a_rebuild(
    pairs: Counting, folder: Path, before: Any, changes: Any, gone: Any, states: bool
) -> None:
    writer = States() if states else None
    gone -= set(changes)
    after = {item_id: title for item_id, title in (before | changes).items() if item_id not in gone}
    ItemIndex.build(items_of(before), pairs, folder / "i", config=QUIET, state_writer=writer)
    pairs.texts = 0
    updated = ItemIndex.update(folder / "i", pairs, items_of(changes), sorted(gone), config=QUIET, state_writer=writer)
    really = {item_id for item_id, title in changes.items() if before.get(item_id) != title}
    assert pairs.texts == len(really)
    fresh = ItemIndex.build(items_of(after), pairs, folder / "fresh", config=QUIET, state_writer=writer)
    assert files(updated) == files(fresh) and updated.version == fresh.version
    assert updated.generation == 2 and fresh.generation == 1
    told = open_artifact(folder / "i").metrics
    assert told["added"] == len(set(changes) - set(before))
    assert told["changed"] == len(really & set(before))
    assert told["deleted"] == len(gone & set(before)) and told["not_found"] == len(gone - set(before))


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(catalogs, catalogs, st.booleans())
def test_a_replaced_catalog_equals_a_rebuild(
    pairs: Counting, folder: Path, before: Any, after: Any, states: bool
) -> None:
    writer = States() if states else None
    ItemIndex.build(items_of(before), pairs, folder / "i", config=QUIET, state_writer=writer)
    pairs.texts = 0
    replaced = ItemIndex.replace(items_of(after), pairs, folder / "i", config=QUIET, state_writer=writer)
    assert pairs.texts == len([item_id for item_id, title in after.items() if before.get(item_id) != title])
    fresh = ItemIndex.build(items_of(after), pairs, folder / "fresh", config=QUIET, state_writer=writer)
    assert files(replaced) == files(fresh)
    told = open_artifact(folder / "i").metrics
    assert (told["added"], told["deleted"]) == (len(set(after) - set(before)), len(set(before) - set(after)))


def test_an_open_index_goes_on_reading_its_generation(pairs: Counting, tmp_path: Path) -> None:
    old = ItemIndex.build(items_of({"a": "tea pot", "b": "usb cable"}), pairs, tmp_path / "i", config=QUIET)
    tokens = old.tokens.ids.copy()
    new = ItemIndex.update(tmp_path / "i", pairs, [Item("a", "coffee mug")], ["b"], config=QUIET)
    assert [item.title for item in old.items([0, 1])] == ["tea pot", "usb cable"]
    np.testing.assert_array_equal(old.tokens.ids, tokens)
    assert [item.title for item in new.items([0])] == ["coffee mug"] and new.find(["b"]).tolist() == [-1]
    assert open_artifact(new.path).config["before"] == old.version
    assert [path.name for path in tmp_path.iterdir()] == ["i"]


def test_an_update_keeps_the_fields_of_the_index(pairs: Counting, tmp_path: Path) -> None:
    fields = IndexConfig(fields=("title", "brand"), progress=False)
    ItemIndex.build([Item("a", "tea", brand="Acme")], pairs, tmp_path / "i", config=fields)
    index = ItemIndex.update(tmp_path / "i", pairs, [Item("b", "mug", brand="Best")], config=QUIET)
    assert [item.title for item in index.items([0, 1])] == ["tea Acme", "mug Best"]
    with pytest.raises(ArtifactError, match="made of title, brand, not of title"):
        ItemIndex.update(tmp_path / "i", pairs, [], config=IndexConfig(fields=("title",), progress=False))


def test_an_update_that_another_one_overtook_is_told_and_changes_nothing(pairs: Counting, tmp_path: Path) -> None:
    folder = tmp_path / "i"
    ItemIndex.build(items_of({"a": "tea"}), pairs, folder, config=QUIET)

    def slow(item_id: str) -> Iterator[Item]:
        yield Item(item_id, "slow")
        ItemIndex.update(folder, pairs, [Item("quick", item_id)], config=QUIET)

    class Overtaken(Counting):
        def encode_items(self, titles: Any) -> TokenRows:
            ItemIndex.update(folder, pairs, [Item("quick", "usb")], config=QUIET)
            return super().encode_items(titles)

    later = Overtaken(pairs.tokenizer, pairs.config)
    for _ in range(2):
        ItemIndex.update(folder, pairs, [], ["quick"], config=QUIET)
        with pytest.raises(ArtifactError, match=r"was changed .* run the same again"):
            ItemIndex.update(folder, later, [Item("b", "mug")], config=QUIET)
    with pytest.raises(ArtifactError, match=r"was changed .* run the same again"):
        ItemIndex.replace(slow("c"), pairs, folder, config=QUIET)
    found = ItemIndex.open(folder)
    assert found.find(["a", "b", "c", "quick"]).tolist() == [0, -1, -1, 1]
    assert [path.name for path in tmp_path.iterdir()] == ["i"]
    assert ItemIndex.update(folder, pairs, [Item("b", "mug")], config=QUIET).find(["b"]).tolist() == [2]


def test_a_failed_update_leaves_the_index_as_it_was(
    pairs: Counting, tiny_tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = ItemIndex.build(items_of({"a": "tea", "b": "mug"}), pairs, tmp_path / "i", config=QUIET)
    before = files(index)
    with pytest.raises(DataError, match="'a' comes twice"):
        ItemIndex.update(tmp_path / "i", pairs, [Item("a", "x"), Item("a", "y")], config=QUIET)
    with pytest.raises(DataError, match="'a' is to be changed and to be deleted"):
        ItemIndex.update(tmp_path / "i", pairs, [Item("a", "x")], ["a"], config=QUIET)
    with pytest.raises(DataError, match="'z' comes twice"):
        ItemIndex.replace([Item("z", "x"), Item("z", "y")], pairs, tmp_path / "i", config=QUIET)
    other = PairTokenizer(tiny_tokenizer, PairConfig(item_length=20))
    with pytest.raises(ArtifactError, match="another tokenizer or pair layout"):
        ItemIndex.update(tmp_path / "i", other, [Item("a", "x")], config=QUIET)
    with pytest.raises(ArtifactError, match="no such folder"):
        ItemIndex.update(tmp_path / "none", pairs, [Item("a", "x")], config=QUIET)

    def stop(texts: Any) -> TokenRows:
        raise KeyboardInterrupt

    monkeypatch.setattr(pairs, "encode_items", stop)
    with pytest.raises(KeyboardInterrupt):
        ItemIndex.update(tmp_path / "i", pairs, [Item("a", "x")], config=QUIET)
    assert files(ItemIndex.open(tmp_path / "i")) == before
    assert [path.name for path in tmp_path.iterdir()] == ["i"]


def test_item_states_are_of_one_model(pairs: Counting, tmp_path: Path) -> None:
    catalog = items_of({"a": "tea pot", "b": "", "c": "usb cable"})
    index = ItemIndex.build(catalog, pairs, tmp_path / "i", config=QUIET, state_writer=States())
    states = index.check_states("model-1")
    assert states.hidden == 3 and states.rows.values.dtype == np.float16
    assert isinstance(states.rows.values.base, np.ndarray) and not states.rows.values.flags.writeable
    wanted = States().states(pairs.encode_items(["usb cable", ""]))
    got = states.take(np.array([2, 1]))
    np.testing.assert_array_equal(got.values, wanted.values)
    np.testing.assert_array_equal(got.offsets, wanted.offsets)
    with pytest.raises(ArtifactError, match=f"{STATES_FILE}: has the item states of model version 'model-1'"):
        ItemIndex.open(tmp_path / "i", pairs, states_version="model-2")
    with pytest.raises(ArtifactError, match="'model-1'"):
        ItemIndex.update(tmp_path / "i", pairs, [Item("d", "x")], config=QUIET, state_writer=States("model-2"))
    with pytest.raises(ArtifactError, match="only the model of version 'model-1' can add"):
        ItemIndex.update(tmp_path / "i", pairs, [Item("d", "x")], config=QUIET)
    plain = ItemIndex.build(catalog, pairs, tmp_path / "plain", config=QUIET)
    assert plain.states is None
    with pytest.raises(ArtifactError, match="has no item states"):
        plain.check_states("model-1")


def flipped(content: bytes, place: int) -> bytes:
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


def places(content: bytes) -> dict[str, tuple[int, int]]:
    """Where each array of a safetensors file lies."""
    size = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + size])
    return {
        name: (8 + size + entry["data_offsets"][0], 8 + size + entry["data_offsets"][1])
        for name, entry in header.items()
    }


@pytest.mark.parametrize("name", [*INDEX_ARRAYS, "state_offsets", "item_states"])
def test_one_bit_of_any_array_is_noticed(pairs: Counting, tmp_path: Path, name: str) -> None:
    catalog = items_of({"a": "tea pot", "b": "usb cable"})
    index = ItemIndex.build(catalog, pairs, tmp_path / "i", config=QUIET, state_writer=States())
    path = index.path / (INDEX_FILE if name in INDEX_ARRAYS else STATES_FILE)
    content = path.read_bytes()
    digest = open_artifact(index.path).manifest["files"][path.name]["sha256"][:12]
    start, end = places(content)[name]
    path.write_bytes(flipped(content, (start + end) // 2))
    with pytest.raises(ArtifactError, match=f"{path}: SHA-256 is [0-9a-f]{{12}}..., the manifest says {digest}"):
        ItemIndex.open(index.path)
    for cut in {start, end - 1}:
        path.write_bytes(content[:cut])
        with pytest.raises(ArtifactError, match=f"{path}: has {cut} bytes, the manifest says {len(content)}"):
            ItemIndex.open(index.path)
        with pytest.raises(ArtifactError, match=f"{path}: not a readable"):
            ItemIndex.open(index.path, verify=False)
    path.write_bytes(content)
    path.rename(path.with_name("away"))
    with pytest.raises(ArtifactError, match=f"{path}: missing"):
        ItemIndex.open(index.path)


def run(*argv: str) -> int:
    return main(["index", *argv, "--set", "progress=false"])


def test_the_command_builds_updates_deletes_and_replaces(
    tiny_artifact: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, out = str(tiny_artifact.path), str(tmp_path / "index")
    for name, text in {
        "all.csv": "item_id,title\na,tea pot\nb,usb cable\nc,mug\n",
        "changed.csv": "sku,title\nb,coffee mug\nd,tea\nc,mug\n",
        "gone.txt": "a\n\nnot there\n",
        "gone.csv": "item_id\nb\n",
        "new.json": '[{"item_id": "d", "title": "tea"}, {"item_id": "e", "title": "pot"}]',
    }.items():
        (tmp_path / name).write_text(text)

    def at(name: str) -> str:
        return str(tmp_path / name)

    assert run(model, "--items", at("all.csv"), "--out", out, "--json") == 0
    first = json.loads(capsys.readouterr().out)["metrics"]
    assert first["items"] == first["tokenized"] == 3 and first["bytes"] > 0 and first["megabytes_per_million"] > 0
    argv = (model, "--update", "--items", at("changed.csv"), "--columns", "sku=item_id", "--delete", at("gone.txt"))
    # Names of columns hold for all files of a command; a list of ids in plain text has none.
    assert run(*argv, "--out", out, "--json") == 0
    told = json.loads(capsys.readouterr().out)["metrics"]
    wanted = {"items": 3, "added": 1, "changed": 1, "deleted": 1, "not_found": 1, "tokenized": 2, "generation": 2}
    assert told.items() >= wanted.items()
    assert run(model, "--delete", at("gone.csv"), "--out", out) == 0
    assert [item.item_id for item in ItemIndex.open(out).items([0, 1])] == ["c", "d"]
    assert run(model, "--replace", "--items", at("new.json"), "--out", out) == 0
    assert "tokenized" in capsys.readouterr().out
    assert open_artifact(out).metrics["tokenized"] == 1 and ItemIndex.open(out).generation == 4
    assert run(model, "--replace", "--items", at("new.json"), "--out", at("other")) == 0  # nothing there yet
    assert ItemIndex.open(at("other")).version == ItemIndex.open(out).version
    assert run(model, "--update", "--items", at("all.csv"), "--out", at("nothing")) == 2
    assert run(model, "--update", "--replace", "--items", at("all.csv"), "--out", out) == 2
    assert run(model, "--update", "--out", out) == 2
    assert "give one of them" in capsys.readouterr().err


def test_settings_that_exclude_each_other_are_refused() -> None:
    from pertinent.commands import index

    with pytest.raises(ConfigError, match="--items is required"):
        index(IndexConfig(out="x", update=True))


def test_a_reader_never_finds_the_folder_missing(pairs: Counting, tmp_path: Path) -> None:
    ItemIndex.build(items_of({"a": "tea"}), pairs, tmp_path / "i", config=QUIET)
    missing, stop = [], threading.Event()

    def watch() -> None:
        while not stop.is_set():
            if not (tmp_path / "i" / "manifest.json").exists():
                missing.append(True)

    thread = threading.Thread(target=watch)
    thread.start()
    for number in range(20):
        ItemIndex.update(tmp_path / "i", pairs, [Item("a", f"tea {number}")], config=QUIET)
    stop.set()
    thread.join()
    assert not missing
