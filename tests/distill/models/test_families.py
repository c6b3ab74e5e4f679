"""A second family of networks and a teacher that is no network: each comes in without a change elsewhere."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from distill.heads import Head
from distill.models.base import Batch, TextClassifier
from distill.models.classifier import MultiHeadClassifier
from distill.models.predict import predict_logits
from distill.models.saved_networks import SavedNetworkError, load_classifier, save_classifier
from distill.recipe.load import parse_recipe
from distill.recipe.schema import Distillation, Training
from distill.run import Run
from distill.teaching.labelling import label_texts
from distill.training.loop import Examples, TrainingJob, fit
from teachers.base import Teacher
from teachers.soft_labels import SoftLabels, text_digests

SETTINGS = Training(epochs=12, batch_size=8, lr=2e-2)


class Counted:
    """Texts as counts of their token ids: no ids, no mask, no length."""

    def __init__(self, counts: Any) -> None:
        self.counts = counts
        self.lengths = np.ones(len(counts), np.int64)

    def __len__(self) -> int:
        return len(self.counts)

    def batch(self, rows: Any) -> dict[str, Any]:
        return {"counts": self.counts[rows]}


class Counting:
    max_length = 1_000_000

    def __init__(self, tokenizer: Any, size: int) -> None:
        self.tokenizer, self.size = tokenizer, size

    def __call__(self, texts: Sequence[str]) -> Counted:
        rows = [np.bincount(self.tokenizer(text)["input_ids"], minlength=self.size) for text in texts]
        return Counted(np.array(rows, np.float32).reshape(len(texts), self.size))

    def to_disk(self, chunks: Iterable[Sequence[str]], path: Path) -> Counted:
        return self([text for some in chunks for text in some])


class BagOfWords(TextClassifier):
    """Logits from the mean of a text's word embeddings."""

    family = "bag of words"

    def __init__(self, encoder: Any, heads: Sequence[Head]) -> None:
        super().__init__()
        self.encoder, self.config, self.heads = encoder, encoder.config, tuple(heads)
        width = encoder.config.hidden_size
        self.linear = nn.ModuleDict({f"head_{h.name}": nn.Linear(width, len(h.labels)) for h in heads})

    def forward(self, batch: Batch) -> Tensor:
        table = self.encoder.get_input_embeddings().weight
        mean = batch["counts"] @ table / batch["counts"].sum(-1, keepdim=True)
        return torch.cat([linear(mean) for linear in self.linear.values()], -1)

    def text_encoder(self, tokenizer: Any, max_length: int) -> Counting:
        return Counting(tokenizer, self.config.vocab_size)

    def settings(self) -> dict[str, Any]:
        return {}

    def head_parameters(self, head: Head) -> Iterable[nn.Parameter]:
        return self.linear[f"head_{head.name}"].parameters()


def test_a_second_family_is_trained_saved_and_labels_texts(
    tiny_bert: Any, tiny_tokenizer: Any, toy_heads: Any, toy_corpus: Any, cpu_accelerator: Any, tmp_path: Path
) -> None:
    network = BagOfWords(tiny_bert(), toy_heads)
    encode = network.text_encoder(tiny_tokenizer, 24)
    train, validation = toy_corpus(160), toy_corpus(40, seed=9)
    examples = [Examples(encode(corpus.texts), corpus.labels) for corpus in (train, validation)]
    metrics = fit(network, TrainingJob("bag", *examples, SETTINGS, 0, tmp_path / "scratch"), cpu_accelerator)
    assert metrics["validation"]["mean"] > 0.9
    save_classifier(network, tiny_tokenizer, tmp_path)
    loaded, _ = load_classifier(tmp_path)
    assert isinstance(loaded, BagOfWords)
    logits = [predict_logits(one, examples[1].texts, cpu_accelerator) for one in (network, loaded)]
    np.testing.assert_array_equal(*logits)
    network.freeze(["flags"])
    assert [p.requires_grad for p in network.linear.parameters()] == [False, False, True, True]


class Keywords:
    """A teacher that is no network and knows `intent` alone."""

    digest = "keywords"
    labels: Mapping[str, tuple[str, ...]]

    def __init__(self, words: Mapping[str, Sequence[str]]) -> None:
        self.words, self.labels, self.texts = words, {"intent": tuple(words)}, 0

    def logits(self, texts: Sequence[str]) -> dict[str, Any]:
        self.texts += len(texts)
        found = [[sum(w in text.split() for w in words) for words in self.words.values()] for text in texts]
        return {"intent": 4 * np.array(found, np.float32)}


@pytest.fixture
def keywords() -> Keywords:
    return Keywords(
        {
            "track": ["where", "parcel", "late"],
            "refund": ["money", "back", "refund"],
            "thank": ["thanks", "love"],
        }
    )


def test_a_teacher_that_knows_one_head_of_two_teaches_that_head(
    tiny_bert: Any,
    toy_heads: Any,
    toy_corpus: Any,
    encode: Any,
    cpu_accelerator: Any,
    keywords: Keywords,
    tmp_path: Path,
) -> None:
    teacher: Teacher = keywords
    recipe = parse_recipe({"name": "toy", "data": {"train": "t.csv"}, "heads": {"intent": {"column": "i"}}})
    run = Run(recipe, tmp_path, cpu_accelerator)
    widths = {head: len(labels) for head, labels in teacher.labels.items()}
    soft = SoftLabels(tmp_path / "soft_labels" / teacher.digest, widths)
    train, validation = toy_corpus(160), toy_corpus(40, seed=9)
    count = len(set(train.texts))
    assert label_texts(run, teacher, soft, [train.texts, train.texts[:50]]) == keywords.texts == count
    logits = soft.to_disk([text_digests(train.texts)], tmp_path)
    assert list(logits) == ["intent"] and logits["intent"].shape == (160, 3)
    # without hard labels of the head that the teacher knows, which it must then have taught
    hard = {"intent": np.full(160, -100), "flags": train.labels["flags"]}
    examples = Examples(encode(train.texts), hard, logits)
    network, tracked = MultiHeadClassifier(tiny_bert(), toy_heads, dropout=0.0), dict[str, float]()
    cpu_accelerator.log = lambda values, step: tracked.update(values)
    job = TrainingJob(
        "student",
        examples,
        Examples(encode(validation.texts), validation.labels),
        SETTINGS,
        0,
        tmp_path / "scratch",
        Distillation(soft_weight=0.5),
    )
    metrics = fit(network, job, cpu_accelerator)
    assert metrics["validation"]["intent.accuracy"] > 0.8 and metrics["validation"]["flags.micro_f1"] > 0.9
    parts = {name.removeprefix("student/") for name in tracked if name.count("/") == 2}
    assert parts == {"intent/hard", "intent/distillation", "flags/hard", "flags/accuracy"}


def test_a_network_of_an_unknown_family_is_refused(tmp_path: Path) -> None:
    """So is one of a version that wrote no family."""
    for content in ("{}", '{"family": "tree"}'):
        (tmp_path / "heads.json").write_text(content)
        with pytest.raises(SavedNetworkError, match=r"expected one of .*'heads'.*run its recipe again"):
            load_classifier(tmp_path)
