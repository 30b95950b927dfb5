"""The examples of a data set, and how they come to the step."""

import pathlib
from typing import Literal

from jax.sharding import Mesh

from vdiff_jax.datasets import catalog, device_feed
from vdiff_jax.datasets.device_feed import Feeder
from vdiff_jax.datasets.source import Source, held_out_part
from vdiff_jax.datasets.validation import Checked
from vdiff_jax.from_config.choices import Config, user_function

OnDevice = Literal["auto", "always", "never"]


def make_source(config: Config, split: catalog.Split) -> Source:
    """The examples of a split, each checked against the config as it is read."""
    spec = config.data
    found = _source(config, split)
    if spec.held_out_fraction:
        found = held_out_part(found, spec.held_out_fraction, split)
    return Checked(
        found,
        image_shape=(spec.image_size, spec.image_size, spec.channels),
        num_classes=config.model.num_classes,
        latents=spec.latent_scale > 0,
    )


def _source(config: Config, split: catalog.Split) -> Source:
    spec = config.data
    if spec.held_out_fraction:  # both splits are parts of one
        split = "train"
    if spec.source not in catalog.NAMES:
        return user_function("data.source", spec.source)(split)
    return catalog.open_source(
        spec.source,
        path=pathlib.Path(spec.path),
        name=spec.name,
        split_name=spec.train_split if split == "train" else spec.test_split,
        split=split,
        image_shape=(spec.image_size, spec.image_size, spec.channels),
        resize=spec.resize,
    )


def make_feeder(config: Config, section: Config, mesh: Mesh) -> Feeder:
    """Brings the training split to the step: from the host, or held on devices."""
    spec = config.data
    pictures = make_source(config, "train")
    size = device_feed.size_in_bytes(pictures)
    if spec.on_device == "always" or (
        spec.on_device == "auto" and size <= device_feed.LIMIT_BYTES
    ):
        return device_feed.resident(
            pictures,
            batch_size=section.batch_size,
            mesh=mesh,
            num_workers=spec.workers,
            timeout=spec.worker_timeout,
        )
    return device_feed.Streamed(
        pictures, section.batch_size, mesh, spec.workers, spec.worker_timeout
    )
