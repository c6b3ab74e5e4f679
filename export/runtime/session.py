"""Runs an ONNX file of a bundle: token ids in, the logits of all heads out.

A tiny network is faster on one thread than on two that synchronise. So each batch runs on one thread, and
several threads run several batches.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from export.bundle.manifest import BundleError, Manifest
from export.runtime.probabilities import Floats

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

ALL_LOGITS = (
    "all_logits"  # optional output: the logits of all heads, concatenated in the order of the manifest
)
INPUTS = IDS, MASK, TOKEN_TYPES = ("input_ids", "attention_mask", "token_type_ids")
REQUIRED_INPUTS = IDS, MASK
# with this fusion, onnxruntime's layer norm takes three times as long (1.31.1, batches of one)
_SLOW_OPTIMIZERS = ["SkipLayerNormFusion"]
_AGAIN = "(export it again)"

Ids: TypeAlias = Sequence[Sequence[int]]


class Session:
    """Logits `[texts, labels of all heads]` of token ids, computed by one ONNX file of a bundle.

    Args:
        path: The ONNX file.
        manifest: Manifest that the file must match.
        max_id: Largest token id.
        threads: Number of batches that run at the same time.

    Raises:
        BundleError: onnxruntime cannot load the file, the file does not match the manifest, or it rejects the
            longest text or the largest token id.
    """

    def __init__(self, path: Path, manifest: Manifest, max_id: int, threads: int) -> None:
        self._pad, self._threads = manifest.pad_token_id, threads
        self._session = open_graph(path)
        self._inputs = [node.name for node in self._session.get_inputs()]
        self._width = sum(len(head.labels) for head in manifest.heads)
        self._pool: tuple[int, ThreadPoolExecutor] | None = None
        heads = [head.output for head in manifest.heads]
        outputs = {node.name for node in self._session.get_outputs()}
        if missing := sorted({*heads} - outputs):
            raise BundleError(f"{path}: no output {missing}, got {sorted(outputs)} {_AGAIN}")
        if not {*REQUIRED_INPUTS} <= {*self._inputs} <= {*INPUTS}:
            raise BundleError(f"{path}: inputs must be of {INPUTS}, got {self._inputs} {_AGAIN}")
        self._outputs = [ALL_LOGITS] if ALL_LOGITS in outputs else heads
        longest = [[self._pad] * (manifest.max_length - 1) + [max_id]]
        try:
            parts, joined = self._session.run(heads, self._feed(longest)), self.run(longest)
        except Exception as error:  # the exceptions of onnxruntime have no common base class
            problem = f"rejects {manifest.max_length} tokens, ids <= {max_id}: {error}"
            raise BundleError(f"{path}: {problem} {_AGAIN}") from error
        shapes = {head.name: part.shape for head, part in zip(manifest.heads, parts, strict=True)}
        expected = {head.name: (1, len(head.labels)) for head in manifest.heads}
        if shapes != expected:
            raise BundleError(f"{path}: logits must have shapes {expected}, got {shapes} {_AGAIN}")
        if not np.array_equal(joined, np.concatenate(parts, axis=1), equal_nan=True):
            raise BundleError(f"{path}: {ALL_LOGITS} must be the heads concatenated {_AGAIN}")

    def run(self, ids: Ids) -> Floats:
        """The logits of one batch, padded to its longest text."""
        logits: list[Floats] = self._session.run(self._outputs, self._feed(ids))
        return logits[0] if len(logits) == 1 else np.concatenate(logits, axis=1)

    def windows(self, windows: Iterable[Ids], batch_size: int) -> Iterator[Floats]:
        """The logits of each window of texts; a window runs while the next one is tokenised."""
        pending: Callable[[], Floats] | None = None
        for ids in windows:
            submitted = self._submit(ids, batch_size)
            if pending is not None:
                yield pending()
            pending = submitted
        if pending is not None:
            yield pending()

    def _submit(self, ids: Ids, batch_size: int) -> Callable[[], Floats]:
        """Submit the batches of a window; the returned function waits for the logits."""
        order = np.argsort([len(row) for row in ids], kind="stable")
        batches = [order[first : first + batch_size] for first in range(0, len(ids), batch_size)]
        rows = ([ids[row] for row in batch] for batch in batches)
        # an executor starts now, `map` on iteration
        parts = self._executor().map(self.run, rows) if self._threads > 1 else map(self.run, rows)

        def result() -> Floats:
            logits = np.empty((len(ids), self._width), np.float32)
            for batch, part in zip(batches, parts, strict=True):
                logits[batch] = part
            return logits

        return result

    def _executor(self) -> ThreadPoolExecutor:
        """The threads of this process; a forked process does not inherit them."""
        if self._pool is None or self._pool[0] != os.getpid():
            from concurrent.futures import ThreadPoolExecutor  # a single text is faster without the import

            self._pool = os.getpid(), ThreadPoolExecutor(self._threads, "tinyheads")
        return self._pool[1]

    def _feed(self, ids: Ids) -> dict[str, NDArray[np.int64]]:
        """The input tensors of a batch, int64 `[texts, length of the longest text]`."""
        lengths = [len(row) for row in ids]
        width = max(1, *lengths)  # a text may have no tokens, a tensor needs at least one
        if min(lengths) == width:
            tokens = np.array(ids, np.int64)
            mask = np.ones(tokens.shape, np.int64)
        else:
            is_token = np.arange(width) < np.array(lengths)[:, None]
            tokens = np.full(is_token.shape, self._pad, np.int64)
            tokens[is_token] = np.fromiter(chain.from_iterable(ids), np.int64, sum(lengths))
            mask = is_token.astype(np.int64)
        feed = {IDS: tokens, MASK: mask}
        if TOKEN_TYPES in self._inputs:
            feed[TOKEN_TYPES] = np.zeros_like(tokens)
        return feed


def run_separately(path: Path, manifest: Manifest, ids: Ids) -> NDArray[np.float32]:
    """The logits `[texts, labels of all heads]`, each text run as a batch of its own.

    int8 logits depend on the batch, whose activations are quantised together.

    Raises:
        BundleError: The file does not match the manifest.
    """
    session = Session(path, manifest, max(chain.from_iterable(ids), default=0), threads=1)
    return np.concatenate([session.run([row]) for row in ids]).astype(np.float32)


def open_graph(path: Path, operators: str | None = None) -> Any:
    """An onnxruntime session with one thread.

    Args:
        path: The ONNX file.
        operators: A library of custom operators.

    Raises:
        BundleError: onnxruntime cannot load the file.
    """
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    try:
        if operators is not None:
            options.register_custom_ops_library(operators)
        return onnxruntime.InferenceSession(
            str(path), options, ["CPUExecutionProvider"], disabled_optimizers=_SLOW_OPTIMIZERS
        )
    except Exception as error:  # the exceptions of onnxruntime have no common base class
        raise BundleError(f"{path}: onnxruntime cannot load it: {error} {_AGAIN}") from error
