"""A large language model as a teacher, behind an OpenAI-compatible HTTP server."""
