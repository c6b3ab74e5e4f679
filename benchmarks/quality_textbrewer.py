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
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from distill.data.dataset import hard_labels, load_heads, load_split
from distill.data.tokens import TextTokenizer, Tokens, shuffled_batches
from distill.heads import UNKNOWN, UNLABELLED, Head, columns
from distill.models.base import save_classifier
from distill.models.classifier import MultiHeadClassifier
from distill.models.predict import predict_logits
from distill.recipe import defaults
from distill.run import Run
from distill.stages import fit_student as learning
from distill.stages import fit_teacher as teaching
from distill.training.checkpoint import save_tensors
from distill.training.loop import Examples, evaluate_network
from students.factorized_embeddings import fold

TEMPERATURE, EPOCHS = 8, 60  # of its published experiments (30 to 60 epochs)


class Batches:
    """Batches in TextBrewer's format, shuffled every epoch, with stored teacher logits."""

    def __init__(self, tokens: Tokens, hard: Sequence[Any], soft: Any, size: int, seed: int) -> None:
        self.tokens, self.hard, self.soft, self.size, self.seed = tokens, hard, soft, size, seed
        self.epoch = 0

    def __len__(self) -> int:
        return len(self._rows(0))

    def __iter__(self) -> Iterator[dict[str, Any]]:
        batches = self._rows(self.epoch)
        self.epoch += 1
        for rows in batches:
            ids, mask = map(torch.from_numpy, self.tokens.batch(rows))
            labels = tuple(torch.from_numpy(known[rows]) for known in self.hard)
            logits = torch.from_numpy(self.soft[rows])
            yield {"teacher": (), "teacher_cache": (logits,), "student": (ids, mask, *labels)}

    def _rows(self, epoch: int) -> list[Any]:
        return shuffled_batches(self.tokens.lengths, self.size, self.seed, epoch)


class Called(torch.nn.Module):
    """A network that accepts TextBrewer's batches and ignores the labels, which the adaptor uses."""

    def __init__(self, network: MultiHeadClassifier) -> None:
        super().__init__()
        self.network = network

    def forward(self, ids: Any, mask: Any, *labels: Any) -> Any:
        """The logits of a batch."""
        return self.network(ids, mask)


class Adaptors:
    """TextBrewer's adaptors of teacher and student: logits and losses of each head."""

    def __init__(self, heads: Sequence[Head]) -> None:
        self.heads = heads

    def teacher(self, batch: Any, outputs: Any) -> dict[str, Any]:
        """The teacher's logits."""
        return {"logits": self._logits(outputs[0])}

    def student(self, batch: Any, logits: Any) -> dict[str, Any]:
        """The student's logits and its hard losses."""
        known = zip(columns(self.heads), batch[2:], strict=True)
        losses = [_hard(logits[:, part], labels, head) for (head, part), labels in known]
        return {"logits": self._logits(logits), "losses": losses}

    def _logits(self, logits: Any) -> list[Any]:
        parts = [(head, logits[:, part]) for head, part in columns(self.heads)]
        # TextBrewer applies a softmax; softmax over (0, z) is the sigmoid of z
        return [
            z if head.kind == "single_label" else torch.stack([torch.zeros_like(z), z], -1)
            for head, z in parts
        ]


def brew(run: Run, folder: Path, epochs: int) -> None:
    """Train the run's student; writes the same files into `folder` as the stage fit_student.

    Args:
        run: A run with prepared data, teacher and soft labels.
        folder: The folder of the stage.
        epochs: Epochs over the training texts.
    """
    recipe, settings, heads = run.recipe, run.recipe.student, load_heads(run.stage("prepare"))
    run.seed_everything(settings)
    max_length = recipe.export.max_length or teaching.max_length(run)
    encoder, tokenizer, began = learning._student_encoder(run, max_length)
    network = MultiHeadClassifier(encoder, heads, pooling=settings.pooling, dropout=settings.dropout)
    tokenizer.model_max_length = network.reads(max_length)
    encode = TextTokenizer(tokenizer, tokenizer.model_max_length)
    rows = {split: load_split(run.stage("prepare"), split) for split in ("train", "validation", "test")}
    tokens = {split: encode(list(rows[split]["text"])) for split in rows}
    hard = {split: hard_labels(rows[split], heads) for split in ("train", "validation")}
    batches = Batches(
        tokens["train"],
        list(hard["train"].values()),
        teaching.teacher_logits(run, "train"),
        settings.batch_size,
        run.seed_of(settings),
    )
    validation, best = Examples(tokens["validation"], hard["validation"]), {"score": -1.0}
    state: dict[str, Any] = {}

    def keep_best(model: Any, step: int) -> None:
        score = evaluate_network(network, validation, run.accelerator)["mean"]
        run.say(f"step {step}: {score:.4f} on validation")
        if score > best["score"]:
            best["score"] = score
            state.update((name, weight.clone()) for name, weight in network.state_dict().items())

    rate = settings.lr or defaults.student_lr(network.config.hidden_size, learnt=began.learnt)
    _train(run, network, batches, adaptors=Adaptors(heads), rate=rate, epochs=epochs, callback=keep_best)
    network.load_state_dict(state)
    fold(network.encoder)
    logits = {
        split: torch.from_numpy(predict_logits(network, tokens[split], run.accelerator, exact=True))
        for split in ("validation", "test")
    }
    save_tensors(folder / "logits.safetensors", logits, {})
    save_classifier(network, tokenizer, folder)


def _train(
    run: Run,
    network: MultiHeadClassifier,
    batches: Batches,
    *,
    adaptors: Adaptors,
    rate: float,
    epochs: int,
    callback: Any,
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


def _hard(logits: Any, labels: Any, head: Head) -> Any:
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
