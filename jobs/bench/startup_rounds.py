"""Runs of one edit, watched from outside: when each step is seen, and what all processes cost.

What can be seen of a run is the same for every version of this program: a log line, the processes
that Ray starts, files of the run folder. So an older installation can be measured in turns with
this one.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import logging
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping

import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import ResourceError
from pipeline.ledger.ledger import LEDGER_FOLDER
from pipeline.ledger.parts import METADATA_FILE, PART_PREFIX
from pipeline.run.stats import STATS_FILE

FIGURES = {
    "ray_s": "Ray's raylet is there",
    "asked_s": "workers asked for",
    "worker_s": "editing worker is there",
    "loaded_s": "model loaded",
    "committed_s": "first edit committed",
    "end_s": "end of the run",
    "cpu_s": "  CPU seconds of all its processes",
    "again_s": "a second run, with nothing to do",
    "again_cpu_s": "  its CPU seconds",
}
_log = logging.getLogger(__name__)

_POLL_INTERVAL_S = 0.05
_MOST_S = 600.0
_LAST_PROCESS_S = 30.0
"""For a run's last process to end: workers notice some time later that their Ray is gone."""
_QUOTED_CHARS = 2000
_ASKED = "working with"
_WORKER = "RayEditActor"
_RAYLET = "/raylet/raylet"
_IMPORT_LINE = re.compile(r"import time:\s+(\d+) \|\s+\d+ \|\s+(\S+)")


@dataclasses.dataclass(frozen=True)
class Startup:
    """One run, and a second one of the same job. Seconds from the start of the command; None: not
    seen. `cpu_s` and `again_cpu_s` add up the CPU seconds of all processes, Ray's included."""

    ray_s: float | None
    asked_s: float | None
    worker_s: float | None
    loaded_s: float | None
    committed_s: float
    end_s: float
    cpu_s: float
    again_s: float
    again_cpu_s: float

    def to_dict(self) -> dict[str, float | None]:
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True)
class Imports:
    """Seconds by package, the longest first. Timing them makes imports slower."""

    of: str
    seconds: dict[str, float]

    @property
    def total_s(self) -> float:
        return sum(self.seconds.values())


@dataclasses.dataclass(frozen=True)
class Installation:
    """How an `fpe` is started. `is_other`: not with the code that this one runs."""

    arguments: tuple[str, ...]
    is_other: bool = False

    @classmethod
    def of(cls, command: str) -> Installation:
        """Another Python's, or what a command line starts.

        Raises ResourceError where there is no such program.
        """
        name, *others = shlex.split(command) or [""]
        program = shutil.which(name)
        if program is None:
            raise ResourceError(f"--against {command}: there is no such program")
        if not others and "python" in pathlib.Path(program).name:
            others = ["-m", "jobs"]
        # Not resolved: the python of a virtual environment is a link.
        return cls((str(pathlib.Path(program).absolute()), *others), is_other=True)

    def environment(self) -> dict[str, str]:
        """Ray gives its workers way to all other work, and then a busy machine is what is
        measured."""
        mine = {name for name in ("PYTHONPATH",) if self.is_other}
        of_user = {name: value for name, value in os.environ.items() if name not in mine}
        return {"RAY_worker_niceness": "0", **of_user}


HERE = Installation((sys.executable, "-m", "jobs"))


def measure_startup(
    commands: Mapping[str, Installation], *, rounds: int, checkpoint: str
) -> dict[str, list[Startup]]:
    """Every command, round by round and in turns. The first round, which writes byte code and
    fills the machine's caches, does not count.

    Raises ResourceError where a run fails.
    """
    measured: dict[str, list[Startup]] = {name: [] for name in commands}
    with tempfile.TemporaryDirectory(prefix="fpe-startup-") as scratch:
        folder = pathlib.Path(scratch)
        _write_job(folder, checkpoint)
        for number in range(rounds + 1):
            for name, command in commands.items():
                found = _measure_one(command, folder, f"{name}-{number}")
                measured[name].append(found)
                which = f"round {number} of {rounds}" if number else "to warm up"
                _log.info("%s, %s: first edit after %.1f s", which, name, found.committed_s)
    return {name: runs[1:] for name, runs in measured.items()}


def _write_job(folder: pathlib.Path, checkpoint: str) -> None:
    from jobs.demo_scenes import write_scenes

    manifest = write_scenes(folder, 1).manifest
    (row,) = pq.read_table(manifest).to_pylist()
    only = {
        "image": [row["image"]],
        "source_prompt": [row["source_prompt"]],
        "target_prompt": [row["target_prompt"][0]],
    }
    pq.write_table(pa.table(only), folder / "one.parquet")
    # JSON is YAML.
    job = {
        "manifest": str(folder / "one.parquet"),
        "output": str(folder / "out"),
        "model": {"checkpoint": checkpoint, "device": "cpu"},
    }
    (folder / "job.yaml").write_text(json.dumps(job), encoding="utf-8")


def _measure_one(command: Installation, folder: pathlib.Path, name: str) -> Startup:
    output = folder / name
    first = _Watched(command, folder, output)
    first.watch()
    again = _Watched(command, folder, output)
    again.watch()
    committed = first.seen.get("committed")
    if committed is None:
        raise ResourceError(f"{shlex.join(command.arguments)} committed no edit")
    return Startup(
        ray_s=first.seen.get("ray"),
        asked_s=first.seen.get("asked"),
        worker_s=first.seen.get("worker"),
        loaded_s=_loaded(first.seen.get("edited"), output),
        committed_s=committed,
        end_s=first.end_s,
        cpu_s=first.cpu_s,
        again_s=again.end_s,
        again_cpu_s=again.cpu_s,
    )


def _loaded(edited: float | None, output: pathlib.Path) -> float | None:
    """When the worker began the block: what its edits took before they were there."""
    stats = json.loads((output / STATS_FILE).read_text(encoding="utf-8"))["last_run"]
    stages = stats.get("stages", stats.get("stations", {}))
    took = stages.get("edit", {}).get("block_seconds")
    return None if edited is None or took is None else edited - took


class _Watched:
    """A command from its start to the end of its last process."""

    def __init__(self, command: Installation, folder: pathlib.Path, output: pathlib.Path) -> None:
        """`folder` has the job, `output` is its run folder."""
        self._arguments = [*command.arguments, "run", str(folder / "job.yaml"), f"output={output}"]
        self._environment = command.environment()
        # `python -m` looks into its working directory first, and the other's code is not in ours.
        self._working_directory = folder if command.is_other else None
        self._output = output
        self.seen: dict[str, float] = {}
        self.end_s = 0.0
        self._processes: dict[int, psutil.Process] = {}
        self._cpu: dict[int, float] = {}

    @property
    def cpu_s(self) -> float:
        """Of all processes, each until it was last looked at."""
        return sum(self._cpu.values())

    def watch(self) -> None:
        """Raises ResourceError where the command fails or takes ten minutes."""
        with tempfile.TemporaryFile("w+") as log:
            began = time.monotonic()
            child = subprocess.Popen(  # noqa: S603 - a command that the user gave
                self._arguments,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self._environment,
                cwd=self._working_directory,
                start_new_session=True,  # signals to its group, whoever sends them, are not for us
            )
            me = psutil.Process(child.pid)
            self._processes[child.pid] = me
            try:
                while child.poll() is None and time.monotonic() - began < _MOST_S:
                    self._look(me, time.monotonic() - began, log.fileno())
                    time.sleep(_POLL_INTERVAL_S)
            finally:
                child.kill()
                child.wait()
            self.end_s = time.monotonic() - began
            self._look(None, self.end_s, log.fileno())
            if child.returncode:
                said = _text(log.fileno())[-_QUOTED_CHARS:]
                raise ResourceError(f"{shlex.join(self._arguments)} failed: {said}")
        until = time.monotonic() + _LAST_PROCESS_S
        while self._count_cpu() and time.monotonic() < until:
            time.sleep(_POLL_INTERVAL_S)

    def _look(self, me: psutil.Process | None, now: float, log: int) -> None:
        if "asked" not in self.seen and _ASKED in _text(log):
            self.seen["asked"] = now
        if "committed" not in self.seen and any((self._output / LEDGER_FOLDER).glob("*")):
            self.seen["committed"] = now
        if "edited" not in self.seen and any(
            self._output.glob(f"{PART_PREFIX}*/**/{METADATA_FILE}")
        ):
            self.seen["edited"] = now
        if me is not None:
            for process in _children(me):
                self._processes.setdefault(process.pid, process)
        self._count_cpu()
        for process in self._processes.values():
            title = _title(process) if {"ray", "worker"} - self.seen.keys() else ""
            if _RAYLET in title:
                self.seen.setdefault("ray", now)
            if _WORKER in title:
                self.seen.setdefault("worker", now)

    def _count_cpu(self) -> int:
        """Notes what each process has had; returns how many there are still."""
        alive = 0
        for pid, process in self._processes.items():
            try:
                if process.status() != psutil.STATUS_ZOMBIE:
                    times = process.cpu_times()
                    self._cpu[pid] = times.user + times.system
                    alive += 1
            except psutil.Error:
                continue
        return alive


def _children(process: psutil.Process) -> list[psutil.Process]:
    try:
        return list(process.children(recursive=True))
    except psutil.Error:
        return []


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def _text(log: int) -> str:
    return os.pread(log, os.fstat(log).st_size, 0).decode(errors="replace")


def measure_imports(checkpoint: str) -> list[Imports]:
    """What a run without work imports, and what an editing worker does until its model is there."""
    driver = "pipeline.job.file, jobs.terminal.progress, jobs.terminal.tables, pipeline.run.driver"
    load = f"fpe_core.load_checkpoint({checkpoint!r}, device='cpu')"
    return [
        _imports("a run that finds nothing to do", f"import {driver}"),
        _imports("a driver", "import pipeline.cluster.graph"),
        _imports("an editing worker", f"import pipeline.edit.actor, fpe_core; {load}"),
    ]


def _imports(of: str, code: str) -> Imports:
    ended = subprocess.run(  # noqa: S603 - our own
        [sys.executable, "-X", "importtime", "-c", code],
        capture_output=True,
        text=True,
        check=True,
    )
    seconds: collections.Counter[str] = collections.Counter()
    for own_us, module in _IMPORT_LINE.findall(ended.stderr):
        seconds[module.partition(".")[0]] += int(own_us)
    return Imports(of, {name: own_us / 1e6 for name, own_us in seconds.most_common()})


def measure_ray() -> dict[str, float]:
    """Seconds that Ray takes by itself, in a process of its own: see `startup_ray`."""
    ended = subprocess.run(
        [sys.executable, "-m", "jobs.bench.startup_ray"],
        stdout=subprocess.PIPE,
        check=False,
        text=True,
    )
    if ended.returncode:
        raise ResourceError(f"Ray alone ended with code {ended.returncode}")
    seconds: dict[str, float] = json.loads(ended.stdout.splitlines()[-1])
    return seconds
