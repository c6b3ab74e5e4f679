import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from distill.data.labels import InvalidCell, text_of
from distill.data.sources import open_source
from distill.data.tokens import (
    Mixture,
    TextTokenizer,
    Tokens,
    _slices,
    chunks,
    length_sorted_batches,
    shuffled_batches,
)
from export.runtime.tokenizer import CachedTokenizer
from export.text import strip_text


@pytest.fixture(scope="module")
def texts(toy_corpus: Any) -> list[str]:
    return [*toy_corpus(40).texts, "", "parcel " * 100, "nowhere in the vocabulary ü 包裹", "Thanks!"]


def lengths(count: int = 1037) -> np.ndarray:
    return np.random.default_rng(0).integers(2, 65, count)


def test_tokens_are_those_of_the_tokenizer(tiny_tokenizer: Any, texts: list[str]) -> None:
    tokens = TextTokenizer(tiny_tokenizer, 16)(texts)
    theirs = tiny_tokenizer(texts, truncation=True, max_length=16)["input_ids"]
    assert len(tokens) == len(texts)
    for i, row in enumerate(theirs):
        assert tokens.ids[tokens.offsets[i] : tokens.offsets[i + 1]].tolist() == row


def test_a_batch_is_naive_padding(tiny_tokenizer: Any, texts: list[str]) -> None:
    tokens = TextTokenizer(tiny_tokenizer, 16)(texts)
    for rows in ([0], [5, 3, 3, 41], range(len(texts)), [len(texts) - 1, 40]):
        ids, mask = tokens.batch(np.array(rows)).values()
        theirs = tiny_tokenizer(
            [texts[i] for i in rows], truncation=True, max_length=16, padding="longest", return_tensors="np"
        )
        assert ids.dtype == mask.dtype == np.int64
        assert np.array_equal(ids, theirs["input_ids"])
        assert np.array_equal(mask, theirs["attention_mask"])


def test_padding_is_the_tokenizers_own() -> None:
    tokens = Tokens(np.array([5, 6, 7, 8], np.int32), np.array([0, 1, 4]), pad=9)
    ids, mask = tokens.batch(np.array([0, 1])).values()
    assert ids.tolist() == [[5, 9, 9], [6, 7, 8]] and mask.tolist() == [[1, 0, 0], [1, 1, 1]]


def test_truncation_keeps_the_ends(tiny_tokenizer: Any) -> None:
    tokens = TextTokenizer(tiny_tokenizer, 8)(["parcel " * 100, "parcel"])
    parcel = tiny_tokenizer.convert_tokens_to_ids("parcel")
    ends = [tiny_tokenizer.cls_token_id, tiny_tokenizer.sep_token_id]
    assert tokens.lengths.tolist() == [8, 3]
    assert tokens.ids[:8].tolist() == [ends[0], *[parcel] * 6, ends[1]]


def test_the_tokenizer_is_not_changed(tiny_tokenizer: Any) -> None:
    TextTokenizer(tiny_tokenizer, 8)
    assert len(tiny_tokenizer("parcel " * 20)["input_ids"]) == 22


def test_on_disk_as_in_memory(tiny_tokenizer: Any, texts: list[str], tmp_path: Path) -> None:
    encode = TextTokenizer(tiny_tokenizer, 16)
    memory, disk = encode(texts), encode.to_disk(chunks(texts, 7), tmp_path / "tokens.bin")
    assert isinstance(disk.ids, np.memmap) and not disk.ids.flags.writeable
    assert np.array_equal(disk.ids, memory.ids) and np.array_equal(disk.offsets, memory.offsets)
    rows = np.array([40, 2, 41])
    for name, array in memory.batch(rows).items():
        assert np.array_equal(disk.batch(rows)[name], array)


def test_no_texts_are_no_tokens(tiny_tokenizer: Any) -> None:
    tokens = TextTokenizer(tiny_tokenizer, 16)([])
    assert len(tokens) == 0 and length_sorted_batches(tokens.lengths, 100) == []


def test_chunks_cover_a_sequence_in_order(texts: list[str]) -> None:
    slices = list(chunks(texts, 7))
    assert [text for part in slices for text in part] == texts
    assert {len(part) for part in slices[:-1]} == {7}
    assert list(chunks([])) == []


@pytest.mark.parametrize("size", [1, 8, 32, 5000])
def test_an_epoch_holds_every_row_once(size: int) -> None:
    batches = shuffled_batches(lengths(), size, seed=0, epoch=0)
    assert sorted(np.concatenate(batches).tolist()) == list(range(1037))
    assert max(map(len, batches)) == min(size, 1037)
    assert len(batches) == -(-1037 // size)


def test_an_epoch_depends_on_seed_and_number() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        return np.concatenate(shuffled_batches(lengths(), 16, seed, epoch)).tolist()

    assert order(0, 0) == order(0, 0)
    assert order(0, 0) != order(0, 1)
    assert order(0, 1) != order(1, 0)
    assert order(0, 0) != order(1, 0)


def test_batches_have_texts_of_similar_length() -> None:
    n = lengths(10_000)

    def padded(batches: list[np.ndarray]) -> int:
        return sum(len(rows) * int(n[rows].max()) for rows in batches)

    naive = np.random.default_rng(0).permutation(len(n)).reshape(-1, 20)
    batches = shuffled_batches(n, 20, 0, 0)
    assert padded(batches) < 1.05 * n.sum() < 0.7 * padded(list(naive))
    # the batches are shuffled, not sorted from short to long
    means = [n[rows].mean() for rows in batches]
    assert abs(np.corrcoef(means, np.arange(len(means)))[0, 1]) < 0.2


@pytest.mark.parametrize("tokens", [1, 64, 300, 8192])
def test_inference_batches_stay_within_their_tokens(tokens: int) -> None:
    n = lengths()
    batches = length_sorted_batches(n, tokens)
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(n)))
    for rows in batches:
        assert len(rows) == 1 or len(rows) * n[rows].max() <= tokens
    longest = [int(n[rows].max()) for rows in batches]
    assert longest == sorted(longest, reverse=True)


def test_long_texts_are_tokenised_in_slices(
    tiny_tokenizer: Any, texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = TextTokenizer(tiny_tokenizer, 16)(texts)
    monkeypatch.setattr("distill.data.tokens.SLICE", 100)
    again = TextTokenizer(tiny_tokenizer, 16)(texts)
    assert np.array_equal(again.ids, whole.ids) and np.array_equal(again.offsets, whole.offsets)
    assert [len(some) for some in _slices(["a" * 60, "b" * 40, "c", "d" * 500, "e"])] == [2, 1, 1, 1]


def test_the_share_of_unknown_tokens(tiny_tokenizer: Any) -> None:
    encode = TextTokenizer(tiny_tokenizer, 16)
    assert encode.unknown_share(encode(["parcel", "parcel 包"])) == pytest.approx(1 / 3)
    assert encode.unknown_share(encode([])) == 0


def byte_level(texts: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def unigram(texts: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence([normalizers.Nmt(), normalizers.NFKC()])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=200, unk_token="<unk>", special_tokens=["<unk>"], show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def word_piece(texts: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=200, special_tokens=["[UNK]"], show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


CORES = [
    "where is my parcel",
    "caf\u00e9 cafe\u0301",
    "a\rb",
    "a\r\nb",
    "a\0b",
    "a\xa0 b",
    "a\u200bb",
    "\u2764\ufe0f",
    ".",
]
ENDS = [
    *" \n\r\t\x0b\x0c\x1c\x85\xa0\u1680\u2003\u2028\u3000\u200b\u200d\u2060\ufeff",
    "\ufeff \u200b\n",
    "\0",
]


@pytest.mark.parametrize("build", [byte_level, unigram, word_piece])
def test_a_text_has_the_same_tokens_in_training_and_in_service(
    build: Callable[[list[str]], Tokenizer], toy_corpus: Any, tmp_path: Path
) -> None:
    """White space at the ends gave other tokens: in service it was not stripped."""
    wanted = [before + core + after for core in CORES for before in ("", *ENDS) for after in ("", *ENDS)]
    tokenizer = build([*toy_corpus(80).texts, *CORES])
    served = CachedTokenizer(tokenizer.to_str().encode(), 16, tmp_path)(wanted)
    rows = [json.dumps({"text": text}) for text in wanted]
    (tmp_path / "texts.jsonl").write_text("\n".join(rows), "utf-8")
    read = [text_of(row.cells[0]) for row in open_source("texts.jsonl", tmp_path).rows(["text"])]
    trained = TextTokenizer(PreTrainedTokenizerFast(tokenizer_object=tokenizer), 16)(read)
    assert [part.tolist() for part in np.split(trained.ids, trained.offsets[1:-1])] == served
    plain = tokenizer.encode("where is my parcel").ids
    assert served[0] == plain[:16] and served.count(plain[:16]) >= (len(ENDS) - 1) ** 2


@given(st.text())
def test_a_stripped_text_is_stripped_once(text: str) -> None:
    stripped = strip_text(text)
    assert strip_text(stripped) == stripped == stripped.strip()
    assert stripped in text and text_or_nothing(text) == stripped


def text_or_nothing(text: str) -> str:
    try:
        return text_of(text)
    except InvalidCell:
        return ""


def mixture(*sizes: int, mixing: float = 0.5) -> Mixture:
    sources = np.repeat(np.arange(len(sizes)), sizes)
    return Mixture(np.random.default_rng(0).permutation(sources), np.array(sizes) ** mixing)


@pytest.mark.parametrize("mixing", [0.0, 0.5, 1.0])
def test_a_source_is_read_in_proportion_to_a_power_of_its_size(mixing: float) -> None:
    mixed = mixture(900, 100, 37, mixing=mixing)
    for epoch in range(3):
        batches = shuffled_batches(lengths(), 16, 0, epoch, mixed)
        rows = np.concatenate(batches)
        assert len(rows) == 1037 and len(batches) == len(shuffled_batches(lengths(), 16, 0, epoch))
        shares = np.array([900, 100, 37]) ** mixing
        assert np.abs(np.bincount(mixed.sources[rows]) - 1037 * shares / shares.sum()).max() <= 1
    if mixing == 1:
        assert sorted(rows) == [*range(1037)]


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(0, 40), min_size=1, max_size=5), st.integers(0, 5), st.integers(1, 6))
def test_no_row_is_read_again_before_every_other_of_its_source(
    sizes: list[int], seed: int, epochs: int
) -> None:
    if not sum(sizes):
        return
    mixed = Mixture(np.repeat(np.arange(len(sizes)), sizes), np.sqrt(np.arange(len(sizes)) + 1.0))
    read = np.concatenate([mixed.rows(seed, epoch) for epoch in range(epochs)])
    assert len(read) == epochs * sum(sizes)
    counts = np.bincount(read, minlength=sum(sizes))
    for source, size in enumerate(sizes):
        own = counts[mixed.sources == source]
        assert size == 0 or own.max() - own.min() <= 1


def test_the_rows_of_an_epoch_depend_on_seed_and_number_alone() -> None:
    mixed = mixture(900, 100, 37)
    again = mixture(900, 100, 37)
    for epoch in (3, 0):  # in any order, as a resumed training asks for them
        one, other = (shuffled_batches(lengths(), 16, 5, epoch, each) for each in (mixed, again))
        assert [rows.tolist() for rows in one] == [rows.tolist() for rows in other]
    assert mixed.rows(0, 0).tolist() != mixed.rows(0, 1).tolist() != mixed.rows(1, 1).tolist()


def test_sources_without_rows_leave_their_share_to_the_others() -> None:
    mixed = Mixture(np.array([0, 0, 2, 2]), np.array([1.0, 5.0, 1.0, 3.0]))
    assert sorted(mixed.rows(0, 0).tolist()) == [0, 1, 2, 3]
    some = mixture(900, 100, 37).of(np.arange(10))
    assert len(some.rows(0, 0)) == 10
