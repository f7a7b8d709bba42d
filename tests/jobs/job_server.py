"""A Ray of its own with a job server, in a process of its own: tests submit jobs to it.

    python tests/jobs/job_server.py FOLDER     prints the job server's address, ends with its stdin

FOLDER is Ray's, and its path short: Ray's sockets lie in it.
"""

from __future__ import annotations

import logging
import sys

import ray

CPUS = 3
"""Logical: an editing actor, reading, and one more."""


def main() -> None:
    """Entry point."""
    context = ray.init(
        address="local",
        num_cpus=CPUS,
        num_gpus=0,
        object_store_memory=128 * 2**20,
        include_dashboard=True,
        dashboard_host="127.0.0.1",
        dashboard_port=0,
        log_to_driver=False,
        logging_level=logging.ERROR,
        _temp_dir=sys.argv[1],
    )
    sys.stdout.write(f"http://{context.dashboard_url}\n")
    sys.stdout.flush()
    sys.stdin.read()
    ray.shutdown()


if __name__ == "__main__":
    main()
