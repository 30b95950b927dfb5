"""The references of an evaluation: real images, and sets of features of them."""

import hashlib
import json
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, Literal

import flax.serialization
import numpy as np

from vdiff_jax import parallel
from vdiff_jax.codec import Autoencoder, Codec
from vdiff_jax.datasets.catalog import Split
from vdiff_jax.datasets.identity import evenly, sha256_of_sample
from vdiff_jax.datasets.reader import Reader
from vdiff_jax.datasets.source import Part, Source
from vdiff_jax.evaluation import classifier, features, metrics, statistics_file
from vdiff_jax.evaluation.features import Features, FeatureSet
from vdiff_jax.evaluation.frechet import frechet_distance, with_root
from vdiff_jax.evaluation.inception.weights import WEIGHTS
from vdiff_jax.evaluation.metrics import Measured, Ruler, Statistics
from vdiff_jax.evaluation.moments import moments
from vdiff_jax.evaluation.sample_size import warning
from vdiff_jax.files.atomic import write_bytes, write_json
from vdiff_jax.files.fingerprints import DamagedError, params_sha256
from vdiff_jax.files.weights import sha256
from vdiff_jax.from_config.choices import Config
from vdiff_jax.from_config.data import decoded_shape, make_images
from vdiff_jax.from_config.model import make_codec
from vdiff_jax.generation.decoded import Decoded
from vdiff_jax.progress import Bar

NO_CLASSES = "no classifier features: these data have no classes."
SETS = ("inception", "classifier", "pixels")


class Real:
    """The real images of a split, read when they are needed.

    Attributes:
      source: The images.
      reader: Reads them, part after part.
      facts: The split, how many of its images, and their origin.
      codec: How the data of the models become images.
      is_decoded: True if these images are themselves latents, decoded.
    """

    def __init__(self, config: Config, split: Split, most: int):
        """Takes at most so many images of a split, evenly spaced; 0: all."""
        data = config.data
        whole = make_images(config, split)
        index = evenly(len(whole), most or len(whole))
        self.source: Source = Part(whole, index)
        self.reader = Reader(self.source, data.workers, data.worker_timeout)
        self.facts: dict[str, Any] = {
            "data": config.evaluate.images or data.name or data.source,
            "split": split,
            "num_images": len(index),
            "of": len(whole),
            "image_size": decoded_shape(config)[0],
            "channels": decoded_shape(config)[2],
            "resize": data.resize,
            "sha256_of_sample": sha256_of_sample(self.source),
        }
        self.codec = make_codec(config)
        self.is_decoded = isinstance(whole, Decoded)
        if isinstance(self.codec, Autoencoder):
            self.facts["autoencoder"] = params_sha256(self.codec.params())[:16]
        if isinstance(whole, Decoded):
            # Decoded they are not the same bit for bit on every device.
            latents = Part(whole.latents, index)
            self.facts["sha256_of_sample"] = sha256_of_sample(latents)


class Reference:
    """The reference by one set of features.

    Attributes:
      features: The set.
      facts: The origin of the images and the features.
      real_vs_real: Every metric of one half of the reference against the other.
      ruler: Measures images against the reference.
      all: The features of every real image.
    """

    def __init__(
        self,
        features: FeatureSet,
        facts: dict[str, Any],
        statistics: Statistics,
        real_vs_real: dict[str, float],
    ):
        """Makes the ruler, and keeps the rest."""
        self.features, self.facts, self.real_vs_real = features, facts, real_vs_real
        self.ruler = Ruler(statistics, features.name)
        self.all = statistics.features


def make_references(
    sets: Sequence[FeatureSet], real: Real, folder: pathlib.Path
) -> list[Reference]:
    """The reference by each set of features, as statistics in `folder`.

    Those that are not there are made, in one pass over the images.

    Args:
      sets: The sets of features.
      real: The real images.
      folder: The folder that keeps the statistics.

    Raises:
      ValueError: If statistics in `folder` are of other images or other features.
      DamagedError: If they cannot be read.
    """
    facts, paths = {}, {}
    for each in sets:
        facts[each.name] = {**real.facts, "features": each.name, **each.facts}
        paths[each.name] = folder / f"{each.name}-{real.facts['split']}.npz"
    kept = {
        name: statistics_file.load(path, facts[name])
        for name, path in paths.items()
        if parallel.on_all_hosts(path.exists())
    }
    extracted = _extract([each for each in sets if each.name not in kept], real)
    for name in list(extracted):
        # Let go, once there are statistics of them.
        of_set = extracted.pop(name)
        kept[name] = metrics.statistics(of_set), metrics.real_vs_real(of_set, name)
        if parallel.is_main():
            statistics_file.save(paths[name], *kept[name], facts[name])
    return [Reference(each, facts[each.name], *kept[each.name]) for each in sets]


def reconstruction(
    references: Sequence[Reference], real: Real, folder: pathlib.Path
) -> dict[str, float]:
    """Every metric of the real images, encoded and decoded, against themselves.

    No model of their latents can be expected to be much nearer. Empty where there is no
    autoencoder, or no image that was not decoded.

    Args:
      references: The references.
      real: The real images.
      folder: The folder that keeps the values.
    """
    if not isinstance(real.codec, Autoencoder) or real.is_decoded:
        return {}
    path = folder / f"reconstruction-{real.facts['split']}.json"
    facts = [reference.facts for reference in references]
    kept = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if parallel.on_all_hosts(kept.get("facts") == facts):
        return kept["values"]
    features = _extract([each.features for each in references], real, _there_and_back)
    values = {
        metric: measured.value
        for each in references
        for metric, measured in each.ruler.measure(features[each.features.name]).items()
    }
    if parallel.is_main():
        write_json(path, {"facts": facts, "values": values})
    return values


def _there_and_back(codec: Codec, images: np.ndarray) -> np.ndarray:
    """Images encoded, to the means of their latents, and decoded."""
    assert isinstance(codec, Autoencoder)
    return codec.to_images(codec.of_images(images)[..., : codec.latents.channels])


def _extract(
    sets: Sequence[FeatureSet],
    real: Real,
    change: Callable[[Codec, np.ndarray], np.ndarray] = lambda codec, images: images,
) -> dict[str, Features]:
    """The features of all real images, which are read once for all sets.

    Args:
      sets: The sets of features.
      real: The real images.
      change: Done to images before their features are taken.
    """
    if not sets:
        return {}
    num = len(real.reader)
    extractions = {each.name: each.begin(num) for each in sets}
    name = f"{', '.join(extractions)} features of real images"
    with Bar(name, num, shown=parallel.is_main(), delay=2.0) as bar:
        for part in real.reader.parts():
            images = change(real.codec, part["image"])
            for extraction in extractions.values():
                extraction.add(images)
            bar.update(len(images))
    return {name: extraction.features for name, extraction in extractions.items()}


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
    if decoded_shape(config)[2] not in (1, 3):
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
    labels = train.reader.labels
    if labels.max() == labels.min():
        raise NotToBeHadError(NO_CLASSES)
    print(f"evaluate: training a {kind} on the data")
    num, shown = classifier.NUM_UPDATES, parallel.is_main()
    with Bar(f"train a {kind}", num, unit="updates", shown=shown, delay=5.0) as bar:
        trained = classifier.train(
            train.reader,
            test.reader,
            kind=kind,
            seed=kind == "judge",
            advance=bar.update,
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
      features: Its logits of images, as a set of features.
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
        self.features = features.of_judge(trained)
        self._num_classes = trained.params["params"]["logits"]["bias"].size
        self.facts = {"features": "judge", **self.features.facts}

    def measure(
        self, features: Features, asked: np.ndarray | None = None
    ) -> dict[str, Measured]:
        """The share of images that it takes for the class they should be of.

        Args:
          features: Its logits of the images.
          asked: The class of each; None for i modulo the number of classes.
        """
        guess = features.logits.argmax(axis=1)
        if asked is None:
            asked = np.arange(len(guess)) % self._num_classes
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
