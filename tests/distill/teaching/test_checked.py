import numpy as np
import pytest

from distill.heads import UNKNOWN, UNLABELLED, Head
from distill.recipe.data_section import RecipeError
from distill.teaching.checked import LabelledTexts, check_logits, constant_quality

INTENT = Head("intent", "single_label", ("a", "b", "c"))
FLAGS = Head("flags", "multi_label", ("x", "y"))


def sample(intents, flags=None):
    flags = np.full((len(intents), 2), UNKNOWN) if flags is None else np.array(flags)
    labels = {"intent": np.array(intents), "flags": flags}
    texts = [f"text {number}" for number in range(len(intents))]
    return LabelledTexts.of([("validation", texts, labels)], [INTENT, FLAGS], 0)


def check(logits, some, heads=(INTENT, FLAGS)):
    lines = []
    check_logits("teacher.merge", logits, heads, some, lines.append)
    return lines


def test_the_confusion_of_few_labels_is_a_matrix():
    some = sample([0, 0, 1, 2, UNLABELLED])
    logits = np.eye(3)[[0, 1, 1, 2]][: len(some.texts)] * 5
    lines = check({"intent": logits}, some, [INTENT])
    assert lines[0] == (
        "teacher.merge: head 'intent': accuracy 0.750 on 4 labelled texts, 0.500 for the same answer to "
        "every text"
    )
    assert [line.split() for line in lines[1:]] == [
        ["label", "\\", "teacher", "a", "b", "c"],
        ["a", "1", "1", "0"],
        ["b", "0", "1", "0"],
        ["c", "0", "0", "1"],
    ]  # fmt: skip


def test_of_many_labels_the_most_frequent_confusions_are_printed():
    head = Head("intent", "single_label", tuple(f"l{i}" for i in range(20)))
    labels = np.repeat(np.arange(20), 5)
    logits = np.eye(20)[np.where(labels == 3, 4, labels)]
    some = LabelledTexts(["t"] * 100, {"intent": labels}, np.ones(100, bool))
    assert check({"intent": logits}, some, [head])[1:] == ["  5 of label 'l3' are 'l4' to it"]


def test_worse_than_the_most_frequent_label():
    some = sample([0] * 60 + [1] * 40)
    logits = np.eye(3)[[1] * 100]
    with pytest.raises(RecipeError) as error:
        check({"intent": logits}, some, [INTENT])
    assert str(error.value) == (
        "teacher.merge: head 'intent': accuracy 0.400 on 100 labelled texts, expected at least the 0.600 of "
        "the same answer to every text (its labels are probably mapped to others: 60 texts of label 'a' are "
        "'b' to it)"
    )
    check({"intent": np.eye(3)[[0] * 100]}, some, [INTENT])  # as good as it


def test_a_teacher_of_a_rare_label_is_not_refused_for_noise():
    rare = np.array([1] * 10 + [0] * 490)
    answers = np.where(np.arange(500) >= 485, 1, rare)  # finds all, and takes 15 others for it
    check({"intent": np.eye(3)[answers]}, sample(rare.tolist()), [INTENT])
    check({"intent": np.eye(3)[[0, 0, 1]]}, sample([0, 0, 0]), [INTENT])


def test_the_best_constant_set_of_labels():
    y = np.array([[1, 0], [1, 0], [1, 1], [0, 0]])
    assert constant_quality(FLAGS, y) == pytest.approx(2 * 3 / (4 + 4))
    always = np.array([[1, 1], [1, 1], [1, 0]])
    assert constant_quality(FLAGS, always) == pytest.approx(2 * 5 / (6 + 5))
    assert constant_quality(FLAGS, np.zeros((3, 2), int)) == 0
    some = sample([UNLABELLED] * 4, y)
    with pytest.raises(
        RecipeError, match=r"head 'flags': micro f1 0.000 on 4 labelled texts, expected at least"
    ):
        check({"flags": np.full((4, 2), -3.0)}, some, [FLAGS])
    lines = check({"flags": np.where(some.labels["flags"], 3.0, -3.0)}, some, [FLAGS])
    assert [line.split() for line in lines[1:]] == [
        ["label", "texts", "predicted", "both"], ["x", "3", "3", "3"], ["y", "1", "1", "1"]
    ]  # fmt: skip


def test_texts_that_a_teacher_does_not_know_do_not_count():
    some = sample([0, 1, 1, 0])
    logits = np.full((4, 3), np.nan)
    assert check({"intent": logits}, some, [INTENT]) == [
        "teacher.merge: head 'intent': no labelled text to compare it with"
    ]
    known = some.labels["intent"] == 1
    logits[known] = [0, 9, 0]
    assert "accuracy 1.000 on 2 labelled texts" in check({"intent": logits}, some, [INTENT])[0]


def test_at_most_so_many_texts_of_each_head_validation_first():
    intents = np.array([0, 1] * 400 + [UNLABELLED] * 200)
    flags = np.array([[UNKNOWN, UNKNOWN]] * 800 + [[1, 0]] * 200)
    splits = [
        ("validation", [f"v{i}" for i in range(100)], {"intent": intents[:100], "flags": flags[:100]}),
        ("train", [f"t{i}" for i in range(1000)], {"intent": intents, "flags": flags}),
    ]
    found = LabelledTexts.of(splits, [INTENT, FLAGS], 0)
    assert found.validation.sum() == 100 and len(found.texts) == 500 + 200
    assert (found.labels["intent"] != UNLABELLED).sum() == 500
    assert all((text[0] == "v") == held for text, held in zip(found.texts, found.validation, strict=True))
    again = LabelledTexts.of(splits, [INTENT, FLAGS], 0)
    assert again.texts == found.texts
    assert LabelledTexts.of(splits, [INTENT, FLAGS], 1).texts != found.texts
    assert len(LabelledTexts.of(splits, [INTENT, FLAGS], 0, 50).texts) == 100
