"""What the command says, and its exit status, for every way in which a run may end."""

import pathlib
import subprocess
import sys

import jax
import pytest

import launch
from vdiff_jax.datasets.loader import LoaderError
from vdiff_jax.files.fingerprints import DamagedError
from vdiff_jax.training.interrupts import InterruptedRunError
from vdiff_jax.training.loop import NonFiniteError


@pytest.fixture
def end(monkeypatch, tmp_path, capsys):
    """Runs the command, which ends with an error; returns status and last words."""

    def run(error):
        def fail(*arguments, **options):
            raise error

        monkeypatch.setattr(launch, "launch", fail)
        status = launch.main(
            ["launch.py", "--config=configs/digits.py", f"--workdir={tmp_path}"]
        )
        return status, capsys.readouterr().err

    return run


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ValueError("wrong"), 2),
        (NonFiniteError("not a number"), 1),
        (DamagedError("damaged"), 1),
        (LoaderError("lost"), 1),
        (OSError(28, "No space left on device", "a/file"), 1),
        (InterruptedRunError(2, "ended by SIGINT"), 130),
        (InterruptedRunError(15, "ended by SIGTERM"), 143),
        (KeyboardInterrupt(), 130),
    ],
)
def test_every_end_has_its_status_and_one_line(end, error, status):
    found, said = end(error)
    assert found == status
    assert said.startswith("launch.py: ")
    assert said.count("\n") == 1
    if isinstance(error, OSError):
        assert "No space left on device: 'a/file'" in said


def test_a_device_out_of_memory_is_told_what_helps(end):
    status, said = end(jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: 9 GiB\nmore"))
    assert status == 1
    assert "parallel.remat, grad_accum_steps or parallel.fsdp help" in said
    assert "9 GiB more" in said


def test_what_nobody_foresaw_shows_where_it_was(end):
    with pytest.raises(jax.errors.JaxRuntimeError):
        end(jax.errors.JaxRuntimeError("INTERNAL"))
    with pytest.raises(ZeroDivisionError):
        end(ZeroDivisionError())


@pytest.mark.parametrize("flag", ["--num_processes=2", "--process_id=0"])
def test_hosts_that_are_only_half_named_are_refused(flag, capsys):
    assert launch.main(["launch.py", "--config=configs/digits.py", flag]) == 2
    assert "need --coordinator" in capsys.readouterr().err


def test_the_command_imports_nothing_slow_before_it_is_used():
    """They would take seconds of every --help, and of runs that need them not."""
    slow = {"torch", "matplotlib", "tensorflow", "tensorflow_datasets", "wandb"}
    program = f"import launch, sys; assert not {slow} & set(sys.modules)"
    root = pathlib.Path(launch.__file__).parent
    subprocess.run([sys.executable, "-c", program], check=True, cwd=root)
