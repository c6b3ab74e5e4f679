"""Classifies texts with a bundle, on a CPU and without torch.

The classifier tokenises texts, batches texts of similar length, runs onnxruntime, and converts logits to
labels with the calibration of the manifest. Threads may share one classifier.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from export.bundle.files import opened_bundle
from export.bundle.manifest import INTEGER, STRING, TOKENIZER, Head, Manifest, unknown
from export.runtime.cpus import available_cores
from export.runtime.hub import HubModel
from export.runtime.packed import Labels, PackedSession, open_session
from export.runtime.postprocess import Answers, Thresholds, columns, with_thresholds
from export.runtime.probabilities import Floats, probabilities
from export.runtime.tokenizer import CachedTokenizer
from export.text import check_texts

_WINDOW = 32  # batches that are tokenised and sorted together; it bounds the memory
_VIEWS = 64  # sets of labels whose tokens are kept


class Classifier(HubModel):
    """A loaded bundle. Calling it with a text returns a dict, with a list of texts a list of dicts.

    A list of texts may be any iterable of str, such as a generator, a NumPy array or a pandas Series.
    `predict_HEAD(texts)` returns the answers of one head and takes the same options; of a head that is named
    proba, `predict(texts, head="proba")` does. `predict`, `predict_proba` and `classes_` are those of a
    scikit-learn classifier.

    Attributes:
        heads: Names of the heads, in the order of the manifest.
        manifest: The manifest of the bundle.
        variant: Name of the loaded ONNX file, such as int8.
        threads: Number of batches of one call that run at the same time.
    """

    def __init__(self, folder: str | Path, variant: str | None, threads: int | None) -> None:
        self._folder = Path(folder).absolute()
        self.threads = min(4, available_cores()) if threads is None else threads
        _check_count("threads", self.threads)

        def choose(manifest: Manifest) -> tuple[str, str]:
            self.variant = manifest.default_variant if variant is None else variant
            if self.variant not in manifest.variants:
                raise ValueError(unknown("variant", self.variant, manifest.variants))
            return TOKENIZER, manifest.variants[self.variant]

        with opened_bundle(folder, choose) as (self.manifest, contents):
            tokenizer, graph = choose(self.manifest)
            length, where = self.manifest.max_length, Path(folder)
            self._token_ids = CachedTokenizer(contents[tokenizer], length, where / tokenizer)
            self._session = open_session(
                contents[graph],
                where / graph,
                self.manifest,
                self._token_ids.max_id,
                contents[tokenizer],
                self.threads,
            )
        self._given: Head | None = None
        self._views: dict[Labels, Classifier] = {}
        self._set_heads(self.manifest.heads)

    def _set_heads(self, heads: tuple[Head, ...]) -> None:
        self._heads = {head.name: head for head in heads}
        self.heads = tuple(self._heads)
        self._answers, self._columns = Answers(heads), columns(heads)

    @classmethod
    def load(
        cls, folder: str | Path, *, variant: str | None = None, threads: int | None = None
    ) -> Classifier:
        """Load the bundle in a folder.

        Args:
            folder: Folder of the bundle.
            variant: int8 or fp32; by default the default variant of the bundle.
            threads: Number of batches that run at the same time; by default the number of cores, at most 4.

        Raises:
            BundleError: A file is missing, changed, or does not match the manifest.
            ValueError: The variant is unknown, or there is less than one thread.
        """
        return cls(folder, variant, threads)

    def with_labels(
        self,
        labels: Iterable[str] | Mapping[str, str | None],
        head: str | None = None,
        *,
        hypothesis: str | None = None,
    ) -> Classifier:
        """A classifier of one head of a packed bundle, with other labels; it shares all files in memory.

        The head keeps its kind and its calibration temperature. Labels that it knows keep their descriptions,
        unless others are given, and their thresholds; the others apply from 0.5. A single_label head always
        answers, as it learnt when to abstain on its own labels.

        Args:
            labels: The labels in order, or a dict of descriptions, which may be None.
            head: Name of the head; by default the only one.
            hypothesis: Replaces the head's hypothesis, which is read after each text.

        Raises:
            ValueError: The bundle has fixed labels or several heads, the head is unknown, there are no
                labels, one is empty, repeated or too long, or the hypothesis is no text or too long.
        """
        given = Labels.of(self.manifest, labels, head, hypothesis)
        if (view := self._views.get(given)) is None:
            view = self._view(given.replacing(self._heads[given.head]))
            if len(self._views) >= _VIEWS:
                self._views.clear()
            self._views[given] = view
        return view

    def _view(self, head: Head) -> Classifier:
        assert isinstance(self._session, PackedSession)
        view = object.__new__(type(self))
        view.__dict__.update(self.__dict__)
        view._session, view._given, view._views = self._session.with_heads([head]), head, {}
        view.manifest = replace(self.manifest, heads=(head,))
        view._set_heads((head,))
        return view

    # fmt: off
    @overload  # a str is also a Sequence[str]; the first match applies
    def __call__(  # type: ignore[overload-overlap]
        self, texts: str, *, heads: Sequence[str] | None = None, top_k: int | None = None,
        scores: bool = False, batch_size: int = 32,
        labels: Iterable[str] | Mapping[str, str | None] | None = None,
        thresholds: Thresholds | None = None, abstain: bool = True,
    ) -> dict[str, Any]: ...
    @overload
    def __call__(
        self, texts: Iterable[str], *, heads: Sequence[str] | None = None,
        top_k: int | None = None, scores: bool = False, batch_size: int = 32,
        labels: Iterable[str] | Mapping[str, str | None] | None = None,
        thresholds: Thresholds | None = None, abstain: bool = True,
    ) -> list[dict[str, Any]]: ...
    def __call__(
        self, texts: str | Iterable[str], *, heads: Sequence[str] | None = None,
        top_k: int | None = None, scores: bool = False, batch_size: int = 32,
        labels: Iterable[str] | Mapping[str, str | None] | None = None,
        thresholds: Thresholds | None = None, abstain: bool = True,
    ) -> dict[str, Any] | list[dict[str, Any]]:
        # fmt: on
        """The answers `{head: answer}` to each text, in the order of the texts and the requested heads.

        The answer of a single_label head is {"label", "score"}; where the head abstains, the label is None
        and the score is the one below its threshold. That of a multi_label head is a list of the labels that
        reach their thresholds, best first.

        Args:
            texts: A text or an iterable of texts.
            heads: Names of the heads to return; by default all.
            top_k: Return a list of the k best labels instead.
            scores: Return a list of all labels instead.
            batch_size: Number of texts that run together.
            labels: The labels to choose from, for a packed bundle; see `with_labels`. With several heads,
                `heads` must name one.
            thresholds: In place of the bundle's: for a multi_label head the probability from which labels
                apply, a number or a dict `{label: number}`; for a single_label head the lowest score that is
                answered, which is a probability unless the manifest says otherwise.
            abstain: Whether heads may abstain; if False, only those that `thresholds` names.

        Raises:
            ValueError: A text, head, label or option is invalid.
        """
        if labels is not None:
            names = [head.name for head in self._choose(heads)]
            view: Any = self.with_labels(labels, names[0] if len(names) == 1 else None)
            options = {"top_k": top_k, "scores": scores, "batch_size": batch_size}
            answers: Any = view(texts, **options, thresholds=thresholds, abstain=abstain)
            return answers  # type: ignore[no-any-return]
        checked, chosen = check_texts(texts), self._choose(heads)
        if top_k is not None:
            _check_count("top_k", top_k)
        answers, selected = self._answers, None
        if thresholds is not None or abstain is not True:
            if thresholds is not None and (scores or top_k is not None):
                raise ValueError("thresholds: do not apply to lists of labels (leave out top_k and scores)")
            answers = Answers(chosen := with_thresholds(chosen, thresholds, abstain))
        elif heads is not None:
            answers = Answers(chosen)
        if heads is not None:
            selected = np.r_[tuple(self._columns[head.name] for head in chosen)]
        results: list[dict[str, Any]] = []
        for logits in self._windows(checked, batch_size):
            results += answers(logits if selected is None else logits[:, selected], top_k, scores)
        return results[0] if isinstance(texts, str) else results

    def predict(
        self,
        texts: str | Iterable[str],
        head: str | None = None,
        *,
        thresholds: Thresholds | None = None,
        abstain: bool = True,
    ) -> Any:
        """The label of each text, as a list, None where the head abstains; a text alone returns its label.

        Those of a multi_label head are the lists of labels that reach their thresholds, best first.

        Args:
            texts: A text or an iterable of texts.
            head: Name of a head. By default, a bundle of several heads returns a dict of all of them.
            thresholds: See `__call__`.
            abstain: See `__call__`.

        Raises:
            ValueError: A text, the head or a threshold is invalid.
        """
        chosen = self._choose(None if head is None else [head])
        listed, names = [texts] if isinstance(texts, str) else texts, [one.name for one in chosen]
        answers = self(listed, heads=names, thresholds=thresholds, abstain=abstain)
        labels = {one.name: [_labels(answer[one.name]) for answer in answers] for one in chosen}
        if isinstance(texts, str):
            return self._single({name: found[0] for name, found in labels.items()}, head)
        return self._single(labels, head)

    def predict_proba(self, texts: str | Iterable[str], head: str | None = None) -> Any:
        """The calibrated probabilities, float64 `[texts, labels]`, with labels in the order of `classes_`.

        Those of a multi_label head do not add up to 1.

        Args:
            texts: A text or an iterable of texts.
            head: Name of a head. By default, a bundle of several heads returns a dict of all of them.

        Raises:
            ValueError: A text or the head is invalid.
        """
        logits = self.logits(texts, None if head is None else [head])
        return self._single({name: self.probabilities(part, name) for name, part in logits.items()}, head)

    @property
    def classes_(self) -> Any:
        """The labels of the head, an array; of several heads a dict of arrays."""
        types = {STRING: object, INTEGER: np.int64}  # object: items are str
        arrays = {name: np.array(head.values, types[head.label_type]) for name, head in self._heads.items()}
        return self._single(arrays, None)

    def logits(
        self, texts: str | Iterable[str], heads: Sequence[str] | None = None, batch_size: int = 32
    ) -> dict[str, npt.NDArray[np.float32]]:
        """The uncalibrated logits of each head, float32 `[texts, labels]`.

        Raises:
            ValueError: A text or head is invalid.
        """
        chosen = self._choose(heads)
        width = sum(len(head.labels) for head in self.manifest.heads)
        windows = self._windows(check_texts(texts), batch_size)
        whole = np.concatenate([np.empty((0, width), np.float32), *windows], dtype=np.float32)
        return {head.name: whole[:, self._columns[head.name]] for head in chosen}

    def probabilities(self, logits: Floats, head: str) -> npt.NDArray[np.float64]:
        """The calibrated probabilities `[texts, labels]` of a head.

        Raises:
            ValueError: The head is unknown.
        """
        return probabilities(logits, self._head(head))

    def labels(self, head: str) -> tuple[str, ...] | tuple[int, ...]:
        """The labels of a head in the order of its logits, as answers give them.

        Raises:
            ValueError: The head is unknown.
        """
        return self._head(head).values

    def tokens(self, texts: str | Iterable[str]) -> list[int]:
        """The number of tokens of each text after truncation, special tokens included."""
        return [len(ids) for ids in self._token_ids(check_texts(texts))]

    @property
    def label_tokens(self) -> int:
        """The number of tokens that are read with each text: labels and hypotheses. 0 for fixed labels."""
        return self._session.label_tokens

    def __getattr__(self, name: str) -> Callable[..., Any]:
        heads = self.__dict__.get("heads", ())  # copy and pickle look up attributes before __init__
        head = name.removeprefix("predict_")
        if head != name and head in heads:
            return partial(self._predict, head)
        from difflib import get_close_matches  # only errors need the import

        problem = f"{type(self).__name__!r} has no attribute {name!r}"
        if head != name and (near := get_close_matches(name, [f"predict_{known}" for known in heads], 1)):
            problem += f", did you mean {near[0]!r}?"
        raise AttributeError(f"{problem} (heads: {', '.join(heads)})")

    def __repr__(self) -> str:
        if not hasattr(self, "_columns"):  # loading failed
            return f"<{type(self).__name__}>"
        kinds = (f"{head.name} ({head.kind}, {len(head.labels)} labels)" for head in self.manifest.heads)
        return f"<{type(self).__name__} {self.manifest.name!r}, {self.variant}: {', '.join(kinds)}>"

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *(f"predict_{head}" for head in self.heads)})

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[object, ...]]:
        # sessions cannot be copied, so a copy loads the bundle again
        return _loaded, (type(self), self._folder, self.variant, self.threads, self._given)

    def _single(self, results: dict[str, Any], head: str | None) -> Any:
        """The result of the head that was asked for or is the only one; otherwise all results."""
        return results if head is None and len(self.heads) > 1 else next(iter(results.values()))

    def _predict(self, head: str, texts: str | Iterable[str], **options: Any) -> Any:
        answers: Any = self(texts, heads=[head], **options)
        return answers[head] if isinstance(texts, str) else [answer[head] for answer in answers]

    def _head(self, name: str) -> Head:
        if name not in self.heads:
            raise ValueError(unknown("head", name, self.heads))
        return self._heads[name]

    def _choose(self, names: Sequence[str] | None) -> Sequence[Head]:
        if names is None:
            return self.manifest.heads
        if isinstance(names, (str, bytes)) or not isinstance(names, Iterable):
            raise ValueError(f"heads: must be a list of names, got {names!r}")
        chosen = list(dict.fromkeys(map(self._head, names)))
        if not chosen:
            raise ValueError("heads: must name at least one head, got none (None selects all)")
        return chosen

    def _windows(self, texts: list[str], batch_size: int) -> Iterator[Floats]:
        """The logits `[texts, labels of all heads]` of consecutive windows of texts."""
        _check_count("batch_size", batch_size)
        if 0 < len(texts) <= batch_size:  # the fast path of a single text
            return iter([self._session.run(self._token_ids(texts))])
        size = batch_size * _WINDOW
        parts = (texts[start : start + size] for start in range(0, len(texts), size))
        return self._session.windows(map(self._token_ids, parts), batch_size)


def _loaded(
    kind: type[Classifier], folder: Path, variant: str, threads: int, given: Head | None
) -> Classifier:
    classifier = kind(folder, variant, threads)
    return classifier if given is None else classifier._view(given)


def _labels(answer: Any) -> Any:
    """The label of a single_label answer, the list of labels of a multi_label answer."""
    return [one["label"] for one in answer] if isinstance(answer, list) else answer["label"]


def _check_count(option: str, value: object) -> None:
    if type(value) is not int or value < 1:
        raise ValueError(f"{option}: must be a whole number >= 1, got {value!r}")
