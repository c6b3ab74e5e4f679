"""The speed of packed networks against one label a pass, in training and in onnxruntime."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from time import process_time
from typing import Any

import numpy as np
import torch
from packed_runs import ENCODER, bundle, rows, show
from sklearn.metrics import f1_score
from torch.nn import functional as F

from distill.heads import Head
from distill.models.base import on_device
from distill.models.packed import PackedClassifier
from export.runtime.classifier import Classifier
from export.text import label_text
from teachers.encoders import load_encoder

CPU = torch.device("cpu")
SIZES = (1, 8, 32)
TOPICS = ("world", "sports", "business", "science and technology")
OTHERS = (
    *("politics", "economy", "health", "medicine", "weather", "travel", "food", "music", "film", "fashion"),
    *("education", "law", "crime", "war", "religion", "history", "art", "nature", "energy", "cars", "space"),
    *("computers", "football", "tennis", "finance", "housing", "work", "family"),
)
Array = Any


def tokens(classifier: Classifier, texts: Sequence[str], labels: Sequence[str]) -> tuple[float, float, float]:
    """Tokens read for a text with all labels, and one label a pass, and their ratio."""
    of_text = float(np.mean(classifier.tokens(texts)))
    of_labels = [len(classifier._session._labels.label(label_text(x))) for x in labels]  # type: ignore[attr-defined]
    packed, separate = of_text + sum(of_labels), len(labels) * of_text + sum(of_labels)
    return packed, separate, separate / packed


def best(seconds: Callable[[int], float], sizes: Sequence[int] = SIZES) -> tuple[int, float]:
    """The batch size of the least time, and the time, the less of two by turns."""
    found = {size: min(seconds(size), seconds(size)) for size in sizes}
    size = min(found, key=lambda size: found[size])
    return size, found[size]


def inference(classifier: Classifier, texts: Sequence[str], labels: Sequence[str], what: str) -> None:
    """Time packed inference against one label a pass, in onnxruntime on one thread."""
    view = classifier.with_labels(labels)
    alone = [classifier.with_labels([label]) for label in labels]
    count = max(32, 8192 // (8 + 4 * len(labels)))  # texts, fewer of them with many labels
    part = texts[:: max(1, len(texts) // count)][:count]
    few = alone if len(alone) <= 4 else alone[:: len(alone) // 4]

    def timed(views: Sequence[Classifier], size: int) -> float:
        start = process_time()
        for one in views:
            one.logits(part, batch_size=size)
        return process_time() - start

    sizes = {
        "packed": best(partial(timed, [view])),
        "one": best(partial(timed, few)),
    }
    ratios, packed, separate = [], [], []
    for _ in range(3):
        packed.append(timed([view], sizes["packed"][0]))
        separate.append(timed(few, sizes["one"][0]) * len(alone) / len(few))
        ratios.append(separate[-1] / packed[-1])
    ratio, by_tokens = float(np.median(ratios)), tokens(classifier, texts, labels)
    show(
        what,
        labels=len(labels),
        variant=classifier.variant,
        texts_a_second=len(part) / float(np.median(packed)),
        one_a_pass=len(part) / float(np.median(separate)),
        ratio=ratio,
        token_ratio=by_tokens[2],
        share=ratio / by_tokens[2],
        batch=[sizes["packed"][0], sizes["one"][0]],
    )


def agnews(data: Path, out: Path) -> None:
    """Training and inference with four labels, two layers; and inference with 32 labels."""
    train, test = (rows(data / f"agnews/{name}.csv") for name in ("train", "test"))
    train = train[::3]
    names = sorted({row["topic"] for row in train})
    texts = [row["text"] for row in train]
    labels = np.array([names.index(row["topic"]) for row in train])
    found = {}
    for one in (False, True):
        network, tokenizer = new_network(names)
        encoded = network.text_encoder(tokenizer, 128)(texts)
        part = np.arange(0, len(texts), 12)  # 150 texts
        size, _ = best(lambda n: epoch(network, encoded, labels, part, n, one, None), (8, 32))  # noqa: B023
        network, tokenizer = new_network(names)
        optimizer = torch.optim.AdamW(network.parameters(), lr=2e-4, fused=True)
        torch.manual_seed(0)
        order = np.random.default_rng(0).permutation(len(texts))
        seconds = epoch(network, encoded, labels, order, 32, one, optimizer)
        held_out = network.text_encoder(tokenizer, 128)([row["text"] for row in test])
        with torch.inference_mode():
            batches = np.array_split(np.arange(len(test)), len(test) // 32)
            logits = torch.cat([network.eval()(on_device(held_out.batch(some), CPU)) for some in batches])
        truth = [names.index(row["topic"]) for row in test]
        found[one] = (seconds, size, f1_score(truth, logits.argmax(1).numpy(), average="macro"))
        if not one:
            kept = network, tokenizer
    timed: dict[bool, list[float]] = {}
    network, tokenizer = new_network(names)
    encoded = network.text_encoder(tokenizer, 128)(texts)
    part = np.arange(0, len(texts), 12)
    for _ in range(3):
        for one in (False, True):
            timed.setdefault(one, []).append(epoch(network, encoded, labels, part, found[one][1], one, None))
    classifier = Classifier.load(bundle(*kept, out / "bundle_agnews"), variant="fp32", threads=1)
    ratio = float(np.median(timed[True]) / np.median(timed[False]))
    by_tokens = tokens(classifier, texts, names)[2]
    show(
        "agnews, a training epoch of a third of the texts",
        packed_seconds=found[False][0],
        one_a_pass_seconds=found[True][0],
        batch=[found[False][1], found[True][1]],
        ratio_at_best_batch=ratio,
        token_ratio=by_tokens,
        share=ratio / by_tokens,
        macro_f1=[float(found[False][2]), float(found[True][2])],
    )
    tests = [row["text"] for row in test]
    for variant in ("fp32", "int8"):
        classifier = Classifier.load(out / "bundle_agnews", variant=variant, threads=1)
        inference(classifier, tests, names, "agnews, inference")
        inference(classifier, tests, [*TOPICS, *OTHERS], "agnews' texts, 32 labels")


def new_network(names: Sequence[str]) -> tuple[PackedClassifier, Any]:
    """A packed network of the encoder's first two layers."""
    torch.manual_seed(0)
    encoder, tokenizer = load_encoder(ENCODER, layers=2, dropout=0.0, attention_dropout=0.0)
    return PackedClassifier(encoder, [Head("topic", "single_label", tuple(names))], dropout=0.0), tokenizer


def epoch(
    network: PackedClassifier,
    texts: Any,
    labels: Array,
    order: Array,
    size: int,
    one: bool,
    optimizer: torch.optim.Optimizer | None,
) -> float:
    """Seconds of the processor for the texts in this order; without an optimizer, of gradients alone.

    With `one`, the network reads each label in a pass of its own.
    """
    network.train()
    start, count = process_time(), len(network.heads[0].labels)
    for first in range(0, len(order), size):
        chosen = order[first : first + size]
        if one:
            logits = torch.stack(
                [
                    one_label(network, texts.texts.batch(chosen), texts.labels, label)
                    for label in range(count)
                ],
                1,
            )
        else:
            logits = network(on_device(texts.batch(chosen), CPU))
        loss = F.cross_entropy(logits, torch.from_numpy(labels[chosen]))
        torch.autograd.backward(loss)
        if optimizer is not None:
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
        network.zero_grad(set_to_none=True)
    return process_time() - start


def one_label(network: PackedClassifier, texts: dict[str, Array], labels: Any, label: int) -> torch.Tensor:
    """The logits of one label for texts, `[texts]`."""
    arrays = labels.arrays({network.heads[0].name: np.array([[label]])})
    logits: torch.Tensor = network(on_device(texts | arrays, CPU))
    return logits[:, label]
