"""Texts and labels as the packed network reads them: with every label, or in training with a sample of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from distill.data.tokens import TextTokenizer, Tokens
from distill.heads import UNLABELLED, Head, columns, width
from distill.models.base import Array

LABEL_TOKENS = 64  # of a label with its description, [CLS] included
NAME_ALONE = 0.5  # share of the labels with a description that training reads without it


def label_text(label: str, description: str | None = None) -> str:
    """A label as it is read: underscores are spaces, and a description follows after a colon."""
    name = " ".join(label.replace("_", " ").split()) or label
    return f"{name}: {description}" if description else name


class LabelTooLongError(ValueError):
    """A label with more tokens than the network reads."""

    exit_code = 2


class LabelTokens:
    """The tokens of the labels of heads, each begun by [CLS], and of the hypotheses of the heads.

    Attributes:
        ids, offsets: The tokens of all texts of labels; text i is `ids[offsets[i]:offsets[i + 1]]`.
        named, described: The number of the text of each label, without and with its description, by column.
        hypotheses: The token ids of each different hypothesis.
        groups: The columns of the heads of each hypothesis.
        pad: The token id of padding.
    """

    def __init__(self, tokenizer: Any, heads: Sequence[Head], limit: int) -> None:
        """Tokenise the labels and hypotheses of heads with a Hugging Face tokenizer.

        Raises:
            LabelTooLongError: A label has more than `limit` tokens.
        """
        first, self.pad = int(tokenizer.cls_token_id), int(tokenizer.pad_token_id or 0)

        def tokens(text: str) -> list[int]:
            return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

        rows: list[list[int]] = []
        named, described = [], []
        for head in heads:
            for label in head.labels:
                description = head.descriptions.get(label)
                for text, numbers in ((None, named), (description, described)):
                    if text is None and numbers is described:
                        numbers.append(named[-1])
                        continue
                    numbers.append(len(rows))
                    rows.append([first, *tokens(label_text(label, text))])
                    if len(rows[-1]) > limit:
                        raise LabelTooLongError(
                            f"heads.{head.name}: label {label[:60]!r} has {len(rows[-1])} tokens, expected at "
                            f"most {limit} (shorten it or its description)"
                        )
        self.ids = np.fromiter((i for row in rows for i in row), np.int64)
        self.offsets = np.concatenate([[0], np.cumsum([len(row) for row in rows], dtype=np.int64)])
        self.named, self.described = np.array(named), np.array(described)
        texts = list(dict.fromkeys(head.hypothesis for head in heads))
        self.hypotheses = [np.array(tokens(text), np.int64) for text in texts]
        self.groups = [
            np.concatenate(
                [np.arange(part.start, part.stop) for head, part in columns(heads) if head.hypothesis == text]
            )
            for text in texts
        ]

    def arrays(self, texts: Array, labels: Array) -> dict[str, Array]:
        """The arrays of labels that `PackedClassifier` reads.

        Args:
            texts: The number of the text of each label, -1 for none, `[rows, labels]`.
            labels: The column of each label, -1 for none, `[rows, labels]`.
        """
        lengths = np.where(texts >= 0, np.diff(self.offsets)[texts], 0)
        starts = np.cumsum(lengths, 1) - lengths
        reach = np.arange(max(1, int(lengths.max())))
        inside = reach < lengths[..., None]
        places = np.where(inside, starts[..., None] + reach, -1)
        shape = len(texts), max(1, int(lengths.sum(1).max()))
        ids, segments = np.full(shape, self.pad, np.int64), np.full(shape, -1, np.int64)
        row, label, token = np.nonzero(inside)
        to = places[row, label, token]
        ids[row, to] = self.ids[self.offsets[texts[row, label]] + token]
        segments[row, to] = label
        return {
            "label_ids": ids,
            "label_segments": segments,
            "label_places": places,
            "label_columns": labels.astype(np.int64),
        }

    def with_hypotheses(self, batch: Mapping[str, Array]) -> dict[str, Array]:
        """The `input_ids` and `attention_mask` of texts, once for each hypothesis, which follows the text."""
        ids, mask = batch["input_ids"], batch["attention_mask"]
        longest = max(map(len, self.hypotheses))
        if not longest:
            return dict(batch)
        lengths, rows = mask.sum(1), np.arange(len(ids))[:, None]
        found: list[tuple[Array, Array]] = []
        for hypothesis in self.hypotheses:
            wide = [np.pad(part, ((0, 0), (0, longest))) for part in (ids, mask)]
            wide[0][:, ids.shape[1] :] = self.pad
            places = lengths[:, None] + np.arange(len(hypothesis))
            wide[0][rows, places], wide[1][rows, places] = hypothesis, 1
            found.append((wide[0], wide[1]))
        return {
            "input_ids": np.concatenate([part for part, _ in found]),
            "attention_mask": np.concatenate([part for _, part in found]),
        }


class PackedTextEncoder:
    """A tokenizer of texts, truncated to `max_length` tokens, that adds every label of the heads."""

    def __init__(self, tokenizer: Any, max_length: int, heads: Sequence[Head], limit: int) -> None:
        self.texts = TextTokenizer(tokenizer, max_length)
        self.labels = LabelTokens(tokenizer, heads, limit)
        self.max_length = max_length
        self.heads = tuple(heads)

    def __call__(self, texts: Sequence[str]) -> PackedTexts:
        """The tokens of texts and labels, in memory."""
        return PackedTexts(self.texts(texts), self.labels, self.heads)

    def to_disk(self, chunks: Iterable[Sequence[str]], path: Path) -> PackedTexts:
        """The tokens of texts that come in chunks, memory-mapped from `path`, and of the labels."""
        return PackedTexts(self.texts.to_disk(chunks, path), self.labels, self.heads)


class PackedTexts:
    """Texts with every label of the heads.

    Attributes:
        lengths: The tokens that the network reads for each text, labels included.
    """

    def __init__(self, texts: Tokens, labels: LabelTokens, heads: Sequence[Head]) -> None:
        self.texts, self.labels, self.heads = texts, labels, heads
        width = max(map(len, labels.groups))
        padded = [np.pad(group, (0, width - len(group)), constant_values=-1) for group in labels.groups]
        self._columns = np.array(padded)
        texts_of = np.where(self._columns >= 0, labels.described[self._columns], -1)
        self._arrays = labels.arrays(texts_of, self._columns)
        self.lengths = self._lengths(int((self._arrays["label_segments"] >= 0).sum()))

    def __len__(self) -> int:
        return len(self.texts)

    def batch(self, rows: Array) -> dict[str, Array]:
        """The arrays that `PackedClassifier` reads, with every label."""
        arrays = self._arrays
        if len(self.labels.groups) > 1:
            arrays = {name: np.repeat(array, len(rows), 0) for name, array in arrays.items()}
        return self.labels.with_hypotheses(self.texts.batch(rows)) | arrays

    def _lengths(self, label_tokens: int) -> Array:
        hypotheses = self.labels.hypotheses
        return self.texts.lengths * len(hypotheses) + sum(map(len, hypotheses)) + label_tokens


class SampledTexts(PackedTexts):
    """Texts with their own labels and a sample of others, drawn again for each batch.

    The draw depends on torch's generator, which the training loop seeds by step.
    """

    def __init__(
        self, texts: PackedTexts, hard: Mapping[str, Array], soft: Mapping[str, Array], negatives: int
    ) -> None:
        """Take encoded texts and their labels.

        Args:
            texts: The texts.
            hard: The labels of each head, as `losses.hard_loss` takes them.
            soft: The teacher's logits of each head that it knows, `[texts, labels]`. Half of the sample are
                the teacher's best labels.
            negatives: The number of labels a head that are sampled for a text besides its own.
        """
        super().__init__(texts.texts, texts.labels, texts.heads)
        self.hard, self.soft, self.negatives = hard, soft, negatives
        sampled = sum(min(len(head.labels), negatives + 1) for head in self.heads)
        mean = (np.diff(self.labels.offsets)[self.labels.described]).mean()
        self.lengths = self._lengths(round(sampled * float(mean)))

    def batch(self, rows: Array) -> dict[str, Array]:
        """The arrays that `PackedClassifier` reads, with sampled labels."""
        chosen = dict(self._chosen(rows))
        found = []
        for group in self.labels.groups:
            parts = [chosen[part.start] for _, part in columns(self.heads) if part.start in group]
            found.append(np.concatenate(parts, 1))
        labels = max(part.shape[1] for part in found)
        every = np.concatenate(
            [np.pad(part, ((0, 0), (0, labels - part.shape[1])), constant_values=-1) for part in found]
        )
        texts = np.where(every >= 0, self.labels.described[every], -1)
        alone = np.where(every >= 0, self.labels.named[every], -1)
        texts = np.where(torch.rand(texts.shape).numpy() < NAME_ALONE, alone, texts)
        return self.labels.with_hypotheses(self.texts.batch(rows)) | self.labels.arrays(texts, every)

    def _chosen(self, rows: Array) -> Iterable[tuple[int, Array]]:
        """The first column of each head, and the columns `[rows, labels]` that are sampled of it."""
        random = torch.rand(len(rows), width(self.heads)).numpy()
        for head, part in columns(self.heads):
            rank = random[:, part]
            count = np.full(len(rows), self.negatives + 1)
            if (soft := self.soft.get(head.name)) is not None:
                best = (self.negatives + 1) // 2
                order = np.argsort(-np.asarray(soft[rows]), 1)[:, :best]
                np.put_along_axis(rank, order, np.take_along_axis(rank, order, 1) + 1, 1)
            hard = self.hard[head.name][rows]
            if head.kind == "single_label":
                known = np.flatnonzero(hard != UNLABELLED)
                rank[known, hard[known]] = 3
            else:
                rank = np.where(hard == 1, 3, rank)
                count = self.negatives + np.maximum(1, (hard == 1).sum(1))
            most = min(len(head.labels), int(count.max()))
            order = np.argsort(-rank, 1)[:, :most]
            yield part.start, np.where(np.arange(most) < count[:, None], part.start + order, -1)
