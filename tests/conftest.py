import pathlib

import jax
import pytest

import launch
import tiny
from tests.faults.faults import Trial, prepare
from tests.faults.runs import Lab

# Two devices, so that every test of a step or a stage is a test of data parallelism.
jax.config.update("jax_num_cpu_devices", 2)
jax.config.update("jax_numpy_rank_promotion", "raise")
# Most of a test is compiling. Where programs are looked into they are as users' are.
jax.config.update("jax_disable_most_optimizations", True)


def pytest_collection_modifyitems(items):
    """Slow tests first, so that no worker is left with one when the rest are done."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.fixture(scope="session", autouse=True)
def compiled(tmp_path_factory) -> pathlib.Path:
    """Where compiled programs are kept: many tests start the same small run."""
    folder = tmp_path_factory.mktemp("compiled")
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    return folder


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


@pytest.fixture(scope="session")
def project(tmp_path_factory) -> pathlib.Path:
    """A workdir with a base model and its students of 4, 2 and 1 steps."""
    workdir = tmp_path_factory.mktemp("project")
    launch.launch(tiny.config("train"), workdir)
    launch.launch(tiny.config("distill"), workdir)
    return workdir


@pytest.fixture(scope="session")
def trial(tmp_path_factory) -> Trial:
    """A small run of the command that nothing happened to, and a place for others."""
    return prepare(Lab(tmp_path_factory.mktemp("lab")), tries=2)
