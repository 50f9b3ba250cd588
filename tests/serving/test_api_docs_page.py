"""The page at ``/docs``: every route of the OpenAPI document, sent from a real browser, and every example answered."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from pertinent.engine.index import ItemIndex
from pertinent.engine.scorer import Scorer
from pertinent.serving.access import key_digest
from pertinent.serving.openapi import EXAMPLES
from pertinent.serving.wire import DIALECTS


@pytest.fixture(scope="module")
def server(tiny_scorer: Scorer, tiny_index: ItemIndex, start: Callable[..., Any]) -> Any:
    return start(tiny_scorer, tiny_index)


def document(server: Any) -> dict[str, Any]:
    found: dict[str, Any] = server.client.get("/openapi.json").json()
    return found


def choose(page: Any, route: str, example: str = "") -> None:
    """Pick a route, and one of its examples, as a hand would."""
    for name, value in (("route", route), ("example", example)):
        if value:
            page.js(f"at('{name}').value = {value!r}; at('{name}').dispatchEvent(new Event('change'))")
            assert page.js(f"at('{name}').value") == value


def send(page: Any) -> str:
    page.js("delete at('answer').dataset.sent; at('form').requestSubmit()")
    page.until("at('answer').dataset.sent === 'true'")
    status: str = page.js("at('status').textContent")
    return status


def opened(page: Any, server: Any, width: int = 1280, dark: bool = False) -> None:
    page.open(server.url + "/docs", width, dark)


def test_every_dialect_has_an_example_and_the_server_answers_each(server: Any) -> None:
    assert set(EXAMPLES) == {*DIALECTS, "relevance", "candidates"}
    shown = set()
    for path, methods in document(server)["paths"].items():
        if "post" not in methods:
            continue
        examples = methods["post"]["requestBody"]["content"]["application/json"]["examples"]
        for name, example in examples.items():
            shown.add(name)
            reply = server.post(path.replace("{model}", "tiny"), example["value"])
            assert reply.status_code == 200, (path, name, reply.text)
    assert shown == set(EXAMPLES)


def test_routes_are_those_of_the_document_and_a_request_is_answered(page: Any, server: Any) -> None:
    opened(page, server)
    routes = {f"{method} {path}" for path, methods in document(server)["paths"].items() for method in methods}
    assert set(page.js("[...at('route').options].map(each => each.value)")) == routes
    choose(page, "post /v1/rerank", "voyage")
    assert json.loads(page.js("at('body').value")) == EXAMPLES["voyage"]
    assert send(page).startswith("200 ")
    answer = json.loads(page.js("at('answer').textContent"))
    wanted = server.post("/v1/rerank", EXAMPLES["voyage"]).json()
    assert [each["index"] for each in answer["data"]] == [each["index"] for each in wanted["data"]]
    assert {"query", "documents", "top_k"} <= set(
        page.js("[...document.querySelectorAll('dt')].map(e => e.textContent)")
    )
    assert page.problems == []


def test_routes_without_a_body_with_a_model_in_the_path_and_errors_are_shown(page: Any, server: Any) -> None:
    opened(page, server)
    choose(page, "get /v1/models")
    assert page.js("at('body-label').hidden && at('model-label').hidden") and send(page).startswith("200 ")
    name = json.loads(page.js("at('answer').textContent"))["data"][0]["id"]
    choose(page, "get /v2/models/{model}/ready")
    page.js(f"at('model').value = {name!r}")
    assert not page.js("at('model-label').hidden") and send(page).startswith("200 ")
    choose(page, "post /v2/rerank")
    page.js("at('body').value = '{\"query\": 3}'")
    assert send(page).startswith("422 ") and page.js("at('status').className") == "bad"
    assert page.js("JSON.parse(at('answer').textContent).code")


def test_keys_are_sent_where_given(page: Any, tiny_scorer: Scorer, start: Callable[..., Any]) -> None:
    guarded = start(tiny_scorer, keys={"shop": key_digest("s3cret-key-of-the-shop")})
    opened(page, guarded)
    choose(page, "post /v2/rerank")
    assert send(page).startswith("401 ")
    page.js("at('key').value = 's3cret-key-of-the-shop'")
    assert send(page).startswith("200 ")


@pytest.mark.parametrize("dark", [False, True])
def test_it_fits_a_phone_and_all_text_can_be_read(page: Any, server: Any, dark: bool) -> None:
    opened(page, server, 360, dark)
    choose(page, "post /v1/relevance")
    send(page)
    assert page.js("document.documentElement.scrollWidth") <= 360
    found = page.contrast()
    assert found["seen"] > 20 and found["low"] == []
    named = page.js("[...document.querySelectorAll('input, select, textarea')].every(each => each.labels.length === 1)")
    assert named


def test_nothing_comes_from_elsewhere_and_without_the_playground_it_is_gone(
    server: Any, tiny_scorer: Scorer, start: Callable[..., Any]
) -> None:
    reply = server.client.get("/docs")
    assert reply.headers["content-security-policy"].startswith("default-src 'none'")
    assert "http://" not in reply.text and "https://" not in reply.text
    assert start(tiny_scorer, playground=False).client.get("/docs").status_code == 404
