"""What draws pictures from a model."""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Num

from vdiff_jax import diffusion, samplers
from vdiff_jax.guidance import Guidance
from vdiff_jax.model import Model
from vdiff_jax.types import (
    Denoiser,
    Examples,
    Keys,
    Labels,
    Params,
)

Images = Num[Array, " batch height width channels"]


class Start(NamedTuple):
    """Where a sampler starts.

    Attributes:
      z_1: Standard normal noise.
      keys: For samplers that draw more of it, a key for each picture.
      label: Classes; None if the model is unconditional.
    """

    z_1: Examples
    keys: Keys
    label: Labels | None


class Path(NamedTuple):
    """What a sampler passed through, as pictures; the leading axis counts the steps.

    Attributes:
      z_t: The noisy example at the start of each step.
      x_hat: What the network saw in it; in the last step, the sample.
    """

    z_t: Num[Array, " steps batch height width channels"]
    x_hat: Num[Array, " steps batch height width channels"]


@dataclasses.dataclass(frozen=True, eq=False)  # a network need not have a hash
class Sampler:
    """Draws pictures from a model.

    Attributes:
      model: The network.
      predictor: Of `samplers`.
      stepper: Makes the stepper from the interpolation f between small and large
        variance, which only `ancestral_step` heeds.
      variance: The f to take where none is given.
      limits: Of `diffusion`, to what the network predicts.
      guidance: How far guidance goes, where there is any.
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
        return Start(z_1, keys, index % num_classes if num_classes else None)

    @partial(jax.jit, static_argnums=0)
    def draw(
        self,
        params: Params,
        start: Start,
        num_steps: Int[Array, ""],
        variance: Float[Array, ""] | None = None,
        w: Float[Array, ""] | None = None,
        first: Int[Array, ""] | None = None,
    ) -> Images:
        """Pictures, as in the data; compiled once for every number of steps and w.

        Args:
          params: Of the model.
          start: The noise, and what goes with it.
          num_steps: N.
          variance: See the class.
          w: The strength of guidance; None is none.
          first: Takes the last so many steps, for which `start` is z at first / N.
        """
        x = samplers.sample(
            self._denoiser(params, start, w),
            start.z_1,
            num_steps=num_steps,
            first=first,
            **self._options(start, variance),
        )
        return self.model.from_x(x)

    @partial(jax.jit, static_argnums=0)
    def encode(
        self,
        params: Params,
        image: Images,
        label: Labels | None,
        num_steps: Int[Array, ""],
    ) -> Examples:
        """The noise that pictures come from, without guidance and without limits."""
        return samplers.encode(
            self.model.denoiser(params, label),
            self.model.to_x(image),
            schedule=self.model.schedule,
            num_steps=num_steps,
        )

    @partial(jax.jit, static_argnums=0)
    def noised(self, image: Images, noise: Examples, t: Float[Array, ""]) -> Examples:
        """Pictures at time t."""
        logsnr_t = jnp.broadcast_to(self.model.schedule(t), noise.shape[:1])
        return diffusion.diffuse(self.model.to_x(image), noise, logsnr_t)

    @partial(jax.jit, static_argnums=(0, 3))
    def path(
        self,
        params: Params,
        start: Start,
        num_steps: int,
        w: Float[Array, ""] | None = None,
    ) -> Path:
        """What `draw` passes through; compiled for each number of steps."""
        path = samplers.sample_trajectory(
            self._denoiser(params, start, w),
            start.z_1,
            num_steps=num_steps,
            **self._options(start, None),
        )
        z_t = jnp.concatenate([start.z_1[None], path.z_s[:-1]])
        return Path(self.model.from_x(z_t), self.model.from_x(path.x_hat))

    def _denoiser(self, params: Params, start: Start, w: Array | None) -> Denoiser:
        if w is not None:
            w = jnp.broadcast_to(w, start.z_1.shape[:1])
        denoise = self.model.denoiser(params, start.label, w, guidance=self.guidance)
        return diffusion.limited(denoise, self.limits)

    def _options(self, start: Start, variance: Array | None) -> dict[str, Any]:
        f = jnp.asarray(self.variance if variance is None else variance)
        return {
            "schedule": self.model.schedule,
            "stepper": self.stepper(f),
            "predictor": self.predictor,
            "keys": start.keys,
        }
