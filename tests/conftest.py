"""What all tests share: one small local Ray, a tiny checkpoint, pictures."""

from __future__ import annotations

import io
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))  # `from tests...` works however pytest is started

# Read when Ray is imported: a dataset that hangs fails after this time instead of half an hour.
# An actor that loads torch on a busy machine makes no progress for longer than one would think.
os.environ.setdefault("RAY_DATA_EXECUTION_NO_PROGRESS_TIMEOUT_S", "120")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_metrics_report_interval_ms", "1000")  # 10 s, if nobody says
os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's 15 starves its workers beside other work
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Tests start hundreds of processes, and without bytecode each compiles our packages for a second.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
if "PYTEST_XDIST_WORKER" in os.environ:  # tests run side by side, and threads would wait for cores
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    # Actors with two CPUs have teams of two threads, which else burn a core at every barrier.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # so a shell starts what runs behind it
    signal.signal(signal.SIGINT, signal.default_int_handler)

import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402
from hypothesis import HealthCheck, settings  # noqa: E402
from PIL import Image  # noqa: E402

from tests.builders.tiny_checkpoint import SIZE_PX, build_tiny_checkpoint, write_defaults  # noqa: E402
from tests.faults.tables import pytest_sessionfinish, pytest_terminal_summary, pytest_testnodedown  # noqa: E402, F401
from tests.servers.forked_workers import forked_workers, worker_server  # noqa: E402
from tests.servers.s3_gate import gate, gate_process  # noqa: E402, F401
from tests.servers.s3_server import ENVIRONMENT, s3_process, s3_server  # noqa: E402, F401
from tests.servers.stores import store  # noqa: E402, F401

# Hypothesis without a clock: a busy machine makes no test fail, and every run tries the same.
settings.register_profile(
    "unhurried",
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
    database=None,
)
settings.load_profile("unhurried")


def pytest_configure(config: pytest.Config) -> None:
    """Tests are of the CPU, whatever the machine has, but for those that ask for a GPU.

    Without a GPU nothing is hidden: a Ray that may see none takes no pretended ones either.
    """
    if config.option.markexpr != "gpu" and torch.cuda.device_count():
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


LONG_FILES = (
    "golden/test_still_life_edits.py",
    "pipeline/run/test_driver.py",
    "jobs/bench/speed/test_command.py",
    "jobs/test_cli.py",
    "jobs/bench/speed/test_cells.py",
    "fpe_core/test_editor.py",
    "fpe_core/test_against_reference.py",
    "pipeline/cost/test_price.py",
    "jobs/terminal/test_bars.py",
    "pipeline/run/test_quota_run.py",
    "jobs/bench/scale/test_command.py",
)
"""Half a minute and more each. They come first, since a process that has no file left waits idly
for the one that has a long one."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The long files first; `--no-loadscope-reorder` keeps the order of files that results."""
    places = {ROOT / "tests" / name: place for place, name in enumerate(LONG_FILES)}
    items.sort(key=lambda item: places.get(item.path, len(places)))


RAY_CPUS = 3
"""Logical: two editing actors and one CPU for reading, on whatever machine the tests run."""


@pytest.fixture(scope="session")
def fork_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The process that Ray workers of tests are forked from, see `tests.servers.forked_workers`."""
    with worker_server(tmp_path_factory.mktemp("fork")):
        yield


@pytest.fixture(scope="session")
def ray_cluster(fork_server: None) -> Iterator[None]:
    """One local Ray for all ordinary tests; its workers know the test store's credentials."""
    import ray

    with pytest.MonkeyPatch.context() as environment, forked_workers():
        for name, value in ENVIRONMENT.items():
            environment.setenv(name, value)
        ray.init(
            address="local",
            num_cpus=RAY_CPUS,
            num_gpus=0,
            object_store_memory=256 * 2**20,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Stable Diffusion as a diffusers folder that recommends four steps at 64 px."""
    folder = build_tiny_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny")
    write_defaults(
        folder,
        steps=4,
        guidance_scale=3.0,
        layers={"max_tokens": 16},
        replaced_fraction=0.5,
        size_px=SIZE_PX,
    )
    return folder


@pytest.fixture(scope="session")
def picture() -> Callable[..., Image.Image]:
    """picture(number, width, height): a smooth RGB picture, another one for every number."""

    def draw(number: int = 0, width: int = SIZE_PX, height: int = SIZE_PX) -> Image.Image:
        y, x = np.mgrid[0:height, 0:width].astype(np.float64)
        x, y = x / width, y / height
        phase = 1.0 + number * 0.37
        bands = [np.sin(5 * x * phase), np.cos(4 * y + phase), np.sin(6 * (x - y) + phase)]
        return Image.fromarray((np.stack(bands, -1) * 127 + 128).clip(0, 255).astype(np.uint8))

    return draw


@pytest.fixture(scope="session")
def png() -> Callable[[Image.Image], bytes]:
    """png(image): its bytes."""

    def encode(image: Image.Image) -> bytes:
        sink = io.BytesIO()
        image.save(sink, "PNG")
        return sink.getvalue()

    return encode
