"""What all tests share: devices, compiled programs, and what takes long to make."""

import gc
import json
import os
import pathlib
import signal
from collections.abc import Callable, Iterator

import filelock
import jax
import jaxlib.version
import pytest
from ml_collections import ConfigDict

import launch
import tiny
from tests.faults.faults import Trial, prepare, prepared
from tests.faults.runs import Lab

# Half of what XLA takes to compile for a CPU: one module for LLVM instead of 32, and
# the older of its two code generators while it has both. Processes that tests start
# inherit it.
QUICK_TO_COMPILE = "--xla_cpu_parallel_codegen_split_count=1"
if jaxlib.version.__version_info__ < (0, 11):
    QUICK_TO_COMPILE += " --xla_cpu_use_fusion_emitters=false"
FLAGS = os.environ.get("XLA_FLAGS", "")
if QUICK_TO_COMPILE not in FLAGS:  # a worker of pytest-xdist has inherited it
    os.environ["XLA_FLAGS"] = f"{FLAGS} {QUICK_TO_COMPILE}".strip()

# Two devices, so that every test of a step or a stage is a test of data parallelism.
jax.config.update("jax_num_cpu_devices", 2)
jax.config.update("jax_numpy_rank_promotion", "raise")
# Most of a test is compiling. Where programs are looked into they are as users' are.
jax.config.update("jax_disable_most_optimizations", True)

# A shell starts what it leaves in the background with SIGINT ignored, and children
# inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

KILLS = 2


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The modules with the longest tests first, and in each the longest first.

    pytest-xdist gives whole modules to its workers, in this order: at the end there are
    short ones left, and no worker is long at work when the other is done.
    """
    for item in items:
        if item.path.suffix == ".ipynb":
            item.add_marker("long")
    items.sort(key=_tier)


def pytest_collection_finish() -> None:
    """From here on, collects garbage seldom and not among modules.

    It took a tenth of all time: tracing makes many objects, and few that are cycles.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 10, 10)


def _tier(item: pytest.Item) -> int:
    """0 for the long, 1 for the slow, 2 for the quick."""
    tiers = ("long", "slow")
    return next((i for i, name in enumerate(tiers) if item.get_closest_marker(name)), 2)


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A folder of this run of the tests that all its workers see."""
    own = tmp_path_factory.getbasetemp()
    # A worker of pytest-xdist has a folder inside that of the run.
    root = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own
    folder = root / "shared"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session", autouse=True)
def compiled(shared: pathlib.Path) -> Iterator[pathlib.Path]:
    """Where compiled programs are kept, for all workers and the processes they start.

    Many tests start the same small run.
    """
    folder = shared / "compiled"
    settings = {
        "jax_compilation_cache_dir": str(folder),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            jax.config.update(name, value)
            patch.setenv(name.upper(), str(value))
        yield folder


@pytest.fixture(scope="module")
def optimized():
    """For long computations and for counts in programs: all that XLA can do."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture
def strict_dtypes():
    """For mathematics: a float64 or an int that slips in is an error."""
    with jax.numpy_dtype_promotion("strict"):
        yield


Make = Callable[[pathlib.Path], object]
Once = Callable[[str, Make], pathlib.Path]


@pytest.fixture(scope="session")
def once(shared: pathlib.Path) -> Iterator[Once]:
    """`once(name, make)`: a folder that one worker fills for all by `make(folder)`.

    It is for reading: a test that writes takes a copy, or the test after it would
    depend on it. At the end it is looked at whether all did.
    """
    contents = {}

    def once(name: str, make: Make) -> pathlib.Path:
        folder, listing = shared / name, shared / f"{name}.json"
        with filelock.FileLock(f"{folder}.lock"):
            if not listing.exists():
                folder.mkdir()
                make(folder)
                listing.write_text(json.dumps(_listing(folder)))
        contents[folder] = json.loads(listing.read_text())
        return folder

    yield once
    for folder, before in contents.items():
        assert _listing(folder) == before, f"a test has written in {folder}"


def _listing(folder: pathlib.Path) -> dict[str, list[int]]:
    """The size and the time of every file."""
    files = {path: path.stat() for path in folder.rglob("*") if path.is_file()}
    return {
        str(path.relative_to(folder)): [stat.st_size, stat.st_mtime_ns]
        for path, stat in sorted(files.items())
    }


@pytest.fixture(scope="session")
def project(once: Once) -> pathlib.Path:
    """A workdir with a base model and its students of 4, 2 and 1 steps; for reading."""
    return once("project", lambda workdir: _run(tiny.config, workdir))


@pytest.fixture(scope="session")
def small_project(once: Once) -> pathlib.Path:
    """The same of `tiny.small`."""
    return once("small_project", lambda workdir: _run(tiny.small, workdir))


def _run(config: Callable[[str], ConfigDict], workdir: pathlib.Path) -> None:
    for stage in ("train", "distill"):
        launch.launch(config(stage), workdir)


@pytest.fixture(scope="session")
def trial(once: Once, shared: pathlib.Path) -> Trial:
    """A small run of the command that nothing happened to, and a place for others."""
    folder = once("untouched", lambda folder: prepare(Lab(folder), KILLS))
    return prepared(Lab(shared / "lab"), folder, KILLS)
