"""The classifier: texts in, labels and scores of every head out, on a CPU and without torch.

It tokenises, batches texts of like length, runs onnxruntime and turns logits into answers with the
calibration of the manifest. Nothing changes after `load`, so threads may share one classifier.
The integrity of the files is left to the bundle.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from reprlib import repr as short
from typing import Any, overload

import numpy as np
import numpy.typing as npt
import onnxruntime
from tokenizers import Tokenizer

from export.answers import Floats, answers, probabilities
from export.bundle import TOKENIZER, BundleError, Head, read_bundle

_INPUTS = ("input_ids", "attention_mask", "token_type_ids")
_WINDOW = 64  # batches tokenised and sorted at a time: a million texts need no more memory


class Classifier:
    """A loaded bundle: called with a text it gives one dict, with texts a list of dicts.

    `predict_HEAD(texts)` answers one head alone, with the options of the call.

    Attributes:
        heads: the names of the heads, in the order of the manifest.
        manifest: what the bundle says of itself.
        variant: the ONNX file that answers, such as int8.
        threads: how many onnxruntime uses within one call.
    """

    def __init__(self, folder: str | Path, variant: str | None, threads: int | None) -> None:
        self._folder = Path(folder).absolute()
        self.manifest = read_bundle(folder)
        self.variant = self.manifest.default_variant if variant is None else variant
        if self.variant not in self.manifest.variants:
            raise ValueError(_unknown("variant", self.variant, [*self.manifest.variants]))
        self.threads = min(4, os.cpu_count() or 1) if threads is None else threads
        _check_count("threads", self.threads)
        self._heads = {head.name: head for head in self.manifest.heads}
        self.heads = tuple(self._heads)
        self._tokenizer = _open_tokenizer(Path(folder, TOKENIZER), self.manifest.max_length)
        path = Path(folder, self.manifest.variants[self.variant])
        self._session = _open_session(path, self.threads)
        self._inputs: list[str] = [node.name for node in self._session.get_inputs()]
        self._check_session(path)

    @classmethod
    def load(
        cls, folder: str | Path, *, variant: str | None = None, threads: int | None = None
    ) -> Classifier:
        """The classifier of the bundle at `folder`; threads are by default the cores, at most 4.

        Raises:
            BundleError: a file is missing, changed, or does not fit the manifest.
            ValueError: an unknown variant, or fewer than one thread.
        """
        return cls(folder, variant, threads)

    # fmt: off
    @overload  # a str is a Sequence[str] too; the first that matches is meant
    def __call__(  # type: ignore[overload-overlap]
        self, texts: str, *, heads: Sequence[str] | None = None, top_k: int | None = None,
        scores: bool = False, batch_size: int = 32,
    ) -> dict[str, Any]: ...
    @overload
    def __call__(
        self, texts: Sequence[str], *, heads: Sequence[str] | None = None,
        top_k: int | None = None, scores: bool = False, batch_size: int = 32,
    ) -> list[dict[str, Any]]: ...
    def __call__(
        self, texts: str | Sequence[str], *, heads: Sequence[str] | None = None,
        top_k: int | None = None, scores: bool = False, batch_size: int = 32,
    ) -> dict[str, Any] | list[dict[str, Any]]:
        # fmt: on
        """The answer of each head asked for to each text, texts and heads in the order given.

        A single_label head answers {"label", "score"}, a multi_label head with a list of those at
        or over their thresholds, best first. `scores` lists all labels, `top_k` the k best.
        Raises: ValueError, which text, head or option is wrong.
        """
        checked, chosen = _check_texts(texts), self._choose(heads)
        if top_k is not None:
            _check_count("top_k", top_k)
        names = [head.name for head in chosen]
        results: list[dict[str, Any]] = []
        for logits in self._windows(checked, chosen, batch_size):
            columns = [answers(*pair, top_k, scores) for pair in zip(chosen, logits, strict=True)]
            results += [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]
        return results[0] if isinstance(texts, str) else results

    def logits(
        self, texts: str | Sequence[str], heads: Sequence[str] | None = None, batch_size: int = 32
    ) -> dict[str, npt.NDArray[np.float32]]:
        """The raw logits of each head, float32 [texts, labels]. Raises: ValueError, as a call."""
        chosen = self._choose(heads)
        windows = list(self._windows(_check_texts(texts), chosen, batch_size))
        empty = [np.empty((0, len(head.labels)), np.float32) for head in chosen]
        columns = zip(chosen, zip(empty, *windows, strict=True), strict=True)
        return {head.name: np.concatenate(parts, dtype=np.float32) for head, parts in columns}

    def probabilities(self, logits: Floats, head: str) -> npt.NDArray[np.float64]:
        """The calibrated probabilities [texts, labels] of a head. Raises: ValueError, its name."""
        return probabilities(logits, self._head(head))

    def labels(self, head: str) -> tuple[str, ...]:
        """The labels of a head in the order of its logits. Raises: ValueError, its name."""
        return self._head(head).labels

    def tokens(self, texts: str | Sequence[str]) -> list[int]:
        """The number of tokens of each text, special ones included, as the network sees it."""
        return [len(found) for found in self._tokenizer.encode_batch_fast(_check_texts(texts))]

    def __getattr__(self, name: str) -> Callable[..., Any]:
        heads = self.__dict__.get("heads", ())  # absent while copy or pickle probe a bare instance
        head = name.removeprefix("predict_")
        if head != name and head in heads:
            return partial(self._predict, head)
        raise AttributeError(f"{type(self).__name__!r} has no attribute {name!r} (heads: {', '.join(heads)})")

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *(f"predict_{head}" for head in self.heads)]

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[object, ...]]:
        # a session cannot be copied: a copy, or another process, loads the bundle again
        return type(self), (self._folder, self.variant, self.threads)

    def _predict(self, head: str, texts: str | Sequence[str], **options: Any) -> Any:
        found: Any = self(texts, heads=[head], **options)
        return found[head] if isinstance(texts, str) else [answer[head] for answer in found]

    def _head(self, name: str) -> Head:
        if name not in self.heads:
            raise ValueError(_unknown("head", name, self.heads))
        return self._heads[name]

    def _choose(self, names: Sequence[str] | None) -> Sequence[Head]:
        if names is None:
            return self.manifest.heads
        if isinstance(names, (str, bytes)) or not isinstance(names, Iterable):
            raise ValueError(f"heads: must be a list of names, got {names!r}")
        chosen = list(dict.fromkeys(map(self._head, names)))
        if not chosen:
            raise ValueError("heads: must name at least one head, got none (None asks all)")
        return chosen

    def _windows(
        self, texts: list[str], heads: Sequence[Head], batch_size: int
    ) -> Iterator[list[Floats]]:
        """The logits of the heads, window by window, each [texts, labels] in order of texts."""
        _check_count("batch_size", batch_size)
        outputs = [head.output for head in heads]
        for start in range(0, len(texts), batch_size * _WINDOW):
            found = self._tokenizer.encode_batch_fast(texts[start : start + batch_size * _WINDOW])
            ids = [encoding.ids for encoding in found]
            if len(ids) <= batch_size:  # nothing to sort: the short way of a single text
                yield self._run(ids, outputs)
                continue
            order = np.argsort([len(row) for row in ids], kind="stable")
            logits: list[Floats] = [np.empty((len(ids), len(head.labels)), np.float32) for head in heads]
            for first in range(0, len(ids), batch_size):
                rows = order[first : first + batch_size]
                parts = self._run([ids[row] for row in rows], outputs)
                for whole, part in zip(logits, parts, strict=True):
                    whole[rows] = part
            yield logits

    def _run(self, ids: Sequence[Sequence[int]], outputs: list[str]) -> list[Floats]:
        """The outputs for one batch of token ids, padded to its longest text."""
        width = max(1, *map(len, ids))  # a text may have no tokens at all, a tensor needs one
        tokens = np.full((len(ids), width), self.manifest.pad_token_id, np.int64)
        mask = np.zeros_like(tokens)
        for row, text in enumerate(ids):
            tokens[row, : len(text)] = text
            mask[row, : len(text)] = 1
        feed = dict(zip(_INPUTS, (tokens, mask, np.zeros_like(tokens)), strict=True))
        return list(self._session.run(outputs, {key: feed[key] for key in self._inputs}))

    def _check_session(self, path: Path) -> None:
        """Raises BundleError unless the graph takes any token and position and has each head."""
        heads, again = self.manifest.heads, "(export it again)"
        found = {node.name for node in self._session.get_outputs()}
        missing = {head.output for head in heads} - found
        if missing:
            raise BundleError(f"{path}: no output {sorted(missing)}, got {sorted(found)} {again}")
        if not {"input_ids"} <= set(self._inputs) <= set(_INPUTS):
            raise BundleError(f"{path}: inputs must be of {_INPUTS}, got {self._inputs} {again}")
        last = self._tokenizer.get_vocab_size() - 1
        longest = [*[self.manifest.pad_token_id] * (self.manifest.max_length - 1), last]
        try:
            logits = self._run([longest], [head.output for head in heads])
        except Exception as error:  # onnxruntime's own exceptions share no base
            problem = f"refuses {len(longest)} tokens, ids <= {last}: {error}"
            raise BundleError(f"{path}: {problem} {again}") from error
        shapes = {head.name: part.shape for head, part in zip(heads, logits, strict=True)}
        expected = {head.name: (1, len(head.labels)) for head in heads}
        if shapes != expected:
            raise BundleError(f"{path}: logits must be {expected}, got {shapes} {again}")


def _open_tokenizer(path: Path, max_length: int) -> Tokenizer:
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises bare Exception
        raise BundleError(f"{path}: not a tokenizer: {error} (build the bundle again)") from error
    special = tokenizer.num_special_tokens_to_add(False)
    if max_length <= special:  # tokenizers would then not truncate at all
        problem = f"adds {special} special tokens, so max_length {max_length} leaves no room"
        raise BundleError(f"{path}: {problem} (export with a larger export.max_length)")
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_length)
    return tokenizer


def _open_session(path: Path, threads: int) -> Any:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(str(path), options, ["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own exceptions share no base
        raise BundleError(f"{path}: onnxruntime cannot load it: {error}") from error


def _check_texts(texts: object) -> list[str]:
    """The texts as a list. Raises: ValueError, which is not a text that UTF-8 can hold."""
    if isinstance(texts, (bytes, bytearray, Mapping, Set)) or not isinstance(texts, Iterable):
        raise ValueError(f"texts: must be str or a list of str, got {type(texts).__name__}")
    listed: list[str] = [texts] if isinstance(texts, str) else list(texts)
    for position, text in enumerate(listed):
        where = f"texts: position {position}"
        if not isinstance(text, str):
            raise ValueError(f"{where}: must be str, got {type(text).__name__} {short(text)}")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            half = f"character {error.start} is half a surrogate pair (decode with errors='replace')"
            raise ValueError(f"{where}: {half}") from error
    return listed


def _check_count(option: str, value: object) -> None:
    if type(value) is not int or value < 1:
        raise ValueError(f"{option}: must be a whole number >= 1, got {value!r}")


def _unknown(what: str, name: object, known: Sequence[str]) -> str:
    near = get_close_matches(str(name), known, 1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    return f"unknown {what} {name!r}, expected one of {[*known]}{hint}"
