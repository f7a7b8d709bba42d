"""`python -m fpe_core.still_life.train`: see `fpe_core/still_life/train/model.py`."""

from fpe_core.still_life.train.model import main

main()
