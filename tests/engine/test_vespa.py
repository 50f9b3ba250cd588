"""A model inside Vespa scores as it does here: texts are tokenized, put together and scored by Vespa's own rules.

The rules are those of Vespa's sources: ``TokenTransformer`` for the token functions, ``Embed`` for tensors of token
ids, ``OnnxModelInfo`` for names and sizes.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from tokenizers import Tokenizer

from pertinent.artifact import Artifact, open_artifact, write_artifact, write_json
from pertinent.cli import main
from pertinent.data.samples import read_sample
from pertinent.engine import vespa
from pertinent.engine.export import ExportConfig
from pertinent.engine.scorer import Scorer
from pertinent.engine.vespa import PACKED_INPUTS, export_vespa, packed_inputs, random_batches
from pertinent.errors import ArtifactError, ConfigError
from pertinent.lexicon.pairs import PairConfig, PairTokenizer
from pertinent.models.store import save_network
from pertinent.probability import CALIBRATION_FILE, Isotonic, Platt

PAIRS = [
    ("wireless earbuds", "Bluetooth headphones, noise cancelling (black)"),
    ("", "usb cable"),
    ("usb cable", ""),
    ("", ""),
    ("[SEP] mug", "[CLS] typed [SEP] control [PAD] tokens"),
    ("größe ＭＵＧ", "Café\u200b mug ½ 日本語 い"),
    ("men shoes " * 20, "red and white shoes, pack of 2 " * 20),
]


class Called:
    """What would be traced, run by torch as the exporter sees it; in the place of a session of ONNX Runtime."""

    def __init__(self, call: Callable[..., Any]) -> None:
        self.call = call

    def run(self, outputs: Any, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
        with pytest.MonkeyPatch.context() as patch, torch.inference_mode():
            patch.setattr(torch.compiler, "is_exporting", lambda: True)
            return [self.call(*(torch.from_numpy(feeds[name]) for name in PACKED_INPUTS)).numpy()]


class Package:
    """An application package, read and run as Vespa does it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "application"
        self.schema = (self.folder / "schemas" / "items.sd").read_text(encoding="utf-8")
        services = ElementTree.fromstring((self.folder / "services.xml").read_text(encoding="utf-8").encode())
        (component,) = services.findall("container/component")
        assert component.attrib == {"id": "tokenizer", "type": "hugging-face-tokenizer"}
        assert {child.tag for child in component} <= {"model", "special-tokens", "max-length", "truncation"}
        (model,) = component.findall("model")
        self.tokenizer = Tokenizer.from_file(str(self.folder / model.attrib["path"]))
        self.special = component.findtext("special-tokens") == "true"
        assert [each.attrib for each in services.findall("content/documents/document")] == [
            {"type": "items", "mode": "index"}
        ]
        block = re.search(r"onnx-model relevance \{(.*?)\}", self.schema, re.DOTALL)
        assert block is not None
        (file,) = re.findall(r"file: (\S+)", block[1])
        self.inputs = dict(re.findall(r"input (\w+): (\w+)", block[1]))
        self.outputs = dict(re.findall(r"output (\w+): (\w+)", block[1]))
        self.session = onnxruntime.InferenceSession(self.folder / file, providers=["CPUExecutionProvider"])
        self.file = self.folder / file

    def size(self, name: str) -> int:
        (size,) = re.findall(re.escape(name) + r" (?:type )?tensor<float>\(d0\[(\d+)\]\)", self.schema)
        return int(size)

    def embed(self, text: str, size: int) -> np.ndarray:
        """``embed`` into a tensor: the first token ids, then zeros."""
        ids = self.tokenizer.encode(text, add_special_tokens=self.special).ids[:size]
        return np.array([*ids, *([0] * (size - len(ids)))], dtype=np.float32)

    def function(self, name: str, query: np.ndarray, title: np.ndarray) -> np.ndarray:
        """The value of a function of the schema, ``tensor<float>(d0[1],d1[length])``."""
        (expression,) = re.findall(rf"function {name}\(\) \{{\s*expression: (.*?)\s*\}}", self.schema, re.DOTALL)
        called = re.fullmatch(r"(\w+)\(([^)]*?), query\(q_tokens\), attribute\(title_tokens\)\)", expression)
        assert called is not None, expression
        numbers = [int(number) for number in called[2].split(",")]
        cls, sep = (101, 102) if called[1] != "customTokenInputIds" else numbers[:2]
        length = numbers[-1]
        assert len(numbers) == (3 if called[1] == "customTokenInputIds" else 1)
        q, t = (int((tokens > 0).sum()) for tokens in (query, title))
        real = min(1 + q + 1 + t + 1, length)
        found = np.zeros((1, length), dtype=np.float32)
        if called[1].endswith("okenInputIds"):
            both = [cls, *query[:q], sep, *title[:t], sep]
            found[0, :real] = both[:real]
        elif called[1] == "tokenTypeIds":
            found[0, q + 2 : real] = 1
        else:
            assert called[1] == "tokenAttentionMask"
            found[0, :real] = 1
        return found

    def score(self, query: str, title: str) -> float:
        """``onnx(relevance){d0:0,d1:0}``: one pair at a time, cells cast to the type of the input."""
        q, t = self.embed(query, self.size("query(q_tokens)")), self.embed(title, self.size("title_tokens"))
        feeds = {name: self.function(source, q, t).astype(np.int64) for name, source in self.inputs.items()}
        value = self.session.run(None, feeds)[0]
        assert value.shape == (1, 1)
        return float(value[0, 0])


def scores(package: Package, pairs: list[tuple[str, str]]) -> np.ndarray:
    return np.array([package.score(*pair) for pair in pairs])


@pytest.fixture(scope="module")
def exported(tiny_artifact: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model as an application. Shared: never write into it."""
    config = ExportConfig(format="vespa", model=str(tiny_artifact.path), out=str(tmp_path_factory.mktemp("v") / "out"))
    return export_vespa(config).path


@pytest.fixture
def made(tmp_path: Path) -> Callable[..., Path]:
    """An application made from a network, its tokenizer and a calibration."""

    def make(network: Any, pairs: PairTokenizer, calibration: Any = None, **settings: Any) -> Path:
        with write_artifact(tmp_path / "model", "model", {}) as folder:
            save_network(folder, network, pairs)
            if calibration is not None:
                write_json(folder / CALIBRATION_FILE, calibration.plain())
        config = ExportConfig(format="vespa", model=str(tmp_path / "model"), out=str(tmp_path / "out"), **settings)
        return export_vespa(config).path

    return make


@pytest.fixture
def untraced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exports without tracing, which takes ten seconds a network."""
    calls: list[Callable[..., Any]] = []

    def packed_graph(*given: Any) -> bytes:
        calls.append(vespa._packed_call(*given))
        return b"not traced"

    monkeypatch.setattr(vespa, "packed_graph", packed_graph)
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda *_, **__: Called(calls[-1]))


def test_log_odds_in_vespa_are_those_of_the_model(exported: Path, tiny_artifact: Artifact) -> None:
    found, wanted = scores(Package(exported), PAIRS), Scorer.load(tiny_artifact.path).pair_logits(PAIRS)
    assert np.std(wanted) > 1e-2
    np.testing.assert_allclose(found, wanted, atol=1e-4)
    assert open_artifact(exported, "vespa").metrics["onnx_difference"] < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("name", ["shipped", "shipped-late"])
def test_shipped_models_score_real_pairs_in_vespa_as_here(name: str, tmp_path: Path) -> None:
    items, judgments = read_sample("esci")
    titles = {item.item_id: item.title for item in items}
    pairs = [(judgment.query, titles[judgment.item_id]) for judgment in judgments[:: len(judgments) // 200]]
    assert len(pairs) >= 200
    assert main(["export", name, "--format", "vespa", "--probability", "--out", str(tmp_path / "out")]) == 0
    found, wanted = scores(Package(tmp_path / "out"), pairs), Scorer.load(name, "torch").score_pairs(pairs)
    assert np.std(wanted) > 0.1
    np.testing.assert_allclose(found, wanted, atol=1e-4)


def test_the_graph_is_one_file_with_the_names_and_sizes_that_vespa_binds(exported: Path) -> None:
    package = Package(exported)
    model = onnx.load(package.file, load_external_data=False)
    graph = model.graph
    assert package.inputs == {name: name for name in PACKED_INPUTS}
    assert [each.name for each in graph.input] == list(PACKED_INPUTS)
    assert [each.name for each in graph.output] == ["score"] == list(package.outputs)
    assert all(tensor.data_location != onnx.TensorProto.EXTERNAL for tensor in graph.initializer)
    for value in graph.input:
        assert value.type.tensor_type.elem_type == onnx.TensorProto.INT64
        assert [each.dim_param for each in value.type.tensor_type.shape.dim] == ["batch", "length"]
    (output,) = graph.output
    assert output.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    rows, columns = output.type.tensor_type.shape.dim
    assert (rows.dim_param, columns.dim_value) == ("batch", 1)
    onnx.checker.check_model(model)
    assert (model.ir_version, model.opset_import[0].version) <= (10, 20)
    held = {path.relative_to(exported).as_posix() for path in exported.rglob("*") if path.is_file()}
    application = {"models/relevance.onnx", "models/tokenizer.json", "schemas/items.sd", "services.xml"}
    assert held == {"manifest.json", *(f"application/{name}" for name in application)}


def test_batch_and_length_are_free(exported: Path, tiny_network: Any, tiny_pairs: PairTokenizer) -> None:
    session = Package(exported).session
    for batch in random_batches(tiny_network, tiny_pairs):
        feeds = packed_inputs(batch)
        together = session.run(None, feeds)[0]
        assert together.shape == (len(batch), 1)
        for row in range(len(batch)):
            length = int(feeds["attention_mask"][row].sum())
            alone = session.run(None, {name: value[row : row + 1, :length] for name, value in feeds.items()})[0]
            np.testing.assert_allclose(alone[0], together[row], atol=1e-5)


def test_more_tokens_than_a_model_reads_give_a_score_too(exported: Path) -> None:
    ones = np.ones((1, 300), dtype=np.int64)
    feeds = {"input_ids": ones * 7, "attention_mask": ones, "token_type_ids": ones}
    assert np.isfinite(Package(exported).session.run(None, feeds)[0]).all()


@pytest.mark.usefixtures("untraced")
@pytest.mark.parametrize("positions", ["block", "running"])
@pytest.mark.parametrize("late", [{}, {"join_layer": 1}, {"one_way": True}])
def test_every_layout_and_join_scores_the_same(
    made: Callable[..., Path], tmp_path: Path, network_maker: Any, tiny_tokenizer: Tokenizer, positions: Any, late: Any
) -> None:
    pairs = PairTokenizer(tiny_tokenizer, PairConfig(query_length=12, item_length=30, positions=positions))
    package = Package(made(network_maker("ei_src", pairs.vocabulary_size, **late), pairs))
    assert (package.size("query(q_tokens)"), package.size("title_tokens")) == (10, 29)
    wanted = Scorer.load(tmp_path / "model", "torch").pair_logits(PAIRS)
    np.testing.assert_allclose(scores(package, PAIRS), wanted, atol=1e-4)


@pytest.mark.usefixtures("untraced")
@pytest.mark.parametrize("name", ["barl_ase", "bert2dnn", "dssm", "interactor", "repr_bert", "sbert"])
def test_other_networks_score_the_same(
    name: str, made: Callable[..., Path], tmp_path: Path, network_maker: Any, tiny_pairs: PairTokenizer
) -> None:
    package = Package(made(network_maker(name, tiny_pairs.vocabulary_size), tiny_pairs))
    wanted = Scorer.load(tmp_path / "model", "torch").pair_logits(PAIRS)
    np.testing.assert_allclose(scores(package, PAIRS), wanted, atol=1e-4)


ISOTONIC = Isotonic((-3.0, -0.5, -0.5, 0.0, 2.0), (0.05, 0.1, 0.4, 0.5, 0.9), 0.1, Platt(1.5, 0.2))


@pytest.mark.usefixtures("untraced")
@pytest.mark.parametrize("calibration", [None, Platt(1.7, -0.6), ISOTONIC])
def test_with_probability_the_score_is_the_calibrated_one(
    made: Callable[..., Path], tmp_path: Path, tiny_network: Any, tiny_pairs: PairTokenizer, calibration: Any
) -> None:
    package = Package(made(tiny_network, tiny_pairs, calibration, probability=True))
    wanted = Scorer.load(tmp_path / "model", "torch").score_pairs(PAIRS)
    np.testing.assert_allclose(scores(package, PAIRS), wanted, atol=1e-4)


@pytest.mark.usefixtures("untraced")
@pytest.mark.parametrize("calibration", [Platt(1.7, -0.6), ISOTONIC])
def test_without_probability_the_order_is_the_same_and_a_platt_fit_is_inside(
    made: Callable[..., Path], tmp_path: Path, tiny_network: Any, tiny_pairs: PairTokenizer, calibration: Any
) -> None:
    found = scores(Package(made(tiny_network, tiny_pairs, calibration)), PAIRS)
    scorer = Scorer.load(tmp_path / "model", "torch")
    assert np.argsort(found).tolist() == np.argsort(scorer.score_pairs(PAIRS)).tolist()
    if isinstance(calibration, Platt):
        np.testing.assert_allclose(1 / (1 + np.exp(-found)), scorer.score_pairs(PAIRS), atol=1e-4)
    else:
        np.testing.assert_allclose(found, scorer.pair_logits(PAIRS), atol=1e-4)


@pytest.mark.slow
def test_towers_and_isotonic_curves_survive_the_tracing(
    made: Callable[..., Path], tmp_path: Path, network_maker: Any, tiny_tokenizer: Tokenizer
) -> None:
    pairs = PairTokenizer(tiny_tokenizer, PairConfig(positions="running"))
    network = network_maker("sbert", pairs.vocabulary_size)
    package = Package(made(network, pairs, ISOTONIC, probability=True))
    wanted = Scorer.load(tmp_path / "model", "torch").score_pairs(PAIRS)
    np.testing.assert_allclose(scores(package, PAIRS), wanted, atol=1e-4)


@pytest.mark.usefixtures("untraced")
def test_both_profiles_rank_so_many_hits_again(
    made: Callable[..., Path], tiny_network: Any, tiny_pairs: PairTokenizer
) -> None:
    schema = Package(made(tiny_network, tiny_pairs, rerank_count=250)).schema
    for name, phase in (("relevance", "global-phase"), ("relevance_on_nodes", "second-phase")):
        profile = schema.split(f"rank-profile {name} inherits pairs {{")[1].split("rank-profile")[0]
        assert re.search(phase + r" \{\s*rerank-count: 250\s*expression: onnx\(relevance\)\{d0:0,d1:0\}\s*\}", profile)
    assert schema.count("{") == schema.count("}")
    assert "customTokenInputIds(2, 3, 52, query(q_tokens), attribute(title_tokens))" in schema
    assert "rerank-count: 100\n" in vespa.schema(tiny_pairs, ExportConfig().rerank_count)


@pytest.mark.usefixtures("untraced")
def test_term_classes_are_refused_where_texts_have_some(
    made: Callable[..., Path], tmp_path: Path, network_maker: Any, tiny_tokenizer: Tokenizer
) -> None:
    from pertinent.lexicon.tagger import Tagger

    network = network_maker("ei_src", tiny_tokenizer.get_vocab_size(), term_classes=True)
    with pytest.raises(ArtifactError, match=r"reads term classes, which Vespa cannot find .* `term_classes: false`"):
        made(network, PairTokenizer(tiny_tokenizer, PairConfig(), Tagger.shipped()))
    assert not (tmp_path / "out").exists()
    plain = PairTokenizer(tiny_tokenizer, PairConfig())
    package = Package(made(network, plain))  # without a tagger all words have class 0, here and there
    np.testing.assert_allclose(scores(package, PAIRS), Scorer.load(tmp_path / "model").pair_logits(PAIRS), atol=1e-4)


@pytest.mark.usefixtures("untraced")
def test_a_tokenizer_that_would_cut_otherwise_is_refused(
    made: Callable[..., Path], tmp_path: Path, tiny_network: Any, tiny_tokenizer: Tokenizer
) -> None:
    from tokenizers import pre_tokenizers

    words = Tokenizer.from_str(tiny_tokenizer.to_str())
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.normalizer = None
    with pytest.raises(ArtifactError, match=r"would cut .* otherwise in Vespa"):
        made(tiny_network, PairTokenizer(words, PairConfig()))
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("untraced")
def test_a_tokenizer_whose_token_0_is_a_word_is_refused(
    made: Callable[..., Path], network_maker: Any, tiny_tokenizer: Tokenizer
) -> None:
    import json

    settings = json.loads(tiny_tokenizer.to_str())
    words = settings["model"]["vocab"]
    words["[PAD]"], words["[UNK]"] = words["[UNK]"], words["[PAD]"]
    for token in settings["added_tokens"]:
        token["id"] = words[token["content"]]
    pairs = PairTokenizer(Tokenizer.from_str(json.dumps(settings)), PairConfig())
    with pytest.raises(ArtifactError, match=r"\[PAD\] is token 1, and Vespa takes token 0 for the end"):
        made(network_maker("ei_src", pairs.vocabulary_size), pairs)


@pytest.mark.usefixtures("untraced")
def test_a_graph_that_differs_is_not_written(
    made: Callable[..., Path], tmp_path: Path, tiny_network: Any, tiny_pairs: PairTokenizer, monkeypatch: Any
) -> None:
    monkeypatch.setattr(vespa, "score_of", lambda logits, *_: logits + 0.01)
    with pytest.raises(ArtifactError, match=r"differs from torch by 0.01 \(at most 0.0001 is allowed\)"):
        made(tiny_network, tiny_pairs)
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_written_is_said_before_the_work(
    tiny_artifact: Artifact, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = str(tiny_artifact.path)
    assert main(["export", model, "--format", "vespa"]) == 2
    assert "out: is required" in capsys.readouterr().err
    assert main(["export", model, "--format", "vespa", "--out", model]) == 2
    assert "not replaced: choose another folder" in capsys.readouterr().err
    assert main(["export", model, "--no-int8", "--probability", "--out", str(tmp_path / "x")]) == 2
    assert "probability: only for format: vespa; set that, or leave this out" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="features: only for format: solr or opensearch"):
        ExportConfig.build({"format": "vespa", "features": "logged.csv"})
