"""The bundles that are served: loaded, looked up by name, and swapped when their folder changes.

A folder is looked at by the sizes, times and inodes of its files. When they have changed, what lies
there is loaded beside what serves, all checks of a load included; only then do new requests go to it,
while those that were asked of the old one are answered by it. What cannot be loaded is logged and
tried again when the files change again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from contextlib import suppress
from ctypes import CDLL
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from export.bundle.manifest import BundleError, Head
from export.runtime.classifier import Classifier
from export.serving.batcher import Batcher, Form
from export.serving.errors import Refusal, wrong
from export.serving.predict_api import Asked, Plain, unknown
from export.serving.settings import ServingError, Settings
from export.serving.telemetry import Observer
from export.serving.v2_api import Output, Tensors, outputs_of

Signature = tuple[tuple[str, int, int, int], ...]


class Model:
    """One loaded bundle, its queue, and the forms in which its requests want answers."""

    def __init__(self, classifier: Classifier, settings: Settings, observer: Observer) -> None:
        manifest = classifier.manifest
        self.name, self.variant = manifest.name, classifier.variant
        self.heads: dict[str, Head] = {head.name: head for head in manifest.heads}
        self.outputs: dict[str, Output] = outputs_of(manifest.heads)
        self.version: str = manifest.to_json()["digest"][:12]
        self.batcher = Batcher(
            classifier,
            max_batch=settings.max_batch,
            max_wait=settings.max_wait_ms / 1000,
            limit=settings.queue,
            told=observer.batches(self.name),
        )
        # the same options give the same object, so that such texts are answered together; of no bound
        # method, whose circle would keep a retired bundle in memory
        self._plain = lru_cache(256)(partial(_plain, self.heads))
        self._tensors = lru_cache(256)(partial(_tensors, self.outputs))

    def plain(self, asked: Asked) -> Form:
        """The form of a `/predict`. Raises: Refusal, an unknown head."""
        return self._plain(asked.heads, asked.top_k, asked.scores)

    def tensors(self, names: tuple[str, ...] | None) -> Tensors:
        """The form of an infer request. Raises: Refusal, an unknown output."""
        return self._tensors(names)


def _plain(
    heads: Mapping[str, Head], names: tuple[str, ...] | None, top_k: int | None, scores: bool
) -> Plain:
    for name in names or ():
        if name not in heads:
            raise wrong(f"heads: {unknown('head', name, [*heads])}", "head")
    return Plain([heads[name] for name in dict.fromkeys(names or heads)], top_k, scores)


def _tensors(outputs: Mapping[str, Output], names: tuple[str, ...] | None) -> Tensors:
    if names is None:
        return Tensors([output for output in outputs.values() if output.part != "probabilities"])
    for name in names:
        if name not in outputs:
            raise wrong(f"outputs: {unknown('output', name, [*outputs])}", "head")
    return Tensors([outputs[name] for name in names])


class Host:
    """The models by name. `start` loads them, `close` answers what waits; both in the event loop.

    Raises:
        ServingError: two bundles of one name, heads whose outputs would share one, or no such variant.
        BundleError: a bundle that cannot be loaded.
    """

    def __init__(self, settings: Settings, observer: Observer) -> None:
        self._settings, self._observer = settings, observer
        self._folders: dict[str, Path] = {}
        self._seen: dict[str, Signature] = {}
        self._retiring: set[asyncio.Task[None]] = set()
        self._watcher: asyncio.Task[None] | None = None
        self.models: dict[str, Model] = {}
        self._loaded: list[tuple[Path, Signature, Classifier]] = []
        for folder in map(Path, settings.bundles):
            seen = _signature(folder)
            self._loaded.append((folder, seen, self._load(folder)))
        for name, folder in ((x.manifest.name, folder) for folder, _, x in self._loaded):
            if name in self._folders:
                both = f"{self._folders[name]} and {folder}"
                raise ServingError(f"{both}: both bundles are named {name!r} (serve them apart)")
            self._folders[name] = folder

    @property
    def names(self) -> list[str]:
        """Of the models, in the order given."""
        return [*self._folders]

    def model(self, name: str) -> Model:
        """The model of this name. Raises: Refusal 404."""
        if name not in self.models:
            raise Refusal(404, f"model: {unknown('model', name, self.names)}", "model")
        return self.models[name]

    def only(self) -> Model:
        """The one model there is. Raises: Refusal, several."""
        if len(self.models) != 1:
            raise wrong(f"model: must name one of {self.names}", "model")
        return next(iter(self.models.values()))

    async def start(self) -> None:
        """Opens the queues and begins to watch the folders."""
        for folder, seen, classifier in self._loaded:
            self._serve(Model(classifier, self._settings, self._observer))
            self._seen[classifier.manifest.name] = seen
            self._observer.event("serving", folder=str(folder), **self._about(classifier.manifest.name))
        self._loaded.clear()
        if self._settings.watch_s:
            self._watcher = asyncio.create_task(self._watch())

    def hurry(self) -> None:
        """Lets no batch wait to fill any more."""
        for model in self.models.values():
            model.batcher.hurry()

    async def close(self) -> None:
        """Ends the watch and returns when all that was asked is answered."""
        if self._watcher:
            self._watcher.cancel()
            with suppress(asyncio.CancelledError):
                await self._watcher
        await asyncio.gather(*(model.batcher.close() for model in self.models.values()), *self._retiring)

    def _load(self, folder: Path) -> Classifier:
        try:
            classifier = Classifier.load(
                folder, variant=self._settings.variant, threads=self._settings.threads
            )
        except ValueError as error:
            raise ServingError(f"{folder}: {error}") from None
        heads = classifier.manifest.heads
        if len(outputs_of(heads)) != 3 * len(heads):
            problem = f"heads {[head.name for head in heads]} give two outputs of one name"
            raise ServingError(f"{folder}: {problem} (no head may be named as another with .score)")
        return classifier

    def _serve(self, model: Model) -> None:
        self.models[model.name] = model
        self._observer.bundle(
            model.name, model.version, model.variant, lambda: self.models[model.name].batcher.depth
        )

    def _about(self, name: str) -> dict[str, Any]:
        model = self.models[name]
        return {"model": name, "version": model.version, "variant": model.variant, "heads": [*model.heads]}

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(self._settings.watch_s)
            for name in self.names:
                await self._look(name)

    async def _look(self, name: str) -> None:
        folder = self._folders[name]
        seen = await asyncio.to_thread(_signature, folder)
        if not seen or seen == self._seen[name]:  # nothing there: a bundle is being replaced
            return
        try:
            classifier = await asyncio.to_thread(self._load, folder)
            if classifier.manifest.name != name:
                found = classifier.manifest.name
                raise ServingError(f"{folder}: is now named {found!r}, was {name!r} (start anew to serve it)")
            if await asyncio.to_thread(_signature, folder) != seen:
                return  # changed while it was read: look again
        except Exception as error:  # whatever it is, the old one goes on
            self._seen[name] = seen
            self._observer.reload(name, "refused")
            known = isinstance(error, (BundleError, ServingError))
            line = str(error) if known else f"{type(error).__name__}: {error}"
            self._observer.event("reload refused", model=name, error=line)
            return
        self._seen[name] = seen
        old, new = self.models[name], Model(classifier, self._settings, self._observer)
        self._serve(new)
        self._observer.reload(name, "done")
        self._observer.event("reloaded", before=old.version, **self._about(name))
        task = asyncio.create_task(_retire(old))
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)


async def _retire(model: Model) -> None:
    """Answers what waits, then gives the memory of a bundle back."""
    await model.batcher.close()
    del model
    with suppress(
        OSError, AttributeError, TypeError
    ):  # of glibc alone, which would keep it for the next bundle
        await asyncio.to_thread(CDLL(None).malloc_trim, 0)


def _signature(folder: Path) -> Signature:
    """What tells one state of the files of a folder from another; empty where no manifest lies."""
    try:
        if not (folder / "manifest.json").is_file():
            return ()
        found: Iterable[tuple[str, Any]] = ((str(path), path.stat()) for path in sorted(folder.rglob("*")))
        return tuple((path, stat.st_ino, stat.st_size, stat.st_mtime_ns) for path, stat in found)
    except OSError:
        return ()
