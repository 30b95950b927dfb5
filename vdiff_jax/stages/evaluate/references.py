"""The references of an evaluation: real images, and their features."""

import functools
import json
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from vdiff_jax import parallel
from vdiff_jax.codec import Autoencoder, Codec
from vdiff_jax.datasets.catalog import Split
from vdiff_jax.datasets.identity import evenly, sha256_of_sample
from vdiff_jax.datasets.reader import Reader
from vdiff_jax.datasets.source import Part, Source
from vdiff_jax.evaluation import metrics, statistics_file
from vdiff_jax.evaluation.features import Features, FeatureSet
from vdiff_jax.evaluation.metrics import Ruler, Statistics
from vdiff_jax.files.atomic import write_json
from vdiff_jax.files.fingerprints import params_sha256
from vdiff_jax.from_config.choices import Config
from vdiff_jax.from_config.data import decoded_shape, make_images
from vdiff_jax.from_config.model import make_codec
from vdiff_jax.generation.decoded import Decoded
from vdiff_jax.progress import Bar


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
        self._config: Config = config
        self._split: Split = split
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

    @functools.cached_property
    def whole(self) -> "Real":
        """All images of the split; this, if it has them."""
        if self.facts["num_images"] == self.facts["of"]:
            return self
        return Real(self._config, self._split, 0)


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
        self.all: np.ndarray = statistics.features[:]


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
