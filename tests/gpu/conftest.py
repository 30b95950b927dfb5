"""Tests on a GPU: run by `make gpu`, without the CPU devices that other tests make."""

import functools
import subprocess
import sys

import pytest


@functools.cache
def _gpus() -> int:
    """The GPUs that a new process sees; this one must not take their memory."""
    script = "import jax; print(sum(d.platform == 'gpu' for d in jax.devices()))"
    shown = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    return int(shown.stdout or 0)


def pytest_runtest_setup() -> None:
    """Nothing here says anything about another platform."""
    if not _gpus():
        pytest.skip("no GPU that JAX can use")
