"""`python -m jobs` is `fpe`, for machines that got the code without installing the command."""

from __future__ import annotations

import os
import sys

if __name__ == "__main__":
    if sys.path[0] == os.getcwd():  # noqa: PTH109 - `-m` puts it first; it may hold any modules
        sys.path.append(sys.path.pop(0))
    from jobs.own_packages import import_own_packages

    import_own_packages()

    from jobs.cli import main

    main()
