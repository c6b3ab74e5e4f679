"""Reports of runs, and model cards of bundles."""
