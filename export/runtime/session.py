"""Runs an ONNX file of a bundle: token ids in, the logits of all heads out.

A tiny network is faster on one thread than on two that synchronise. So each batch runs on one thread, and
several threads run several batches.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from functools import cache
from itertools import chain
from math import isfinite
from pathlib import Path
from reprlib import repr as short
from threading import Thread
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnxruntime import RunOptions, SessionOptions

from export.bundle.manifest import BundleError, Manifest
from export.runtime.onnx_file import check_onnx
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
LOAD_SECONDS = 60

Ids: TypeAlias = Sequence[Sequence[int]]


class Session:
    """Logits `[texts, labels of all heads]` of token ids, computed by one ONNX file of a bundle.

    Args:
        graph: The content of the ONNX file.
        where: Path of the file, for messages.
        manifest: Manifest that the file must match.
        max_id: Largest token id.
        threads: Number of batches that run at the same time.

    Raises:
        BundleError: The file depends on others or has loops, onnxruntime cannot load it, it does not match
            the manifest, or it does not compute finite logits of the longest text and of two short ones in
            60 seconds and half of the memory.
    """

    def __init__(self, graph: bytes, where: Path, manifest: Manifest, max_id: int, threads: int) -> None:
        self._where, self._pad, self._threads = where, manifest.pad_token_id, threads
        self._width = sum(len(head.labels) for head in manifest.heads)
        self._pools: dict[int, ThreadPoolExecutor] = {}  # by process
        within_time(lambda options, trial: self._open(graph, manifest, max_id, options, trial), where)

    def _open(
        self, graph: bytes, manifest: Manifest, max_id: int, options: SessionOptions, trial: RunOptions
    ) -> None:
        self._session = open_graph(graph, self._where, options)
        self._inputs = [node.name for node in self._session.get_inputs()]
        heads = [head.output for head in manifest.heads]
        types = {node.name: node.type for node in self._session.get_outputs()}
        if missing := sorted({*heads} - types.keys()):
            raise BundleError(
                f"{self._where}: no output {short(missing)}, got {short(sorted(types))} {_AGAIN}"
            )
        if not {*REQUIRED_INPUTS} <= {*self._inputs} <= {*INPUTS}:
            raise BundleError(f"{self._where}: inputs must be of {INPUTS}, got {self._inputs} {_AGAIN}")
        self._outputs = [ALL_LOGITS] if ALL_LOGITS in types else heads
        if wrong := {types[name] for name in (*heads, *self._outputs)} - {"tensor(float)"}:
            raise BundleError(f"{self._where}: outputs must be float32, got {sorted(wrong)} {_AGAIN}")
        trial.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
        longest = [self._pad] * (manifest.max_length - 1) + [max_id]
        for ids in ([longest], [longest[-1:], longest[-2:]]):
            expected = [(len(ids), len(head.labels)) for head in manifest.heads]
            parts = self._compute([*heads, *self._outputs], ids, trial)
            shapes = {head.name: part.shape for head, part in zip(manifest.heads, parts, strict=False)}
            if [*shapes.values()] != expected:
                problem = f"logits must have shapes {expected}, got {shapes}"
                raise BundleError(f"{self._where}: {problem} {_AGAIN}")
            joined = np.concatenate(parts[: len(heads)], axis=1)
            if not np.array_equal(joined, np.concatenate(parts[len(heads) :], axis=1)):
                raise BundleError(f"{self._where}: {ALL_LOGITS} must be the heads concatenated {_AGAIN}")

    @property
    def label_tokens(self) -> int:
        """The number of tokens that are read with each text."""
        return 0

    def run(self, ids: Ids) -> Floats:
        """The logits of one batch, padded to its longest text.

        Raises:
            BundleError: onnxruntime cannot compute them, or they are not finite.
        """
        logits = self._compute(self._outputs, ids)
        return logits[0] if len(logits) == 1 else np.concatenate(logits, axis=1)

    def run_separately(self, ids: Ids) -> NDArray[np.float32]:
        """The logits of texts, each run as a batch of its own.

        The logits of an int8 file whose scales are not constants depend on the batch.

        Raises:
            BundleError: See `run`.
        """
        return np.concatenate([self.run([row]) for row in ids]).astype(np.float32)

    def _compute(
        self, outputs: list[str], ids: Ids, options: RunOptions | None = None, **others: NDArray[np.int64]
    ) -> list[Floats]:
        try:
            logits: list[Floats] = self._session.run(outputs, self._feed(ids) | others, options)
        except Exception as error:  # the exceptions of onnxruntime have no common base class
            tokens, largest = max(map(len, ids)), max(chain(*ids), default=0)
            size = f"{len(ids)} texts of up to {tokens} tokens, ids up to {largest}"
            problem = f"cannot compute {size}: {error}"
            raise BundleError(
                f"{self._where}: {_one_line(problem)} (use smaller batches, or export it again)"
            ) from error
        # the sum of squares is a fast sign; it may overflow
        if not all(isfinite(np.vdot(part, part)) or np.isfinite(part).all() for part in logits):
            raise BundleError(f"{self._where}: computes logits that are not finite {_AGAIN}")
        return logits

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
        parts = self._map([[ids[row] for row in batch] for batch in batches])

        def result() -> Floats:
            logits = np.empty((len(ids), self._width), np.float32)
            for batch, part in zip(batches, parts, strict=True):
                logits[batch] = part
            return logits

        return result

    def _map(self, batches: list[Ids]) -> Iterator[Floats]:
        """The logits of each batch, computed by the threads of this process or by the caller's."""
        if self._threads > 1:
            try:
                return self._executor().map(self.run, batches)  # starts now
            except RuntimeError:  # the interpreter shuts down, or the system refuses a thread
                pass
        return map(self.run, batches)

    def _executor(self) -> ThreadPoolExecutor:
        """The threads of this process; a forked process does not inherit them."""
        if (process := os.getpid()) not in self._pools:
            from concurrent.futures import ThreadPoolExecutor  # a single text is faster without the import

            self._pools[process] = ThreadPoolExecutor(self._threads, "tinyheads")
        return self._pools[process]

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


def run_separately(graph: bytes, where: Path, manifest: Manifest, ids: Ids) -> NDArray[np.float32]:
    """The logits `[texts, labels of all heads]` by an ONNX file of fixed labels, each text run by itself.

    Raises:
        BundleError: The ONNX file does not match the manifest.
    """
    session = Session(graph, where, manifest, max(chain.from_iterable(ids), default=0), threads=1)
    return session.run_separately(ids)


def open_graph(
    graph: bytes, where: Path, options: SessionOptions | None = None, operators: str | None = None
) -> Any:
    """An onnxruntime session with one thread.

    Args:
        graph: The content of an ONNX file.
        where: Path of the file, for messages.
        options: Options of the session, which are changed.
        operators: A library of custom operators; without it, the file may come from anyone.

    Raises:
        BundleError: The file depends on others or has loops, or onnxruntime cannot load it.
    """
    if operators is None:
        try:
            check_onnx(graph)
        except ValueError as error:
            raise BundleError(f"{where}: {error} {_AGAIN}") from error
    _limit_memory()
    options = options or SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # errors are raised
    options.add_session_config_entry("session.load_model_format", "ONNX")
    options.add_session_config_entry("session.use_env_allocators", "1")
    try:
        if operators is not None:
            options.register_custom_ops_library(operators)
        session = onnxruntime.InferenceSession(
            graph, options, ["CPUExecutionProvider"], disabled_optimizers=_SLOW_OPTIMIZERS, enable_fallback=0
        )
    except Exception as error:  # the exceptions of onnxruntime have no common base class
        raise BundleError(f"{where}: onnxruntime cannot load it: {_one_line(error)} {_AGAIN}") from error
    session._model_bytes = None  # which a fallback would read again
    return session


def within_time(work: Callable[[SessionOptions, RunOptions], None], where: Path) -> None:
    """Open a session and run it, in a thread that is given up after 60 seconds.

    Raises:
        BundleError: The time is over.
    """
    options, trial = SessionOptions(), RunOptions()
    errors: list[BaseException] = []

    def run() -> None:
        try:
            work(options, trial)
        except BaseException as error:
            errors.append(error)

    thread = Thread(target=run, daemon=True)
    thread.start()
    thread.join(LOAD_SECONDS)
    if thread.is_alive():
        trial.terminate = True
        if hasattr(options, "set_load_cancellation_flag"):  # onnxruntime 1.21
            options.set_load_cancellation_flag(True)
        raise BundleError(f"{where}: is not loaded and run within {LOAD_SECONDS} s {_AGAIN}")
    if errors:
        raise errors[0]


@cache
def _limit_memory() -> None:
    """Let the sessions of this process allocate at most half of the memory."""
    info = onnxruntime.OrtMemoryInfo(
        "Cpu", onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, onnxruntime.OrtMemType.DEFAULT
    )
    with suppress(Exception):  # an application that registered its own allocator keeps it
        onnxruntime.create_and_register_allocator(info, onnxruntime.OrtArenaCfg({"max_mem": _memory() // 2}))


def _memory() -> int:
    """The memory of the machine, or of the container, in bytes; 8 GiB if the system does not tell."""
    sizes = []
    with suppress(OSError, ValueError, AttributeError):
        sizes.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    with suppress(OSError, ValueError):  # "max" without a limit
        sizes.append(int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return min(sizes, default=8 << 30)


def _one_line(error: object) -> str:
    return " ".join(str(error).split())[:500]
