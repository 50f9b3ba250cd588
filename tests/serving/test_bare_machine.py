"""The server where nothing can be written: a read-only root, no room for temporary files, a user without a name."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx2
import numpy as np
import psutil
import pytest

import pertinent
from pertinent.artifact import Artifact
from pertinent.engine.scorer import Scorer

TITLES = ["wireless earbuds", "usb cable", "日本語 イヤホン"]
BODY = {"query": "usb für 日本", "documents": TITLES}
# Of the machine everything that is mounted becomes read-only, for the command alone. What it needs is bound to where
# any user may look. Ends with 99 where something can be written to after all.
SCRIPT = """
set -e
mount --make-rprivate /
mount -t tmpfs -o mode=755 bare /mnt
mkdir -m 755 /mnt/python /mnt/checkout /mnt/model /mnt/full
mkdir -m 000 /mnt/nothing
mount --bind "$BASE" /mnt/python
mount --bind "$CHECKOUT" /mnt/checkout
mount --bind "$MODEL" /mnt/model
n=0
for each in $LIBRARIES; do
    mkdir -m 755 /mnt/libraries$n
    mount --bind "$each" /mnt/libraries$n
    libraries=$libraries:/mnt/libraries$n
    n=$((n + 1))
done
for place in $(cut -d' ' -f2 /proc/self/mounts); do
    mount -o remount,bind,ro "$place" 2>/dev/null || true
done
mount --bind /mnt/nothing /dev/shm
mount -t tmpfs -o size=4k,mode=1777 full /mnt/full
head -c 4096 /dev/zero > /mnt/full/all
for place in / /tmp /var/tmp /mnt /root /dev/shm; do
    if touch "$place/probe" 2>/dev/null; then rm "$place/probe"; echo "$place can be written to" >&2; exit 99; fi
done
cd /
export LD_LIBRARY_PATH=/mnt/python/lib PYTHONPATH="/mnt/checkout$libraries" PYTHONDONTWRITEBYTECODE=1 PYTHONSAFEPATH=1
exec setpriv --reuid 12345 --regid 12345 --clear-groups --no-new-privs "/mnt/python/bin/$PYTHON" -m pertinent "$@"
"""


def has_mounts() -> bool:
    if not hasattr(os, "geteuid") or os.geteuid() != 0 or not all(map(shutil.which, ("unshare", "setpriv", "mount"))):
        return False
    probe = ["unshare", "-m", "sh", "-c", "mount --make-rprivate / && mount -t tmpfs probe /mnt"]
    return subprocess.run(probe, capture_output=True, check=False).returncode == 0


pytestmark = pytest.mark.skipif(not has_mounts(), reason="needs Linux, root, and mounts of its own")
Bare = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def bare(tmp_path: Path, tiny_artifact: Artifact) -> Iterator[Bare]:
    """``bare(argument, ..., TMPDIR=...)``: a command of pertinent on such a machine, its model at ``/mnt/model``."""
    model = tmp_path / "model"
    shutil.copytree(tiny_artifact.path, model)
    for each in (model, *model.rglob("*")):
        each.chmod(0o755)
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: str, **named: str) -> subprocess.Popen[str]:
        libraries = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
        environment = {
            "PATH": os.environ["PATH"],
            "BASE": sys.base_prefix,
            "PYTHON": f"python3.{sys.version_info.minor}",
            "CHECKOUT": str(Path(pertinent.__file__).parents[1]),
            "LIBRARIES": " ".join(libraries),
            "MODEL": str(model),
            **named,
        }
        command = ["unshare", "-m", "sh", "-c", SCRIPT, "sh", *arguments]
        pipe = subprocess.PIPE
        started.append(subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=environment))
        return started[-1]

    yield start
    for each in started:
        if each.poll() is None:
            for process in (*psutil.Process(each.pid).children(recursive=True), each):
                process.kill()
        each.communicate()


@pytest.mark.parametrize(
    ("temporary", "flags"),
    [("/mnt/full", ()), ("/mnt/full", ("--workers", "2")), ("/tmp", ("--workers", "2"))],
    ids=["a full folder", "a full folder, workers", "no folder, workers"],
)
def test_it_serves_where_nothing_can_be_written_as_a_user_without_a_name(
    bare: Bare, temporary: str, flags: tuple[str, ...], tiny_artifact: Artifact
) -> None:
    expected = Scorer.load(tiny_artifact.path).score(BODY["query"], TITLES)
    with socket.create_server(("127.0.0.1", 0)) as found:
        port = found.getsockname()[1]
    arguments = ("/mnt/model", "--port", str(port), "--drain-delay", "0", *flags)
    process = bare("serve", *arguments, TMPDIR=temporary)
    url = f"http://127.0.0.1:{port}"
    deadline = time.monotonic() + 90

    def answers() -> bool:
        if process.poll() == 99:
            pytest.skip(f"{process.communicate()[1].strip()}: mounts cannot be made read-only here")
        assert process.poll() is None, process.communicate()
        try:
            return httpx2.get(f"{url}/readyz", trust_env=False, timeout=60).status_code == 200
        except httpx2.HTTPError:
            return False

    while not answers():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    owner = psutil.Process(process.pid)
    assert owner.uids().real == 12_345
    for _ in range(5):
        reply = httpx2.post(f"{url}/v2/rerank", json=BODY, trust_env=False, timeout=20)
        scores = {item["index"]: item["relevance_score"] for item in reply.json()["results"]}
        assert np.allclose([scores[place] for place in range(len(TITLES))], expected, atol=1e-5)
    assert "pertinent_worker_restarts_total 0.0" in httpx2.get(f"{url}/metrics", trust_env=False).text
    process.terminate()
    said = process.communicate(timeout=30)[1]
    assert process.returncode == 0, said
    assert "Traceback" not in said


def test_what_is_wrong_with_a_machine_is_told_where_nothing_can_be_written(bare: Bare) -> None:
    process = bare("doctor", TMPDIR="/mnt/full")
    out, said = process.communicate(timeout=120)
    if process.returncode == 99:
        pytest.skip(f"{said.strip()}: mounts cannot be made read-only here")
    assert process.returncode == 0 and "Traceback" not in said + out, said
    assert "temporary folder" in out and "TMPDIR" in out
