"""Requests that Schemathesis makes from the OpenAPI document, valid and not, find no error of the server."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest

schemathesis = pytest.importorskip("schemathesis", reason="needs schemathesis")

from hypothesis import HealthCheck, Phase, given, settings  # noqa: E402

from pertinent.engine.index import ItemIndex  # noqa: E402
from pertinent.engine.scorer import Scorer  # noqa: E402

# Of each operation; more by PERTINENT_SCHEMA_EXAMPLES=100 pytest tests/serving/test_schema_fuzz.py
EXAMPLES = int(os.environ.get("PERTINENT_SCHEMA_EXAMPLES", "4"))


@pytest.fixture(scope="module")
def server(tiny_scorer: Scorer, tiny_index: ItemIndex, start: Callable[..., Any]) -> Any:
    return start(tiny_scorer, tiny_index, access_log=False)


@pytest.mark.filterwarnings("ignore")
def test_no_request_of_the_schemas_makes_a_server_error(server: Any) -> None:
    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    found: list[tuple[str, int, str]] = []
    asked = 0

    def ask(case: Any) -> None:
        nonlocal asked
        reply = case.call(timeout=20)
        asked += 1
        if reply.status_code >= 500:
            found.append((f"{case.method} {case.path}", reply.status_code, reply.text[:300]))

    operations = [operation.ok() for operation in schema.get_all_operations()]
    for operation in operations:
        some = settings(
            max_examples=EXAMPLES if operation.method.upper() == "POST" else 1,
            deadline=None,
            database=None,
            derandomize=True,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )

        @some
        @given(operation.as_strategy())
        def run(case: Any) -> None:
            ask(case)

        run()
    assert len(operations) > 60 and asked > len(operations)
    assert found == []
