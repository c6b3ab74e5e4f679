"""Packed networks: invariance, speed against one label a pass, unseen labels, a student, a fixed student.

    OMP_NUM_THREADS=1 python benchmarks/packed.py DATA OUT [PART ...]

DATA holds the folders agnews and clinc150 with train.csv, validation.csv and test.csv. The runs are made in
OUT and skipped where they are done; measurements need an idle machine. Each part prints JSON lines.

Parts: `runs` (`run_seen` and `run_all`, teachers; `run_student`, a packed student; `run_forty`, a student of
40 labels), `invariance`, `agnews`, `clinc150`, `unseen`, `student`, `forty`; by default all. One label a pass
is the same network with the same weights, given each label alone. Both sides use their best batch size, and
times are those of the processor.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import numpy as np
import torch
from packed_runs import ENCODER, intents, rows, runs, show, teacher
from packed_speed import agnews, inference
from torch.nn import functional as F

from distill.models.base import on_device
from export.runtime.classifier import Classifier
from export.text import label_text
from teachers.encoders import load_encoder

CPU = torch.device("cpu")
Array = Any


def main() -> None:
    """Print the measurements of the parts that are asked for."""
    data, out = Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve()
    parts: dict[str, Callable[[Path, Path], None]] = {
        "runs": runs,
        "invariance": invariance,
        "agnews": agnews,
        "clinc150": clinc150,
        "unseen": unseen,
        "student": student,
        "forty": forty,
    }
    for part in sys.argv[3:] or parts:
        if part.startswith("run_"):
            runs(data, out, [part.removeprefix("run_")])
        else:
            parts[part](data, out)


def invariance(data: Path, out: Path) -> None:
    """How far a label's logit moves with its neighbours, and what int8 and ONNX change."""
    network, tokenizer, variants = teacher(out, "all")
    every_ninth = [row["text"] for row in rows(data / "clinc150/test.csv")][::9]
    every = network.heads[0].labels
    order = np.random.default_rng(0).permutation(len(every))
    subsets = {"alone": every[:1], "with 3": every[:4], "with 63": every[:64], "other block": every[86:]}
    for name, classifier in variants.items():
        texts = every_ninth if name == "int8" else every_ninth[::4]
        full = classifier.logits(texts)["intent"]
        moved = {}
        for what, some in subsets.items():
            found = classifier.with_labels(some).logits(texts)["intent"]
            moved[what] = float(np.abs(found - full[:, [every.index(label) for label in some]]).max())
        shuffled = classifier.with_labels([every[i] for i in order]).logits(texts)["intent"]
        moved["shuffled"] = float(np.abs(shuffled - full[:, order]).max())
        single = np.concatenate([classifier.logits([text])["intent"] for text in texts[:100]])
        moved["text alone"] = float(np.abs(single - full[:100]).max())
        show(f"invariance, {name}, largest difference of a logit", texts=len(texts), **moved)
        if name == "fp32":
            with torch.inference_mode():
                encoded = network.text_encoder(tokenizer, 128)(texts[:100])
                tensors = network(on_device(encoded.batch(np.arange(100)), CPU)).numpy()
            show("parity, onnxruntime against torch", largest=float(np.abs(tensors - full[:100]).max()))
            exact = full
        alone = np.concatenate([classifier.with_labels([x]).logits(texts)["intent"] for x in every], 1)
        same = float((alone.argmax(1) == full.argmax(1)).mean())
        show(f"one label a pass, {name}", texts=len(texts), same_label=same)
    same = float((full[::4].argmax(1) == exact.argmax(1)).mean())
    show("int8 against fp32", texts=len(exact), same_label=same)


def clinc150(data: Path, out: Path) -> None:
    """Accuracy with all 150 intents, texts a second, and the ratio to one label a pass."""
    _, _, variants = teacher(out, "all")
    test = rows(data / "clinc150/test.csv")
    for name, classifier in variants.items():
        some = test if name == "int8" else test[::5]
        start = process_time()
        found = classifier.predict([row["text"] for row in some])
        seconds = process_time() - start
        hits = float(np.mean([x == row["intent"] for x, row in zip(found, some, strict=True)]))
        what = {"variant": name, "texts": len(some), "accuracy": hits}
        show("clinc150, 150 labels", **what, texts_a_second=len(some) / seconds)
        labels = classifier.manifest.heads[0].labels
        inference(classifier, [row["text"] for row in test], labels, "clinc150, inference")


def accuracies(
    data: Path, classify: Callable[[Sequence[str], Sequence[str]], Array], sets: Sequence[str]
) -> dict[str, float]:
    """Accuracy among the 30 unseen intents, and among all 150 on seen, unseen and all texts."""
    seen, hidden, _ = intents(data)
    test = rows(data / "clinc150/test.csv")
    found = {}
    if "among 30" in sets:
        some = [row for row in test if row["intent"] in hidden]
        best_of = classify([row["text"] for row in some], hidden)
        found["unseen_among_30"] = float(
            np.mean([row["intent"] for row in some] == np.array(hidden)[best_of])
        )
    every = sorted([*seen, *hidden])
    hits = np.array(every)[classify([row["text"] for row in test], every)] == [row["intent"] for row in test]
    new = np.isin([row["intent"] for row in test], hidden)
    found |= {
        "unseen_among_150": hits[new].mean(),
        "seen_among_150": hits[~new].mean(),
        "all_among_150": hits.mean(),
    }
    return {name: float(value) for name, value in found.items()}


def by(classifier: Classifier) -> Callable[[Sequence[str], Sequence[str]], Array]:
    """A function that gives the number of the best of some labels for each text."""
    return lambda texts, labels: classifier.with_labels(labels).logits(texts)["intent"].argmax(1)


def unseen(data: Path, out: Path) -> None:
    """Labels that training never showed, beside the encoder's sentence similarity on the same texts."""
    encoder, tokenizer = load_encoder(ENCODER)

    def embed(texts: Sequence[str]) -> Array:
        parts = []
        with torch.inference_mode():
            for first in range(0, len(texts), 64):
                batch = tokenizer(list(texts[first : first + 64]), padding=True, return_tensors="pt")
                mask = batch["attention_mask"].unsqueeze(2)
                states = encoder.eval()(**batch)[0] * mask
                parts.append(F.normalize(states.sum(1) / mask.sum(1), dim=1))
        return torch.cat(parts).numpy()

    def similar(texts: Sequence[str], labels: Sequence[str]) -> Array:
        return (embed(texts) @ embed([label_text(x) for x in labels]).T).argmax(1)

    show("clinc150, sentence similarity", **accuracies(data, similar, ["among 30"]))
    _, _, variants = teacher(out, "seen")
    show("clinc150, packed, int8, 30 intents unseen", **accuracies(data, by(variants["int8"]), ["among 30"]))


def student(data: Path, out: Path) -> None:
    """The two-layer packed student: accuracy, size, and milliseconds a text by the number of labels."""
    every = sorted([*intents(data)[0], *intents(data)[1]])
    texts = [row["text"] for row in rows(data / "clinc150/test.csv")][::45]
    for variant in ("fp32", "int8"):
        classifier = Classifier.load(out / "run_student/bundle", variant=variant, threads=1)
        size = classifier.manifest.files[classifier.manifest.variants[variant]]["bytes"] / 1e6
        times = {}
        for count in (10, 50, 150):
            view = classifier.with_labels(every[:count])
            seconds = []
            for text in texts:
                view(text)
                start = perf_counter()
                view(text)
                seconds.append(perf_counter() - start)
            times[f"ms_{count}_labels"] = 1000 * float(np.median(seconds))
        show(
            "packed student",
            variant=variant,
            mb=size,
            **times,
            **accuracies(data, by(classifier), ["among 30"]),
        )


def forty(data: Path, out: Path) -> None:
    """A student of 40 fixed labels, ten unseen by its teacher, from unlabelled texts, beside the teacher."""
    few = intents(data)[2]
    test = [row for row in rows(data / "clinc150/test.csv") if row["intent"] in few]
    texts, truth = [row["text"] for row in test], np.array([row["intent"] for row in test])
    new = np.isin(truth, few[:10])
    fixed = Classifier.load(out / "run_forty/bundle", threads=1)
    packed = np.array(few)[by(teacher(out, "seen")[2]["fp32"])(texts, few)]
    for what, found in (
        ("packed teacher", packed),
        ("student of heads, int8", np.array(fixed.predict(texts))),
    ):
        hits = found == truth
        show(
            f"40 intents, {what}",
            accuracy=float(hits.mean()),
            seen=float(hits[~new].mean()),
            unseen=float(hits[new].mean()),
        )


if __name__ == "__main__":
    main()
