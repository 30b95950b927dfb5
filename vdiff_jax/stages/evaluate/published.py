"""Published statistics that an evaluation compares with."""

import pathlib

from vdiff_jax.evaluation import statistics_file
from vdiff_jax.evaluation.features import Features, FeatureSet
from vdiff_jax.evaluation.frechet import frechet_distance, with_root
from vdiff_jax.evaluation.metrics import Measured
from vdiff_jax.evaluation.moments import moments
from vdiff_jax.evaluation.sample_size import warning
from vdiff_jax.files.place import path_of
from vdiff_jax.files.weights import sha256
from vdiff_jax.from_config.choices import Config


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
    return Published(path_of(path))
