"""Tiny models, a tiny tokenizer and a toy corpus, all built in code; torch is imported where it is used."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
CLASSES = {
    "track": ["where", "parcel", "late", "delivery"],
    "refund": ["money", "back", "refund", "paid"],
    "thank": ["thanks", "great", "love", "happy"],
}
FLAGS = {"urgent": ["now", "asap"], "polite": ["please", "kindly"]}
FILLER = ["the", "a", "my", "is", "it", "of", "to", "and", "i", "you", "we", "they", "order", "box"]
FILLER += ["shop", "day", "week", "red", "blue", "one", "two", "three", "with", "from", "for"]
PIECES = ["##s", "##ed", "##ing", "##ly", ".", ",", "!", "?"]
WORDS = [*chain(*CLASSES.values(), *FLAGS.values()), *FILLER]
VOCABULARY = [*SPECIAL, *WORDS, *PIECES]
POSITIONS = 64


@dataclass(frozen=True)
class Corpus:
    """Texts whose labels their words decide: a single_label `intent` and multi_label `flags`."""

    texts: list[str]
    labels: dict[str, Any]


@pytest.fixture(scope="session")
def toy_heads() -> Any:
    """The heads of `toy_corpus`, in order."""
    from distill.heads import Head

    return (
        Head("intent", "single_label", tuple(CLASSES)),
        Head("flags", "multi_label", tuple(FLAGS)),
    )


@pytest.fixture(scope="session")
def toy_corpus() -> Callable[..., Corpus]:
    """A function (size, seed) that gives a corpus of 3 to 11 words a text."""

    def build(size: int, seed: int = 0) -> Corpus:
        draw = np.random.default_rng(seed)
        texts, intents, flags = [], [], []
        for number in range(size):
            intent = number % len(CLASSES)
            signs = draw.choice(list(CLASSES.values())[intent], 2, replace=False)
            said = [draw.random() < 0.5 for _ in FLAGS]
            marks = chain(*(words for words, yes in zip(FLAGS.values(), said, strict=True) if yes))
            words = [*signs, *marks, *draw.choice(FILLER, draw.integers(1, 6))]
            texts.append(" ".join(draw.permutation(words)))
            intents.append(intent)
            flags.append(said)
        return Corpus(texts, {"intent": np.array(intents, np.int64), "flags": np.array(flags, np.int8)})

    return build


@pytest.fixture(scope="session")
def tiny_tokenizer() -> Any:
    """A fast WordPiece tokenizer of some 55 pieces, as BERT's."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    ids = {piece: number for number, piece in enumerate(VOCABULARY)}
    backend = Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    ends = [(piece, ids[piece]) for piece in ("[CLS]", "[SEP]")]
    backend.post_processor = processors.TemplateProcessing(
        "[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1", ends
    )
    names = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, model_max_length=POSITIONS, **dict(zip(names, SPECIAL, strict=True))
    )


@pytest.fixture(scope="session")
def tiny_bert() -> Callable[..., Any]:
    """A function that gives an encoder of 1 layer of width 16, with fresh weights and no pooler.

    `architecture` is bert or distilbert; `hidden`, `layers`, `attention_heads`, `vocabulary`,
    `positions`, `dropout`, `seed` and `pooler` change it.
    """

    def build(
        architecture: str = "bert",
        *,
        hidden: int = 16,
        layers: int = 1,
        attention_heads: int = 2,
        vocabulary: int = len(VOCABULARY),
        positions: int = POSITIONS,
        dropout: float = 0.0,
        seed: int = 0,
        pooler: bool = False,
    ) -> Any:
        import torch
        from transformers import BertConfig, BertModel, DistilBertConfig, DistilBertModel

        torch.manual_seed(seed)
        shared: dict[str, Any] = {
            "vocab_size": vocabulary,
            "max_position_embeddings": positions,
            "pad_token_id": 0,
            "attn_implementation": "eager",
        }
        if architecture == "distilbert":
            config = DistilBertConfig(
                dim=hidden,
                n_layers=layers,
                n_heads=attention_heads,
                hidden_dim=2 * hidden,
                dropout=dropout,
                attention_dropout=dropout,
                **shared,
            )
            return DistilBertModel(config)
        config = BertConfig(
            hidden_size=hidden,
            num_hidden_layers=layers,
            num_attention_heads=attention_heads,
            intermediate_size=2 * hidden,
            hidden_dropout_prob=dropout,
            attention_probs_dropout_prob=dropout,
            **shared,
        )
        return BertModel(config, add_pooling_layer=pooler)

    return build


@pytest.fixture(scope="session")
def tiny_encoder_folder(tiny_bert: Callable[..., Any], tiny_tokenizer: Any) -> Callable[..., Path]:
    """A function (folder, architecture, **shape) that writes an encoder as a hub checkpoint is.

    config.json, model.safetensors (bert: with the pooler that no one here uses), tokenizer.json.
    """

    def write(folder: Path, architecture: str = "bert", **shape: Any) -> Path:
        place = folder / f"tiny-{architecture}"
        tiny_bert(architecture, pooler=True, **shape).save_pretrained(place)
        tiny_tokenizer.save_pretrained(place)
        return place

    return write


@pytest.fixture(scope="session")
def classifier_folder(toy_corpus: Callable[..., Corpus]) -> Callable[..., Path]:
    """A function that writes a sequence classifier of a head of the toy corpus, as `save_pretrained` does.

    `architecture` is bert, distilbert, roberta or mpnet, each with a vocabulary of its own. `order` permutes
    the labels, `names` renames them. Untrained, it answers at random.
    """

    def write(
        folder: Path,
        head: str = "intent",
        architecture: str = "bert",
        *,
        order: Sequence[int] | None = None,
        names: Sequence[str] | None = None,
        trained: bool = True,
        **config: Any,
    ) -> Path:
        import torch
        import transformers
        from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

        torch.manual_seed(0)
        first, last = ("[CLS]", "[SEP]") if architecture.endswith("bert") else ("<s>", "</s>")
        special = [first, "[PAD]", last, "[UNK]"]
        words = [*special, *sorted(WORDS, reverse=architecture != "bert"), *PIECES]
        backend = Tokenizer(models.WordPiece({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
        backend.normalizer = normalizers.BertNormalizer()
        backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        backend.post_processor = processors.TemplateProcessing(
            f"{first} $A {last}", f"{first} $A {last} $B {last}", [(first, 0), (last, 2)]
        )
        tokenizer = transformers.PreTrainedTokenizerFast(
            tokenizer_object=backend,
            model_max_length=32,
            **dict(zip(("cls_token", "pad_token", "sep_token", "unk_token"), special, strict=True)),
        )
        labels = list(CLASSES if head == "intent" else FLAGS)
        order = order or range(len(labels))
        given = names or [labels[i] for i in order]
        problem = "single_label_classification" if head == "intent" else "multi_label_classification"
        prefix = {"bert": "Bert", "distilbert": "DistilBert", "roberta": "Roberta", "mpnet": "MPNet"}[
            architecture
        ]
        shape: dict[str, Any] = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
        shape["intermediate_size"] = 32
        if architecture == "distilbert":
            shape = {"dim": 24, "n_layers": 1, "n_heads": 2, "hidden_dim": 32}
        made = getattr(transformers, f"{prefix}Config")(
            vocab_size=len(words),
            max_position_embeddings=40,
            pad_token_id=1,
            id2label=dict(enumerate(given)),
            label2id={label: i for i, label in enumerate(given)},
            **{"problem_type": problem, "initializer_range": 0.2, **shape, **config},
        )
        model = getattr(transformers, f"{prefix}ForSequenceClassification")(made)
        if trained:
            corpus = toy_corpus(240, 7)
            true = corpus.labels[head]
            if head == "intent":
                target = torch.tensor([list(order).index(i) for i in true])
                loss: Any = torch.nn.functional.cross_entropy
            else:
                target = torch.tensor(true[:, list(order)], dtype=torch.float32)
                loss = torch.nn.functional.binary_cross_entropy_with_logits
            batch = tokenizer(corpus.texts, padding=True, return_tensors="pt", return_token_type_ids=False)
            optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
            for _ in range(40):
                optimizer.zero_grad()
                loss(model(**batch).logits, target).backward()
                optimizer.step()
        model.eval().save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    return write


@pytest.fixture
def cpu_accelerator() -> Iterator[Any]:
    """A fresh `Accelerator` on the CPU in float32, without trackers."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(True)
    yield Accelerator(cpu=True, mixed_precision="no")
    AcceleratorState._reset_state(True)


@pytest.fixture(scope="session")
def encode(tiny_tokenizer: Any) -> Callable[[Sequence[str]], Any]:
    """The tokens of texts, in memory, at most 24 a text."""
    from distill.data.tokens import TextTokenizer

    return TextTokenizer(tiny_tokenizer, 24)


@pytest.fixture(scope="session")
def run_blocked() -> Callable[..., Any]:
    """A function (code, cwd) that runs Python as it would run with the base install alone."""
    import subprocess
    import sys

    root = Path(__file__).parents[1]
    extras = [
        *("torch", "transformers", "datasets", "accelerate", "optimum", "evaluate", "onnx"),
        *("pydantic", "ruamel", "sklearn", "scipy", "safetensors", "tqdm"),
    ]
    block = f"import sys\nfor name in {extras}: sys.modules[name] = None\nsys.path.insert(0, {str(root)!r})\n"

    def run(code: str, cwd: Path = root) -> Any:
        command = [sys.executable, "-c", block + code]
        return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)

    return run
