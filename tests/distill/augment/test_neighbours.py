"""Near words: whole words only, by the cosine of the teacher's embeddings."""

from types import SimpleNamespace
from typing import Any

import torch
from tokenizers import pre_tokenizers
from tokenizers.decoders import ByteLevel
from torch import nn

from distill.augment.neighbours import nearest_words


def encoder(rows: list[list[float]]) -> Any:
    table = nn.Embedding.from_pretrained(torch.tensor(rows))
    return SimpleNamespace(get_input_embeddings=lambda: table)


def tokenizer(pieces: list[str]) -> Any:
    return SimpleNamespace(
        get_vocab=lambda: {piece: number for number, piece in enumerate(pieces)},
        convert_tokens_to_string=ByteLevel().decode,
    )


def test_nearest_first_and_never_itself() -> None:
    rows = [[9.0, 9.0], [1.0, 0.1], [1.0, 0.2], [-1.0, 0.1], [-1.0, -0.3]]
    found = nearest_words(encoder(rows), tokenizer(["[PAD]", "good", "fine", "bad", "poor"]), 2)
    assert list(found) == ["good", "fine", "bad", "poor"]
    assert found["good"][0] == "fine" and found["bad"][0] == "poor"
    assert all(word not in near and len(near) == 2 for word, near in found.items())


def test_the_words_that_are_asked_for_have_the_neighbours_that_they_have_among_all() -> None:
    torch.manual_seed(0)
    pieces = [a + b for a in "abcdef" for b in "ghijkl"]
    every = encoder(torch.randn(len(pieces), 4).tolist()), tokenizer(pieces), 3
    some = {"ag", "fl", "absent"}
    assert nearest_words(*every, some) == {w: near for w, near in nearest_words(*every).items() if w in some}


def test_pieces_that_are_no_words_take_no_part() -> None:
    pieces = ["##ing", "x", "don't", "2024", "ok", "yes", "[unused1]"]
    found = nearest_words(encoder([[float(i), 1.0] for i in range(7)]), tokenizer(pieces), 15)
    assert found == {"ok": ["yes"], "yes": ["ok"]}


def test_vocabularies_that_mark_the_start_of_a_word() -> None:
    pieces = ["Ġgood", "Ġfine", "good", "ing", "Ġ", "!"]
    found = nearest_words(encoder([[float(i), 1.0] for i in range(6)]), tokenizer(pieces), 3)
    assert found == {"good": ["fine"], "fine": ["good"]}


def test_byte_level_pieces_are_read_as_they_are_written() -> None:
    mapped = pre_tokenizers.ByteLevel(add_prefix_space=False)
    pieces = [mapped.pre_tokenize_str(f" {word}")[0][0] for word in ("straße", "große", "посылка")]
    found = nearest_words(encoder([[float(i), 1.0] for i in range(5)]), tokenizer([*pieces, "ĠÃ", "x"]), 3)
    assert sorted(found) == ["große", "straße", "посылка"]


def test_no_words_no_neighbours() -> None:
    assert nearest_words(encoder([[1.0], [2.0]]), tokenizer(["##a", "word"]), 3) == {}
