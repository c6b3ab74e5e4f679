from collections import Counter
from itertools import pairwise
from typing import Any

import pytest

from distill.augment.augmenter import Augmenter, join_words, words_of
from distill.recipe.data_section import Augment

TEXT = "where is the red parcel that i have been waiting for since monday"
WORDS = ["money", "back", "money", "shop"]
OTHERS = ["one two three four five", "six seven"]
NEAR = {"parcel": ["box", "packet"], "monday": ["tuesday"]}
NONE = {"mask": 0.0, "drop": 0.0, "replace": 0.0, "span": 0.0}


def copies(
    text: str = TEXT,
    seed: int = 0,
    copies: int = 0,
    mask_token: str = "[MASK]",
    weights: tuple[float, float, float] = (1, 0, 0),
    **settings: Any,
) -> list[str]:
    """Augmented texts, by noise alone if `weights` do not say otherwise."""
    augmenter = Augmenter(Augment(**settings), seed, mask_token, WORDS, OTHERS, NEAR, weights)
    return list(augmenter.augmented(text, copies))


def test_copies_follow_from_seed_text_and_number() -> None:
    assert copies(copies=6) == copies(copies=6)
    assert copies(copies=6, seed=1) != copies(copies=6)
    assert copies(TEXT + " again", copies=6) != copies(copies=6)
    few, many = copies(copies=3), copies(copies=20)
    assert many[: len(few)] == few  # more copies leave the first as they were


def test_at_most_so_many_and_none_like_the_text() -> None:
    found = copies(copies=50)
    assert 40 < len(found) <= 50 and TEXT not in found and "" not in found
    assert copies(copies=0) == []


def test_copies_that_change_nothing_are_left_out() -> None:
    assert copies(copies=20, **NONE) == []
    assert copies("  Where  is\tit?\n", copies=20, **NONE) == []


def test_every_word_masked() -> None:
    assert copies(copies=1, **{**NONE, "mask": 1.0}) == [" ".join(["[MASK]"] * 13)]
    assert copies(copies=1, mask_token="", **{**NONE, "mask": 1.0}) == []


def test_every_word_dropped() -> None:
    assert copies(copies=5, **{**NONE, "drop": 1.0}) == []


def test_words_are_replaced_by_words_of_the_training_texts_as_often_as_they_stand() -> None:
    found = copies(copies=200, **{**NONE, "replace": 1.0})
    counts = Counter(" ".join(found).split())
    assert set(counts) == set(WORDS)
    assert counts["money"] / counts.total() == pytest.approx(0.5, abs=0.05)


def test_nothing_is_replaced_without_words() -> None:
    settings = Augment(**{**NONE, "replace": 1.0})
    assert list(Augmenter(settings, 0, weights=(1, 0, 0)).augmented(TEXT, 9)) == []


def test_a_span_is_cut_from_the_text() -> None:
    found = copies(copies=60, **{**NONE, "span": 1.0})
    assert len(found) == 60 and len(set(found)) > 20
    for copy in found:
        assert f" {copy} " in f" {TEXT} " and 4 <= len(copy.split()) < 13


def test_short_texts_are_not_cut() -> None:
    assert copies("where is it", copies=20, **{**NONE, "span": 1.0}) == []


def test_shares_are_of_words() -> None:
    settings = {"mask": 0.2, "drop": 0.1, "replace": 0.3, "span": 0.0}
    words = " ".join(copies(copies=300, **settings)).split()
    counts = Counter("mask" if w == "[MASK]" else "new" if w in WORDS else "kept" for w in words)
    assert len(words) / (300 * 13) == pytest.approx(0.9, abs=0.02)
    assert counts["mask"] / (300 * 13) == pytest.approx(0.2, abs=0.02)
    assert counts["new"] / (300 * 13) == pytest.approx(0.3, abs=0.02)


def test_an_empty_text_has_no_copies() -> None:
    assert copies("", copies=5) == [] and copies("   ", copies=5) == []


def test_words_become_near_ones_between_their_punctuation() -> None:
    found = copies("The (Parcel), since MONDAY!", copies=400, weights=(0, 1, 0))
    assert set(found) == {
        "The (box), since MONDAY!",
        "The (packet), since MONDAY!",
        "The (Parcel), since tuesday!",
        "The (box), since tuesday!",
        "The (packet), since tuesday!",
    }


def test_three_words_in_ten_become_near_ones_on_average() -> None:
    text = " ".join(["parcel"] * 40)
    found = copies(text, copies=300, weights=(0, 1, 0))
    shares = [sum(word != "parcel" for word in copy.split()) / 40 for copy in found]
    assert sum(shares) / 300 == pytest.approx(0.3, abs=0.02)
    assert min(shares) < 0.1 and max(shares) > 0.5  # some close, some far


def test_texts_are_mixed() -> None:
    for copy in copies(copies=50, weights=(0, 0, 1)):
        words = copy.split()
        mine = [word for word in words if word in TEXT.split()]
        theirs = [word for word in words if word not in TEXT.split()]
        assert " ".join(mine) == " ".join(TEXT.split()[: len(mine)]) and mine
        assert any(" ".join(theirs) in other for other in OTHERS) and len(theirs) >= 2
        assert words in (mine + theirs, theirs + mine)


def test_sources_are_sampled_by_their_weights() -> None:
    found = copies(copies=900, mask=1.0, drop=0.0, replace=0.0, span=0.0, weights=(2, 0, 1))
    noised = sum(set(copy.split()) == {"[MASK]"} for copy in found)
    assert noised / len(found) == pytest.approx(2 / 3, abs=0.05)


UNSPACED = ["我想退款、因为包裹一直没有到。", "荷物がまだ届いていません", "ขอเงินคืนหน่อยครับ"]


@pytest.mark.parametrize("text", UNSPACED)
def test_texts_without_spaces_have_words(text: str) -> None:
    assert len(words_of(text)) > 8 and join_words(words_of(text)) == text
    found = copies(text, copies=50)
    assert len(set(found)) > 30
    assert not any(f"{a} {b}" in copy for copy in found for a, b in pairwise(words_of(text)))


def test_texts_with_spaces_keep_them() -> None:
    for text in (TEXT, "übrigens: où est-il?", "посылка не пришла", "안녕 하세요"):
        assert words_of(text) == text.split() and join_words(text.split()) == text


def test_copies_are_of_the_beginning_of_a_long_text() -> None:
    text = " ".join(map(str, range(5000)))
    assert max(len(copy.split()) for copy in copies(text, copies=20)) <= 512
