"""Statistics of the reference on disk, refused where they are of other images."""

import json
import pathlib
import zipfile
from typing import Any

import numpy as np

from vdiff_jax.datasets.array_files import check_whole, map_arrays
from vdiff_jax.evaluation.metrics import Statistics
from vdiff_jax.evaluation.moments import Moments
from vdiff_jax.files.atomic import replacing, to_json
from vdiff_jax.files.fingerprints import DamagedError
from vdiff_jax.files.place import is_in_store

# What NumPy raises for a file that is none of its own, or half a one.
_UNREADABLE = (OSError, KeyError, TypeError, ValueError, EOFError, zipfile.BadZipFile)


def save(
    path: pathlib.Path,
    statistics: Statistics,
    real_vs_real: dict[str, float],
    fingerprint: dict[str, Any],
) -> None:
    """Writes an .npz file, whole or not at all.

    Args:
      path: The file to write.
      statistics: Statistics of the real images.
      real_vs_real: Every metric between the two halves of them.
      fingerprint: Facts on the images and the features, as JSON; equal facts mean equal
        statistics.
    """
    arrays: dict[str, Any] = {"features": statistics.features}
    for name in ("pooled", "spatial"):
        moments = getattr(statistics, name)
        if moments is not None:
            arrays |= {
                f"{name}_count": np.int64(moments.count),
                f"{name}_mean": moments.mean,
                f"{name}_scatter": moments.scatter,
            }
    # The names "said" and "floor" stay, for the files that have them.
    text = to_json({"floor": real_vs_real, "fingerprint": fingerprint})
    with replacing(path) as half, half.open("wb") as file:
        np.savez(file, said=np.array(text), **arrays)


def load(
    path: pathlib.Path, fingerprint: dict[str, Any]
) -> tuple[Statistics, dict[str, float]]:
    """Reads a file that `save` wrote: the statistics and the real-vs-real distances.

    Args:
      path: The file.
      fingerprint: The facts that it must have been written with.

    Raises:
      ValueError: If the statistics were computed from anything else.
      DamagedError: If the file cannot be read.
    """
    try:
        arrays = _mapped(path)
        texts = json.loads(str(arrays.pop("said")))
        statistics = Statistics(
            pooled=_moments(arrays, "pooled"),
            spatial=_moments(arrays, "spatial") if "spatial_mean" in arrays else None,
            features=arrays["features"],
        )
    except _UNREADABLE as error:
        raise DamagedError(
            f"{path} cannot be read ({error}): remove it, and it is made again."
        ) from error
    check(path, texts["fingerprint"], fingerprint)
    return statistics, texts["floor"]


def _mapped(path: pathlib.Path) -> dict[str, Any]:
    """The arrays of a file, large ones mapped; it is read once, for its checksums."""
    if is_in_store(path):
        return _read(path)
    check_whole(path)
    return {name: np.asarray(array) for name, array in map_arrays(path).items()}


def _read(path: pathlib.Path) -> dict[str, Any]:
    # NumPy leaves a file open that it cannot read.
    with path.open("rb") as file:
        return dict(np.load(file, allow_pickle=False))


def _moments(arrays: dict[str, np.ndarray], name: str) -> Moments:
    count, mean, scatter = (
        arrays[f"{name}_{part}"] for part in ("count", "mean", "scatter")
    )
    return Moments(int(count), mean, scatter)


def check(
    path: pathlib.Path, written: dict[str, Any], expected: dict[str, Any]
) -> None:
    """Refuses statistics of other images.

    Args:
      path: Their file, for the message.
      written: The fingerprint in the file.
      expected: The fingerprint of the images at hand.

    Raises:
      ValueError: If the two differ; the message lists the fields that do.
    """
    differences = [
        f"{field}: {written.get(field)!r} there, {expected.get(field)!r} now"
        for field in sorted(written.keys() | expected.keys())
        if written.get(field) != expected.get(field)
    ]
    if differences:
        raise ValueError(
            f"{path} was computed from something else ({'; '.join(differences)})."
            " Remove it, and it is made again."
        )


def published(path: pathlib.Path) -> Moments:
    """Mean and covariance of Inception features as others publish them.

    Args:
      path: An npz with `mu` and `sigma`, as pytorch-fid and its kin write it.

    Raises:
      ValueError: If the file has not these two arrays, or they are no mean and no
        covariance.
    """
    field = f"evaluate.reference_stats={str(path)!r}"
    wanted = "an .npz with mu [2048] and sigma [2048, 2048]"
    try:
        arrays = _read(path)
        mu, sigma = (np.asarray(arrays[key], np.float64) for key in ("mu", "sigma"))
    except _UNREADABLE as error:
        raise ValueError(
            f"{field} cannot be read ({error}); it should be {wanted}."
        ) from error
    if mu.shape != (2048,) or sigma.shape != (2048, 2048):
        raise ValueError(
            f"{field} has mu {mu.shape} and sigma {sigma.shape}; it should be {wanted}."
        )
    _check_moments(field, mu, sigma)
    # The file has no number of images: the covariance is taken as it is.
    return Moments(2, mu, sigma)


def _check_moments(field: str, mu: np.ndarray, sigma: np.ndarray) -> None:
    """Refuses what is no mean and no covariance."""
    for name, values in (("mu", mu), ("sigma", sigma)):
        bad = np.count_nonzero(~np.isfinite(values))
        if bad:
            raise ValueError(
                f"{field}: {bad:,} of the {values.size:,} numbers of {name} are not"
                " finite. Fetch the file again, or make it again."
            )
    if np.abs(sigma - sigma.T).max() > 1e-5 * np.abs(sigma).max():
        raise ValueError(
            f"{field}: its sigma is not symmetric, so it is no covariance matrix."
        )
    if sigma.diagonal().min() < 0.0:
        raise ValueError(
            f"{field}: its sigma has variances below 0, so it is no covariance matrix."
        )
