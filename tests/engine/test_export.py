from __future__ import annotations

import copy
import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pertinent.artifact import Artifact, open_artifact, write_artifact
from pertinent.engine import export as export_module
from pertinent.engine.export import ExportConfig, export, ragged_batches, write_golden, write_graph
from pertinent.engine.gate import EVIDENCE, Fall, gate
from pertinent.engine.golden import golden_logits, read_golden
from pertinent.engine.native_backend import native_module, native_parts
from pertinent.engine.scorer import Scorer
from pertinent.errors import ArtifactError, ConfigError, DataError
from pertinent.lexicon.pairs import PairTokenizer
from pertinent.models.store import save_network
from pertinent.records import Judgment, Pair

TITLES = ["wireless earbuds", "usb cable", "tea pot green", "coffee mug for men", "screen protector", "water bottle 2"]
JUDGED = [
    Judgment(q, str(i), float(i % 3) / 2, title) for q in ("tea", "usb c", "mug") for i, title in enumerate(TITLES)
]
LENIENT = {"min_spearman": 0.5, "min_top_overlap": 0.5, "max_judged_loss": 1.0, "top": 6}


@pytest.fixture
def model(tiny_network: Any, tiny_pairs: PairTokenizer, tiny_artifact: Artifact, tmp_path: Path) -> Path:
    """A model folder with a graph and golden scores."""
    with write_artifact(tmp_path / "model", "model", {"seed": 1}, metrics={"auc": 0.5}) as aside:
        save_network(aside, tiny_network, tiny_pairs)
        (aside / "graph.onnx").write_bytes(tiny_artifact.file("graph.onnx").read_bytes())
        write_golden(aside, [Pair("tea", title) for title in TITLES], tiny_network, tiny_pairs)
    return tmp_path / "model"


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch, tiny_artifact: Artifact, tiny_network: Any) -> None:
    """The exporter's slow part replaced by the graph it gave before, weights inside."""
    import onnx

    from pertinent.engine.onnx_backend import read_weights

    def trace(network: Any, part: Any) -> Any:
        graph = onnx.load(tiny_artifact.file("graph.onnx"), load_external_data=False)
        shapes = {t.name: tuple(t.dims) for t in graph.graph.initializer if t.data_location == t.EXTERNAL}
        weights = read_weights(tiny_artifact.file("model.safetensors"), shapes)
        for tensor in graph.graph.initializer:
            if tensor.name in weights:
                tensor.CopyFrom(onnx.numpy_helper.from_array(weights[tensor.name], tensor.name))
        return graph

    monkeypatch.setattr(export_module, "_trace", trace)


def test_export_keeps_everything_else_and_adds_int8_where_it_is_good(model: Path, traced: None, tmp_path: Path) -> None:
    before = open_artifact(model)
    made = export(ExportConfig(model=str(model), out=str(tmp_path / "out"), **LENIENT), JUDGED)
    assert made.config == {"seed": 1}
    assert made.metrics["auc"] == 0.5
    assert made.metrics["onnx_difference"] < 1e-4
    assert made.metrics["int8"]["passed"]
    assert made.metrics["int8"]["spearman"] > 0.9
    assert made.json("int8_gate.json") == made.metrics["int8"]
    assert made.manifest["inputs"]["model"] == before.version
    for name in ("model.safetensors", "tokenizer.json", "model.json"):
        assert made.file(name).read_bytes() == before.file(name).read_bytes()
    # The golden file knows the scores of both, so both load.
    built = ["native", "native-int8"] if native_module() is not None else []
    for backend in ("torch", "onnx", "onnx-int8", *built):
        Scorer.load(made.path, backend)
    assert set(made.json("golden.json")["logits"]) == {"float32", "onnx-int8", *built[1:]}
    if built:
        assert made.json("native_int8.json") == made.metrics["native_int8"]
        assert made.metrics["native_int8"]["passed"] and made.metrics["native_int8"]["pairs"] == 18
        assert made.metrics["native_int8"]["cheap"] == native_parts(made)
    assert made.manifest["files"]["graph.int8.onnx"]["bytes"] < 60_000


def test_int8_that_ranks_otherwise_is_not_kept(model: Path, traced: None, caplog: pytest.LogCaptureFixture) -> None:
    limits = {"min_spearman": 1.0, "min_top_overlap": 1.0, "max_judged_loss": 0.0, "top": 5}
    with caplog.at_level(logging.WARNING):
        made = export(ExportConfig(model=str(model), **{**limits, "pairs": 15}), JUDGED)
    gate = made.metrics["int8"]
    assert made.path == model
    assert gate["pairs"] == 15
    if gate["passed"]:  # a tiny model may round without a trace
        pytest.skip("int8 ranks exactly as float32 here")
    assert not made.has("graph.int8.onnx")
    assert "int8 is not kept" in caplog.text
    Scorer.load(model)


def test_what_libraries_log_does_not_change_how_we_log(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.root, "handlers", [])
    with export_module._quiet():
        logging.warning("a library's own matter")  # adds a handler with a prefix where there is none
    assert logging.root.handlers == []


def test_every_limit_of_the_gate_has_its_reason() -> None:
    judged = [Judgment("q", str(i), i / 17, "t") for i in range(18)]
    scores = np.arange(18, dtype=np.float32)
    fell = {"auc": Fall(0.1, 0.02, 0.2), "ndcg@10": Fall(0.1, -0.02, 0.2)}
    found = gate(scores, scores[::-1], judged, ExportConfig(top=5), lambda *_: fell)
    assert not found.passed
    assert [reason.split(" ")[0] for reason in found.reasons] == ["rank", "rank", "0%", "auc"]
    assert "between 0.0200 and 0.2000: more than chance" in found.reasons[-1]
    assert (found.spearman, found.top_overlap, found.judged_loss) == (-1.0, 0.0, 2.0)
    same = gate(scores, scores, judged, ExportConfig(top=5), lambda *_: {})
    assert same.passed and same.reasons == []


def test_parts_that_do_harm_go_back_to_float32(
    tiny_artifact: Artifact, tiny_pairs: PairTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("graph.onnx", "model.safetensors"):
        (tmp_path / name).write_bytes(tiny_artifact.file(name).read_bytes())
    parts = export_module.int8_parts(tmp_path)
    assert parts == [f"layer {n} {part}" for n in (0, 1) for part in ("attention", "feed-forward")]
    limits = ExportConfig(**LENIENT)
    monkeypatch.setattr("pertinent.engine.gate.gate", lambda exact, cheap, *rest: judge(exact, cheap, *rest))

    def judge(exact: Any, cheap: Any, *rest: Any) -> Any:
        """Passes once the worst two parts are float32: then fewer than four products of layer 1 are in 8 bits."""
        found = gate(exact, cheap, *rest)
        count = (tmp_path / "graph.int8.onnx").read_bytes().count(b"MatMulInteger")
        return replace(found, passed=count < whole, reasons=[] if count < whole else ["too harmful"])

    export_module.write_int8_graph(tmp_path)
    whole = (tmp_path / "graph.int8.onnx").read_bytes().count(b"MatMulInteger")
    found = export_module.choose_int8(tmp_path, tiny_pairs, JUDGED, limits)
    assert found.passed and len(found.exact) == 1
    assert set(found.cheap) | set(found.exact) == set(parts)
    assert (tmp_path / "graph.int8.onnx").read_bytes().count(b"MatMulInteger") < whole
    assert found.plain()["exact"] == list(found.exact)
    whole = 0  # nothing passes
    found = export_module.choose_int8(tmp_path, tiny_pairs, JUDGED, limits)
    assert not found.passed and found.cheap == () and set(found.exact) == set(parts)
    assert not (tmp_path / "graph.int8.onnx").exists()


@pytest.mark.parametrize(
    ("judged", "top", "words"),
    [
        (JUDGED, 6, []),
        (JUDGED, 7, ["18 judged pairs are too few to compare the top 7, at least 21 are wanted"]),
        (JUDGED[:1], 1, ["1 judged pairs are too few", "all grades are equal", "rank correlation with float32 is nan"]),
        ([replace(j, grade=1.0) for j in JUDGED], 6, ["all grades are equal, so they tell nothing"]),
        ([replace(j, split="train" if i else "test") for i, j in enumerate(JUDGED)], 1, ["1 judged pairs", "all", ""]),
        ([*JUDGED, *(replace(j, split="train") for j in JUDGED)], 6, []),
        ([*JUDGED, *(replace(j, split="train") for j in JUDGED)], 7, ["18 judged pairs are too few"]),
    ],
)
def test_too_little_evidence_is_no_pass(
    tiny_artifact: Artifact, tiny_pairs: PairTokenizer, tmp_path: Path, judged: Any, top: int, words: list[str]
) -> None:
    for name in ("graph.onnx", "model.safetensors"):
        (tmp_path / name).write_bytes(tiny_artifact.file(name).read_bytes())
    found = export_module.choose_int8(tmp_path, tiny_pairs, judged, ExportConfig(**{**LENIENT, "top": top}))
    assert found.passed == (not words)
    assert len(found.reasons) == len(words)
    assert all(part in reason for part, reason in zip(words, found.reasons, strict=True))
    assert (tmp_path / "graph.int8.onnx").exists() == found.passed
    json.dumps(found.plain(), allow_nan=False)


def test_training_pairs_alone_are_refused(model: Path) -> None:
    with pytest.raises(DataError, match="all judgments are of the split 'train'; give judgments of 'valid' or 'test'"):
        export(ExportConfig(model=str(model)), [replace(j, split="train") for j in JUDGED])


def test_the_default_needs_300_pairs() -> None:
    assert EVIDENCE * ExportConfig().top == 300
    assert ExportConfig().pairs >= 300


def test_what_an_earlier_export_measured_is_dropped(model: Path, traced: None) -> None:
    assert "int8" in export(ExportConfig(model=str(model), **LENIENT), JUDGED).metrics
    made = export(ExportConfig(model=str(model), int8=False), [])
    assert "int8" not in made.metrics and not made.has("int8_gate.json") and not made.has("graph.int8.onnx")
    assert made.metrics["auc"] == 0.5


def test_golden_scores_of_int8_do_not_depend_on_threads(model: Path, traced: None, tmp_path: Path) -> None:
    artifact = open_artifact(model)
    network, pairs = export_module.load_network(artifact)
    words = " ".join(TITLES).split()
    mixed = [
        Pair("tea pot", " ".join(words[i * j % len(words)] for j in range(1, 3 + min(3 * i, 40)))) for i in range(24)
    ]
    with write_artifact(tmp_path / "made", "model", {}) as folder:
        for name in ("graph.onnx", "model.json", "model.safetensors", "tokenizer.json"):
            shutil.copyfile(artifact.file(name), folder / name)
        export_module.write_int8_graph(folder)
        write_golden(folder, mixed, network, pairs)
    # Loading checks the golden scores. In batches they differ, so this would not be enough.
    one, two = (Scorer.load(tmp_path / "made", "onnx-int8", threads=threads) for threads in (1, 2))
    assert np.abs(one.pair_logits(mixed) - two.pair_logits(mixed)).max() > 0
    assert golden_logits(one.pair_logits, mixed).tolist() == golden_logits(two.pair_logits, mixed).tolist()
    _, wanted = read_golden(tmp_path / "made" / "golden.json", "onnx-int8")
    np.testing.assert_allclose(golden_logits(two.pair_logits, mixed), wanted, atol=1e-6)


def test_without_int8_no_judgments_are_needed(model: Path, traced: None) -> None:
    made = export(ExportConfig(model=str(model), int8=False), [])
    assert not made.has("graph.int8.onnx")
    assert "int8" not in made.metrics
    with pytest.raises(DataError, match="give judgments, or set int8=false"):
        export(ExportConfig(model=str(model)), [])


def test_a_graph_that_differs_from_torch_is_not_kept(
    tiny_network: Any, tiny_pairs: PairTokenizer, traced: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    changed = copy.deepcopy(tiny_network)
    with torch.no_grad():
        changed.pooler.bias.add_(0.05)
    save_network(tmp_path, tiny_network, tiny_pairs)
    monkeypatch.setattr(export_module, "_as_saved", lambda network, folder: changed)
    with pytest.raises(ArtifactError, match=r"differs from torch by .* not kept"):
        write_graph(tiny_network, tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.json", "model.safetensors", "tokenizer.json"]


def test_the_network_is_saved_before_its_graph(tiny_network: Any, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="save the network before its graph"):
        write_graph(tiny_network, tmp_path)


def test_write_graph_leaves_network_and_logging_as_they_were(
    tiny_network: Any, tiny_pairs: PairTokenizer, traced: None, tmp_path: Path
) -> None:
    level = logging.getLogger().level
    state = copy.deepcopy(tiny_network.state_dict())
    save_network(tmp_path, tiny_network, tiny_pairs)
    assert write_graph(tiny_network, tmp_path) < 1e-4
    assert logging.getLogger().level == level
    assert all(torch.equal(value, state[key]) for key, value in tiny_network.state_dict().items())


def test_ragged_batches_have_padding_in_both_blocks_and_real_first_columns(tiny_network: Any) -> None:
    for batch in ragged_batches(tiny_network.config):
        assert batch.mask[:, 0].all()
        assert batch.mask[:, batch.query_length].all()
        assert batch.position_ids.max() < tiny_network.config.max_positions
    first = next(ragged_batches(tiny_network.config))
    assert not first.mask.all()


def test_config_typos_are_named() -> None:
    with pytest.raises(ConfigError, match="did you mean 'min_spearman'"):
        ExportConfig.build({"min_spearmen": 0.9})


def test_a_steep_calibration_in_the_head_is_no_difference_to_torch(
    tiny_network: Any, tiny_pairs: PairTokenizer, tmp_path: Path
) -> None:
    steep = copy.deepcopy(tiny_network)
    with torch.no_grad():
        steep.classifier.weight *= 3_000
    assert export_module.parity(tiny_network) == export_module.PARITY
    assert 1e-4 < export_module.parity(steep) < 0.1
    save_network(tmp_path, steep, tiny_pairs)
    assert write_graph(steep, tmp_path) < export_module.parity(steep)
    assert (tmp_path / "graph.onnx").is_file()
