r"""A model of another project: imported, and then a teacher like any other.

    python launch.py --config configs/import_model.py:import --workdir runs/x \
        --config.source.path=ddpm-cifar10-32
    python launch.py --config configs/import_model.py:sample --workdir runs/x \
        --config.sample.steps=50
    python launch.py --config configs/cifar10.py:distill --workdir runs/x

What the network is, and its noise schedule, come with it; every stage in that workdir
takes them from there, whatever config it is started with. The data, and how to train,
are the config's: take the one of the data that the model knows, or set `data` here.

A model that predicts eps is first made to predict v, in a workdir of its own:

    python launch.py --config configs/cifar10.py:train --workdir runs/y \
        --config.train.init_from=runs/x/train --config.train.steps=50000 \
        --config.train.learning_rate=1e-4

Deviations from the paper: those of configs/defaults.py. Measured: docs/interop.md.
"""

from ml_collections import ConfigDict

from configs import defaults


def get_config(stage: str = "import") -> ConfigDict:
    """The run described above."""
    config = defaults.get_config(stage)
    config.update(
        {
            "data": {"image_size": 0, "channels": 0},  # the model's
            "train": {"label_dropout": 0.0},
        }
    )
    return config
