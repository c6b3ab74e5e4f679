"""A tokenizer.json from a stranger: no panic, no text that grows without bound, no error but BundleError."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest

from export.bundle.manifest import TOKENIZER, BundleError
from export.runtime.tokenizer import CachedTokenizer

MAX_LENGTH = 16


@pytest.fixture
def path(exportable: Path) -> Path:
    return exportable / TOKENIZER


def load(path: Path, **changes: object) -> CachedTokenizer:
    """A tokenizer whose JSON was changed; `model` is merged."""
    document = json.loads(path.read_text("utf-8"))
    document |= {**changes, "model": {**document["model"], **changes.get("model", {})}}
    return CachedTokenizer(json.dumps(document).encode(), MAX_LENGTH, path)


def replace(pattern: dict[str, str], content: str) -> dict[str, object]:
    return {"type": "Replace", "pattern": pattern, "content": content}


CHARSMAP = base64.b64encode(b"\x04\x00\x00\x00aaaa" + b"x" * 2000).decode()


TWICE = replace({"String": "a"}, "aa")
REPEATED = [{"Sequence": {"id": "A", "type_id": 0}}] * 3
TEMPLATE = {"type": "TemplateProcessing", "single": REPEATED, "pair": [], "special_tokens": {}}


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        (
            {"normalizer": {"type": "Sequence", "normalizers": [TWICE] * 40}},
            "makes 1.09951e\\+12 characters of one",
        ),
        ({"normalizer": replace({"Regex": ""}, "a" * 1000)}, "makes 1001 characters of one"),
        ({"normalizer": {"type": "Precompiled", "precompiled_charsmap": CHARSMAP}}, "makes 200. |not a tok"),
        ({"model": {"max_input_chars_per_word": 2**63}}, "splits words of 9223372036854775808"),
        ({"model": {"unk_token": "[NONE]"}}, "cannot tokenise a text: WordPiece error: Missing"),
        ({"post_processor": TEMPLATE}, "repeats a text 3 times"),
        ({"post_processor": {"type": "Sequence", "processors": [TEMPLATE]}}, "repeats a text 3 times"),
        ({"normalizer": {"type": "Sequence", "normalizers": "x"}}, "not a tokenizer"),
    ],
)
def test_a_tokenizer_from_a_stranger(path: Path, changes: dict[str, object], problem: str):
    with pytest.raises(BundleError, match=rf"tokenizer\.json: .*{problem}") as caught:
        load(path, **changes)
    assert "\n" not in str(caught.value)


def test_an_ordinary_normalizer_is_no_growth(path: Path):
    """As XLM-RoBERTa and ALBERT have them."""
    spaces = replace({"Regex": " {2,}"}, " ")
    quotes = [replace({"String": mark}, '"') for mark in ("``", "''")]
    load(path, normalizer={"type": "Sequence", "normalizers": [*quotes, {"type": "NFKD"}, spaces]})


class Panic(BaseException):
    """As of native code, no Exception."""


def test_a_panic_on_a_text(path: Path, monkeypatch: pytest.MonkeyPatch):
    loaded = load(path)

    def panic(text: str, cache: object) -> list[int]:
        raise (KeyboardInterrupt if text == "stop" else Panic)("index out of bounds")

    monkeypatch.setattr(loaded, "_encode", panic)
    with pytest.raises(BundleError, match="cannot tokenise a text: index out of bounds"):
        loaded(["a"])
    with pytest.raises(KeyboardInterrupt):
        loaded(["stop"])
