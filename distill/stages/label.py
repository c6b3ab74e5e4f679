"""The stage label: the teacher's logits of validation, test and the whole transfer set, on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from distill.augment.augmenter import WEIGHTS, Weights
from distill.run import Run
from distill.stages import artifacts
from distill.stages.transfer_set import copies, make_augmenter, write_transfer_set
from distill.teaching.labelling import label_texts


def label(run: Run[Any], folder: Path, weights: Weights = WEIGHTS) -> dict[str, Any]:
    """Write the transfer set, and the teacher's logits of it, of validation and of test.

    Args:
        run: Whose texts and teacher.
        folder: Of the stage.
        weights: Of the sources of augmented texts: noise, near words and mixing.
    """
    counts, chooses = copies(run), run.recipe.augment.copies is None
    if run.accelerator.is_main_process:
        if not (folder / "transfer.arrow").exists():
            write_transfer_set(run, folder, make_augmenter(run, counts, weights), counts)
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
        "copies": [*counts.train],
        # of several sources each has its own number, which no setting can say
        "chosen": {"augment": {"copies": counts.train[0]} if chooses and len(counts.train) == 1 else {}},
    }
