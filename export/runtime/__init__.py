"""Loads a bundle and classifies texts. Torch-free."""
