"""A model as an application of Vespa, which runs it inside its ranking: graph, tokenizer, schema, services.

Vespa puts ``[CLS] query [SEP] title [SEP]`` together from token ids and knows the three inputs of BERT. Blocks and
positions are computed from these in the graph, the calibration is part of it, and no word has a term class.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from pertinent.artifact import Artifact, open_artifact, refuse_foreign, write_artifact, write_text
from pertinent.engine.export import IR_VERSION, ExportConfig, parity, traced, wanted_out
from pertinent.engine.torch_backend import TorchBackend
from pertinent.errors import ArtifactError, need
from pertinent.folders import model_folder
from pertinent.lexicon.pairs import PairTokenizer
from pertinent.models.store import load_network
from pertinent.probability import CALIBRATION_FILE, Isotonic, Platt, calibration_from
from pertinent.records import TokenBatch, TokenRows

KIND = "vespa"
PACKED_INPUTS = ("input_ids", "attention_mask", "token_type_ids")
PACKED_OUTPUT = "score"
# The application lies apart from the manifest: a package for Vespa holds what Vespa knows.
APPLICATION = "application"
GRAPH_FILE = f"{APPLICATION}/models/relevance.onnx"
TOKENIZER_FILE = f"{APPLICATION}/models/tokenizer.json"
SCHEMA_FILE = f"{APPLICATION}/schemas/items.sd"
SERVICES_FILE = f"{APPLICATION}/services.xml"
MAX_BYTES = 2**31 - 1
# What `tokenInputIds` of Vespa begins and parts texts with; `customTokenInputIds` takes other numbers.
BERT_IDS = (101, 102)

# Texts in which another tokenizer would be found out: they are cut in both before anything is written.
_PROBES = (
    "Wireless Earbuds, USB-C (2-pack) 12v/5a 100%cotton 5.6ft",
    "[CLS] typed [SEP] control [PAD] tokens [MASK] [UNK]",
    "ＷＩＲＥＬＥＳＳ\u200b ½ café CAFE\u0301 Größe №5 ﬁt",
    "кабель usb 日本語 い \U0001f375 'men''s' <b>&amp;</b>",
    "\ufeffa\u00a0b\u2009c\ttab\nline",
    "",
)


def export_vespa(config: ExportConfig) -> Artifact:
    """The application at ``out``: its scores are those of the model, or nothing is written.

    The graph's output ``[batch, 1]`` is the log odds of relevance, calibrated where the calibration is a Platt fit;
    with ``probability`` the calibrated probability. Raises ArtifactError for a model that reads term classes, or
    whose tokenizer Vespa cannot run, and where scores differ from torch's by more than 1e-4.
    """
    need("torch", extra="train")
    out = wanted_out(config)
    refuse_foreign(out, KIND)
    artifact = open_artifact(model_folder(config.model), kind="model")
    network, pairs = load_network(artifact)
    plain = artifact.json(CALIBRATION_FILE) if artifact.has(CALIBRATION_FILE) else Platt().plain()
    calibration = calibration_from(plain)
    _refuse_unknown_inputs(artifact, network, pairs)
    tokenizer = text_tokenizer(pairs)
    metrics: dict[str, Any] = {}
    with write_artifact(out, KIND, config.plain(), {"model": artifact.version}, metrics) as folder:
        for name in ("models", "schemas"):
            (folder / APPLICATION / name).mkdir(parents=True)
        graph = packed_graph(network, pairs, calibration, config.probability)
        metrics["onnx_difference"] = graph_difference(graph, network, pairs, calibration, config.probability)
        (folder / GRAPH_FILE).write_bytes(graph)
        tokenizer.save(str(folder / TOKENIZER_FILE), pretty=False)
        write_text(folder / SCHEMA_FILE, schema(pairs, config.rerank_count))
        write_text(folder / SERVICES_FILE, SERVICES)
    return open_artifact(out, kind=KIND)


def _refuse_unknown_inputs(artifact: Artifact, network: Any, pairs: PairTokenizer) -> None:
    if pairs.tagger is not None and getattr(network.config, "term_classes", False):
        raise ArtifactError(
            f"{artifact.path}: the model reads term classes, which Vespa cannot find in a text; train with "
            "`term_classes: false`, or call `pertinent serve` from the application"
        )
    if pairs.pad_id != 0:
        raise ArtifactError(
            f"{artifact.path}: [PAD] is token {pairs.pad_id}, and Vespa takes token 0 for the end of a text; "
            "start from a tokenizer whose token 0 is [PAD]"
        )


def text_tokenizer(pairs: PairTokenizer) -> Tokenizer:
    """The tokenizer for single texts: it normalizes as we do, adds no control token and finds none in a text.

    Raises ArtifactError where it would not give our token ids.
    """
    from pertinent.models.interchange import plain_tokenizer

    settings = json.loads(plain_tokenizer(pairs).to_str())
    words = settings["model"]["vocab"]
    settings["added_tokens"] = [
        token for token in settings["added_tokens"] if not (token["special"] and token["content"] in words)
    ]
    settings.update(post_processor=None, truncation=None, padding=None)
    tokenizer = Tokenizer.from_str(json.dumps(settings, ensure_ascii=False))
    for text in _PROBES:
        ours = pairs.tokenizer.encode(pairs.prepare(text), add_special_tokens=False).ids
        if tokenizer.encode(text).ids != ours:
            raise ArtifactError(
                f"the tokenizer would cut {text!r} otherwise in Vespa, so scores would differ; use a BERT-style "
                "WordPiece tokenizer, or call `pertinent serve` from the application"
            )
    return tokenizer


def packed_inputs(batch: TokenBatch) -> dict[str, NDArray[np.int64]]:
    """A batch as BERT's three inputs, int64 ``[batch, length]``: the title follows its query, then zeros.

    >>> from pertinent.records import TokenBatch
    >>> ids, mask = np.array([[101, 7, 102, 0, 8, 102]]), np.array([[True, True, True, False, True, True]])
    >>> segments = np.array([[0, 0, 0, 0, 1, 1]])
    >>> packed = packed_inputs(TokenBatch(ids, mask, segments, segments, segments, 4))
    >>> packed["input_ids"].tolist(), packed["token_type_ids"].tolist()
    ([[101, 7, 102, 8, 102, 0]], [[0, 0, 0, 1, 1, 0]])
    """
    order = np.argsort(~batch.mask, axis=1, kind="stable")
    mask, ids, types = (np.take_along_axis(each, order, 1) for each in (batch.mask, batch.token_ids, batch.segment_ids))
    arrays = (np.where(mask, ids, 0), mask, np.where(mask, types, 0))
    return {name: array.astype(np.int64) for name, array in zip(PACKED_INPUTS, arrays, strict=True)}


def packed_graph(network: Any, pairs: PairTokenizer, calibration: Platt | Isotonic, probability: bool) -> bytes:
    """The ONNX file of a network on ``PACKED_INPUTS``, weights inside. Raises ArtifactError from 2 GB on."""
    size = sum(weight.nbytes for weight in network.state_dict().values())
    if size > MAX_BYTES:
        raise ArtifactError(f"the weights have {size:,} bytes, one ONNX file holds {MAX_BYTES:,}; use a smaller model")
    example = packed_inputs(next(random_batches(network, pairs)))
    model = traced(network, _packed_call(network, pairs, calibration, probability), example, PACKED_OUTPUT)
    model.ir_version = min(model.ir_version, IR_VERSION)
    del model.graph.value_info[:]
    # Vespa tells sizes of the output from those of the inputs by the names of their dimensions.
    for value in model.graph.input:
        for dimension, name in zip(value.type.tensor_type.shape.dim, ("batch", "length"), strict=True):
            dimension.dim_param = name
    rows, columns = model.graph.output[0].type.tensor_type.shape.dim
    rows.dim_param, columns.dim_value = "batch", 1
    content: bytes = model.SerializeToString()
    return content


def _packed_call(
    network: Any, pairs: PairTokenizer, calibration: Platt | Isotonic, probability: bool
) -> Callable[..., Any]:
    """The function ``(input_ids, attention_mask, token_type_ids) -> score [batch, 1]`` to be traced."""
    import torch

    from pertinent.models.blocks import relevance_logit

    title_from = pairs.config.query_length if pairs.config.positions == "block" else None
    last = getattr(network.config, "max_positions", None)

    def call(input_ids: Any, attention_mask: Any, token_type_ids: Any) -> Any:
        mask = attention_mask > 0
        segments = torch.where(mask & (token_type_ids > 0), 1, 0)
        positions = torch.cumsum(torch.where(mask, 1, 0), dim=1) - 1
        if title_from is not None:
            query = torch.where(mask & (segments == 0), 1, 0).sum(dim=1, keepdim=True)
            positions = positions + segments * (title_from - query)
        positions = torch.where(mask, positions, 0)
        if last is not None:  # an engine that gives too many tokens gets a score, not a failed search
            positions = torch.clamp(positions, max=last - 1)
        logits = relevance_logit(network(input_ids, mask, segments, positions, torch.zeros_like(input_ids)))
        return _calibrated(logits, calibration, probability)[:, None]

    return call


def _calibrated(logits: Any, calibration: Platt | Isotonic, probability: bool) -> Any:
    """``score_of`` for tensors."""
    import torch

    if isinstance(calibration, Platt):
        raised = calibration.slope * logits + calibration.intercept
        return torch.sigmoid(raised) if probability else raised
    if not probability:
        return logits
    values = logits.double()[:, None]
    points, heights = (np.asarray(each, np.float64) for each in (calibration.logits, calibration.probabilities))
    widths = np.maximum(np.diff(points), 1e-12)  # a step straight up is a very steep line
    passed = torch.clamp((values - torch.from_numpy(points[:-1])) / torch.from_numpy(widths), 0.0, 1.0)
    curve = heights[0] + (passed * torch.from_numpy(np.diff(heights))).sum(dim=1)
    fit = torch.sigmoid(calibration.platt.slope * values[:, 0] + calibration.platt.intercept)
    return ((1 - calibration.tilt) * curve + calibration.tilt * fit).float()


def score_of(logits: NDArray[np.float32], calibration: Platt | Isotonic, probability: bool) -> NDArray[np.float32]:
    """What the graph is to give for logits ``[n]`` of the network, float32.

    >>> score_of(np.zeros(1, np.float32), Platt(2.0, 1.0), probability=False).tolist()
    [1.0]
    """
    if probability:
        return calibration(logits).astype(np.float32)
    if isinstance(calibration, Platt):
        return np.asarray(calibration.slope * logits + calibration.intercept, dtype=np.float32)
    return logits


def random_batches(network: Any, pairs: PairTokenizer, seed: int = 0) -> Iterator[TokenBatch]:
    """Pairs of random ids in the layout of the model: ragged ones, a single one, empty texts, full blocks."""
    random = np.random.default_rng(seed)
    longest = (pairs.config.query_length - 2, pairs.config.item_length - 1)
    for size, fixed in ((5, None), (1, (1, 1)), (2, (0, 0)), (3, longest), (32, None)):
        sides = []
        for most, length in zip(longest, fixed or (None, None), strict=True):
            lengths = random.integers(0, most + 1, size) if length is None else np.full(size, length)
            offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
            ids = random.integers(1, network.config.vocabulary_size, int(offsets[-1])).astype(np.int32)
            sides.append(TokenRows(ids, offsets, np.zeros(size, dtype=np.bool_)))
        rows = np.arange(size)
        yield pairs.assemble(sides[0], rows, sides[1], rows)


def graph_difference(
    graph: bytes, network: Any, pairs: PairTokenizer, calibration: Platt | Isotonic, probability: bool
) -> float:
    """The largest difference between scores of the graph and of torch. Raises ArtifactError above 1e-4."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    reference = TorchBackend(network, 1)
    steepness = max(1.0, abs(calibration.slope)) if isinstance(calibration, Platt) else 1.0
    limit = parity(network) if probability else parity(network) * steepness
    worst = 0.0
    for batch in random_batches(network, pairs, seed=1):
        wanted = score_of(reference.forward(batch), calibration, probability)
        found = session.run([PACKED_OUTPUT], packed_inputs(batch))[0]
        assert found.shape == (len(batch), 1), found.shape
        difference = np.abs(found[:, 0] - wanted)
        worst = max(worst, float(difference.max(initial=0.0)))
        if not (np.isfinite(difference).all() and worst <= limit):
            raise ArtifactError(
                f"the graph for Vespa differs from torch by {float(difference.max()):.2g} (at most {limit:.2g} is "
                "allowed), so nothing is written; call `pertinent serve` from the application"
            )
    return worst


def schema(pairs: PairTokenizer, rerank_count: int) -> str:
    """The schema ``items`` of Vespa: what a title's tokens are, and how the best hits are ranked again."""
    ids, special = pairs.config.length, (pairs.cls_id, pairs.sep_id)
    texts = f"{ids}, query(q_tokens), attribute(title_tokens)"
    own = f"customTokenInputIds({special[0]}, {special[1]}, {texts})"
    return f"""\
schema items {{
    document items {{
        field id type string {{
            indexing: summary | attribute
        }}
        field title type string {{
            indexing: index | summary
            index: enable-bm25
        }}
    }}

    # Token ids of the title, cut to what the model reads; 0 where it is shorter.
    field title_tokens type tensor<float>(d0[{pairs.config.item_length - 1}]) {{
        indexing: input title | embed tokenizer | attribute
    }}

    fieldset default {{
        fields: title
    }}

    rank-profile pairs {{
        inputs {{
            query(q_tokens) tensor<float>(d0[{pairs.config.query_length - 2}])
        }}
        onnx-model relevance {{
            file: models/relevance.onnx
            input input_ids: input_ids
            input attention_mask: attention_mask
            input token_type_ids: token_type_ids
            output {PACKED_OUTPUT}: {PACKED_OUTPUT}
        }}
        function input_ids() {{
            expression: {f"tokenInputIds({texts})" if special == BERT_IDS else own}
        }}
        function attention_mask() {{
            expression: tokenAttentionMask({texts})
        }}
        function token_type_ids() {{
            expression: tokenTypeIds({texts})
        }}
        first-phase {{
            expression: bm25(title)
        }}
    }}

    # The best hits of all content nodes together are ranked again.
    rank-profile relevance inherits pairs {{
        global-phase {{
            rerank-count: {rerank_count}
            expression: onnx(relevance){{d0:0,d1:0}}
        }}
    }}

    # Every content node ranks its own best hits again.
    rank-profile relevance_on_nodes inherits pairs {{
        second-phase {{
            rerank-count: {rerank_count}
            expression: onnx(relevance){{d0:0,d1:0}}
        }}
    }}
}}
"""


SERVICES = """\
<?xml version="1.0" encoding="utf-8" ?>
<services version="1.0">
    <container id="default" version="1.0">
        <component id="tokenizer" type="hugging-face-tokenizer">
            <model path="models/tokenizer.json"/>
            <special-tokens>false</special-tokens>
        </component>
        <document-api/>
        <search/>
    </container>
    <content id="items" version="1.0">
        <redundancy>1</redundancy>
        <documents>
            <document type="items" mode="index"/>
        </documents>
        <nodes>
            <node distribution-key="0" hostalias="node1"/>
        </nodes>
    </content>
</services>
"""
