"""The starts of images by the section `sample`: noise by number, or of a file."""

import difflib
import re
import zipfile
from collections.abc import Callable, Sequence

import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jaxtyping import Bool, Float, Int

from vdiff_jax import parallel
from vdiff_jax.datasets.catalog import Split
from vdiff_jax.files.copies import kept_on_this_machine
from vdiff_jax.files.place import path_of
from vdiff_jax.from_config.choices import Config
from vdiff_jax.from_config.data import make_source
from vdiff_jax.from_config.sampler import make_sampler
from vdiff_jax.generation.conditions import (
    ConditionOf,
    conditioned,
    of_arrays,
    of_source,
)
from vdiff_jax.generation.sampler import Sampler, Start
from vdiff_jax.model import Model

StartOf = Callable[[np.ndarray], Start]


class Starts:
    """The start of image number i by the section `sample`."""

    def __init__(
        self,
        config: Config,
        model: Model,
        names: Sequence[str] = (),
        condition_of: ConditionOf | None = None,
    ):
        """Reads the file of noise, if there is one, and that of contexts.

        Args:
          config: The whole config.
          model: The network.
          names: The names of its classes, if they are known.
          condition_of: The condition of images, if it is not that of the config.

        Raises:
          ValueError: If a file is not what it should be, or a class is unknown.
        """
        section = config.sample
        self.sampler: Sampler = make_sampler(config, model)
        self._seed = section.seed
        self._labels = class_numbers("sample.labels", section.labels, names, model)
        self._noise = _noise(section.noise, (section.num, *model.image_shape))
        self._condition_of = condition_of or make_condition_of(config, model, "test")
        self._mesh = parallel.make_mesh()

    def __call__(self, index: np.ndarray) -> Start:
        """Split over the devices."""
        return self._start(index, parallel.split(self._mesh))

    def on_all(self, index: np.ndarray) -> Start:
        """Whole on every device, for any number of images."""
        return self._start(index, parallel.replicated(self._mesh))

    def _start(self, index: np.ndarray, place: NamedSharding) -> Start:
        start = self.sampler.start(parallel.put(index, place), np.int32(self._seed))
        start = conditioned(start, self._condition_of, index, place)
        # Numbers beyond the last only fill up a batch.
        if len(self._labels):
            label = jnp.asarray(self._labels[index % len(self._labels)])
            condition = start.condition._replace(label=parallel.put(label, place))
            start = start._replace(condition=condition)
        if self._noise is not None:
            z_1 = jnp.asarray(self._noise[index % len(self._noise)])
            start = start._replace(z_1=parallel.put(z_1, place))
        return start


def make_condition_of(config: Config, model: Model, split: Split) -> ConditionOf | None:
    """The condition of images with a context: of a file, or of examples of the data.

    Args:
      config: The whole config.
      model: The network.
      split: The split whose examples have them, without `sample.context`.

    Returns:
      None for a model without a context, whose images are of their class alone.

    Raises:
      ValueError: If the file is not what it should be, or the data have none.
    """
    path = config.sample.context
    if model.context_shape is None:
        if path:
            raise ValueError(
                f"sample.context={path!r}, but this model is not conditioned on a"
                " context: leave it out."
            )
        return None
    if path:
        return of_arrays(*_contexts(path, model.context_shape))
    return of_source(make_source(config, split))


def _contexts(
    path: str, shape: tuple[int, int]
) -> tuple[Float[np.ndarray, " n tokens width"], Bool[np.ndarray, " n tokens"] | None]:
    """The contexts of a file, and their masks if it has any."""
    field = f"sample.context={path!r}"
    wanted = f"an .npz with context [n, {shape[0]}, {shape[1]}], and mask or none"
    try:
        place = kept_on_this_machine(path_of(path))
        with np.load(place, allow_pickle=False) as arrays:
            context = np.asarray(arrays["context"], np.float32)
            mask = arrays["mask"].astype(bool) if "mask" in arrays else None
    except (OSError, KeyError, ValueError, zipfile.BadZipFile, AttributeError) as error:
        raise ValueError(
            f"{field} cannot be read ({error}); it should be {wanted}."
        ) from error
    if context.shape[1:] != shape or not len(context):
        raise ValueError(f"{field} has context {context.shape}; it should be {wanted}.")
    if mask is not None and mask.shape != context.shape[:2]:
        raise ValueError(
            f"{field} has mask {mask.shape} for context {context.shape}: a value for"
            " each vector of each context."
        )
    if not np.isfinite(context).all():
        raise ValueError(f"{field} has numbers that are not finite.")
    return context, mask


def class_numbers(
    path: str, labels: Sequence[int | str], names: Sequence[str], model: Model
) -> Int[np.ndarray, " labels"]:
    """The numbers of classes that are given by number or by name.

    A text of digits is a number. Capitals do not matter, nor whether words are joined
    by a space, `_` or `-`.

    Args:
      path: The field, for messages.
      labels: The classes.
      names: The names of the model's classes, if they are known.
      model: The network.

    Raises:
      ValueError: If there is no such class.
    """
    by_name = {_plain(name): number for number, name in enumerate(names)}
    by_name |= {name: number for number, name in enumerate(names)}
    numbers = [_class_number(path, label, names, by_name) for label in labels]
    for number in numbers:
        if number >= model.num_classes:
            raise ValueError(
                f"{path}: class {number} must be from 0 to {model.num_classes - 1}, the"
                " last."
            )
    return np.array(numbers, np.int32)


def _class_number(
    path: str, label: int | str, names: Sequence[str], by_name: dict[str, int]
) -> int:
    if isinstance(label, int) or re.fullmatch(r"\s*\d+\s*", label):
        return int(label)
    number = by_name.get(label, by_name.get(_plain(label)))
    if number is not None:
        return number
    if not names:
        raise ValueError(
            f"{path}={label!r} is a name, and the names of this model's classes are not"
            " known: give their numbers, from 0."
        )
    near = difflib.get_close_matches(_plain(label), by_name, 6, 0.5)
    nearest = list(dict.fromkeys(names[by_name[name]] for name in near))[:3]
    shown = f"the nearest are {', '.join(nearest)}"
    if not nearest:
        more = f" and {len(names) - 5} more" if len(names) > 5 else ""
        shown = f"there are {', '.join(names[:5])}{more}"
    raise ValueError(f"{path}: there is no class {label!r}; {shown}.")


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]+", " ", name).strip().lower()


def _noise(
    path: str, shape: tuple[int, ...]
) -> Float[np.ndarray, " n height width channels"] | None:
    if not path:
        return None
    wanted = f"an .npy of z_1 of shape {shape}, standard normal"
    try:
        noise = np.load(kept_on_this_machine(path_of(path)), allow_pickle=False)
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
