"""The only inference loop of the training side: logits of many texts, for teacher and student alike."""

from __future__ import annotations

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from distill.data.tokens import length_sorted_batches
from distill.heads import width
from distill.models.base import Array, EncodedTexts, TextClassifier, on_device


def inference_batches(lengths: Array, device: torch.device) -> list[Array]:
    """The batches of texts of these lengths, each an array of row numbers."""
    # tokens a batch; four times as many took 1.8 GB on a CPU instead of 1.0, and kept growing. The GPU of
    # a Mac shares that memory
    return length_sorted_batches(lengths, 65536 if device.type == "cuda" else 2048)


def predict_logits(
    network: TextClassifier, texts: EncodedTexts, accelerator: Accelerator, *, exact: bool = False
) -> Array:
    """The logits of every text, float32 `[texts, sum of labels]`, in the order of the texts.

    Args:
        network: Moved to the accelerator's device.
        texts: As the network reads them.
        accelerator: Several processes share the work, and each returns all of it.
        exact: Compute in float32, whatever the run's precision.
    """
    network.to(accelerator.device).eval()
    batches = inference_batches(texts.lengths, accelerator.device)
    mine = batches[accelerator.process_index :: accelerator.num_processes]
    logits = np.zeros((len(texts), width(network.heads)), np.float32)
    with torch.inference_mode(), torch.autocast(accelerator.device.type, enabled=False):
        found = []
        for rows in mine:
            batch = on_device(texts.batch(rows), accelerator.device)
            if exact:
                found.append(network(batch))
            else:
                with accelerator.autocast():
                    found.append(network(batch))
        for rows, part in zip(mine, found, strict=True):
            logits[rows] = part.float().cpu().numpy()
    if accelerator.num_processes > 1:
        for rows, part in gather_object([(rows, logits[rows]) for rows in mine]):
            logits[rows] = part
    return logits
