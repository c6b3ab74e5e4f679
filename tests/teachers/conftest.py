"""Encoders of a few hundred weights in folders of their own, and packages that ship such folders."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    BertConfig,
    BertModel,
    BertTokenizerFast,
    DistilBertConfig,
    DistilBertModel,
    DistilBertTokenizerFast,
)

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "where", "is", "my", "parcel", "##s"]
SaveEncoder = Callable[..., Path]


@pytest.fixture
def save_encoder(tmp_path: Path) -> SaveEncoder:
    """A function that writes an encoder and its tokenizer into a new folder."""

    def save(name: str = "encoder", architecture: str = "bert", layers: int = 3, **config: Any) -> Path:
        folder = tmp_path / name
        torch.manual_seed(0)
        model: Any
        if architecture == "bert":
            shape = {"hidden_size": 8, "intermediate_size": 12, "num_attention_heads": 2}
            settings = {**shape, "num_hidden_layers": layers, "max_position_embeddings": 16, **config}
            model = BertModel(BertConfig(vocab_size=len(WORDS), **settings))
        else:
            shape = {"dim": 8, "hidden_dim": 12, "n_heads": 2}
            settings = {**shape, "n_layers": layers, "max_position_embeddings": 16, **config}
            model = DistilBertModel(DistilBertConfig(vocab_size=len(WORDS), **settings))
        model.save_pretrained(folder, safe_serialization=True)
        (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
        kind = BertTokenizerFast if architecture == "bert" else DistilBertTokenizerFast
        kind.from_pretrained(folder).save_pretrained(folder)
        return folder

    return save


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """A function that installs a package of the given files, for this test alone."""

    def add(package: str, **files: bytes) -> Path:
        site = tmp_path / "site"
        module = package.replace("-", "_")
        about = site / f"{module}-1.0.dist-info"
        about.mkdir(parents=True)
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        folder = site / module
        folder.mkdir()
        record = []
        for key, content in {"__init__.py": b"raise SystemExit('imported')", **files}.items():
            (folder / key).write_bytes(content)
            record.append(f"{module}/{key},,")
        (about / "RECORD").write_text("\n".join(record) + "\n")
        monkeypatch.syspath_prepend(str(site))
        return folder

    return add
