"""Reads and writes the files of a bundle. Torch-free."""
