"""Every setting of a job, and how a recipe is read."""
