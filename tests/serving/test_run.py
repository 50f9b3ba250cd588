"""The command itself, in a process of its own: starting, leaving, new models, several workers."""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from pertinent.artifact import Artifact, made_at, open_artifact, write_artifact
from pertinent.cli import COMMANDS, main, variable
from pertinent.engine import scorer as scorer_module
from pertinent.engine.index import IndexConfig, ItemIndex
from pertinent.engine.scorer import Scorer
from pertinent.errors import ArtifactError, ConfigError
from pertinent.lexicon.pairs import PairTokenizer
from pertinent.records import Item
from pertinent.serving.access import key_digest
from pertinent.serving.config import ServeConfig
from pertinent.serving.registry import Registry, Source
from pertinent.serving.run import check, sources

TITLES = ["wireless earbuds", "usb cable", "tea pot"]
BODY = {"query": "usb", "documents": TITLES}


@pytest.fixture(scope="module")
def folders(
    tmp_path_factory: pytest.TempPathFactory, artifact_maker: Any, network_maker: Any, tiny_pairs: PairTokenizer
) -> list[Path]:
    """Two models of different weights. Shared: copy one before writing into it."""
    made = []
    for seed in (1, 2):
        folder = tmp_path_factory.mktemp("models") / f"model-{seed}"
        artifact_maker(folder, network_maker("ei_src", tiny_pairs.vocabulary_size, seed=seed), tiny_pairs)
        made.append(folder)
    return made


def replace(folder: Path, by: Path) -> None:
    """Swap a folder for a copy of another, as a stage that writes it does."""
    aside = folder.with_name(f".{folder.name}.new")
    shutil.copytree(by, aside)
    old = folder.with_name(f".{folder.name}.old")
    os.rename(folder, old)
    os.rename(aside, folder)
    shutil.rmtree(old)


def ask(url: str, **named: Any) -> httpx2.Response:
    return httpx2.post(f"{url}/v2/rerank", json=BODY, timeout=20, trust_env=False, **named)


def scores(reply: httpx2.Response) -> list[float]:
    found = {item["index"]: item["relevance_score"] for item in reply.json()["results"]}
    return [found[place] for place in range(len(TITLES))]


def test_sigterm_under_load_cuts_no_answer_and_ends_with_0(run: Any, tiny_artifact: Artifact) -> None:
    server = run(str(tiny_artifact.path), "--drain-delay", "3", "--no-access-log")
    server.wait_for("ready")
    stop, codes, cut = threading.Event(), [], []

    def load() -> None:
        while not stop.is_set():
            try:
                codes.append(ask(server.url).status_code)
            except httpx2.ConnectError:
                return  # it no longer listens
            except httpx2.HTTPError as error:
                cut.append(repr(error))

    threads = [threading.Thread(target=load) for _ in range(4)]
    for thread in threads:
        thread.start()
    while len(codes) < 20:
        time.sleep(0.01)
    server.process.terminate()
    server.wait_for("draining")
    before = len(codes)
    assert httpx2.get(f"{server.url}/readyz", trust_env=False).status_code == 503
    assert server.process.wait(20) == 0
    stop.set()
    for thread in threads:
        thread.join()
    assert set(codes) == {200} and len(codes) > before
    # What the kernel had accepted and nobody had taken up when it stopped to listen is reset.
    assert [error for error in cut if "ConnectError" not in error and "reset" not in error.lower()] == []


def test_a_connection_that_has_not_asked_yet_is_answered_when_the_server_leaves(
    run: Any, tiny_artifact: Artifact
) -> None:
    server = run(str(tiny_artifact.path), "--drain-delay", "0", "--no-access-log")
    server.wait_for("ready")
    host, port = server.url.removeprefix("http://").split(":")
    body = json.dumps(BODY).encode()
    request = b"POST /v2/rerank HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
    with (
        socket.create_connection((host, int(port)), 20) as early,
        socket.create_connection((host, int(port)), 20) as mute,
    ):
        early.sendall(b"POST /v2/rerank HT")  # both are taken up: a begun request, and one that says nothing
        assert ask(server.url).status_code == 200
        server.process.terminate()
        server.wait_for("draining")
        time.sleep(0.4)  # it has told all connections to end by now
        early.sendall((request % len(body))[len(b"POST /v2/rerank HT") :] + body)
        reply = b"".join(iter(lambda: early.recv(65_536), b""))
        assert reply.startswith(b"HTTP/1.1 200") and b"connection: close" in reply.lower()
        assert mute.recv(1) == b""
    assert server.process.wait(20) == 0


def test_a_second_sigterm_ends_it_at_once(run: Any, tiny_artifact: Artifact) -> None:
    server = run(str(tiny_artifact.path), "--drain-delay", "60")
    server.wait_for("ready")
    server.process.terminate()
    server.wait_for("draining")
    before = time.monotonic()
    server.process.terminate()
    server.process.wait(10)
    assert time.monotonic() - before < 5


@pytest.mark.parametrize("impatient", [True, False], ids=["a second signal", "the end of its time"])
def test_what_is_under_way_when_it_waits_no_longer_gets_a_503_and_when_to_come_again(
    run: Any, tiny_artifact: Artifact, impatient: bool
) -> None:
    times = ("--drain-delay", "60") if impatient else ("--drain-delay", "0", "--set", "drain_timeout=0.3")
    patient = ("limits.body_seconds=60", "queue.max_wait_ms=600000", "queue.deadline_ms=600000")
    sets = [word for setting in patient for word in ("--set", setting)]
    server = run(str(tiny_artifact.path), *times, *sets, "--threads", "1")
    server.wait_for("ready")
    host, port = server.url.removeprefix("http://").split(":")
    whole = json.dumps({"query": "usb", "documents": ["wireless noise cancelling earbuds " * 9] * 10_000}).encode()
    with contextlib.ExitStack() as open_ones:
        asking = [open_ones.enter_context(socket.create_connection((host, int(port)), 30)) for _ in range(4)]
        for place, connection in enumerate(asking):
            head = "POST /v2/rerank HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
            connection.sendall(f"{head}content-length: {len(whole)}\r\n\r\n".encode())
            # The first two have not sent all of their bodies; the others wait for a thread, or are scored.
            connection.sendall(whole[: len(whole) // 2] if place < 2 else whole)
        ask(server.url)
        server.process.terminate()
        server.wait_for("draining")
        if impatient:
            server.process.terminate()
        replies = [b"".join(iter(lambda each=each: each.recv(65_536), b"")) for each in asking]
    assert server.process.wait(30) == 0 or impatient
    heads = [reply.partition(b"\r\n\r\n")[0].lower() for reply in replies]
    assert all(head.startswith(b"http/1.1 503") and b"retry-after: 1\r\n" in head for head in heads[:2]), heads
    # These may have been done just in time.
    assert all(head.startswith((b"http/1.1 503", b"http/1.1 200")) for head in heads[2:]), heads
    assert all(b"shutting_down" in reply and b"connection: close" in reply for reply in replies[:2])
    assert not any('"status":500' in line for line in server.lines)


def test_sigterm_while_starting_ends_it(run: Any, tiny_artifact: Artifact) -> None:
    server = run(str(tiny_artifact.path))
    time.sleep(0.3)
    server.process.terminate()
    server.process.wait(10)


def test_sighup_takes_a_new_model_and_keeps_the_old_where_the_new_is_bad(
    run: Any, folders: list[Path], tmp_path: Path
) -> None:
    served = tmp_path / "served"
    shutil.copytree(folders[0], served)
    first, second = (Scorer.load(folder).score("usb", TITLES).tolist() for folder in folders)
    server = run(str(served), "--watch-seconds", "0")
    server.wait_for("ready")
    assert np.allclose(scores(ask(server.url)), first, atol=1e-5)
    weights = served / "model.safetensors"
    replace(served, folders[1])
    server.process.send_signal(signal.SIGHUP)
    assert server.wait_for("reload")[0]["ok"] is True
    assert np.allclose(scores(ask(server.url)), second, atol=1e-5)
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(bytes(content))
    server.process.send_signal(signal.SIGHUP)
    said = server.wait_for("reload", 2)[1]
    assert said["ok"] is False and "model.safetensors" in said["outcome"]
    assert np.allclose(scores(ask(server.url)), second, atol=1e-5)
    shown = httpx2.get(f"{server.url}/v1/config", trust_env=False).json()
    assert list(shown["failed_reloads"]) == ["served"]
    assert server.end() == 0


def test_every_flag_is_an_environment_variable(run: Any, tiny_artifact: Artifact) -> None:
    key = "k" * 20
    server = run(
        PERTINENT_MODEL=str(tiny_artifact.path),
        PERTINENT_NAME="from-outside",
        PERTINENT_KEYS=f"shop={key_digest(key)}",
        PERTINENT_ACCESS_LOG="off",
        PERTINENT_DRAIN_DELAY="0",
    )
    server.wait_for("ready")
    assert ask(server.url).status_code == 401
    reply = httpx2.get(f"{server.url}/v1/config", headers={"x-api-key": key}, trust_env=False).json()
    assert list(reply["models"]) == ["from-outside"] and reply["settings"]["drain_delay"] == 0
    assert server.events("request") == []
    assert server.end() == 0
    names = [variable(flag) for flag in COMMANDS["serve"].flags]
    assert len(set(names)) == len(names)


def workers(server: Any) -> list[int] | None:
    """The process ids of the workers; None where the system does not tell."""
    children = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children")
    if not children.exists():
        return None
    numbers = map(int, children.read_text().split())
    return [each for each in numbers if b"spawn_main" in Path(f"/proc/{each}/cmdline").read_bytes()]


@pytest.mark.slow
def test_workers_share_a_port_and_a_killed_one_comes_back(run: Any, tiny_artifact: Artifact) -> None:
    server = run(str(tiny_artifact.path), "--workers", "2", "--drain-delay", "0")
    server.wait_for("ready", 2)
    assert ask(server.url).status_code == 200
    if (found := workers(server)) is not None:
        assert len(found) == 2
        os.kill(found[0], signal.SIGKILL)
        server.wait_for("ready", 3)
    for _ in range(5):
        assert ask(server.url).status_code == 200
    assert server.end(30) == 0


@pytest.mark.slow
def test_workers_that_keep_dying_are_started_again_later_and_later_while_the_others_answer(
    run: Any, tiny_artifact: Artifact
) -> None:
    server = run(str(tiny_artifact.path), "--workers", "2", "--drain-delay", "0")
    server.wait_for("ready", 2)
    if workers(server) is None:
        pytest.skip("the system does not tell which processes are the workers")
    for deaths in range(1, 5):
        os.kill(workers(server)[-1], signal.SIGKILL)
        assert ask(server.url).status_code == 200
        server.wait_for("ready", 2 + deaths)
    restarts = httpx2.get(f"{server.url}/metrics").text
    assert f"pertinent_worker_restarts_total {deaths}.0" in restarts
    assert sum("workers keep dying; the next start waits 2 s" in line for line in server.lines) == 1
    assert server.end(30) == 0


@pytest.mark.parametrize("flags", [(), ("--workers", "2")], ids=["one process", "workers"])
def test_a_log_that_nobody_reads_does_not_hold_up_leaving(flags: tuple[str, ...], tiny_artifact: Artifact) -> None:
    resize = getattr(fcntl, "F_SETPIPE_SZ", None)
    if resize is None:
        pytest.skip("the system cannot make a pipe small")
    command = [sys.executable, "-m", "pertinent", "serve", str(tiny_artifact.path), "--port", "0", "--access-log"]
    with subprocess.Popen([*command, "--drain-delay", "0", *flags], stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        fcntl.fcntl(process.stderr, resize, 4_096)
        said = b""
        while said.count(b'"event":"ready"') < (2 if flags else 1):
            said += os.read(process.stderr.fileno(), 4_096)
        url = said.splitlines()[0].rsplit(b" ", 1)[1].decode()
        for _ in range(60):
            assert ask(url).status_code == 200
        process.terminate()
        try:
            assert process.wait(15) == 0
        finally:
            process.kill()


@pytest.mark.slow
def test_a_worker_that_hangs_is_ended_when_all_are_replaced(run: Any, tiny_artifact: Artifact) -> None:
    server = run(str(tiny_artifact.path), "--workers", "2", "--drain-delay", "0", "--set", "drain_timeout=0.5")
    server.wait_for("ready", 2)
    if (old := workers(server)) is None:
        pytest.skip("the system does not tell which processes are the workers")
    server.process.send_signal(signal.SIGHUP)
    deadline = time.monotonic() + 60
    while len(workers(server)) == 2:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(old[0], signal.SIGSTOP)  # no signal reaches it, nor the end of its time to drain
    deadline = time.monotonic() + 60
    while set(workers(server)) & set(old):
        assert time.monotonic() < deadline
        assert ask(server.url).status_code == 200
    server.wait_for("ready", 4)
    assert sum("does not leave and is ended" in line for line in server.lines) == 1
    assert len(workers(server)) == 2 and ask(server.url).status_code == 200
    assert server.end(30) == 0


@pytest.mark.slow
def test_metrics_are_those_of_all_workers_whoever_is_asked(run: Any, tiny_artifact: Artifact) -> None:
    server = run(str(tiny_artifact.path), "--workers", "2", "--drain-delay", "0")
    server.wait_for("ready", 2)
    if (found := workers(server)) is None:
        pytest.skip("the system does not tell which processes are the workers")
    for _ in range(40):
        assert ask(server.url).status_code == 200

    def told(metric: str) -> dict[str, float]:
        """A metric by worker."""
        reply = httpx2.get(f"{server.url}/metrics", timeout=20, trust_env=False)
        assert reply.status_code == 200
        samples = [
            (sample.labels["worker"], sample.value)
            for family in text_string_to_metric_families(reply.text)
            for sample in family.samples
            if sample.name == metric and sample.labels.get("status", "200") == "200"
        ]
        return {worker: sum(value for each, value in samples if each == worker) for worker, _ in samples}

    for _ in range(10):  # whichever of them it is
        assert set(told("pertinent_up")) == set(map(str, found))
        assert sum(told("pertinent_request_documents_count").values()) == 40
    os.kill(found[0], signal.SIGSTOP)
    reply = httpx2.get(f"{server.url}/metrics", timeout=20, trust_env=False)
    assert psutil.Process(found[0]).status() == psutil.STATUS_STOPPED, "it is left out before it is ended"
    assert f'pertinent_up{{worker="{found[1]}"}} 1.0' in reply.text and f'"{found[0]}"' not in reply.text
    with contextlib.suppress(ProcessLookupError):  # it may have been replaced
        os.kill(found[0], signal.SIGCONT)
    assert reply.text.count("# TYPE pertinent_up ") == 1
    runtime = next(
        Path(line.partition("=")[2])
        for line in Path(f"/proc/{found[1]}/environ").read_text().split("\0")
        if line.startswith("PERTINENT_SERVE_RUNTIME=")
    )
    assert runtime.stat().st_mode & 0o777 == 0o700
    assert server.end(30) == 0
    assert not runtime.exists()


@pytest.mark.slow
def test_a_second_sigterm_ends_all_workers_at_once(run: Any, tiny_artifact: Artifact) -> None:
    server = run(str(tiny_artifact.path), "--workers", "2", "--drain-delay", "60")
    server.wait_for("ready", 2)
    server.process.send_signal(signal.SIGTERM)
    server.wait_for("draining", 2)
    began = time.monotonic()
    assert server.end(30) == 0 and time.monotonic() - began < 15


@pytest.mark.slow
def test_sigterm_while_workers_are_replaced_does_not_wait_for_one_that_hangs(run: Any, tiny_artifact: Artifact) -> None:
    server = run(str(tiny_artifact.path), "--workers", "2", "--drain-delay", "0", "--set", "drain_timeout=60")
    server.wait_for("ready", 2)
    if (old := workers(server)) is None:
        pytest.skip("the system does not tell which processes are the workers")
    server.process.send_signal(signal.SIGHUP)
    deadline = time.monotonic() + 60
    while len(workers(server)) == 2:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(old[0], signal.SIGSTOP)
    server.wait_for("ready", 3)  # the new one is there, the old one does not leave
    time.sleep(1)
    server.process.send_signal(signal.SIGTERM)
    deadline = time.monotonic() + 20
    while set(workers(server) or []) - {old[0]}:  # the others are told at once
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(old[0], signal.SIGCONT)
    assert server.end(30) == 0


@pytest.mark.slow
def test_a_worker_that_cannot_open_what_stands_there_says_so_in_a_line(
    run: Any, folders: list[Path], tmp_path: Path
) -> None:
    served, bad = tmp_path / "served", tmp_path / "bad"
    shutil.copytree(folders[0], served)
    shutil.copytree(folders[1], bad)
    (bad / "model.safetensors").write_bytes((bad / "model.safetensors").read_bytes()[:-1])
    server = run(str(served), "--workers", "2", "--drain-delay", "0", "--watch-seconds", "0.2")
    server.wait_for("ready", 2)
    if workers(server) is None:
        pytest.skip("the system does not tell which processes are the workers")
    replace(served, bad)
    server.wait_for("reload", 2)
    os.kill(workers(server)[0], signal.SIGKILL)
    deadline = time.monotonic() + 60
    while not any("this worker cannot start" in line for line in server.lines):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert ask(server.url).status_code == 200
    replace(served, folders[0])
    server.wait_for("ready", 3)
    assert "model.safetensors" in next(line for line in server.lines if "this worker cannot start" in line)
    assert not any("Traceback" in line for line in server.lines)
    assert server.end(30) == 0


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--host", "0.0.0.0"], "--insecure"),
        (["--keys", "shop=plain-text-key"], "SHA-256"),
        (["--tls-key", "key.pem"], "both"),
        (["--tls-key", "key.pem", "--tls-certificate", "cert.pem"], "no such file"),
        (["--port", "70000"], "port"),
        (["--threads", "1000", "--workers", "2"], "cores"),
        (["--set", "indexes.other=x"], "no such model"),
        (["--set", "limits.document=3"], "documents"),
        (["no-such-folder"], "no such folder"),
        (["--host", "192.0.2.1", "--insecure"], "cannot listen"),
    ],
)
def test_what_stands_in_the_way_is_one_line_and_exit_code_2(
    arguments: list[str], word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", "--port", "0", *arguments]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and word in said and "plain-text-key" not in said


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"host": "0.0.0.0"}, "--insecure"),
        ({"host": "::"}, "--insecure"),
        ({"admin_port": 0, "admin_host": "0.0.0.0"}, "--insecure"),
        ({"threads": 500, "workers": 2}, "cores"),
    ],
)
def test_what_would_open_the_server_or_crowd_its_cores_is_refused_before_anything_is_opened(
    settings: dict[str, Any], word: str
) -> None:
    with pytest.raises(ConfigError, match=word):
        check(ServeConfig(**settings))


def test_a_file_without_keys_is_refused_before_anything_is_opened(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("# none yet\n")
    with pytest.raises(ConfigError, match="has no keys"):
        check(ServeConfig(host="0.0.0.0", keys_file=str(tmp_path / "keys")))


def test_a_port_in_use_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["serve", "--port", str(port)]) == 2
    assert f"port {port}" in capsys.readouterr().err


def test_a_wrong_environment_variable_is_told_by_name(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in (("PERTINENT_PORT", "many"), ("PERTINENT_INSECURE", "perhaps")):
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            assert main(["serve"]) == 2
        assert name in capsys.readouterr().err


def test_the_default_model_is_first_and_names_are_unique(tmp_path: Path) -> None:
    found = sources(ServeConfig(model=str(tmp_path / "a"), models={"b": "runs/b"}, indexes={"b": "runs/i"}))
    assert [(each.name, each.index) for each in found] == [("a", None), ("b", Path("runs/i"))]
    assert [each.name for each in sources(ServeConfig())] == ["pertinent"]
    assert [each.name for each in sources(ServeConfig(models={"b": "x"}))] == ["b"]
    with pytest.raises(ConfigError, match="--name"):
        sources(ServeConfig(model="runs/b", models={"b": "x"}))
    check(ServeConfig(host="::1"))


def test_an_index_of_another_model_is_not_taken(folders: list[Path], tmp_path: Path, tiny_pairs: PairTokenizer) -> None:
    index = tmp_path / "index"
    ItemIndex.build([Item("1", "tea")], tiny_pairs, index, config=IndexConfig(progress=False))
    registry = Registry.open([Source("shop", folders[0], index)])
    before = registry.get("shop")
    assert registry.changed() == []
    other = PairTokenizer(tiny_pairs.tokenizer, tiny_pairs.config.model_copy(update={"item_length": 20}))
    ItemIndex.build([Item("1", "tea")], other, index, config=IndexConfig(progress=False))
    assert registry.changed() == ["shop"]
    assert registry.reload(["shop"])["shop"].startswith("failed: ")
    assert registry.get("shop") is before and registry.changed() == [] and "shop" in registry.failures
    ItemIndex.build([Item("2", "pot")], tiny_pairs, index, config=IndexConfig(progress=False))
    assert registry.changed() == ["shop"] and registry.reload()["shop"] == registry.get(None).version
    assert registry.get("shop").index is not before.index and registry.failures == {}


def test_how_old_parts_are_is_told_by_their_manifests(
    folders: list[Path], tmp_path: Path, tiny_pairs: PairTokenizer
) -> None:
    index = tmp_path / "index"
    before = time.time()
    ItemIndex.build([Item("1", "tea")], tiny_pairs, index, config=IndexConfig(progress=False))
    os.utime(index / "manifest.json", (5.0, 5.0))  # as copies may have it
    (made,) = Source("shop", folders[0], index).open().made.items()
    assert made[0] == "index" and before - 1 <= made[1] <= time.time()
    with write_artifact(tmp_path / "undated", "other", {}, dated=False):
        pass
    os.utime(tmp_path / "undated" / "manifest.json", (5.0, 5.0))
    assert made_at(tmp_path / "undated") == 5.0


@pytest.mark.parametrize("there_and_back", [False, True])
def test_a_folder_that_is_replaced_while_it_is_read_never_gives_parts_of_two(
    folders: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there_and_back: bool
) -> None:
    served = tmp_path / "served"
    shutil.copytree(folders[0], served)
    tokenizer_of, turns = scorer_module.load_pairs, iter([True, True, False])

    def replacing(artifact: Artifact) -> PairTokenizer:
        if artifact.path == served and next(turns, False):
            replace(served, folders[1])
            if there_and_back:
                replace(served, folders[0])
        return tokenizer_of(artifact)

    monkeypatch.setattr(scorer_module, "load_pairs", replacing)
    with pytest.raises(ArtifactError, match="replaced while it was read"):
        Scorer.load(served)
    found = Registry.open([Source("shop", served)]).get(None)  # reads it again
    wanted = Scorer.load(folders[0 if there_and_back else 1])
    assert found.version == wanted.version
    assert found.scorer.score("usb", TITLES).tolist() == wanted.score("usb", TITLES).tolist()
    turns = itertools.repeat(True)
    with pytest.raises(ArtifactError, match="faster than they can be read"):
        Source("shop", served).open()


def test_whatever_goes_wrong_with_a_new_version_the_old_one_is_served_and_the_next_look_takes_it(
    folders: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = tmp_path / "served"
    shutil.copytree(folders[0], served)
    models = Registry.open([Source("shop", served)])
    old = models.get(None).version
    replace(served, folders[1])
    with monkeypatch.context() as patch:
        patch.setattr(Scorer, "load", lambda *_, **__: {}["weights"])
        assert models.reload()["shop"] == "failed: KeyError: 'weights'"
    assert models.get(None).version == old and models.failures
    assert models.reload()["shop"] == models.get(None).version != old and not models.failures


def test_swaps_under_load_fail_no_request_and_mix_no_versions(
    folders: list[Path], tmp_path: Path, start: Callable[..., Any]
) -> None:
    served = tmp_path / "served"
    shutil.copytree(folders[0], served)
    expected = {}
    for folder in folders:
        scorer = Scorer.load(folder)
        expected[scorer.version] = scorer.score("usb", TITLES)
    server = start(Scorer.load(served))
    server.app.models = Registry.open([Source("tiny", served)])
    stop, found = threading.Event(), []

    def load() -> None:
        with httpx2.Client(base_url=server.url, trust_env=False, timeout=20) as client:
            while not stop.is_set():
                found.append(client.post("/v2/rerank", json=BODY))

    threads = [threading.Thread(target=load) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        for turn in range(10):
            replace(served, folders[(turn + 1) % 2])
            assert not server.app.models.reload(["tiny"])["tiny"].startswith("failed")
            time.sleep(0.05)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    versions = {reply.headers["x-model-version"] for reply in found}
    assert versions == set(expected)
    assert {reply.status_code for reply in found} == {200}
    for reply in found:
        assert np.allclose(scores(reply), expected[reply.headers["x-model-version"]], atol=1e-5)


def test_golden_scores_that_differ_keep_a_new_model_out(folders: list[Path], tmp_path: Path) -> None:
    served = tmp_path / "served"
    shutil.copytree(folders[0], served)
    registry = Registry.open([Source("shop", served)])
    before = registry.get("shop")
    artifact = open_artifact(folders[1])
    with write_artifact(served, "model", {}) as aside:
        for name in artifact.manifest["files"]:
            (aside / name).write_bytes(artifact.file(name).read_bytes())
        (aside / "golden.json").write_text(json.dumps({"pairs": [["a", "b"]], "logits": {"float32": [9.0]}}))
    assert "golden" in registry.reload(["shop"])["shop"]
    assert registry.get("shop") is before


def test_a_changed_folder_is_noticed_without_being_told(
    folders: list[Path], tmp_path: Path, start: Callable[..., Any]
) -> None:
    served = tmp_path / "served"
    shutil.copytree(folders[0], served)
    server = start(Scorer.load(served), watch_seconds=0.1)
    server.app.models = Registry.open([Source("tiny", served)])
    before = ask(server.url).headers["x-model-version"]
    replace(served, folders[1])
    deadline = time.monotonic() + 20
    while ask(server.url).headers["x-model-version"] == before:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    # It is counted a moment after the first answer of the new model.
    while 'pertinent_reloads_total{outcome="taken"} 1.0' not in server.client.get("/metrics").text:
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes a certificate with openssl")
def test_tls_by_flags(run: Any, tiny_artifact: Artifact, tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    command += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(command, check=True, capture_output=True)
    flags = ["--tls-certificate", str(certificate), "--tls-key", str(key), "--drain-delay", "0"]
    server = run(str(tiny_artifact.path), *flags)
    server.wait_for("ready")
    assert server.url.startswith("https://")
    assert ask(server.url, verify=ssl.create_default_context(cafile=str(certificate))).status_code == 200
    assert server.end() == 0


def test_the_shipped_model_serves(run: Any) -> None:
    server = run("--drain-delay", "0")
    server.wait_for("ready")
    reply = ask(server.url)
    assert np.allclose(scores(reply), Scorer.load().score("usb", TITLES), atol=1e-5)
    assert server.end() == 0
