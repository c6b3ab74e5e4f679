"""The stage label: the teacher's logits of validation, test and the whole transfer set, on disk."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np

from distill.augment.augmenter import WEIGHTS, Weights
from distill.data.tokens import chunks
from distill.run import Run
from distill.stages import artifacts
from distill.stages.transfer_set import copies, make_augmenter, write_transfer_set
from teachers.base import Teacher
from teachers.soft_labels import SoftLabels, text_digests


def label(run: Run[Any], folder: Path, weights: Weights = WEIGHTS) -> dict[str, Any]:
    """Write the transfer set, and the teacher's logits of it, of validation and of test.

    Args:
        run: Whose texts and teacher.
        folder: Of the stage.
        weights: Of the sources of augmented texts: noise, near words and mixing.
    """
    count = copies(run)
    if run.accelerator.is_main_process:
        if not (folder / "transfer.arrow").exists():
            write_transfer_set(run, folder, make_augmenter(run, weights) if count else None, count)
            run.keep(folder / "transfer.arrow")
        for shard in artifacts.soft_labels(run).damaged:
            run.info(f"{shard}: is damaged or of another version, so its texts are labelled again")
            shard.unlink()
    run.accelerator.wait_for_everyone()
    transfer, soft = artifacts.transfer_set(run), artifacts.soft_labels(run)
    labelled = label_texts(
        run,
        artifacts.teacher(run),
        soft,
        [artifacts.split(run, "validation")["text"], artifacts.split(run, "test")["text"], transfer["text"]],
    )
    return {
        "transfer_texts": len(transfer),
        "labelled_texts": labelled,
        "chosen": {"augment": {"copies": count} if run.recipe.augment.copies is None else {}},
    }


def label_texts(run: Run[Any], teacher: Teacher, soft: SoftLabels, columns: list[Any]) -> int:
    """Label the texts that have no soft labels yet; returns their number.

    Args:
        run: Its processes share the work.
        teacher: Labels the texts.
        soft: The teacher's soft labels.
        columns: Columns of texts; a text may stand in several.
    """
    labelled = 0
    with run.progress(sum(map(len, columns)), "label", "text") as bar:
        for texts in itertools.chain.from_iterable(map(chunks, columns)):
            # a killed run may have labelled some of this chunk's texts
            digests, places = np.unique(text_digests(texts), return_index=True)
            missing = soft.missing(digests)
            if missing.any():
                logits = teacher.logits([texts[i] for i in places[missing]])
                if run.accelerator.is_main_process:
                    soft.add(digests[missing], logits)
                run.accelerator.wait_for_everyone()
                soft.refresh()  # opens what the main process wrote
                labelled += int(missing.sum())
            bar.update(len(texts))
    return labelled
