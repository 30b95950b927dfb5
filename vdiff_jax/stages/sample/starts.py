"""Where images start: at noise by number, noise of a file, or images that are given."""

import pathlib
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jaxtyping import Float, Int

from vdiff_jax import parallel
from vdiff_jax.datasets.images import SUFFIXES, Fit, decode
from vdiff_jax.from_config.choices import Config
from vdiff_jax.from_config.sampler import make_sampler
from vdiff_jax.generation.sampler import Sampler, Start
from vdiff_jax.model import Model
from vdiff_jax.workdir import layout as places
from vdiff_jax.workdir.trained import Found, find, load_params

StartOf = Callable[[np.ndarray], Start]


class Starts:
    """The start of picture number i as `sample` in the config says."""

    def __init__(self, config: Config, model: Model):
        spec = config.sample
        self.sampler: Sampler = make_sampler(config, model)
        self._seed = spec.seed
        self._labels = _labels(spec.labels)
        self._noise = _noise(spec.noise, (spec.num, *model.image_shape))
        self._mesh = parallel.make_mesh()

    def __call__(self, index: np.ndarray) -> Start:
        """Split over the devices."""
        return self._start(index, parallel.split(self._mesh))

    def on_all(self, index: np.ndarray) -> Start:
        """Whole on every device, for any number of pictures."""
        return self._start(index, parallel.replicated(self._mesh))

    def _start(self, index: np.ndarray, place: NamedSharding) -> Start:
        start = self.sampler.start(parallel.put(index, place), np.int32(self._seed))
        # Numbers beyond the last only fill up a batch.
        if self._labels is not None:
            label = jnp.asarray(self._labels[index % len(self._labels)])
            start = start._replace(label=parallel.put(label, place))
        if self._noise is not None:
            z_1 = jnp.asarray(self._noise[index % len(self._noise)])
            start = start._replace(z_1=parallel.put(z_1, place))
        return start


def _labels(labels: tuple[int, ...]) -> np.ndarray | None:
    if not labels:
        return None
    return np.asarray(labels, np.int32)


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
        found = getattr(noise, "shape", "several arrays")
        raise ValueError(
            f"sample.noise={path!r} holds {found}; it should be {wanted}: sample.num"
            " pictures of the data's size."
        )
    return noise.astype(np.float32)


def read(config: Config, model: Model) -> np.ndarray:
    """The pictures of `sample.image`: a file, a folder, or an .npy of uint8.

    Raises:
      ValueError: If there are none, or they are not what the model takes.
    """
    path = pathlib.Path(config.sample.image)
    try:
        images = _read(path, config, model)
    except (OSError, ValueError) as error:
        raise ValueError(f"sample.image={str(path)!r}: {error}") from error
    if images.dtype != np.uint8 or images.shape[1:] != model.image_shape:
        raise ValueError(
            f"sample.image={str(path)!r} holds {images.dtype} of shape {images.shape};"
            f" it should be uint8 of shape (n, {str(model.image_shape)[1:]}."
        )
    return images


def _read(path: pathlib.Path, config: Config, model: Model) -> np.ndarray:
    if path.suffix == ".npy":
        return np.load(path, allow_pickle=False)
    files = [path]
    if path.is_dir():
        files = sorted(f for f in path.iterdir() if f.suffix.lower() in SUFFIXES)
    if not files:
        raise ValueError(f"no pictures there ({', '.join(SUFFIXES)}).")
    fit = Fit(config.data.image_size, model.image_shape[-1], config.data.resize)
    return np.stack([fit(decode(file.read_bytes())) for file in files])


def first_step(config: Config) -> int | None:
    """How many of the steps are taken; None for all."""
    from_t, steps = config.sample.from_t, config.sample.steps
    return None if from_t == 1.0 else round(from_t * steps)


def from_images(
    config: Config, workdir: pathlib.Path, sampler: Sampler, start_of: StartOf
) -> StartOf:
    """Puts given pictures in place of the noise of `start_of`.

    At `sample.from_t` = 1 they are encoded; before that, the noise of picture number i
    is added to the i-th of them (SDEdit; Meng et al., 2022, arXiv:2108.01073).

    Args:
      config: The whole config.
      workdir: The project's folder.
      sampler: That draws.
      start_of: The start of the pictures with given numbers.
    """
    images = read(config, sampler.model)
    first, spec = first_step(config), config.sample
    split = parallel.split(parallel.make_mesh())
    encode = None if first else _encoder(config, workdir)

    def start(index: np.ndarray) -> Start:
        made = start_of(index)
        given = parallel.put(images[index % len(images)], split)
        if encode is not None:
            return made._replace(z_1=encode(given, index))
        assert first is not None
        t = np.float32(first / spec.steps)
        return made._replace(z_1=sampler.noised(given, made.z_1, t))

    return start


def _encoder(
    config: Config, workdir: pathlib.Path
) -> Callable[[Any, Int[np.ndarray, " n"]], Any]:
    """Encodes pictures, by a student that was distilled for it, or by the base."""
    num_steps, labels = config.sample.encode_steps, tuple(config.sample.image_labels)
    folder, model = _encoding_model(config, workdir, num_steps)
    params, sampler = load_params(model, folder), make_sampler(config, model, "ddim")
    split = parallel.split(parallel.make_mesh())
    print(f"sample: encoding in {num_steps} steps with {folder}")

    def encode(images: Any, index: np.ndarray) -> Any:
        label = None
        if labels:
            said = np.asarray(labels, np.int32)[index % len(labels)]
            label = parallel.put(jnp.asarray(said), split)
        return sampler.encode(params, images, label, np.int32(num_steps))

    return encode


def _encoding_model(config: Config, workdir: pathlib.Path, num_steps: int) -> Found:
    student = places.student_folder(workdir, num_steps, "encode")
    if places.result(student) is None:
        return find(config, workdir, "base", num_steps)
    return find(config, workdir, "distilled", num_steps, "encode")
