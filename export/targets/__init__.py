"""Exports bundles for other runtimes: transformers.js, Triton, text-embeddings-inference, raw strings."""
