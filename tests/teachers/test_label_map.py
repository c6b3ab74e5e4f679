from __future__ import annotations

import pytest

from teachers.label_map import LabelMapError, mapped_labels, match_labels


def key(word: str) -> str:
    return " ".join(word.split())


def match(theirs: str, ours: str, given: dict[str, str | None] | None = None) -> list[int]:
    return match_labels(theirs.split("|"), ours.split("|"), given, key)


@pytest.mark.parametrize(
    "theirs, ours, given, places",
    [
        ("a|b|c", "a|b|c", None, [0, 1, 2]),
        ("c|a|b", "a|b|c", None, [1, 2, 0]),
        ("POSITIVE|Negative", "negative|positive", None, [1, 0]),
        ("a  b|c", "c|a b", None, [1, 0]),
        ("a|A", "A|a", None, [1, 0]),  # equal keys take precedence over equal folded keys
        ("LABEL_0|LABEL_1", "no|yes", {"LABEL_0": "no", "LABEL_1": "yes"}, [0, 1]),
        ("LABEL_0|LABEL_1", "no|yes", {"LABEL_0": "yes", "LABEL_1": "no"}, [1, 0]),
        ("LABEL_0|LABEL_1", "LABEL_1|LABEL_0", None, [1, 0]),
        ("a|b|other", "b|a", {"other": None}, [1, 0]),
        ("world|sci/tech|sport", "world|science|sport", {"sci/tech": "science"}, [0, 1, 2]),
        ("a|b", "a|b", {"a": "b", "b": "a"}, [1, 0]),  # a map takes precedence over names
        ("A|b", "b|a", {"a": "a"}, [1, 0]),
        ("a|A", "a|b", {"a": "b"}, [1, 0]),
    ],
)
def test_labels_are_matched(theirs, ours, given, places) -> None:
    assert match(theirs, ours, given) == places


@pytest.mark.parametrize(
    "theirs, ours, given, message",
    [
        (
            "LABEL_0|LABEL_1",
            "no|yes",
            None,
            "[LABEL_0, LABEL_1], the head's are [no, yes] (map them: `labels:",
        ),
        ("a|b", "a|c", None, "1 of its labels have no counterpart, the first is 'b'; 1 labels of the head"),
        ("a|b|x", "a|b", None, "the first is 'x'; the teacher's labels are [a, b, x], the head's are [a, b]"),
        ("a|b", "a|b|c", None, "labels of the head have no counterpart, the first is 'c'"),
        ("a|A|b", "aa|b", {"a": "aa", "A": "aa"}, "'a' and 'A' are both 'aa'"),
        ("Aa|aA|b", "aa|b", None, "are both 'aa'"),
        ("aa|b", "Aa|aA|b", None, "the first is 'aa'"),
        ("a|b", "a|b", {"c": "a"}, "labels: no label 'c', those of the teacher are [a, b]"),
        ("positive|b", "positive|b", {"positiv": "b"}, "(did you mean 'positive'?)"),
        ("a|b", "a|b", {"b": "x"}, "'b' is mapped to 'x', which is no label of the head"),
        ("a|b", "a|b", {"b": None}, "the first is 'b'"),
        ("a|b", "a|b", {"a": "a", "A": "b"}, "names a label of the teacher twice"),
    ],
)
def test_other_labels_are_refused(theirs, ours, given, message) -> None:
    with pytest.raises(LabelMapError) as error:
        match(theirs, ours, given)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_long_lists_are_cut() -> None:
    with pytest.raises(LabelMapError, match=r"l39, 110 more\]"):
        match("|".join(f"l{i}" for i in range(150)), "a|b")


def test_the_labels_of_a_head_without_any() -> None:
    assert mapped_labels(["a", "b", "c"], {"a": "x", "c": None}) == ["x", "b"]
    assert mapped_labels(["a", "b"], None) == ["a", "b"]
