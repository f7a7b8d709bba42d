"""`python -m jobs` is `fpe`: for where the program was sent along and no command was installed."""

from __future__ import annotations

from jobs.cli import main

if __name__ == "__main__":
    main()
