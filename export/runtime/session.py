"""One ONNX file, opened and checked: token ids in, the logits of all heads out.

A tiny network is computed faster by one thread than by two that wait for each other, so a batch is one
thread's, and several threads take several batches.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime

from export.bundle.manifest import BundleError, Manifest
from export.runtime.postprocess import columns
from export.runtime.probabilities import Floats

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

ALL_LOGITS = "all_logits"  # an output that holds those of every head, in the order of the manifest
INPUTS = ("input_ids", "attention_mask", "token_type_ids")
REQUIRED_INPUTS = INPUTS[:2]  # token types are optional
# Fused with the sum before it, onnxruntime's layer norm takes three times as long (1.31.1, batches of one)
_SLOWER = ["SkipLayerNormFusion"]

Ids = Sequence[Sequence[int]]


class Session:
    """Logits `[texts, labels of all heads]` of token ids, by one ONNX file of a bundle."""

    def __init__(self, path: Path, manifest: Manifest, last: int, threads: int) -> None:
        """Open the file, and try its longest text and largest token id.

        Args:
            path: Of the file.
            manifest: What it must be like.
            last: The largest token id.
            threads: How many batches are computed at once.

        Raises:
            BundleError: onnxruntime cannot load it, or it is not as the manifest says.
        """
        self._pad, self._session = manifest.pad_token_id, open_graph(path)
        self._width = sum(len(head.labels) for head in manifest.heads)
        self._outputs, self._inputs = self._check(path, manifest)
        self._threads = threads
        self._pool: tuple[int, ThreadPoolExecutor] | None = None
        self._try(path, manifest, last)

    def windows(self, windows: Iterable[Ids], batch_size: int) -> Iterator[Floats]:
        """The logits of each window of texts, computed while the next one is made."""
        begun: Callable[[], Floats] | None = None
        for ids in windows:
            following = self._begin(ids, batch_size)
            if begun is not None:
                yield begun()
            begun = following
        if begun is not None:
            yield begun()

    def run(self, ids: Ids) -> Floats:
        """The logits of one batch, padded to its longest text."""
        found: list[Floats] = run_graph(self._session, self._outputs, self._inputs, ids, self._pad)
        return found[0] if len(found) == 1 else np.concatenate(found, axis=1)

    def _begin(self, ids: Ids, batch_size: int) -> Callable[[], Floats]:
        """Start on a window; what is returned waits for its logits."""
        order = np.argsort([len(row) for row in ids], kind="stable")
        batches = [order[first : first + batch_size] for first in range(0, len(ids), batch_size)]
        rows = ([ids[row] for row in batch] for batch in batches)
        # an executor starts at once, `map` when it is asked
        parts = self._executor().map(self.run, rows) if self._threads > 1 else map(self.run, rows)

        def finish() -> Floats:
            whole = np.empty((len(ids), self._width), np.float32)
            for batch, part in zip(batches, parts, strict=True):
                whole[batch] = part
            return whole

        return finish

    def _executor(self) -> ThreadPoolExecutor:
        """The threads of this process: a fork has none of its parent's."""
        if self._pool is None or self._pool[0] != os.getpid():
            from concurrent.futures import ThreadPoolExecutor  # one text alone starts sooner without

            self._pool = os.getpid(), ThreadPoolExecutor(self._threads, "tinyheads")
        return self._pool[1]

    def _check(self, path: Path, manifest: Manifest) -> tuple[list[str], list[str]]:
        """The outputs to ask for, and the inputs."""
        outputs = [head.output for head in manifest.heads]
        inputs = [node.name for node in self._session.get_inputs()]
        found = {node.name for node in self._session.get_outputs()}
        missing, again = set(outputs) - found, "(export it again)"
        if missing:
            raise BundleError(f"{path}: no output {sorted(missing)}, got {sorted(found)} {again}")
        if not set(INPUTS[:2]) <= set(inputs) <= set(INPUTS):
            raise BundleError(f"{path}: inputs must be of {INPUTS}, got {inputs} {again}")
        return ([ALL_LOGITS] if ALL_LOGITS in found else outputs), inputs

    def _try(self, path: Path, manifest: Manifest, last: int) -> None:
        longest = [*[manifest.pad_token_id] * (manifest.max_length - 1), last]
        names = [head.output for head in manifest.heads]
        again = "(export it again)"
        try:
            parts = run_graph(self._session, names, self._inputs, [longest], self._pad)
            together = self.run([longest])
        except Exception as error:  # onnxruntime's own exceptions share no base
            problem = f"refuses {len(longest)} tokens, ids <= {last}: {error}"
            raise BundleError(f"{path}: {problem} {again}") from error
        shapes = {head.name: part.shape for head, part in zip(manifest.heads, parts, strict=True)}
        expected = {head.name: (1, len(head.labels)) for head in manifest.heads}
        if shapes != expected:
            raise BundleError(f"{path}: logits must be {expected}, got {shapes} {again}")
        for name, part in zip(columns(manifest.heads).values(), parts, strict=True):
            if not np.array_equal(together[:, name], part, equal_nan=True):
                raise BundleError(f"{path}: {ALL_LOGITS} must be the heads side by side {again}")


def run_graph(session: Any, outputs: Sequence[str], inputs: Sequence[str], ids: Ids, pad: int) -> list[Any]:
    """The outputs of a graph for one batch of token ids, padded to its longest text with `pad`."""
    lengths = [len(row) for row in ids]
    width = max(1, *lengths)  # a text may have no tokens at all, a tensor needs one
    if min(lengths) == width:
        tokens = np.array(ids, np.int64)
        mask = np.ones(tokens.shape, np.int64)
    else:
        inside = np.arange(width) < np.array(lengths)[:, None]
        tokens = np.full(inside.shape, pad, np.int64)
        tokens[inside] = np.fromiter(chain.from_iterable(ids), np.int64, sum(lengths))
        mask = inside.astype(np.int64)
    feed = {INPUTS[0]: tokens, INPUTS[1]: mask}
    if INPUTS[2] in inputs:
        feed[INPUTS[2]] = np.zeros_like(tokens)
    return list(session.run([*outputs], feed))


def open_graph(path: Path, operators: str | None = None) -> Any:
    """An onnxruntime session of one thread; `operators` is a library with operators of its own.

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
            str(path), options, ["CPUExecutionProvider"], disabled_optimizers=_SLOWER
        )
    except Exception as error:  # onnxruntime's own exceptions share no base
        raise BundleError(f"{path}: onnxruntime cannot load it: {error}") from error
