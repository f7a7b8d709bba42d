"""Ray's own share of a start, as JSON: `python -m jobs.bench.startup_ray`."""

from __future__ import annotations

import json
import time
from typing import Any


def main() -> None:
    """Imports Ray, starts it as a run does, starts an empty actor, ends it."""
    seconds: dict[str, float] = {}
    last = time.monotonic()

    def done(what: str) -> None:
        nonlocal last
        seconds[what], last = time.monotonic() - last, time.monotonic()

    import ray

    done("import ray")
    import ray.data

    done("import ray.data")
    from pipeline.cluster.session import ray_session

    with ray_session(None):
        done("start")
        empty: Any = ray.remote(num_cpus=0)(_Empty)
        kept = []
        for which in ("first actor", "second actor", "third actor"):
            kept.append(empty.remote())  # each in a process of its own
            ray.get(kept[-1].answer.remote())
            done(which)
    done("end")
    print(json.dumps(seconds))  # noqa: T201


class _Empty:
    def answer(self) -> None:
        """Nothing, as soon as it is there."""


if __name__ == "__main__":
    main()
