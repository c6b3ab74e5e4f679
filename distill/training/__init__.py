"""The only training loop, its losses, and what a training keeps."""
