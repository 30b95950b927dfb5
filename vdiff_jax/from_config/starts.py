"""The starts of images by the section `sample`: noise by number, or of a file."""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jaxtyping import Float

from vdiff_jax import parallel
from vdiff_jax.from_config.choices import Config
from vdiff_jax.from_config.sampler import make_sampler
from vdiff_jax.generation.sampler import Sampler, Start
from vdiff_jax.model import Model

StartOf = Callable[[np.ndarray], Start]


class Starts:
    """The start of image number i by the section `sample`."""

    def __init__(self, config: Config, model: Model):
        section = config.sample
        self.sampler: Sampler = make_sampler(config, model)
        self._seed = section.seed
        self._labels = np.asarray(section.labels, np.int32)
        self._noise = _noise(section.noise, (section.num, *model.image_shape))
        self._mesh = parallel.make_mesh()

    def __call__(self, index: np.ndarray) -> Start:
        """Split over the devices."""
        return self._start(index, parallel.split(self._mesh))

    def on_all(self, index: np.ndarray) -> Start:
        """Whole on every device, for any number of images."""
        return self._start(index, parallel.replicated(self._mesh))

    def _start(self, index: np.ndarray, place: NamedSharding) -> Start:
        start = self.sampler.start(parallel.put(index, place), np.int32(self._seed))
        # Numbers beyond the last only fill up a batch.
        if len(self._labels):
            label = jnp.asarray(self._labels[index % len(self._labels)])
            start = start._replace(label=parallel.put(label, place))
        if self._noise is not None:
            z_1 = jnp.asarray(self._noise[index % len(self._noise)])
            start = start._replace(z_1=parallel.put(z_1, place))
        return start


def _noise(
    path: str, shape: tuple[int, ...]
) -> Float[np.ndarray, " n height width channels"] | None:
    if not path:
        return None
    wanted = f"an .npy of z_1 of shape {shape}, standard normal"
    try:
        noise = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"sample.noise={path!r} cannot be read ({error}); it should be {wanted}."
        ) from error
    if not isinstance(noise, np.ndarray) or noise.shape != shape:
        content = getattr(noise, "shape", "several arrays")
        raise ValueError(
            f"sample.noise={path!r} holds {content}; it should be {wanted}: sample.num"
            " images of the data's size."
        )
    return noise.astype(np.float32)
