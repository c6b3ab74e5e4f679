"""Runs the ONNX file of a packed bundle: token ids of texts and labels in, a logit for each label out."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import replace
from pathlib import Path
from reprlib import repr as short
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from onnxruntime import RunOptions, SessionOptions

from export.bundle.manifest import PACKED, STRING, BundleError, Head, Manifest, unknown
from export.runtime.postprocess import columns
from export.runtime.probabilities import Floats
from export.runtime.session import REQUIRED_INPUTS, Ids, Session, open_graph
from export.runtime.tokenizer import LabelTokenizer
from export.text import label_text, strip_text

LABEL_IDS, LABEL_MASK = LABEL_INPUTS = ("label_ids", "label_mask")
BLOCK = 256  # labels that are read together
TOKENS = 4096  # of the texts and labels that are read together
MIN_TEXT = 8  # tokens that a hypothesis leaves to a text
_AGAIN = "(export it again)"


class _Block(NamedTuple):
    """Labels that are read together, and where their logits belong.

    Attributes:
        feed: `label_ids` and `label_mask`, int64 `[labels, longest label]`.
        tokens: The number of tokens of the labels.
        outputs: The outputs of the graph that give the logits.
        parts: For each output, its labels in the block and in the logits of all heads.
    """

    feed: dict[str, NDArray[np.int64]]
    tokens: int
    outputs: list[str]
    parts: list[tuple[slice, slice]]


class _Group(NamedTuple):
    """The heads of one hypothesis."""

    hypothesis: tuple[int, ...]
    blocks: list[_Block]


class PackedSession(Session):
    """Logits `[texts, labels of all heads]` as `Session` gives them, for heads whose labels are input.

    Args:
        graph: The content of the ONNX file.
        where: Path of the file, for messages.
        manifest: Manifest that the file must match.
        max_id: Largest token id.
        threads: Number of batches that run at the same time.
        labels: Tokeniser of labels and hypotheses.

    Raises:
        BundleError: See `Session`; or a label of the manifest has too many tokens.
    """

    def __init__(
        self,
        graph: bytes,
        where: Path,
        manifest: Manifest,
        max_id: int,
        threads: int,
        labels: LabelTokenizer,
    ) -> None:
        self._labels = labels
        super().__init__(graph, where, manifest, max_id, threads)

    def with_heads(self, heads: Sequence[Head]) -> PackedSession:
        """A session of the same graph for heads with other labels and hypotheses.

        Raises:
            ValueError: A label or a hypothesis has too many tokens.
        """
        other = copy.copy(self)
        other._groups, other._width = self._grouped(heads), sum(len(head.labels) for head in heads)
        longest = max(len(group.hypothesis) for group in other._groups)
        if longest > self._room - self._least:
            most = self._room - self._least
            raise ValueError(f"hypothesis: has {longest} tokens, expected at most {most} (shorten it)")
        return other

    @property
    def label_tokens(self) -> int:
        """The number of tokens that are read with each text: those of labels and hypotheses."""
        return sum(len(g.hypothesis) + sum(block.tokens for block in g.blocks) for g in self._groups)

    def run(self, ids: Ids) -> Floats:
        """The logits of one batch, padded to its longest text.

        Raises:
            BundleError: onnxruntime cannot compute them, or they are not finite or of another shape.
        """
        logits = np.empty((len(ids), self._width), np.float32)
        for group in self._groups:
            rows = self._with_hypothesis(ids, group.hypothesis)
            longest = max(map(len, rows))
            for block in group.blocks:
                size = max(1, TOKENS // (longest + block.tokens))
                for first in range(0, len(rows), size):
                    some = slice(first, first + size)
                    found = self._scores(block.outputs, rows[some], block.feed)
                    for (of_block, of_heads), scores in zip(block.parts, found, strict=True):
                        logits[some, of_heads] = scores[:, of_block]
        return logits

    def _scores(
        self,
        outputs: list[str],
        texts: Ids,
        labels: dict[str, NDArray[np.int64]],
        options: RunOptions | None = None,
    ) -> list[Floats]:
        """The logits `[texts, labels]` of each output."""
        found = self._compute(outputs, texts, options, **labels)
        expected = len(texts), len(labels[LABEL_IDS])
        if wrong := {part.shape for part in found} - {expected}:
            problem = f"logits must have shape {expected}, got {short(sorted(wrong))}"
            raise BundleError(f"{self._where}: {problem} {_AGAIN}")
        return found

    def _with_hypothesis(self, ids: Ids, hypothesis: tuple[int, ...]) -> Ids:
        """Texts followed by a hypothesis. One longer than those of the bundle takes the place of tokens."""
        most = self._room - len(hypothesis)
        ids = [row if len(row) <= most else [*row[: most - 1], row[-1]] for row in ids]
        return [[*row, *hypothesis] for row in ids] if hypothesis else ids

    def _open(
        self, graph: bytes, manifest: Manifest, max_id: int, options: SessionOptions, trial: RunOptions
    ) -> None:
        try:
            self._groups = self._grouped(manifest.heads)
        except ValueError as error:
            raise BundleError(f"{self._where}: {error} {_AGAIN}") from None
        # the positions of the graph without those of a label, and those that a hypothesis leaves to a text
        self._room = manifest.max_length + max(len(group.hypothesis) for group in self._groups)
        self._least = min(MIN_TEXT, manifest.max_length)
        self._session = open_graph(graph, self._where, options)
        self._inputs = [node.name for node in self._session.get_inputs()]
        expected = {*REQUIRED_INPUTS, *LABEL_INPUTS}
        if {*self._inputs} != expected:
            raise BundleError(
                f"{self._where}: inputs must be {sorted(expected)}, got {short(self._inputs)} {_AGAIN}"
            )
        heads = [head.output for head in manifest.heads]
        types = {node.name: node.type for node in self._session.get_outputs()}
        if wrong := [name for name in heads if types.get(name) != "tensor(float)"]:
            raise BundleError(
                f"{self._where}: no float32 outputs {short(wrong)}, got {short(types)} {_AGAIN}"
            )
        trial.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
        text = [self._pad] * (self._room - 1) + [max_id]
        for texts, labels in (([text], [manifest.label_length, 1]), ([text[-1:], text[-2:]], [1])):
            mask = np.arange(max(labels)) < np.array(labels)[:, None]
            feed = {LABEL_IDS: np.where(mask, max_id, self._pad), LABEL_MASK: mask.astype(np.int64)}
            self._scores(heads, texts, feed, trial)

    def _grouped(self, heads: Sequence[Head]) -> list[_Group]:
        found: dict[str, list[tuple[str, int, tuple[int, ...]]]] = {}
        starts = columns(heads)
        for head in heads:
            entries = found.setdefault(head.hypothesis, [])
            seen: dict[tuple[int, ...], str] = {}
            for number, label in enumerate(head.labels, starts[head.name].start):
                ids = self._labels.label(label_text(label, head.descriptions.get(label)))
                if (other := seen.setdefault(ids, label)) != label:
                    problem = f"{short(label)} and {short(other)} are the same tokens to the network"
                    raise ValueError(f"labels: {problem} (remove one, or describe it in words it knows)")
                entries.append((head.output, number, ids))
        return [
            _Group(
                self._labels.hypothesis(hypothesis),
                [
                    _block(entries[first : first + BLOCK], self._pad)
                    for first in range(0, len(entries), BLOCK)
                ],
            )
            for hypothesis, entries in found.items()
        ]


def open_session(
    graph: bytes, where: Path, manifest: Manifest, max_id: int, tokenizer: bytes, threads: int
) -> Session:
    """The session of an ONNX file of a bundle, by the kind of the bundle.

    Args:
        graph: The content of the ONNX file.
        where: Path of the file, for messages.
        manifest: Manifest that the file must match.
        max_id: Largest token id.
        tokenizer: The content of tokenizer.json, which tokenises labels.
        threads: Number of batches that run at the same time.

    Raises:
        BundleError: See `Session` and `PackedSession`.
    """
    if manifest.kind != PACKED:
        return Session(graph, where, manifest, max_id, threads)
    labels = LabelTokenizer(tokenizer, manifest.label_length, where)
    return PackedSession(graph, where, manifest, max_id, threads, labels)


def _block(entries: Sequence[tuple[str, int, tuple[int, ...]]], pad: int) -> _Block:
    """A block of labels: for each, the output that scores it, its column of the logits, and its tokens."""
    lengths = np.array([len(ids) for _, _, ids in entries])
    mask = np.arange(lengths.max()) < lengths[:, None]
    tokens = np.full(mask.shape, pad, np.int64)
    tokens[mask] = [token for _, _, ids in entries for token in ids]
    outputs = [output for output, _, _ in entries]
    parts = []
    for output in (names := list(dict.fromkeys(outputs))):
        first, count = outputs.index(output), outputs.count(output)
        column = entries[first][1]
        parts.append((slice(first, first + count), slice(column, column + count)))
    feed = {LABEL_IDS: tokens, LABEL_MASK: mask.astype(np.int64)}
    return _Block(feed, int(lengths.sum()), names, parts)


class Labels(NamedTuple):
    """The labels, with their descriptions, that a classifier reads for one head in place of its own."""

    labels: tuple[tuple[str, str | None], ...]
    head: str
    hypothesis: str | None

    @classmethod
    def of(cls, manifest: Manifest, labels: object, head: str | None, hypothesis: str | None) -> Labels:
        """The labels of a call. By default, they are those of the only head.

        Raises:
            ValueError: The bundle has fixed labels or several heads, the head is unknown, or `check_labels`.
        """
        if manifest.kind != PACKED:
            raise ValueError(
                "labels: are fixed in this bundle, expected a packed one (train network: packed)"
            )
        names = [head.name for head in manifest.heads]
        if head is None and len(names) > 1:
            raise ValueError(f"labels: are of one head, expected heads to name one of {names}")
        if head is not None and head not in names:
            raise ValueError(unknown("head", head, names))
        return cls(check_labels(labels), head or names[0], check_hypothesis(hypothesis))

    def replacing(self, head: Head) -> Head:
        """The head with these labels. Labels that it knows keep their descriptions and thresholds.

        It always answers: when to abstain was measured on the labels of the bundle.
        """
        known = {**head.descriptions, **{label: text for label, text in self.labels if text is not None}}
        thresholds = dict(zip(head.labels, head.thresholds or (), strict=False))
        labels = tuple(label for label, _ in self.labels)
        return replace(
            head,
            labels=labels,
            label_type=STRING,
            hypothesis=head.hypothesis if self.hypothesis is None else self.hypothesis,
            descriptions={label: known[label] for label in labels if label in known},
            thresholds=tuple(thresholds.get(label, 0.5) for label in labels) if thresholds else None,
            abstain=None,
        )


def check_labels(labels: object) -> tuple[tuple[str, str | None], ...]:
    """The labels and their descriptions, in order.

    Args:
        labels: Labels in order, or a mapping from labels to descriptions or None.

    Raises:
        ValueError: There are none, one is no text or empty, or two are read alike.
    """
    if isinstance(labels, (str, bytes, Set)) or not isinstance(labels, Iterable):
        raise ValueError(f"labels: must be a list of labels or a dict of descriptions, got {short(labels)}")
    if getattr(labels, "ndim", 1) != 1:  # a data frame would give the names of its columns
        kind = f"{type(labels).__name__} of shape {labels.shape}"  # type: ignore[attr-defined]
        raise ValueError(f"labels: must be a list of labels, got {kind} (choose one column)")
    pairs = [*labels.items()] if isinstance(labels, Mapping) else [(label, None) for label in labels]
    if not pairs:
        raise ValueError("labels: must name at least one label, got none")
    seen: dict[str, str] = {}
    for position, (label, description) in enumerate(pairs):
        where = f"labels: position {position}"
        _check_text(f"{where}: label", label)
        if description is not None:
            _check_text(f"{where}: description", description)
        if not strip_text(label):
            raise ValueError(f"{where}: is empty, expected the name of a label (remove it)")
        read = label_text(label, description)
        if read in seen:
            raise ValueError(f"{where}: {short(label)} is read as {short(seen[read])} before it (remove one)")
        seen[read] = label
    return tuple(pairs)


def check_hypothesis(hypothesis: str | None) -> str | None:
    """The hypothesis. Raises ValueError unless it is None or a str that UTF-8 can encode."""
    if hypothesis is not None:
        _check_text("hypothesis:", hypothesis)
    return hypothesis


def _check_text(where: str, text: object) -> None:
    """Raise ValueError unless the text is a str that UTF-8 can encode."""
    if not isinstance(text, str):
        raise ValueError(f"{where} must be str, got {type(text).__name__} {short(text)}")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{where} has half a surrogate pair (remove it)") from None
