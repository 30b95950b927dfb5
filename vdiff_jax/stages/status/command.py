"""The command `--status`, which imports little and is ready at once."""

import sys
from collections.abc import Sequence

from vdiff_jax.command import manual
from vdiff_jax.command.parse import parse
from vdiff_jax.files.fingerprints import DamagedError
from vdiff_jax.stages.status import page
from vdiff_jax.stages.status.look import look


def main(argv: Sequence[str]) -> int:
    """Prints the status of the project that a command names; returns the exit status.

    Args:
      argv: The words of the command, the first being the name of the program.
    """
    try:
        help_page = manual.page(argv[1:])
        print(help_page or page.text(look(parse(argv))), end="")
        return 0
    except (ValueError, DamagedError, OSError) as error:
        if "--traceback" in argv:
            raise
        print(f"launch.py: {' '.join(str(error).split())}", file=sys.stderr)
        return 2 if isinstance(error, ValueError) else 1
