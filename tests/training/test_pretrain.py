"""Laws of pre-training: what a corpus gives, that it is learned, resumed, reported, and started from."""

from __future__ import annotations

import copy
import csv
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pertinent.cli import main
from pertinent.errors import ArtifactError, ConfigError, DataError
from pertinent.lexicon.pairs import PairTokenizer
from pertinent.models.ei_src import EiSRC
from pertinent.models.heads import PretrainingNetwork
from pertinent.models.store import load_network
from pertinent.training.corpus import BELONG, BERT, MLM, OTHER, SWAPPED, Corpus, Recipe, RoBERTa, StructBERT
from pertinent.training.fit import LoopConfig
from pertinent.training.pretrain import HEADS, PretrainConfig, fit_texts, pretrain, read_texts
from pertinent.training.pretrainer import losses, measure
from pertinent.training.run import TrainConfig, train

RECIPES: list[Any] = [MLM(), BERT(), RoBERTa(), StructBERT()]
QUICK = {"batch_size": 32, "learning_rate": 3e-3, "device": "cpu", "log_every": 5}


@pytest.fixture(scope="module")
def texts(shop_rows: Any) -> list[tuple[str, str]]:
    rows = [(query, title) for query, title, grade in shop_rows(80, 3, 0) if grade > 0]
    return [*rows, *(("", title) for _, title, _ in shop_rows(20, 2, 1)), ("bal dam", ""), ("café", "日本")]


def corpus(pairs: PairTokenizer, texts: list[tuple[str, str]], recipe: Recipe | None = None, seed: int = 0) -> Corpus:
    return Corpus(pairs, texts, recipe or MLM(), seed)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.type)
def test_every_recipe_gives_batches_that_a_network_learns_from(
    tiny_network: EiSRC, tiny_pairs: PairTokenizer, texts: list[tuple[str, str]], recipe: Any
) -> None:
    batch = corpus(tiny_pairs, texts, recipe).batch(np.arange(50))
    hidden = batch["token_labels"] >= 0
    assert not (hidden & ~batch["mask"]).any()
    assert not torch.isin(batch["token_labels"][hidden], torch.tensor([0, 2, 3])).any()
    assert (batch["shuffled"] & hidden).any() == bool(recipe.word_order)
    labels = {"none": 0, "match": 2, "order": 3}[recipe.sentence]
    network = PretrainingNetwork(tiny_network, labels).train()
    found = losses(*network(batch), batch)
    assert found.keys() == {"hidden"} | ({"shuffled"} if recipe.word_order else set()) | (
        {"sentence"} if labels else set()
    )
    assert found["hidden"].item() == pytest.approx(math.log(tiny_pairs.vocabulary_size), rel=0.1)
    torch.stack(list(found.values())).sum().backward()
    assert tiny_network.embeddings.token.weight.grad is not None
    none = losses(
        *network(corpus(tiny_pairs, texts, recipe).batch(np.arange(0))),
        corpus(tiny_pairs, texts, recipe).batch(np.arange(0)),
    )
    assert all(value.item() == 0.0 for value in none.values())


def test_the_head_scores_tokens_against_the_networks_own_table(tiny_network: EiSRC) -> None:
    network = PretrainingNetwork(tiny_network, 0)
    names = {name for name, _ in network.named_parameters() if not name.startswith("network.")}
    assert names == {
        "tokens.transform.weight",
        "tokens.transform.bias",
        "tokens.norm.weight",
        "tokens.norm.bias",
        "tokens.bias",
    }
    states = torch.randn(3, 32)
    before = network.tokens(states, tiny_network.embeddings.token.weight)
    with torch.no_grad():
        tiny_network.embeddings.token.weight[7] += 1
    after = network.tokens(states, tiny_network.embeddings.token.weight)
    changed = (before != after).any(0)
    assert changed[7] and changed.sum() == 1


def test_dynamic_rows_are_hidden_anew_and_static_ones_always_alike(
    tiny_pairs: PairTokenizer, texts: list[tuple[str, str]]
) -> None:
    for recipe in (MLM(masked=0.5), MLM(masked=0.5, dynamic=False)):
        made = corpus(tiny_pairs, texts, recipe)
        alone, first, again = (made.batch(np.array(rows)) for rows in ([5], [5, 9, 11], [5, 40, 2]))
        places = first["mask"][0].nonzero().flatten()
        seen = [batch["token_ids"][0][batch["mask"][0]].tolist() for batch in (alone, first, again)]
        assert len(places) == len(seen[0])
        assert (seen[0] == seen[1] == seen[2]) == (not recipe.dynamic)
        assert made.batch(np.array([5, 9]))["token_ids"].tolist() == made.batch(np.array([5, 9]))["token_ids"].tolist()


def test_no_question_is_asked_of_single_texts_and_no_item_of_the_query_is_anothers(
    tiny_pairs: PairTokenizer, texts: list[tuple[str, str]]
) -> None:
    made = corpus(tiny_pairs, texts, StructBERT(masked=1e-9, word_order=0.0))
    rows = np.arange(len(texts))
    kinds: list[int] = []
    known = {(query, title) for query, title in texts}
    sizes = len(texts)
    for seed in range(20):
        made.seed = seed
        draw_rows = np.random.default_rng(seed).permutation(rows)
        batch = made.batch(draw_rows)
        for row, kind in zip(draw_rows.tolist(), batch["sentence_labels"].tolist(), strict=True):
            if kind < 0:
                assert not all(texts[row])
            kinds.append(kind)
    counts = np.bincount([kind for kind in kinds if kind >= 0], minlength=3) / sum(kind >= 0 for kind in kinds)
    assert counts == pytest.approx([1 / 3] * 3, abs=0.05)
    from pertinent.training.corpus import _Draws

    for seed in range(20):
        query_rows, item_rows, found = made._belonging(rows, _Draws(seed, rows, False, 18))
        for query, item, kind in zip(query_rows.tolist(), item_rows.tolist(), found.tolist(), strict=True):
            pair = (texts[query % sizes][0], texts[item % sizes][1])
            assert (kind == SWAPPED) == (query >= sizes) == (item >= sizes)
            if kind == OTHER:
                assert pair not in known and all(pair)
            if kind == BELONG:
                assert pair in known


def test_a_swapped_row_has_the_item_first(tiny_pairs: PairTokenizer) -> None:
    made = corpus(tiny_pairs, [("bal", "dam kur")] * 1, StructBERT(masked=1e-9, word_order=0.0))
    number = tiny_pairs.tokenizer.token_to_id
    for seed in range(40):
        made.seed = seed
        batch = made.batch(np.array([0]))
        ids = batch["token_ids"][0].tolist()
        if batch["sentence_labels"].item() == SWAPPED:
            assert ids == [2, number("dam"), number("kur"), 3, number("bal"), 3]
            return
    pytest.fail("never swapped")


def test_hidden_words_are_learned_and_measuring_is_always_the_same(
    tiny_network: EiSRC, tiny_pairs: PairTokenizer, texts: list[tuple[str, str]]
) -> None:
    network = PretrainingNetwork(tiny_network, 2)
    held_out = corpus(tiny_pairs, texts[-40:], MLM(sentence="match"))
    before = measure(network, held_out)
    assert before == measure(network, held_out)
    config = LoopConfig(**QUICK, epochs=6, early_stopping=0)
    result = fit_texts(network, corpus(tiny_pairs, texts, MLM(sentence="match")), config, held_out)
    assert result.metrics["hidden"] < before["hidden"]
    assert result.metrics == pytest.approx(measure(network, held_out))
    assert result.metrics["perplexity"] == pytest.approx(math.exp(result.metrics["hidden"]))
    reported = [entry for entry in result.history if "loss" in entry]
    assert {"loss_hidden", "loss_sentence"} <= reported[0].keys()


def test_a_stopped_pretraining_goes_on_as_if_it_had_not_been(
    tiny_network: EiSRC,
    tiny_pairs: PairTokenizer,
    texts: list[tuple[str, str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from pertinent.training.pretrainer import PreTrainer

    config = LoopConfig(**QUICK, epochs=2, eval_every=2, early_stopping=0)
    made = corpus(tiny_pairs, texts, StructBERT())
    torch.manual_seed(0)
    straight = PretrainingNetwork(tiny_network, 3)
    stopped, killed = copy.deepcopy(straight), copy.deepcopy(straight)
    fit_texts(straight, made, config, made, tmp_path / "straight")
    compute = PreTrainer.compute_loss

    def until_three(self: Any, *arguments: Any, **named: Any) -> Any:
        if self.state.global_step == 3:
            raise KeyboardInterrupt
        return compute(self, *arguments, **named)

    monkeypatch.setattr(PreTrainer, "compute_loss", until_three)
    with pytest.raises(KeyboardInterrupt):
        fit_texts(killed, made, config, made, tmp_path / "stopped")
    monkeypatch.undo()
    result = fit_texts(stopped, made, config, made, tmp_path / "stopped", resume=True)
    assert result.resumed_from == 2
    for key, value in straight.state_dict().items():
        torch.testing.assert_close(stopped.state_dict()[key], value, atol=1e-6, rtol=1e-5)
    with pytest.raises(ConfigError, match="recipe"):
        fit_texts(
            stopped, corpus(tiny_pairs, texts, MLM(sentence="order")), config, made, tmp_path / "stopped", resume=True
        )


def test_a_tokenizer_without_a_mask_is_refused(tiny_pairs: PairTokenizer) -> None:
    from tokenizers import Tokenizer

    plain = Tokenizer.from_str(tiny_pairs.tokenizer.to_str().replace("[MASK]", "[MARK]"))
    with pytest.raises(ArtifactError, match=r"no \[MASK\] token"):
        corpus(PairTokenizer(plain, tiny_pairs.config), [("bal", "dam")])


# The command


def write(path: Path, rows: list[list[str]]) -> str:
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    return str(path)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, shop_rows: Any) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("texts")
    rows = shop_rows(40, 3, 0)
    items = [[str(n), title, "fil gar\n\nkur café"] for n, (_, title, _) in enumerate(rows)]
    judged = [[q, t, str(g), "train" if n < 60 else "test"] for n, (q, t, g) in enumerate(rows)]
    return {
        "rows": rows,
        "titles": write(folder / "items.csv", [["item_id", "title", "bullet_points"], *items]),
        "judged": write(folder / "judged.csv", [["query", "title", "grade", "split"], *judged]),
        "queries": write(folder / "queries.csv", [["query"], ["gam"], [rows[100][0].upper()], ["gam"]]),
    }


def settings(files: dict[str, Any], tiny_tokenizer: Path, **changes: Any) -> PretrainConfig:
    values = {
        "titles": files["titles"],
        "fields": ["title", "bullet_points"],
        "queries": files["queries"],
        "examples": files["judged"],
        "judged": files["judged"],
        "start": None,
        "tokenizer": str(tiny_tokenizer),
        "model": {"hidden_size": 32, "layers": 2, "heads": 2, "feed_forward_size": 64},
        "pairs": {"query_length": 6, "item_length": 12},
        "held_out": 0.1,
        **QUICK,
        "epochs": 1,
        **changes,
    }
    return PretrainConfig.build(values)


def test_texts_are_read_once_and_held_out_queries_never(files: dict[str, Any], tiny_tokenizer: Path) -> None:
    texts = read_texts(settings(files, tiny_tokenizer))
    judged = [(q, t, g) for n, (q, t, g) in enumerate(files["rows"]) if n < 60]
    assert {query for query, title in texts.rows if query and title} == {q for q, _, g in judged if g >= 0.5}
    assert ("", "fil gar") in texts.rows and ("", "kur café") in texts.rows
    assert [row for row in texts.rows if not row[1]] == [("gam", "")]
    assert texts.left_out == sum(g >= 0.5 for n, (_, _, g) in enumerate(files["rows"]) if n >= 60) + 1
    assert len(set(texts.rows)) == len(texts.rows) == sum(texts.counts.values())


def test_pretraining_writes_a_folder_to_start_from_and_to_go_on_with(
    files: dict[str, Any], tiny_tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = pretrain(settings(files, tiny_tokenizer, recipe="structbert", out=str(tmp_path / "first")))
    assert first.has(HEADS) and first.metrics["hidden"] > 0
    page = first.file("report.html").read_text()
    assert "Loss: hidden words" in page and "Loss: two texts" in page and "<script" not in page
    assert {"titles.0", "queries.0", "examples.0", "judged.0"} == set(first.manifest["inputs"])
    assert PretrainConfig.build(first.config).recipe == StructBERT()

    flags = [
        "--titles",
        files["titles"],
        "--start",
        str(first.path),
        "--epochs",
        "1",
        "--out",
        str(tmp_path / "second"),
    ]
    assert main(["pretrain", *flags, "--set", "device=cpu", "--set", "learning_rate=1.0e-9"]) == 0
    assert "train from it" in capsys.readouterr().out
    from pertinent.artifact import open_artifact

    second = open_artifact(tmp_path / "second", kind="model")
    from safetensors.torch import load_file

    heads = [load_file(each.file(HEADS)) for each in (first, second)]
    torch.testing.assert_close(
        heads[0]["tokens.transform.weight"], heads[1]["tokens.transform.weight"], atol=1e-6, rtol=0
    )

    start = {"judgments": files["judged"], "start": str(first.path), "learning_rate": 1e-9, "max_steps": 1}
    model = train(
        TrainConfig.build({**start, "device": "cpu", "graph": False, "bootstrap": 0, "out": str(tmp_path / "m")})
    )
    before, after = (load_network(each)[0].state_dict() for each in (first, model))
    torch.testing.assert_close(before["embeddings.token.weight"], after["embeddings.token.weight"], atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"titles": [], "queries": [], "examples": []}, ["give texts to learn from"]),
        ({"recipe": "elektra"}, ["recipe", "elektra"]),
        ({"recipe": {"type": "mlm", "mask": 0.2}}, ["recipe", "mask"]),
    ],
)
def test_wrong_settings_are_named(
    files: dict[str, Any], tiny_tokenizer: Path, changes: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises(ConfigError) as caught:
        settings(files, tiny_tokenizer, **changes)
    assert all(word in str(caught.value) for word in words)


def test_no_text_and_missing_columns_are_told(files: dict[str, Any], tiny_tokenizer: Path) -> None:
    with pytest.raises(DataError, match="has no column 'name'"):
        read_texts(settings(files, tiny_tokenizer, fields="name"))
    only = settings(files, tiny_tokenizer, titles=[], examples=[], queries=files["judged"], lowest_grade=1.0)
    assert read_texts(only).left_out > 0
