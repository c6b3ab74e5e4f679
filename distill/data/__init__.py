"""Files in, checked and split texts out, on disk."""
