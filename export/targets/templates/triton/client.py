"""Classify texts with the model that Triton serves. Needs numpy and tokenizers.

    python client.py "where is my parcel?" [--url http://localhost:8000]

Triton takes token ids and returns logits; this client tokenises the texts and converts the logits to labels.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

HERE = Path(__file__).parent
MANIFEST = json.loads((HERE / "manifest.json").read_text(encoding="utf-8"))
MAX_BATCH = 64  # max_batch_size of config.pbtxt
# White space and characters of no width, which training texts have at neither end
ENDS = re.compile(r"\A[\s\u200b-\u200f\u2060\ufeff]+|[\s\u200b-\u200f\u2060\ufeff]+\Z")
MULTIPLE = 16  # Triton batches only requests of equal shape, so lengths are rounded up


def tokenise(texts: list[str]) -> dict[str, Any]:
    """The inputs of the graph, int64 arrays [texts, length]."""
    tokenizer = Tokenizer.from_file(str(HERE / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(MANIFEST["max_length"])
    rows = [encoding.ids for encoding in tokenizer.encode_batch([ENDS.sub("", text) for text in texts])]
    width = min(-(-max(1, *map(len, rows)) // MULTIPLE) * MULTIPLE, MANIFEST["max_length"])
    ids = np.full((len(rows), width), MANIFEST["pad_token_id"], np.int64)
    mask = np.zeros_like(ids)
    for row, tokens in enumerate(rows):
        ids[row, : len(tokens)], mask[row, : len(tokens)] = tokens, 1
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}


def answer(head: dict[str, Any], logits: Any) -> Any:
    """The label of a single_label head, or the labels of a multi_label head that reach their thresholds.

    A single_label head that abstains has the label None, and the score that is below its threshold.
    """
    scaled = np.asarray(logits, np.float64) / head["temperature"]
    labels = [*map(int, head["labels"])] if head.get("label_type") == "integer" else head["labels"]
    order = np.argsort(-scaled, kind="stable")
    if head["kind"] == "single_label":
        powers = np.exp(scaled - scaled.max())
        score = float(1 / powers.sum())
        rule = head.get("abstain") or {"score": "probability", "threshold": 0}
        judged = score if rule["score"] == "probability" else float(scaled.max() + np.log(powers.sum()))
        if judged < rule["threshold"]:
            return {"label": None, "score": judged}
        return {"label": labels[order[0]], "score": score}
    scores = 1 / (1 + np.exp(-scaled))
    thresholds = head["thresholds"] or [0.5] * len(scores)
    reached = [i for i in order if scores[i] >= thresholds[i] and thresholds[i] < 1]
    return [{"label": labels[i], "score": float(scores[i])} for i in reached]


def classify(texts: list[str], url: str) -> list[dict[str, Any]]:
    """The answers {head: answer} to each text; a request has at most MAX_BATCH texts."""
    if len(texts) > MAX_BATCH:
        return classify(texts[:MAX_BATCH], url) + classify(texts[MAX_BATCH:], url)
    model = f"{url.rstrip('/')}/v2/models/{MANIFEST['name']}"
    with urllib.request.urlopen(model) as response:
        names = {tensor["name"] for tensor in json.load(response)["inputs"]}
    inputs = [
        {"name": name, "datatype": "INT64", "shape": list(array.shape), "data": array.ravel().tolist()}
        for name, array in tokenise(texts).items()
        if name in names
    ]
    body = json.dumps({"inputs": inputs}).encode()
    request = urllib.request.Request(f"{model}/infer", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request) as response:
        outputs = {tensor["name"]: tensor for tensor in json.load(response)["outputs"]}
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
    for result in classify(options.text, options.url):
        json.dump(result, sys.stdout, ensure_ascii=False)
        print()
