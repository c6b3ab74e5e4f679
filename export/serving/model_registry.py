"""The served bundles: loading, lookup by name, and replacement when a folder changes.

A folder has changed when the size, modification time or inode of any of its files has. The registry then
loads the new bundle with all checks while the old one keeps serving. New requests go to the new bundle, and
requests that are already queued are answered by the old one. A bundle that cannot be loaded is logged and
tried again after the next change. Bundles are loaded in threads that no exception and no hang of native code
carries into the server.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from ctypes import CDLL
from functools import partial
from math import prod
from pathlib import Path
from threading import Thread
from typing import Any, NamedTuple, TypeVar

import numpy as np
from starlette.applications import Starlette

from export.bundle.manifest import MANIFEST, PACKED, BundleError, Head
from export.runtime.classifier import Classifier
from export.runtime.packed import Labels
from export.runtime.postprocess import Answers, columns, with_thresholds
from export.runtime.probabilities import Floats
from export.runtime.session import LOAD_SECONDS
from export.serving import telemetry
from export.serving.batcher import Batcher, InvalidTextError, QueueFullError
from export.serving.predict_api import PredictRequest
from export.serving.request import check_name, unavailable, unprocessable
from export.serving.settings import ServingError, Settings
from export.serving.v2_api import output_tensors
from export.text import label_text

Signature = tuple[tuple[str, int, int, int], ...]  # path, inode, bytes and modification time of each file

T = TypeVar("T")
_MAX_LOAD_S = LOAD_SECONDS + 30.0  # for the other files and the queue of the disk
_TOKEN = 4  # characters
_SESSION_BATCH = 16  # texts per run of the session, sorted by length: larger runs pad more


class Result(NamedTuple):
    """The logits of all heads [labels] for one text, and what `Classifier.__call__` returns for it.

    `tokens` is the number of tokens that were read, counted only where labels are given.
    """

    logits: Floats
    prediction: dict[str, Any]
    tokens: int = 0


class Model:
    """A loaded bundle and its batcher."""

    def __init__(self, classifier: Classifier, settings: Settings) -> None:
        self.manifest = manifest = classifier.manifest
        self.name, self.variant = manifest.name, classifier.variant
        self.version: str = manifest.to_json()["digest"][:12]
        self.outputs = output_tensors(manifest.heads)
        self.heads = {head.name: head for head in manifest.heads}
        self._columns, self._timeout_s = columns(manifest.heads), settings.timeout_s
        self.batcher: Batcher[Labels, Result] = Batcher(
            partial(_classify, classifier, Answers(manifest.heads)),
            max_batch=settings.max_batch,
            max_wait=settings.max_wait_ms / 1000,
            queue_size=settings.queue,
            on_batch=partial(_count_batch, self.name),
            characters=self._label_characters,
        )

    def responds(self) -> bool:
        """Whether the model can give answers: its thread neither ended nor hangs."""
        return self.batcher.responds(self._timeout_s)

    def log_fields(self) -> dict[str, object]:
        """The fields of a log line about this model."""
        heads = [*self.heads]
        return {"model": self.name, "version": self.version, "variant": self.variant, "heads": heads}

    def labels(
        self, labels: object, head: str | None, hypothesis: str | None = None, where: str = ""
    ) -> Labels:
        """The labels of a request. A message begins with `where`.

        Raises:
            RequestError: 422 if the bundle has fixed labels or several heads, or a label is invalid.
        """
        try:
            return Labels.of(self.manifest, labels, head, hypothesis)
        except ValueError as error:
            raise unprocessable(f"{where}{error}", "labels") from None

    def head(self, given: Labels) -> Head:
        """The head that scores the labels of a request."""
        return given.replacing(self.heads[given.head])

    async def classify(
        self, texts: Sequence[str], given: Sequence[Labels] | None = None, where: Sequence[str] = ()
    ) -> list[Result]:
        """The results of the texts, in order.

        Args:
            texts: the texts of a request.
            given: the labels of each text. Default: those of the bundle.
            where: what a message about each text begins with.

        Raises:
            RequestError: 503 if the queue is full, 422 if the classifier rejects a text or a label.
        """
        try:
            return await self.batcher.submit(texts, given)
        except QueueFullError:
            raise unavailable("queue: is full (retry later)", "queue") from None
        except InvalidTextError as error:
            raise unprocessable(f"{where[error.position] if where else ''}{error}", "text") from None

    def answering(self, body: PredictRequest, given: Labels | None) -> Sequence[Head]:
        """The heads that answer a request, with its labels and thresholds.

        Raises:
            RequestError: 422 if a threshold is invalid.
        """
        names = body.heads or self.heads
        heads = [self.heads[name] for name in names] if given is None else [self.head(given)]
        try:
            return with_thresholds(heads, body.thresholds, body.abstain)
        except ValueError as error:
            raise unprocessable(str(error), "thresholds") from None

    def predictions(
        self, results: Sequence[Result], body: PredictRequest, heads: Sequence[Head]
    ) -> list[dict[str, Any]]:
        """What `Classifier.__call__` returns for the texts of a request, from their results and its heads."""
        if results and body.own_answers:
            if body.labels is None:
                logits = np.hstack([self._logits(results, head.name) for head in heads])
            else:
                logits = np.stack([result.logits for result in results])
            return Answers(heads)(logits, body.top_k, body.scores)
        if body.heads is None:
            return [result.prediction for result in results]
        return [{name: result.prediction[name] for name in body.heads} for result in results]

    def scores(self, heads: Sequence[str] | None, top_k: int | None) -> int:
        """Number of scores of each text in a prediction with scores, or with the best `top_k`."""
        labels = (len(self.heads[name].labels) for name in heads or self.heads)
        return sum(labels if top_k is None else (min(top_k, count) for count in labels))

    def values(self, outputs: Sequence[str] | None) -> int:
        """Number of values of each text in an infer response."""
        return sum(prod(self.outputs[name].description(1)["shape"]) for name in self._selected(outputs))

    def _selected(self, outputs: Sequence[str] | None) -> Sequence[str]:
        """The requested outputs. None selects the labels and scores of all heads."""
        if outputs is None:
            return [name for name, output in self.outputs.items() if output.part != "probabilities"]
        return outputs

    def tensors(self, results: Sequence[Result], outputs: Sequence[str] | None) -> list[dict[str, Any]]:
        """The outputs of an infer response. None selects the labels and scores of all heads."""
        predictions = [result.prediction for result in results]
        selected = [self.outputs[name] for name in self._selected(outputs)]
        return [output.tensor(self._logits(results, output.head.name), predictions) for output in selected]

    def _label_characters(self, given: Labels | None) -> int:
        """The characters of the labels that are read with each text; each label has one token more."""
        if self.manifest.kind != PACKED:
            return 0
        heads = self.manifest.heads if given is None else [self.head(given)]
        labels = (label_text(label, head.descriptions.get(label)) for head in heads for label in head.labels)
        return sum(len(label) + _TOKEN for label in labels) + sum(len(head.hypothesis) for head in heads)

    def _logits(self, results: Sequence[Result], head: str) -> Floats:
        """The logits of one head, [texts, labels]."""
        labels = len(self.heads[head].labels)
        return np.reshape([result.logits[self._columns[head]] for result in results], (len(results), labels))


class ModelRegistry:
    """All served bundles by name. Creating it loads them, `lifespan` serves them.

    Attributes:
        names: names of the models, in the order of the command line.
        draining: whether the server is stopping and rejects new texts.

    Raises:
        ServingError: two bundles have the same name, two outputs of a bundle have the same name, or a bundle
            has no such variant.
        BundleError: a bundle is missing or invalid.
    """

    def __init__(self, settings: Settings, log: telemetry.Log) -> None:
        self._settings, self._log = settings, log
        self._folders: dict[str, Path] = {}
        self._signatures: dict[str, Signature] = {}
        self._classifiers: dict[str, Classifier] = {}  # until `lifespan` starts
        self._models: dict[str, Model] = {}
        self._closing: set[asyncio.Task[None]] = set()
        self.draining = False
        for folder in map(Path, settings.bundles):
            signature, classifier = _signature(folder), self._load(folder)
            name = classifier.manifest.name
            if name in self._folders:
                both = f"{self._folders[name]} and {folder}"
                raise ServingError(f"{both}: both bundles are named {name!r} (serve them separately)")
            self._folders[name], self._signatures[name] = folder, signature
            self._classifiers[name] = classifier
        self.names = [*self._folders]

    def model(self, name: str | None) -> Model:
        """The model of this name. None selects the only model.

        Raises:
            RequestError: 404 for an unknown name, 422 for None if there are several models.
        """
        if name is None:
            if len(self.names) > 1:
                raise unprocessable(f"model: must be one of {self.names}", "model")
            name = self.names[0]
        check_name("model", "model", name, self.names, status=404)
        return self._models[name]

    def ready(self, model: Model | None = None) -> bool:
        """Whether a model, or all models, can answer new requests."""
        models = self._models.values() if model is None else [model]
        return not self.draining and all(one.responds() for one in models)

    @asynccontextmanager
    async def lifespan(self, app: Starlette) -> AsyncIterator[None]:
        """Serve the models and watch their folders. On exit, wait until all queued texts are classified."""
        for name, folder in self._folders.items():  # no local variable keeps a classifier in memory
            self._serve(self._classifiers.pop(name))
            self._log.event("serving", folder=str(folder), **self._models[name].log_fields())
        watchers = [asyncio.create_task(self._watch(name)) for name in self.names]
        yield
        for watcher in watchers:
            watcher.cancel()
        await asyncio.wait(watchers)
        await asyncio.gather(*(model.batcher.close() for model in self._models.values()), *self._closing)

    def flush(self) -> None:
        """Stop waiting for batches to fill."""
        for model in self._models.values():
            model.batcher.flush()

    def _load(self, folder: Path) -> Classifier:
        try:
            classifier = Classifier.load(
                folder, variant=self._settings.variant, threads=self._settings.threads
            )
        except ValueError as error:
            raise ServingError(f"{folder}: {error}") from None
        heads = classifier.manifest.heads
        if len(output_tensors(heads)) != 3 * len(heads):
            problem = f"heads {[head.name for head in heads]} have two outputs of the same name"
            raise ServingError(f"{folder}: {problem} (rename the head that ends with .score)")
        return classifier

    def _serve(self, classifier: Classifier) -> Model:
        """Direct new requests to this classifier."""
        model = self._models[classifier.manifest.name] = Model(classifier, self._settings)
        telemetry.BUNDLE_INFO.remove_by_labels({"model": model.name})
        telemetry.BUNDLE_INFO.labels(model.name, model.version, model.variant).set(1)
        telemetry.QUEUE_TEXTS.labels(model.name).set_function(lambda: model.batcher.depth)
        return model

    async def _watch(self, name: str) -> None:
        while self._settings.watch_s:
            await asyncio.sleep(self._settings.watch_s)
            try:
                await self._reload_if_changed(name)
            except Exception as error:  # such as memory or threads that the system refuses
                self._log.failure("reload", error)

    async def _reload_if_changed(self, name: str) -> None:
        folder = self._folders[name]
        signature = await _in_thread(_signature, folder)
        if not signature or signature == self._signatures[name]:  # empty while a bundle is being replaced
            return
        try:
            classifier = await _in_thread(self._load, folder)
            actual_name = classifier.manifest.name
            if actual_name != name:
                problem = f"the bundle is named {actual_name!r}, expected {name!r}"
                raise ServingError(f"{folder}: {problem} (restart the server to serve it)")
            if await _in_thread(_signature, folder) != signature:
                return  # changed during loading: the next check loads it
        except Exception as error:  # the old bundle keeps serving, whatever the error
            self._signatures[name] = signature
            telemetry.RELOADS.labels(name, "refused").inc()
            known = isinstance(error, (BundleError, ServingError))
            line = str(error) if known else f"{type(error).__name__}: {error}"
            self._log.event("reload refused", model=name, error=line)
            return
        self._signatures[name] = signature
        old = self._models[name]
        new = self._serve(classifier)
        telemetry.RELOADS.labels(name, "done").inc()
        self._log.event("reloaded", before=old.version, **new.log_fields())
        task = asyncio.create_task(_close(old))
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)


async def _close(model: Model) -> None:
    """Wait for the queued texts of a replaced bundle, then return its memory to the system."""
    await model.batcher.close()
    del model
    with suppress(OSError, AttributeError, TypeError):  # glibc only
        await _in_thread(CDLL(None).malloc_trim, 0)


async def _in_thread(function: Callable[..., T], *arguments: object) -> T:
    """The result of a function that runs in a thread of its own, which does not delay the end of the process.

    Raises:
        Exception: of the function.
        RuntimeError: the function raised another exception, such as a panic of native code.
        TimeoutError: the function took longer than 90 seconds. Its thread goes on.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def run() -> None:
        try:
            finish = partial(done.set_result, function(*arguments))
        except BaseException as error:
            if not isinstance(error, Exception) or isinstance(error, StopIteration):  # no future takes these
                error = RuntimeError(f"{type(error).__name__}: {error}")
            finish = partial(done.set_exception, error)
        with suppress(RuntimeError):  # the event loop is closed
            loop.call_soon_threadsafe(lambda: done.done() or finish())

    Thread(target=run, name="reload", daemon=True).start()
    try:
        finished, _ = await asyncio.wait([done], timeout=_MAX_LOAD_S)  # wait_for may swallow a cancellation
        if not finished:
            raise TimeoutError(f"took longer than {_MAX_LOAD_S:g} s (see whether the files can be read)")
        return done.result()
    finally:
        done.cancel()


def _classify(
    classifier: Classifier, answers: Answers, texts: list[str], given: Labels | None
) -> list[Result]:
    tokens = [0] * len(texts)
    if given is not None:
        classifier = classifier.with_labels(dict(given.labels), given.head, hypothesis=given.hypothesis)
        answers = Answers(classifier.manifest.heads)
        tokens = [count + classifier.label_tokens for count in classifier.tokens(texts)]
    heads = classifier.logits(texts, batch_size=_SESSION_BATCH)
    logits = np.hstack([*heads.values()])
    return [*map(Result, logits, answers(logits, None, False), tokens)]


def _count_batch(model: str, texts: int, seconds: float) -> None:
    telemetry.TEXTS.labels(model).inc(texts)
    telemetry.BATCH_TEXTS.labels(model).observe(texts)
    telemetry.BATCH_SECONDS.labels(model).observe(seconds)


def _signature(folder: Path) -> Signature:
    """Path, inode, size and modification time of each file. Empty if the folder has no manifest."""
    try:
        if not (folder / MANIFEST).is_file():
            return ()
        stats = ((str(path), path.stat()) for path in sorted(folder.rglob("*")))
        return tuple((path, stat.st_ino, stat.st_size, stat.st_mtime_ns) for path, stat in stats)
    except OSError:
        return ()
