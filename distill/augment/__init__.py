"""Augmented texts for the teacher to label."""
