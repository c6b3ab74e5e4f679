"""HTTP server for bundles: `/predict`, typed questions, open inference protocol v2, Prometheus metrics.

Requires the `serve` extra. `export.serving.server.serve` starts it.
"""
