import os
import signal
import subprocess
import sys
import threading

import pytest

from vdiff_jax.training.interrupts import Interrupts

SCRIPT = """
import os, signal, sys, time
from vdiff_jax.training.interrupts import Interrupts
with Interrupts() as interrupts:
    for number in sys.argv[1:]:
        os.kill(os.getpid(), int(number))
    time.sleep(0.1)
    sys.exit(interrupts.signal)
"""


def _run(*numbers):
    return subprocess.run(
        [sys.executable, "-c", SCRIPT, *map(str, map(int, numbers))],
        capture_output=True,
        text=True,
    )


def test_the_first_signal_is_noted_and_the_second_ends_the_process():
    done = _run(signal.SIGTERM)
    assert done.returncode == signal.SIGTERM
    assert "SIGTERM: saves after the updates under way" in done.stderr
    assert _run(signal.SIGINT, signal.SIGTERM).returncode == 128 + signal.SIGTERM
    assert _run(signal.SIGTERM, signal.SIGINT).returncode == 128 + signal.SIGINT


def test_a_signal_is_noted_though_nobody_reads_what_is_said_of_it():
    """As under `2>&1 | tee log`: the same Ctrl-C ends tee."""
    reader, writer = os.pipe()
    os.close(reader)
    script = [sys.executable, "-c", SCRIPT, str(int(signal.SIGINT))]
    done = subprocess.run(script, stderr=writer)
    os.close(writer)
    assert done.returncode == signal.SIGINT


def test_signals_are_given_back():
    before = signal.getsignal(signal.SIGINT)
    with Interrupts() as interrupts:
        os.kill(os.getpid(), signal.SIGINT)
        assert interrupts.signal == signal.SIGINT
        interrupts.answered = True
    assert signal.getsignal(signal.SIGINT) == before


def test_another_thread_leaves_signals_alone():
    before = signal.getsignal(signal.SIGTERM)

    def work():
        with Interrupts():
            assert signal.getsignal(signal.SIGTERM) == before

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_signal_that_came_too_late_for_the_run_is_passed_on():
    with pytest.raises(KeyboardInterrupt), Interrupts():
        os.kill(os.getpid(), signal.SIGINT)
    # An error says more than that somebody wanted it to end.
    with pytest.raises(OSError, match="disk"), Interrupts():  # noqa: PT012
        os.kill(os.getpid(), signal.SIGINT)
        raise OSError("disk")


ENDED = """
import os, signal, sys, pathlib
from vdiff_jax.files.atomic import replacing
from vdiff_jax.training.interrupts import end_at_once
assert not {"jax", "numpy", "tqdm"} & set(sys.modules), "it comes first"
end_at_once()
folder = pathlib.Path(sys.argv[1])
with replacing(folder / "file") as half, replacing(folder / "new") as new:
    half.write_text("half")
    new.mkdir()
    try:
        os.kill(os.getpid(), int(sys.argv[2]))
    except BaseException:
        pass
print("it went on")
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_outside_of_a_run_a_signal_ends_the_command_at_once(tmp_path, number):
    (tmp_path / "file").write_text("old")
    done = subprocess.run(
        [sys.executable, "-c", ENDED, str(tmp_path), str(int(number))],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 128 + number
    assert not done.stdout
    name = signal.Signals(number).name
    line = f"launch.py: interrupted by {name}; the same command resumes.\n"
    assert done.stderr == line
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "file": "old"
    }
