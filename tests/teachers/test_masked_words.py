"""Words for gaps: those that a plain forward pass of the same model ranks first, one text at a time."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from teachers import masked_words
from teachers.checkpoints import EncoderError
from teachers.masked_words import MaskedWords

Write = Callable[..., Path]
Gapped = tuple[list[str], list[str], int]
WORDS = ["where", "is", "my", "parcel", "it", "was", "late", "thanks", "great", "money", "back", "refund"]
WORDS += ["the", "order", "box", "two", "week"]


@pytest.fixture(params=["bert", "distilbert", "roberta"])
def folder(request: Any, tmp_path: Path, tiny_masked_lm_folder: Write) -> Path:
    """Of a model with one kind of vocabulary or the other."""
    if request.param == "roberta":
        return roberta(tmp_path / "masked-roberta")
    return tiny_masked_lm_folder(tmp_path, request.param)


def roberta(place: Path) -> Path:
    """A model whose vocabulary marks what begins a word, and whose positions begin at 2."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast, RobertaConfig, RobertaForMaskedLM

    pieces = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", *(f"Ġ{word}" for word in WORDS), "box", "ing", "!"]
    ids = {piece: number for number, piece in enumerate([*pieces, "ĠÐ´Ð°", "Ġa", "Ġ2"])}
    backend = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.TemplateProcessing("<s> $A </s>", None, [("<s>", 0), ("</s>", 2)])
    names = dict(
        zip(("bos_token", "pad_token", "eos_token", "unk_token", "mask_token"), pieces, strict=False)
    )
    names["mask_token"] = AddedToken("<mask>", lstrip=True)  # type: ignore[assignment]
    PreTrainedTokenizerFast(tokenizer_object=backend, **names).save_pretrained(place)
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = RobertaConfig(
        vocab_size=len(ids), **shape, max_position_embeddings=66, pad_token_id=1, initializer_range=0.5
    )
    torch.manual_seed(0)
    RobertaForMaskedLM(config).save_pretrained(place)
    return place


def gapped(count: int, gaps: int = 2) -> list[Gapped]:
    """Texts of 3 to 12 words with gaps, each with a seed of its own."""
    chance, made = random.Random(0), []
    for seed in range(count):
        words = chance.choices(WORDS, k=chance.randint(3, 12))
        places = sorted(chance.sample(range(len(words)), min(gaps, len(words))))
        between = [[], *([] for _ in places)]  # type: ignore[var-annotated]
        for place, word in enumerate(words):
            between[sum(place > p for p in places)].append("" if place in places else word)
        made.append(([" ".join(part) for part in between], [words[p] for p in places], seed))
    return made


class Plain:
    """The model as transformers loads it, read one text at a time."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoModelForMaskedLM, AutoTokenizer

        self.model = AutoModelForMaskedLM.from_pretrained(folder).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder)

    @torch.no_grad()
    def best(self, text: Gapped, top: int) -> list[list[str]]:
        """Of each gap the best words in order, found by trying every piece of the vocabulary."""
        between, words, _ = text
        ids = self.tokenizer(self.tokenizer.mask_token.join(between), return_tensors="pt")["input_ids"]
        logits = self.model(input_ids=ids).logits[0]
        found = []
        for place, word in zip((ids[0] == self.tokenizer.mask_token_id).nonzero()[:, 0], words, strict=True):
            ranked = sorted(range(logits.shape[-1]), key=lambda number: -float(logits[place, number]))
            pieces = [self.tokenizer.convert_ids_to_tokens(number) for number in ranked]
            marked = any(piece.startswith("Ġ") for piece in pieces)
            whole = [piece.removeprefix("Ġ") for piece in pieces if piece.startswith("Ġ") or not marked]
            whole = [{"Ð´Ð°": "да"}.get(piece, piece) for piece in whole]
            whole = [name for name in whole if len(name) > 1 and name.isalpha() and name != word]
            found.append(whole[:top])
        return found


def test_the_best_word_is_that_of_a_plain_forward_pass(folder: Path) -> None:
    texts, plain = gapped(masked_words.BATCH + 40), Plain(folder)
    filled = MaskedWords(str(folder), top=1).fill(texts)
    assert filled == [[names[0] for names in plain.best(text, 1)] for text in texts]
    assert len({word for words in filled for word in words}) > 5  # the words around have their say


def test_words_are_drawn_evenly_among_the_best(folder: Path) -> None:
    text = gapped(1)[0]
    best, words = Plain(folder).best(text, 4), MaskedWords(str(folder), top=4)
    drawn = words.fill([(*text[:2], seed) for seed in range(400)])
    for gap, names in enumerate(best):
        counts = Counter(found[gap] for found in drawn)
        assert set(counts) == set(names) and min(counts.values()) > 70


def test_only_whole_words_and_never_the_word_itself(folder: Path) -> None:
    words = MaskedWords(str(folder), top=1000)
    text = ["", " is late!"], ["Parcel"], 0
    drawn = {words.fill([(*text[:2], seed)])[0][0] for seed in range(400)}
    vocabulary = {piece.removeprefix("Ġ") for piece in words.tokenizer.get_vocab()}
    assert drawn and "parcel" not in drawn and not drawn & {"a", "i", "ing", "2", "!"}
    assert not [word for word in drawn if word.startswith(("#", "[", "<", "Ġ", " "))]
    assert drawn <= vocabulary | {"да"}


def test_the_same_seed_draws_the_same_words(folder: Path) -> None:
    texts, words = gapped(90), MaskedWords(str(folder))
    filled = words.fill(texts)
    assert words.fill(texts) == filled == MaskedWords(str(folder)).fill(texts)
    assert words.fill(texts[:30]) + words.fill(texts[30:]) == filled
    assert words.fill([(*text[:2], seed + 1) for *text, seed in texts]) != filled


def test_gaps_that_are_not_read_keep_their_words(folder: Path) -> None:
    text = [["", *[" parcel "] * 19, ""], ["where"] * 20, 7]
    whole = MaskedWords(str(folder), max_length=500).fill([text])[0]  # type: ignore[list-item]
    cut = MaskedWords(str(folder), max_length=10).fill([text])[0]  # type: ignore[list-item]
    assert "where" not in whole
    assert "where" not in cut[:4] and cut[4:] == ["where"] * 16


def test_texts_are_cut_behind_whatever_the_tokenizer_says(folder: Path) -> None:
    text = (["", *[" parcel "] * 19, ""], ["where"] * 20, 7)
    expected = MaskedWords(str(folder), max_length=10).fill([text])
    about = json.loads((folder / "tokenizer_config.json").read_text())
    about |= {"truncation_side": "left", "padding_side": "left"}
    (folder / "tokenizer_config.json").write_text(json.dumps(about))
    assert MaskedWords(str(folder), max_length=10).fill([text]) == expected


def test_a_text_longer_than_the_positions_is_cut(folder: Path) -> None:
    text = (["", *[" parcel "] * 99, ""], ["where"] * 100, 7)
    filled = MaskedWords(str(folder), max_length=500).fill([text, (["my ", ""], ["box"], 1)])
    assert "where" not in filled[0][:25] and set(filled[0][40:]) == {"where"}
    assert filled[1] != ["box"]


def test_a_text_that_holds_the_mask_itself_stays(folder: Path) -> None:
    words = MaskedWords(str(folder))
    held = ([f"my {words.tokenizer.mask_token} is ", " now"], ["late"], 0)
    free = (["my parcel is ", " now"], ["late"], 0)
    assert words.fill([held, free, held]) == [["late"], *words.fill([free]), ["late"]]


def test_only_the_gaps_are_multiplied_with_the_vocabulary(folder: Path) -> None:
    words, seen = MaskedWords(str(folder)), []
    words.model.get_output_embeddings().register_forward_hook(lambda *call: seen.append(call[2].shape))
    texts = gapped(20)
    words.fill(texts)
    assert seen == [(sum(len(words) for _, words, _ in texts), words.model.config.vocab_size)]


def test_nothing_to_fill(folder: Path) -> None:
    assert MaskedWords(str(folder)).fill([]) == []


def test_an_encoder_without_a_head_is_refused(tmp_path: Path, tiny_encoder_folder: Write) -> None:
    name = str(tiny_encoder_folder(tmp_path))
    with pytest.raises(EncoderError) as caught:
        MaskedWords(name)
    message = str(caught.value)
    assert message.startswith(f"{name}: is no masked-language model: its weights lack cls.predictions.")
    assert "bert-base-uncased" in message and "\n" not in message


def test_a_head_that_lacks_a_weight_is_refused(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    lost = next(name for name in weights if name.endswith(("LayerNorm.bias", "layer_norm.bias")))
    for name in [name for name in weights if name.startswith(("cls", "vocab_transform", "lm_head.dense"))]:
        lost = name
    del weights[lost]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(EncoderError, match=f"its weights lack {lost}"):
        MaskedWords(str(folder))


def test_a_tokenizer_without_a_mask_is_refused(tmp_path: Path, tiny_masked_lm_folder: Write) -> None:
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    folder = tiny_masked_lm_folder(tmp_path)
    backend = AutoTokenizer.from_pretrained(folder).backend_tokenizer
    for file in folder.glob("*token*"):
        file.unlink()
    PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[PAD]").save_pretrained(folder)
    with pytest.raises(EncoderError, match="its tokenizer has no mask token"):
        MaskedWords(str(folder))


def test_what_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EncoderError, match="no such folder"):
        MaskedWords(str(tmp_path / "none"))


def test_the_sha256_of_weights_is_checked(tmp_path: Path, tiny_masked_lm_folder: Write) -> None:
    with pytest.raises(EncoderError, match="has sha256"):
        MaskedWords(str(tiny_masked_lm_folder(tmp_path)), sha256="0" * 64)
