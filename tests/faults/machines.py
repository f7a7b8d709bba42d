"""Which machine of a cluster made how much."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

from ray._private.state import actors

from pipeline.job.job import Job


def edits_by_machine(job: Job) -> Counter[str]:
    """From who made what, and where Ray remembers each actor's last process to have been.

    By Ray's ids of the machines. What an actor made before it moved to another machine is not in.
    """
    stats = json.loads(Path(job.output, "stats.json").read_bytes())
    made = {int(name.rpartition(":")[2]): n for name, n in stats["edits_by_worker"].items()}
    found: Counter[str] = Counter()
    for actor in actors().values():
        if "RayEditActor" in str(actor["ActorClassName"]) and actor["Pid"] in made:
            found[actor["Address"]["NodeID"]] += made[actor["Pid"]]
    return found
