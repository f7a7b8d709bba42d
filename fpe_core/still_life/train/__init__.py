"""How the built-in model and scorer are trained: `python -m fpe_core.still_life.train`."""
