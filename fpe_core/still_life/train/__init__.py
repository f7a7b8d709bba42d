"""How the built-in model and scorer were made: `python -m fpe_core.still_life.train`."""
