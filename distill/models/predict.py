"""The only inference loop of the training side: logits of many texts, for teacher and student alike."""

from __future__ import annotations

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from distill.data.tokens import Array, Tokens, length_sorted_batches
from distill.heads import width
from distill.models.classifier import Network, on_device


def predict_logits(
    network: Network, tokens: Tokens, accelerator: Accelerator, *, exact: bool = False
) -> Array:
    """Logits of every text, float32 `[texts, sum of labels]`, in the order of the texts.

    Args:
        network: Whose logits; moved to the accelerator's device.
        tokens: Of the texts.
        accelerator: Several processes share the work, and each returns all of it.
        exact: In float32, whatever the run's precision.
    """
    network.to(accelerator.device).eval()
    # tokens a batch; on a CPU four times as many took 1.8 GB where these take 1.0, and kept growing
    cost = 2048 if accelerator.device.type == "cpu" else 65536
    batches = length_sorted_batches(tokens.lengths, cost)
    mine = batches[accelerator.process_index :: accelerator.num_processes]
    logits = np.zeros((len(tokens), width(network.heads)), np.float32)
    with torch.inference_mode(), torch.autocast(accelerator.device.type, enabled=False):
        found = []
        for rows in mine:
            ids, mask = (on_device(array, accelerator.device) for array in tokens.batch(rows))
            if exact:
                found.append(network(ids, mask))
            else:
                with accelerator.autocast():
                    found.append(network(ids, mask))
        for rows, batch in zip(mine, found, strict=True):
            logits[rows] = batch.float().cpu().numpy()
    if accelerator.num_processes > 1:
        for rows, part in gather_object([(rows, logits[rows]) for rows in mine]):
            logits[rows] = part
    return logits
