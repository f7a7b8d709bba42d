"""`fpe report` as one HTML page: words, charts, templates."""
