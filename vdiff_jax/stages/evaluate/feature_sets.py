"""The sets of features that an evaluation measures on."""

import hashlib
import pathlib
from collections.abc import Callable
from typing import Any

import flax.serialization

from vdiff_jax import parallel
from vdiff_jax.datasets.catalog import Split
from vdiff_jax.evaluation import classifier, features
from vdiff_jax.evaluation.features import FeatureSet
from vdiff_jax.evaluation.inception.weights import WEIGHTS
from vdiff_jax.files.atomic import write_bytes
from vdiff_jax.files.fingerprints import DamagedError, params_sha256
from vdiff_jax.files.place import path_of
from vdiff_jax.from_config.choices import Config, user_function
from vdiff_jax.from_config.data import decoded_shape
from vdiff_jax.progress import Bar
from vdiff_jax.stages.evaluate.references import Real

NO_CLASSES = "no classifier features: these data have no classes."
SETS = ("inception", "classifier", "pixels")


def feature_sets(
    config: Config, real: Callable[[Split], Real], folder: pathlib.Path
) -> list[FeatureSet]:
    """The sets of `evaluate.features`, or all that can be had; prints which cannot.

    Args:
      config: The whole config.
      real: The real images of a split.
      folder: The folder that keeps a trained classifier.

    Raises:
      ValueError: If a set was named that cannot be had.
    """
    chosen = tuple(config.evaluate.features)
    makers = {
        "inception": lambda: _inception(config),
        "classifier": lambda: features.of_classifier(
            trained_classifier(config, real, folder, "classifier")
        ),
        "pixels": features.of_pixels,
    }
    sets = []
    for name in chosen or SETS:
        try:
            sets.append(makers[name]() if name in makers else _of_user(config, name))
        except NotToBeHadError as error:
            if chosen:
                raise ValueError(str(error)) from error
            print(f"evaluate: {error}")
    return sets


class NotToBeHadError(Exception):
    """These data, or this config, do not allow a set of features."""


def _of_user(config: Config, path: str) -> FeatureSet:
    """The set that a function of the user's makes; see `features.of_user`."""
    make = user_function("evaluate.features", path)
    try:
        params, apply = make()
        features_of = features.of_user(path, params, apply)
        features_of.check(decoded_shape(config))
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"evaluate.features={path!r} must be a function without arguments that"
            " returns parameters and a function of JAX, (parameters, uint8 images [n,"
            f" height, width, channels]) -> features [n, k]: {error}"
        ) from error
    return features_of


def _inception(config: Config) -> FeatureSet:
    if decoded_shape(config)[2] not in (1, 3):
        raise NotToBeHadError("no FID: these images are neither grey nor RGB.")
    if not config.evaluate.inception_weights:
        raise NotToBeHadError(
            f"no FID: fetch {WEIGHTS} and set evaluate.inception_weights to"
            " where it lies. Distances on other features are not FID."
        )
    return features.of_inception(path_of(config.evaluate.inception_weights))


def trained_classifier(
    config: Config,
    real: Callable[[Split], Real],
    folder: pathlib.Path,
    kind: classifier.Kind,
) -> classifier.Trained:
    """A network trained on the whole training split, or read from `folder`."""
    part = real("train"), real("test")
    if "label" not in part[0].source[0]:
        raise NotToBeHadError(NO_CLASSES)
    train, test = (each.whole for each in part)
    flip = config.data.flip
    plan = classifier.Plan.of(train.reader, flip=flip)
    name = _file_name(kind, train, test, plan if plan.width else plan.num_updates)
    # In version 0.1 it was trained on the reference alone, and with as many updates on
    # photographs too: an evaluation that began with such a classifier goes on with it.
    before = _file_name(kind, *part, classifier.NUM_UPDATES)
    for path in (folder / name, folder / before):
        if parallel.on_all_hosts(path.exists()):
            return _read_trained(path)
    labels = train.reader.labels
    if labels.max() == labels.min():
        raise NotToBeHadError(NO_CLASSES)
    print(f"evaluate: training a {kind} on the data")
    num, shown = plan.num_updates, parallel.is_main()
    with Bar(f"train a {kind}", num, unit="updates", shown=shown, delay=5.0) as bar:
        trained = classifier.train(
            train.reader,
            test.reader,
            kind=kind,
            seed=kind == "judge",
            flip=flip,
            advance=bar.update,
        )
    if parallel.is_main():
        content = flax.serialization.msgpack_serialize(trained._asdict())
        write_bytes(folder / name, content)
    return trained


def _file_name(
    kind: classifier.Kind, train: Real, test: Real, plan: classifier.Plan | int
) -> str:
    made_of = f"{train.facts}{test.facts}{plan}"
    return f"{kind}-{hashlib.sha256(made_of.encode()).hexdigest()[:12]}.msgpack"


def _read_trained(path: pathlib.Path) -> classifier.Trained:
    """A network that `trained_classifier` wrote.

    Raises:
      DamagedError: If the file cannot be read, or is not what was written.
    """
    try:
        saved: Any = flax.serialization.msgpack_restore(path.read_bytes())
        trained = classifier.Trained(**saved)
        sha256 = params_sha256(trained.params)
    except (OSError, AttributeError, TypeError, ValueError) as error:
        raise DamagedError(
            f"{path} cannot be read ({error}): remove it, and it is made again."
        ) from error
    if sha256 != trained.sha256:
        raise DamagedError(
            f"{path} has changed since it was written: remove it, and it is made again."
        )
    return trained
