"""Token ids equal those of tokenizer.json for any text and any state of the cache."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, processors

from export.runtime import tokenizer as token_ids
from export.runtime.tokenizer import CachedTokenizer
from export.text import strip_text

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
PIECES = [
    *"abcdefghijklmnop",
    *"!?.,$'-_[]",
    *"0123",
    "where",
    "cafe",
    "café",
    "naive",
    "包",
    "裹",
    "😀",
    "ß",
    "ss",
]
PIECES += [f"##{piece}" for piece in (*"abcdefghij0123", "s", "fe", "裹", "́")]
MAX_LENGTH = 16


def bert(
    folder: Path,
    *,
    lowercase: bool = True,
    accents: bool | None = None,
    clean: bool = True,
    around: bool = True,
) -> Path:
    tokenizer = Tokenizer(models.WordPiece({p: i for i, p in enumerate(SPECIAL + PIECES)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(clean, True, accents, lowercase)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    if around:
        tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder / "tokenizer.json"


def reference(path: Path) -> Tokenizer:
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.enable_truncation(MAX_LENGTH)
    return tokenizer


@pytest.fixture(scope="module", params=["uncased", "cased", "unclean", "bare"])
def pair(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[CachedTokenizer, Tokenizer]:
    settings = {
        "uncased": {},
        "cased": {"lowercase": False, "accents": False},
        "unclean": {"clean": False},
        "bare": {"around": False},
    }[request.param]
    path = bert(tmp_path_factory.mktemp("tokenizer"), **settings)
    found = CachedTokenizer(path.read_bytes(), MAX_LENGTH, path)
    assert found._words is not None, "a word is to be looked up"
    return found, reference(path)


near = st.text(
    st.sampled_from("abcWHERE éÉ\u0301\u200b\x00\x0b\x1c\x7f\u00a0\u3000包😀!?'_[]\n\t\r ß01İ"), max_size=60
)
words = st.lists(
    st.sampled_from(["where", "Café", "[SEP]", "[sep]", "a[MASK]b", "naïve", "!!", "包裹", "abba"])
)


@settings(max_examples=400, deadline=None)
@given(text=st.one_of(st.text(max_size=60), near, words.map(" ".join)))
def test_token_ids_match_the_tokenizer(pair: tuple[CachedTokenizer, Tokenizer], text: str) -> None:
    found, tokenizer = pair
    assert found([text]) == [tokenizer.encode(strip_text(text)).ids]


def test_long_texts_are_truncated_and_long_words_unknown(pair: tuple[CachedTokenizer, Tokenizer]) -> None:
    found, tokenizer = pair
    texts = [
        "where " * 1000,
        "a" * 101,
        "a" * 99,
        "b" * 5000,
        "é" * 300,
        "where? " * 700,
        "包" * 5000,
        "\u200b " * 3000,
    ]
    assert found(texts) == [tokenizer.encode(strip_text(text)).ids for text in texts]
    assert max(map(len, found(texts))) == MAX_LENGTH
    assert not any(len(word) > 40 for word in found._words or ())


def test_the_cache_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_ids, "_CACHE_SIZE", 8)
    path = bert(tmp_path)
    found, tokenizer = CachedTokenizer(path.read_bytes(), MAX_LENGTH, path), reference(path)
    texts = [f"abc{i} where{i % 3} a{i}" for i in range(100)]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda text: found([text])[0], texts)) == [
            tokenizer.encode(t).ids for t in texts
        ]
    assert len(found._words or ()) <= 8 + 4


def test_added_tokens_match_only_the_raw_text(tmp_path: Path) -> None:
    path = bert(tmp_path)
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.add_special_tokens(["acmebot"])
    tokenizer.save(str(path))
    found, expected = CachedTokenizer(path.read_bytes(), MAX_LENGTH, path), reference(path)
    for text in ("acmebot here", "AcmeBot here", "an ACMEBOT", "acme bot"):
        assert found([text]) == [expected.encode(text).ids]


@pytest.mark.parametrize("change", ["normalizer", "pieces", "added"])
def test_other_tokenizers_process_whole_texts(tmp_path: Path, change: str) -> None:
    path = bert(tmp_path)
    tokenizer = Tokenizer.from_file(str(path))
    if change == "normalizer":
        tokenizer.normalizer = normalizers.Replace(" ", "_")
    elif change == "pieces":
        tokenizer.pre_tokenizer = pre_tokenizers.Punctuation()
    elif change == "added":
        tokenizer.add_tokens([AddedToken("where is", normalized=True)])
    tokenizer.save(str(path))
    found = CachedTokenizer(path.read_bytes(), MAX_LENGTH, path)
    assert found._words is None
    texts = ["where is a cafe", "Where Is", "", "a?b"]
    expected = reference(path)
    assert found(texts) == [expected.encode(text).ids for text in texts]
