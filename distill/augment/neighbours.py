"""The nearest words of each word in a teacher's word embeddings.

Jiao et al. 2020 (TinyBERT, arXiv:1909.10351, section 3.2 and appendix A) replace a word by one of its nearest
in GloVe. The teacher's embeddings need no further file.
"""

from __future__ import annotations

from collections.abc import Container
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

BATCH = 1024  # words compared with all others at a time


@torch.no_grad()
def nearest_words(
    encoder: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    count: int,
    of: Container[str] | None = None,
) -> dict[str, list[str]]:
    """The `count` nearest words of whole words of the vocabulary, nearest first.

    The distance is the cosine of the embeddings minus their mean.

    Args:
        encoder: Whose word embeddings.
        tokenizer: Whose vocabulary.
        count: Of near words.
        of: The words to compare with all others; by default all.
    """
    words = whole_words(tokenizer)
    if len(words) < 2:
        return {}
    names = list(words)
    table: Tensor = encoder.get_input_embeddings().weight.detach().float()
    rows = table[list(words.values())]
    rows = torch.nn.functional.normalize(rows - rows.mean(0), dim=-1)
    found: dict[str, list[str]] = {}
    wanted = torch.tensor([i for i, name in enumerate(names) if of is None or name in of], dtype=torch.long)
    for start in range(0, len(wanted), BATCH):
        some = wanted[start : start + BATCH]
        near = rows[some] @ rows.T
        near[torch.arange(len(some)), some] = -2  # a word is not its own neighbour
        nearest = near.topk(min(count, len(names) - 1)).indices
        for word, best in zip(some.tolist(), nearest.tolist(), strict=True):
            found[names[word]] = [names[i] for i in best]
    return found


def whole_words(tokenizer: PreTrainedTokenizerFast) -> dict[str, int]:
    """The pieces of a vocabulary that are words of two letters or more, and their ids, by rising id."""
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    # byte-level and sentencepiece vocabularies mark the first piece of a word, wordpiece the other pieces
    begins = {mark: sum(piece.startswith(mark) for piece in vocabulary) for mark in ("##", "Ġ", "▁")}
    most = max(begins, key=lambda mark: begins[mark])
    mark = "" if most == "##" else most
    words = {}
    for piece, number in sorted(vocabulary.items(), key=lambda item: item[1]):
        if piece.startswith(mark):
            # byte-level pieces encode what is not ASCII in other letters
            word = tokenizer.convert_tokens_to_string([piece]).strip() if mark == "Ġ" else piece[len(mark) :]
            if len(word) > 1 and word.isalpha():
                words[word] = number
    return words
