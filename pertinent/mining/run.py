"""Mining a search log once, for everything that learns from behavior: the run, from a log to its artifact.

The steps are functions from table to table in the modules beside this one; here they meet files. What
a day of the log holds is counted by day, so that a later run with ``update`` needs the new days only.
"""

from __future__ import annotations

import glob
import itertools
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pertinent import __version__
from pertinent.artifact import Artifact, open_artifact, refuse_foreign, sha256, write_artifact, write_json, write_text
from pertinent.errors import ConfigError, PertinentError, need
from pertinent.lexicon.store import KIND as LEXICON

need("ibis", "logs")
need("pyarrow", "logs")

import pyarrow as pa  # noqa: E402
import pyarrow.parquet as pq  # noqa: E402

from pertinent.mining.derived import derive  # noqa: E402
from pertinent.mining.engines import open_engine, read_parquet  # noqa: E402
from pertinent.mining.intake import check_judged, is_memory, local_files, read_events  # noqa: E402
from pertinent.mining.neighbors import Coverage, small_log_warning  # noqa: E402
from pertinent.mining.report import report_numbers, report_page  # noqa: E402
from pertinent.mining.settings import KIND, NOT_PLANNED, NOT_RECORDED, STEPS, TABLES, MineConfig, Mined  # noqa: E402
from pertinent.mining.stages import Stages, work_folder  # noqa: E402
from pertinent.mining.updates import behind, by_day, known_days, known_pages, same_positions, update_base  # noqa: E402

__all__ = ["KIND", "TABLES", "MineConfig", "input_digests", "mine", "read_mined"]
_log = logging.getLogger(__name__)


def mine(config: MineConfig) -> Artifact:
    """The artifact of kind ``mined`` made from a log; with ``update`` its days are added to those it has.

    What stands at ``out`` stays as it is until everything is made, and is then replaced in one step.
    A run that was killed goes on after its last complete step when it is started again.
    Raises DataError that names file and row of broken input, ArtifactError where ``out`` is something else.
    """
    out = Path(config.out)
    refuse_foreign(out, KIND)
    base = update_base(config, out) if config.update else None
    inputs = input_digests(config)
    check_judged(config)
    plan = {
        "pertinent": __version__,
        "config": config.model_dump(mode="json", exclude=NOT_PLANNED),
        "inputs": inputs,
        "base": base.version if base is not None else None,
    }
    with _memory_named(config), work_folder(behind(out), plan) as work:
        with open_engine(config.engine, work) as connection, Stages(connection, work, STEPS, config.progress) as stages:
            known = known_days(base)
            log = read_events(stages, config, known, known_pages(base))
            log["notes"] = same_positions(config, base, log["notes"])
            run, changed = by_day(stages, config, base, known, log)
            derive(run)
            with stages.step("report"):
                numbers = stages.json("numbers", lambda: _numbers(run, log, changed))
        recorded = {name: value for name, value in config.plain().items() if name not in NOT_RECORDED}
        with write_artifact(out, KIND, recorded, inputs, numbers["summary"], dated=False) as folder:
            for name in TABLES:
                _link(work / f"{name}.parquet", folder / f"{name}.parquet")
            write_json(folder / "checks.json", {name: log[name] for name in ("notes", "told", "checks")})
            write_json(folder / "report.json", numbers)
            write_text(folder / "report.html", report_page(numbers))
    for warning in numbers["warnings"]:
        _log.warning("%s", warning)
    return open_artifact(out, KIND, verify=False)


def read_mined(path: str | Path, name: str) -> pa.Table:
    """One table of a mined artifact, whichever engine wrote it. Raises ArtifactError for another folder."""
    artifact = open_artifact(path, KIND, verify=False)
    if name not in TABLES:
        raise ConfigError(f"{path}: has no table {name!r}; it has {', '.join(TABLES)}")
    return pq.read_table(artifact.path / f"{name}.parquet")


def input_digests(config: MineConfig) -> dict[str, str]:
    """What came in, by the setting that names it: SHA-256 of each file, and the version of the lexicon.

    Files of a folder or pattern have their path below its fixed part added.
    """
    sources = {"log": config.log.path, "queries": config.log.queries, "events": config.log.events}
    sources |= {"items": config.items, **{f"judged.{at}": path for at, path in enumerate(config.judged)}}
    digests = {}
    for setting, source in sources.items():
        for file in local_files(source):
            name = file.relative_to(_fixed_part(str(source))).as_posix()
            digests[setting if file == Path(str(source)) else f"{setting}/{name}"] = sha256(file)
    if config.lexicon is not None:
        digests["lexicon"] = open_artifact(config.lexicon, LEXICON).version
    return digests


def _fixed_part(source: str) -> Path:
    """A folder or file itself; of a pattern, the folders before its first wildcard."""
    path = Path(source)
    return path if path.exists() else Path(*itertools.takewhile(lambda part: not glob.has_magic(part), path.parts))


@contextmanager
def _memory_named(config: MineConfig) -> Iterator[None]:
    """Around the work: an engine without memory is an error that names the setting. Complete steps stay."""
    try:
        yield
    except Exception as error:
        if not is_memory(error):
            raise
        first = str(error).splitlines()[0]
        raise PertinentError(
            f"the engine needs more memory than engine.memory={config.engine.memory} ({first}); set it higher or "
            "engine.threads lower, and start again: what is complete is kept"
        ) from None


# ---------------------------------------------------------------- report


def _numbers(run: Mined, log: Mapping[str, Any], warnings: list[str]) -> dict[str, Any]:
    stages, config = run.stages, run.config
    covered = stages.json("coverage", dict)
    covered["kept_at"] = {int(limit): kept for limit, kept in covered["kept_at"].items()}
    fit = stages.json("position_fit", dict)
    few = small_log_warning(Coverage(**covered), config.neighbors)
    judged = stages.json("judged", dict)
    leak = _leak_warning(config, run.tables["candidates"].count().to_pyarrow().as_py())
    found = {
        "warnings": [*log["warnings"], *warnings, *([few] if few is not None else []), *leak, *fit["warnings"]],
        "checks": log["checks"],
        "notes": log["notes"],
        "told": log["told"],
        "coverage": covered,
        "position_fit": fit,
        "settings": {
            "engine": config.engine.type,
            "neighbors": f"{config.neighbors.min_exposures} exposures, {config.neighbors.min_ctr:g} clicked, "
            f"{config.neighbors.days} days",
            "days kept": str(config.kept_days),
            "judged queries": f"{judged['given']:,} given, {judged['left_out']:,} of the log left out of candidates",
        },
    }
    pairs = read_parquet(stages.connection, stages.folder / "clicked.parquet")
    return report_numbers({**run.tables, "clicks": pairs}, found)


def _leak_warning(config: MineConfig, candidates: int) -> list[str]:
    """A warning where candidates were drawn without knowing which queries are judged."""
    if config.judged or not candidates:
        return []
    return [
        "no judged queries are given, so candidates may hold queries of your evaluation, and a model that learns from "
        "them would look better than it is: name the files of judgments with judged"
    ]


def _link(source: Path, target: Path) -> None:
    """Put a finished table into the artifact, without a second copy where the file system can share it."""
    if source.is_dir():
        shutil.copytree(source, target, copy_function=_link_file)
    else:
        _link_file(source, target)


def _link_file(source: str | Path, target: str | Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
