"""How often the promised accuracy of heads that abstain holds: random splits of validation and test.

    python benchmarks/abstention.py RUN ... [--accuracy 0.98] [--confidence 0.95] [--splits 20] [--oos DIR]

Each split halves the labelled validation and test texts of a finished run at random. One half is validation:
the temperature and the threshold are fitted to it. On the other half, the test, the promise holds if the
answered texts do not refute it: a rate of right answers as low as theirs has a probability of at least 5 % if
the true rate is the promised one. `at least` counts the stricter event that their accuracy itself is at least
the promised one, which a threshold exactly at the promised rate reaches in half of the splits. Without a
threshold nothing is promised, and nothing answered. `point` is the threshold of the largest coverage whose
accuracy on validation is at least the promised one.

--oos names a folder with oos_validation.csv and oos_test.csv, texts of no class: the separation (AUROC) of
probability, energy and two Mahalanobis distances of the student's pooled state (needs the network).
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from scipy.stats import binom

from distill.evaluation.abstention import promised, separation
from distill.evaluation.calibration import calibrate
from distill.evaluation.metrics import expected_calibration_error, labelled, probabilities
from distill.heads import Head
from export.bundle.manifest import ENERGY, PROBABILITY
from export.runtime.classifier import Classifier
from export.runtime.probabilities import confidence

Array = np.ndarray[Any, Any]


def split_of(run: Path, name: str) -> datasets.Dataset:
    """A prepared split, as this version or an earlier one wrote it."""
    path = run / "stages/prepare" / name
    return (
        datasets.load_from_disk(str(path)) if path.is_dir() else datasets.Dataset.from_file(f"{path}.arrow")
    )


def answers(run: Path) -> Iterator[tuple[Head, float, dict[str, tuple[Array, Array]]]]:
    """Each single_label head, its temperature, and its logits and labels on validation and test."""
    classifier = Classifier.load(run / "bundle")
    splits = {name: split_of(run, name) for name in ("validation", "test")}
    logits = {name: classifier.logits(list(split["text"])) for name, split in splits.items()}
    for served in classifier.manifest.heads:
        if served.kind == "single_label":
            head = Head(served.name, "single_label", served.labels)
            found = {}
            for name, split in splits.items():
                labels = np.array(split[f"head_{head.name}"])
                known = labelled(labels, head)
                found[name] = logits[name][head.name][known].astype(float), labels[known]
            yield head, served.temperature, found


def point_estimate(scores: Array, right: Array, accuracy: float) -> float | None:
    """The lowest score whose texts and those above are right at the rate."""
    order = np.argsort(-scores, kind="stable")
    enough = np.flatnonzero(np.cumsum(right[order]) / np.arange(1, len(order) + 1) >= accuracy)
    return float(scores[order][enough[-1]]) if len(enough) else None


def splits(head: Head, logits: Array, labels: Array, options: argparse.Namespace) -> None:
    """Print how often each way kept its promise."""
    rows: dict[str, list[tuple[float, bool, bool]]] = {"promised": [], "point": []}
    for seed in range(options.splits):
        order = np.random.default_rng(seed).permutation(len(labels))
        validation, test = order[: len(order) // 2], order[len(order) // 2 :]
        temperature = calibrate(head, logits[validation], labels[validation]).temperature
        scores = confidence(logits / temperature, PROBABILITY)
        right = logits.argmax(-1) == labels
        own = scores[validation], right[validation]
        chosen = promised(*own, options.accuracy, options.confidence)
        point = point_estimate(*own, options.accuracy)
        for name, threshold in (("promised", chosen and chosen.value), ("point", point)):
            if threshold is not None and (sure := scores[test] >= threshold).any():
                hits, count = int(right[test][sure].sum()), int(sure.sum())
                held = bool(binom.cdf(hits, count, options.accuracy) >= 0.05)
                rows[name].append((float(sure.mean()), held, hits / count >= options.accuracy))
    print(f"  {len(labels) // 2} texts each; accuracy on all {(logits.argmax(-1) == labels).mean():.4f}")
    for name, found in rows.items():
        without = options.splits - len(found)
        coverage = f"{np.mean([row[0] for row in found]):.3f}" if found else "-"
        print(
            f"  {name:9} holds {without + sum(row[1] for row in found)} of {options.splits} "
            f"({without} without a threshold), at least {without + sum(row[2] for row in found)}, "
            f"mean coverage where there is one {coverage}"
        )


def ece(head: Head, logits: Array, labels: Array, temperature: float) -> float:
    """The expected calibration error on test at the temperature of the bundle."""
    return float(expected_calibration_error(probabilities(logits, head, temperature), labels))


def texts_of(path: Path) -> list[str]:
    """The column `text` of a csv file."""
    with path.open(encoding="utf-8", newline="") as file:
        return [row["text"] for row in csv.DictReader(file)]


def pooled_states(run: Path, texts: dict[str, list[str]]) -> dict[str, Array]:
    """The pooled states `[texts, width]` of the student's encoder."""
    import torch

    from distill.models.saved_networks import load_classifier

    network, tokenizer = load_classifier(run / "stages/fit_student")
    seen: list[Array] = []
    network.dropout.register_forward_pre_hook(lambda _, given: seen.append(given[0].numpy()))
    encode = network.text_encoder(tokenizer, int(tokenizer.model_max_length))
    states = {}
    for name, some in texts.items():
        encoded, seen[:] = encode(some), []
        with torch.inference_mode():
            for start in range(0, len(some), 64):
                rows = np.arange(start, min(start + 64, len(some)))
                network({key: torch.from_numpy(x) for key, x in encoded.batch(rows).items()})
        states[name] = np.concatenate(seen).astype(float)
    return states


def out_of_scope(run: Path, folder: Path) -> None:
    """Print the separation of every score, on validation and test."""
    classifier = Classifier.load(run / "bundle")
    names = ("train", "validation", "test")
    texts = {name: list(split_of(run, name)["text"]) for name in names}
    texts |= {f"oos {name}": texts_of(folder / f"oos_{name}.csv") for name in names[1:]}
    logits = {name: classifier.logits(some) for name, some in texts.items() if name != "train"}
    states = pooled_states(run, texts)
    for head in classifier.manifest.heads:
        if head.kind != "single_label":
            continue
        labels = np.array(split_of(run, "train")[f"head_{head.name}"])
        means = np.stack([states["train"][labels == i].mean(0) for i in range(len(head.labels))])
        inverse = np.linalg.pinv(np.cov((states["train"] - means[labels]).T))
        middle, whole = states["train"].mean(0), np.linalg.pinv(np.cov(states["train"].T))

        def distance(x: Array, mean: Array, matrix: Array) -> Array:
            return np.asarray(((x - mean) @ matrix * (x - mean)).sum(-1))

        scores: dict[str, dict[str, Array]] = {}
        for name, found in logits.items():
            scaled, state = found[head.name].astype(float) / head.temperature, states[name]
            near = np.min([distance(state, mean, inverse) for mean in means], 0)
            scores[name] = {
                PROBABILITY: confidence(scaled, PROBABILITY),
                ENERGY: confidence(scaled, ENERGY),
                "Mahalanobis": -near,
                "relative Mahalanobis": distance(state, middle, whole) - near,
            }
        print(f"{run.name}, {head.name}: AUROC of texts with a class against texts of none")
        right = logits["test"][head.name].argmax(-1) == np.array(split_of(run, "test")[f"head_{head.name}"])
        for name in scores["test"]:
            both = [separation(scores[split][name], scores[f"oos {split}"][name]) for split in names[1:]]
            least = np.quantile(scores["validation"][name], 0.05)
            sure = scores["test"][name] >= least
            print(
                f"  {name:20} validation {both[0]:.4f}, test {both[1]:.4f}; 95 % of validation answered: "
                f"of test {sure.mean():.3f}, {right[sure].mean():.4f} right, of all {right.mean():.4f}; "
                f"{(scores['oos test'][name] < least).mean():.3f} of the texts of no class refused"
            )


def main() -> None:
    """Measure the runs that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--accuracy", type=float, default=0.98)
    parser.add_argument("--confidence", type=float, default=0.95)
    parser.add_argument("--splits", type=int, default=20)
    parser.add_argument("--oos", type=Path)
    options = parser.parse_args()
    for run in options.runs:
        if options.oos:
            out_of_scope(run, options.oos)
            continue
        for head, temperature, found in answers(run):
            error = ece(head, *found["test"], temperature)
            print(f"{run.name}, {head.name}: ECE on test {error:.4f}; accuracy {options.accuracy:g} promised")
            logits, labels = (np.concatenate(both) for both in zip(*found.values(), strict=True))
            splits(head, logits, labels, options)


if __name__ == "__main__":
    main()
