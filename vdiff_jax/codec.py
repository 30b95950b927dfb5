"""How data become x, and x becomes data: a codec is part of a model.

x is what the network diffuses: floats in [-1, 1] for images, about standard normal for
latents. Whoever draws, measures or shows images asks the codec, and never knows which.
"""

import dataclasses
from collections.abc import Callable
from typing import ClassVar, Protocol, TypeAlias, runtime_checkable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num

from vdiff_jax.diffusion import from_pixels, to_pixels
from vdiff_jax.types import Examples, Params

# Standard normal noise of a shape for each example.
Normal: TypeAlias = Callable[[tuple[int, ...]], Examples]
Data: TypeAlias = Num[Array, " *shape"]


@runtime_checkable
class Codec(Protocol):
    """What a model knows of its data.

    Attributes:
      bounded: True if x lies in [-1, 1], so that predictions of it may be clipped.
    """

    bounded: ClassVar[bool]

    def to_x(
        self, data: Data, params: Params = None, normal: Normal | None = None
    ) -> Float[Array, " *of_x"]:
        """The data as x; to be compiled.

        Args:
          data: A batch, as the data set has it.
          params: Parameters of the autoencoder, for images that have to be encoded.
          normal: Noise to draw latents of their distribution with; None takes the mean.
        """
        ...

    def from_x(self, x: Float[Array, " *shape"]) -> Num[Array, " *shape"]:
        """The data that the model means, as a data set would have them."""
        ...

    def to_images(self, data: Num[np.ndarray, " *n h w c"]) -> np.ndarray:
        """What people look at and metrics compare: uint8 images, if there is a way."""
        ...


@dataclasses.dataclass(frozen=True)
class Pixels:
    """Images of uint8, which x has in [-1, 1]."""

    bounded: ClassVar[bool] = True

    def to_x(
        self, data: Data, params: Params = None, normal: Normal | None = None
    ) -> Float[Array, " *of_x"]:
        """Pixels 0 .. 255 to [-1, 1]."""
        del params, normal
        return from_pixels(data)

    def from_x(self, x: Float[Array, " *shape"]) -> Num[Array, " *shape"]:
        """The nearest pixels."""
        return to_pixels(x)

    def to_images(self, data: Num[np.ndarray, " *n h w c"]) -> np.ndarray:
        """The data themselves."""
        return data


@dataclasses.dataclass(frozen=True)
class Latents:
    """Latents of an autoencoder that is not at hand: x = scale (latent - shift).

    Data of twice the channels are moments: the mean of a latent, then the logarithm of
    its variance.

    Attributes:
      channels: Channels of a latent.
      scale: The factor that brings them to a standard deviation of about 1.
      shift: Subtracted before.
    """

    channels: int
    scale: float
    shift: float = 0.0
    bounded: ClassVar[bool] = False

    def to_x(
        self, data: Data, params: Params = None, normal: Normal | None = None
    ) -> Float[Array, " *of_x"]:
        """Latents scaled; of moments, the mean or a fresh draw."""
        del params
        latent = data.astype(jnp.promote_types(data.dtype, jnp.float32))
        if latent.shape[-1] == 2 * self.channels:
            latent, log_variance = jnp.split(latent, 2, axis=-1)
            if normal is not None:
                eps = normal(latent.shape[1:])
                latent += jnp.exp(0.5 * log_variance) * eps
        return self.scale * (latent - self.shift)

    def from_x(self, x: Float[Array, " *shape"]) -> Num[Array, " *shape"]:
        """Latents before scaling."""
        return x / self.scale + self.shift

    def to_images(self, data: Num[np.ndarray, " *n h w c"]) -> np.ndarray:
        """The latents themselves: nothing decodes them."""
        return data
