"""Recipes, data, networks, the training loop, and the stages of a run."""
