"""`fpe report`: writes a run, or a comparison of two, as one HTML page."""
