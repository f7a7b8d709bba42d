"""The job file as pydantic models, a section per file, every field with its meaning."""
