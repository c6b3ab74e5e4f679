"""Exports each head as a folder for text-embeddings-inference.

The server supports one output, named `logits`, and no calibration. So the graph is reduced to one head, and
its calibration temperature becomes part of the graph. The logits of each folder are compared with those of
the bundle.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from reprlib import repr as short
from typing import Any

import numpy as np
import onnx

from export.bundle.files import read_file
from export.bundle.manifest import PROBABILITY, TOKENIZER, Head, Manifest
from export.graph.gates import GateError
from export.runtime.postprocess import columns
from export.runtime.session import run_separately
from export.runtime.tokenizer import open_tokenizer
from export.targets.extract_head import extract_head
from export.targets.writer import TargetError, check_names, render, write_json

OUTPUT = "logits"
GRAPH = "onnx/model.onnx"  # the only name that the server loads
TOLERANCE = 1e-4  # of the largest logit of a text, or of 1 if that is larger
# keys of config.json that the server requires, and other names of them in transformers
SIZES = {"hidden_size": ("dim", "d_model", "n_embd"), "num_hidden_layers": ("n_layers", "n_layer")}
CLASSES = {"bert": "Bert", "distilbert": "DistilBert", "roberta": "Roberta", "mpnet": "MPNet"}
CLASSES |= {"xlm-roberta": "XLMRoberta", "electra": "Electra", "camembert": "Camembert", "albert": "Albert"}
PROBE = ["where is my parcel?", "Cancel it, thanks!", "a", "", "refund my order now, please. " * 30]


def write(bundle: Path, manifest: Manifest, variant: str, folder: Path) -> dict[str, Any]:
    """Write HEAD/{config.json, tokenizer.json, tokenizer_config.json, onnx/model.onnx} for every head.

    Returns:
        For each head, whether its last product was reduced (`narrowed`) and the largest difference of a
        logit.

    Raises:
        TargetError: A head's name cannot name a folder, or config.json lacks a required key.
        GateError: The logits differ from those of the bundle.
    """
    config = _config(bundle) | {"pad_token_id": manifest.pad_token_id}
    check_names("head", [head.name for head in manifest.heads])
    source = manifest.variants[variant]
    data = read_file(bundle, manifest, source)
    tokenizer = open_tokenizer(
        read_file(bundle, manifest, TOKENIZER), manifest.max_length, bundle / TOKENIZER
    )
    ids = [tokenizer.encode(text).ids for text in PROBE]
    reference, details = run_separately(data, bundle / source, manifest, ids), {}
    model = onnx.load_model_from_string(data)
    for head, part in zip(manifest.heads, columns(manifest.heads).values(), strict=True):
        target = folder / head.name
        (target / GRAPH).parent.mkdir(parents=True)
        graph, narrowed = extract_head(model, head.output, OUTPUT, 1 / head.temperature)
        onnx.checker.check_model(graph)
        onnx.save(graph, target / GRAPH)
        write_json(target / "config.json", {**config, **_labels(head)})
        write_json(target / "sentence_bert_config.json", {"max_seq_length": manifest.max_length})
        for file in (TOKENIZER, "tokenizer_config.json"):
            if (bundle / file).is_file():
                shutil.copyfile(bundle / file, target / file)
        (target / "README.md").write_text(_readme(manifest, head), encoding="utf-8")
        expected = reference[:, part] / head.temperature
        single = replace(manifest, heads=(replace(head, output=OUTPUT),))
        found = run_separately(graph.SerializeToString(), target / GRAPH, single, ids)
        differences = np.abs(expected - found).max(-1)
        for text, difference, logits in zip(PROBE, differences, expected, strict=True):
            if not difference <= TOLERANCE * max(1, np.abs(logits).max()):
                raise GateError(f"tei: head {head.name!r} differs by {difference:.1e} on {short(text)}")
        details[head.name] = {"narrowed": narrowed, "max_difference": float(differences.max())}
    return {"heads": details}


def _labels(head: Head) -> dict[str, Any]:
    """The labels and the kind of a head, as keys of config.json."""
    return {
        "id2label": {str(i): label for i, label in enumerate(head.labels)},
        "label2id": {label: i for i, label in enumerate(head.labels)},
        "problem_type": f"{head.kind}_classification",
    }


def _config(bundle: Path) -> dict[str, Any]:
    """The config.json of the bundle, with the keys that the server requires."""
    path = bundle / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TargetError(f"{path}: must be JSON: {error} (build the bundle again)") from error
    for name, aliases in SIZES.items():
        values = [config.pop(alias) for alias in aliases if alias in config]
        config.setdefault(name, *values[:1])
    missing = [name for name in (*SIZES, "model_type", "max_position_embeddings") if not config.get(name)]
    if missing:
        raise TargetError(f"{path}: has no {missing[0]}, which the server requires (build the bundle again)")
    kind = str(config["model_type"])
    family = CLASSES.get(kind, kind.replace("-", " ").title().replace(" ", ""))
    return {**config, "architectures": [f"{family}ForSequenceClassification"]}


def _readme(manifest: Manifest, head: Head) -> str:
    thresholds = dict(zip(head.labels, head.thresholds or (0.5,) * len(head.labels), strict=True))
    values = {
        "head": head.name,
        "bundle": manifest.name,
        "temperature": f"{head.temperature:g}",
        "max_length": manifest.max_length,
        "thresholds": json.dumps(thresholds, ensure_ascii=False),
        "abstain": _abstain(head),
    }
    return render("tei/README.md", **values) + render(f"tei/{head.kind}.md", **values)


def _abstain(head: Head) -> str:
    """What the README says of a head that abstains; the server answers every text."""
    if not (rule := head.abstain):
        return ""
    if rule.score == PROBABILITY:
        return f" The head abstains below a score of {rule.threshold:g}: discard\nthose answers."
    return (
        " The head abstains where the log of the sum of\nthe exponentials of the logits is below "
        f"{rule.threshold:g}: request `raw_scores`, and discard those answers."
    )
