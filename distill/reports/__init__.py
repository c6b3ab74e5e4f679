"""Pages and cards made of stage records."""
