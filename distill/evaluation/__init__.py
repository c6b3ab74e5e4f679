"""Metrics, calibration, and a bundle measured on labelled data."""
