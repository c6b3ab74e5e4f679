"""Settings of a recipe, compared on validation."""
