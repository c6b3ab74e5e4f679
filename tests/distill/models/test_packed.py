"""The packed network: what a label's logit depends on, and what training reads."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from distill.heads import NOT_SCORED, UNLABELLED, Head
from distill.models.attention import shares_text
from distill.models.base import on_device
from distill.models.packed import PackedClassifier
from distill.models.packing import LabelError
from distill.models.predict import predict_logits
from distill.models.saved_networks import load_classifier, save_classifier
from distill.recipe.schema import Training
from distill.training.loop import Examples, TrainingJob, fit
from distill.training.losses import distillation_loss, hard_loss, total_loss

CPU = torch.device("cpu")
WORDS = ["money", "where", "parcel", "late", "paid", "great", "love", "happy", "order", "box", "shop", "day"]
ENDS = ["", "red", "blue and one", "of", "to the two", "three"]
LABELS = tuple(f"{word} {end}".strip() for word in WORDS for end in ENDS)[:64]  # of one to four words
TEXTS = [
    "where is my parcel",
    "i love it",
    "they paid the money back to you with three red and blue of the day",
]


def head(labels: Any = LABELS, **options: Any) -> Head:
    return Head("intent", "single_label", tuple(labels), **options)


def logits(network: Any, tokenizer: Any, texts: list[str], *heads: Head) -> Any:
    """The logits of texts, by a network with these heads."""
    other = network.with_heads(heads).eval()
    encoded = other.text_encoder(tokenizer, 24)(texts)
    with torch.no_grad():
        return other(on_device(encoded.batch(np.arange(len(texts))), CPU)).numpy()


@pytest.fixture(params=["bert", "distilbert"])
def network(request: Any, tiny_bert: Any) -> PackedClassifier:
    return PackedClassifier(tiny_bert(request.param, layers=2), [head()]).eval()


def test_a_label_has_the_same_logit_alone_beside_others_and_in_any_order(
    network: Any, tiny_tokenizer: Any
) -> None:
    every = logits(network, tiny_tokenizer, TEXTS, head())
    assert every.shape == (3, 64) and np.ptp(every) > 1e-3
    order = np.random.default_rng(0).permutation(64)
    shuffled = logits(network, tiny_tokenizer, TEXTS, head(LABELS[i] for i in order))
    np.testing.assert_allclose(shuffled, every[:, order], atol=1e-5)
    for some in ([7], [5, 7, 63], [*range(32, 64)]):
        few = logits(network, tiny_tokenizer, TEXTS, head(LABELS[i] for i in some))
        np.testing.assert_allclose(few, every[:, some], atol=1e-5)
    alone = [logits(network, tiny_tokenizer, [text], head()) for text in TEXTS]
    np.testing.assert_allclose(np.concatenate(alone), every, atol=1e-5)


def test_both_forms_of_attention_give_the_same_states(network: Any, tiny_tokenizer: Any) -> None:
    texts = network.text_encoder(tiny_tokenizer, 24)(TEXTS)
    hard = {"intent": np.array([3, UNLABELLED, 60])}
    rows = np.arange(3)
    sampled = network.training_texts(texts, hard, {}, 7)
    for batch in (on_device(some.batch(rows), CPU) for some in (texts, sampled)):
        (text, one), (text_too, other) = (network.read(batch, shared=shared) for shared in (False, True))
        there = batch["label_columns"].expand(3, -1) >= 0
        assert (one - other).abs()[there].max() < 1e-5 and (text - text_too).abs().max() < 1e-5
    assert shares_text(on_device(texts.batch(rows), CPU))  # 64 labels
    assert not shares_text(on_device(sampled.batch(rows), CPU))


def test_heads_with_hypotheses_score_their_own_labels(network: Any, tiny_tokenizer: Any) -> None:
    first, second = head(LABELS[:3]), Head("other", "single_label", LABELS[2:5], hypothesis="the shop is")
    together = logits(network, tiny_tokenizer, TEXTS, first, second)
    np.testing.assert_allclose(together[:, :3], logits(network, tiny_tokenizer, TEXTS, first), atol=1e-5)
    np.testing.assert_allclose(together[:, 3:], logits(network, tiny_tokenizer, TEXTS, second), atol=1e-5)
    assert np.abs(together[:, 2] - together[:, 3]).max() > 1e-4  # the same label, read after a hypothesis


def test_a_description_is_read_and_sometimes_left_out_in_training(network: Any, tiny_tokenizer: Any) -> None:
    plain, described = (
        head(["money", "box"]),
        head(["money", "box"], descriptions={"money": "it is paid back"}),
    )
    found = [logits(network, tiny_tokenizer, TEXTS, one) for one in (plain, described)]
    assert np.abs(found[0] - found[1])[:, 0].max() > 1e-4
    np.testing.assert_allclose(found[0][:, 1], found[1][:, 1], atol=1e-5)
    other = network.with_heads([described])
    texts = other.training_texts(
        other.text_encoder(tiny_tokenizer, 24)(TEXTS), {"intent": np.full(3, -100)}, {}, 7
    )
    torch.manual_seed(0)
    lengths = {int((texts.batch(np.array([0]))["label_segments"] == 0).sum()) for _ in range(20)}
    assert lengths == {2, 7}  # [CLS] money; [CLS] money : it is paid back, in either place


def test_training_reads_a_text_with_its_label_and_a_fresh_sample(network: Any, tiny_tokenizer: Any) -> None:
    texts = network.text_encoder(tiny_tokenizer, 24)(TEXTS)
    hard = {"intent": np.array([3, UNLABELLED, 60])}
    sampled = network.training_texts(texts, hard, {}, 7)
    torch.manual_seed(5)
    first, second = (sampled.batch(np.arange(3))["label_columns"] for _ in range(2))
    torch.manual_seed(5)
    np.testing.assert_array_equal(first, sampled.batch(np.arange(3))["label_columns"])
    assert (first != second).any()
    for columns in (first, second):
        assert columns.shape == (3, 8) and all(len(set(row)) == 8 for row in columns.tolist())
        assert 3 in columns[0] and 60 in columns[2]
    best = np.zeros((3, 64), np.float16)
    best[:, [10, 20, 30, 40]] = 5
    taught = network.training_texts(texts, hard, {"intent": best}, 7).batch(np.arange(3))["label_columns"]
    assert {10, 20, 30, 40} <= {*taught[1].tolist()}  # the teacher's best labels are half of the sample


def test_a_text_stands_in_for_a_label_but_never_for_its_own(network: Any, tiny_tokenizer: Any) -> None:
    texts = ["where is my parcel", "the parcel is late", "i love it"]
    sampled = network.training_texts(
        network.text_encoder(tiny_tokenizer, 24)(texts), {"intent": np.array([0, 0, 1])}, {}, 7
    )
    ids = [tiny_tokenizer(text)["input_ids"][:-1] for text in texts]
    torch.manual_seed(0)
    read = {row: set() for row in range(3)}
    for _ in range(80):
        batch = sampled.batch(np.arange(3))
        for row in range(3):
            place = int(np.flatnonzero(batch["label_columns"][row] == 0)[0]) if row < 2 else None
            if place is not None:
                found = batch["label_ids"][row][batch["label_segments"][row] == place].tolist()
                read[row].add(tuple(found))
    assert tuple(ids[1]) in read[0] and tuple(ids[0]) not in read[0]
    assert tuple(ids[0]) in read[1] and tuple(ids[1]) not in read[1]


def test_labels_that_are_not_scored_drop_out_of_the_losses() -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(4, 9, generator=generator), torch.randn(4, 9, generator=generator)
    scored = torch.tensor([0, 2, 5])
    table = torch.full_like(student, NOT_SCORED)
    table[:, scored] = student[:, scored]
    table.requires_grad_()
    labels = torch.tensor([2, 0, 5, UNLABELLED])
    few = torch.tensor([1, 0, 2, UNLABELLED])
    expected = F.cross_entropy(student[:, scored], few, ignore_index=UNLABELLED)
    torch.testing.assert_close(hard_loss(table, labels, "single_label"), expected)
    loss = distillation_loss(table, teacher, "single_label", temperature=2.0)
    logs = [(x[:, scored] / 2).log_softmax(-1) for x in (student, teacher)]
    torch.testing.assert_close(loss, 4 * F.kl_div(*logs, reduction="batchmean", log_target=True))
    one_hot = F.one_hot(labels.clamp(min=0), 9)
    multi = distillation_loss(table, teacher, "multi_label") + hard_loss(table, one_hot, "multi_label")
    restricted = distillation_loss(student[:, scored], teacher[:, scored], "multi_label") + hard_loss(
        student[:, scored], one_hot[:, scored], "multi_label"
    )
    torch.testing.assert_close(multi, restricted)
    total_loss(table, {"intent": labels}, {"intent": teacher}, [head(LABELS[:9])], soft_weight=0.9)[
        0
    ].backward()
    assert table.grad is not None and table.grad.isfinite().all()
    absent = [i for i in range(9) if i not in scored]
    assert table.grad[:, absent].abs().max() < 1e-6


def test_it_learns_is_saved_and_answers_for_other_labels(
    tiny_bert: Any, tiny_tokenizer: Any, toy_heads: Any, toy_corpus: Any, cpu_accelerator: Any, tmp_path: Path
) -> None:
    words = (("where", "money", "great"), ("now", "please"))  # labels that the tokenizer knows
    heads = [replace(one, labels=labels) for one, labels in zip(toy_heads, words, strict=True)]
    network = PackedClassifier(tiny_bert(hidden=32, layers=2), heads, dropout=0.0)
    encode = network.text_encoder(tiny_tokenizer, 24)
    train, validation = toy_corpus(240), toy_corpus(40, seed=9)
    texts, held_out = encode(train.texts), encode(validation.texts)
    examples = Examples(network.training_texts(texts, train.labels, {}, 2), train.labels)
    settings = Training(epochs=8, batch_size=8, lr=5e-3)
    job = TrainingJob(
        "teacher", examples, Examples(held_out, validation.labels), settings, 0, tmp_path / "scratch"
    )
    metrics = fit(network, job, cpu_accelerator)
    assert metrics["validation"]["intent.accuracy"] > 0.9 and metrics["validation"]["flags.micro_f1"] > 0.8
    save_classifier(network, tiny_tokenizer, tmp_path)
    loaded, _ = load_classifier(tmp_path)
    found = [predict_logits(one, held_out, cpu_accelerator) for one in (network, loaded)]
    np.testing.assert_array_equal(*found)
    fewer = Head("intent", "single_label", ("great", "money", "where"))
    other = logits(network, tiny_tokenizer, validation.texts, fewer)
    np.testing.assert_allclose(other, found[0][:, 2::-1], atol=1e-4)
    network.freeze(["flags"])
    trained = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    assert trained and all(name.startswith("scorers.score_flags") for name in trained)


def test_what_cannot_be_read_is_refused(tiny_bert: Any, tiny_tokenizer: Any) -> None:
    network = PackedClassifier(tiny_bert(), [head()])
    long = head(["money", " ".join(["parcel"] * 40)])
    with pytest.raises(
        LabelError, match=r"^heads.intent: label 'parcel .* has 41 tokens, expected at most 21"
    ):
        network.with_heads([long]).text_encoder(tiny_tokenizer, 24)
    wordy = head(["money"], hypothesis=" ".join(["parcel"] * 40))
    with pytest.raises(LabelError, match=r"hypothesis 'parcel .* has 40 tokens"):
        network.with_heads([wordy]).text_encoder(tiny_tokenizer, 24)
    with pytest.raises(ValueError, match=r"head 'tags' \(multi_label\), expected one of intent"):
        network.with_heads([Head("tags", "multi_label", ("a", "b"))])
