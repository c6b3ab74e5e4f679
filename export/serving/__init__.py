"""The server: bundles answered over HTTP, texts of concurrent requests in one call of the classifier.

Needs the `serve` extra; `export.serving.server` is the entrance.
"""
