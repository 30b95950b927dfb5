r"""The one command: runs the stages that a config describes.

    python launch.py --config configs/digits.py
    python launch.py --config configs/cifar10.py:train --workdir runs/cifar10

The word behind the colon selects one stage. The same command resumes. Any field of the
config can be set: --config.train.batch_size=64. --dry_run only prints the plan,
--profile 20 traces 20 updates, --replay 1234 looks for the origin of a NaN in update
1234, and --distributed joins the hosts of a cluster (docs/scaling.md).

Exit status: 0 done; 1 stopped by trouble that is named; 2 a mistake in the command, the
config or the workdir; 130 and 143 ended by SIGINT and SIGTERM, everything saved.
"""

import contextlib
import json
import os
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

from vdiff_jax.training import interrupts

if __name__ == "__main__":
    interrupts.end_at_once()  # in the seconds that the next lines take as well

import jax
from absl import flags
from ml_collections import ConfigDict, config_flags

from vdiff_jax import parallel
from vdiff_jax.datasets.loader import LoaderError
from vdiff_jax.files.fingerprints import DamagedError
from vdiff_jax.from_config.check import check, check_fields, check_files
from vdiff_jax.from_config.choices import as_json, section_of
from vdiff_jax.from_config.fields import TRAINING
from vdiff_jax.from_config.model import has_guide, make_model
from vdiff_jax.from_config.moved import spelled
from vdiff_jax.stages import Stage, distill, export, guide, import_model, replay, train
from vdiff_jax.stages.evaluate import stage as evaluate
from vdiff_jax.stages.sample import images as sample
from vdiff_jax.training.interrupts import InterruptedRunError
from vdiff_jax.training.loop import NonFiniteError
from vdiff_jax.workdir import imported
from vdiff_jax.workdir.layout import Project, lock

STAGES = {
    module.STAGE.name: module.STAGE
    for module in (train, guide, distill, sample, evaluate, export, import_model)
}


def _words(argv: Sequence[str]) -> list[str]:
    """The words of the command that the flags know; all of it, if it is wrong."""
    try:
        return spelled(argv).words
    except ValueError:  # raised again in `main`, which reports it
        return list(argv)


FLAGS = flags.FLAGS
CONFIG = config_flags.DEFINE_config_file(
    "config", help_string="A file of configs/.", sys_argv=_words(sys.argv)
)
WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder of the project; by default runs/<name of the config>."
)
DRY_RUN = flags.DEFINE_bool("dry_run", False, "Print what would be done, as JSON.")
PROFILE = flags.DEFINE_integer("profile", 0, "Trace so many updates, to profile/.")
REPLAY = flags.DEFINE_integer("replay", None, "Find where this update went wrong.")
TRACEBACK = flags.DEFINE_bool("traceback", False, "Show the code that refused.")
DISTRIBUTED = flags.DEFINE_bool(
    "distributed", False, "Join the other hosts of the cluster."
)
COORDINATOR = flags.DEFINE_string("coordinator", None, "host:port of process 0.")
NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "With --coordinator.")
PROCESS_ID = flags.DEFINE_integer("process_id", None, "With --coordinator, from 0.")

# Trouble on the way, that another start of the same command may outlive.
TROUBLE = (DamagedError, LoaderError, NonFiniteError, OSError)


def main(argv: Sequence[str]) -> int:
    """Runs; returns the exit status."""
    try:
        config, workdir = _parse(argv)
        _join()
        if not _joined():
            parallel.use_cores(_batch_sizes(config))
        if REPLAY.value is None:
            launch(config, workdir, dry_run=DRY_RUN.value, profile=PROFILE.value)
        else:
            project = Project(_checked(config, workdir), workdir)
            with lock(workdir):
                replay.run(project, chosen_stages(project.config), REPLAY.value)
        return 0
    except ValueError as error:
        return _end(error, 2)
    except InterruptedRunError as error:
        return _end(error, error.exit_status)
    except KeyboardInterrupt:
        return _end(KeyboardInterrupt("interrupted; the same command resumes."), 130)
    except TROUBLE as error:
        return _end(error, 1)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" in str(error):
            reason = (
                "Out of memory; parallel.remat, grad_accum_steps or parallel.fsdp help"
            )
        elif _joined():
            reason = "Another host is gone, or a device"
        else:
            raise
        return _end(RuntimeError(f"{reason}: {error}"), 1)


def launch(
    config: ConfigDict,
    workdir: pathlib.Path,
    *,
    dry_run: bool = False,
    profile: int = 0,
) -> None:
    """Runs the stages of a config in a workdir, or prints what would be run.

    Args:
      config: The config of a file in configs/.
      workdir: The project's folder.
      dry_run: Prints one JSON object, and starts nothing.
      profile: Updates to trace in each stage that trains.

    Raises:
      ValueError: If anything in the config or the workdir does not fit.
    """
    config = _checked(config, workdir)
    stages = chosen_stages(config)
    project = Project(config, workdir, profile)
    for stage in stages:
        stage.check(project)
    if dry_run:
        if import_model.STAGE in stages:
            config = import_model.described(config)
        description = {
            "config": as_json(config),
            "parameters": make_model(config).num_parameters(),
            "devices": [str(device) for device in jax.devices()],
            "run": [entry for stage in stages for entry in stage.plan(project)],
        }
        print(json.dumps(description, indent=2))
        return
    # Images can be drawn from a workdir while a run is at work in it.
    alone = contextlib.nullcontext() if stages == [sample.STAGE] else lock(workdir)
    with alone:
        for stage in stages:
            stage.run(project)


def chosen_stages(config: ConfigDict) -> list[Stage]:
    """The stages that a config selects, in their order."""
    if config.stage == "all":
        guided = [guide.STAGE] if has_guide(config) else []
        return [train.STAGE, *guided, distill.STAGE, evaluate.STAGE]
    return [STAGES[config.stage]]


def _checked(config: ConfigDict, workdir: pathlib.Path) -> ConfigDict:
    """The config with the fields of the workdir's imported model, checked.

    Raises:
      ValueError: If a field is wrong; it names its value, and what would be right.
    """
    check_fields(config)
    if config.stage != "import":
        config = imported.resolved(config, workdir)
    check(config)
    check_files(config)
    return config


def _join() -> None:
    """Joins the hosts of the run, if there are several."""
    if COORDINATOR.value or DISTRIBUTED.value:
        parallel.start(COORDINATOR.value, NUM_PROCESSES.value, PROCESS_ID.value)
    elif NUM_PROCESSES.value is not None or PROCESS_ID.value is not None:
        raise ValueError("--num_processes and --process_id need --coordinator.")


def _batch_sizes(config: ConfigDict) -> list[int]:
    """The sizes of the parts that go through a device at once, in training."""
    sections: list[Any] = [section_of(config, stage) for stage in TRAINING]
    return [each.batch_size // max(each.grad_accum_steps, 1) for each in sections]


def _joined() -> bool:
    return jax.distributed.is_initialized()


def _end(error: BaseException, status: int) -> int:
    """Prints in one line why the run ends; returns the exit status."""
    if FLAGS.is_parsed() and TRACEBACK.value:
        raise error
    print(f"launch.py: {' '.join(str(error).split())}", file=sys.stderr)
    if _joined():
        # An orderly end would wait for hosts that are not coming.
        sys.stdout.flush()
        os._exit(status)
    return status


def _parse(argv: Sequence[str]) -> tuple[ConfigDict, pathlib.Path]:
    """The config with its overrides, and the workdir.

    Raises:
      ValueError: If anything in the command cannot be understood.
    """
    words, changes = spelled(argv)
    try:
        extra = FLAGS(words)[1:]
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"The config has no field {error.args[0]}") from error
    except flags.Error as error:
        raise ValueError(str(error)) from error
    if extra:
        raise ValueError(f"Unknown words in the command: {extra}.")
    if CONFIG.value is None:
        raise ValueError("Name a config: --config configs/digits.py")
    file = config_flags.get_config_filename(FLAGS["config"]).partition(":")[0]
    if not pathlib.Path(file).is_file():
        raise ValueError(f"There is no config file {file}.")
    CONFIG.value.update(changes)
    default = pathlib.Path("runs") / pathlib.Path(file).stem
    return CONFIG.value, pathlib.Path(WORKDIR.value or default)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
