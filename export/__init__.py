"""Bundles, and the classifier that serves them without torch.

Importing this package needs numpy, onnxruntime and tokenizers. Modules that create bundles (`export.graph`)
need the `train` extra and are imported by their full names.
"""

from export.bundle.manifest import BundleError
from export.runtime.classifier import Classifier

__all__ = ["BundleError", "Classifier"]
