"""Train a run's student with the package TextBrewer, for benchmarks/quality_own.py.

The environment variable TEXTBREWER names the folder of the package, which is pure Python. It is the only peer
that trains our model. Its published settings are used where they exist. TextBrewer leaves optimizer, learning
rate and batches to the caller; they are those of the student.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import set_seed
from torch import Tensor
from torch.nn import functional as F

from distill.data.tokens import shuffled_batches
from distill.heads import UNKNOWN, UNLABELLED, Head, columns
from distill.models.base import Array, EncodedTexts, TextClassifier
from distill.models.classifier import MultiHeadClassifier
from distill.models.predict import predict_logits
from distill.models.saved_networks import save_classifier
from distill.recipe import defaults
from distill.recipe.schema import Recipe
from distill.run import Run
from distill.stages import artifacts
from distill.stages.student_init import initial_student, prune_vocabulary
from distill.stages.train import labelled, seed_of
from distill.training.checkpoint import save_tensors
from distill.training.loop import Examples, evaluate_network
from students.factorized_embeddings import fold

TEMPERATURE, EPOCHS = 8, 60  # of its published experiments (30 to 60 epochs)


class Batches:
    """Batches in TextBrewer's format, shuffled every epoch, with stored teacher logits.

    A student batch is the named tensors of the texts and the labels of each head. A teacher has no batch.
    """

    def __init__(self, examples: Examples, heads: Sequence[Head], size: int, seed: int) -> None:
        self.texts: EncodedTexts = examples.texts
        self.hard = [examples.hard[head.name] for head in heads]
        self.soft = [examples.soft[head.name] for head in heads]
        self.size, self.seed, self.epoch = size, seed, 0

    def __len__(self) -> int:
        return len(self._rows(0))

    def __iter__(self) -> Iterator[dict[str, Any]]:
        batches = self._rows(self.epoch)
        self.epoch += 1
        for rows in batches:
            texts = {name: torch.from_numpy(array) for name, array in self.texts.batch(rows).items()}
            labels = tuple(torch.from_numpy(known[rows]) for known in self.hard)
            logits = tuple(torch.from_numpy(known[rows]) for known in self.soft)
            yield {"teacher": (), "teacher_cache": logits, "student": (texts, *labels)}

    def _rows(self, epoch: int) -> list[Array]:
        return shuffled_batches(self.texts.lengths, self.size, self.seed, epoch)


class Called(torch.nn.Module):
    """A network that accepts TextBrewer's batches and ignores the labels, which the adaptor uses."""

    def __init__(self, network: TextClassifier) -> None:
        super().__init__()
        self.network = network

    def forward(self, texts: dict[str, Tensor], *labels: Tensor) -> list[Tensor]:
        """The logits of each head for a batch."""
        return list(self.network.split(self.network(texts)).values())


class Adaptors:
    """TextBrewer's adaptors of teacher and student: logits and losses of each head."""

    def __init__(self, heads: Sequence[Head]) -> None:
        self.heads = heads

    def teacher(self, batch: tuple[()], logits: Sequence[Tensor]) -> dict[str, list[Tensor]]:
        """The teacher's logits."""
        return {"logits": self._logits(logits)}

    def student(self, batch: tuple[Any, ...], logits: Sequence[Tensor]) -> dict[str, list[Tensor]]:
        """The student's logits and its hard losses."""
        losses = [
            _hard(z, labels, head) for z, labels, head in zip(logits, batch[1:], self.heads, strict=True)
        ]
        return {"logits": self._logits(logits), "losses": losses}

    def _logits(self, logits: Sequence[Tensor]) -> list[Tensor]:
        # TextBrewer applies a softmax; softmax over (0, z) is the sigmoid of z
        return [
            z if head.kind == "single_label" else torch.stack([torch.zeros_like(z), z], -1)
            for head, z in zip(self.heads, logits, strict=True)
        ]


def brew(run: Run[Recipe], folder: Path, epochs: int) -> None:
    """Train the run's student; writes the same files into `folder` as the stage fit_student.

    Args:
        run: A run with prepared data, teacher and soft labels.
        folder: The folder of the stage.
        epochs: Epochs over the training texts.
    """
    settings, heads, seed = run.recipe.student, artifacts.heads(run), seed_of(run, run.recipe.student)
    set_seed(seed)
    tokens = run.recipe.export.max_length or artifacts.max_length(run)
    student = initial_student(run, tokens)
    encoder, tokenizer = student.encoder, student.tokenizer
    if isinstance(settings.vocabulary, int):
        tokenizer, _ = prune_vocabulary(run, student, settings.vocabulary, tokens)
    network = MultiHeadClassifier(encoder, heads, pooling=settings.pooling, dropout=settings.dropout)
    encode = network.text_encoder(tokenizer, tokens)
    tokenizer.model_max_length = encode.max_length
    train, validation, test = (labelled(run, split, encode) for split in ("train", "validation", "test"))
    taught = Examples(train.texts, train.hard, artifacts.teacher_logits(run, "train"))
    batches = Batches(taught, heads, settings.batch_size, seed)
    best: dict[str, float] = {"score": -1.0}
    state: dict[str, Tensor] = {}

    def keep_best(model: torch.nn.Module, step: int) -> None:
        score = evaluate_network(network, validation, run.accelerator)["mean"]
        run.info(f"step {step}: {score:.4f} on validation")
        if score > best["score"]:
            best["score"] = score
            state.update((name, weight.clone()) for name, weight in network.state_dict().items())

    rate = settings.lr or defaults.student_lr(
        network.config.hidden_size, trained_layers=student.trained_layers
    )
    _train(run, network, batches, adaptors=Adaptors(heads), rate=rate, epochs=epochs, callback=keep_best)
    network.load_state_dict(state)
    fold(network.encoder)
    logits = {
        f"{split}.{head.name}": torch.from_numpy(found[:, part])
        for split, examples in (("validation", validation), ("test", test))
        for found in [predict_logits(network, examples.texts, run.accelerator, exact=True)]
        for head, part in columns(heads)
    }
    save_tensors(folder / "logits.safetensors", logits, {})
    save_classifier(network, tokenizer, folder)


def _train(
    run: Run[Recipe],
    network: TextClassifier,
    batches: Batches,
    *,
    adaptors: Adaptors,
    rate: float,
    epochs: int,
    callback: Callable[[torch.nn.Module, int], None],
) -> None:
    from transformers import get_linear_schedule_with_warmup

    package, settings = _package(), run.recipe.student
    steps = epochs * len(batches)
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=rate, weight_decay=settings.weight_decay, fused=True
    )
    schedule = {"num_warmup_steps": round(settings.warmup * steps), "num_training_steps": steps}
    with tempfile.TemporaryDirectory() as scratch:
        distiller = package.GeneralDistiller(
            train_config=package.TrainingConfig(output_dir=scratch, device="cpu"),
            distill_config=package.DistillationConfig(
                temperature=TEMPERATURE, kd_loss_weight=1, hard_label_weight=0
            ),
            model_T=torch.nn.Identity(),  # never called: the batches contain its logits
            model_S=Called(network),
            adaptor_T=adaptors.teacher,
            adaptor_S=adaptors.student,
        )
        with distiller:
            distiller.train(
                optimizer,
                batches,
                num_epochs=epochs,
                scheduler_class=get_linear_schedule_with_warmup,
                scheduler_args=schedule,
                max_grad_norm=settings.clip,
                callback=callback,
            )


def _hard(logits: Tensor, labels: Tensor, head: Head) -> Tensor:
    """The mean hard loss, which TextBrewer leaves to the caller."""
    if head.kind == "single_label":
        known = labels != UNLABELLED
        return F.cross_entropy(logits[known], labels[known]) if known.any() else logits.sum() * 0
    known = (labels != UNKNOWN).all(-1)
    truth = labels[known].to(logits.dtype)
    return F.binary_cross_entropy_with_logits(logits[known], truth) if known.any() else logits.sum() * 0


def _package() -> Any:
    """Load TextBrewer, and nothing else, from the peers' environment."""
    folder = Path(os.environ["TEXTBREWER"])
    locations = [str(folder)]
    spec = importlib.util.spec_from_file_location(
        "textbrewer", folder / "__init__.py", submodule_search_locations=locations
    )
    if spec is None or spec.loader is None:
        raise SystemExit(f"{folder}: not a package (set TEXTBREWER to the folder of textbrewer)")
    module = importlib.util.module_from_spec(spec)
    sys.modules["textbrewer"] = module
    spec.loader.exec_module(module)
    return module
