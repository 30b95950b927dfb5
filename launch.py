r"""The one command: runs the stages that a config describes.

    python launch.py --config configs/digits.py
    python launch.py --config configs/cifar10.py:train --workdir runs/cifar10

The word behind the colon selects one stage. The same command resumes. Any field of the
config can be set: --config.train.batch_size=64. --dry_run only says what would be done.
"""

import json
import pathlib
import sys
from collections.abc import Sequence

import jax
from absl import flags
from ml_collections import ConfigDict, config_flags

from vdiff_jax import build
from vdiff_jax.stages import distill, evaluate, sample, train
from vdiff_jax.stages.fit import NonFiniteError

FLAGS = flags.FLAGS
CONFIG = config_flags.DEFINE_config_file("config", help_string="A file of configs/.")
WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder of the project; by default runs/<name of the config>."
)
DRY_RUN = flags.DEFINE_bool("dry_run", False, "Print what would be done, as JSON.")
TRACEBACK = flags.DEFINE_bool("traceback", False, "Show where a mistake was found.")


def main(argv: Sequence[str]) -> int:
    """Runs; returns the exit status: 2 for a mistake of the user's."""
    try:
        config, workdir = _parse(argv)
        launch(config, workdir, dry_run=DRY_RUN.value)
        return 0
    except (ValueError, NonFiniteError) as error:
        if FLAGS.is_parsed() and TRACEBACK.value:
            raise
        print(f"launch.py: {' '.join(str(error).split())}", file=sys.stderr)
        return 2 if isinstance(error, ValueError) else 1
    except KeyboardInterrupt:
        print("launch.py: interrupted; the same command resumes.", file=sys.stderr)
        return 130


def launch(config: ConfigDict, workdir: pathlib.Path, *, dry_run: bool = False) -> None:
    """Runs the stages of a config in a workdir, or prints what would be run.

    Raises:
      ValueError: For anything in the config or the workdir that does not fit.
    """
    stages = {
        "train": train,
        "distill": distill,
        "sample": sample,
        "evaluate": evaluate,
    }
    everything = ("train", "distill", "evaluate")
    chosen = everything if config.stage == "all" else (str(config.stage),)
    if not stages.keys() >= set(chosen):
        raise ValueError(
            f"Unknown stage {config.stage!r}; choose all or one of {tuple(stages)}."
        )
    plan = [entry for name in chosen for entry in stages[name].plan(config, workdir)]
    if dry_run:
        description = {
            "config": json.loads(config.to_json_best_effort()),
            "parameters": build.model(config).num_parameters(),
            "devices": [str(device) for device in jax.devices()],
            "run": plan,
        }
        print(json.dumps(description, indent=2))
        return
    for name in chosen:
        stages[name].run(config, workdir)


def _parse(argv: Sequence[str]) -> tuple[ConfigDict, pathlib.Path]:
    """The config with its overrides, and the workdir.

    Raises:
      ValueError: For anything in the command that cannot be understood.
    """
    try:
        extra = FLAGS(argv)[1:]
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
    default = pathlib.Path("runs") / pathlib.Path(file).stem
    return CONFIG.value, pathlib.Path(WORKDIR.value or default)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
