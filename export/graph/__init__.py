"""From a network to ONNX, int8, and the gates that compare them."""
