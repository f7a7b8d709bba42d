"""The job file as pydantic models: one module per section, and a description of every key."""
