"""Term classes of queries and titles: gazetteer and rules first, a small trained classifier after.

``Tagger.shipped()`` needs no training; ``learn`` adds the terms of a catalog. Classes and ids are
those of ei-SRC, section 5.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from pertinent.artifact import read_json, write_json
from pertinent.config import Config
from pertinent.errors import ArtifactError, ConfigError
from pertinent.lexicon.classes import CLASS_IDS as CLASS_IDS
from pertinent.lexicon.classes import TERM_CLASSES as TERM_CLASSES
from pertinent.lexicon.classes import TermSpan as TermSpan
from pertinent.lexicon.gazetteer import Gazetteer, GazetteerConfig, Match, Words, split_words
from pertinent.lexicon.sequence import LABELS, Crf, CrfConfig
from pertinent.records import Item
from pertinent.text import normalize

TAGGER_FILE = "tagger.json"
GAZETTEER_FILE = "gazetteer.json"
CLASSIFIER_FILE = "tagger.safetensors"
TAGGER_FILES = (TAGGER_FILE, GAZETTEER_FILE, CLASSIFIER_FILE)
SHIPPED = Path(__file__).resolve().parents[1] / "shipped_tagger"
_FORMAT = 1
_CHUNK = 2000


class TaggerConfig(Config):
    """How a text is tagged, and how the classifier is trained.

    ``mode: both`` lets the classifier decide with the matches of list and rules in view, and
    ``fill`` then takes those matches where it gave none of their words a class. ``gazetteer``
    uses list and rules alone, ``classifier`` neither.
    """

    mode: Literal["both", "gazetteer", "classifier"] = "both"
    fill: bool = False
    gazetteer: GazetteerConfig = GazetteerConfig()
    crf: CrfConfig = CrfConfig()


class LabeledText(NamedTuple):
    """A normalized text with its true spans: start, end (characters) and class id."""

    text: str
    spans: tuple[tuple[int, int, int], ...]


class Tagger:
    """Finds the terms of a text. Safe to use from several threads."""

    def __init__(self, gazetteer: Gazetteer, crf: Crf | None, config: TaggerConfig) -> None:
        if crf is None and config.mode != "gazetteer":
            raise ConfigError(f"mode: {config.mode} needs a trained classifier; use mode: gazetteer, or train one")
        self.gazetteer = gazetteer
        self.crf = crf
        self.config = config

    @cached_property
    def digest(self) -> str:
        """Equal for two taggers that find the same terms in every text."""
        settings, weights = self._parts()
        return hashlib.sha256(settings.encode() + (weights or b"")).hexdigest()[:12]

    @classmethod
    def train(cls, examples: Sequence[LabeledText], gazetteer: Gazetteer, config: TaggerConfig) -> Self:
        """A tagger whose classifier learned from labeled texts; the same input gives the same tagger."""
        if config.mode == "gazetteer":
            return cls(gazetteer, None, config)
        rows = []
        for text, spans in examples:
            words = split_words(text)
            matches = gazetteer.matches(words) if config.mode == "both" else []
            labels = [LABELS[number] for number in word_labels(words, spans)]
            rows.append((words, matches, labels))
        return cls(gazetteer, Crf.train(rows, config.crf), config)

    @classmethod
    def shipped(cls) -> Self:
        """The tagger that comes with pertinent: general merchandise, English."""
        return cls.load(SHIPPED)

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """The tagger in a folder. Raises ArtifactError for missing or damaged files."""
        folder = Path(folder)
        for name in (TAGGER_FILE, GAZETTEER_FILE):
            if not (folder / name).is_file():
                raise ArtifactError(f"{folder / name}: missing; a tagger's folder holds {', '.join(TAGGER_FILES)}")
        values = read_json(folder / TAGGER_FILE)
        if not isinstance(values, dict) or values.get("format") != _FORMAT:
            raise ArtifactError(f"{folder / TAGGER_FILE}: not a tagger of format {_FORMAT}; make it anew")
        try:
            config = TaggerConfig.build(values.get("config", {}), source=str(folder / TAGGER_FILE))
        except ConfigError as error:
            raise ArtifactError(str(error)) from None
        gazetteer = Gazetteer.build(read_json(folder / GAZETTEER_FILE))
        return cls(gazetteer, None if config.mode == "gazetteer" else _read_crf(folder / CLASSIFIER_FILE), config)

    def save(self, folder: str | Path) -> None:
        """Write the tagger's files into a folder."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / TAGGER_FILE, {"format": _FORMAT, "config": self.config.plain()})
        write_json(folder / GAZETTEER_FILE, self.gazetteer.plain())
        if self.crf is not None:
            from safetensors.numpy import save

            (folder / CLASSIFIER_FILE).write_bytes(save(self.crf.arrays()))

    def learn(self, items: Iterable[Item], config: GazetteerConfig | None = None) -> Tagger:
        """This tagger with the terms of a catalog added; where both know a term, the catalog decides."""
        own = Gazetteer.from_items(items, config or GazetteerConfig())
        both = Gazetteer({**self.gazetteer.entries, **own.entries}, own.config)
        return Tagger(both, self.crf, self.config.model_copy(update={"gazetteer": own.config}))

    def tag(self, text: str) -> list[TermSpan]:
        """The terms of a text, in order; offsets count characters of ``normalize(text)``."""
        return self.tag_normalized([normalize(text)])[0]

    def tag_many(self, texts: Sequence[str], processes: int | None = None) -> list[list[TermSpan]]:
        """The terms of each text, the same as ``tag`` gives, much faster.

        With ``processes`` above 1 that many new processes share the work; a script that asks for
        them must have its own ``if __name__ == "__main__"``. One process is the default.
        """
        chunks = [texts[start : start + _CHUNK] for start in range(0, len(texts), _CHUNK)]
        if processes is None or processes <= 1 or len(chunks) < 2:
            return [spans for chunk in chunks for spans in self.tag_normalized([normalize(text) for text in chunk])]
        context = multiprocessing.get_context("spawn")
        with context.Pool(min(processes, len(chunks)), _start_worker, (self._parts(),)) as pool:
            return [spans for tagged in pool.imap(_tag_chunk, chunks) for spans in tagged]

    def tag_normalized(self, texts: Sequence[str]) -> list[list[TermSpan]]:
        """The terms of texts that went through ``normalize`` already."""
        words = [split_words(text) for text in texts]
        if self.config.mode == "classifier":
            matches: list[list[Match]] = [[] for _ in texts]
        else:
            matches = [self.gazetteer.matches(row) for row in words]
        if self.crf is None:
            return [_spans(*row) for row in zip(texts, words, matches, strict=True)]
        labels = self.crf.decode(words, matches)
        return [
            _spans(text, row, _decided(numbers, found, self.config.fill))
            for text, row, numbers, found in zip(texts, words, labels, matches, strict=True)
        ]

    def _parts(self) -> tuple[str, bytes | None]:
        from safetensors.numpy import save

        settings = {"config": self.config.plain(), "gazetteer": self.gazetteer.plain()}
        return json.dumps(settings), None if self.crf is None else save(self.crf.arrays())


def word_labels(words: Words, spans: Iterable[tuple[int, int, int]]) -> list[int]:
    """The label number (see ``LABELS``) of each word: a word belongs to the first span that it overlaps.

    >>> words = split_words("red wool socks")
    >>> [LABELS[number] for number in word_labels(words, [(0, 3, 5), (4, 14, 6)])]
    ['B-style', 'B-core', 'I-core']
    """
    labels = [0] * len(words.texts)
    for start, end, class_id in spans:
        inside = False
        for place, (first, last) in enumerate(zip(words.starts, words.ends, strict=True)):
            if first < end and last > start and not labels[place]:
                labels[place] = 2 * class_id if inside else 2 * class_id - 1
                inside = True
    return labels


def word_spans(labels: Sequence[int]) -> list[tuple[int, int, int]]:
    """First word, last word (exclusive) and class id of the spans that labels spell.

    >>> word_spans([5 * 2 - 1, 6 * 2 - 1, 6 * 2, 0])
    [(0, 1, 5), (1, 3, 6)]
    """
    found: list[tuple[int, int, int]] = []
    for place, label in enumerate(labels):
        if label and label % 2 == 0 and found and found[-1][1] == place and found[-1][2] == label // 2:
            found[-1] = (found[-1][0], place + 1, found[-1][2])
        elif label:
            found.append((place, place + 1, (label + 1) // 2))
    return found


def token_classes(offsets: Sequence[tuple[int, int]], spans: Sequence[TermSpan]) -> NDArray[np.int8]:
    """The class id of each token of a text, ``[tokens]``: that of the span its first character lies in.

    ``offsets`` are the tokens' characters in the same normalized text, in order.

    >>> spans = [TermSpan(0, 9, "function", "bluetooth", "gazetteer")]
    >>> token_classes([(0, 4), (4, 9), (10, 14)], spans).tolist()
    [2, 2, 0]
    """
    classes = np.zeros(len(offsets), dtype=np.int8)
    place = 0
    for number, (start, _) in enumerate(offsets):
        while place < len(spans) and spans[place].end <= start:
            place += 1
        if place < len(spans) and spans[place].start <= start:
            classes[number] = CLASS_IDS[spans[place].term_class]
    return classes


def _spans(text: str, words: Words, matches: Sequence[Match]) -> list[TermSpan]:
    found = []
    for first, last, class_id, source in matches:
        start, end = words.starts[first], words.ends[last - 1]
        found.append(TermSpan(start, end, TERM_CLASSES[class_id], text[start:end], source))
    return found


def _decided(labels: Sequence[int], matches: Sequence[Match], fill: bool) -> list[Match]:
    """The classifier's terms; one that list or rules found too has their source."""
    known = {(m.first, m.last, m.class_id): m for m in matches}
    found = [known.get(span) or Match(*span, "classifier") for span in word_spans(labels)]
    if fill:
        found += [match for match in matches if not any(labels[match.first : match.last])]
        found.sort()
    return found


def _read_crf(path: Path) -> Crf:
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        return Crf.build(load(path.read_bytes()))
    except FileNotFoundError:
        raise ArtifactError(f"{path}: missing; a tagger's folder holds {', '.join(TAGGER_FILES)}") from None
    except (SafetensorError, KeyError) as error:
        raise ArtifactError(f"{path}: not a readable classifier ({error}); make it anew") from None


_worker: Tagger | None = None


def _start_worker(parts: tuple[str, bytes | None]) -> None:
    from safetensors.numpy import load

    global _worker
    settings = json.loads(parts[0])
    crf = None if parts[1] is None else Crf.build(load(parts[1]))
    _worker = Tagger(Gazetteer.build(settings["gazetteer"]), crf, TaggerConfig.build(settings["config"]))


def _tag_chunk(texts: Sequence[str]) -> list[list[TermSpan]]:
    assert _worker is not None
    return _worker.tag_many(texts)
