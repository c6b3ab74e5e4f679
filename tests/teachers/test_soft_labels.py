from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from teachers.soft_labels import DIGEST, SoftLabels, SoftLabelsError, text_digests

HEADS = {"intent": 3, "flags": 2}
WIDTH = 5


def of_heads(logits: Any) -> dict[str, Any]:
    """Rows of `[texts, WIDTH]` as the logits of each head."""
    logits = np.asarray(logits)
    return {"intent": logits[:, :3], "flags": logits[:, 3:]}


def side_by_side(logits: dict[str, Any]) -> Any:
    assert list(logits) == list(HEADS)
    return np.concatenate(list(logits.values()), -1)


def drawn(texts: list[str], width: int = WIDTH, seed: int = 0) -> Any:
    return np.random.default_rng(seed).normal(size=(len(texts), width)).astype(np.float32)


def named(count: int, prefix: str = "text") -> list[str]:
    return [f"{prefix} {i}" for i in range(count)]


def read(soft: SoftLabels, texts: list[str]) -> Any:
    return side_by_side(soft.logits(soft.rows(text_digests(texts))))


def of_bytes(*digests: bytes) -> Any:
    return np.frombuffer(b"".join(digests), DIGEST)


@pytest.fixture
def soft(tmp_path: Path) -> SoftLabels:
    return SoftLabels(tmp_path / "soft", HEADS)


def test_digests_are_blake2b_of_utf8() -> None:
    digests = text_digests(["Straße 包裹", ""])
    assert digests.dtype == DIGEST
    expected = [hashlib.blake2b(t.encode(), digest_size=16).digest() for t in ("Straße 包裹", "")]
    assert digests.tobytes() == b"".join(expected)
    assert text_digests([]).shape == (0,)


def test_digests_of_many_texts_differ() -> None:
    assert len(np.unique(text_digests(named(5000)))) == 5000


def test_what_is_added_is_read_in_float16(soft: SoftLabels) -> None:
    texts = named(20)
    logits = drawn(texts)
    soft.add(text_digests(texts), of_heads(logits))
    found = read(soft, texts)
    assert found.dtype == np.float16
    np.testing.assert_array_equal(found, logits.astype(np.float16))
    assert len(soft) == 20


def test_rows_survive_reopening(soft: SoftLabels) -> None:
    texts = named(7)
    soft.add(text_digests(texts), of_heads(drawn(texts)))
    again = SoftLabels(soft.folder, HEADS)
    assert len(again) == 7
    np.testing.assert_array_equal(read(again, texts), read(soft, texts))


@pytest.mark.parametrize("reopen", [False, True])
def test_any_order_over_many_shards(soft: SoftLabels, reopen: bool) -> None:
    texts = named(200)
    logits = drawn(texts).astype(np.float16)
    draw = np.random.default_rng(1)
    for part in np.array_split(draw.permutation(200), 13):
        soft.add(text_digests([texts[i] for i in part]), of_heads(logits[part]))
    if reopen:
        soft = SoftLabels(soft.folder, HEADS)
    assert len(list(soft.folder.iterdir())) == 13
    for _ in range(5):
        order = draw.integers(0, 200, 300)  # with repetitions
        np.testing.assert_array_equal(read(soft, [texts[i] for i in order]), logits[order])


def test_rows_are_numbers_to_keep(soft: SoftLabels) -> None:
    """Training asks for the rows once and reads batches of them, also after more was added."""
    texts = named(10)
    soft.add(text_digests(texts), of_heads(drawn(texts)))
    rows = soft.rows(text_digests(texts))
    before = side_by_side(soft.logits(rows))
    soft.add(text_digests(named(10, "later")), of_heads(drawn(texts, seed=9)))
    np.testing.assert_array_equal(side_by_side(soft.logits(rows)), before)
    np.testing.assert_array_equal(side_by_side(soft.logits(rows[::-3])), before[::-3])


def test_missing(soft: SoftLabels) -> None:
    digests = text_digests(named(6))
    assert soft.missing(digests).tolist() == [True] * 6
    soft.add(digests[[1, 4]], of_heads(drawn(named(2))))
    soft.add(digests[[2]], of_heads(drawn(named(1))))
    found = soft.missing(digests)
    assert found.dtype == bool
    assert found.tolist() == [True, False, False, True, False, True]
    assert SoftLabels(soft.folder, HEADS).missing(digests).tolist() == found.tolist()


def test_missing_beyond_both_ends(soft: SoftLabels) -> None:
    low, middle, high = b"\x00" * 15 + b"\x01", b"\x80" * 16, b"\xff" * 16
    soft.add(of_bytes(middle), of_heads(drawn(["m"])))
    assert soft.missing(of_bytes(low, middle, high)).tolist() == [True, False, True]


def test_unknown_text(soft: SoftLabels) -> None:
    soft.add(text_digests(["a", "b"]), of_heads(drawn(["a", "b"])))
    with pytest.raises(SoftLabelsError, match="2 texts have no soft labels \\(run the recipe again"):
        soft.rows(text_digests(["a", "x", "b", "y"]))


def test_empty_store(soft: SoftLabels) -> None:
    assert len(soft) == 0
    assert soft.missing(text_digests([])).tolist() == []
    assert read(soft, []).shape == (0, WIDTH)
    with pytest.raises(SoftLabelsError, match="1 texts"):
        soft.rows(text_digests(["a"]))
    assert len(SoftLabels(soft.folder, HEADS)) == 0


def test_empty_shard(soft: SoftLabels) -> None:
    soft.add(text_digests(["a"]), of_heads(np.full((1, WIDTH), 1)))
    soft.add(text_digests([]), of_heads(np.zeros((0, WIDTH))))
    soft.add(text_digests(["b"]), of_heads(np.full((1, WIDTH), 2)))
    for opened in (soft, SoftLabels(soft.folder, HEADS)):
        assert read(opened, ["b", "a"])[:, 0].tolist() == [2, 1]


def test_duplicates(soft: SoftLabels) -> None:
    """A text labelled twice in a shard reads as it was labelled first, in two as in one of them."""
    soft.add(text_digests(["a", "b", "a"]), of_heads(np.array([[1], [2], [3]]).repeat(WIDTH, 1)))
    soft.add(text_digests(["b", "c"]), of_heads(np.array([[4], [5]]).repeat(WIDTH, 1)))
    for opened in (soft, SoftLabels(soft.folder, HEADS)):
        assert opened.missing(text_digests(["a", "b", "c", "d"])).tolist() == [False] * 3 + [True]
        c, a, b, again = read(opened, ["c", "a", "b", "a"])[:, 0].tolist()
        assert (c, a, again) == (5, 1, 1) and b in (2, 4)


def test_digests_that_end_in_zero_bytes(soft: SoftLabels) -> None:
    """numpy strips trailing zero bytes of a string; digests must come back all the same."""
    digests = of_bytes(
        b"\x01" * 15 + b"\x00", b"\x01" * 14 + b"\x00\x00", b"\x00" * 16, b"\x00" * 15 + b"\x01", b"\x01" * 16
    )
    soft.add(digests, of_heads(drawn(named(5))))
    for opened in (soft, SoftLabels(soft.folder, HEADS)):
        assert len(opened) == 5
        assert not opened.missing(digests).any()
        assert opened.rows(digests[::-1]).tolist() == [4, 3, 2, 1, 0]
        # one that differs in the last byte alone is another text
        assert opened.missing(of_bytes(b"\x01" * 14 + b"\x00\x01")).tolist() == [True]


def test_logits_in_any_memory_order(soft: SoftLabels) -> None:
    logits = np.arange(15, dtype=np.float32).reshape(3, WIDTH)
    for name, form in {"c": logits, "fortran": np.asfortranarray(logits), "wide": logits[:, ::-1]}.items():
        texts = named(3, name)
        soft.add(text_digests(texts), of_heads(form))
        np.testing.assert_array_equal(read(soft, texts), form, name)


def test_rows_of_another_width_or_number_are_refused(soft: SoftLabels) -> None:
    for logits in (np.zeros((2, WIDTH + 1)), np.zeros((2, 1)), np.zeros((1, WIDTH))):
        with pytest.raises(ValueError, match=r"expected \{'intent': \(2, 3\), 'flags': \(2, 2\)\}"):
            soft.add(text_digests(["a", "b"]), of_heads(logits))
    assert list(soft.folder.iterdir()) == []


def test_shards_are_mapped_not_loaded(soft: SoftLabels) -> None:
    soft.add(text_digests(named(50)), of_heads(drawn(named(50))))
    for opened in (soft, SoftLabels(soft.folder, HEADS)):
        assert all(isinstance(part, np.memmap) for shard in opened._shards for part in shard.values())
        assert not any(part.flags.writeable for shard in opened._shards for part in shard.values())
        assert not isinstance(read(opened, named(3)), np.memmap)


def test_shards_are_safetensors(soft: SoftLabels) -> None:
    texts = named(4)
    soft.add(text_digests(texts), of_heads(drawn(texts)))
    (path,) = soft.folder.iterdir()
    digest = hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()
    assert path.name == f"shard-{digest}.safetensors"
    arrays = load_file(path)
    assert {name: (a.dtype, a.shape) for name, a in arrays.items()} == {
        "digests": (np.uint8, (4, 16)),
        "logits.intent": (np.float16, (4, 3)),
        "logits.flags": (np.float16, (4, 2)),
    }
    assert arrays["digests"].tobytes() == text_digests(texts).tobytes()


def test_what_a_killed_write_left_is_ignored(soft: SoftLabels) -> None:
    soft.add(text_digests(["a"]), of_heads(drawn(["a"])))
    (shard,) = soft.folder.iterdir()
    whole = shard.read_bytes()
    left = soft.folder / ".shard.123.tmp"
    left.write_bytes(whole[: len(whole) // 2])
    again = SoftLabels(soft.folder, HEADS)
    assert len(again) == 1
    again.add(text_digests(["b"]), of_heads(drawn(["b"])))
    assert not SoftLabels(soft.folder, HEADS).missing(text_digests(["a", "b"])).any()


def test_a_failed_write_leaves_nothing(soft: SoftLabels, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Path, content: bytes) -> None:
        self.touch()
        raise OSError("no space left")

    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(OSError, match="no space left"):
        soft.add(text_digests(["a"]), of_heads(drawn(["a"])))
    assert list(soft.folder.iterdir()) == []
    assert len(soft) == 0
    monkeypatch.undo()
    soft.add(text_digests(["a"]), of_heads(drawn(["a"])))
    assert len(soft) == 1


def damage(path: Path, how: str) -> None:
    content = bytearray(path.read_bytes())
    if how == "removed":
        path.unlink()
    else:
        content[len(content) // 2] ^= 1
        path.write_bytes({"emptied": b"", "cut": content[: len(content) // 2], "flipped": content}[how])


@pytest.mark.parametrize("how", ["removed", "emptied", "cut", "flipped"])
def test_a_damaged_shard_is_left_out_and_costs_no_other(soft: SoftLabels, how: str) -> None:
    shards = []
    for i, text in enumerate(named(3)):
        before = {*soft.folder.iterdir()}
        soft.add(text_digests([text]), of_heads(np.full((1, WIDTH), i)))
        shards += {*soft.folder.iterdir()} - before
    damage(shards[1], how)
    again = SoftLabels(soft.folder, HEADS)
    assert again.damaged == ([] if how == "removed" else [shards[1]])
    assert again.missing(text_digests(named(3))).tolist() == [False, True, False]
    again.add(text_digests(["text 1"]), of_heads(np.full((1, WIDTH), 1)))
    for opened in (again, SoftLabels(soft.folder, HEADS)):
        assert read(opened, named(3))[:, 0].tolist() == [0, 1, 2]
    assert {*soft.folder.iterdir()} == {*shards}, "the same rows are the same shard"


def test_shards_of_an_earlier_format_are_left_out(soft: SoftLabels) -> None:
    soft.add(text_digests(["a"]), of_heads(drawn(["a"])))
    (shard,) = soft.folder.iterdir()
    shard.rename(soft.folder / "shard-00000.safetensors")
    assert len(SoftLabels(soft.folder, HEADS)) == 0


def test_folder_is_made_with_its_parents(tmp_path: Path) -> None:
    assert len(SoftLabels(tmp_path / "a" / "b", {"intent": 1})) == 0
    assert (tmp_path / "a" / "b").is_dir()


def test_a_column_in_the_order_of_texts(soft: SoftLabels, tmp_path: Path) -> None:
    texts = named(20)
    logits = drawn(texts)
    for part in (range(0, 20, 2), range(1, 20, 2)):
        soft.add(text_digests([texts[i] for i in part]), of_heads(logits[part]))
    order = [19, 0, 7, 7, 3]
    chunks = [text_digests([texts[i] for i in some]) for some in (order[:2], order[2:])]
    columns = soft.to_disk(chunks, tmp_path)
    np.testing.assert_array_equal(side_by_side(columns), logits[order].astype(np.float16))
    for column in columns.values():
        assert column.dtype == np.float16 and isinstance(column.base, np.memmap)
    masked = {head: np.arange(len(order)) % 3 == number for number, head in enumerate(columns)}
    (other := tmp_path / "masked").mkdir()
    for head, column in soft.to_disk(chunks, other, masked).items():
        assert (np.isnan(column).all(-1) == masked[head]).all()
        np.testing.assert_array_equal(column[~masked[head]], columns[head][~masked[head]])
    with pytest.raises(SoftLabelsError):
        soft.to_disk([text_digests(["never labelled"])], tmp_path)
