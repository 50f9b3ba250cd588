"""Requests and answers of docs/server-api.md are those of the server."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from pertinent.serving.candidates import CandidatesBody, CandidatesReply
from pertinent.serving.native import RelevanceBody, RelevanceReply, SpokenBehavior
from pertinent.serving.wire import (
    DIALECTS,
    ROUTES,
    Answer,
    WireError,
    error_body,
    error_status,
    find_route,
    nim_health,
    parse,
    rank_order,
    render_models,
)

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "server-api.md").read_text(encoding="utf-8")
PAIRS = re.findall(r"<!-- request: (\S+) -->\n```json\n(.*?)```\n\n<!-- answer -->\n```json\n(.*?)```", PAGE, re.DOTALL)
OWN = {
    kind: dict(re.findall(rf"<!-- own {kind}: (\S+) -->\n```json\n(.*?)```", PAGE, re.DOTALL))
    for kind in ("request", "answer")
}
OWN_TYPES: dict[str, tuple[Any, Any]] = {
    "/v1/relevance": (RelevanceBody, RelevanceReply),
    "/v1/candidates": (CandidatesBody, CandidatesReply),
}
ERRORS = re.findall(r"<!-- error: (\S+) (\d+) -->\n```json\n(.*?)```", PAGE, re.DOTALL)
# What is wrong with the request that gets each of the errors shown.
WRONG: dict[str, dict[str, Any]] = {
    "/v2/rerank": {"query": "a", "documents": ["b"], "top_n": -1},
    "/tei/rerank": {"query": "a", "texts": []},
    "/vllm/rerank": {"query": "a", "documents": []},
    "/infinity/rerank": {"documents": ["b"]},
}
SHOWN = {"Trail shoe, men": (0.9731, 3.51), "Ode Trail shoe, men": (0.9731, 3.51), "Garden hose 20 m": (0.0042, -5.47)}


def rounded(value: Any) -> Any:
    """A reply with floats as short as the page shows them, still floats."""
    if isinstance(value, float):
        return round(value, 4)
    if isinstance(value, list):
        return [rounded(each) for each in value]
    return {name: rounded(each) for name, each in value.items()} if isinstance(value, dict) else value


@pytest.mark.parametrize(("path", "request_text", "answer_text"), PAIRS, ids=[pair[0] for pair in PAIRS])
def test_each_request_gets_the_answer_below_it(path: str, request_text: str, answer_text: str) -> None:
    route = find_route("POST", path)
    assert route is not None
    request = parse(route, request_text.encode(), path)
    scores, logits = (np.array(column, dtype=np.float32) for column in zip(*map(SHOWN.__getitem__, request.documents)))  # noqa: B905
    answer = Answer(
        scores=scores,
        logits=logits,
        order=rank_order(scores, request.top),
        tokens=24,
        request_id="0192f0c4",
        model="shop-small",
        created=1795000000,
    )
    reply = json.loads(DIALECTS[request.dialect].render(request, answer))
    assert json.dumps(rounded(reply)) == json.dumps(json.loads(answer_text))


@pytest.mark.parametrize("path", OWN_TYPES)
def test_its_own_routes_take_and_answer_what_is_shown(path: str) -> None:
    body, reply = OWN_TYPES[path]
    assert msgspec.json.decode(OWN["request"][path], type=body)  # any field that there is not is an error
    shown = json.loads(OWN["answer"][path])
    # A field that there is not would be lost here, and one that is left out is an error.
    assert json.loads(msgspec.json.encode(msgspec.json.decode(OWN["answer"][path], type=reply))) == shown
    told = set(re.findall(r"`(\w+)`", PAGE))
    if path == "/v1/relevance":
        spoken = shown["items"][0]["behavior"]
        assert {field.name for field in msgspec.structs.fields(SpokenBehavior)} == set(spoken) <= told
        assert len(shown["ids"]) == len(shown["scorers"]) == shown["scored"] == len(shown["items"])


@pytest.mark.parametrize(("path", "status", "text"), ERRORS, ids=[error[0] for error in ERRORS])
def test_each_error_is_the_one_shown(path: str, status: str, text: str) -> None:
    route = find_route("POST", path)
    assert route is not None
    with pytest.raises(WireError) as caught:
        parse(route, json.dumps(WRONG[path]).encode(), path)
    shape = caught.value.shape
    assert shape is not None and error_status(caught.value, shape) == int(status)
    assert json.loads(error_body(caught.value, shape, "0192f0c4")) == json.loads(text)
    assert f"| `{caught.value.code}` | {status} |" in PAGE


def test_the_page_has_every_dialect_and_every_path_of_scoring() -> None:
    routes = [find_route("POST", pair[0]) for pair in PAIRS]
    shown = {
        parse(route, pair[1].encode(), pair[0]).dialect for route, pair in zip(routes, PAIRS, strict=True) if route
    }
    assert shown | {"cohere-v1"} == set(DIALECTS)
    assert {error[0] for error in ERRORS} == set(WRONG)
    for route in ROUTES:
        if route.serves == "score" and not route.path.startswith("/nim/"):
            assert f"`{route.path.replace(':path', '')}`" in PAGE.replace("POST ", ""), route.path


def test_models_and_health_are_as_shown() -> None:
    blocks = dict(re.findall(r"<!-- (models|nim-health) -->\n```json\n(.*?)```", PAGE, re.DOTALL))
    assert json.loads(blocks["models"]) == json.loads(render_models(["shop-small"], 1795000000))
    assert json.loads(blocks["nim-health"]) == json.loads(nim_health("live", "Service is live."))


def test_settings_that_nothing_acts_on_are_all_named() -> None:
    kinds = {dialect.body for dialect in DIALECTS.values()}
    unused = {field.name for kind in kinds for field in msgspec.structs.fields(kind) if field.type is Any}
    named = PAGE[PAGE.index("Settings that nothing here acts on") :].split("\n\n")[0]
    assert len(unused) == 8
    assert set(re.findall(r"`(\w+)`", named)) == unused
