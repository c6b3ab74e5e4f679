"""Creates ONNX graphs from trained networks. Needs the `train` extra."""
