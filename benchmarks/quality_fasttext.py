"""fastText and quantised fastText for benchmarks/quality_peers.py."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import numpy as np
from quality_measure import Job, Method, Split, Trained, as_logits, chunked, seconds_of

AUTOTUNE = 300  # seconds, the default of fastText
DIMENSIONS = 50  # as in its tutorial; otherwise a trial of autotune may take tens of gigabytes
TUTORIAL = {"lr": 1.0, "epoch": 25, "wordNgrams": 2, "bucket": 200_000}
CUTOFF = 100_000  # rows kept by the quantisation, as in its documentation
PUNCTUATION = re.compile(r"([.!?,'/()])")


class FastText:
    """A fastText model. Texts are lower-cased and punctuation is separated, as in its tutorial."""

    def __init__(self, file: Path, job: Job) -> None:
        import fasttext

        fasttext.FastText.eprint = lambda *_: None  # prints a deprecation warning
        self.model, self.job, self.files = fasttext.load_model(str(file)), job, [file]

    def classify(self, texts: list[str], batch_size: int) -> Any:
        """The labels of texts; for multi_label those with a probability over 0.5."""
        options: dict[str, Any] = {} if self.job.single else {"k": -1, "threshold": 0.5}
        # always a list: fastText 0.9.3 fails with numpy 2 on a single string
        return chunked(lambda batch: self.model.predict(_plain(batch), **options)[0], texts, batch_size)

    def scores(self, texts: list[str]) -> Any:
        """Logits of texts."""
        probabilities = np.zeros((len(texts), len(self.job.labels)))
        for row, labels, p in zip(probabilities, *self.model.predict(_plain(texts), k=-1), strict=True):
            row[[int(label.removeprefix("__label__")) for label in labels]] = p
        return as_logits(probabilities, single=self.job.single)


def fasttext(job: Job) -> Trained:
    """Train with autotune and with the tutorial's settings; keep the model that is better on validation."""
    import fasttext as package

    folder = job.place("fasttext")
    files = {split: folder / f"{split}.txt" for split in ("train", "validation")}
    for split, lines in files.items():
        write_lines(job, job.split(split), lines)
    common: dict[str, Any] = {"dim": DIMENSIONS, "thread": job.threads, "verbose": 0}
    if not job.single:
        common["loss"] = "ova"
    tuned = {"autotuneValidationFile": str(files["validation"]), "autotuneDuration": AUTOTUNE}
    best, model, seconds = -1.0, None, {}
    for name, settings in (("autotune", tuned), ("tutorial", TUTORIAL)):
        start = time.perf_counter()
        try:
            candidate = package.train_supervised(input=str(files["train"]), **settings, **common)
        except (
            RuntimeError
        ) as error:  # NaN: the tutorial's learning rate is too high for some multi_label data
            print(f"{name}: {error}", flush=True)
            continue
        seconds[name] = time.perf_counter() - start
        score = _f1(candidate, files["validation"], job)
        if score > best:
            best, model = score, candidate
    if model is None:
        raise SystemExit("fastText: no settings trained a model (see the errors above)")
    model.save_model(str(folder / "model.bin"))
    chosen = model.f.getArgs()
    description = (
        f"the better on validation of autotune for {AUTOTUNE} s and the tutorial's settings: {chosen.epoch} "
        f"epochs, learning rate {chosen.lr:.2g}, word n-grams to {chosen.wordNgrams}, characters "
        f"{chosen.minn} to {chosen.maxn}, {chosen.bucket:,} buckets; {DIMENSIONS} dimensions, lower case, "
        "punctuation separated"
    )
    return Trained(seconds, description, ["fasttext", "numpy"])


def fasttext_ftz(job: Job) -> Trained:
    """Quantise the model of `fasttext` as the documentation does for classifiers."""
    import fasttext as package

    before, folder = seconds_of(job, "fasttext"), job.folder / "fasttext"
    model = package.load_model(str(folder / "model.bin"))
    start = time.perf_counter()
    model.quantize(
        input=str(folder / "train.txt"), qnorm=True, retrain=True, cutoff=CUTOFF, thread=job.threads
    )
    seconds = time.perf_counter() - start
    model.save_model(str(job.place("fasttext-ftz") / "model.ftz"))
    description = f"the fastText model above, quantised: qnorm, retrain, cutoff {CUTOFF:,} rows"
    return Trained({"training": before, "quantising": seconds}, description, ["fasttext"])


def write_lines(job: Job, split: Split, file: Path) -> None:
    """Write texts in fastText's format: one line per text, labels first."""
    with file.open("w", encoding="utf-8") as lines:
        for text, cell in zip(_plain(split.texts), split.labels, strict=True):
            indices = [cell] if job.single else np.flatnonzero(cell)
            lines.write(" ".join([*(f"__label__{label}" for label in indices), text]) + "\n")


def _plain(texts: list[str]) -> list[str]:
    return [" ".join(PUNCTUATION.sub(r" \1 ", text.lower()).split()) for text in texts]


def _f1(model: Any, file: Path, job: Job) -> float:
    """Micro F1 of a model; the accuracy for single_label."""
    _, precision, recall = model.test(str(file), **({} if job.single else {"k": -1, "threshold": 0.5}))
    both = precision + recall
    return 2 * precision * recall / both if both > 0 else 0.0


FASTTEXT = {
    "fasttext": Method(fasttext, lambda job: FastText(job.place("fasttext") / "model.bin", job)),
    "fasttext-ftz": Method(fasttext_ftz, lambda job: FastText(job.place("fasttext-ftz") / "model.ftz", job)),
}
