"""The peers of benchmarks/quality.py, which runs this file in the peers' environment.

    python benchmarks/quality_peers.py JOB METHOD train|measure THREADS

Each peer is used as its documentation does. Peers may use the validation texts (autotune of fastText, early
stopping of model2vec). Test texts are only used to measure. quality-requirements.txt pins the packages.
"""

from __future__ import annotations

import random
import tempfile
import time
from collections import Counter
from typing import Any

import numpy as np
from quality_fasttext import FASTTEXT
from quality_measure import Job, Method, Split, Trained, as_logits, chunked, in_order, main, seconds_of

CONTRAST_TEXTS, CONTRAST_STEPS, CONTRAST_PAIRS = 2000, 500, 16  # contrastive training of SetFit


class TfIdf:
    """Logistic regression on TF-IDF of word and character n-grams."""

    def __init__(self, job: Job) -> None:
        import joblib

        self.files = [job.place("tfidf") / "model.joblib"]
        self.model, self.job = joblib.load(self.files[0]), job

    def classify(self, texts: list[str], batch_size: int) -> Any:
        """The labels of texts."""
        return chunked(self.model.predict, texts, batch_size)

    def scores(self, texts: list[str]) -> Any:
        """Logits of texts."""
        p = in_order(self.model.predict_proba(texts), self.model.classes_, len(self.job.labels))
        return as_logits(p, single=self.job.single)


def tfidf(job: Job) -> Trained:
    """Train on word 1-2-grams and character 2-5-grams, C=10."""
    import joblib
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.multiclass import OneVsRestClassifier
    from sklearn.pipeline import make_pipeline, make_union

    train, file = job.split("train"), job.place("tfidf") / "model.joblib"
    regression: Any = LogisticRegression(C=10, max_iter=1000)
    model = make_pipeline(
        make_union(
            TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True),
            TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), sublinear_tf=True),
        ),
        regression if job.single else OneVsRestClassifier(regression),
    )
    start = time.perf_counter()
    model.fit(train.texts, np.array(train.labels))
    seconds = time.perf_counter() - start
    joblib.dump(model, file, compress=3)
    description = "word 1-2-grams and character 2-5-grams, sublinear TF-IDF, logistic regression with C=10"
    description += (
        "; saved by joblib, compressed" if job.single else ", one against the rest; saved by joblib"
    )
    return Trained({"training": seconds}, description, ["scikit-learn"])


class Model2Vec:
    """Static embeddings with a small network, in numpy."""

    def __init__(self, job: Job, method: str = "model2vec") -> None:
        from model2vec.inference import StaticModelPipeline

        self.files = [job.place(method) / "model"]
        self.model, self.job = StaticModelPipeline.from_pretrained(self.files[0]), job

    def classify(self, texts: list[str], batch_size: int) -> Any:
        """The labels of texts."""
        return self.model.predict(texts, batch_size=batch_size)

    def scores(self, texts: list[str]) -> Any:
        """Logits of texts."""
        p = in_order(self.model.predict_proba(texts), map(int, self.model.classes_), len(self.job.labels))
        return as_logits(p, single=self.job.single)


def model2vec(job: Job) -> Trained:
    """Distil the teacher's encoder, then train the classifier, all with default settings."""
    from model2vec.distill import distill
    from model2vec.train import StaticModelForClassification

    def targets(split: Split) -> Any:
        return split.labels if job.single else [np.flatnonzero(cell).tolist() for cell in split.labels]

    train, validation, folder = job.split("train"), job.split("validation"), job.place("model2vec") / "model"
    start = time.perf_counter()
    static = distill(model_name=job.encoder, device="cpu")
    distilled = time.perf_counter()
    model = StaticModelForClassification.from_static_model(model=static).fit(
        train.texts,
        targets(train),
        X_val=validation.texts,
        y_val=targets(validation),
        device="cpu",
        random_seed=job.seed,
    )
    seconds = {"distilling": distilled - start, "training": time.perf_counter() - distilled}
    model.to_pipeline().save_pretrained(str(folder))
    description = (
        f"distilled from the teacher's encoder to {static.embedding.shape[1]} dimensions, "
        "StaticModelForClassification with defaults (a layer of 512, learning rate 1e-3, early stopping on "
        "validation), float32"
    )
    return Trained(seconds, description, ["model2vec"])


def model2vec_int8(job: Job) -> Trained:
    """The model of `model2vec` with int8 embeddings."""
    from model2vec.inference import StaticModelPipeline
    from model2vec.model import quantize_model

    before, folder = seconds_of(job, "model2vec"), job.place("model2vec-int8") / "model"
    pipeline = StaticModelPipeline.from_pretrained(job.folder / "model2vec" / "model")
    pipeline.model = quantize_model(pipeline.model, quantize_to="int8")
    pipeline.save_pretrained(str(folder))
    description = "the model2vec model above with embeddings quantised to int8"
    return Trained({"training": before}, description, ["model2vec"])


class SetFit:
    """A sentence encoder with logistic regression on its embeddings."""

    def __init__(self, job: Job) -> None:
        from setfit import SetFitModel

        self.files = [job.place("setfit") / "model"]
        self.model, self.job = SetFitModel.from_pretrained(str(self.files[0]), device="cpu"), job

    def classify(self, texts: list[str], batch_size: int) -> Any:
        """The labels of texts."""
        return self.model.predict(texts, batch_size=batch_size, show_progress_bar=False)

    def scores(self, texts: list[str]) -> Any:
        """Logits of texts."""
        p = self.model.predict_proba(texts, as_numpy=True, show_progress_bar=False)
        p = in_order(p, self.model.model_head.classes_, len(self.job.labels))
        return as_logits(p, single=self.job.single)


def setfit(job: Job) -> Trained:
    """Train the teacher's encoder for a limited number of contrastive steps, and the head on all texts."""
    from setfit import SetFitModel, Trainer, TrainingArguments

    train, folder = job.split("train"), job.place("setfit") / "model"
    strategy = None if job.single else "one-vs-rest"
    model = SetFitModel.from_pretrained(job.encoder, multi_target_strategy=strategy, device="cpu")
    rows = _spread(train, job)
    with tempfile.TemporaryDirectory() as scratch:
        arguments = TrainingArguments(
            output_dir=scratch,
            batch_size=CONTRAST_PAIRS,
            max_steps=CONTRAST_STEPS,
            save_strategy="no",
            report_to="none",
            seed=job.seed,
        )
        trainer = Trainer(model=model, args=arguments)
        start = time.perf_counter()
        trainer.train_embeddings([train.texts[i] for i in rows], [train.labels[i] for i in rows])
        contrasted = time.perf_counter()
        trainer.train_classifier(train.texts, train.labels)
    seconds = {"contrasting": contrasted - start, "training": time.perf_counter() - contrasted}
    model.save_pretrained(str(folder))
    description = (
        f"the teacher's encoder, {CONTRAST_STEPS:,} contrastive steps of {CONTRAST_PAIRS} pairs (otherwise "
        f"defaults) drawn from {len(rows):,} training texts{' balanced by label' if job.single else ''}, "
        f"logistic regression on all texts{'' if job.single else ', one against the rest'}, float32"
    )
    return Trained(seconds, description, ["setfit", "sentence-transformers", "torch"])


def _spread(train: Split, job: Job) -> list[int]:
    """Random rows for SetFit's pairs, balanced over the labels of a single_label head."""
    rows = random.Random(job.seed).sample(range(len(train.texts)), len(train.texts))
    if job.single:
        seen: Counter[int] = Counter()
        turn = {}
        for row in rows:
            turn[row] = seen[train.labels[row]]
            seen[train.labels[row]] += 1
        rows.sort(key=turn.__getitem__)
    return rows[:CONTRAST_TEXTS]


METHODS = {
    "tfidf": Method(tfidf, TfIdf),
    **FASTTEXT,
    "model2vec": Method(model2vec, Model2Vec),
    "model2vec-int8": Method(model2vec_int8, lambda job: Model2Vec(job, "model2vec-int8")),
    "setfit": Method(setfit, SetFit),
}

if __name__ == "__main__":
    main(METHODS)
