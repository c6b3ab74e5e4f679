"""Classifiers that exist already as teachers of single heads."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from distill.heads import Head
from distill.models.classifier import MultiHeadClassifier
from distill.models.predict import predict_logits
from distill.models.saved_networks import load_classifier, save_classifier
from distill.models.sequence_classifier import MergedTeacher, combined
from distill.recipe.data_section import RecipeError
from distill.recipe.merge_section import MergedModel

ARCHITECTURES = ("bert", "distilbert", "roberta", "mpnet")


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory, classifier_folder):
    """The folders of trained classifiers: the intent in every architecture, in another order of labels."""
    root = tmp_path_factory.mktemp("checkpoints")
    found = {a: classifier_folder(root / a, "intent", a, order=[2, 0, 1]) for a in ARCHITECTURES}
    return found | {"flags": classifier_folder(root / "flags", "flags", "distilbert", order=[1, 0])}


def model(folder, **settings):
    return MergedModel(model=str(folder), **settings)


def own_logits(folder, texts):
    """The logits as the checkpoint's own tokenizer and model give them."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    network = AutoModelForSequenceClassification.from_pretrained(folder)
    with torch.no_grad():
        batch = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
        return network(**{key: batch[key] for key in ("input_ids", "attention_mask")}).logits.numpy()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_logits_are_the_checkpoints_own_in_the_order_of_the_head(
    architecture, checkpoints, toy_heads, toy_corpus, cpu_accelerator
):
    corpus = toy_corpus(50, 1)
    teacher = MergedTeacher({"intent": [model(checkpoints[architecture])]}, toy_heads, cpu_accelerator)
    assert teacher.labels == {"intent": toy_heads[0].labels}
    found = teacher.logits(corpus.texts)["intent"]
    own = own_logits(checkpoints[architecture], corpus.texts)
    np.testing.assert_allclose(found, own[:, [1, 2, 0]], atol=1e-4)
    assert (found.argmax(-1) == corpus.labels["intent"]).mean() > 0.9


def test_several_heads_and_labels_left_out(checkpoints, toy_heads, toy_corpus, cpu_accelerator):
    corpus = toy_corpus(40, 1)
    polite = Head("flags", "multi_label", ("polite",))
    merge = {"intent": [model(checkpoints["mpnet"])]}
    merge["flags"] = [model(checkpoints["flags"], labels={"urgent": None})]
    found = MergedTeacher(merge, [polite, toy_heads[0]], cpu_accelerator).logits(corpus.texts)
    assert list(found) == ["flags", "intent"] and found["flags"].shape == (40, 1)
    np.testing.assert_array_equal(found["flags"][:, 0] > 0, corpus.labels["flags"][:, 1] == 1)


def test_generic_labels_need_a_map(tmp_path, classifier_folder, toy_heads, toy_corpus, cpu_accelerator):
    names = ["LABEL_0", "LABEL_1", "LABEL_2"]
    folder = classifier_folder(tmp_path / "a", order=[2, 0, 1], names=names)
    with pytest.raises(RecipeError) as error:
        MergedTeacher({"intent": [model(folder)]}, toy_heads, cpu_accelerator)
    message = str(error.value)
    assert message.startswith(f"teacher.merge.intent: {folder}: 3 of its labels have no counterpart")
    assert "[LABEL_0, LABEL_1, LABEL_2], the head's are [track, refund, thank] (map them: `labels:" in message
    given = dict(zip(names, ("thank", "track", "refund"), strict=True))
    teacher = MergedTeacher({"intent": [model(folder, labels=given)]}, toy_heads, cpu_accelerator)
    corpus = toy_corpus(40, 1)
    assert (teacher.logits(corpus.texts)["intent"].argmax(-1) == corpus.labels["intent"]).all()


@pytest.fixture(scope="module")
def network(tmp_path_factory, tiny_bert, tiny_tokenizer, toy_heads):
    """The folder of a network of an earlier run, with the intent's labels in another order."""
    folder = tmp_path_factory.mktemp("network")
    heads = (toy_heads[1], Head("intent", "single_label", ("thank", "track", "refund")))
    save_classifier(MultiHeadClassifier(tiny_bert(), heads), tiny_tokenizer, folder)
    return folder


def test_a_network_of_an_earlier_run_teaches_heads_of_its_own(
    network, toy_heads, toy_corpus, cpu_accelerator
):
    merge = {"intent": [model(network)], "flags": [model(network)]}
    teacher = MergedTeacher(merge, toy_heads, cpu_accelerator)
    assert len(teacher._loaded) == 1
    texts = toy_corpus(20, 1).texts
    own = predict_logits(*read_by(network, texts), cpu_accelerator)
    found = teacher.logits(texts)
    np.testing.assert_allclose(found["flags"], own[:, :2], atol=1e-5)
    np.testing.assert_allclose(found["intent"], own[:, [3, 4, 2]], atol=1e-5)
    other = [Head("topic", "single_label", ("a", "b"))]
    with pytest.raises(RecipeError, match=r"topic: .+: has no head 'topic', its heads are flags, intent"):
        MergedTeacher({"topic": [model(network)]}, other, cpu_accelerator)


def read_by(folder, texts):
    loaded, tokenizer = load_classifier(folder)
    return loaded, loaded.text_encoder(tokenizer, 64)(texts)


def test_an_ensemble_is_the_mean_of_its_calibrated_members(
    checkpoints, toy_heads, toy_corpus, cpu_accelerator
):
    texts, members = toy_corpus(30, 1).texts, [model(checkpoints["bert"]), model(checkpoints["roberta"])]
    teacher = MergedTeacher({"intent": members}, toy_heads, cpu_accelerator, {"intent": [2.0, 0.5]})
    parts = teacher.member_logits(texts)["intent"]
    p = [torch.softmax(torch.tensor(part) / t, -1).numpy() for part, t in zip(parts, (2.0, 0.5), strict=True)]
    mean = np.sqrt(p[0] * p[1])
    found = torch.softmax(torch.tensor(teacher.logits(texts)["intent"]), -1).numpy()
    np.testing.assert_allclose(found, mean / mean.sum(-1, keepdims=True), atol=1e-5)
    other = MergedTeacher({"intent": members}, toy_heads, cpu_accelerator)
    assert other.digest != teacher.digest
    flags = toy_heads[1]
    two = [np.array([[2.0, -4.0]]), np.array([[1.0, 1.0]])]
    np.testing.assert_allclose(combined(flags, two, [2.0, 0.5]), [[1.5, 0.0]])


def test_the_digest_changes_with_what_could_answer_differently(
    checkpoints, toy_heads, cpu_accelerator, tmp_path
):
    def digest(folder, heads=toy_heads, **settings):
        return MergedTeacher({"intent": [model(folder, **settings)]}, heads, cpu_accelerator).digest

    first = digest(checkpoints["bert"])
    moved = tmp_path / "moved"
    shutil.copytree(checkpoints["bert"], moved)
    assert digest(moved) == first
    swapped = {"track": "refund", "refund": "track"}
    reordered = [Head("intent", "single_label", ("refund", "track", "thank"))]
    others = {digest(moved, max_length=8), digest(moved, labels=swapped), digest(moved, reordered)}
    path = moved / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | {"hidden_act": "relu"}), "utf-8")
    assert len(others | {first, digest(moved)}) == 5


@pytest.mark.parametrize(
    "head, source, message",
    [
        (
            "flags",
            "bert",
            "is single_label, expected multi_label (set heads.flags.kind: single_label, or problem",
        ),
        ("intent", "flags", "is multi_label, expected single_label (set heads.intent.kind: multi_label"),
    ],
)
def test_another_kind_is_refused(head, source, message, checkpoints, toy_heads, cpu_accelerator):
    with pytest.raises(RecipeError) as error:
        MergedTeacher({head: [model(checkpoints[source])]}, toy_heads, cpu_accelerator)
    assert message in str(error.value) and str(error.value).startswith(f"teacher.merge.{head}: ")


def test_texts_are_truncated_to_what_the_classifier_reads(checkpoints, toy_heads, cpu_accelerator):
    long = ["where parcel " * 40 + "thanks love", "where parcel " * 40]
    for settings in ({}, {"max_length": 500}, {"max_length": 6}):
        merge = {"intent": [model(checkpoints["mpnet"], **settings)]}
        first, second = MergedTeacher(merge, toy_heads, cpu_accelerator).logits(long)["intent"]
        np.testing.assert_allclose(first, second, atol=1e-5)


def test_logits_that_are_not_finite_are_refused(classifier_folder, tmp_path, toy_heads, cpu_accelerator):
    folder = classifier_folder(tmp_path / "broken", trained=False)
    weights = load_file(folder / "model.safetensors")
    weights["classifier.bias"][0] = torch.nan
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    teacher = MergedTeacher({"intent": [model(folder)]}, toy_heads, cpu_accelerator)
    with pytest.raises(RecipeError, match=r"teacher.merge.intent: .+: gives logits that are not finite"):
        teacher.logits(["where parcel"])
    with pytest.raises(RecipeError, match="gives other logits for padded texts"):
        teacher.try_out(["where parcel", "thanks"])


def test_classifiers_are_tried_out(checkpoints, toy_heads):
    merge = {"intent": [model(checkpoints[a]) for a in ARCHITECTURES], "flags": [model(checkpoints["flags"])]}
    MergedTeacher(merge, toy_heads, None).try_out(["where parcel", "thanks", "money back " * 40])
