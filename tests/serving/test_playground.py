"""The page at ``/`` in a real browser: three orders side by side, by keyboard, at any width, light and dark."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from pertinent.engine.index import ItemIndex
from pertinent.engine.scorer import Scorer

QUERY = "usb cable 7"
ORDERS = ("retrieval", "relevance", "fused")
# The words of every card of an order.
CARDS = "[...document.querySelectorAll('#{} .card')].map(card => card.dataset.item)"
FOCUS = "document.activeElement.dataset.order + ' ' + document.activeElement.dataset.item"


@pytest.fixture(scope="module")
def server(tiny_scorer: Scorer, tiny_index: ItemIndex, start: Callable[..., Any]) -> Any:
    return start(tiny_scorer, tiny_index)


def search(page: Any, server: Any, query: str = QUERY, width: int = 1280, dark: bool = False) -> None:
    page.open(server.url + "/", width, dark)
    page.js(f"at('query').value = {query!r}; delete at('orders').dataset.done; at('form').requestSubmit()")
    page.until("!!document.querySelector('[data-done]')")


def cards(page: Any, order: str) -> list[str]:
    found: list[str] = page.js(CARDS.format(order))
    return found


def wanted(server: Any, fuse: dict[str, Any]) -> tuple[dict[str, Any], list[list[str]]]:
    """The answer of the server to what the page asks, and the three orders as places among the candidates."""
    found = server.post("/v1/candidates", {"query": QUERY}).json()
    body = {"query": QUERY, "item_ids": found["ids"], "retrieval_scores": found["scores"]}
    plain = server.post("/v1/relevance", body).json()
    answer = server.post("/v1/relevance", {**body, "ranking_scores": found["scores"], "fuse": fuse}).json()
    orders = [list(range(len(found["ids"]))), plain["index"], answer["index"]]
    return answer, [[str(place) for place in order] for order in orders]


def test_the_three_orders_are_those_of_the_server_with_moves_tiers_and_scores(page: Any, server: Any) -> None:
    search(page, server)
    answer, orders = wanted(server, {"mode": "tiers"})
    assert [cards(page, order) for order in ORDERS] == orders and len(orders[0]) == 20
    assert len({tuple(order) for order in orders}) > 1
    for order, places in zip(ORDERS[1:], orders[1:], strict=True):
        moves = page.js(f"[...document.querySelectorAll('#{order} .move .unseen')].map(each => each.textContent)")
        won = [int(item) - place for place, item in enumerate(places)]
        assert moves == [f"{'up' if w > 0 else 'down'} {abs(w)}" if w else "same place" for w in won]
    tags = page.js("[...document.querySelectorAll('#fused .tag')].map(each => each.textContent)")
    assert tags == [["bad", "fair", "good"][tier] for tier in answer["tiers"]]
    scores = page.js("[...document.querySelectorAll('#fused .score')].map(each => each.textContent)")
    assert scores == [f"{score:.3f}" for score in answer["scores"]]
    bars = page.js("[...document.querySelectorAll('#relevance .fill')].map(each => parseFloat(each.style.width))")
    assert bars == sorted(bars, reverse=True) and 0 < bars[0] <= 100
    told = page.js("document.body.innerText")
    assert "BM25 over 200 items" in told and "at or above the threshold" in told and "Retrieval" in told
    assert "a threshold of 0.10 has precision 50 % and recall 90 %" in told and "Serving tiny" in told
    assert page.problems == []


def test_another_fusion_asks_the_server_again(page: Any, server: Any) -> None:
    search(page, server)
    page.js("at('fuse').value = '0.7'; delete at('orders').dataset.done; at('fuse').dispatchEvent(new Event('change'))")
    page.until("!!document.querySelector('[data-done]')")
    _, orders = wanted(server, {"mode": "linear", "weight": 0.7})
    assert [cards(page, order) for order in ORDERS] == orders
    assert "70 % relevance" in page.js("at('fused-by').textContent") and page.problems == []


def test_an_item_is_followed_through_the_orders_by_keyboard(page: Any, server: Any) -> None:
    search(page, server)
    page.point("h1")
    page.js("at('threshold').focus()")
    page.press("Tab")  # one stop for each order, and all within it by arrows
    first = cards(page, "retrieval")
    assert page.js(FOCUS) == f"retrieval {first[0]}"
    page.press("ArrowDown", "ArrowDown", "ArrowUp", "ArrowDown", "ArrowRight")
    assert page.js(FOCUS) == f"relevance {first[2]}"
    same = "[...document.querySelectorAll('.card.same')].map(each => each.dataset.order + ' ' + each.dataset.item)"
    assert page.js(same) == [f"{order} {first[2]}" for order in ORDERS]
    assert page.js("document.querySelectorAll('#links path').length") == 40
    assert page.js("document.querySelectorAll('#links path.same').length") == 2
    page.press("Enter")
    assert page.js("document.activeElement.getAttribute('aria-expanded')") == "true"
    detail = page.js("document.querySelector('.detail').innerText")
    assert (
        "Place 3 by retrieval" in detail and "tokens" in detail and page.js("!!document.querySelector('.detail .core')")
    )
    page.press("Enter", "End")
    assert page.js("document.querySelector('.detail')") is None
    assert page.js(FOCUS) == f"relevance {cards(page, 'relevance')[-1]}"
    page.press("Tab")
    assert page.js(FOCUS).startswith("fused ")
    page.point(f"#fused .card[data-item='{first[1]}']")
    assert page.js(same) == [f"{order} {first[1]}" for order in ORDERS]
    assert page.problems == []


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_every_text_has_contrast_and_every_control_a_name(page: Any, server: Any, dark: bool) -> None:
    search(page, server, dark=dark)
    page.js("document.querySelectorAll('#relevance .card')[1].click(); at('threshold').value = 1; draw()")
    found = page.contrast()
    assert found["low"] == [] and found["seen"] > 200
    nodes = page.call("Accessibility.getFullAXTree")["nodes"]
    controls = {"button", "textbox", "searchbox", "combobox", "slider", "radio"}
    named = [node for node in nodes if not node["ignored"] and node["role"]["value"] in controls]
    assert len(named) > 60 and all(node["name"]["value"].strip() for node in named)
    regions = {node["name"]["value"] for node in nodes if not node["ignored"] and node["role"]["value"] == "region"}
    assert {"Retrieval", "Relevance", "Fused"} <= regions
    headings = [node["name"]["value"] for node in nodes if node["role"]["value"] == "heading" and not node["ignored"]]
    assert headings == ["pertinent", "Retrieval", "Relevance", "Fused"]
    assert page.js("document.documentElement.lang") == "en" and page.problems == []


@pytest.mark.parametrize("width", [320, 360, 700])
def test_a_narrow_window_shows_one_order_at_a_time_and_scrolls_one_way(page: Any, server: Any, width: int) -> None:
    search(page, server, query="usb cable " + "x" * 80, width=width)
    page.js("document.querySelectorAll('#relevance .card')[0].click()")
    shown = "[...document.querySelectorAll('.order')].filter(each => each.checkVisibility()).map(each => each.id)"
    for order in ORDERS:
        page.js(f"document.querySelector('#switch [value={order}]').click()")
        assert page.js(shown) == [order]
        assert page.js("document.documentElement.scrollWidth") <= width
    page.js("document.querySelectorAll('#fused .card')[1].focus()")
    item = cards(page, "fused")[1]
    page.press("ArrowLeft")
    assert page.js(shown) == ["relevance"] and page.js(FOCUS) == f"relevance {item}"
    assert page.js("document.querySelector('#switch :checked').value") == "relevance"
    page.resize(1280)
    assert page.js(shown) == list(ORDERS)
    tops = page.js("[...document.querySelectorAll('.order ol')].map(each => each.getBoundingClientRect().top)")
    assert len(set(tops)) == 1 and page.problems == []


def test_without_an_index_the_lines_given_are_the_retrieval_order(
    page: Any, tiny_scorer: Scorer, start: Callable[..., Any]
) -> None:
    page.open(start(tiny_scorer).url + "/")
    assert page.js("at('source').value") == "texts" and page.js("at('items-label').checkVisibility()")
    assert cards(page, "retrieval") == ["0", "1", "2", "3"] and sorted(cards(page, "fused")) == ["0", "1", "2", "3"]
    page.js("at('items').value = '<img src=x onerror=boom()>\\n\\n größe 日本語'; at('form').requestSubmit()")
    page.until("document.querySelectorAll('#fused .card').length === 2")
    titles = page.js("[...document.querySelectorAll('#retrieval .title')].map(each => each.textContent)")
    assert titles == ["<img src=x onerror=boom()>", "größe 日本語"] and page.problems == []


def test_what_nothing_matches_and_what_is_refused_is_told(page: Any, server: Any) -> None:
    search(page, server, query="")
    assert "No item of the index has a word of this query." in page.js("at('told').textContent")
    assert page.js("at('results').hidden")
    page.js("at('source').value = 'item_ids'; at('items').value = 'B1\\nnothing'; at('form').requestSubmit()")
    page.until("document.querySelectorAll('#fused .card').length === 1")
    assert "Not in the index: nothing." in page.js("at('told').textContent")
    page.js(
        "at('query').value = 'usb'; at('source').value = 'index'; at('top').append(new Option('0', '0', true, true));"
        "at('form').requestSubmit()"
    )
    page.until("at('error').textContent !== ''")
    assert "top is 0" in page.js("at('error').textContent") and page.problems == []
