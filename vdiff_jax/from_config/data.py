"""The examples of a data set, and how they come to the step."""

import pathlib
from typing import Literal, NamedTuple

import numpy as np
from jax.sharding import Mesh

from vdiff_jax.codec import Autoencoder, Pixels
from vdiff_jax.datasets import catalog, device_feed
from vdiff_jax.datasets.device_feed import Feeder
from vdiff_jax.datasets.source import Source, held_out_part
from vdiff_jax.datasets.validation import Checked
from vdiff_jax.files.place import path_of
from vdiff_jax.from_config.choices import Config, user_function
from vdiff_jax.from_config.model import context_shape_of, make_codec
from vdiff_jax.generation.decoded import Decoded

OnDevice = Literal["auto", "always", "never"]
# The archive of the images has no names in its batches.
CIFAR10 = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship",
    "truck",
)  # fmt: skip


def make_source(
    config: Config, split: catalog.Split, *, with_context: bool = True
) -> Source:
    """The examples of a split, each checked against the config as it is read.

    Args:
      config: The whole config.
      split: The split.
      with_context: False for examples without contexts, though the model has them.
    """
    data = config.data
    source = _source(config, split)
    if data.held_out_fraction:
        source = held_out_part(source, data.held_out_fraction, split)
    shapes = shapes_of(config)
    return Checked(
        source,
        num_classes=config.model.num_classes,
        uint8_shape=shapes.image,
        float_shapes=shapes.latents,
        context_shape=context_shape_of(config) if with_context else None,
    )


class Shapes(NamedTuple):
    """The shapes that examples of the data may have.

    Attributes:
      image: [height, width, channels] of uint8; None if images do not fit.
      latents: Of floats: latents, and their moments of twice the channels.
    """

    image: tuple[int, int, int] | None
    latents: tuple[tuple[int, int, int], ...]


def shapes_of(config: Config) -> Shapes:
    """The shapes of the examples that the codec can make x of."""
    codec, data = make_codec(config), config.data
    size, channels = data.image_size, data.channels
    if isinstance(codec, Pixels):
        return Shapes((size, size, channels), ())
    latents = ((size, size, channels), (size, size, 2 * channels))
    if isinstance(codec, Autoencoder):
        side = size * codec.net.factor
        return Shapes((side, side, codec.net.image_channels), latents)
    return Shapes(None, latents)


def has_images(source: Source) -> bool:
    """True if a source has images of uint8, and not latents."""
    return np.asarray(source[0]["image"]).dtype == np.uint8


def _source(config: Config, split: catalog.Split) -> Source:
    data = config.data
    names = {"train": data.train_split, "test": data.test_split}
    other_name = names["test" if split == "train" else "train"]
    if data.held_out_fraction:  # both splits are parts of one
        split, other_name = "train", None
    if data.source not in catalog.NAMES:
        make_source = user_function("data.source", data.source)
        try:
            return make_source(split)
        except (TypeError, ValueError) as error:
            raise ValueError(f"data.source={data.source!r}: {error}") from error
    return catalog.open_source(
        data.source,
        path=path_of(data.path),
        name=data.name,
        split_name=names[split],
        split=split,
        other_name=other_name,
        image_shape=decoded_shape(config),
        latent_size=data.image_size if data.autoencoder else 0,
        resize=data.resize,
    )


def make_images(config: Config, split: catalog.Split) -> Source:
    """The images of a split that others are compared with: the data, or their own.

    Raises:
      ValueError: If the data are latents, and there is no way to images.
    """
    if config.evaluate.images:
        return _own_images(config, split)
    source = make_source(config, split, with_context=False)
    if has_images(source):
        return source
    codec = make_codec(config)
    if not isinstance(codec, Autoencoder):
        raise ValueError(
            f"These data are latents (data.latent_scale={config.data.latent_scale}):"
            " set data.autoencoder to the folder of the autoencoder that made them."
        )
    return Decoded(source, codec)


def _own_images(config: Config, split: catalog.Split) -> Source:
    """The images of `evaluate.images`, of which the data have the latents."""
    path, shape = path_of(config.evaluate.images), shapes_of(config).image
    if shape is None:
        raise ValueError(
            f"evaluate.images={str(path)!r} is for data that are latents, with their"
            " data.autoencoder: leave it out, or set that."
        )
    own = config.copy_and_resolve_references()
    own.data.update({"path": str(path), "source": _kind_of(path)})
    try:
        source = make_source(own, split, with_context=False)
        if not has_images(source):
            raise ValueError("it has latents, and not images.")
        return source
    except ValueError as error:
        raise ValueError(f"evaluate.images={str(path)!r}: {error}") from error


def _kind_of(path: pathlib.Path) -> str:
    """The kind of source that lies at a path, by its looks."""
    if path.suffix in (".npz", ".npy"):
        return "npz"
    # SPLIT/SIZE.npz is of `prepare`; other names may lie beside images.
    if any(path.glob("*.np[yz]")) or any(path.glob("*/[1-9]*.npz")):
        return "npz"
    is_lmdb = any(path.glob("data.mdb")) or any(path.glob("*/data.mdb"))
    return "lmdb" if is_lmdb else "folder"


def decoded_shape(config: Config) -> tuple[int, int, int]:
    """[height, width, channels] that images in files are brought to."""
    size = config.data.image_size
    return shapes_of(config).image or (size, size, config.data.channels)


def null_context(config: Config) -> tuple[np.ndarray, np.ndarray] | None:
    """What stands in the place of a context that is left out, and its mask.

    None where the data do not say.
    """
    return getattr(make_source(config, "train"), "null_context", None)


def class_names(config: Config) -> tuple[str, ...]:
    """The names of the classes that a model is conditioned on, by their numbers.

    Empty where the model has no classes, or the data no names for them.
    """
    if not config.model.num_classes:
        return ()
    if config.data.source == "cifar10":
        return CIFAR10
    return tuple(getattr(_source(config, "train"), "classes", None) or ())


def make_feeder(config: Config, source: Source, section: Config, mesh: Mesh) -> Feeder:
    """Brings the training split to the step: from the host, or held on devices.

    Args:
      config: The whole config.
      source: The training split.
      section: The fields of the stage; see `section_of`.
      mesh: The devices.
    """
    data = config.data
    size = device_feed.size_in_bytes(source)
    if data.on_device == "always" or (
        data.on_device == "auto" and size <= device_feed.LIMIT_BYTES
    ):
        kind = device_feed.Resident
    else:
        kind = device_feed.Streamed
    return kind(source, section.batch_size, mesh, data.workers, data.worker_timeout)
