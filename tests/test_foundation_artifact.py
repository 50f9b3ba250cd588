from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pertinent import artifact as module
from pertinent.artifact import (
    MANIFEST,
    REFUSED_SUFFIXES,
    input_digests,
    open_artifact,
    read_json,
    sha256,
    write_artifact,
    write_json,
    write_text,
)
from pertinent.errors import ArtifactError

FILES = {"weights.safetensors": b"\x00\x01" * 500, "deep/er/notes.json": b'{"a": 1}', "empty.txt": b"", "é.txt": b"x"}


def make(path: Path, files: dict[str, bytes] = FILES, kind: str = "model") -> Path:
    with write_artifact(path, kind, {"epochs": 2}, {"judgments": "abc"}, {"auc": 0.7}) as folder:
        for name, content in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
    return path


def said(path: Path, **named: object) -> str:
    with pytest.raises(ArtifactError) as caught:
        open_artifact(path, **named)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_is_written_is_what_is_read(tmp_path: Path) -> None:
    opened = open_artifact(make(tmp_path / "runs" / "model"), kind="model")
    assert (opened.kind, opened.config, opened.metrics) == ("model", {"epochs": 2}, {"auc": 0.7})
    assert opened.manifest["inputs"] == {"judgments": "abc"}
    assert {name: opened.file(name).read_bytes() for name in opened.manifest["files"]} == FILES
    assert opened.json("deep/er/notes.json") == {"a": 1}
    assert opened.has("é.txt")
    assert not opened.has(MANIFEST)
    assert [p.name for p in (tmp_path / "runs").iterdir()] == ["model"]


def test_metrics_may_be_filled_while_writing(tmp_path: Path) -> None:
    metrics: dict[str, float] = {}
    with write_artifact(tmp_path / "a", "model", {}, metrics=metrics):
        metrics["auc"] = 0.9
    assert open_artifact(tmp_path / "a").metrics == {"auc": 0.9}


@given(st.dictionaries(st.sampled_from(["a", "b.json", "c/d"]), st.binary(max_size=50), max_size=3))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25, deadline=None)
def test_the_version_is_that_of_the_content(tmp_path: Path, files: dict[str, bytes]) -> None:
    first = open_artifact(make(tmp_path / "one", files)).version
    assert open_artifact(make(tmp_path / "two", dict(reversed(files.items())))).version == first
    assert open_artifact(make(tmp_path / "three", {**files, "new": b"1"})).version != first
    assert open_artifact(make(tmp_path / "four", files, kind="index")).version != first


@given(place=st.integers(0, 999), bit=st.integers(0, 7))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25, deadline=None)
def test_any_flipped_bit_is_found(tmp_path: Path, place: int, bit: int) -> None:
    path = make(tmp_path / "model")
    file = path / "weights.safetensors"
    content = bytearray(file.read_bytes())
    content[place] ^= 1 << bit
    file.write_bytes(content)
    assert "SHA-256" in said(path)
    assert str(file) in said(path)
    open_artifact(path, verify=False)


def test_a_cut_file_is_found_by_its_size(tmp_path: Path) -> None:
    path = make(tmp_path / "model")
    os.truncate(path / "weights.safetensors", 999)
    assert "has 999 bytes, the manifest says 1000" in said(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    path = make(tmp_path / "model")
    (path / "empty.txt").unlink()
    assert said(path) == f"{path / 'empty.txt'}: missing; copy the whole folder again"


def test_a_link_is_refused_even_to_the_right_content(tmp_path: Path) -> None:
    path = make(tmp_path / "model")
    outside = tmp_path / "outside"
    (path / "weights.safetensors").rename(outside)
    (path / "weights.safetensors").symlink_to(outside)
    assert "links" in said(path)


@pytest.mark.parametrize("name", ["../outside", "deep/../../outside", "/etc/hostname"])
def test_a_manifest_cannot_reach_out_of_its_folder(tmp_path: Path, name: str) -> None:
    path = make(tmp_path / "model")
    (tmp_path / "outside").write_bytes(b"")
    manifest = read_json(path / MANIFEST)
    manifest["files"][name] = {"bytes": 0, "sha256": sha256(tmp_path / "outside")}
    write_json(path / MANIFEST, manifest)
    assert f"refuses {name!r}" in said(path)


def test_a_linked_folder_inside_cannot_lead_out_either(tmp_path: Path) -> None:
    path = make(tmp_path / "model")
    (path / "deep").rename(tmp_path / "elsewhere")
    (path / "deep").symlink_to(tmp_path / "elsewhere")
    assert "links" in said(path)


@pytest.mark.parametrize("suffix", sorted(REFUSED_SUFFIXES))
def test_a_smuggled_file_that_could_run_code_is_refused(tmp_path: Path, suffix: str) -> None:
    path = make(tmp_path / "model")
    (path / f"more{suffix}").write_bytes(b"")
    assert "can run code" in said(path)


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.pop("files"),
        lambda m: m.pop("kind"),
        lambda m: m.update(files=[]),
        lambda m: m.update(files={"a": None}),
        lambda m: m.update(files={"a": {"bytes": 1}}),
        lambda m: m.update(config=3),
    ],
)
def test_a_broken_manifest_is_one_line(tmp_path: Path, change) -> None:
    path = make(tmp_path / "model")
    manifest = read_json(path / MANIFEST)
    change(manifest)
    write_json(path / MANIFEST, manifest)
    assert "the file is damaged" in said(path)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"null", b"[" * 100_000])
def test_a_manifest_that_is_not_json_is_one_line(tmp_path: Path, content: bytes) -> None:
    path = make(tmp_path / "model")
    (path / MANIFEST).write_bytes(content)
    assert str(path / MANIFEST) in said(path)


def test_another_format_version_says_what_to_do(tmp_path: Path) -> None:
    path = make(tmp_path / "model")
    write_json(path / MANIFEST, {**read_json(path / MANIFEST), "format_version": 99})
    assert "format version 99, but this software reads 1; upgrade" in said(path)


def test_the_wrong_kind_is_said(tmp_path: Path) -> None:
    path = make(tmp_path / "model")
    assert said(path, kind="index") == f"{path}: is of kind 'model', but 'index' is needed here"


def test_a_missing_folder_suggests_the_nearest(tmp_path: Path) -> None:
    make(tmp_path / "model")
    assert f"did you mean {tmp_path / 'model'}?" in said(tmp_path / "modle")
    assert said(tmp_path / "x" / "y") == f"{tmp_path / 'x' / 'y'}: no such folder"
    (tmp_path / "plain").mkdir()
    assert "is not an artifact" in said(tmp_path / "plain")
    (tmp_path / "file").write_text("x")
    assert "is not an artifact" in said(tmp_path / "file")


def test_a_failing_block_leaves_what_was_there(tmp_path: Path) -> None:
    path = make(tmp_path / "model")
    version = open_artifact(path).version
    with pytest.raises(FileExistsError), write_artifact(path, "model", {}) as folder:
        (folder / "half").touch(exist_ok=False)
        (folder / "half").touch(exist_ok=False)
    assert open_artifact(path).version == version
    assert os.listdir(tmp_path) == ["model"]


def test_a_failing_rename_puts_the_old_folder_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make(tmp_path / "model")
    version, real = open_artifact(path).version, os.rename

    def rename(source: Path, target: Path) -> None:
        if str(source).endswith(".part"):
            raise OSError("no")
        real(source, target)

    monkeypatch.setattr(module.os, "rename", rename)
    with pytest.raises(OSError, match="no"):
        make(path, {"other": b"1"})
    assert open_artifact(path).version == version
    assert os.listdir(tmp_path) == ["model"]


def test_foreign_folders_and_files_are_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    (tmp_path / "file").write_text("x")
    for name in ("mine", "file"):
        with pytest.raises(ArtifactError, match="is not an artifact; choose another"):
            make(tmp_path / name)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "x"
    (tmp_path / "empty").mkdir()
    make(tmp_path / "empty")


def test_a_place_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ArtifactError, match="cannot write here"):
        make(tmp_path / "file" / "below")


def test_refused_kinds_are_never_written(tmp_path: Path) -> None:
    with pytest.raises(AssertionError):
        make(tmp_path / "model", {"weights.pkl": b""})
    assert os.listdir(tmp_path) == []


CHILD = """
import os, sys
from pathlib import Path
from pertinent.artifact import write_artifact
import pertinent.artifact as module

place, target = sys.argv[1], Path(sys.argv[2])
die = lambda *_, **__: os.kill(os.getpid(), 9)
if place == "seal":
    module._seal = die
if place == "swap":
    module.swap = die
if place == "between":
    real = os.rename
    def rename(source, target):
        real(source, target)
        if str(target).endswith(".old"):
            die()
    module.os.rename = rename
if place == "after":
    module.shutil.rmtree = die
with write_artifact(target, "model", {}) as folder:
    (folder / "a.bytes").write_bytes(b"1" * 100_000)
    if place == "fill":
        die()
    (folder / "b.bytes").write_bytes(b"2")
"""


def killed(place: str, target: Path) -> None:
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(CHILD), place, str(target)], check=False, timeout=60)
    assert done.returncode == -signal.SIGKILL


@pytest.mark.parametrize("place", ["fill", "seal", "swap", "between", "after"])
def test_kill_at_any_point_leaves_the_old_or_the_new_whole(tmp_path: Path, place: str) -> None:
    path = make(tmp_path / "model")
    before = open_artifact(path).version
    killed(place, path)
    if place == "between":  # the one gap: the old content is beside it, whole
        (old,) = tmp_path.glob(".model.*.old")
        assert f"its last version is at {old}" in said(path)
        assert open_artifact(old).version == before
    elif place == "after":
        assert set(open_artifact(path).manifest["files"]) == {"a.bytes", "b.bytes"}
    else:
        assert open_artifact(path).version == before
    # The next writer is not hindered by what was left behind.
    assert open_artifact(make(path, {"new": b"1"})).has("new")


@pytest.mark.parametrize("place", ["fill", "seal", "swap"])
def test_kill_while_writing_a_first_version_leaves_nothing_there(tmp_path: Path, place: str) -> None:
    killed(place, tmp_path / "model")
    assert not (tmp_path / "model").exists()
    make(tmp_path / "model")


def test_text_is_replaced_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "report.json"
    write_text(path, "old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.os, "fsync", full)
    with pytest.raises(ArtifactError, match="cannot be written: No space left"):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["report.json"]


def test_text_in_a_missing_folder_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="cannot be written"):
        write_text(tmp_path / "nowhere" / "a.txt", "x")


def test_json_keeps_order_and_refuses_what_json_cannot_say(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"b": "é", "a": [1, None]})
    assert read_json(path) == {"b": "é", "a": [1, None]}
    assert list(json.loads(path.read_text())) == ["b", "a"]
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(path, {"x": float("nan")})
    with pytest.raises(ArtifactError, match="no such file"):
        read_json(tmp_path / "b.json")


def test_digests_are_of_files_only(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"")
    empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert input_digests({"a": tmp_path / "a", "folder": tmp_path, "none": tmp_path / "b"}) == {"a": empty}
