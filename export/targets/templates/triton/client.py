"""Ask the model that Triton serves: texts in, calibrated labels out. Needs numpy and tokenizers.

    python client.py "where is my parcel?" [--url http://localhost:8000]

Triton gets token ids and gives logits; this file holds what lies on either side of it.
"""

from __future__ import annotations

import argparse
import json
import sys
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

HERE = Path(__file__).parent
MANIFEST = json.loads((HERE / "manifest.json").read_text(encoding="utf-8"))
MULTIPLE = 16  # Triton batches requests of one shape only, so few lengths are better than many


def tokenise(texts: list[str]) -> dict[str, Any]:
    """The graph's inputs for texts, each an int64 array [texts, length]."""
    tokenizer = Tokenizer.from_file(str(HERE / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(MANIFEST["max_length"])
    found = [encoding.ids for encoding in tokenizer.encode_batch(texts)]
    width = min(-(-max(1, *map(len, found)) // MULTIPLE) * MULTIPLE, MANIFEST["max_length"])
    ids = np.full((len(found), width), MANIFEST["pad_token_id"], np.int64)
    mask = np.zeros_like(ids)
    for row, text in enumerate(found):
        ids[row, : len(text)], mask[row, : len(text)] = text, 1
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}


def answer(head: dict[str, Any], logits: Any) -> Any:
    """The answer of one head to one text: its label, or those at or over their thresholds."""
    scaled = np.asarray(logits, np.float64) / head["temperature"]
    order = np.argsort(-scaled, kind="stable")
    if head["kind"] == "single_label":
        powers = np.exp(scaled - scaled.max())
        scores = powers / powers.sum()
        return {"label": head["labels"][order[0]], "score": float(scores[order[0]])}
    scores = 1 / (1 + np.exp(-scaled))
    least = head["thresholds"] or [0.5] * len(scores)
    return [{"label": head["labels"][i], "score": float(scores[i])} for i in order if scores[i] >= least[i]]


def ask(texts: list[str], url: str) -> list[dict[str, Any]]:
    """One answer a text, each a dict by head; a request has at most 64 texts, as the model's config says."""
    if len(texts) > 64:
        return [
            answer for first in range(0, len(texts), 64) for answer in ask(texts[first : first + 64], url)
        ]
    model = f"{url.rstrip('/')}/v2/models/{MANIFEST['name']}"
    with urllib.request.urlopen(model) as reply:
        wanted = {tensor["name"] for tensor in json.load(reply)["inputs"]}
    inputs = [
        {"name": name, "datatype": "INT64", "shape": list(array.shape), "data": array.ravel().tolist()}
        for name, array in tokenise(texts).items()
        if name in wanted
    ]
    body = json.dumps({"inputs": inputs}).encode()
    request = urllib.request.Request(f"{model}/infer", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request) as reply:
        outputs = {tensor["name"]: tensor for tensor in json.load(reply)["outputs"]}
    logits = {name: np.reshape(tensor["data"], tensor["shape"]) for name, tensor in outputs.items()}
    heads = MANIFEST["heads"]
    return [
        {head["name"]: answer(head, logits[head["output"]][row]) for head in heads}
        for row in range(len(texts))
    ]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Classify texts with the model that Triton serves.")
    parser.add_argument("text", nargs="+")
    parser.add_argument("--url", default="http://localhost:8000")
    options = parser.parse_args()
    for result in ask(options.text, options.url):
        json.dump(result, sys.stdout, ensure_ascii=False)
        print()
