"""The checks of a config, before anything is done with it.

First every field for itself, by the table in `fields`; then what ties fields to each
other, section by section. Every stage is checked whichever is to run, save where a
field of one is tied to what another project's model brings with it (its noise schedule,
its number of steps): that is asked of the stages that will run.

Checks that need the devices, the data or a workdir are those of the stages.
"""

from vdiff_jax.files.place import path_of
from vdiff_jax.from_config import packages
from vdiff_jax.from_config.check.data import check_data
from vdiff_jax.from_config.check.drawing import (
    check_evaluate,
    check_export,
    check_sample,
)
from vdiff_jax.from_config.check.network import (
    check_diffusion,
    check_dit,
    check_model,
    check_unet,
)
from vdiff_jax.from_config.check.terms import runs
from vdiff_jax.from_config.check.training import (
    check_distill,
    check_guide,
    check_source,
    check_train,
)
from vdiff_jax.from_config.choices import Config
from vdiff_jax.from_config.fields import TRAINING, field_at, words_of
from vdiff_jax.from_config.model import has_guide, make_model, make_student
from vdiff_jax.from_config.moved import flat
from vdiff_jax.types import Params


def check(config: Config) -> None:
    """Refuses a config that no stage should begin with.

    Nothing is written or allocated, and nothing is read but what an autoencoder is; a
    network is traced once in a process.

    Raises:
      ValueError: In one line: the field, its value, and what would be right.
    """
    check_fields(config)
    check_model(config)
    if _has_network(config):
        check_unet(config)
        check_dit(config)
    check_diffusion(config)
    check_data(config)
    check_train(config)
    check_guide(config)
    check_distill(config)
    check_source(config)
    check_export(config)
    if not config.sample.from_file:  # else it is of the model in that file
        check_sample(config)
    check_evaluate(config)
    if _has_network(config):
        traced(config)


def check_fields(config: Config) -> None:
    """Refuses a value that is out of its field's range, whatever the others are.

    Raises:
      ValueError: In one line, as of `check`.
    """
    for path, value in flat(config.to_dict()):
        allowed = field_at(path).allowed
        if not allowed.contains(value):
            raise ValueError(allowed.refusal(path, value))


def check_files(config: Config) -> None:
    """Refuses files and packages that a later stage needs and that are not there.

    Raises:
      ValueError: In one line, as of `check`.
    """
    if config.wandb_project and runs(config, *TRAINING):
        packages.require_wandb(config.wandb_project)
    if config.data.source == "tfds" and runs(config, *TRAINING, "evaluate"):
        field = "data.source='tfds'"
        package = "tensorflow_datasets"
        packages.require(field, package, "pip install tensorflow-datasets")
    if "stablehlo" in config.export.formats and "export" in words_of(config.stage):
        field = f"export.formats={config.export.formats}"
        packages.require(field, "flatbuffers", "pip install 'vdiff_jax[export]'")
    if not runs(config, "evaluate"):
        return
    for path in ("evaluate.inception_weights", "evaluate.reference_stats"):
        if config[path] and not path_of(config[path]).is_file():
            raise ValueError(f"{path}={config[path]!r} must be a file; there is none.")


def traced(config: Config) -> list[Params]:
    """Shapes of the parameters of every network that the stages train.

    Raises:
      ValueError: If sizes do not fit together.
    """
    kinds = (False, True) if has_guide(config) else (False,)
    models = [make_model(config, guided=guided) for guided in kinds]
    if config.distill.noise_input and runs(config, "distill"):
        models.append(make_student(config))
    return [model.abstract_params() for model in models]


def _has_network(config: Config) -> bool:
    """Whether the config, and no model to import, says what the network is."""
    known = config.data.image_size and config.data.channels
    return bool(known) and not (config.stage == "import" and config.source.path)
