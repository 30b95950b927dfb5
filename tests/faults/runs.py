"""Runs of the command as child processes, small enough to start a hundred of."""

import contextlib
import dataclasses
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence

ROOT = pathlib.Path(__file__).parents[2]

# The digits' config, shrunk. Saves are frequent, so that many kills fall into one.
TINY = {
    "model.unet.channels": 8,
    "model.unet.num_blocks": 1,
    "model.unet.emb_channels": 16,
    "model.unet.groups": 4,
    "model.unet.head_dim": 8,
    "data.held_out": 16,
    "train.steps": 120,
    "train.batch_size": 16,
    "train.warmup_steps": 0,
    "train.sample_steps": 2,
    "train.steps_per_call": 4,
    "train.checkpoint_every_steps": 20,
    "train.log_every_steps": 20,
    "train.eval_every_steps": 60,
    "train.sample_every_steps": 60,
    "distill.start_steps": 8,
    "distill.updates": "40",
    "distill.batch_size": 16,
    "distill.steps_per_call": 4,
    "distill.checkpoint_every_steps": 20,
    "distill.log_every_steps": 20,
    "distill.eval_every_steps": 40,
    "distill.sample_every_steps": 40,
}
PLACES = ("train", "distill/0004", "distill/0002", "distill/0001")


@dataclasses.dataclass
class Child:
    """A run that was started; its output goes to a file."""

    process: subprocess.Popen
    log: pathlib.Path

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Sends a signal to the run alone, as another process would."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.process.pid, number)

    def wait(self, seconds: float = 120.0) -> int:
        """Returns the exit status; minus the signal if one ended it."""
        return self.process.wait(seconds)

    def running(self) -> bool:
        """Whether it has not ended."""
        return self.process.poll() is None

    def said(self) -> str:
        """All that it printed."""
        return self.log.read_text(errors="replace")

    def wait_for(self, happened: Callable[[], bool], seconds: float = 120.0) -> bool:
        """Waits until something is seen, or the run ends; returns which."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if happened():
                return True
            if not self.running():
                return False
            time.sleep(0.002)
        raise TimeoutError(f"nothing happened; the run said: {self.said()[-2000:]}")


@dataclasses.dataclass(frozen=True)
class Lab:
    """Where runs are made.

    Attributes:
      folder: For logs, workdirs and, unless the environment names a place for them,
        compiled programs.
      devices: Virtual devices of a run.
    """

    folder: pathlib.Path
    devices: int = 2

    @contextlib.contextmanager
    def run(
        self, workdir: pathlib.Path, stage: str, *flags: str, wrap: Sequence[str] = ()
    ) -> Iterator[Child]:
        """Starts the command; at the end nothing of it is left.

        Args:
          workdir: Its --workdir.
          stage: "train" or "distill".
          *flags: More flags.
          wrap: A command that is given ours, such as ("prlimit", "--fsize=9").
        """
        settings = [f"--config.{field}={value}" for field, value in TINY.items()]
        command = [
            *wrap,
            sys.executable,
            str(ROOT / "launch.py"),
            f"--config={ROOT / 'configs' / 'digits.py'}:{stage}",
            f"--workdir={workdir}",
            *settings,
            *flags,
        ]
        environment = {
            # Most of a start is compiling; what is compiled is the same.
            "JAX_COMPILATION_CACHE_DIR": str(self.folder / "compiled"),
            **os.environ,
            "JAX_NUM_CPU_DEVICES": str(self.devices),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
            "PYTHONPATH": os.pathsep.join(
                filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))
            ),
        }
        self.folder.mkdir(parents=True, exist_ok=True)
        log = self.folder / f"{time.monotonic_ns()}.log"
        with log.open("w") as file:
            child = Child(
                subprocess.Popen(
                    command,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    env=environment,
                    cwd=self.folder,
                    start_new_session=True,
                ),
                log,
            )
        try:
            yield child
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.process.pid, signal.SIGKILL)
            child.process.wait()

    def finish(self, workdir: pathlib.Path, stage: str, *flags: str) -> Child:
        """Runs to the end.

        Raises:
          RuntimeError: If it does not end well.
        """
        with self.run(workdir, stage, *flags) as child:
            status = child.wait()
        if status:
            raise RuntimeError(f"status {status}: {child.said()[-2000:]}")
        return child


def results(workdir: pathlib.Path) -> dict[str, str]:
    """The params_sha256 of every finished run of a workdir."""
    return {
        place: json.loads((workdir / place / "result.json").read_text())[
            "params_sha256"
        ]
        for place in PLACES
        if (workdir / place / "result.json").exists()
    }


def steps(workdir: pathlib.Path, place: str) -> list[int]:
    """The steps that were logged, in the order of the file."""
    lines = (workdir / place / "metrics.jsonl").read_text().splitlines()
    return [line["step"] for line in map(json.loads, lines) if "loss" in line]


def free_address() -> str:
    """A port of this machine that nothing uses."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"
