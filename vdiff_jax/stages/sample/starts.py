"""Images that `sample` starts from, in place of noise."""

import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from vdiff_jax import parallel
from vdiff_jax.datasets.images import SUFFIXES, Fit, decode
from vdiff_jax.distillation.role import BASE, student
from vdiff_jax.files.copies import kept_on_this_machine
from vdiff_jax.files.place import path_of
from vdiff_jax.from_config.choices import Config
from vdiff_jax.from_config.data import decoded_shape, shapes_of
from vdiff_jax.from_config.sampler import make_sampler
from vdiff_jax.from_config.starts import StartOf, class_numbers, make_condition_of
from vdiff_jax.generation.sampler import Sampler, Start
from vdiff_jax.model import Model
from vdiff_jax.types import NOTHING, Condition
from vdiff_jax.workdir.layout import Project
from vdiff_jax.workdir.trained import find


def read(config: Config, model: Model) -> np.ndarray:
    """The images of `sample.image`, as data: of a file, a folder, or an .npy of uint8.

    Raises:
      ValueError: If there are none, or they are not what the model takes.
    """
    path = path_of(config.sample.image)
    try:
        images = _read(path, config)
    except (OSError, ValueError) as error:
        raise ValueError(f"sample.image={str(path)!r}: {error}") from error
    shape = shapes_of(config).image
    if shape is None or images.dtype != np.uint8 or images.shape[1:] != shape:
        raise ValueError(
            f"sample.image={str(path)!r} holds {images.dtype} of shape {images.shape};"
            f" it should be uint8 of shape (n, {str(shape)[1:]}."
        )
    return model.codec.of_images(images)


def _read(path: pathlib.Path, config: Config) -> np.ndarray:
    if path.suffix == ".npy":
        return np.load(kept_on_this_machine(path), allow_pickle=False)
    files = [path]
    if path.is_dir():
        files = sorted(f for f in path.iterdir() if f.suffix.lower() in SUFFIXES)
    if not files:
        raise ValueError(f"there are no images ({', '.join(SUFFIXES)}).")
    height, _, channels = decoded_shape(config)
    fit = Fit(height, channels, config.data.resize)
    return np.stack([fit(decode(file.read_bytes())) for file in files])


def first_step(config: Config) -> int | None:
    """The number of steps that are taken from `sample.from_t` on; None for all."""
    from_t, num_steps = config.sample.from_t, config.sample.steps
    return None if from_t == 1.0 else round(from_t * num_steps)


def from_images(
    project: Project, sampler: Sampler, start_of: StartOf, names: Sequence[str] = ()
) -> StartOf:
    """Puts given images in place of the noise of `start_of`.

    At `sample.from_t` = 1 they are encoded; before that, the noise of image number i
    is added to the i-th of them (SDEdit; Meng et al., 2022, arXiv:2108.01073).

    Args:
      project: The config and its folder.
      sampler: The sampler that draws.
      start_of: The start of the images with given numbers.
      names: The names of the model's classes, if they are known.
    """
    images = read(project.config, sampler.model)
    first, section = first_step(project.config), project.config.sample
    split = parallel.split(parallel.make_mesh())
    encode = None if first else _encoder(project, names)

    def start(index: np.ndarray) -> Start:
        noise = start_of(index)
        image = parallel.put(images[index % len(images)], split)
        if encode is not None:
            return noise._replace(z_1=encode(image, index))
        assert first is not None
        t = np.float32(first / section.steps)
        return noise._replace(z_1=sampler.noised(image, noise.z_1, t))

    return start


def _encoder(
    project: Project, names: Sequence[str]
) -> Callable[[Any, Int[np.ndarray, " n"]], Any]:
    """A function that encodes images, by a student distilled for it or by the base."""
    section = project.config.sample
    num_steps = section.encode_steps
    trained = find(project, student(num_steps, "encode"), BASE)
    model = trained.model
    condition_of = make_condition_of(project.config, model, "test")
    labels = class_numbers("sample.image_labels", section.image_labels, names, model)
    params, sampler = trained.params(), make_sampler(project.config, model, "ddim")
    split = parallel.split(parallel.make_mesh())
    print(f"sample: encoding in {num_steps} steps with {trained.folder}")

    def encode(images: Any, index: np.ndarray) -> Any:
        condition = NOTHING
        if len(labels):
            classes = labels[index % len(labels)]
            condition = Condition(parallel.put(jnp.asarray(classes), split))
        elif condition_of is not None:
            condition = parallel.put(condition_of(index), split)
        return sampler.encode(params, images, condition, np.int32(num_steps))

    return encode
