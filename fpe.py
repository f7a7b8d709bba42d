"""The `fpe` command. It lies outside of the packages, so that it is found whatever has their names.

A folder on PYTHONPATH may have a `jobs` or a `pipeline` of its own, for example.
"""

from __future__ import annotations

import sys
from pathlib import Path


def main() -> None:
    """Runs `jobs.cli.main` of the folder that this file is in."""
    for name in [n for n in sys.modules if n.partition(".")[0] == "jobs"]:
        del sys.modules[name]
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    try:
        from jobs.own_packages import import_own_packages
    finally:
        del sys.path[0]
    import_own_packages()

    from jobs.cli import main as run

    run()


if __name__ == "__main__":
    main()
