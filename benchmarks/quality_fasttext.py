"""fastText for benchmarks/quality_peers.py: as it is, and quantised."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import numpy as np
from quality_measure import Job, Method, Split, Trained, as_logits, chunked, seconds_of

AUTOTUNE = 300  # seconds, its default
DIMENSIONS = 50  # of its tutorial; left free, a trial of autotune may take tens of gigabytes
TUTORIAL = {"lr": 1.0, "epoch": 25, "wordNgrams": 2, "bucket": 200_000}
CUTOFF = 100_000  # rows that quantisation keeps, as in its documentation
PUNCTUATION = re.compile(r"([.!?,'/()])")


class FastText:
    """fastText, its texts put in lower case and punctuation set apart as its tutorial does."""

    def __init__(self, file: Path, job: Job) -> None:
        import fasttext

        fasttext.FastText.eprint = lambda *_: None  # a warning of old
        self.model, self.job, self.files = fasttext.load_model(str(file)), job, [file]

    def classify(self, texts: list[str], batch_size: int) -> Any:
        """The labels of texts; those over 0.5 where there may be several."""
        several: dict[str, Any] = {} if self.job.single else {"k": -1, "threshold": 0.5}
        # a list even of one: for a text alone 0.9.3 asks numpy for what numpy 2 refuses
        return chunked(lambda some: self.model.predict(_plain(some), **several)[0], texts, batch_size)

    def scores(self, texts: list[str]) -> Any:
        """Logits of texts."""
        whole = np.zeros((len(texts), len(self.job.labels)))
        for row, labels, p in zip(whole, *self.model.predict(_plain(texts), k=-1), strict=True):
            row[[int(label.removeprefix("__label__")) for label in labels]] = p
        return as_logits(whole, single=self.job.single)


def fasttext(job: Job) -> Trained:
    """Autotuned for five minutes or set as its tutorial ends, whichever is better on validation."""
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
    for way, settings in (("autotune", tuned), ("tutorial", TUTORIAL)):
        start = time.perf_counter()
        try:
            tried = package.train_supervised(input=str(files["train"]), **settings, **common)
        except RuntimeError as error:  # NaN: the tutorial's rate is too high for some multi_label data
            print(f"{way}: {error}", flush=True)
            continue
        seconds[way] = time.perf_counter() - start
        score = _f1(tried, files["validation"], job)
        if score > best:
            best, model = score, tried
    if model is None:
        raise SystemExit("fastText: neither way trained a model, see above")
    model.save_model(str(folder / "model.bin"))
    chosen = model.f.getArgs()
    about = (
        f"the better on validation of autotune for {AUTOTUNE} s and the tutorial's settings: {chosen.epoch} "
        f"epochs, rate {chosen.lr:.2g}, word n-grams to {chosen.wordNgrams}, characters {chosen.minn} to "
        f"{chosen.maxn}, {chosen.bucket:,} buckets; {DIMENSIONS} dimensions, lower case, punctuation apart"
    )
    return Trained(seconds, about, ["fasttext", "numpy"])


def fasttext_ftz(job: Job) -> Trained:
    """What `fasttext` left, quantised as its documentation does for classifiers."""
    import fasttext as package

    before, folder = seconds_of(job, "fasttext"), job.folder / "fasttext"
    model = package.load_model(str(folder / "model.bin"))
    start = time.perf_counter()
    model.quantize(
        input=str(folder / "train.txt"), qnorm=True, retrain=True, cutoff=CUTOFF, thread=job.threads
    )
    seconds = time.perf_counter() - start
    model.save_model(str(job.place("fasttext-ftz") / "model.ftz"))
    about = f"fastText's model above, quantised: qnorm, retrain, a cutoff of {CUTOFF:,} rows"
    took = {"training": before, "quantising": seconds}
    return Trained(took, about, ["fasttext"])


def write_lines(job: Job, split: Split, file: Path) -> None:
    """Texts as fastText reads them: a line each, behind its labels."""
    with file.open("w", encoding="utf-8") as lines:
        for text, cell in zip(_plain(split.texts), split.labels, strict=True):
            named = [cell] if job.single else np.flatnonzero(cell)
            lines.write(" ".join([*(f"__label__{label}" for label in named), text]) + "\n")


def _plain(texts: list[str]) -> list[str]:
    return [" ".join(PUNCTUATION.sub(r" \1 ", text.lower()).split()) for text in texts]


def _f1(model: Any, file: Path, job: Job) -> float:
    """Micro F1 of a model, which is its accuracy where a text has one label."""
    _, precision, recall = model.test(str(file), **({} if job.single else {"k": -1, "threshold": 0.5}))
    both = precision + recall
    return 2 * precision * recall / both if both > 0 else 0.0


FASTTEXT = {
    "fasttext": Method(fasttext, lambda job: FastText(job.place("fasttext") / "model.bin", job)),
    "fasttext-ftz": Method(fasttext_ftz, lambda job: FastText(job.place("fasttext-ftz") / "model.ftz", job)),
}
