"""How long `pertinent mine` takes, and how much memory and disk, as a log grows.

    python benchmarks/mining_scale.py                                     # 0.1, 1 and 10 million events
    python benchmarks/mining_scale.py --events 100000                     # a quick look
    python benchmarks/mining_scale.py --spark 100000                      # the same steps on a local Spark

For each size a log is made by ``pertinent data synthesize`` and mined by the command in a process of its
own, on DuckDB with a stated bound on its buffers. Twice a second its resident memory and the size of its
work folder, with what the engine has spilled, are looked at; the peak of memory is the one that the
system kept. ``events_per_s`` counts the events that were mined, after the checks; ``checks`` says which rows
the checks found. The script fails where a run takes more memory than ``--limit``. Steps are timed by the command.

``--spark`` mines one log of that size on DuckDB and on a local Spark, fails unless all tables have the same rows,
and adds ``spark`` to the results that are there. Memory is then that of the process and its children together.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq

from pertinent import __version__
from pertinent.artifact import write_json
from pertinent.data.synthetic import SynthesizeConfig, synthesize

STEP = re.compile(r"^\[(\d+)/\d+\] (.+): ([\d.]+) s$")


def folder_bytes(folder: Path) -> int:
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(place, name)).st_size
            except OSError:
                continue  # gone in the meantime
    return total


def watch(process: subprocess.Popen[str], work: Path, seen: dict[str, int]) -> None:
    """Peaks of the work folder and of what is spilled in it, until the process ends."""
    while process.poll() is None:
        spilled, all_bytes = folder_bytes(work / "spill"), folder_bytes(work)
        seen["spilled"] = max(seen["spilled"], spilled)
        seen["work"] = max(seen["work"], all_bytes)
        try:
            children = sum(child.memory_info().rss for child in psutil.Process(process.pid).children(recursive=True))
            seen["children"] = max(seen.get("children", 0), children)
        except psutil.Error:
            continue
        try:
            # The highest there was, kept by the system; ps.memory_info has the present one.
            status = Path(f"/proc/{process.pid}/status").read_text()
            peak = int(re.search(r"VmHWM:\s+(\d+) kB", status).group(1)) * 1024  # type: ignore[union-attr]
        except (OSError, AttributeError):
            try:
                peak = psutil.Process(process.pid).memory_info().rss
            except psutil.Error:
                continue
        seen["memory"] = max(seen["memory"], peak)
        time.sleep(0.5)


def measure(events: int, folder: Path, memory: str, threads: int, engine: str = "duckdb") -> dict[str, Any]:
    shop, out = folder / "shop", folder / f"mined-{engine}"
    started = time.perf_counter()
    if not shop.is_dir():
        synthesize(SynthesizeConfig(out=str(shop), events=events, progress=False))
    made = time.perf_counter() - started
    settings = ["--set", f"engine.type={engine}", "--set", f"engine.memory={memory}"]
    if engine == "duckdb":
        settings += ["--set", f"engine.threads={threads}"]
    else:
        settings += ["--set", f"engine.master=local[{threads}]"]
    command = ["--log", str(shop / "log.parquet"), "--items", str(shop / "items.parquet"), "--out", str(out)]
    load = os.getloadavg()[0]
    started = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "pertinent", "mine", *command, *settings, "--json", "--verbose"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": str(threads)},
    )
    seen = {"memory": 0, "spilled": 0, "work": 0}
    watcher = threading.Thread(target=watch, args=(process, out.with_name(f"{out.name}.work"), seen))
    watcher.start()
    printed, told = process.communicate()
    seconds = time.perf_counter() - started
    watcher.join()
    if process.returncode:
        sys.exit(f"error: mining {events:,} events ended with {process.returncode}:\n{told}")
    steps = [STEP.match(line) for line in told.splitlines()]
    metrics = json.loads(printed)["metrics"]
    checks = json.loads((out / "checks.json").read_text(encoding="utf-8"))["checks"]
    return {
        "log_rows": pq.read_metadata(shop / "log.parquet").num_rows,
        "events": metrics["events"],
        "checks": {entry["check"]: entry["rows"] for entry in checks if entry["rows"]},
        "load": {"before": round(load, 1), "after": round(os.getloadavg()[0], 1)},
        "log_mb": round((shop / "log.parquet").stat().st_size / 1e6, 1),
        "making_the_log_s": round(made, 1),
        "mining_s": round(seconds, 1),
        "events_per_s": round(metrics["events"] / seconds),
        "peak_memory_mb": round(seen["memory"] / 1e6),
        "peak_memory_of_children_mb": round(seen.get("children", 0) / 1e6),
        "peak_spilled_mb": round(seen["spilled"] / 1e6),
        "peak_work_mb": round(seen["work"] / 1e6),
        "artifact_mb": round(folder_bytes(out) / 1e6, 1),
        "steps_s": {step.group(2): float(step.group(3)) for step in steps if step is not None},
        "tables": metrics,
    }


def on_spark(events: int, folder: Path, threads: int) -> dict[str, Any]:
    """One log mined on both engines: what each took, and how many rows of which tables are the same."""
    found = {
        engine: measure(events, folder, memory, threads, engine)
        for engine, memory in (("duckdb", "2GB"), ("spark", "2g"))
    }
    same = {}
    for path in sorted((folder / "mined-duckdb").glob("*.parquet")):
        ours, theirs = (pq.read_table(folder / f"mined-{engine}" / path.name) for engine in found)
        order = [(name, "ascending") for name in ours.column_names]
        if not ours.sort_by(order).equals(theirs.select(ours.column_names).cast(ours.schema).sort_by(order)):
            sys.exit(f"error: {path.name} has other rows on Spark than on DuckDB")
        same[path.name] = ours.num_rows
    return {"equal_rows": same, **found}


def print_table(rows: list[dict[str, Any]]) -> None:
    names = ("events", "log_mb", "mining_s", "events_per_s", "peak_memory_mb", "peak_spilled_mb", "peak_work_mb")
    names = (*names, "artifact_mb")
    print("  ".join(f"{name:>15}" for name in names))
    for row in rows:
        print("  ".join(f"{row[name]:>15,}" for name in names))


def keep(out: Path, found: dict[str, Any]) -> None:
    """Write results beside those of the other kind of run that are there."""
    before = json.loads(out.read_text(encoding="utf-8")) if out.is_file() else {}
    write_json(out, {**before, **found})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", default="100000,1000000,10000000", help="sizes, comma-separated")
    parser.add_argument("--memory", default="2GB", help="bound on the engine's buffers")
    parser.add_argument("--limit", type=int, default=4000, help="the most MB of memory the process may take")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--folder", type=Path, help="where logs and work lie; left out: the system's temporary folder")
    parser.add_argument(
        "--spark", type=int, metavar="EVENTS", help="mine so many events on a local Spark, and nothing else"
    )
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    options = parser.parse_args()
    if options.spark is not None:
        folder = Path(tempfile.mkdtemp(prefix="mining-scale-", dir=options.folder))
        try:
            found = {
                "command": f"python benchmarks/mining_scale.py --spark {options.spark}",
                "software": {"pyspark": version("pyspark"), "duckdb": version("duckdb")},
                **on_spark(options.spark, folder, options.threads),
            }
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        keep(options.out, {"spark": found})
        print(json.dumps({engine: found[engine]["mining_s"] for engine in ("duckdb", "spark")}))
        return
    rows = []
    for events in (int(part) for part in options.events.split(",")):
        folder = Path(tempfile.mkdtemp(prefix="mining-scale-", dir=options.folder))
        try:
            rows.append(measure(events, folder, options.memory, options.threads))
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        print_table(rows[-1:])
    result = {
        "command": f"python benchmarks/mining_scale.py --events {options.events} --memory {options.memory}",
        "machine": {
            "processor": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "memory_mb": round(psutil.virtual_memory().total / 1e6),
            "system": f"{platform.system()} {platform.release()}",
            "load_at_the_end": [round(value, 1) for value in os.getloadavg()],
        },
        "software": {"pertinent": __version__, "python": platform.python_version(), "duckdb": version("duckdb")},
        "engine": {"type": "duckdb", "memory": options.memory, "threads": options.threads},
        "memory_limit_mb": options.limit,
        "runs": rows,
    }
    keep(options.out, result)
    print()
    print_table(rows)
    over = [row for row in rows if row["peak_memory_mb"] > options.limit]
    if over:
        sys.exit(f"error: {len(over)} runs took more than {options.limit} MB of memory")


if __name__ == "__main__":
    main()
