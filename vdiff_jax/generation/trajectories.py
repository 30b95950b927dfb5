"""Trajectories from noise to image, and images between two noises."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Num, UInt8

from vdiff_jax import parallel
from vdiff_jax.generation.grids import tile, to_show
from vdiff_jax.generation.sampler import Path, Request, Sampler, Start
from vdiff_jax.types import Params

COLUMNS = 16


def trajectory_sheet(path: Path) -> UInt8[np.ndarray, " height width c"]:
    """Two rows for each image, over the steps: x_hat above, z_t below."""
    shown = columns_of(len(path.x_hat))
    rows = np.stack([path.x_hat[shown], path.z_t[shown]])  # [2, steps, batch, h, w, c]
    rows = np.moveaxis(rows, 2, 0)
    return tile(to_show(rows.reshape(-1, *rows.shape[3:])), columns=len(shown))


def trajectory(
    sampler: Sampler,
    params: Params,
    start: Start,
    num_steps: int,
    w: Any = None,
) -> Path:
    """The trajectory of a sampler on the host, as images.

    Args:
      sampler: The sampler, and its model.
      params: Parameters of the model.
      start: The noise, and what goes with it.
      num_steps: N.
      w: The guidance weight; None is no guidance.
    """
    path = sampler.path(params, start, num_steps, w)
    to_images = sampler.model.codec.to_images
    return Path(*(to_images(parallel.fetch(part)) for part in path))


def columns_of(num_steps: int, most: int = COLUMNS) -> np.ndarray:
    """At most so many of the steps, the first and the last among them."""
    return np.linspace(0, num_steps - 1, min(num_steps, most)).round().astype(int)


def interpolation(
    sampler: Sampler,
    params: Params,
    ends: Start,
    *,
    request: Request,
    frames: int,
) -> Num[np.ndarray, " rows frames h w c"]:
    """Rows of images from number 2 j to number 2 j + 1, along a great circle.

    A row has the condition of its first image.

    Args:
      sampler: The sampler, and its model.
      params: Parameters of the model.
      ends: An even number of starts, whole on every device.
      request: The steps, the guidance weight and the like.
      frames: Images in a row, the ends among them.
    """
    pairs = parallel.fetch(ends.z_1).reshape(-1, 2, *ends.z_1.shape[1:])
    shares = np.linspace(0.0, 1.0, frames)
    z_1 = [slerp(a, b, float(share)) for a, b in pairs for share in shares]
    place = parallel.replicated(parallel.make_mesh())
    first = parallel.put(np.repeat(np.arange(0, 2 * len(pairs), 2), frames), place)
    start = Start(
        z_1=parallel.put(jnp.stack(z_1), place),
        keys=ends.keys[first],
        condition=jax.tree.map(lambda rows: rows[first], ends.condition),
    )
    data = parallel.fetch(sampler.draw(params, start, request))
    images = sampler.model.codec.to_images(data)
    return images.reshape(len(pairs), frames, *images.shape[1:])


def slerp(
    a: Float[np.ndarray, " *shape"], b: Float[np.ndarray, " *shape"], share: float
) -> Float[np.ndarray, " *shape"]:
    """The point at `share` of the way from a to b along the great circle.

    Noise stays noise that way: on the straight line it would be too small.

    Args:
      a: The point at share 0.
      b: The point at share 1.
      share: The share of the angle, in [0, 1].
    """
    cosine = np.vdot(a, b) / (np.linalg.norm(a) * np.linalg.norm(b))
    angle = np.arccos(np.clip(cosine, -1.0, 1.0))
    if np.sin(angle) < 1e-6:  # the same direction, or opposite ones: no one way
        return a if share < 0.5 else b
    of_a, of_b = np.sin((1.0 - share) * angle), np.sin(share * angle)
    return ((of_a * a + of_b * b) / np.sin(angle)).astype(a.dtype)
