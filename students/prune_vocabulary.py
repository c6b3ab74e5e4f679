"""A smaller vocabulary: the word pieces that the texts need, and what any text may need.

Word embeddings are nine tenths of a tiny student. WordPiece spells a word that it lacks with smaller
pieces, down to letters, so a piece that no text needs can go (Abdaoui et al. 2020, arXiv:2010.05609).
"""

from __future__ import annotations

import json
import re
import string
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from students.factorized_embeddings import FactorizedEmbedding

SIGN = re.compile(f"[{re.escape(string.punctuation)}]")
# each alone and as the continuation of a word
SAFE = [*string.ascii_letters, *string.digits, *string.punctuation]


def needed_pieces(tokenizer: Any, counts: NDArray[Any], size: int) -> list[int]:
    """The ids of the pieces to keep, ascending, at most `size`.

    Special tokens and every ASCII letter, digit and sign first, then the pieces that the texts use, by how
    often they do; what room is left goes to the first pieces of the vocabulary, which are the commonest.

    Args:
        tokenizer: A fast tokenizer of WordPiece.
        counts: How often the texts use each piece, `[pieces]`.
        size: Of the vocabulary to be.

    Raises:
        ValueError: It is not WordPiece, or `size` holds not even what any text may need.
    """
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    if (kind := state["model"]["type"]) != "WordPiece":
        problem = f"the tokenizer is {kind}, only WordPiece can be made smaller (use full)"
        raise ValueError(f"student.vocabulary: {problem}")
    pieces: dict[str, int] = state["model"]["vocab"]
    prefix = state["model"]["continuing_subword_prefix"]
    kept = {token["id"] for token in state["added_tokens"]}
    kept |= {pieces[p] for p in (state["model"]["unk_token"],) if p in pieces}
    bare = {i: piece.removeprefix(prefix) for piece, i in pieces.items()}
    # a sign is a piece by itself, so [unused1] and its like come up in no text that these do not tell of
    known = kept | {i for i, piece in bare.items() if len(piece) == 1 or counts[i] or not SIGN.search(piece)}
    kept |= {pieces[p] for sign in SAFE for p in (sign, prefix + sign) if p in pieces}
    if size > len(pieces):
        raise ValueError(f"student.vocabulary: {size} pieces, the tokenizer has {len(pieces)} (use full)")
    if size < len(kept):
        problem = f"{size} pieces hold less than the {len(kept)} that any text may need"
        what = "special tokens, ASCII letters, digits and signs"
        raise ValueError(f"student.vocabulary: {problem} ({what}; ask for more)")
    by_use = np.argsort(-np.asarray(counts), kind="stable").tolist()
    return sorted([*kept, *(i for i in by_use if i in known and i not in kept)][:size])


def prune_tokenizer(tokenizer: Any, kept: Sequence[int]) -> Any:
    """The tokenizer with the kept pieces alone, numbered anew in their order."""
    from transformers import AutoTokenizer

    number = {old: new for new, old in enumerate(kept)}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tokenizer.save_pretrained(folder)
        for file in folder.glob("vocab*"):  # tokenizer.json says it all
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
    """Set the ids of the special tokens in the JSON of a post-processor, in place."""
    if processor is None:
        return
    for side in ("cls", "sep"):  # bert's and roberta's
        if side in processor:
            token, old = processor[side]
            processor[side] = [token, number[old]]
    for special in processor.get("special_tokens", {}).values():  # a template's
        special["ids"] = [number[old] for old in special["ids"]]
    for one in processor.get("processors", ()):  # a sequence's
        _renumber(one, number)


@torch.no_grad()
def prune_encoder(encoder: Any, kept: Sequence[int]) -> None:
    """Leave an encoder, in place, the rows of the kept pieces in its word embeddings."""
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
