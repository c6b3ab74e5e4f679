"""Many runs of one recipe: candidates compared, settings swept."""
