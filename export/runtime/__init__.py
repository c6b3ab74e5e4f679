"""Classifies texts with a bundle: tokenizer, onnxruntime, answers. Torch-free."""

import os

# before onnxruntime is imported, whose wheels report their use and store an id in the home folder
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
