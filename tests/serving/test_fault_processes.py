"""Faults of the process and its surroundings: signals, disks, descriptors, clocks, keys and new versions."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import socket
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

from pertinent.artifact import Artifact, read_json
from pertinent.cli import main
from pertinent.engine.index import IndexConfig, ItemIndex
from pertinent.engine.scorer import Scorer
from pertinent.lexicon.pairs import PairTokenizer
from pertinent.records import Item
from pertinent.serving.access import key_digest
from pertinent.serving.config import ServeConfig
from pertinent.serving.queue import DeadlinePassed, ScoringQueue, Work

TITLES = ["wireless earbuds", "usb cable", "日本語 イヤホン"]
BODY = {"query": "usb für 日本", "documents": TITLES}
FIRST, SECOND = "first-key", "second-key"


def post(url: str, key: str = FIRST, **named: Any) -> httpx2.Response:
    headers = {"authorization": f"Bearer {key}"}
    return httpx2.post(f"{url}/v2/rerank", json=BODY, headers=headers, timeout=20, trust_env=False, **named)


def scores(reply: httpx2.Response) -> list[float]:
    found = {item["index"]: item["relevance_score"] for item in reply.json()["results"]}
    return [found[place] for place in range(len(found))]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


def eventually(happened: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture(scope="module")
def expected(tiny_artifact: Artifact) -> list[float]:
    return Scorer.load(tiny_artifact.path).score(BODY["query"], TITLES).tolist()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, tiny_artifact: Artifact, tiny_pairs: PairTokenizer) -> Path:
    """A folder with a model, its index and a file of keys, as an operator has them."""
    found = tmp_path_factory.mktemp("place")
    shutil.copytree(tiny_artifact.path, found / "model")
    items = [Item(f"B{number}", f"usb cable {number}") for number in range(20)]
    ItemIndex.build(items, tiny_pairs, found / "index", tiny_artifact.version, IndexConfig(progress=False))
    (found / "keys").write_text(f"# ours\nshop={key_digest(FIRST)}\n", encoding="utf-8")
    return found


@pytest.fixture(scope="module")
def server(run_shared: Callable[..., Any], place: Path) -> Any:
    flags = ["--index", str(place / "index"), "--keys-file", str(place / "keys"), "--watch-seconds", "0.2"]
    process = run_shared(str(place / "model"), *flags, "--drain-delay", "0", "--set", "limits.connections=10000")
    process.wait_for("ready")
    return process


def test_keys_are_rotated_without_a_restart_and_a_broken_file_keeps_the_old(server: Any, place: Path) -> None:
    assert post(server.url).status_code == 200 and post(server.url, SECOND).status_code == 401
    keys = place / "keys"
    keys.write_text(f"shop={key_digest(FIRST)}\nnew={key_digest(SECOND)}\n", encoding="utf-8")
    eventually(lambda: post(server.url, SECOND).status_code == 200)
    assert post(server.url).status_code == 200  # two at once, so that clients can change over
    keys.write_text("shop=not-a-digest\n", encoding="utf-8")
    eventually(lambda: any(not event["ok"] for event in server.events("keys")))
    keys.write_text("", encoding="utf-8")
    eventually(lambda: sum(not event["ok"] for event in server.events("keys")) >= 2)
    assert post(server.url).status_code == 200 and post(server.url, "none").status_code == 401
    keys.write_text(f"new={key_digest(SECOND)}\n", encoding="utf-8")
    eventually(lambda: post(server.url).status_code == 401)
    assert post(server.url, SECOND).status_code == 200
    shown = httpx2.get(f"{server.url}/v1/config", headers={"x-api-key": SECOND}, trust_env=False).json()
    assert shown["settings"]["keys"] == ["new"]
    keys.write_text(f"shop={key_digest(FIRST)}\n", encoding="utf-8")
    eventually(lambda: post(server.url).status_code == 200)
    assert not any(text in "".join(server.lines) for text in (FIRST, SECOND, key_digest(FIRST)))


def small_files() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (3_000, 3_000))


def test_a_disk_that_is_full_on_a_refresh_leaves_the_old_version_served(
    server: Any, place: Path, expected: list[float], tmp_path: Path
) -> None:
    catalog = tmp_path / "items.csv"
    rows = "".join(f"C{number},tea pot {number}\n" for number in range(2_000))
    catalog.write_text("item_id,title\n" + rows, encoding="utf-8")
    before = {file.name: file.read_bytes() for file in (place / "index").rglob("*") if file.is_file()}
    version = post(server.url).headers["x-model-version"]
    command = [sys.executable, "-m", "pertinent", "index", str(place / "model"), "--items", str(catalog)]
    command += ["--out", str(place / "index"), "--set", "progress=false"]
    done = subprocess.run(command, preexec_fn=small_files, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 2 and done.stderr.startswith("error: ") and "Traceback" not in done.stderr
    assert {file.name: file.read_bytes() for file in (place / "index").rglob("*") if file.is_file()} == before
    time.sleep(0.5)
    reply = post(server.url)
    assert reply.headers["x-model-version"] == version and np.allclose(scores(reply), expected, atol=1e-5)


def test_a_bad_new_version_is_refused_by_name_and_a_good_one_taken(
    server: Any, place: Path, tiny_pairs: PairTokenizer, tiny_artifact: Artifact
) -> None:
    index = place / "index"
    array = max((file for file in index.rglob("*") if file.suffix == ".safetensors"), key=lambda f: f.stat().st_size)
    version = post(server.url).headers["x-model-version"]
    aside = place / "aside"
    shutil.copytree(index, aside)
    damaged = aside / array.relative_to(index)
    content = bytearray(damaged.read_bytes())
    content[-1] ^= 1
    damaged.write_bytes(bytes(content))
    os.rename(index, place / "old")
    os.rename(aside, index)
    seen = len(server.events("reload"))
    eventually(lambda: len(server.events("reload")) > seen)
    said = server.events("reload")[-1]
    assert said["ok"] is False and array.name in said["outcome"]
    assert post(server.url).headers["x-model-version"] == version
    shutil.rmtree(index)
    (place / "old").rename(index)
    items = [Item(f"B{number}", f"tea pot {number}") for number in range(20)]
    ItemIndex.build(items, tiny_pairs, index, tiny_artifact.version, IndexConfig(progress=False))
    eventually(lambda: post(server.url).headers["x-model-version"] != version)
    found = httpx2.post(
        f"{server.url}/v1/relevance",
        json={"query": "tea", "item_ids": ["B1"], "explain": True},
        headers={"x-api-key": FIRST},
        trust_env=False,
    )
    assert found.json()["items"][0]["title"] == "tea pot 1"


def test_two_reloads_at_once_and_one_to_the_same_version_change_nothing(server: Any, expected: list[float]) -> None:
    version = post(server.url).headers["x-model-version"]
    seen = len(server.events("reload"))
    for _ in range(2):
        server.process.send_signal(signal.SIGHUP)
        time.sleep(0.02)
    assert np.allclose(scores(post(server.url)), expected, atol=1e-5)
    server.wait_for("reload", seen + 1)
    assert all(event["ok"] for event in server.events("reload")[seen:])
    assert post(server.url).headers["x-model-version"] == version


def test_no_free_descriptor_refuses_what_is_new_and_recovers(server: Any, expected: list[float]) -> None:
    inside = psutil.Process(server.process.pid)
    soft, hard = inside.rlimit(psutil.RLIMIT_NOFILE)
    kept = httpx2.Client(base_url=server.url, headers={"x-api-key": FIRST}, trust_env=False, timeout=20)
    assert kept.post("/v2/rerank", json=BODY).status_code == 200
    port = int(server.url.rsplit(":", 1)[1])
    held = []
    before = time.monotonic()
    inside.rlimit(psutil.RLIMIT_NOFILE, (inside.num_fds() + 5, hard))
    try:
        for _ in range(60):
            held.append(socket.create_connection(("127.0.0.1", port), timeout=5))
        time.sleep(0.3)
        assert kept.post("/v2/rerank", json=BODY).status_code == 200  # who is in stays in
        server.wait_for("refused")
        # One line a second, not one for each that waits.
        assert len(server.events("refused")) <= 2 + time.monotonic() - before
    finally:
        inside.rlimit(psutil.RLIMIT_NOFILE, (soft, hard))
        for connection in held:
            connection.close()
        kept.close()
    eventually(lambda: np.allclose(scores(post(server.url)), expected, atol=1e-5))


def test_sigterm_in_the_middle_of_a_swap_ends_with_0_and_cuts_no_answer(server: Any, place: Path) -> None:
    """The last of this process."""
    codes: list[int] = []
    stop = threading.Event()

    def load() -> None:
        while not stop.is_set():
            try:
                codes.append(post(server.url).status_code)
            except httpx2.HTTPError:
                return

    threads = [threading.Thread(target=load) for _ in range(3)]
    for thread in threads:
        thread.start()
    eventually(lambda: len(codes) > 5)
    server.process.send_signal(signal.SIGHUP)
    server.process.terminate()
    assert server.process.wait(20) == 0
    stop.set()
    for thread in threads:
        thread.join()
    assert set(codes) == {200}
    assert not any('"status":5' in line for line in server.lines)
    # Nothing but its log: no trace and no leak.
    assert [line for line in server.lines[1:] if not line.startswith("{")] == []


# What audit hooks see of the network, told on a file; and then a wrong clock on top.
GUARD = """
import os, sys
def guard(event, arguments):
    if event == "socket.connect":
        address = arguments[1]
        if isinstance(address, tuple) and not str(address[0]).startswith("127."):
            open(os.environ["GUARD_FILE"], "a").write(f"{event} {address}\\n")
            raise OSError("no network")
    if event == "socket.getaddrinfo" and arguments[0] not in (None, "127.0.0.1"):
        open(os.environ["GUARD_FILE"], "a").write(f"{event} {arguments[0]}\\n")
        raise OSError("no names")
sys.addaudithook(guard)
"""


def test_it_serves_in_bare_and_hostile_surroundings(
    tmp_path: Path, tiny_artifact: Artifact, expected: list[float]
) -> None:
    """No network, no HOME, a full log disk, the locale C, python -O, and as nobody where tests run as root."""
    (tmp_path / "sitecustomize.py").write_text(GUARD, encoding="utf-8")
    model = tmp_path / "model"
    shutil.copytree(tiny_artifact.path, model)
    for each in (tmp_path, *tmp_path.rglob("*")):
        each.chmod(0o755)
    told = tmp_path / "told"
    told.write_text("")
    told.chmod(0o666)
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(tmp_path),
        "GUARD_FILE": str(told),
        "LC_ALL": "C",
        "PYTHONUTF8": "0",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    port = free_port()
    command = [sys.executable, "-O", "-m", "pertinent", "serve", str(model), "--port", str(port), "--drain-delay", "0"]
    readable = os.access(sys.executable, os.X_OK) and all(
        parent.stat().st_mode & 0o005 == 0o005 for parent in (tmp_path, *tmp_path.parents, *Path(__file__).parents)
    )
    as_nobody: dict[str, Any] = (
        {"user": 65_534, "group": 65_534, "extra_groups": []} if (os.geteuid() == 0 and readable) else {}
    )
    with open("/dev/full", "wb") as full:
        process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=full, cwd="/", env=environment, **as_nobody
        )
    try:
        url = f"http://127.0.0.1:{port}"

        def answers() -> bool:
            assert process.poll() is None, told.read_text()
            try:
                return httpx2.get(url + "/readyz", trust_env=False).status_code == 200
            except httpx2.HTTPError:
                return False

        eventually(answers, 60)
        for _ in range(5):
            assert np.allclose(scores(post(url)), expected, atol=1e-5)
        process.terminate()
        assert process.wait(20) == 0
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
    assert told.read_text() == ""


def test_killed_without_warning_it_starts_again_on_the_same_port(
    run: Any, tiny_artifact: Artifact, expected: list[float]
) -> None:
    port = free_port()
    first = run(str(tiny_artifact.path), "--port", str(port))
    first.wait_for("ready")
    held = [socket.create_connection(("127.0.0.1", port)) for _ in range(20)]
    assert post(first.url).status_code == 200
    first.process.kill()
    first.process.wait()
    second = run(str(tiny_artifact.path), "--port", str(port), "--drain-delay", "0")
    second.wait_for("ready")
    for connection in held:
        connection.close()
    assert np.allclose(scores(post(second.url)), expected, atol=1e-5)
    assert second.end() == 0


def test_a_clock_that_jumps_moves_no_deadline(
    monkeypatch: pytest.MonkeyPatch, speed_scorer: Any, start: Callable[..., Any]
) -> None:
    server = start(speed_scorer(seconds=1e-5), queue={"deadline_ms": 20_000})
    body = {"query": "usb", "documents": [f"tea {number}" for number in range(300)]}
    true_time = time.time
    for jump in (3_600.0, -3_600.0):
        monkeypatch.setattr(time, "time", lambda jump=jump: true_time() + jump)
        assert server.post("/v2/rerank", body).status_code == 200
        late = server.post("/v1/relevance", {"query": "usb", "texts": body["documents"] * 30, "deadline_ms": 20})
        assert late.status_code in (429, 504)
        assert server.client.get("/readyz").status_code == 200
    folder = Path(sys.modules["pertinent.serving.queue"].__file__ or "").parent
    walls = [
        file.name
        for file in folder.glob("*.py")
        if "time.time(" in file.read_text() or "datetime.now" in file.read_text()
    ]
    # Only what is told to people has the time of the wall: answers' `created`, log lines.
    assert sorted(walls) == ["app.py", "telemetry.py"]


def test_golden_scores_that_differ_stop_the_start(tiny_artifact: Artifact, tmp_path: Path, capsys: Any) -> None:
    from pertinent.artifact import write_artifact

    with write_artifact(tmp_path / "model", "model", {}) as aside:
        for name in read_json(tiny_artifact.path / "manifest.json")["files"]:
            (aside / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(tiny_artifact.path / name, aside / name)
        golden = {"pairs": [["a", "b"]], "logits": {"float32": [9.0]}}
        (aside / "golden.json").write_text(json.dumps(golden))
    assert main(["serve", str(tmp_path / "model"), "--port", "0"]) == 2
    assert "golden" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--host", "192.0.2.1"], "192.0.2.1"),  # an address that is not of this machine
        (["--admin-port", "0", "--set", "admin_host=0.0.0.0"], "--insecure"),
        (["--keys-file", "/nowhere/keys"], "/nowhere/keys"),
        (["--threads", "500", "--workers", "2"], "cores"),
    ],
)
def test_what_cannot_be_started_is_one_line_and_exit_code_2(flags: list[str], words: str, capsys: Any) -> None:
    assert main(["serve", "--port", "0", *flags]) == 2
    said = capsys.readouterr().err
    assert words in said and said.startswith("error: ") and "Traceback" not in said


def test_an_empty_file_of_keys_opens_nothing(tmp_path: Path, capsys: Any) -> None:
    file = tmp_path / "keys"
    file.write_text("# none yet\n")
    assert main(["serve", "--port", "0", "--host", "0.0.0.0", "--keys-file", str(file)]) == 2
    assert "no keys" in capsys.readouterr().err


def has_ipv6() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")
def test_an_address_of_ipv6_alone_is_listened_on() -> None:
    from pertinent.serving.run import _url, bind

    with bind("::1", 0) as listening:
        assert _url(ServeConfig(host="::1"), listening).startswith("http://[::1]:")


def test_batches_of_the_longest_texts_keep_to_the_token_budget(speed_scorer: Any) -> None:
    import asyncio

    scorer = speed_scorer()
    queue = ScoringQueue(ServeConfig().queue, 2)
    longest = Work.of_texts("usb cable " * 50, ["tea pot green " * 500] * 600)
    asyncio.run(queue.score(longest, scorer))
    queue.close()
    budget = ServeConfig().queue.batch_tokens
    assert all(rows * width <= max(budget, width) for rows, width in scorer.backend.batches)


def test_a_deadline_that_passed_while_waiting_costs_no_computing(speed_scorer: Any) -> None:
    import asyncio

    scorer = speed_scorer(workers=1)
    queue = ScoringQueue(ServeConfig().queue, 1)

    async def run() -> None:
        scorer.backend.hold.clear()
        first = asyncio.create_task(queue.score(Work.of_texts("usb", ["tea"]), scorer))
        while not scorer.backend.begun:
            await asyncio.sleep(0.005)
        with pytest.raises(DeadlinePassed):
            await queue.score(Work.of_texts("usb", ["pot"] * 900), scorer, deadline=time.monotonic() + 0.05)
        scorer.backend.hold.set()
        await first
        while queue.waiting[0]:  # whatever is left would be computed now
            await asyncio.sleep(0.005)

    asyncio.run(run())
    queue.close()
    assert sum(rows for rows, _ in scorer.backend.batches) == 1
