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

from export.bundle.manifest import PACKED, STRING, TOKENIZER, BundleError, Head, Manifest
from export.runtime.postprocess import columns
from export.runtime.probabilities import Floats
from export.runtime.session import REQUIRED_INPUTS, Ids, Session, open_graph
from export.runtime.tokenizer import LabelTokenizer
from export.text import label_text

LABEL_IDS, LABEL_MASK = LABEL_INPUTS = ("label_ids", "label_mask")
BLOCK = 256  # labels that are read together
TOKENS = 4096  # of the texts and labels that are read together
MAX_CHARACTERS = 4000  # of a label with its description, or of a hypothesis
_AGAIN = "(export it again)"


class _Block(NamedTuple):
    """Labels that are read together, and where their logits belong.

    Attributes:
        feed: `label_ids` and `label_mask`, int64 `[labels, longest label]`.
        outputs: The outputs of the graph that give the logits.
        parts: For each output, its labels in the block and in the logits of all heads.
    """

    feed: dict[str, NDArray[np.int64]]
    outputs: list[str]
    parts: list[tuple[slice, slice]]


class _Group(NamedTuple):
    """The heads of one hypothesis."""

    hypothesis: tuple[int, ...]
    tokens: int
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
        self._labels, self._pad = labels, manifest.pad_token_id
        try:
            self._groups = self._grouped(manifest.heads)
        except ValueError as error:
            raise BundleError(f"{where.parent.parent}: {error}") from None
        super().__init__(graph, where, manifest, max_id, threads)

    def with_heads(self, heads: Sequence[Head]) -> PackedSession:
        """A session of the same graph for heads with other labels and hypotheses.

        Raises:
            ValueError: A label or a hypothesis has too many tokens.
        """
        other = copy.copy(self)
        other._groups, other._width = self._grouped(heads), sum(len(head.labels) for head in heads)
        return other

    def run(self, ids: Ids) -> Floats:
        """The logits of one batch, padded to its longest text.

        Raises:
            BundleError: onnxruntime cannot compute them, or they are not finite.
        """
        logits = np.empty((len(ids), self._width), np.float32)
        for group in self._groups:
            rows = [[*row, *group.hypothesis] for row in ids] if group.hypothesis else ids
            size = max(1, TOKENS // (max(map(len, rows)) + group.tokens))
            for first in range(0, len(rows), size):
                some = slice(first, first + size)
                for block in group.blocks:
                    found = self._compute(block.outputs, rows[some], **block.feed)
                    for (of_block, of_heads), scores in zip(block.parts, found, strict=True):
                        logits[some, of_heads] = scores[:, of_block]
        return logits

    def _open(
        self, graph: bytes, manifest: Manifest, max_id: int, options: SessionOptions, trial: RunOptions
    ) -> None:
        self._session = open_graph(graph, self._where, options)
        self._inputs = [node.name for node in self._session.get_inputs()]
        expected = {*REQUIRED_INPUTS, *LABEL_INPUTS}
        if {*self._inputs} != expected:
            raise BundleError(
                f"{self._where}: inputs must be {sorted(expected)}, got {self._inputs} {_AGAIN}"
            )
        heads = [head.output for head in manifest.heads]
        types = {node.name: node.type for node in self._session.get_outputs()}
        if wrong := [name for name in heads if types.get(name) != "tensor(float)"]:
            raise BundleError(f"{self._where}: no float32 outputs {wrong}, got {types} {_AGAIN}")
        trial.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
        longest = max(len(group.hypothesis) for group in self._groups) + manifest.max_length
        text = [self._pad] * (longest - 1) + [max_id]
        for texts, labels in (([text], [manifest.label_length, 1]), ([text[-1:], text[-2:]], [1])):
            mask = np.arange(max(labels)) < np.array(labels)[:, None]
            feed = {LABEL_IDS: np.where(mask, max_id, self._pad), LABEL_MASK: mask.astype(np.int64)}
            shapes = {part.shape for part in self._compute(heads, texts, trial, **feed)}
            if shapes != {(len(texts), len(labels))}:
                problem = f"logits must have shape {(len(texts), len(labels))}, got {shapes}"
                raise BundleError(f"{self._where}: {problem} {_AGAIN}")

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
                sum(len(ids) for _, _, ids in entries[:BLOCK]),
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
    labels = LabelTokenizer(tokenizer, manifest.label_length, Path(TOKENIZER))
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
    return _Block({LABEL_IDS: tokens, LABEL_MASK: mask.astype(np.int64)}, names, parts)


class Labels(NamedTuple):
    """The labels, with their descriptions, that a classifier reads for one head in place of its own."""

    labels: tuple[tuple[str, str | None], ...]
    head: str
    hypothesis: str | None

    def replacing(self, head: Head) -> Head:
        """The head with these labels. Labels that it knows keep their descriptions and thresholds."""
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
        )


def check_labels(labels: object) -> tuple[tuple[str, str | None], ...]:
    """The labels and their descriptions, in order.

    Args:
        labels: Labels in order, or a mapping from labels to descriptions or None.

    Raises:
        ValueError: There are none, one is no text or empty, or two are read alike.
    """
    if isinstance(labels, (str, bytes, Set)) or not isinstance(labels, Iterable):
        raise ValueError(f"labels: must be a list of labels or a dict of descriptions, got {labels!r}")
    pairs = [*labels.items()] if isinstance(labels, Mapping) else [(label, None) for label in labels]
    if not pairs:
        raise ValueError("labels: must name at least one label, got none")
    seen: dict[str, str] = {}
    for position, (label, description) in enumerate(pairs):
        where = f"labels: position {position}"
        for what, text in (("label", label), ("description", description)):
            if not isinstance(text, str) and not (text is None and what == "description"):
                raise ValueError(f"{where}: {what} must be str, got {type(text).__name__} {text!r:.60}")
            if text is not None and len(text) > MAX_CHARACTERS:
                size = f"{len(text)} characters, expected at most {MAX_CHARACTERS}"
                raise ValueError(f"{where}: {what} has {size} (shorten it)")
            try:
                (text or "").encode()
            except UnicodeEncodeError:
                raise ValueError(f"{where}: {what} has half a surrogate pair (remove it)") from None
        read = label_text(label, description)
        if not label.strip():
            raise ValueError(f"{where}: is empty, expected the name of a label (remove it)")
        if read in seen:
            raise ValueError(f"{where}: {label!r:.60} is read as {seen[read]!r:.60} before it (remove one)")
        seen[read] = label
    return tuple(pairs)
