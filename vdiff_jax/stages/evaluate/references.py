"""The references of an evaluation: real images, and sets of features of them."""

import functools
import hashlib
import pathlib
from collections.abc import Callable
from typing import Any, Literal

import flax.serialization
import numpy as np

from vdiff_jax import parallel
from vdiff_jax.datasets.catalog import Split
from vdiff_jax.datasets.identity import evenly, sha256_of_sample
from vdiff_jax.datasets.loader import read_all
from vdiff_jax.datasets.source import Part, Source
from vdiff_jax.evaluation import classifier, features, metrics, statistics_file
from vdiff_jax.evaluation.features import Features, FeatureSet
from vdiff_jax.evaluation.frechet import frechet_distance, with_root
from vdiff_jax.evaluation.inception.weights import WEIGHTS
from vdiff_jax.evaluation.metrics import Measured, Ruler
from vdiff_jax.evaluation.moments import moments
from vdiff_jax.evaluation.sample_size import warning
from vdiff_jax.files.atomic import write_bytes
from vdiff_jax.files.fingerprints import DamagedError, params_sha256
from vdiff_jax.files.weights import sha256
from vdiff_jax.from_config.choices import Config
from vdiff_jax.from_config.data import make_source

NO_CLASSES = "no classifier features: these data have no classes."
SETS = ("inception", "classifier", "pixels")


class Real:
    """The real images of a split, read when they are needed."""

    def __init__(self, config: Config, split: Split, most: int):
        """Takes at most so many images of a split, evenly spaced; 0: all."""
        self._config = config
        whole = make_source(config, split)
        index = evenly(len(whole), most or len(whole))
        self.source: Source = Part(whole, index)
        self.facts: dict[str, Any] = {
            "data": config.data.name or config.data.source,
            "split": split,
            "num_images": len(index),
            "of": len(whole),
            "image_size": config.data.image_size,
            "channels": config.data.channels,
            "resize": config.data.resize,
            "sha256_of_sample": sha256_of_sample(self.source),
        }

    @functools.cached_property
    def everything(self) -> dict[str, np.ndarray]:
        """All images, and their labels if they have any."""
        data = self._config.data
        return read_all(self.source, data.workers, data.worker_timeout)


class Reference:
    """The reference by one set of features.

    Attributes:
      features: The set.
      ruler: Measures images against the reference.
      real_vs_real: Every metric of one half of the reference against the other.
      facts: The origin of the images and the features.
      all: The features of every real image.
    """

    def __init__(self, features: FeatureSet, real: Real, folder: pathlib.Path):
        """Reads the statistics from `folder`, or makes them there.

        Raises:
          ValueError: If those in `folder` are of other images or other features.
        """
        self.features = features
        self.facts = {**real.facts, "features": features.name, **features.facts}
        path = folder / f"{features.name}-{real.facts['split']}.npz"
        if parallel.on_all_hosts(path.exists()):
            statistics, self.real_vs_real = statistics_file.load(path, self.facts)
        else:
            extracted = features.extract(real.everything["image"])
            statistics = metrics.statistics(extracted)
            self.real_vs_real = metrics.real_vs_real(extracted, features.name)
            if parallel.is_main():
                statistics_file.save(path, statistics, self.real_vs_real, self.facts)
        self.ruler = Ruler(statistics, features.name)
        self.all = statistics.features


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
        "classifier": lambda: _classifier(real, folder),
        "pixels": features.of_pixels,
    }
    sets = []
    for name in chosen or SETS:
        try:
            sets.append(makers[name]())
        except NotToBeHadError as error:
            if chosen:
                raise ValueError(str(error)) from error
            print(f"evaluate: {error}")
    return sets


class NotToBeHadError(Exception):
    """These data, or this config, do not allow a set of features."""


def _inception(config: Config) -> FeatureSet:
    if config.data.channels not in (1, 3):
        raise NotToBeHadError("no FID: these images are neither grey nor RGB.")
    if not config.evaluate.inception_weights:
        raise NotToBeHadError(
            f"no FID: fetch {WEIGHTS} and set evaluate.inception_weights to"
            " where it lies. Distances on other features are not FID."
        )
    return features.of_inception(pathlib.Path(config.evaluate.inception_weights))


def _classifier(real: Callable[[Split], Real], folder: pathlib.Path) -> FeatureSet:
    """A classifier of the training split."""
    return features.of_classifier(_trained(real, folder, "classifier"))


def _trained(
    real: Callable[[Split], Real],
    folder: pathlib.Path,
    kind: Literal["classifier", "judge"],
) -> classifier.Trained:
    """A network trained on the training split, or read from `folder`."""
    train = real("train")
    if "label" not in train.source[0]:
        raise NotToBeHadError(NO_CLASSES)
    test = real("test")
    made_of = f"{train.facts}{test.facts}{classifier.NUM_UPDATES}"
    name = hashlib.sha256(made_of.encode()).hexdigest()[:12]
    path = folder / f"{kind}-{name}.msgpack"
    if parallel.on_all_hosts(path.exists()):
        return _read_trained(path)
    labels = train.everything.get("label")
    if labels is None or labels.max() == labels.min():
        raise NotToBeHadError(NO_CLASSES)
    print(f"evaluate: training a {kind} on the data")
    held_out = test.everything["image"], test.everything["label"]
    trained = classifier.train(
        train.everything["image"], labels, held_out, kind=kind, seed=kind == "judge"
    )
    if parallel.is_main():
        write_bytes(path, flax.serialization.msgpack_serialize(trained._asdict()))
    return trained


def _read_trained(path: pathlib.Path) -> classifier.Trained:
    """A network that `_trained` wrote.

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


class Judge:
    """Measures how many images are of the class that was asked for.

    Attributes:
      facts: The classifier, which is not the one of the features.
    """

    def __init__(self, real: Callable[[Split], Real], folder: pathlib.Path):
        """Reads the classifier from `folder`, or trains it.

        Raises:
          ValueError: If the data have no classes.
        """
        try:
            trained = _trained(real, folder, "judge")
        except NotToBeHadError as error:
            raise ValueError(f"evaluate.judge=True: {error}") from error
        self._features = features.of_judge(trained)
        self._num_classes = trained.params["params"]["logits"]["bias"].size
        self.facts = {"features": "judge", **self._features.facts}

    def measure(self, images: np.ndarray) -> dict[str, Measured]:
        """The share of images that it takes for the class they should be of.

        Args:
          images: Number i should be of class i modulo the number of classes.
        """
        guess = self._features.extract(images).logits.argmax(axis=1)
        asked = np.arange(len(images)) % self._num_classes
        return {"accuracy_judge": Measured(float((guess == asked).mean()), None)}


class Published:
    """Published statistics of Inception features, of images that we do not have.

    Attributes:
      facts: The file.
    """

    def __init__(self, path: pathlib.Path):
        """Reads the file of statistics.

        Raises:
          ValueError: If it is no such file.
        """
        self._root = with_root(statistics_file.published(path))
        self._name = f"fid_to_{path.stem}"
        self.facts = {"published": path.name, "sha256": sha256(path)}

    def measure(self, features: Features) -> dict[str, Measured]:
        """FID to them, as `fid_to_<name of the file>`."""
        distance = frechet_distance(moments(features.pooled), self._root)
        few = warning(
            "frechet_distance", len(features.pooled), features.pooled.shape[1]
        )
        return {self._name: Measured(distance.value, few, distance.residual)}


def published(config: Config, sets: list[FeatureSet]) -> Published | None:
    """The statistics that `evaluate.reference_stats` names; None if it is empty.

    Args:
      config: The whole config.
      sets: The sets of features that are measured on.

    Raises:
      ValueError: If it is no such file, or there are no Inception features.
    """
    path = config.evaluate.reference_stats
    if not path:
        return None
    if not any(each.name == "inception" for each in sets):
        raise ValueError(
            f"evaluate.reference_stats={path!r} are of Inception features: set"
            " evaluate.inception_weights too."
        )
    return Published(pathlib.Path(path))
