"""What is small enough to serve: sizes, encoders of that size, and how they start."""
