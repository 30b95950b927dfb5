"""How data become x, and x becomes data: a codec is part of a model.

x is what the network diffuses: floats in [-1, 1] for images, about standard normal for
latents. Whoever draws, measures or shows images asks the codec, and never knows which.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, ClassVar, Protocol, TypeAlias, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num

from vdiff_jax import parallel
from vdiff_jax.diffusion import from_pixels, to_pixels
from vdiff_jax.nets import autoencoder
from vdiff_jax.types import Examples, Params

# Images that an autoencoder has at a time: at 256 x 256 some GB of activations.
AT_ONCE = 16
# Standard normal noise of a shape for each example.
Normal: TypeAlias = Callable[[tuple[int, ...]], Examples]
Data: TypeAlias = Num[Array, " *shape"]


@runtime_checkable
class Codec(Protocol):
    """What a model knows of its data.

    Attributes:
      bounded: True if x lies in [-1, 1], so that predictions of it may be clipped.
      decodes: True if there is a way from x to images.
    """

    bounded: ClassVar[bool]
    decodes: ClassVar[bool]

    def params(self) -> Params:
        """Parameters for `to_x`, read when they are first asked for; or None."""
        ...

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

    def of_images(self, images: Num[np.ndarray, " *n h w c"]) -> np.ndarray:
        """Images of uint8 as data.

        Raises:
          ValueError: If there is no way.
        """
        ...


@dataclasses.dataclass(frozen=True)
class Pixels:
    """Images of uint8, which x has in [-1, 1]."""

    bounded: ClassVar[bool] = True
    decodes: ClassVar[bool] = True

    def params(self) -> Params:
        """None: nothing is encoded."""
        return None

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

    def of_images(self, images: Num[np.ndarray, " *n h w c"]) -> np.ndarray:
        """The images themselves."""
        return images


@dataclasses.dataclass(frozen=True)
class Latents:
    """Latents, without their autoencoder: x = scale (latent - shift).

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
    decodes: ClassVar[bool] = False

    def params(self) -> Params:
        """None: nothing is encoded."""
        return None

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

    def of_images(self, images: Num[np.ndarray, " *n h w c"]) -> np.ndarray:
        """Refuses: nothing encodes images."""
        raise ValueError(
            "This model is one of latents, and there is no autoencoder: set"
            " data.autoencoder to the folder of the one that made them."
        )


@dataclasses.dataclass(frozen=True, eq=False)  # compiled functions know it by id
class Autoencoder:
    """Latents and their autoencoder; data may be images, which are encoded.

    Attributes:
      latents: How the latents become x.
      net: The autoencoder's network.
      read: Reads its parameters; called once, when they are first needed.
    """

    latents: Latents
    net: autoencoder.Autoencoder
    read: Callable[[], Params]
    bounded: ClassVar[bool] = False
    decodes: ClassVar[bool] = True

    def params(self) -> Params:
        """The parameters of the network, whole on every device."""
        return self._params

    @functools.cached_property
    def _params(self) -> Params:
        place = parallel.replicated(parallel.make_mesh())
        return parallel.put(jax.tree.map(jnp.asarray, self.read()), place)

    def to_x(
        self, data: Data, params: Params = None, normal: Normal | None = None
    ) -> Float[Array, " *of_x"]:
        """Images encoded, latents and moments as those of `Latents`."""
        if data.dtype == jnp.uint8:
            encode = functools.partial(self._encode, params)
            data = autoencoder.in_parts(encode, data, AT_ONCE)
        return self.latents.to_x(data, None, normal)

    def from_x(self, x: Float[Array, " *shape"]) -> Num[Array, " *shape"]:
        """Latents before scaling."""
        return self.latents.from_x(x)

    def to_images(self, data: Num[np.ndarray, " *n h w c"]) -> np.ndarray:
        """Latents decoded, to uint8; some at a time, on all devices."""
        return self._on_devices(self._decoded, data)

    def of_images(self, images: Num[np.ndarray, " *n h w c"]) -> np.ndarray:
        """Images encoded: moments or latents, in float32; some at a time."""
        return self._on_devices(self._encoded, images)

    def decode(self, params: Params, latents: Array) -> Array:
        """Images of uint8 from latents, all at once; to be compiled.

        Args:
          params: Parameters of the network; the decoder's are enough.
          latents: As `from_x` gives them.
        """
        x: Any = self.net.apply({"params": params}, latents, method=self.net.decode)
        return to_pixels(x)

    def _encode(self, params: Params, images: Array) -> Array:
        x = from_pixels(images)
        moments: Any = self.net.apply({"params": params}, x, method=self.net.encode)
        return moments

    @functools.partial(jax.jit, static_argnums=0)
    def _encoded(self, params: Params, images: Array) -> Array:
        return self._encode(params, images)

    @functools.partial(jax.jit, static_argnums=0)
    def _decoded(self, params: Params, latents: Array) -> Array:
        return self.decode(params, latents)

    def _on_devices(
        self, function: Callable[[Params, Any], Any], data: np.ndarray
    ) -> np.ndarray:
        """A compiled function of all examples, `AT_ONCE` of them at a time."""
        mesh = parallel.make_mesh()
        flat = data.reshape(-1, *data.shape[-3:])
        size = -(-min(AT_ONCE, len(flat)) // mesh.size) * mesh.size
        parts = []
        for first in range(0, len(flat), size):
            # The last part is filled up from the start: one shape, compiled once.
            index = np.arange(first, first + size) % len(flat)
            part = parallel.put(flat[index], parallel.split(mesh))
            parts.append(parallel.fetch(function(self.params(), part)))
        whole = np.concatenate(parts)[: len(flat)]
        return whole.reshape(*data.shape[:-3], *whole.shape[1:])
