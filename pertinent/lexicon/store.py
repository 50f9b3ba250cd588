"""A lexicon on disk, opened: the extended tokenizer, its added words, and the tagger of term classes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from tokenizers import Tokenizer

from pertinent.artifact import Artifact, open_artifact
from pertinent.lexicon.pairs import PairConfig, PairTokenizer
from pertinent.lexicon.vocabulary import added_words

if TYPE_CHECKING:
    from pertinent.lexicon.tagger import Tagger

KIND = "lexicon"


@dataclass(frozen=True)
class Lexicon:
    """What ``pertinent lexicon`` made; ``version`` goes into whatever is made with it."""

    artifact: Artifact
    tokenizer: Tokenizer
    words: tuple[str, ...]

    @classmethod
    def load(cls, path: str | Path) -> Lexicon:
        """The lexicon in a folder. Raises ArtifactError where it is missing, damaged or of another kind."""
        artifact = open_artifact(path, kind=KIND)
        tokenizer = PairTokenizer.load(artifact.path, PairConfig()).tokenizer
        return cls(artifact, tokenizer, added_words(tokenizer))

    @property
    def version(self) -> str:
        """Twelve hexadecimal digits over the content."""
        return self.artifact.version

    @cached_property
    def tagger(self) -> Tagger:
        """The tagger of term classes, opened at first use."""
        from pertinent.lexicon.tagger import Tagger

        return Tagger.load(self.artifact.path)
