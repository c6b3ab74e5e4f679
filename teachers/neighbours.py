"""The nearest words of each word, by a teacher's own word embeddings.

Jiao et al. 2020 (TinyBERT, arXiv:1909.10351, section 3.2 and appendix A) replace a word by one of its
nearest in GloVe; the teacher's table needs no further file, and knows the words as the teacher does.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

BATCH = 1024  # words compared with all others at once


@torch.no_grad()
def nearest_words(encoder: Any, tokenizer: Any, count: int) -> dict[str, list[str]]:
    """The `count` nearest words of each whole word of the vocabulary, nearest first.

    Near is by the cosine of the embeddings less their mean.

    Args:
        encoder: A transformers model.
        tokenizer: Its tokenizer.
        count: Neighbours a word.
    """
    words = whole_words(tokenizer)
    if len(words) < 2:
        return {}
    names = list(words)
    table: Tensor = encoder.get_input_embeddings().weight.detach().float()
    rows = table[list(words.values())]
    rows = torch.nn.functional.normalize(rows - rows.mean(0), dim=-1)
    found: dict[str, list[str]] = {}
    for start in range(0, len(names), BATCH):
        near = rows[start : start + BATCH] @ rows.T
        here = torch.arange(len(near))
        near[here, start + here] = -2  # a word is not its own neighbour
        for row, best in zip(
            here.tolist(), near.topk(min(count, len(names) - 1)).indices.tolist(), strict=True
        ):
            found[names[start + row]] = [names[i] for i in best]
    return found


def whole_words(tokenizer: Any) -> dict[str, int]:
    """The pieces of a vocabulary that are words of two letters or more, and their ids, in their order.

    Only as the tokenizer writes the start of a word, but without its mark of one.
    """
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    # byte-level and sentencepiece vocabularies mark what begins a word; wordpiece marks what does not
    begins = {mark: sum(piece.startswith(mark) for piece in vocabulary) for mark in ("##", "Ġ", "▁")}
    most = max(begins, key=lambda mark: begins[mark])
    mark = "" if most == "##" else most
    words = {}
    for piece, number in sorted(vocabulary.items(), key=lambda item: item[1]):
        if piece.startswith(mark):
            # byte-level pieces spell what is not ASCII in other letters
            word = tokenizer.convert_tokens_to_string([piece]).strip() if mark == "Ġ" else piece[len(mark) :]
            if len(word) > 1 and word.isalpha():
                words[word] = number
    return words
