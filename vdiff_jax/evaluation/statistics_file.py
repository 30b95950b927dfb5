"""Statistics of the real pictures on disk, refused where they are of other pictures."""

import json
import pathlib
import zipfile
from typing import Any

import numpy as np

from vdiff_jax.evaluation.metrics import Statistics
from vdiff_jax.evaluation.moments import Moments
from vdiff_jax.files.atomic import replacing
from vdiff_jax.files.fingerprints import DamagedError


def save(
    path: pathlib.Path,
    statistics: Statistics,
    floor: dict[str, float],
    fingerprint: dict[str, Any],
) -> None:
    """Writes an npz at once.

    Args:
      path: Of the file.
      statistics: Of the real pictures.
      floor: Every metric between the two halves of them.
      fingerprint: What they were computed from.
    """
    arrays: dict[str, Any] = {"features": statistics.features}
    for name in ("pooled", "spatial"):
        found = getattr(statistics, name)
        if found is not None:
            arrays |= {
                f"{name}_count": np.int64(found.count),
                f"{name}_mean": found.mean,
                f"{name}_scatter": found.scatter,
            }
    said = json.dumps({"floor": floor, "fingerprint": fingerprint})
    with replacing(path) as half, half.open("wb") as file:
        np.savez(file, said=np.array(said), **arrays)


def load(
    path: pathlib.Path, fingerprint: dict[str, Any]
) -> tuple[Statistics, dict[str, float]]:
    """Reads what `save` wrote: the statistics and the floor.

    Raises:
      ValueError: If they were computed from anything else.
      DamagedError: If the file cannot be read.
    """
    try:
        arrays = _read(path)
        said = json.loads(str(arrays.pop("said")))
        statistics = Statistics(
            pooled=_moments(arrays, "pooled"),
            spatial=_moments(arrays, "spatial") if "spatial_mean" in arrays else None,
            features=arrays["features"],
        )
    except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DamagedError(
            f"{path} cannot be read ({error}): remove it, and it is made again."
        ) from error
    check(path, said["fingerprint"], fingerprint)
    return statistics, said["floor"]


def _read(path: pathlib.Path) -> dict[str, Any]:
    # NumPy leaves a file open that it cannot read.
    with path.open("rb") as file:
        return dict(np.load(file, allow_pickle=False))


def _moments(arrays: dict[str, np.ndarray], name: str) -> Moments:
    count, mean, scatter = (
        arrays[f"{name}_{part}"] for part in ("count", "mean", "scatter")
    )
    return Moments(int(count), mean, scatter)


def check(path: pathlib.Path, theirs: dict[str, Any], ours: dict[str, Any]) -> None:
    """Refuses statistics of other pictures.

    Raises:
      ValueError: Naming what differs.
    """
    differences = [
        f"{field}: {theirs.get(field)!r} there, {ours.get(field)!r} now"
        for field in sorted(theirs.keys() | ours.keys())
        if theirs.get(field) != ours.get(field)
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
      ValueError: If the file is not such a one.
    """
    wanted = "an .npz with mu [2048] and sigma [2048, 2048]"
    try:
        arrays = _read(path)
        mu, sigma = (np.asarray(arrays[key], np.float64) for key in ("mu", "sigma"))
    except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"evaluate.reference_stats={str(path)!r} cannot be read ({error}); it"
            f" should be {wanted}."
        ) from error
    if mu.shape != (2048,) or sigma.shape != (2048, 2048):
        raise ValueError(
            f"evaluate.reference_stats={str(path)!r} has mu {mu.shape} and sigma"
            f" {sigma.shape}; it should be {wanted}."
        )
    # How many pictures they are of is not said: the covariance is taken as it is.
    return Moments(2, mu, sigma)
