"""Readers of sources, one module a format. Every reader gives a `Source`."""
