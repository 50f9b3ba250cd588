"""Files that the server maps and somebody cuts or writes into: refused answers, never an end by SIGBUS."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest

from pertinent.artifact import Artifact
from pertinent.data.neighbors import NeighborLists
from pertinent.engine.arrays import map_arrays
from pertinent.engine.behavior import Behavior
from pertinent.engine.hot_pairs import CacheConfig, HotPairs
from pertinent.engine.index import IndexConfig, ItemIndex
from pertinent.engine.pieces import INDEX_ARRAYS, INDEX_FILE
from pertinent.engine.scorer import Scorer
from pertinent.lexicon.pairs import PairTokenizer
from pertinent.records import Item
from pertinent.serving.messages import WireError
from pertinent.serving.queue import QueueConfig, ScoringQueue, Work
from pertinent.serving.registry import Registry, Source

# Of more pages than one: what is behind the end of a file but on its last page may still be read.
ITEMS = [Item(f"B{number}", f"usb cable {number} m") for number in range(1_000)]
IDS = [item.item_id for item in ITEMS]


def build(pairs: PairTokenizer, folder: Path) -> Path:
    ItemIndex.build(ITEMS, pairs, folder, config=IndexConfig(progress=False))
    return folder / INDEX_FILE


@pytest.fixture
def file(tiny_pairs: PairTokenizer, tmp_path: Path) -> Path:
    """The file that an index is mapped from."""
    return build(tiny_pairs, tmp_path / "index")


@pytest.fixture
def server(run: Any, tiny_artifact: Artifact, file: Path) -> Any:
    process = run(str(tiny_artifact.path), "--index", str(file.parent), "--watch-seconds", "0.2", "--drain-delay", "0")
    process.wait_for("ready")
    return process


def ask(server: Any) -> httpx2.Response:
    body = {"query": "usb", "item_ids": IDS}
    return httpx2.post(f"{server.url}/v1/relevance", json=body, timeout=20, trust_env=False)


def relevance(reply: httpx2.Response) -> Any:
    assert reply.status_code == 200, reply.text
    found = reply.json()
    return np.array(found["relevance"])[np.argsort(found["index"])]


def ready(server: Any) -> httpx2.Response:
    return httpx2.get(f"{server.url}/readyz", trust_env=False)


def eventually(happened: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("left", [0, 5_000], ids=["to nothing", "to a part"])
def test_a_file_that_is_cut_while_it_is_served_ends_no_process_and_a_whole_one_is_taken(
    server: Any, file: Path, tiny_pairs: PairTokenizer, left: int
) -> None:
    expected = relevance(ask(server))
    os.truncate(file, left)
    for _ in range(20):
        reply = ask(server)
        assert reply.status_code == 503 and reply.json()["code"] == "model_damaged" and reply.headers["retry-after"]
        assert str(file) not in reply.text
    found = ready(server)
    assert found.status_code == 503 and "is damaged" in found.json()["reason"] and str(file) not in found.text
    assert httpx2.get(f"{server.url}/livez", trust_env=False).status_code == 200
    said = [line for line in server.lines if "what is served is damaged" in line]
    assert len(said) == 1 and str(file) in said[0]
    build(tiny_pairs, file.parent.with_name("new"))
    shutil.rmtree(file.parent)
    file.parent.with_name("new").rename(file.parent)
    eventually(lambda: ready(server).status_code == 200)
    assert np.array_equal(relevance(ask(server)), expected)
    assert server.end() == 0


def test_what_is_written_over_a_served_file_is_refused_until_it_is_whole(server: Any, file: Path) -> None:
    expected, content = relevance(ask(server)), file.read_bytes()
    with open(file, "r+b") as inside:  # of the same length: no page is missing, only wrong
        inside.seek(-100, os.SEEK_END)
        inside.write(bytes(100))
    eventually(lambda: ask(server).status_code == 503)
    assert INDEX_FILE in server.wait_for("reload")[-1]["outcome"]  # it is told a moment after it is so
    tries = len(server.events("reload"))
    time.sleep(1.0)
    assert len(server.events("reload")) == tries, "what has not changed is not read again and again"
    file.write_bytes(content)  # first cut to nothing, and then as long as it was
    eventually(lambda: ask(server).status_code == 200)
    assert np.array_equal(relevance(ask(server)), expected)
    assert server.end() == 0


def test_what_is_written_while_a_model_is_opened_is_looked_at_afterwards(tiny_artifact: Artifact, file: Path) -> None:
    source = Source("shop", tiny_artifact.path, file.parent)
    stamp, served = source.stamp(), source.open()
    os.utime(file, ns=(1, 1))  # after it was mapped and checked, before it is served
    assert source.stamp() == stamp
    registry = Registry([served], [source])
    assert registry.changed() == ["shop"]
    assert registry.reload() == {"shop": served.version}
    assert registry.changed() == []


def test_a_file_that_is_only_touched_is_looked_at_and_served_on(server: Any, file: Path) -> None:
    expected = relevance(ask(server))
    os.utime(file)
    while not server.events("reload"):
        assert np.array_equal(relevance(ask(server)), expected)
    assert server.events("reload")[0]["ok"] is True
    assert np.array_equal(relevance(ask(server)), expected)
    assert server.end() == 0


def test_a_file_that_is_cut_while_requests_wait_is_not_read_for_them(speed_scorer: Any, tiny_index: ItemIndex) -> None:
    scorer, cut = speed_scorer(workers=1), False
    queue = ScoringQueue(QueueConfig(), 1)

    def check() -> None:
        if cut:
            raise WireError(503, "cut", "model_damaged")

    stored, read = scorer.stored, []
    scorer.stored = lambda *given: read.append(cut) or stored(*given)

    async def run() -> None:
        nonlocal cut
        scorer.backend.hold.clear()
        rows = np.arange(len(tiny_index))
        works = [Work.of_items("usb", tiny_index.tokens, rows, check=check) for _ in range(2)]
        works.append(Work.computed("usb", 2_000, lambda places: np.zeros(len(places), dtype=np.float32), check))
        all_of_them = asyncio.gather(*(queue.score(work, scorer) for work in works), return_exceptions=True)
        while not scorer.backend.begun:  # a batch of the first is scored: of the others nothing has been read
            await asyncio.sleep(0.005)
        cut = True
        scorer.backend.hold.set()
        assert [type(each) for each in await all_of_them] == [WireError] * 3

    asyncio.run(run())
    queue.close()
    assert len(scorer.backend.batches) == 1 and read == [False]


@pytest.mark.parametrize("join_layer", [None, 1], ids=["plain", "late"])
def test_every_file_that_a_served_model_maps_is_looked_at(
    tmp_path: Path, tiny_pairs: PairTokenizer, network_maker: Any, artifact_maker: Any, join_layer: int | None
) -> None:
    own = {} if join_layer is None else {"join_layer": join_layer}
    network = network_maker("ei_src", tiny_pairs.vocabulary_size, **own)
    artifact_maker(tmp_path / "model", network, tiny_pairs, graph=False)
    barl = network_maker("barl_ase", tiny_pairs.vocabulary_size, slots=4)
    artifact_maker(tmp_path / "barl", barl, tiny_pairs, graph=False)
    scorer = Scorer.load(tmp_path / "model", "torch", threads=1)
    quiet = IndexConfig(progress=False)
    states = None if join_layer is None else scorer.state_writer
    index = ItemIndex.build(ITEMS, tiny_pairs, tmp_path / "index", scorer.version, quiet, states)
    HotPairs.build([("usb", "B1")], scorer, index, tmp_path / "hot", CacheConfig(progress=False))
    lists = NeighborLists(10, {"usb": ["B1"]}, {"B1": ["usb"]})
    Behavior.build(tmp_path / "barl", lists, {"B1": "usb cable 1 m"}, ({}, {}), tmp_path / "behavior")
    parts = {"hot_pairs": tmp_path / "hot", "behavior": tmp_path / "behavior", "behavior_model": tmp_path / "barl"}
    del index
    served = Source("tiny", tmp_path / "model", tmp_path / "index", "torch", 1, **parts).open()
    lines = Path("/proc/self/maps")
    if not lines.exists():
        pytest.skip("the system does not tell what is mapped")
    maps = {line.split()[-1] for line in lines.read_text().splitlines() if str(tmp_path) in line}
    assert len(maps) == (3 if join_layer is None else 4)
    assert {str(file.path) for file in served.mapped._files} == maps
    for place in maps:
        before = served.mapped.state
        os.utime(place)
        assert served.mapped.state != before and served.mapped.damaged is None


def test_what_cannot_be_looked_at_now_is_served_on_and_looked_at_again(
    tmp_path: Path, tiny_artifact: Artifact, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = Registry.open([Source("tiny", tiny_artifact.path, file.parent, "torch", 1)])
    os.utime(file)
    assert models.changed() == ["tiny"]
    with monkeypatch.context() as short:
        short.setattr(Source, "open", lambda *_, **__: (_ for _ in ()).throw(OSError(24, "Too many open files")))
        assert models.reload(models.changed())["tiny"].startswith("failed")
    assert models.get(None).mapped.damaged is None, "nothing says that it is not whole"
    assert models.changed() == ["tiny"]
    assert not models.reload(models.changed())["tiny"].startswith("failed")
    assert models.changed() == []


def test_what_is_damaged_is_tried_again_ever_more_seldom(
    tiny_artifact: Artifact, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = Registry.open([Source("tiny", tiny_artifact.path, file.parent, "torch", 1)])
    now = [0.0]
    monkeypatch.setattr("pertinent.serving.registry.time.monotonic", lambda: now[0])
    models.get(None).mapped.spoil("as a network disk that was away for a while")
    tried = []
    for second in range(400):
        now[0] = float(second)
        if models.changed():
            tried.append(second)
    assert tried == [10, 30, 70, 150, 310]
    models.reload(["tiny"])
    assert models.get(None).mapped.damaged is None and models.changed() == []


def test_a_mapped_file_is_the_one_that_was_opened_whatever_stands_there_now(file: Path) -> None:
    mapped = map_arrays(file, INDEX_ARRAYS, "index", "").file
    before = mapped.state
    file.rename(file.with_name("elsewhere"))
    file.write_bytes(b"short")
    assert not mapped.cut and mapped.state == before
    file.with_name("elsewhere").unlink()
    assert not mapped.cut and mapped.state == before
    descriptor = mapped._descriptor
    del mapped
    with pytest.raises(OSError):
        os.fstat(descriptor)


@pytest.mark.slow
def test_a_worker_that_a_cut_file_has_ended_is_told_and_the_next_one_names_the_file(
    run: Any, tiny_artifact: Artifact, file: Path, tiny_pairs: PairTokenizer
) -> None:
    flags = ["--index", str(file.parent), "--workers", "2", "--drain-delay", "0", "--watch-seconds", "0"]
    server = run(str(tiny_artifact.path), *flags)
    server.wait_for("ready", 2)
    children = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children")
    if not children.exists():
        pytest.skip("the system does not tell which processes are the workers")
    workers = [int(each) for each in children.read_text().split()]
    workers = [each for each in workers if b"spawn_main" in Path(f"/proc/{each}/cmdline").read_bytes()]
    os.truncate(file, 5_000)
    os.kill(workers[0], signal.SIGBUS)
    eventually(lambda: any("this worker cannot start" in line for line in server.lines), 60)
    assert any(
        f"worker {workers[0]} was ended by SIGBUS (most often a file that it maps was cut)" in each
        for each in server.lines
    )
    refusal = next(line for line in server.lines if "this worker cannot start" in line)
    assert str(file) in refusal and "5000 bytes" in refusal
    assert ask(server).status_code == 503
    build(tiny_pairs, file.parent)
    server.process.send_signal(signal.SIGHUP)
    server.wait_for("ready", 4)
    eventually(lambda: ask(server).status_code == 200)
    assert server.end(30) == 0
