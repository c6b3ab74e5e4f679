"""Attention of a packed network in two forms: the text attends to itself, each label to the text and itself.

Text and labels are one row with a block mask, or the labels are rows that share the keys and values of their
text. Each function gives the attention of all layers but the last, and that of the last layer, whose queries
are the tokens of the text and the [CLS] of each label.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from distill.models.base import Batch

MASKED = -1e9  # attention score of a token that is not attended to
Attention = Callable[[Tensor, Tensor, Tensor], Tensor]  # of query, key, value, [texts, tokens, width]


def shares_text(batch: Batch) -> bool:
    """Whether sharing the text's keys and values is faster for a batch than one row with a block mask.

    One row costs the square of its length in attention; shared rows cost gathering the labels' tokens.
    """
    _, labels, longest = batch["label_places"].shape
    text, tokens = batch["input_ids"].shape[1], batch["label_ids"].shape[1]
    row = (text + tokens) ** 2
    shared = text**2 + labels * longest * (text + longest)
    return row > 2 * shared


def packed_attention(batch: Batch, heads: int) -> tuple[Attention, Attention]:
    """Text and labels as one row: `allow[i, j] = (s_i >= 0) & ((s_j = 0) | (s_i = s_j)) | (i = j)`.

    The segment s of a token is 0 in the text, the number of its label from 1, and -1 in padding.
    """
    mask, labels = batch["attention_mask"], batch["label_segments"]
    text = mask - 1
    labels = (labels + 1).where(labels >= 0, -1).expand(len(mask), -1)
    segments = torch.cat([text, labels], 1)
    to, of = segments[:, None, :], segments[:, :, None]
    allow = (of >= 0) & ((to == 0) | (of == to))
    allow = allow | torch.eye(allow.shape[1], dtype=torch.bool, device=allow.device)
    bias = torch.zeros(allow.shape, device=allow.device).masked_fill(~allow, MASKED)
    first = mask.shape[1] + batch["label_places"][..., 0].clamp(min=0).expand(len(mask), -1)
    of_labels = bias.gather(1, first[:, :, None].expand(-1, -1, bias.shape[2]))
    left = torch.cat([bias[:, : mask.shape[1]], of_labels], 1)

    def attention(bias: Tensor, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        q, k, v = (_split_heads(part, heads) for part in (query, key, value))
        return _join_heads((q @ k.transpose(-1, -2) + bias[:, None].to(q.dtype)).softmax(-1).to(v.dtype) @ v)

    return partial(attention, bias), partial(attention, left)


def shared_attention(batch: Batch, heads: int) -> tuple[Attention, Attention]:
    """Labels as rows `[texts, labels, longest label]` that share the keys and values of their text."""
    places, mask = batch["label_places"], batch["attention_mask"]
    _, labels, longest = places.shape
    length = mask.shape[1]
    own = torch.zeros(places.shape, device=mask.device).masked_fill(places < 0, MASKED)[:, None, :, None]
    text = torch.zeros(mask.shape, device=mask.device).masked_fill(mask == 0, MASKED)[:, None, None]
    there = places.clamp(min=0).flatten(1)
    # where the rows hold each token, to put the rows back in the order of tokens
    segments, starts = batch["label_segments"], places[..., 0]
    number = torch.arange(segments.shape[1], device=mask.device)
    segment = segments.clamp(min=0)
    back = (segment * longest + number - starts.gather(1, segment)).clamp(0, labels * longest - 1)

    def of_labels(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """The context of `[texts, labels x n]` queries, n of each label."""
        q, k, v = (_split_heads(part, heads) for part in (query, key[:, :length], value[:, :length]))
        k_own, v_own = (
            _rows(_split_heads(_take(part[:, length:], there), heads), labels) for part in (key, value)
        )
        scores = _rows(q @ k.transpose(-1, -2) + text.to(q.dtype), labels)
        mine = _rows(q, labels) @ k_own.transpose(-1, -2) + own.to(q.dtype)
        shares = torch.cat([scores, mine], -1).softmax(-1).to(v.dtype)
        context = shares[..., :length].flatten(2, 3) @ v
        context = context + (shares[..., length:] @ v_own).flatten(2, 3)
        return _join_heads(context)

    def of_text(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        q, k, v = (_split_heads(part[:, :length], heads) for part in (query, key, value))
        return _join_heads((q @ k.transpose(-1, -2) + text.to(q.dtype)).softmax(-1).to(v.dtype) @ v)

    def every(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        label = of_labels(_take(query[:, length:], there), key, value)
        return torch.cat([of_text(query, key, value), _take(label, back)], 1)

    def starts_alone(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return torch.cat([of_text(query, key, value), of_labels(query[:, length:], key, value)], 1)

    return every, starts_alone


def _take(states: Tensor, places: Tensor) -> Tensor:
    """The states `[texts, n, width]` at places `[rows, m]` of their second axis, for one row or each text."""
    if len(places) == 1:
        return states.index_select(1, places[0])
    return states.gather(1, places.unsqueeze(2).expand(-1, -1, states.shape[2]))


def _split_heads(states: Tensor, heads: int) -> Tensor:
    """`[texts, tokens, width]` as `[texts, heads, tokens, width / heads]`."""
    texts, tokens, width = states.shape
    return states.view(texts, tokens, heads, width // heads).transpose(1, 2)


def _rows(states: Tensor, labels: int) -> Tensor:
    """`[texts, heads, labels x n, ...]` as `[texts, heads, labels, n, ...]`."""
    texts, heads, tokens, width = states.shape
    return states.reshape(texts, heads, labels, tokens // labels, width)


def _join_heads(states: Tensor) -> Tensor:
    return states.transpose(1, 2).flatten(2)
