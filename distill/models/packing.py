"""Texts and labels as a packed network reads them: with every label, or in training with a sample of them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from distill.data.tokens import TextTokenizer, Tokens
from distill.heads import UNLABELLED, Head, columns
from distill.models.base import Array
from export.text import label_text

LABEL_TOKENS = 64  # of a label with its description, [CLS] included
HYPOTHESIS_TOKENS = 32
NAME_ALONE = 0.5  # share of the described labels that training reads without their description
EXAMPLES = 0.3  # share of the labels that training replaces by another text of the label
EXAMPLE_TOKENS = 12  # of such a text, [CLS] included
EXAMPLES_A_LABEL = 64  # texts that may replace a label
TEMPERATURE = 0.2  # of the similarity by which labels are drawn; lower values draw only the most similar
CERTAIN = 100.0  # above every sum of similarity and noise


class LabelError(Exception):
    """A label or a hypothesis has more tokens than the network reads."""

    exit_code = 2


def reserved_positions(heads: Sequence[Head]) -> int:
    """The positions that a packed network needs beyond those of its texts."""
    return LABEL_TOKENS + (HYPOTHESIS_TOKENS if any(head.hypothesis for head in heads) else 0)


class LabelTokens:
    """The tokens of the labels of heads, each begun by [CLS], and of the hypotheses of the heads.

    Attributes:
        heads: The heads.
        ids: The tokens of all texts of labels, one after the other.
        offsets: Text i is `ids[offsets[i]:offsets[i + 1]]`.
        named: The number of the text of each label without its description, by column of the logits.
        described: The same with its description, where it has one.
        hypotheses: The token ids of each different hypothesis.
        groups: The heads of each hypothesis.
        pad: The token id of padding.
    """

    def __init__(self, tokenizer: Any, heads: Sequence[Head], label: int, hypothesis: int) -> None:
        """Tokenise labels and hypotheses.

        Args:
            tokenizer: Of transformers.
            heads: Whose labels and hypotheses.
            label: The most tokens of a label.
            hypothesis: The most tokens of a hypothesis.

        Raises:
            LabelError: A label or a hypothesis has more tokens.
        """
        self.heads, self.pad = tuple(heads), int(tokenizer.pad_token_id or 0)

        def tokens(head: Head, what: str, text: str, most: int, first: Sequence[int] = ()) -> list[int]:
            ids = [*first, *tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]]
            if len(ids) > most:
                raise LabelError(
                    f"heads.{head.name}: {what} {text[:60]!r} has {len(ids)} tokens, expected at most {most} "
                    "(shorten it)"
                )
            return ids

        rows: list[list[int]] = []
        seen: dict[tuple[str | int, ...], str] = {}
        named: list[int] = []
        described: list[int] = []
        for head in heads:
            for name in head.labels:
                texts = [label_text(name)]
                if description := head.descriptions.get(name):
                    texts.append(label_text(name, description))
                named.append(len(rows))
                rows += [tokens(head, "label", text, label, [int(tokenizer.cls_token_id)]) for text in texts]
                described.append(len(rows) - 1)
                if (other := seen.setdefault((head.name, *rows[-1]), name)) != name:
                    raise LabelError(
                        f"heads.{head.name}: labels {name!r:.60} and {other!r:.60} are the same tokens to "
                        "the network (rename one, or describe it in `descriptions`)"
                    )
        self.ids = np.fromiter((i for row in rows for i in row), np.int64)
        self.offsets = np.concatenate([[0], np.cumsum([len(row) for row in rows], dtype=np.int64)])
        self.named, self.described = np.array(named), np.array(described)
        groups: dict[str, list[Head]] = {}
        for head in heads:
            groups.setdefault(head.hypothesis, []).append(head)
        self.groups = list(groups.values())
        self.hypotheses = [
            np.array(tokens(some[0], "hypothesis", text, hypothesis), np.int64)
            for text, some in groups.items()
        ]

    def arrays(
        self, of_heads: Mapping[str, Array], texts_of: Callable[[Array], Array] | None = None
    ) -> dict[str, Array]:
        """The arrays of labels that `PackedClassifier` reads.

        Args:
            of_heads: The columns of the labels of each head, -1 for none, `[rows, labels]`.
            texts_of: Maps columns to the numbers of the texts that their labels are read as; by default
                `described`.
        """
        parts = [np.concatenate([of_heads[head.name] for head in group], 1) for group in self.groups]
        labels = max(part.shape[1] for part in parts)
        wide = [np.pad(part, ((0, 0), (0, labels - part.shape[1])), constant_values=-1) for part in parts]
        every = np.concatenate(wide)
        texts = self.described[every] if texts_of is None else texts_of(every)
        lengths = np.where(every >= 0, np.diff(self.offsets)[texts], 0)
        starts = np.cumsum(lengths, 1) - lengths
        inside = np.arange(int(lengths.max())) < lengths[..., None]
        places = np.where(inside, starts[..., None] + np.arange(inside.shape[2]), -1)
        shape = len(every), int(lengths.sum(1).max())
        ids, segments = np.full(shape, self.pad, np.int64), np.full(shape, -1, np.int64)
        row, label, token = np.nonzero(inside)
        to = places[row, label, token]
        ids[row, to] = self.ids[self.offsets[texts[row, label]] + token]
        segments[row, to] = label
        return {
            "label_ids": ids,
            "label_segments": segments,
            "label_places": places,
            "label_columns": every.astype(np.int64),
        }

    def with_texts(self, texts: Tokens, rows: Array) -> LabelTokens:
        """The same with the beginnings of texts, of at most 12 tokens, as further texts of labels."""
        lengths = np.minimum(texts.lengths[rows] - 1, EXAMPLE_TOKENS)  # without [SEP]
        inside = np.arange(EXAMPLE_TOKENS) < lengths[:, None]
        places = np.minimum(texts.offsets[rows][:, None] + np.arange(EXAMPLE_TOKENS), len(texts.ids) - 1)
        other = copy.copy(self)
        other.ids = np.concatenate([self.ids, texts.ids[places][inside].astype(np.int64)])
        other.offsets = np.concatenate([self.offsets, self.offsets[-1] + np.cumsum(lengths)])
        return other

    def with_hypotheses(self, batch: Mapping[str, Array]) -> dict[str, Array]:
        """The `input_ids` and `attention_mask` of texts, once for each hypothesis, which follows the text."""
        longest = max(map(len, self.hypotheses))
        lengths, rows = batch["attention_mask"].sum(1), np.arange(len(batch["input_ids"]))[:, None]
        parts = []
        for hypothesis in self.hypotheses:
            ids = np.pad(batch["input_ids"], ((0, 0), (0, longest)), constant_values=self.pad)
            mask = np.pad(batch["attention_mask"], ((0, 0), (0, longest)))
            places = lengths[:, None] + np.arange(len(hypothesis))
            ids[rows, places], mask[rows, places] = hypothesis, 1
            parts.append((ids, mask))
        ids, mask = map(np.concatenate, zip(*parts, strict=True))
        return {"input_ids": ids, "attention_mask": mask}


class PackedTextEncoder:
    """A tokenizer of texts, truncated to `max_length` tokens, that adds labels."""

    def __init__(self, tokenizer: Any, max_length: int, labels: LabelTokens) -> None:
        self.texts, self.labels = TextTokenizer(tokenizer, max_length), labels
        self.max_length = max_length

    def __call__(self, texts: Sequence[str]) -> PackedTexts:
        """The tokens of texts and labels, in memory."""
        return PackedTexts(self.texts(texts), self.labels)

    def to_disk(self, chunks: Iterable[Sequence[str]], path: Path) -> PackedTexts:
        """The tokens of texts that come in chunks, memory-mapped from `path`, and of the labels."""
        return PackedTexts(self.texts.to_disk(chunks, path), self.labels)


class PackedTexts:
    """Texts with every label of the heads.

    Attributes:
        lengths: The tokens that the network reads for each text, those of the labels included.
    """

    def __init__(self, texts: Tokens, labels: LabelTokens) -> None:
        self.texts, self.labels = texts, labels
        every = {h.name: np.arange(part.start, part.stop)[None] for h, part in columns(labels.heads)}
        self._arrays = labels.arrays(every)
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
    """Texts with their own labels and a sample of others, which is drawn again for each batch.

    Labels with similar texts are drawn more often, because they are hard to tell apart. Some labels are
    replaced by another text of that label, so that the network learns to compare meanings and does not
    memorise names. The draw depends on torch's generator, which the training loop seeds by step.
    """

    def __init__(
        self,
        texts: PackedTexts,
        hard: Mapping[str, Array],
        soft: Mapping[str, Array],
        negatives: int,
        examples: Mapping[str, Sequence[Array]],
        similarity: Mapping[str, Array],
    ) -> None:
        """Take encoded texts and their labels.

        Args:
            texts: The texts.
            hard: The labels of each head, as `losses.hard_loss` takes them.
            soft: The teacher's logits of each head that it knows, `[texts, labels]`. The teacher's best
                labels are half of the sample.
            negatives: The number of labels of each head that are drawn for a text besides its own.
            examples: The rows of some texts of each label of each head.
            similarity: Of the texts of two labels of a head, `[labels, labels]`, from -1 to 1.
        """
        super().__init__(texts.texts, texts.labels)
        self.hard, self.soft, self.negatives, self.similarity = hard, soft, negatives, similarity
        drawn = sum(min(len(head.labels), negatives + 1) for head in self.labels.heads)
        self.lengths = self._lengths(round(drawn * len(self.labels.ids) / len(np.diff(self.labels.offsets))))
        self._names = len(self.labels.offsets) - 1
        rows = [some for head in self.labels.heads for some in examples[head.name]]
        self._examples, numbers = np.unique(
            np.concatenate([np.empty(0, np.int64), *rows]), return_inverse=True
        )
        self.labels = self.labels.with_texts(self.texts, self._examples)
        # of each column, the numbers of the texts of labels that are its examples, -1 for none
        self._table = np.full((len(rows), EXAMPLES_A_LABEL), -1)
        for row, some in zip(self._table, np.split(numbers, np.cumsum([*map(len, rows)])[:-1]), strict=True):
            if len(some):
                row[:] = np.resize(some, EXAMPLES_A_LABEL)

    def batch(self, rows: Array) -> dict[str, Array]:
        """The arrays that `PackedClassifier` reads, with the labels that are drawn."""
        arrays = self.labels.arrays(dict(self._drawn(rows)), partial(self._texts_of, rows))
        return self.labels.with_hypotheses(self.texts.batch(rows)) | arrays

    def _texts_of(self, rows: Array, every: Array) -> Array:
        """The numbers of the texts of the labels in these columns `[hypotheses x rows, labels]`."""
        names = np.where(
            _uniform(every.shape) < NAME_ALONE, self.labels.named[every], self.labels.described[every]
        )
        place = (_uniform(every.shape) * EXAMPLES_A_LABEL).astype(np.int64)
        example = self._table[every, place]
        of_text = self._examples[example] if len(self._examples) else example
        own = of_text == np.tile(rows, len(every) // len(rows))[:, None]
        chosen = (_uniform(every.shape) < EXAMPLES) & (example >= 0) & ~own
        return np.where(chosen, self._names + example, names)

    def _drawn(self, rows: Array) -> Iterator[tuple[str, Array]]:
        """Each head and the columns `[rows, labels]` that are drawn of it, -1 for none.

        The labels with the largest sums of a weight and Gumbel noise are a draw without replacement.
        """
        for head, part in columns(self.labels.heads):
            own, weight = self.hard[head.name][rows], self.similarity[head.name] / TEMPERATURE
            rank = -np.log(-np.log(_uniform((len(rows), len(head.labels))).clip(1e-9, 1 - 1e-7)))
            count = np.full(len(rows), self.negatives + 1)
            if head.kind == "single_label":
                known = np.flatnonzero(own != UNLABELLED)
                rank[known] += weight[own[known]]
                rank[known, own[known]] = np.inf
            else:
                positive = own == 1
                rank += positive @ weight / np.maximum(1, positive.sum(1, keepdims=True))
                rank[positive] = np.inf
                count = self.negatives + np.maximum(1, positive.sum(1))
            if head.name in self.soft:
                soft = np.asarray(self.soft[head.name][rows])
                best = np.argsort(-soft, 1)[:, : (self.negatives + 1) // 2]
                certain = np.where(np.isnan(soft).any(1, keepdims=True), 0.0, CERTAIN)  # NaN: not known
                np.put_along_axis(rank, best, np.take_along_axis(rank, best, 1) + certain, 1)
            most = min(len(head.labels), int(count.max()))
            order = np.argsort(-rank, 1)[:, :most]
            yield head.name, np.where(np.arange(most) < count[:, None], part.start + order, -1)


def rows_of_labels(head: Head, labels: Array) -> list[Array]:
    """The rows of at most 64 texts of each label of a head, evenly spread.

    Args:
        head: The head.
        labels: Class indices `[texts]`, or 0/1 `[texts, labels]`.
    """
    found = []
    for number in range(len(head.labels)):
        rows = np.flatnonzero(labels == number if head.kind == "single_label" else labels[:, number] == 1)
        found.append(rows[:: max(1, -(-len(rows) // EXAMPLES_A_LABEL))])
    return found


def _uniform(shape: Sequence[int]) -> Array:
    """Numbers from 0 to 1 of torch's generator."""
    drawn: Array = torch.rand(*shape).numpy()
    return drawn
