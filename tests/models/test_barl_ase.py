from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pertinent.errors import ConfigError
from pertinent.lexicon.pairs import PairTokenizer
from pertinent.models.barl_ase import BarlASe, BarlASeConfig, Neighbors, Views

QUERIES = ["wireless earbuds", "", "red mug", "日本語", "mug", "mug"]
TITLES = ["bluetooth headphones", "usb cable", "", "größe ñ", "red and white shoes " * 20, "mug"]
COUNTS = {"queries": [3, 0, 1, 4, 2, 0], "items": [2, 0, 4, 0, 3, 1]}
SLOTS = 4
SWITCHES = {
    "neighbor_block": False,
    "shared_attention": False,
    "slot_positions": False,
    "neighbor_attention": False,
    "target_attention": False,
    "gate": False,
    "products": True,
    "agreement": True,
    "gains": True,
    "behavior": False,
    "target_encoder": "transformer",
}


def neighbors(texts: int, counts: list[int], seed: int, vocabulary: int) -> Neighbors:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, vocabulary, (texts, 6), generator=generator)
    lengths = torch.randint(1, 7, (texts, 1), generator=generator)
    ids = torch.where(torch.arange(6)[None] < lengths, ids, -1)
    slots = torch.randint(0, texts, (len(counts), SLOTS), generator=generator)
    return Neighbors(ids, slots, torch.tensor(counts))


@pytest.fixture(scope="module")
def tokens(tiny_pairs: PairTokenizer) -> dict[str, Tensor]:
    return {name: torch.from_numpy(value) for name, value in tiny_pairs.pair(QUERIES, TITLES).inputs().items()}


@pytest.fixture(scope="module")
def sides(tiny_pairs: PairTokenizer) -> tuple[Neighbors, Neighbors]:
    size = tiny_pairs.vocabulary_size
    return neighbors(9, COUNTS["queries"], 1, size), neighbors(7, COUNTS["items"], 2, size)


@pytest.fixture(params=[{}, *({key: value} for key, value in SWITCHES.items())], ids=str)
def network(request: pytest.FixtureRequest, network_maker: Any, tiny_pairs: PairTokenizer) -> BarlASe:
    made: BarlASe = network_maker("barl_ase", tiny_pairs.vocabulary_size, slots=SLOTS, **request.param)
    return made


@pytest.fixture
def full(network_maker: Any, tiny_pairs: PairTokenizer) -> BarlASe:
    made: BarlASe = network_maker("barl_ase", tiny_pairs.vocabulary_size, slots=SLOTS)
    return made


def all_equal(one: Views, other: Views, atol: float = 0.0) -> None:
    for name in Views.__slots__:
        torch.testing.assert_close(getattr(one, name), getattr(other, name), atol=atol, rtol=0, msg=name)


def test_what_stands_in_empty_slots_changes_no_output(
    network: BarlASe, tokens: dict[str, Tensor], sides: tuple[Neighbors, Neighbors]
) -> None:
    filled = []
    for side in sides:
        empty = torch.arange(SLOTS)[None] >= side.counts[:, None]
        filled.append(side._replace(slots=torch.where(empty, len(side.texts) - 1 - side.slots, side.slots)))
    with torch.inference_mode():
        all_equal(network.views(**tokens, neighbor_queries=filled[0], neighbor_items=filled[1]),
                  network.views(**tokens, neighbor_queries=sides[0], neighbor_items=sides[1]))  # fmt: skip


def test_each_side_is_read_by_its_own_length(
    full: BarlASe, tokens: dict[str, Tensor], sides: tuple[Neighbors, Neighbors]
) -> None:
    queries, items = sides
    swapped = queries._replace(counts=items.counts), items._replace(counts=queries.counts)
    with torch.inference_mode():
        right, wrong = (
            full.views(**tokens, neighbor_queries=queries, neighbor_items=items),
            full.views(**tokens, neighbor_queries=swapped[0], neighbor_items=swapped[1]),
        )
    changed = (right.logit - wrong.logit).abs() > 1e-4
    assert changed.tolist() == [q != i for q, i in zip(COUNTS["queries"], COUNTS["items"], strict=True)]


def test_the_order_of_neighbors_counts_through_their_positions_alone(
    network_maker: Any, tiny_pairs: PairTokenizer, tokens: dict[str, Tensor], sides: tuple[Neighbors, Neighbors]
) -> None:
    queries, items = sides
    turned = items._replace(slots=items.slots.clone())
    turned.slots[4, :3] = items.slots[4, :3].roll(1)
    for positions in (True, False):
        made = network_maker("barl_ase", tiny_pairs.vocabulary_size, slots=SLOTS, slot_positions=positions)
        with torch.inference_mode():
            first, second = (made.views(**tokens, neighbor_queries=queries, neighbor_items=i) for i in (items, turned))
        moved = (first.logit - second.logit).abs()
        assert moved[[0, 1, 2, 3, 5]].max() == 0
        assert (moved[4] > 1e-4) == positions


def test_with_gains_each_part_counts_nothing_at_first(
    tiny_pairs: PairTokenizer, tokens: dict[str, Tensor], sides: tuple[Neighbors, Neighbors]
) -> None:
    sizes = {"vocabulary_size": tiny_pairs.vocabulary_size, "hidden_size": 16, "slots": SLOTS, "gains": True}
    begun = BarlASe(BarlASeConfig(**sizes)).eval()
    begun_views = begun.views(**tokens, neighbor_queries=sides[0], neighbor_items=sides[1])
    assert (begun_views.gate[begun_views.has_items | begun_views.has_queries] == 0.5).all()
    other = BarlASe(BarlASeConfig(**sizes)).eval()
    state = begun.state_dict()
    parts = ("query_tokens", "title_tokens", "query_slots", "item_slots", "slot_attention", "side.feed")
    drawn = {name: value for name, value in other.state_dict().items() if any(part in name for part in parts)}
    assert len(drawn) > 2 * len(parts)
    other.load_state_dict(state | drawn)
    views = other.views(**tokens, neighbor_queries=sides[0], neighbor_items=sides[1])
    assert torch.equal(views.logit, begun_views.logit)
    views.logit.sum().backward()
    for name, parameter in other.named_parameters():
        if name.endswith("factor"):
            assert parameter.grad is not None
            assert parameter.grad != 0, name


def test_without_any_neighbor_the_text_view_decides(
    network: BarlASe, tokens: dict[str, Tensor], sides: tuple[Neighbors, Neighbors]
) -> None:
    none = [side._replace(counts=torch.zeros_like(side.counts)) for side in sides]
    views = network.views(**tokens, neighbor_queries=none[0], neighbor_items=none[1])
    assert (views.gate == 1).all()
    assert torch.equal(views.logit, views.text)
    torch.testing.assert_close(views.logit[:, None], network(**tokens))
    views.logit.square().sum().backward()
    gradients = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
    assert gradients
    assert all(torch.isfinite(gradient).all() for gradient in gradients)
    mixed = network.views(**tokens, neighbor_queries=sides[0], neighbor_items=sides[1])
    alone = ~(mixed.has_items | mixed.has_queries)
    assert alone.any()
    assert (mixed.gate[alone] == 1).all()
    assert torch.equal(mixed.logit[alone], mixed.text[alone])


def test_gradients_are_finite_for_every_part(
    network: BarlASe, tokens: dict[str, Tensor], sides: tuple[Neighbors, Neighbors]
) -> None:
    network.train()
    views = network.views(**tokens, neighbor_queries=sides[0], neighbor_items=sides[1])
    (views.logit.sum() + views.neighbor_items.sum() + views.neighbor_queries.sum()).backward()
    for name, parameter in network.named_parameters():
        assert name == "embeddings.term_class.weight" or parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name


def test_attention_weights_add_to_one_over_real_slots(
    full: BarlASe, tokens: dict[str, Tensor], sides: tuple[Neighbors, Neighbors]
) -> None:
    with torch.inference_mode():
        views = full.views(**tokens, neighbor_queries=sides[0], neighbor_items=sides[1])
    for weights, counts in ((views.query_weights, COUNTS["queries"]), (views.item_weights, COUNTS["items"])):
        real = torch.arange(SLOTS)[None] < torch.tensor(counts)[:, None]
        assert (weights[~real] == 0).all()
        torch.testing.assert_close(weights.sum(1), torch.tensor([float(count > 0) for count in counts]))
    assert (views.neighbor_queries[[1, 5]] == 0).all()
    assert (views.neighbor_items[[1, 3]] == 0).all()
    torch.testing.assert_close(views.neighbor_items[[0, 2, 4, 5]].norm(dim=1), torch.ones(4))


def test_an_attention_unit_without_values_gives_zero(full: BarlASe) -> None:
    vector, weights = full.query_slots(torch.randn(2, 16), torch.randn(2, 3, 16), torch.zeros(2, 3, dtype=torch.bool))
    assert (vector == 0).all()
    assert (weights == 0).all()


def test_the_attention_unit_is_that_of_the_paper(full: BarlASe) -> None:
    att = full.query_slots
    u, v, mask = torch.randn(2, 16), torch.randn(2, 3, 16), torch.tensor([[True, True, True], [True, False, True]])
    # One matrix W over [u; v; u - v; u * v] that has the same three products.
    w = torch.cat([att.from_query.weight, att.from_value.weight, torch.zeros(128, 16), att.from_product.weight], dim=1)
    wide = u[:, None].expand_as(v)
    hidden = torch.tanh(torch.cat([wide, v, wide - v, wide * v], dim=2) @ w.T + att.from_query.bias)
    scores = (hidden @ att.score.weight[0]).masked_fill(~mask, -torch.inf) / 16**0.5
    expected = (scores.softmax(1)[..., None] * v).sum(1)
    torch.testing.assert_close(att(u, v, mask)[0], expected)


def test_precomputed_neighbors_give_the_same_as_end_to_end(
    network: BarlASe, tokens: dict[str, Tensor], sides: tuple[Neighbors, Neighbors]
) -> None:
    if not network.config.behavior:
        return
    with torch.inference_mode():
        whole = network.views(**tokens, neighbor_queries=sides[0], neighbor_items=sides[1])
        encoded = network.encode_queries(sides[0]), network.encode_items(sides[1])
        all_equal(network.combine(*tokens.values(), *encoded), whole, atol=1e-6)


def test_attention_is_shared_by_both_sides_and_the_feed_forward_is_not(full: BarlASe) -> None:
    names = [name for name, _ in full.named_parameters()]
    assert sum(name.endswith("attention.query.weight") for name in names) == 1
    assert {"query_side.feed_in.weight", "item_side.feed_in.weight"} <= set(names)
    assert full.query_side.position.weight.data_ptr() != full.item_side.position.weight.data_ptr()


def test_padding_does_not_leak_through_the_pooling_norm(
    full: BarlASe, tokens: dict[str, Tensor], sides: tuple[Neighbors, Neighbors]
) -> None:
    one = sides[1]._replace(counts=torch.ones_like(sides[1].counts))
    narrow = one._replace(slots=one.slots[:, :1])
    with torch.no_grad():
        full.item_side.pool_norm.bias.fill_(3.0)
        first, second = (full.item_side.pool(full.encode_items(side)) for side in (one, narrow))
    torch.testing.assert_close(first, second)


def test_dropout_on_neighbors_acts_in_training_only(
    full: BarlASe, tokens: dict[str, Tensor], sides: tuple[Neighbors, Neighbors]
) -> None:
    def encoded() -> Tensor:
        with torch.no_grad():
            return full.encode_items(sides[1]).vectors

    assert torch.equal(encoded(), encoded())
    full.train()
    assert not torch.equal(encoded(), encoded())


def test_each_switch_takes_its_part_away(network: BarlASe) -> None:
    c, names = network.config, {name.split(".")[0] for name, _ in network.named_parameters()}
    assert ("query_slots" in names) == (c.neighbor_attention and c.behavior)
    assert ("query_tokens" in names) == c.target_attention
    assert ("gate" in names) == (c.gate and c.behavior)
    assert ("slot_attention" in names) == (c.neighbor_block and c.shared_attention and c.behavior)
    assert ("behavior_view" in names) == c.behavior
    assert ("encoder" in names) == (c.target_encoder == "transformer")
    assert any("position" in name for name, _ in network.named_parameters()) == (
        (c.slot_positions and c.behavior) or c.target_encoder == "transformer"
    )


def test_a_target_text_is_read_by_itself(network_maker: Any, tiny_pairs: PairTokenizer) -> None:
    made = network_maker("barl_ase", tiny_pairs.vocabulary_size, target_encoder="transformer")

    def views(query: str, title: str) -> Views:
        batch = tiny_pairs.pair([query], [title])
        found: Views = made.views(**{name: torch.from_numpy(value) for name, value in batch.inputs().items()})
        return found

    with torch.inference_mode():
        first, second, third = views("red mug", "tea pot"), views("red mug", "usb cable 2"), views("mug", "tea pot")
    torch.testing.assert_close(first.query, second.query)
    torch.testing.assert_close(first.item, third.item)
    assert (first.query - third.query).abs().max() > 1e-3


def test_bags_do_not_see_special_tokens(full: BarlASe, tiny_pairs: PairTokenizer) -> None:
    batch = tiny_pairs.pair(["mug"], ["mug"])
    views = full.views(**{name: torch.from_numpy(value) for name, value in batch.inputs().items()})
    row = full.embeddings.token.weight[tiny_pairs.tokenizer.token_to_id("mug")]
    torch.testing.assert_close(views.query[0], row / row.norm())
    assert np.isfinite(views.logit.item())


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"term_classes": True}, "bag of words has no channel"),
        ({"join_layer": 1}, "never read each other"),
        ({"slots": 0}, "slots"),
        ({"target_encoder": "lstm"}, "target_encoder"),
    ],
)
def test_settings_that_cannot_be_are_refused(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        BarlASeConfig.build(wrong)
