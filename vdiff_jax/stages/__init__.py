"""The stages of a project: a module or a folder for each word of the command.

A stage is a value, `STAGE` in its module, that the command looks up and runs.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

from vdiff_jax.training.run import Run, Tools
from vdiff_jax.workdir.layout import Project


@dataclasses.dataclass(frozen=True)
class Stage:
    """One stage of a project.

    Attributes:
      name: The word behind the colon of --config.
      plan: A list of the steps of `run`, for --dry_run; starts nothing.
      run: Begins the stage, goes on with it, or sees that it is done.
      check: Raises ValueError for what the stage would refuse in other folders than
        the workdir; mistakes of a config alone are refused by `from_config.check`.
      claim: Records the config in the workdir, and refuses a workdir whose runs have
        another; a stage that trains has it.
      under_way: The run that the stage goes on with, or its last, with the tools of
        its loop; None for a stage that trains nothing.
      is_finished: True if nothing is left to do; a stage that trains has it.
    """

    name: str
    plan: Callable[[Project], list[dict[str, Any]]]
    run: Callable[[Project], None]
    check: Callable[[Project], None] = lambda project: None
    claim: Callable[[Project], None] = lambda project: None
    under_way: Callable[[Project], tuple[Tools, Run]] | None = None
    is_finished: Callable[[Project], bool] = lambda project: False
