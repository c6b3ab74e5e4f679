import numpy as np
import pytest

from distill.teaching.combined import CombinedTeacher, KeptLabels, combined_digest
from teachers.soft_labels import SoftLabels, text_digests


class Answers:
    """A teacher that knows the texts of a list, and counts what it is asked."""

    def __init__(self, digest, known, labels, value):
        self.digest, self.known, self.labels, self.value = digest, known, labels, value
        self.asked = []

    def logits(self, texts):
        self.asked += texts
        rows = [self.value if text in self.known else np.nan for text in texts]
        return {
            head: np.repeat(np.array(rows, np.float32)[:, None], len(own), 1)
            for head, own in self.labels.items()
        }


def test_each_text_is_labelled_by_the_first_teacher_that_knows_it():
    some = Answers("a", ["x", "y"], {"intent": ("p", "q")}, 1.0)
    every = Answers("b", ["x", "y", "z"], {"intent": ("p", "q"), "topic": ("r", "s", "t")}, 2.0)
    both = CombinedTeacher([some, every])
    assert both.labels == every.labels and both.digest == combined_digest(["a", "b"]) != some.digest
    found = both.logits(["z", "x", "w"])
    np.testing.assert_array_equal(found["intent"][:, 0], [2.0, 1.0, np.nan])
    np.testing.assert_array_equal(found["topic"][:, 0], [2.0, 2.0, np.nan])
    assert found["topic"].shape == (3, 3) and found["intent"].dtype == np.float32


def test_a_teacher_is_asked_only_for_what_those_before_it_do_not_know():
    some = Answers("a", ["x", "y"], {"intent": ("p", "q")}, 1.0)
    other = Answers("b", ["z"], {"intent": ("p", "q")}, 2.0)
    CombinedTeacher([some, other]).logits(["x", "y", "z"])
    assert other.asked == ["z"]
    CombinedTeacher([some, other]).logits(["x", "y"])
    assert other.asked == ["z"]


def test_teachers_of_other_labels_are_refused():
    one, other = (Answers("a", [], {"intent": labels}, 1.0) for labels in (("p", "q"), ("q", "p")))
    with pytest.raises(ValueError, match="head 'intent': two teachers know it with other labels"):
        CombinedTeacher([one, other])


def test_kept_labels_know_the_texts_that_were_kept(tmp_path):
    soft = SoftLabels(tmp_path, {"intent": 2})
    soft.add(text_digests(["x", "y"]), {"intent": np.array([[1.0, 2.0], [np.nan, np.nan]])})
    kept = KeptLabels(soft, {"intent": ("p", "q")})
    np.testing.assert_array_equal(
        kept.logits(["z", "x", "y"])["intent"], [[np.nan] * 2, [1.0, 2.0], [np.nan] * 2]
    )
    digest = kept.digest
    soft.add(text_digests(["z"]), {"intent": np.zeros((1, 2))})
    assert KeptLabels(soft, kept.labels).digest != digest
