"""An autoencoder of another project that encodes a data set, on all devices."""

import os
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from vdiff_jax import parallel
from vdiff_jax.datasets.names import from_bytes
from vdiff_jax.diffusion import from_pixels
from vdiff_jax.interop.diffusers.autoencoder import (
    ImportedAutoencoder,
    read_autoencoder,
)
from vdiff_jax.types import Params

# At a time, on each device: 8 images of 256, whose widest activation in the autoencoder
# of Stable Diffusion takes 256 MiB.
PIXELS_AT_ONCE = 2**19


def open_encoder(folder: pathlib.Path, *, scale: float, batch_size: int) -> "Encoder":
    """Reads an autoencoder from a folder of diffusers, to encode with all devices.

    Args:
      folder: As of `read_autoencoder`.
      scale: As of `read_autoencoder`.
      batch_size: The number of images that will mostly come at once.

    Raises:
      ValueError: If it cannot be read.
    """
    parallel.use_cores([batch_size])
    return Encoder(read_autoencoder(folder, scale), batch_size)


class Encoder:
    """The encoding half of an autoencoder; see `datasets/prepare/encoding.py`.

    Attributes:
      about: What a data set is to know of the autoencoder.
      image_channels: Channels of an image.
      encoded_channels: Channels of what it is encoded to.
    """

    def __init__(self, imported: ImportedAutoencoder, batch_size: int):
        """Brings the parameters to all devices.

        Args:
          imported: The autoencoder.
          batch_size: The number of images that will mostly come at once.
        """
        net = imported.net
        self.about = {
            "path": from_bytes(os.fsencode(imported.folder.resolve())),
            "sha256": imported.sha256,
            "scale": imported.scale,
            "shift": imported.shift,
            "channels": net.latent_channels,
            "factor": net.factor,
        }
        self.image_channels = net.image_channels
        moments = 1 if net.codebook is not None else 2
        self.encoded_channels = moments * net.latent_channels
        self._mesh, self._batch_size = parallel.make_mesh(), batch_size
        self._split = parallel.split(self._mesh)
        self._params = parallel.put(imported.params, parallel.replicated(self._mesh))

        def encode(params: Params, images: jax.Array) -> Any:
            x = from_pixels(images)
            return net.apply({"params": params}, x, method=net.encode)

        self._encode = jax.jit(encode, out_shardings=self._split)

    def encode(self, images: np.ndarray) -> Callable[[], np.ndarray]:
        """Begins to encode uint8 images; the function that is returned waits.

        All calls for one size are of one shape, filled with zeros, so that each is
        compiled once.
        """
        size = self._at_once(images.shape[1] * images.shape[2])
        parts = [images[first : first + size] for first in range(0, len(images), size)]
        begun = [(len(part), self._begin(part, size)) for part in parts]
        return lambda: np.concatenate([np.asarray(x)[:count] for count, x in begun])

    def _begin(self, images: np.ndarray, size: int) -> jax.Array:
        missing = size - len(images)
        images = np.pad(images, [(0, missing), (0, 0), (0, 0), (0, 0)])
        return self._encode(self._params, parallel.put(images, self._split))

    def _at_once(self, pixels: int) -> int:
        """Images of a call: a multiple of the number of devices."""
        of_device = -(-self._batch_size // self._mesh.size)
        return self._mesh.size * max(min(of_device, PIXELS_AT_ONCE // pixels), 1)
