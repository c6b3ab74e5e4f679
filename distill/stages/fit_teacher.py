"""The stages of the teacher: fit_teacher, label. Each is a function (run, its folder) -> figures."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from distill.data.dataset import hard_labels, load_heads, load_split
from distill.data.tokens import Array, TextTokenizer, Tokens, chunks
from distill.evaluation.calibration import validation_quality
from distill.evaluation.metrics import without_nan
from distill.heads import Head, width
from distill.models.classifier import Network, saved_heads
from distill.models.network_teacher import adopt, load_members, mean_logits, members_digest
from distill.recipe import defaults
from distill.run import Run
from distill.stages.selection import select
from distill.stages.train import MANY_UNKNOWN, finish, labelled, learn
from distill.stages.transfer_set import transfer_set
from teachers.encoders import load_encoder
from teachers.soft_labels import SoftLabels, text_digests

WHOLE = 1_000_000  # tokens: far more than are read of any text
MANY_CUT = 0.05  # share of texts whose ends are not read


def fit_teacher(run: Run, folder: Path) -> dict[str, Any]:
    """Fine-tune the teacher on the labelled texts."""
    settings = run.recipe.teacher
    heads = load_heads(run.stage("prepare"))
    if settings.networks:
        return _adopted(run, heads, folder)
    run.seed_everything(settings)
    encoder, tokenizer = load_encoder(
        settings.encoder,
        sha256=settings.sha256,
        layers=settings.layers,
        dropout=settings.dropout,
        attention_dropout=settings.attention_dropout,
    )
    network = Network(encoder, heads, pooling=settings.pooling, dropout=settings.dropout)
    encode, read = _reader(run, [network], tokenizer)
    train, validation = (labelled(run, split, heads, encode) for split in ("train", "validation"))
    batch = settings.batch_size * settings.accumulate * run.accelerator.num_processes
    lr = settings.lr or defaults.teacher_lr(network.config.hidden_size)
    figures = learn(
        run,
        folder,
        "teacher",
        network,
        train,
        validation,
        settings,
        epochs=defaults.teacher_epochs(len(train.tokens), batch),
        lr=lr,
        head_lr=defaults.teacher_head_lr(lr),
    )
    unknown = _unknown(run, encode, validation.tokens)
    return figures | read | unknown | finish(run, network, tokenizer, folder)


def label(run: Run, folder: Path) -> dict[str, Any]:
    """Write the teacher's logits for validation, test, and the whole transfer set, and what is kept of it."""
    teachers = load_members(run.stage("fit_teacher"), max_length(run))
    transfer = transfer_set(run, folder, *teachers[0])
    soft = open_soft_labels(run)
    splits = [load_split(run.stage("prepare"), name) for name in ("validation", "test")]
    total, new = sum(map(len, [*splits, transfer])), 0
    with run.progress(total, "label", "text") as bar:
        for texts in itertools.chain(*(chunks(split["text"]) for split in [*splits, transfer])):
            # a text that a killed run labelled in this chunk's shard is not labelled again
            digests, places = np.unique(text_digests(texts), return_index=True)
            wanted = soft.missing(digests)
            if wanted.any():
                logits = mean_logits(teachers, [texts[i] for i in places[wanted]], run.accelerator)
                if run.accelerator.is_main_process:
                    soft.add(digests[wanted], logits)
                run.accelerator.wait_for_everyone()
                soft.refresh()  # what another process wrote
                new += int(wanted.sum())
            bar.update(len(texts))
    figures = {"transfer_texts": len(transfer), "labelled_texts": new}
    if run.accelerator.is_main_process:
        found = (soft.logits(soft.rows(text_digests(texts))) for texts in chunks(transfer["text"]))
        first = len(load_split(run.stage("prepare"), "train"))
        figures |= select(folder, run.recipe.augment, teachers[0].network.heads, found, first)
    return figures


def open_soft_labels(run: Run) -> SoftLabels:
    """The soft labels of the run's teacher: its weights and how many tokens it reads name them."""
    weights = members_digest(run.stage("fit_teacher"))
    key = f"{weights}/{max_length(run)}"
    heads = saved_heads(run.stage("fit_teacher"))
    name = hashlib.sha256(key.encode()).hexdigest()[:16]
    return SoftLabels(run.folder / "soft_labels" / name, width(heads))


def max_length(run: Run) -> int:
    """The tokens of a text that the run's teacher reads."""
    return int(run.figures("fit_teacher")["max_length"])


def teacher_logits(run: Run, split: str) -> Array:
    """The teacher's logits of a split, float32 `[texts, sum of labels]`, from its soft labels."""
    texts = load_split(run.stage("prepare"), split)["text"]
    soft = open_soft_labels(run)
    return soft.logits(soft.rows(text_digests(texts))).astype(np.float32)


def _adopted(run: Run, heads: tuple[Head, ...], folder: Path) -> dict[str, Any]:
    """The networks of earlier runs as the teacher, and what they reach together on validation."""
    teacher = run.recipe.teacher
    if run.accelerator.is_main_process:
        adopt(teacher.networks, heads, folder)
    run.accelerator.wait_for_everyone()
    rows = load_split(run.stage("prepare"), "validation")
    members = load_members(folder, WHOLE)
    _, read = _reader(run, [member.network for member in members], members[0].tokenizer)
    members = load_members(folder, read["max_length"])
    logits = mean_logits(members, rows["text"], run.accelerator)
    quality = validation_quality(heads, logits, hard_labels(rows, heads))
    unknown = _unknown(run, members[0].encode, members[0].encode(rows["text"]))
    return {"networks": len(teacher.networks), "validation": without_nan(quality)} | read | unknown


def _reader(run: Run, networks: Sequence[Network], tokenizer: Any) -> tuple[TextTokenizer, dict[str, Any]]:
    """What reads texts for a teacher, and what it cuts off; said if it cuts many of the training texts.

    Of several networks each reads as far as it has positions; what is recorded is the farthest.
    """
    whole, texts = TextTokenizer(tokenizer, WHOLE), load_split(run.stage("prepare"), "train")["text"]
    lengths = np.concatenate([whole(some).lengths for some in chunks(texts)])
    asked = run.recipe.teacher.max_length or defaults.max_length(lengths)
    tokens = max(network.reads(asked) for network in networks)
    cut, most = float((lengths > tokens).mean()), max(network.reads(WHOLE) for network in networks)
    if cut > MANY_CUT:
        more = f"set teacher.max_length, {most} at most, or " if tokens < most < WHOLE else ""
        run.say(
            f"teacher: {cut:.0%} of the training texts are longer than the {tokens} tokens that are read of "
            f"one ({more}split them)"
        )
    return TextTokenizer(tokenizer, tokens), {"max_length": tokens, "cut_texts": cut}


def _unknown(run: Run, encode: TextTokenizer, tokens: Tokens) -> dict[str, float]:
    """The share of the validation texts' tokens that the teacher's vocabulary cannot spell; said if large."""
    share = encode.unknown_share(tokens)
    if share > MANY_UNKNOWN:
        run.say(
            f"teacher: its vocabulary cannot spell {share:.0%} of the validation texts' tokens (give "
            "teacher.encoder one of their language)"
        )
    return {"unknown_tokens": share}
