"""A sampler: draws images from a model, and encodes them."""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Num

from vdiff_jax import diffusion, samplers
from vdiff_jax.guidance import Guidance
from vdiff_jax.model import Model
from vdiff_jax.types import (
    NOTHING,
    Condition,
    Denoiser,
    Examples,
    Keys,
    Params,
)

Images = Num[Array, " batch height width channels"]


class Start(NamedTuple):
    """The noise that a sampler starts at, and its condition.

    Attributes:
      z_1: Standard normal noise.
      keys: A key for each image, for samplers that draw more noise.
      condition: What the images are conditioned on, without w.
    """

    z_1: Examples
    keys: Keys
    condition: Condition = NOTHING


class Request(NamedTuple):
    """The arguments of one call of a sampler, made by `request`; absent parts are None.

    Attributes:
      num_steps: N, at least 1; an int32, of numpy outside of a program.
      w: The guidance weight; None is no guidance.
      variance: f between small and large variance, in [0, 1], for ancestral sampling;
        None is the sampler's own.
      first: Takes the last so many of the N steps, from z at first / N; None is all.
    """

    num_steps: Any
    w: Any = None
    variance: Any = None
    first: Any = None


def request(
    num_steps: int,
    w: float | None = None,
    variance: float | None = None,
    first: int | None = None,
) -> Request:
    """A request of plain numbers, in the types for which a sampler is compiled once.

    Args:
      num_steps: N.
      w: The guidance weight; None is no guidance.
      variance: f in [0, 1] of ancestral sampling; None is the sampler's own.
      first: Takes the last so many steps; None is all.
    """
    return Request(
        np.int32(num_steps),
        None if w is None else np.float32(w),
        None if variance is None else np.float32(variance),
        None if first is None else np.int32(first),
    )


class Path(NamedTuple):
    """The trajectory of a sampler, as data, on the devices or on the host.

    Attributes:
      z_t: The noisy example at the start of each step, [steps, batch, h, w, channels].
      x_hat: The example that the network predicts from it; at last, the sample.
    """

    z_t: Any
    x_hat: Any


@dataclasses.dataclass(frozen=True, eq=False)  # a network need not have a hash
class Sampler:
    """Draws images from a model.

    Attributes:
      model: The network.
      predictor: A predictor of `samplers`.
      stepper: Makes the stepper from the interpolation f between small and large
        variance, which only `ancestral_step` heeds.
      variance: The f to take where none is given.
      limits: Limits of `diffusion` on the network's predictions.
      guidance: Rescaling, and the interval of guidance.
    """

    model: Model
    predictor: samplers.Predictor
    stepper: Callable[[Float[Array, ""]], samplers.Stepper]
    variance: float
    limits: Sequence[diffusion.Limit]
    guidance: Guidance

    @partial(jax.jit, static_argnums=0)
    def start(self, index: Int[Array, " batch"], seed: Int[Array, ""]) -> Start:
        """The start of images by number: each depends on no other image.

        The noise of number i comes from fold_in(key(seed), i), and its class is i
        modulo the number of classes.
        """
        shape, num_classes = self.model.image_shape, self.model.num_classes
        keys = jax.vmap(partial(jax.random.fold_in, jax.random.key(seed)))(index)
        # Steps use fold_in(key, i) with i >= 1.
        z_1 = jax.vmap(
            lambda key: jax.random.normal(jax.random.fold_in(key, 0), shape)
        )(keys)
        label = index % num_classes if num_classes else None
        return Start(z_1, keys, Condition(label))

    @partial(jax.jit, static_argnums=0)
    def draw(self, params: Params, start: Start, request: Request) -> Images:
        """Images, as in the data; compiled once for every number of steps and w.

        Args:
          params: Parameters of the model.
          start: The noise, and what goes with it.
          request: The steps, the guidance weight and the like.
        """
        x = samplers.sample(
            z_1=start.z_1,
            num_steps=request.num_steps,
            first=request.first,
            **self._options(params, start, request.w, request.variance),
        )
        return self.model.codec.from_x(x)

    @partial(jax.jit, static_argnums=0)
    def encode(
        self,
        params: Params,
        image: Images,
        condition: Condition,
        num_steps: Int[Array, ""],
    ) -> Examples:
        """The noise that images come from, without guidance and without limits.

        Args:
          params: Parameters of the model.
          image: The images, as the data are.
          condition: What they are conditioned on, without w.
          num_steps: N.
        """
        return samplers.encode(
            self.model.denoiser(params, condition),
            self.model.codec.to_x(image),
            schedule=self.model.schedule,
            num_steps=num_steps,
        )

    @partial(jax.jit, static_argnums=0)
    def noised(self, image: Images, noise: Examples, t: Float[Array, ""]) -> Examples:
        """Images at time t.

        Args:
          image: The images, as the data are.
          noise: Standard normal noise, of the shape of x.
          t: The time, in [0, 1].
        """
        logsnr_t = jnp.broadcast_to(self.model.schedule(t), noise.shape[:1])
        return diffusion.diffuse(self.model.codec.to_x(image), noise, logsnr_t)

    @partial(jax.jit, static_argnums=(0, 3))
    def path(
        self,
        params: Params,
        start: Start,
        num_steps: int,
        w: Float[Array, ""] | None = None,
    ) -> Path:
        """The trajectory of `draw`; compiled for each number of steps.

        Args:
          params: Parameters of the model.
          start: The noise, and what goes with it.
          num_steps: N.
          w: The guidance weight; None is no guidance.
        """
        path = samplers.sample_trajectory(
            z_1=start.z_1,
            num_steps=num_steps,
            **self._options(params, start, w, None),
        )
        z_t = jnp.concatenate([start.z_1[None], path.z_s[:-1]])
        return Path(self.model.codec.from_x(z_t), self.model.codec.from_x(path.x_hat))

    def _options(
        self, params: Params, start: Start, w: Array | None, variance: Array | None
    ) -> dict[str, Any]:
        """The denoiser, and the arguments of `samplers.sample` that go with it."""
        if w is not None:
            w = jnp.broadcast_to(w, start.z_1.shape[:1])
        condition = start.condition._replace(w=w)

        def denoiser_of(noise: Examples | None) -> Denoiser:
            denoise = self.model.denoiser(
                params, condition, noise=noise, guidance=self.guidance
            )
            return diffusion.limited(denoise, self.limits)

        takes_noise = self.model.takes_noise
        f = jnp.asarray(self.variance if variance is None else variance)
        return {
            "denoise": denoiser_of(start.z_1 if takes_noise else None),
            "schedule": self.model.schedule,
            "stepper": self.stepper(f),
            "predictor": (
                samplers.with_noise(denoiser_of) if takes_noise else self.predictor
            ),
            "keys": start.keys,
        }
