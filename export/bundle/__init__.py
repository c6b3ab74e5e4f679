"""The files of a bundle. Torch-free."""
