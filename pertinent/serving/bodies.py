"""What each dialect puts on the wire: the bodies that come and the replies that go, field by field."""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from msgspec import UNSET, UnsetType

from pertinent.serving.reading import Document

Number = int | float
Query = str | dict[str, Any]
Texts = str | dict[str, Any] | list[Document]

# --- what comes -------------------------------------------------------------------------------


class RerankBody(msgspec.Struct):
    """Cohere v1 and v2, Jina, and what the others of that family have in common."""

    query: Query | None = None
    documents: list[Document] | None = None
    model: str | None = None
    top_n: Number | None = None
    return_documents: bool | None = None
    rank_fields: list[str] | None = None
    max_tokens_per_doc: Number | None = None
    max_chunks_per_doc: Any = None
    priority: Number | None = None
    relevant_spans: Any = None
    instruction: Any = None
    overlap_tokens: Any = None


class VllmBody(RerankBody):
    """vLLM; also what is read on the shared ``/v1/rerank``."""

    use_activation: bool | None = None
    activation: bool | None = None  # older names of the same
    softmax: bool | None = None
    request_id: str | None = None
    max_tokens_per_query: Any = None
    truncate_prompt_tokens: Any = None
    truncation_side: Any = None


class InfinityBody(RerankBody):
    """Infinity."""

    raw_scores: bool | None = None


class VoyageBody(msgspec.Struct):
    """Voyage."""

    query: str | None = None
    documents: list[Document] | None = None
    model: str | None = None
    top_k: Number | None = None
    return_documents: bool | None = None
    truncation: bool | None = None


class MixedbreadBody(msgspec.Struct):
    """Mixedbread."""

    query: str | None = None
    input: list[Document] | None = None
    model: str | None = None
    rank_fields: list[str] | None = None
    top_k: Number | None = None
    return_input: bool | None = None
    rewrite_query: Any = None


class Passage(msgspec.Struct, gc=False):
    """A text in an object, with nothing else of use; far cheaper to read than any object."""

    text: str | UnsetType | None = UNSET


class NimBody(msgspec.Struct):
    """NVIDIA NIM."""

    query: Query | None = None
    passages: list[str | Passage | None] | None = None
    model: str | None = None
    truncate: Literal["NONE", "END"] | None = None


class TeiBody(msgspec.Struct):
    """Text Embeddings Inference, ``/rerank``."""

    query: str | None = None
    texts: list[Document] | None = None
    raw_scores: bool | None = None
    return_text: bool | None = None
    truncate: bool | None = None
    truncation_direction: Literal["Left", "left", "Right", "right"] | None = None
    model: str | None = None


class PredictBody(msgspec.Struct):
    """Text Embeddings Inference, ``/predict``."""

    inputs: str | list[Any] | dict[str, Any] | None = None
    raw_scores: bool | None = None
    truncate: bool | None = None
    truncation_direction: Literal["Left", "left", "Right", "right"] | None = None
    model: str | None = None


class ScoreBody(msgspec.Struct):
    """vLLM ``/score``: one of four pairs of names."""

    model: str | None = None
    queries: Texts | None = None
    documents: Texts | None = None
    items: Texts | None = None
    text_1: Texts | None = None
    text_2: Texts | None = None
    data_1: Texts | None = None
    data_2: Texts | None = None
    use_activation: bool | None = None
    priority: Number | None = None
    request_id: str | None = None
    truncate_prompt_tokens: Any = None


# --- what goes --------------------------------------------------------------------------------


class Usage(msgspec.Struct):
    """Tokens read."""

    prompt_tokens: int
    total_tokens: int


class TotalUsage(msgspec.Struct):
    """Tokens read, as Voyage says it."""

    total_tokens: int


class Result(msgspec.Struct, omit_defaults=True):
    """One result of the Cohere family; Voyage and Infinity give ``document`` as a string."""

    index: int
    relevance_score: float
    document: dict[str, str] | str | UnsetType = UNSET


class RerankReply(msgspec.Struct):
    """The Cohere family."""

    id: str
    model: str
    results: list[Result]
    usage: Usage
    meta: dict[str, Any]


class InfinityReply(msgspec.Struct):
    """Infinity."""

    id: str
    object: str
    model: str
    results: list[Result]
    usage: Usage
    created: int


class VoyageReply(msgspec.Struct):
    """Voyage."""

    object: str
    model: str
    usage: TotalUsage
    data: list[Result]


class MixedbreadResult(msgspec.Struct, omit_defaults=True):
    """One result of Mixedbread."""

    index: int
    score: float
    object: str
    input: Any = UNSET


class MixedbreadReply(msgspec.Struct):
    """Mixedbread."""

    model: str
    usage: Usage
    object: str
    top_k: int
    return_input: bool
    data: list[MixedbreadResult]


class Ranking(msgspec.Struct):
    """One result of NVIDIA NIM."""

    index: int
    logit: float


class NimReply(msgspec.Struct):
    """NVIDIA NIM."""

    rankings: list[Ranking]
    usage: Usage


class Rank(msgspec.Struct, omit_defaults=True):
    """One result of Text Embeddings Inference."""

    index: int
    score: float
    text: str | UnsetType = UNSET


class Prediction(msgspec.Struct):
    """One class of ``/predict``."""

    score: float
    label: str


class ScoreResult(msgspec.Struct):
    """One result of vLLM's ``/score``."""

    index: int
    object: str
    score: float


class ScoreReply(msgspec.Struct):
    """vLLM ``/score``."""

    id: str
    object: str
    created: int
    model: str
    data: list[ScoreResult]
    usage: Usage
