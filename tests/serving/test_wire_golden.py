"""Every route against requests and replies written down by hand, byte for byte in what clients can see."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pertinent.serving.wire import DIALECTS, ROUTES, Answer, find_route, parse, rank_order

FOLDER = Path(__file__).resolve().parents[1] / "golden" / "wire"
FILES = sorted(FOLDER.glob("*/*.json"))
CASES = [
    pytest.param(file, path, id=f"{file.parent.name}-{file.stem}-{path}")
    for file in FILES
    for path in json.loads(file.read_text(encoding="utf-8"))["paths"]
]


def answer_of(given: dict[str, Any], top: int | None) -> Answer:
    arrays = {
        name: np.array(given[name], dtype=np.float32)
        for name in ("scores", "logits", "class_scores")
        if given.get(name) is not None
    }
    rest = {name: value for name, value in given.items() if name not in ("scores", "logits", "class_scores")}
    return Answer(order=rank_order(arrays["scores"], top), **arrays, **rest)


@pytest.mark.parametrize(("file", "path"), CASES)
def test_golden_request_gets_golden_reply(file: Path, path: str) -> None:
    case = json.loads(file.read_text(encoding="utf-8"))
    route = find_route("POST", path)
    assert route is not None
    request = parse(route, json.dumps(case["request"]).encode(), path)
    reply = DIALECTS[request.dialect].render(request, answer_of(case["answer"], request.top))
    # As texts: 1 and 1.0 are equal in Python and not in the clients, and so is the order of the keys.
    assert json.dumps(json.loads(reply)) == json.dumps(case["reply"])


def test_every_scoring_route_and_every_dialect_has_a_golden_case() -> None:
    paths = {path for file in FILES for path in json.loads(file.read_text(encoding="utf-8"))["paths"]}
    assert {route for route in ROUTES if route.serves == "score"} == {find_route("POST", path) for path in paths}
    assert {file.parent.name for file in FILES} == set(DIALECTS)


@pytest.mark.parametrize("file", FILES, ids=lambda file: f"{file.parent.name}-{file.stem}")
def test_golden_replies_do_not_depend_on_how_the_request_is_written(file: Path) -> None:
    case = json.loads(file.read_text(encoding="utf-8"))
    path = case["paths"][0]
    route = find_route("POST", path)
    assert route is not None
    plain = json.dumps(case["request"])
    written = [
        plain.encode(),
        json.dumps(case["request"], ensure_ascii=False, indent=3).encode(),
        b"\xef\xbb\xbf" + plain.encode(),
        json.dumps({"nobody": {"knows": [1, None]}, **case["request"], "this": "field"}).encode(),
        json.dumps({key: case["request"][key] for key in reversed(case["request"])}).encode(),
        json.dumps({key: value for key, value in case["request"].items() if value is not None}).encode(),
    ]
    parsed = [parse(route, body, path) for body in written]
    assert all(request == parsed[0] for request in parsed)
