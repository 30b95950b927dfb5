"""Our commands, as a user gives them, for benchmarks of whole runs."""

import pathlib
import shlex
import subprocess
import sys
import time
from typing import Any


def launch(config: str, workdir: pathlib.Path, fields: dict[str, Any]) -> None:
    """Runs our command; a stage that is finished is not run again.

    Args:
      config: The name of a config and, behind a colon, its stage.
      workdir: The folder of the project.
      fields: Fields of the config, by their paths.
    """
    # In double quotes, so that what is printed needs single ones alone.
    flags = [
        f"--config.{path}={value}".replace("'", '"') for path, value in fields.items()
    ]
    run("launch.py", f"--config={config}", f"--workdir={workdir}", *flags)


def run(*arguments: object) -> None:
    """Runs Python, and prints what and how long; ends as it does if it fails.

    Args:
      *arguments: Those of Python.
    """
    command = [sys.executable, *map(str, arguments)]
    print("$", shlex.join(["python", *command[1:]]), flush=True)
    start = time.perf_counter()
    # Where it fails it has said why.
    if code := subprocess.run(command, check=False).returncode:
        sys.exit(code)
    print(f"  {time.perf_counter() - start:.0f} s", flush=True)
