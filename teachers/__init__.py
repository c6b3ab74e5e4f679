"""Teachers: their protocol, encoders by name, and soft labels on disk."""
