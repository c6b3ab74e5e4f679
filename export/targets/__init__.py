"""A bundle as other readers want it: transformers.js, Triton, text-embeddings-inference, raw strings."""
