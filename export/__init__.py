"""The artefact: a bundle on disk and the classifier that serves it, without torch.

Importing this package needs numpy, onnxruntime and tokenizers. The workshop modules, which make a
bundle (to_onnx, quantize, parity), need the `train` extra and are imported by their full name.
"""

from export.bundle.manifest import BundleError
from export.runtime.classifier import Classifier

__all__ = ["BundleError", "Classifier"]
