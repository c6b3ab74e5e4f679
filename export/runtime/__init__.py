"""A bundle loaded and asked, torch-free."""
