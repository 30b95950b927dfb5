import os
import signal
import subprocess
import sys
import threading

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


def test_signals_are_given_back():
    before = signal.getsignal(signal.SIGINT)
    with Interrupts() as interrupts:
        os.kill(os.getpid(), signal.SIGINT)
        assert interrupts.signal == signal.SIGINT
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
