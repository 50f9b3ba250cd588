"""The samples in deploy/ say what the command and the server know."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from pertinent.cli import COMMANDS, variable
from pertinent.engine.native_backend import MODULE
from pertinent.serving.config import ServeConfig

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
VARIABLES = {variable(flag) for flag in COMMANDS["serve"].flags}


def kubernetes() -> dict[str, Any]:
    documents = list(yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text(encoding="utf-8")))
    return {document["kind"]: document for document in documents}


def test_every_variable_in_the_samples_stands_for_a_flag() -> None:
    without = {DEPLOY / name for name in ("Dockerfile.dockerignore", "alerts.yaml", "dashboard.json")}
    for path in set(DEPLOY.iterdir()) - without:
        named = set(re.findall(r"\bPERTINENT_[A-Z_]+", path.read_text(encoding="utf-8")))
        assert named and named <= VARIABLES, path.name


def test_probes_and_ports_are_those_of_the_server() -> None:
    found = kubernetes()
    pod = found["Deployment"]["spec"]["template"]
    container = pod["spec"]["containers"][0]
    assert container["ports"][0]["containerPort"] == ServeConfig().port
    assert {container[probe]["httpGet"]["path"] for probe in ("startupProbe", "readinessProbe")} == {"/readyz"}
    assert container["livenessProbe"]["httpGet"]["path"] == "/livez"
    assert found["Service"]["spec"]["selector"].items() <= pod["metadata"]["labels"].items()


def test_every_sample_waits_longer_than_the_server_drains() -> None:
    needed = ServeConfig().drain_delay + ServeConfig().drain_timeout
    unit = (DEPLOY / "pertinent.service").read_text(encoding="utf-8")
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))["services"]["pertinent"]
    waits = [
        kubernetes()["Deployment"]["spec"]["template"]["spec"]["terminationGracePeriodSeconds"],
        int(re.findall(r"TimeoutStopSec=(\d+)", unit)[0]),
        int(compose["stop_grace_period"].removesuffix("s")),
    ]
    assert min(waits) > needed


def test_no_sample_opens_the_port_without_keys() -> None:
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))["services"]["pertinent"]
    assert compose["ports"] == ["127.0.0.1:8080:8080"] and "PERTINENT_KEYS" in compose["environment"]
    assert "insecure" not in (DEPLOY / "kubernetes.yaml").read_text(encoding="utf-8").lower()


def test_the_image_is_built_with_a_compiler_and_serves_without_one() -> None:
    recipe = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
    _, build, serving = re.split(r"^FROM .*\n", recipe, flags=re.MULTILINE)
    assert build.index("apt-get install") < build.index("g++ ") < build.index("pip install")
    assert "apt-get" not in serving and "COPY --from=build" in serving
    assert f'RUN python -B -c "import {MODULE}"' in serving  # an image without the engine is not made


def test_the_build_gets_what_it_copies_and_no_more() -> None:
    recipe = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
    copied = {name for line in re.findall(r"^COPY (?!--from)(.*)", recipe, re.MULTILINE) for name in line.split()[:-1]}
    lines = (DEPLOY / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    assert copied == {line.removeprefix("!") for line in lines if line.startswith("!")} and "*" in lines
    for name in copied:
        assert (DEPLOY.parent / name).exists()


@pytest.mark.parametrize("version", ["1.28", "1.33"])
def test_the_manifests_are_what_kubernetes_reads(version: str) -> None:
    validator = pytest.importorskip("kubernetes_validate", reason="needs kubernetes-validate")
    documents = list(yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text(encoding="utf-8")))
    for document in documents:
        validator.validate(document, version, strict=True)
    broken = documents[0] | {"spec": {**documents[0]["spec"], "replica": 2}}
    with pytest.raises(validator.ValidationError):
        validator.validate(broken, version, strict=True)
