"""The models that are served, by name, each with its index; swapped whole while requests go on.

A request takes one ``Served`` and keeps it to its end, so every answer comes from one version. A new
version is opened and checked beside the old one, which stays where the new one fails.
"""

from __future__ import annotations

import atexit
import gc
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pertinent.artifact import identity, made_at, open_artifact
from pertinent.engine.arrays import MappedFile, Ragged
from pertinent.engine.behavior import BehaviorScorer
from pertinent.engine.cache import score_stamp
from pertinent.engine.hot_pairs import HotPairs
from pertinent.engine.index import ItemIndex
from pertinent.engine.recent_ids import RecentIds
from pertinent.engine.scorer import Scorer
from pertinent.errors import ArtifactError, ConfigError, PertinentError
from pertinent.folders import model_folder
from pertinent.lexicon.token_cache import TokenCache
from pertinent.serving.behavior import Neighbors
from pertinent.serving.messages import WireError
from pertinent.serving.queue import spread

_log = logging.getLogger(__name__)

THRESHOLDS_FILE = "thresholds.json"
# How often folders are read that are replaced meanwhile.
TRIES = 5
_PAUSE = 0.05  # seconds more before each
# About when the folder is looked at again, and the longest that a damaged one waits for that.
_DAMAGED_RETRY, _LONGEST_RETRY = 10.0, 300.0


@dataclass(frozen=True, slots=True)
class Source:
    """Where a served model comes from. ``model`` None is the model that comes with the package."""

    name: str
    model: Path | None
    index: Path | None = None
    backend: str | None = None
    threads: int | None = None
    hot_pairs: Path | None = None
    token_mb: float = 0.0
    behavior: Path | None = None
    behavior_model: Path | None = None  # None is the served model itself

    def open(self, first: bool = True) -> Served:
        """The model and its index, checked, golden scores included. Raises ArtifactError, ConfigError.

        Scores of hot pairs that were made for another model are an error the ``first`` time. Later, when a new
        model comes before its scores, it is served without them. What is replaced while it is read is read again,
        so that all parts are of the versions that they say.
        """
        for turn in range(TRIES):
            time.sleep(turn * _PAUSE)
            before = self.stamp()
            try:
                found = self._open(first)
            except Exception:  # parts of two versions may fail in any way
                if self.stamp() == before:
                    raise
                continue
            if self.stamp() == before:
                return found
            found.scorer.close()
        raise ArtifactError(f"model {self.name}: its folders are replaced faster than they can be read")

    def _open(self, first: bool) -> Served:
        scorer = Scorer.load(self.model, backend=self.backend, threads=self.threads)
        try:
            return self._with_parts(scorer, first)
        except BaseException:
            scorer.close()
            raise

    def _with_parts(self, scorer: Scorer, first: bool) -> Served:
        artifact = open_artifact(model_folder(self.model), kind="model", verify=False)
        thresholds = artifact.json(THRESHOLDS_FILE) if artifact.has(THRESHOLDS_FILE) else None
        index = None if self.index is None else ItemIndex.open(self.index, scorer.pairs)
        if self.token_mb:
            scorer.pairs.cache = TokenCache(int(self.token_mb * 2**20))
        neighbors, states = self._neighbors(scorer, index), self._states(scorer, index)
        hot = self._hot(scorer, first)
        parts = {"index": self.index, "hot pairs": None if hot is None else self.hot_pairs, "behavior": self.behavior}
        made = {name: made_at(folder) for name, folder in parts.items() if folder is not None}
        return Served(self.name, scorer, index, thresholds, hot, neighbors, states, made)

    def _states(self, scorer: Scorer, index: ItemIndex | None) -> Ragged | None:
        """What a late join knows of the items ahead; tokens do where that is of another version of the model."""
        if index is None:
            return None
        try:
            return scorer.states_of(index)
        except ArtifactError as error:
            _log.warning("model %s: item states are not used, titles are computed: %s", self.name, error)
            return None

    def _neighbors(self, scorer: Scorer, index: ItemIndex | None) -> Neighbors | None:
        if self.behavior is None:
            return None
        if index is None:
            raise ConfigError(f"model {self.name}: behavior is known by item id; give the index of the items too")
        own = self.behavior_model is None or self.behavior_model == self.model
        folder = model_folder(self.model) if own else self.behavior_model
        reads = scorer if own else Scorer.load(folder, backend=self.backend, threads=self.threads)
        cascade = BehaviorScorer.load(str(folder), self.behavior, fallback=scorer, scorer=reads)
        return Neighbors.beside(cascade, index)

    def _hot(self, scorer: Scorer, first: bool) -> HotPairs | None:
        if self.hot_pairs is None:
            return None
        stamp = score_stamp(scorer.pairs, scorer.version, scorer.backend.name)
        hot = HotPairs.open(self.hot_pairs, stamp if first else None)
        if hot.stamp == stamp.hex():
            return hot
        _log.warning("model %s: %s has the scores of another version, they are not used", self.name, hot.path)
        return None

    def stamp(self) -> tuple[tuple[int, ...], ...]:
        """Something that changes whenever other folders are put in place."""
        folders = (model_folder(self.model), self.index, self.hot_pairs, self.behavior, self.behavior_model)
        return tuple(identity(folder) for folder in folders if folder is not None)


class Mapped:
    """The files that a served model maps, watched: nobody should write into them, and somebody may.

    Once one is ``damaged`` they all stay so until they are opened and checked again, whatever stands in them then.
    """

    def __init__(self, files: Sequence[MappedFile]) -> None:
        self._files = tuple(files)
        self._damaged: str | None = None

    @property
    def damaged(self) -> str | None:
        """What is wrong with them; None as long as their maps can be read. Takes two microseconds a file."""
        if self._damaged is None:
            for file in self._files:
                if file.cut:
                    self.spoil(f"{file.path}: was cut while it was served; put the whole folder there again")
                    break
        return self._damaged

    @property
    def opened(self) -> tuple[tuple[int, int], ...]:
        """Their ``state`` when they were mapped."""
        return tuple(file.opened for file in self._files)

    @property
    def state(self) -> tuple[tuple[int, int], ...]:
        """Something that changes whenever somebody writes into one."""
        return tuple(file.state for file in self._files)

    def spoil(self, reason: str) -> None:
        """They are not what was checked any more, and no answer may come from them."""
        if self._damaged is None:
            self._damaged = reason
            _log.error("what is served is damaged, requests are refused: %s", reason)


@dataclass(frozen=True, slots=True)
class Served:
    """A model ready to answer, with its index and its threshold table where they exist."""

    name: str
    scorer: Scorer
    index: ItemIndex | None = None
    thresholds: Mapping[str, Any] | None = None
    hot: HotPairs | None = None
    neighbors: Neighbors | None = None
    states: Ragged | None = None  # of the items of the index, where the model scores from them
    made: Mapping[str, float] = field(default_factory=dict)  # when what is refreshed was made, Unix time
    loaded: float = field(default_factory=time.time)
    recent_ids: RecentIds | None = field(init=False, repr=False, compare=False)  # of the index
    mapped: Mapped = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "recent_ids", None if self.index is None else RecentIds(self.index))
        files = [] if self.index is None else self.index.files
        files += [] if self.hot is None else [self.hot.file]
        files += [] if self.neighbors is None else [self.neighbors.scorer.behavior.file]
        object.__setattr__(self, "mapped", Mapped(files))

    @property
    def version(self) -> str:
        """The version of the model's content; with an index, or behavior beside it, that of all of them."""
        parts = [self.scorer.version]
        if self.index is not None:
            parts.append(self.index.version)
        if self.neighbors is not None:
            parts.append(self.neighbors.scorer.behavior.version)
        return "-".join(parts)

    def check(self) -> None:
        """Raises WireError, 503, where a file that it reads from was cut: to go on would end the process."""
        if self.mapped.damaged is not None:
            # Anyone may read this: which file it is, is in the log.
            message = f"model {self.name} is damaged on this server and waits for a whole one; ask another server"
            raise WireError(503, message, "model_damaged", "model", retry_after=spread(_DAMAGED_RETRY))


class Registry:
    """Served models by name; the first is the default."""

    def __init__(self, served: Sequence[Served], sources: Sequence[Source] = (), any_model: bool = False) -> None:
        if not served:
            raise ConfigError("no model is served; give one")
        self._served = {each.name: each for each in served}
        self._sources = {source.name: source for source in sources}
        self._stamps = {source.name: source.stamp() for source in sources}
        self._written = {each.name: each.mapped.opened for each in served}
        self._pauses: dict[str, tuple[float, float]] = {}  # of what is damaged: until the next try, and when that is
        self._default = served[0].name
        self._any = any_model
        self.failures: dict[str, str] = {}

    @classmethod
    def open(cls, sources: Sequence[Source], any_model: bool = False) -> Registry:
        """All sources opened. Raises the first error: a server with half its models does not start."""
        stamps = {source.name: source.stamp() for source in sources}  # before: a change while opening is one
        registry = cls([source.open() for source in sources], sources, any_model)
        registry._stamps = stamps
        settle_memory()
        return registry

    @property
    def names(self) -> list[str]:
        """The names that requests may give, the default first."""
        return list(self._served)

    @property
    def all(self) -> list[Served]:
        """Everything that is served now."""
        return list(self._served.values())

    def get(self, name: str | None) -> Served:
        """The model of this name, the default for None. Raises WireError, 404, with the names that are."""
        if name is None:
            return self._served[self._default]
        found = self._served.get(name)
        if found is None and self._any:
            found = self._served[self._default]
        if found is None:
            message = f"model {name[:100]!r} is not served here; served: {', '.join(self._served)}"
            raise WireError(404, message, "model_not_found", "model")
        return found

    def without_hot_pairs(self) -> list[str]:
        """Names that are to have scores made ahead, and do not: they are of another version of the model."""
        named = [name for name, source in self._sources.items() if source.hot_pairs is not None]
        return [name for name in named if self._served[name].hot is None]

    def changed(self) -> list[str]:
        """Names whose folders have changed, or files that they map, since they were opened or failed to open.

        What is damaged is tried again in any case, ever more seldom.
        """
        return [
            name
            for name, source in self._sources.items()
            if source.stamp() != self._stamps[name]
            or self._served[name].mapped.state != self._written[name]
            or self._try_again(name)
        ]

    def _try_again(self, name: str) -> bool:
        if self._served[name].mapped.damaged is None:
            self._pauses.pop(name, None)
            return False
        now = time.monotonic()
        pause, due = self._pauses.get(name, (_DAMAGED_RETRY, now + _DAMAGED_RETRY))
        if now >= due:
            pause = min(2 * pause, _LONGEST_RETRY)
            due = now + pause
            self._pauses[name] = pause, due
            return True
        self._pauses[name] = pause, due
        return False

    def reload(self, names: Sequence[str] | None = None) -> dict[str, str]:
        """Open models again and swap them in; for each name its new version, or ``failed: ...``.

        Takes as long as opening: call it from a thread. What fails leaves the old version in place.
        """
        outcome = {}
        for name in self._sources if names is None else names:
            source = self._sources[name]
            old = self._served[name].mapped
            before = self._written[name]
            written = old.state != before
            self._stamps[name], self._written[name] = source.stamp(), old.state
            try:
                fresh = source.open(first=False)
            except Exception as error:  # whatever it is, the old version goes on
                known = isinstance(error, PertinentError | OSError)
                error_told = str(error) if known else f"{type(error).__name__}: {error}"
                self.failures[name] = error_told
                outcome[name] = f"failed: {error_told}"
                _log.error("model %s: the new version is not taken, the old one stays: %s", name, error_told)
                if written and isinstance(error, ArtifactError):  # what was not taken is what the old one reads
                    old.spoil(error_told)
                elif written:  # no memory, no descriptors, no disk: whether it is whole is not known, so look again
                    self._written[name] = before
                continue
            self.failures.pop(name, None)
            self._served[name] = fresh  # one assignment: requests see the old or the new
            self._written[name] = fresh.mapped.opened
            outcome[name] = fresh.version
            _log.info("model %s: version %s is served", name, fresh.version)
        settle_memory()
        return outcome


# Frozen objects are not taken down when the interpreter ends, and what native code holds would be told as a leak.
atexit.register(gc.unfreeze)


def settle_memory() -> None:
    """Take what was just loaded out of the garbage collector's rounds: it lives as long as the process.

    What an earlier call took out is looked at again, so that a replaced model goes.
    """
    gc.unfreeze()
    gc.collect()
    gc.freeze()
