"""Folders for text-embeddings-inference, one a head: it serves one output, and it is named `logits`.

The graph is cut to the head and its calibration temperature is folded in, since the server knows of
neither. What is written is compared with the bundle's own graph before it is kept.
"""

from __future__ import annotations

import json
import shutil
from importlib.resources import files
from pathlib import Path
from reprlib import repr as short
from typing import Any

import numpy as np
import onnx

from export.bundle.manifest import SINGLE_LABEL, TOKENIZER, Head, Manifest
from export.graph.gates import GateError
from export.runtime.session import open_graph, run_graph
from export.runtime.tokenizer import open_tokenizer
from export.targets.extract_head import extract_head
from export.targets.writer import TargetError, check_names

OUTPUT = "logits"
TOLERANCE = 1e-4
# transformers' own names for what the server asks for; it takes no model that lacks them
SIZES = {"hidden_size": ("dim", "d_model", "n_embd"), "num_hidden_layers": ("n_layers", "n_layer")}
CLASSES = {"bert": "Bert", "distilbert": "DistilBert", "roberta": "Roberta", "mpnet": "MPNet"}
CLASSES |= {"xlm-roberta": "XLMRoberta", "electra": "Electra", "camembert": "Camembert", "albert": "Albert"}
PROBE = ["where is my parcel?", "Cancel it, thanks!", "a", "", "refund my order now, please. " * 30]


def write(bundle: Path, manifest: Manifest, variant: str, folder: Path) -> dict[str, Any]:
    """Write HEAD/{config.json, tokenizer.json, tokenizer_config.json, onnx/model.onnx} for every head.

    Raises:
        TargetError: A head's name that cannot name a folder, or a config.json without what is needed.
        GateError: The cut graph's logits are not the bundle's.
    """
    settings = _settings(bundle)
    model = onnx.load(bundle / manifest.variants[variant])
    said: dict[str, Any] = {}
    check_names("head", [head.name for head in manifest.heads])
    for head in manifest.heads:
        place = folder / head.name
        (place / "onnx").mkdir(parents=True)
        graph, narrowed = extract_head(model, head.output, OUTPUT, 1 / head.temperature)
        onnx.checker.check_model(graph)
        onnx.save(graph, place / "onnx" / "model.onnx")  # the only name that the server looks for
        config = {**settings, **labels(head), "pad_token_id": manifest.pad_token_id}
        _write_json(place / "config.json", config)
        _write_json(place / "sentence_bert_config.json", {"max_seq_length": manifest.max_length})
        for file in (TOKENIZER, "tokenizer_config.json"):
            if (bundle / file).is_file():
                shutil.copyfile(bundle / file, place / file)
        said[head.name] = {"narrowed": narrowed}
    for name, gap in _gaps(bundle, manifest, variant, folder).items():
        said[name] |= {"max_difference": gap}
    for head in manifest.heads:
        (folder / head.name / "README.md").write_text(_readme(manifest, head), encoding="utf-8")
    return {"heads": said}


def labels(head: Head) -> dict[str, Any]:
    """What config.json says of a head: its labels in the order of the logits, and its kind."""
    return {
        "id2label": {str(i): label for i, label in enumerate(head.labels)},
        "label2id": {label: i for i, label in enumerate(head.labels)},
        "problem_type": f"{head.kind}_classification",
    }


def _settings(bundle: Path) -> dict[str, Any]:
    """The bundle's config.json, with the names that the server asks for."""
    path = bundle / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TargetError(f"{path}: must be JSON: {error} (build the bundle again)") from error
    for name, others in SIZES.items():
        found = [config.pop(other) for other in others if other in config]
        if name not in config and not found:
            raise TargetError(f"{path}: has no {name}, which the server asks for (build the bundle again)")
        config.setdefault(name, *found)
    kind = str(config.get("model_type", ""))
    if not kind or "max_position_embeddings" not in config:
        raise TargetError(
            f"{path}: must have model_type and max_position_embeddings (build the bundle again)"
        )
    family = CLASSES.get(kind, kind.replace("-", " ").title().replace(" ", ""))
    return {**config, "architectures": [f"{family}ForSequenceClassification"]}


def _gaps(bundle: Path, manifest: Manifest, variant: str, folder: Path) -> dict[str, float]:
    """The largest difference of a calibrated logit, a head, on texts of many lengths."""
    tokenizer, pad = open_tokenizer(bundle / TOKENIZER, manifest.max_length), manifest.pad_token_id
    whole = open_graph(bundle / manifest.variants[variant])
    inputs = [node.name for node in whole.get_inputs()]
    gaps: dict[str, float] = {}
    for head in manifest.heads:
        alone = open_graph(folder / head.name / "onnx" / "model.onnx")
        for text in PROBE:
            ids = [tokenizer.encode(text).ids]
            (expected,) = run_graph(whole, [head.output], inputs, ids, pad)
            (found,) = run_graph(alone, [OUTPUT], inputs, ids, pad)
            expected = expected / head.temperature
            gap = float(np.abs(expected - found).max())
            gaps[head.name] = max(gap, gaps.get(head.name, 0.0))
            if not gap <= TOLERANCE * max(1.0, float(np.abs(expected).max())):
                raise GateError(
                    f"tei: head {head.name!r} cut from the graph differs by {gap:.1e} on {short(text)}"
                )
    return gaps


def _readme(manifest: Manifest, head: Head) -> str:
    page = files("export.targets") / "templates" / "tei"
    note = "single_label.md" if head.kind == SINGLE_LABEL else "multi_label.md"
    thresholds = dict(zip(head.labels, head.thresholds or (0.5,) * len(head.labels), strict=True))
    text = (page / "README.md").read_text(encoding="utf-8") + (page / note).read_text(encoding="utf-8")
    return (
        text.replace("{{head}}", head.name)
        .replace("{{bundle}}", manifest.name)
        .replace("{{temperature}}", f"{head.temperature:g}")
        .replace("{{max_length}}", str(manifest.max_length))
        .replace("{{thresholds}}", json.dumps(thresholds, ensure_ascii=False))
    )


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
