"""A Ray of its own with a job server, in a process of its own: tests submit jobs to it.

    python tests/jobs/job_server.py FOLDER     prints the job server's address, ends with its stdin

FOLDER is Ray's, and its path short: Ray's sockets lie in it.
"""

from __future__ import annotations

import sys

from ray.cluster_utils import Cluster

CPUS = 3
"""Logical: an editing actor, reading, and one more."""


def main() -> None:
    """Entry point."""
    cluster = Cluster(
        initialize_head=True,
        head_node_args={
            "num_cpus": CPUS,
            "num_gpus": 0,
            "object_store_memory": 128 * 2**20,
            "include_dashboard": True,
            "dashboard_host": "127.0.0.1",
            "dashboard_port": 0,
            # The default is one number for all, and a job server without its agent takes no jobs.
            "dashboard_agent_listen_port": 0,
            "temp_dir": sys.argv[1],
        },
    )
    sys.stdout.write(f"http://{cluster.webui_url}\n")
    sys.stdout.flush()
    sys.stdin.read()
    cluster.shutdown()


if __name__ == "__main__":
    main()
