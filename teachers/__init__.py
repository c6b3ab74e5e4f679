"""What is worth imitating: encoders by name, and the soft labels they write."""
