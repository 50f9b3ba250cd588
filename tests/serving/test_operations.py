"""The metrics, the page about them, the alert rules and the dashboard name the same things."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from pertinent.engine.index import ItemIndex
from pertinent.engine.scorer import Scorer
from pertinent.serving.telemetry import Metrics

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
ALERTS = yaml.safe_load((ROOT / "deploy" / "alerts.yaml").read_text(encoding="utf-8"))
BOARD = json.loads((ROOT / "deploy" / "dashboard.json").read_text(encoding="utf-8"))
RULES = [rule for group in ALERTS["groups"] for rule in group["rules"]]
QUERIES = [target["expr"] for panel in BOARD["panels"] for target in panel["targets"]]
NAME = re.compile(r"\b(?:pertinent|process|python)_[a-z_]+\b")


@pytest.fixture(scope="module")
def told(tiny_scorer: Scorer, tiny_index: ItemIndex, start: Callable[..., Any]) -> dict[str, str]:
    """The kind of each metric of a server that has answered something, by name."""
    server = start(tiny_scorer, tiny_index)
    assert server.post("/v1/relevance", {"query": "usb", "rows": [0, 1]}).status_code == 200
    text = server.client.get("/metrics").text
    kinds = dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE))
    return {name: kind for name, kind in kinds.items() if not name.endswith("_created")}


def known(name: str, told: dict[str, str]) -> bool:
    return name in told or told.get(re.sub(r"_(bucket|sum|count)$", "", name)) == "histogram"


def test_the_page_has_a_row_for_every_metric_and_names_no_other(told: dict[str, str]) -> None:
    rows = set(NAME.findall(" ".join(re.findall(r"^\|(.*?)\|", PAGE, re.MULTILINE))))
    assert {name for name in told if name.startswith("pertinent_")} == {n for n in rows if n.startswith("pertinent_")}
    assert all(known(name, told) for name in NAME.findall(PAGE))


def test_alerts_and_dashboard_ask_for_metrics_that_are_there(told: dict[str, str]) -> None:
    assert RULES and QUERIES
    for query in [*(rule["expr"] for rule in RULES), *QUERIES]:
        assert (names := NAME.findall(query)) and all(known(name, told) for name in names), query


def test_every_alert_says_how_urgent_it_is_and_what_it_has_seen() -> None:
    assert len({rule["alert"] for rule in RULES}) == len(RULES)
    for rule in RULES:
        assert rule["labels"]["severity"] in ("page", "ticket") and rule["annotations"]["summary"] and rule["for"]


def test_the_dashboard_has_places_of_their_own_for_its_panels() -> None:
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in BOARD["panels"]]
    assert len(set(places)) == len({panel["id"] for panel in BOARD["panels"]}) == len(BOARD["panels"])
    variables = {variable["name"] for variable in BOARD["templating"]["list"]}
    assert set(re.findall(r"\$\{?(\w+)\}?", json.dumps(BOARD["panels"]))) <= variables | {"__rate_interval"}


@pytest.mark.skipif(shutil.which("promtool") is None, reason="needs promtool of Prometheus")
def test_prometheus_reads_all_queries(tmp_path: Path) -> None:
    filled = [query.replace("$__rate_interval", "5m").replace("$instance", ".*") for query in QUERIES]
    rules = [{"record": f"panel:{number}", "expr": query} for number, query in enumerate(filled)]
    (tmp_path / "board.yaml").write_text(yaml.safe_dump({"groups": [{"name": "board", "rules": rules}]}))
    for path in (ROOT / "deploy" / "alerts.yaml", tmp_path / "board.yaml"):
        done = subprocess.run(["promtool", "check", "rules", str(path)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def test_relevance_is_counted_in_tenths_by_model() -> None:
    metrics = Metrics()
    metrics.relevance("shop", np.array([0.0, 0.05, 0.1, 0.11, 0.95, 1.0], dtype=np.float32), 0.5)
    metrics.relevance("shop", np.array([0.7], dtype=np.float32), None)
    text = metrics.render().decode()
    for end, count in (("0.1", 3), ("0.2", 4), ("0.7", 5), ("1.0", 7), ("+Inf", 7)):
        assert f'pertinent_item_relevance_bucket{{le="{end}",model="shop"}} {count}.0' in text
    assert 'pertinent_items_above_threshold_total{model="shop"} 2.0' in text
    assert 'pertinent_item_relevance_count{model="shop"} 7.0' in text
