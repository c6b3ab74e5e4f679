"""Networks that classify texts, and the only inference loop."""
