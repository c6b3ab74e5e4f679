"""HTTP server for bundles: `/predict`, the open inference protocol v2 and Prometheus metrics.

Requires the `serve` extra. `export.serving.server.serve` starts it.
"""
