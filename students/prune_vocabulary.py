"""Prunes a WordPiece vocabulary to the pieces that the texts use, and those that cover any text.

Word embeddings are nine tenths of the weights of a tiny student. WordPiece covers a missing word with smaller
pieces, down to letters, so unused pieces can be removed (Abdaoui et al. 2020, arXiv:2010.05609).
"""

from __future__ import annotations

import json
import re
import string
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from students.factorized_embeddings import FactorizedEmbedding

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast


PUNCTUATION = re.compile(f"[{re.escape(string.punctuation)}]")
# kept both as a word and as the continuation of a word
ALWAYS_KEPT = [*string.ascii_letters, *string.digits, *string.punctuation]


def needed_pieces(tokenizer: Any, counts: NDArray[Any], size: int) -> list[int]:
    """The ids of the pieces to keep, in ascending order, at most `size`.

    Special tokens, ASCII letters, digits and punctuation come first, then the pieces that the texts use, by
    frequency, then the first pieces of the vocabulary, which are the most frequent in general.

    Args:
        tokenizer: A fast WordPiece tokenizer.
        counts: Number of occurrences of each piece in the texts, `[pieces]`.
        size: Size of the pruned vocabulary.

    Raises:
        ValueError: The tokenizer is not WordPiece, or `size` is smaller than the number of pieces that are
            always kept or larger than the vocabulary.
    """
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    if (kind := state["model"]["type"]) != "WordPiece":
        problem = f"the tokenizer is {kind!r}, only WordPiece can be pruned (use full)"
        raise ValueError(f"student.vocabulary: {problem}")
    pieces: dict[str, int] = state["model"]["vocab"]
    prefix = state["model"]["continuing_subword_prefix"]
    kept = {token["id"] for token in state["added_tokens"]}
    kept |= {pieces[p] for p in (state["model"]["unk_token"],) if p in pieces}
    bare = {i: piece.removeprefix(prefix) for piece, i in pieces.items()}
    # WordPiece splits at punctuation, so pieces such as [unused1] never occur in a text
    possible = {i for i, p in bare.items() if len(p) == 1 or counts[i] or not PUNCTUATION.search(p)} | kept
    kept |= {pieces[p] for piece in ALWAYS_KEPT for p in (piece, prefix + piece) if p in pieces}
    if size > len(pieces):
        raise ValueError(f"student.vocabulary: {size} pieces, the tokenizer has {len(pieces)} (use full)")
    if size < len(kept):
        always = "the pieces that are always kept: special tokens, ASCII letters, digits and punctuation"
        raise ValueError(f"student.vocabulary: must be >= {len(kept)}, {always}, got {size} (choose more)")
    by_use = np.argsort(-np.asarray(counts), kind="stable").tolist()
    return sorted([*kept, *(i for i in by_use if i in possible and i not in kept)][:size])


def prune_tokenizer(tokenizer: PreTrainedTokenizerFast, kept: Sequence[int]) -> PreTrainedTokenizerFast:
    """A copy of the tokenizer with only the kept pieces, renumbered in their order."""
    from transformers import AutoTokenizer

    number = {old: new for new, old in enumerate(kept)}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tokenizer.save_pretrained(folder)
        for file in folder.glob("vocab*"):  # redundant with tokenizer.json
            file.unlink()
        path = folder / "tokenizer.json"
        state = json.loads(path.read_text(encoding="utf-8"))
        pieces = {piece: number[old] for piece, old in state["model"]["vocab"].items() if old in number}
        state["model"]["vocab"] = dict(sorted(pieces.items(), key=lambda pair: pair[1]))
        for token in state["added_tokens"]:
            token["id"] = number[token["id"]]
        _renumber(state["post_processor"], number)
        if state.get("padding"):
            state["padding"]["pad_id"] = number[state["padding"]["pad_id"]]
        path.write_text(json.dumps(state, ensure_ascii=False), encoding="utf-8")
        about = folder / "tokenizer_config.json"
        settings = json.loads(about.read_text(encoding="utf-8"))
        settings.pop("added_tokens_decoder", None)
        about.write_text(json.dumps(settings, ensure_ascii=False), encoding="utf-8")
        return AutoTokenizer.from_pretrained(folder)


def _renumber(processor: Any, number: dict[int, int]) -> None:
    """Renumber the special tokens in the JSON of a post-processor, in place."""
    if processor is None:
        return
    for side in ("cls", "sep"):  # BertProcessing, RobertaProcessing
        if side in processor:
            token, old = processor[side]
            processor[side] = [token, number[old]]
    for special in processor.get("special_tokens", {}).values():  # TemplateProcessing
        special["ids"] = [number[old] for old in special["ids"]]
    for inner in processor.get("processors", ()):  # Sequence
        _renumber(inner, number)


@torch.no_grad()
def prune_encoder(encoder: PreTrainedModel, kept: Sequence[int]) -> None:
    """Reduce the word embeddings of an encoder, in place, to the rows of the kept pieces."""
    old, rows = encoder.get_input_embeddings(), torch.tensor(kept)
    new: nn.Module
    if isinstance(old, FactorizedEmbedding):
        new = FactorizedEmbedding(old.table[rows], old.projection)
    else:
        padding = kept.index(old.padding_idx) if old.padding_idx in kept else None
        new = nn.Embedding(len(kept), old.weight.shape[1], padding_idx=padding)
        new.weight.copy_(old.weight[rows])
    encoder.set_input_embeddings(new)
    encoder.config.vocab_size = len(kept)
    if encoder.config.pad_token_id in kept:
        encoder.config.pad_token_id = kept.index(encoder.config.pad_token_id)
