"""`python -m jobs` is `fpe`, for machines that got the code without installing the command."""

from __future__ import annotations

from jobs.cli import main

if __name__ == "__main__":
    main()
