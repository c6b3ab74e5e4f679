"""A pruned vocabulary covers any text, and its pieces keep their embeddings."""

from __future__ import annotations

import json
import string
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertTokenizerFast, PreTrainedTokenizerFast

from students.factorized_embeddings import FactorizedEmbedding, factorize
from students.init_from_teacher import init_from_teacher
from students.prune_vocabulary import needed_pieces, prune_encoder, prune_tokenizer
from students.shapes import Shape, build_encoder

SPECIAL = ["[PAD]", "[unused0]", "[unused1]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
SIGNS = [*string.ascii_lowercase, *string.digits, *string.punctuation]
WORDS = ["where", "is", "my", "parcel", "par", "##cel", "order", "##s", "the", "é", "包", "refund"]
PIECES = [*SPECIAL, *WORDS, *SIGNS, *(f"##{sign}" for sign in SIGNS)]
PIECES = list(dict.fromkeys(PIECES))
SAFE = 5 + len(SIGNS) * 2  # and five special ones
SPELLED = ["p", "##a", "##r", "##c", "##e", "##l"]
TEXTS = ["where is my parcel?", "the orders", "Where is my refund, 包?", "zzz 12"]


def backend(around: str = "template") -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece({p: i for i, p in enumerate(PIECES)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    cls, sep = (("[CLS]", PIECES.index("[CLS]")), ("[SEP]", PIECES.index("[SEP]")))
    tokenizer.post_processor = {
        "template": processors.TemplateProcessing("[CLS] $A [SEP]", None, [cls, sep]),
        "bert": processors.BertProcessing(sep, cls),
        "sequence": processors.Sequence([processors.BertProcessing(sep, cls)]),
    }[around]
    tokenizer.add_special_tokens([t for t in SPECIAL if "unused" not in t])
    tokenizer.enable_padding(pad_id=PIECES.index("[PAD]"))
    return tokenizer


NAMES = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}


@pytest.fixture(params=["template", "bert", "sequence"])
def tokenizer(request: pytest.FixtureRequest) -> Any:
    return PreTrainedTokenizerFast(tokenizer_object=backend(request.param), **NAMES)


def counts(**used: int) -> Any:
    found = np.zeros(len(PIECES) + 3, np.int64)  # a table may have more rows than there are pieces
    for piece, count in used.items():
        found[PIECES.index(piece)] = count
    return found


def kept(tokenizer: Any, size: int, **used: int) -> list[str]:
    return [PIECES[i] for i in needed_pieces(tokenizer, counts(**used), size)]


def test_always_kept_pieces_come_first_then_frequency_then_order(tokenizer: Any) -> None:
    found = kept(tokenizer, SAFE + 3, refund=2, where=9, order=5)
    assert set(found) - set(SIGNS) - {f"##{s}" for s in SIGNS} - set(SPECIAL) == {"refund", "where", "order"}
    assert {"[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "z", "##z", "?", "9"} <= set(found)
    assert len(kept(tokenizer, SAFE + 2, refund=2, where=9, order=5)) == SAFE + 2
    assert "refund" not in kept(tokenizer, SAFE + 2, refund=2, where=9, order=5)
    filled = kept(tokenizer, SAFE + 4, refund=1)
    assert {"refund", "where", "is", "my"} <= set(filled) and "parcel" not in filled
    assert found == sorted(found, key=PIECES.index)


def test_pieces_that_cannot_occur_are_removed(tokenizer: Any) -> None:
    assert set(kept(tokenizer, len(PIECES))) == set(PIECES) - {"[unused0]", "[unused1]"}


def test_a_pruned_tokenizer_covers_every_text(tokenizer: Any) -> None:
    chosen = needed_pieces(tokenizer, counts(where=3, **{"is": 2}), SAFE + 2)
    pruned = prune_tokenizer(tokenizer, chosen)
    assert len(pruned) == len(chosen) and pruned.is_fast
    for name, token in NAMES.items():
        assert getattr(pruned, name) == token
        assert pruned.convert_tokens_to_ids(token) == chosen.index(PIECES.index(token))
    whole = [tokenizer.convert_ids_to_tokens(tokenizer(text).input_ids) for text in TEXTS]
    found = [pruned.convert_ids_to_tokens(pruned(text).input_ids) for text in TEXTS]
    assert found[0] == ["[CLS]", "where", "is", "m", "##y", *SPELLED, "?", "[SEP]"]
    assert found[3] == whole[3]
    assert found[2].count("[UNK]") == 1  # a letter of another script that no text had
    assert tokenizer.convert_ids_to_tokens(tokenizer(TEXTS[0]).input_ids) == whole[0], (
        "the first is as it was"
    )


def test_a_pruned_tokenizer_can_be_saved_and_loaded(tokenizer: Any, tmp_path: Any) -> None:
    pruned = prune_tokenizer(tokenizer, needed_pieces(tokenizer, counts(parcel=3), SAFE + 4))
    pruned.save_pretrained(tmp_path)
    again = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert again.get_vocab_size() == SAFE + 4
    again.no_padding()
    assert [again.encode(text).ids for text in TEXTS] == [pruned(text).input_ids for text in TEXTS]


def test_berts_own_class(tmp_path: Any) -> None:
    pruned = prune_tokenizer(
        BertTokenizerFast(tokenizer_object=backend(), **NAMES), [*range(3, len(PIECES) - 4), 0]
    )
    assert pruned.pad_token_id == len(PIECES) - 7 and len(pruned) == len(PIECES) - 6
    assert pruned(TEXTS[0]).input_ids[0] == 1


def test_invalid_sizes_and_tokenizers_are_refused(tokenizer: Any) -> None:
    with pytest.raises(ValueError, match=rf"student.vocabulary: must be >= {SAFE}, .* got {SAFE - 1}"):
        needed_pieces(tokenizer, counts(), SAFE - 1)
    other = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE({"a": 0, "b": 1}, [])))
    with pytest.raises(ValueError, match=r"the tokenizer is 'BPE', only WordPiece .* \(use full\)"):
        needed_pieces(other, np.zeros(2), 500)


@pytest.mark.parametrize("factorized", [True, False])
@torch.no_grad()
def test_pieces_keep_their_embeddings(factorized: bool) -> None:
    torch.manual_seed(0)
    words = len(PIECES)
    student = build_encoder(Shape(1, 8, 2), vocabulary=words, positions=20, pad=0)
    if factorized:
        teacher = build_encoder(Shape(1, 16, 2), vocabulary=words, positions=20, pad=0)
        init_from_teacher(student, teacher)
        factorize(student, teacher)
    student.eval()
    chosen = [0, 3, 4, 5, 8, 20, 21, 40]
    ids = torch.tensor([[4, 8, 21, 40, 5]])
    before = student(ids)[0]
    prune_encoder(student, chosen)
    renumbered = torch.tensor([[chosen.index(i) for i in ids[0].tolist()]])
    torch.testing.assert_close(student(renumbered)[0], before)
    assert student.config.vocab_size == len(chosen)
    assert isinstance(student.get_input_embeddings(), FactorizedEmbedding) == factorized
    assert json.loads(student.config.to_json_string())["vocab_size"] == len(chosen)
