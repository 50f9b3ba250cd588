from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pertinent.artifact import Artifact, open_artifact
from pertinent.engine.backends import available_cores, open_backend
from pertinent.engine.native_backend import native_module
from pertinent.engine.onnx_backend import OnnxBackend
from pertinent.errors import ArtifactError, ConfigError


def test_the_default_is_native_where_it_was_built_then_onnx_where_there_is_a_graph(
    tiny_artifact: Artifact,
    tiny_network: Any,
    tiny_pairs: Any,
    artifact_maker: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    built = native_module() is not None
    assert open_backend(tiny_artifact).name == ("native" if built else "onnx")
    assert open_backend(tiny_artifact, threads=3).workers == 3
    monkeypatch.setattr("pertinent.engine.native_backend.native_module", lambda: None)
    with pytest.raises(ConfigError, match="was not built when pertinent was installed"):
        open_backend(tiny_artifact, "native")
    assert open_backend(tiny_artifact).name == "onnx"
    assert open_backend(tiny_artifact, threads=3).workers == 3
    bare = artifact_maker(tmp_path / "bare", tiny_network, tiny_pairs, graph=False)
    assert open_backend(bare).name == "torch"
    with pytest.raises(ArtifactError, match="run: pertinent export "):
        open_backend(bare, "onnx")


def test_wrong_names_and_threads_are_refused(tiny_artifact: Artifact) -> None:
    with pytest.raises(ConfigError, match="allowed: native, native-int8, torch, onnx, onnx-int8, cuda"):
        open_backend(tiny_artifact, "tensorrt")
    with pytest.raises(ConfigError, match="threads is 0"):
        open_backend(tiny_artifact, threads=0)
    with pytest.raises(ArtifactError, match="--int8"):
        open_backend(tiny_artifact, "onnx-int8")


def test_cores_follow_the_quota_of_the_container(tmp_path: Path) -> None:
    every = available_cores(tmp_path / "missing")
    quota = tmp_path / "cpu.max"
    for text, cores in (("max 100000", every), ("100000 100000", 1), ("50000 100000", 1), ("junk", every)):
        quota.write_text(text)
        assert available_cores(quota) == cores


@pytest.mark.parametrize(
    ("asked", "threads"), [("1", 1), ("1,4", 1), ("64", None), ("0", None), ("many", None), ("", None)]
)
def test_fewer_threads_may_be_asked_for_as_in_other_libraries(
    tiny_artifact: Artifact, monkeypatch: pytest.MonkeyPatch, asked: str, threads: int | None
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", asked)
    assert open_backend(tiny_artifact).workers == (threads or available_cores())
    assert open_backend(tiny_artifact, threads=3).workers == 3


def test_no_pairs_give_no_logits(tiny_artifact: Artifact, tiny_pairs: Any) -> None:
    backend = open_backend(tiny_artifact, "onnx", 1)
    assert isinstance(backend, OnnxBackend)
    logits = backend.forward(tiny_pairs.pair([], []))
    assert logits.shape == (0,)
    assert logits.dtype == np.float32


def test_scoring_needs_neither_torch_nor_onnx(tiny_artifact: Artifact) -> None:
    code = (
        "import sys\n"
        "for name in ('torch', 'onnx', 'transformers', 'pandas', 'pyarrow', 'sklearn', 'onnxscript'):\n"
        "    sys.modules[name] = None\n"
        "from pertinent import Scorer\n"
        f"print(len(Scorer.load({str(tiny_artifact.path)!r}).rank('tea', ['green tea', 'usb cable'])))\n"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("2\n", "")


def test_a_flipped_bit_is_refused_with_file_and_digest(
    tiny_network: Any, tiny_pairs: Any, artifact_maker: Any, tmp_path: Path
) -> None:
    from pertinent.engine.scorer import Scorer

    artifact = artifact_maker(tmp_path / "model", tiny_network, tiny_pairs, graph=False)
    path = artifact.path / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-3] ^= 4
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match=r"model\.safetensors: SHA-256"):
        Scorer.load(artifact.path)
    path.unlink()
    with pytest.raises(ArtifactError, match="missing"):
        Scorer.load(artifact.path)
    with pytest.raises(ArtifactError, match="did you mean"):
        open_artifact(tmp_path / "modle")
