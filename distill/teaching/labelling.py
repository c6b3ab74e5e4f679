"""Labels texts: asks a teacher for the texts that have no soft labels yet, and writes its logits."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from distill.data.tokens import chunks
from distill.run import Run
from teachers.base import Teacher
from teachers.soft_labels import SoftLabels, text_digests


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
