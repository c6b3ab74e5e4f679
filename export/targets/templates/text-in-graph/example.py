"""Classify texts with model.onnx.

pip install onnxruntime onnxruntime-extensions numpy

python example.py "where is my parcel?"
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from onnxruntime_extensions import get_library_path

here = Path(__file__).parent
options = onnxruntime.SessionOptions()
options.register_custom_ops_library(get_library_path())
session = onnxruntime.InferenceSession(str(here / "model.onnx"), options, ["CPUExecutionProvider"])
heads = json.loads((here / "manifest.json").read_text(encoding="utf-8"))["heads"]

texts = sys.argv[1:] or ["where is my parcel?"]
names = [node.name for node in session.get_outputs()]
outputs = dict(zip(names, session.run(names, {"text": np.array(texts, object)}), strict=True))
for row, text in enumerate(texts):
    answer: dict[str, Any] = {"text": text}
    for head in heads:
        name, scores = head["name"], outputs[f"probabilities_{head['name']}"][row]
        if head["kind"] == "single_label":
            answer[name] = {"label": outputs[f"label_{name}"][row] or None, "score": float(scores.max())}
        else:
            order = np.argsort(-scores, kind="stable")
            applies = [i for i in order if outputs[f"applies_{name}"][row][i]]
            answer[name] = [{"label": head["labels"][i], "score": float(scores[i])} for i in applies]
    print(json.dumps(answer, ensure_ascii=False))
