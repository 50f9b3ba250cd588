"""A table that is cut off stops every command that reads it, with its name and row, before anything is written."""

from __future__ import annotations

from pathlib import Path

import pytest

from pertinent.artifact import open_artifact
from pertinent.cli import main
from pertinent.data.synthetic import SynthesizeConfig, synthesize

COMMANDS = {
    "score": ("score", "tea", "--items", "cut.parquet", "--model", "bm25"),
    "explain": ("explain", "tea", "--items", "cut.parquet"),
    "evaluate": ("evaluate", "bm25", "--judgments", "cut.parquet"),
    "evaluate items": ("evaluate", "bm25", "--judgments", "judgments.parquet", "--items", "cut.parquet"),
    "train": ("train", "--judgments", "cut.parquet", "--out", "out"),
    "export": ("export", "--judgments", "cut.parquet", "--out", "out"),
    "index": ("index", "--items", "cut.parquet", "--out", "out"),
    "bulk": ("bulk", "--pairs", "cut.parquet", "--out", "out.csv"),
    "data weak": ("data", "weak", "--catalogs", "cut.parquet", "--out", "out.csv"),
    "data weak judged": ("data", "weak", "--catalogs", "items.parquet", "--judged", "cut.parquet", "--out", "out.csv"),
    "data synthesize": ("data", "synthesize", "--items", "cut.parquet", "--judgments", "cut.parquet", "--out", "out"),
    "lexicon": ("lexicon", "--items", "cut.parquet", "--out", "out"),
    "lexicon log": ("lexicon", "--items", "items.parquet", "--log", "cut.parquet", "--out", "out"),
    "compare": ("compare", "cut.parquet"),
    "review make": ("review", "make", "--control", "cut.parquet", "--treatment", "cut.parquet", "--out", "out"),
    "mine log": ("mine", "--log", "cut.parquet", "--items", "items.parquet", "--out", "mined"),
    "mine update": ("mine", "--log", "cut.parquet", "--items", "items.parquet", "--out", "mined", "--update"),
    "mine items": ("mine", "--log", "log.parquet", "--items", "cut.parquet", "--out", "mined"),
    "mine judged": ("mine", "--log", "log.parquet", "--judged", "cut.parquet", "--out", "mined"),
}


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small shop, what was mined from its log, and a Parquet file that lacks its last byte."""
    folder = tmp_path_factory.mktemp("damaged") / "shop"
    synthesize(SynthesizeConfig(out=str(folder), events=2000, progress=False))
    (folder / "cut.parquet").write_bytes((folder / "log.parquet").read_bytes()[:-1])
    assert main(["mine", "--log", str(folder / "log.parquet"), "--out", str(folder / "mined"), "--json"]) == 0
    return folder


@pytest.mark.parametrize("name", COMMANDS)
def test_a_cut_off_parquet_file_is_named_with_its_row_and_nothing_changes(
    name: str, shop: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(shop)
    before = open_artifact("mined", kind="mined").version
    assert main([*COMMANDS[name], "--json"]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert "error: cut.parquet: row 1: no row can be read, as the table of contents" in told.err
    assert not list(shop.glob("out*"))
    assert open_artifact("mined", kind="mined").version == before
