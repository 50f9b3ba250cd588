"""A server process for the benchmarks of serving: the command itself, or one with a scorer of set speed."""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np


class SetSpeed:
    """A backend that takes a set time a token, asleep: overload does not depend on the machine then."""

    name = "set-speed"

    def __init__(self, seconds: float, workers: int) -> None:
        self.seconds, self.workers = seconds, workers

    def forward(self, batch: Any) -> Any:
        time.sleep(self.seconds * batch.token_ids.size)
        return np.sin((batch.token_ids * batch.mask * (1 + batch.position_ids)).sum(axis=1)).astype(np.float32)


class Server:
    """A running server; ``lines`` is what it logs, as far as that is read: not while ``reading`` is cleared."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process, self.lines = process, list[str]()
        self.reading = threading.Event()
        self.reading.set()
        threading.Thread(target=self._read, daemon=True).start()
        deadline = time.monotonic() + 120
        while not any('"event":"ready"' in line for line in self.lines):
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit("the server did not start:\n" + "\n".join(self.lines))
            time.sleep(0.05)
        self.url = self.lines[0].rsplit(" ", 1)[1]

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line.rstrip("\n"))
            self.reading.wait()


@contextmanager
def serving(*arguments: str, script: Sequence[str] = ("-m", "pertinent", "serve")) -> Iterator[Server]:
    """``pertinent serve`` on a free port, ended afterwards."""
    command = [sys.executable, *script, "--port", "0", "--no-access-log", "--drain-delay", "0", *arguments]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    try:
        yield Server(process)
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def set_speed(seconds: float, threads: int, *settings: str) -> Any:
    """A server whose scorer takes ``seconds`` a token on each of ``threads``."""
    own = [__file__, f"--seconds={seconds}", f"--threads={threads}"]
    return serving(*settings, script=own)


def machine() -> dict[str, Any]:
    """What figures were taken on, and how busy it was beside them."""
    model = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        platform.processor(),
    )
    return {"processor": model, "cores": len(os.sched_getaffinity(0)), "load_average": round(os.getloadavg()[0], 2)}


def write(script: str, values: dict[str, Any]) -> Path:
    """Write a result beside its script."""
    path = Path(script).with_suffix(".json")
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    return path


def main() -> None:
    """Serve with a scorer of set speed."""
    from pertinent.engine.scorer import Scorer
    from pertinent.serving import run
    from pertinent.serving.config import ServeConfig
    from pertinent.serving.registry import Registry, Served

    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--port", type=int)
    parser.add_argument("--no-access-log", action="store_true")
    parser.add_argument("--drain-delay", type=float)
    given = parser.parse_args()
    pairs = Scorer.load(threads=1).pairs
    scorer = Scorer(SetSpeed(given.seconds, given.threads), pairs, name="set-speed", version="0")
    from pertinent.config import override

    values: dict[str, Any] = {"port": given.port, "access_log": False, "drain_delay": 0.0, "watch_seconds": 0.0}
    values = override(values, given.set)
    Registry.open = classmethod(lambda cls, *_: Registry([Served("set-speed", scorer)]))  # type: ignore[assignment]
    run.serve(ServeConfig.build(values))


if __name__ == "__main__":
    main()
