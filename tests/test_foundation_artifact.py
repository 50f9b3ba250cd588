from __future__ import annotations

import json
import os
import signal
import socket
import stat
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
    refuse_foreign,
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
    (path / "weights.safetensors").unlink()
    outside.rename(path / "weights.safetensors")
    open_artifact(path)
    (path / MANIFEST).rename(outside)
    (path / MANIFEST).symlink_to(outside)
    assert said(path) == f"{path}: refuses {MANIFEST!r}: files must lie inside the folder, and not be links"


@pytest.mark.parametrize("kind", ["pipe", "socket", "device"])
def test_pipes_sockets_and_devices_are_refused_unread(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make(tmp_path / "model")
    file = path / "weights.safetensors"
    file.unlink()
    if kind == "pipe":
        os.mkfifo(file)
    elif kind == "socket":
        monkeypatch.chdir(path)  # the name of a socket must be short
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(file.name)
    else:
        try:
            os.mknod(file, stat.S_IFCHR | 0o600, os.stat("/dev/zero").st_rdev)
        except PermissionError:
            pytest.skip("only root makes devices")
    assert said(path) == f"{file}: refused, it is not a regular file; copy the whole folder again"


def test_a_hard_link_is_believed_by_its_digest_alone(tmp_path: Path) -> None:
    # Installers that keep one copy of each file, such as uv, make them everywhere.
    path = make(tmp_path / "model")
    file = path / "weights.safetensors"
    (tmp_path / "same").hardlink_to(file)
    open_artifact(path)
    (tmp_path / "other").write_bytes(file.read_bytes()[::-1])
    file.unlink()
    file.hardlink_to(tmp_path / "other")
    assert "SHA-256" in said(path)


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
        lambda m: m.update(inputs=[]),
        lambda m: m.update(format_version=True),
        lambda m: m["files"]["empty.txt"].update(sha256=3),
        lambda m: m["files"]["empty.txt"].update(sha256="ab"),
        lambda m: m["files"]["empty.txt"].update(bytes="0"),
        lambda m: m["files"]["empty.txt"].update(bytes=False),
        lambda m: m["files"]["empty.txt"].update(bytes=10**400),
        lambda m: m["files"].update({"a\0b": m["files"]["empty.txt"]}),
        lambda m: m["files"].update({"a\nb": m["files"]["empty.txt"]}),
        lambda m: m["files"].update({"\ud800": m["files"]["empty.txt"]}),
        lambda m: m["files"].update({"": m["files"]["empty.txt"]}),
    ],
)
def test_a_broken_manifest_is_one_line(tmp_path: Path, change) -> None:
    path = make(tmp_path / "model")
    manifest = read_json(path / MANIFEST)
    change(manifest)
    (path / MANIFEST).write_text(json.dumps(manifest))
    assert "the file is damaged" in said(path)


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.update(kind="index"),
        lambda m: m.update(version="0" * 12),
        lambda m: m["files"].pop("empty.txt"),
        lambda m: m["files"]["empty.txt"].update(sha256="0" * 64),
        lambda m: m["config"].update(epochs=3),
        lambda m: m["metrics"].update(auc=0.99),
        lambda m: m["inputs"].clear(),
        lambda m: m.update(created="yesterday"),
        lambda m: m.update(record_sha256=None),
    ],
)
def test_an_edited_manifest_is_found(tmp_path: Path, change) -> None:
    path = make(tmp_path / "model")
    manifest = read_json(path / MANIFEST)
    change(manifest)
    write_json(path / MANIFEST, manifest)
    for verify in (True, False):
        assert said(path, verify=verify).startswith(f"{path / MANIFEST}: was changed after it was written")


def test_a_manifest_without_a_digest_of_its_record_is_read(tmp_path: Path) -> None:
    path = make(tmp_path / "model")
    manifest = read_json(path / MANIFEST)
    del manifest["record_sha256"]
    write_json(path / MANIFEST, manifest)
    assert open_artifact(path).metrics == {"auc": 0.7}


def test_what_json_changes_is_in_the_digest_as_it_is_read(tmp_path: Path) -> None:
    with write_artifact(tmp_path / "a", "model", {"k": (1, 2)}, metrics={2: 0.1, 10: {"é": None}}):  # type: ignore[dict-item]
        pass
    assert open_artifact(tmp_path / "a").config == {"k": [1, 2]}


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"\xff\xfe", b"null", b"[" * 100_000, b'{"a": 1%s}' % (b"0" * 5000)]
)
def test_a_manifest_that_is_not_json_is_one_line(tmp_path: Path, content: bytes) -> None:
    path = make(tmp_path / "model")
    (path / MANIFEST).write_bytes(content)
    assert str(path / MANIFEST) in said(path)


@pytest.mark.parametrize("depth", [500, 900, 950, 980, 990, 995])
def test_a_manifest_nested_deep_is_one_line(tmp_path: Path, depth: int) -> None:
    path = make(tmp_path / "model")
    text = json.dumps({**read_json(path / MANIFEST), "metrics": {"a": "X"}}).replace('"X"', "[" * depth + "]" * depth)
    (path / MANIFEST).write_text(text)
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
    assert said(tmp_path / "**") == f"{tmp_path / '**'}: no such folder"


def test_a_hugging_face_folder_is_told_what_it_can_become(tmp_path: Path) -> None:
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "config.json").write_text("{}")
    wanted = f"make it a model with: pertinent export {tmp_path / 'bert'} --no-int8 --out OUT"
    assert said(tmp_path / "bert", kind="model") == f"{tmp_path / 'bert'}: is a Hugging Face folder; {wanted}"
    assert "has no manifest.json" in said(tmp_path / "bert", kind="index")


def test_a_link_that_leads_in_a_circle_is_refused(tmp_path: Path) -> None:
    path = make(tmp_path / "model")
    (path / "empty.txt").unlink()
    (path / "empty.txt").symlink_to("empty.txt")
    assert "empty.txt" in said(path)


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

    monkeypatch.setattr(module, "_exchange", lambda *_: False)  # as where the system cannot
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


def test_an_artifact_of_another_kind_is_never_replaced(tmp_path: Path) -> None:
    path = make(tmp_path / "model")
    with pytest.raises(ArtifactError, match=r"is of kind 'model', but 'index' is needed here; .*choose another folder"):
        make(path, {"items": b"1"}, kind="index")
    assert open_artifact(path).kind == "model"


@pytest.mark.parametrize("content", ["{}", '{"name": "A web app", "icons": []}', "["])
def test_a_folder_with_a_manifest_of_something_else_is_never_replaced(tmp_path: Path, content: str) -> None:
    (tmp_path / "web").mkdir()
    (tmp_path / "web" / MANIFEST).write_text(content)
    (tmp_path / "web" / "app.js").write_text("x")
    with pytest.raises(ArtifactError, match="the file is damaged; it is not replaced: choose another folder"):
        make(tmp_path / "web")
    assert (tmp_path / "web" / "app.js").read_text() == "x"


@pytest.mark.parametrize("name", ["notes.txt", "deep/mine", ".git/HEAD", "link"])
def test_files_that_are_no_part_of_an_artifact_are_never_lost(tmp_path: Path, name: str) -> None:
    path = make(tmp_path / "model")
    (path / name).parent.mkdir(exist_ok=True)
    (path / name).symlink_to("nowhere") if name == "link" else (path / name).write_text("mine")
    with pytest.raises(ArtifactError, match=rf"holds '{name}', which is no part of the model there and would be lost"):
        make(path, {"new": b"1"})
    assert (path / name).is_symlink() or (path / name).read_text() == "mine"
    (path / name).unlink()
    assert open_artifact(make(path, {"new": b"1"})).has("new")


def test_a_file_that_comes_while_writing_is_not_lost_either(tmp_path: Path) -> None:
    path = make(tmp_path / "model")
    with pytest.raises(ArtifactError, match="would be lost"), write_artifact(path, "model", {}):
        (path / "late.txt").write_text("mine")
    assert (path / "late.txt").read_text() == "mine"
    assert os.listdir(tmp_path) == ["model"]


def test_a_damaged_artifact_may_be_made_again(tmp_path: Path) -> None:
    path = make(tmp_path / "model")
    (path / "weights.safetensors").write_bytes(b"cut")
    (path / "empty.txt").unlink()
    open_artifact(make(path))


def test_a_link_stays_and_the_folder_behind_it_is_written(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    target, link = make(tmp_path / "store" / "v1"), tmp_path / "model"
    link.symlink_to("store/v1")
    open_artifact(make(link, {"new": b"1"}))
    assert link.is_symlink()
    assert open_artifact(target).has("new")
    with pytest.raises(ArtifactError, match="of kind"):
        make(link, kind="index")
    # Also where the folder is not there yet.
    (tmp_path / "next").symlink_to("store/v2")
    make(tmp_path / "next")
    assert sorted(os.listdir(tmp_path / "store")) == ["v1", "v2"]
    assert sorted(os.listdir(tmp_path)) == ["model", "next", "store"]


def test_a_link_in_a_circle_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(ArtifactError, match="leads back to itself"):
        make(tmp_path / "a")
    assert sorted(os.listdir(tmp_path)) == ["a", "b"]


@pytest.mark.parametrize("name", [".", "..", "/"])
def test_a_folder_without_a_name_of_its_own_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ArtifactError, match="choose another, such as"):
        refuse_foreign(name, "model")


def test_a_place_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="cannot write here: embedded null byte"):
        make(tmp_path / "a\0b")
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
if place in ("between", "after two renames"):
    module._exchange = lambda *_: False  # as where the system cannot
if place == "between":
    real = os.rename
    def rename(source, target):
        real(source, target)
        if str(target).endswith(".old"):
            die()
    module.os.rename = rename
if place.startswith("after"):
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


def test_what_is_not_dated_has_no_time_and_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "other"):
        with write_artifact(tmp_path / name, "mined", {"days": 2}, dated=False) as folder:
            (folder / "daily.parquet").write_bytes(b"PAR1")
    manifest = (tmp_path / "one" / MANIFEST).read_bytes()
    assert (tmp_path / "other" / MANIFEST).read_bytes() == manifest
    assert "created" not in json.loads(manifest)
    assert open_artifact(tmp_path / "one", "mined").config == {"days": 2}


@pytest.mark.parametrize("place", ["fill", "seal", "swap", "between", "after", "after two renames"])
def test_kill_at_any_point_leaves_the_old_or_the_new_whole(tmp_path: Path, place: str) -> None:
    path = make(tmp_path / "model")
    before = open_artifact(path).version
    killed(place, path)
    if place == "between":  # the one gap: the old content is beside it, whole
        (old,) = tmp_path.glob(".model.*.old")
        assert f"its last version is at {old}" in said(path)
        assert open_artifact(old).version == before
    elif place.startswith("after"):
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


def test_halves_of_characters_are_written_as_question_marks(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "a\ud800b")
    assert (tmp_path / "a.txt").read_text() == "a?b"


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
