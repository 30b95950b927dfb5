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

from absl import flags
from ml_collections import ConfigDict, config_flags

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
        extra = FLAGS(argv)[1:]
        if extra:
            raise ValueError(f"Unknown words in the command: {extra}.")
        if CONFIG.value is None:
            raise ValueError("Name a config: --config configs/digits.py")
        return launch(CONFIG.value, _workdir())
    except (ValueError, AttributeError, KeyError, TypeError, flags.Error) as error:
        if TRACEBACK.value if FLAGS.is_parsed() else False:
            raise
        print(f"launch.py: {_one_line(error)}", file=sys.stderr)
        return 2


def launch(config: ConfigDict, workdir: pathlib.Path) -> int:
    """Runs the stages of a config in a workdir, or prints what would be run."""
    import jax

    from vdiff_jax import build
    from vdiff_jax.stages import distill, evaluate, sample, train

    stages = {
        "train": train,
        "distill": distill,
        "sample": sample,
        "evaluate": evaluate,
    }
    everything = ("train", "distill", "evaluate")
    chosen = everything if config.stage == "all" else (config.stage,)
    unknown = set(chosen) - stages.keys()
    if unknown:
        raise ValueError(
            f"Unknown stage {config.stage!r}; choose all or one of {tuple(stages)}."
        )
    plan = [entry for name in chosen for entry in stages[name].plan(config, workdir)]
    if DRY_RUN.value:
        description = {
            "config": json.loads(config.to_json_best_effort()),
            "parameters": build.model(config).num_parameters(),
            "devices": [str(device) for device in jax.devices()],
            "run": plan,
        }
        print(json.dumps(description, indent=2))
        return 0
    for name in chosen:
        stages[name].run(config, workdir)
    return 0


def _workdir() -> pathlib.Path:
    if WORKDIR.value is not None:
        return pathlib.Path(WORKDIR.value)
    file = config_flags.get_config_filename(FLAGS["config"])
    return pathlib.Path("runs") / pathlib.Path(file.partition(":")[0]).stem


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


if __name__ == "__main__":
    sys.exit(main(sys.argv))
