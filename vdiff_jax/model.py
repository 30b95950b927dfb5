"""A network with all that is needed to use it: as a denoiser, and to draw pictures."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, Num

from vdiff_jax import diffusion, samplers
from vdiff_jax.types import (
    Denoiser,
    Examples,
    Keys,
    Labels,
    Params,
    PerExample,
    Schedule,
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


@dataclasses.dataclass(frozen=True)
class Model:
    """A network with all that is needed to use it as a denoiser.

    Attributes:
      net: flax module, (z_t, logsnr_t, label, train=) -> output.
      output: What it predicts.
      schedule: log-SNR of time.
      image_shape: [height, width, channels] of the data.
      num_classes: 0 for an unconditional model.
      latent_scale: 0 if the data are pictures; else they are latents, and x is this
        times them.
    """

    net: nn.Module
    output: diffusion.Output
    schedule: Schedule
    image_shape: tuple[int, int, int]
    num_classes: int
    latent_scale: float

    def to_x(self, image: Num[Array, " *shape"]) -> Float[Array, " *shape"]:
        """What the model sees of the data, in model units."""
        if self.latent_scale:
            return self.latent_scale * image
        return diffusion.from_pixels(image)

    def from_x(self, x: Float[Array, " *shape"]) -> Num[Array, " *shape"]:
        """The data that the model means: uint8 pixels, or latents before scaling."""
        return x / self.latent_scale if self.latent_scale else diffusion.to_pixels(x)

    def init(self, key: Key[Array, ""]) -> Params:
        """Fresh parameters."""
        z_t = jnp.zeros((1, *self.image_shape))
        label = jnp.zeros(1, jnp.int32) if self.num_classes else None
        # In one program: run by themselves, its hundreds of operations take longer.
        return jax.jit(self.net.init)(key, z_t, jnp.zeros(1), label)["params"]

    def abstract_params(self) -> Params:
        """Shapes of the parameters; nothing is allocated."""
        return jax.eval_shape(self.init, jax.random.key(0))

    def forward_flops(self) -> float:
        """Floating-point operations of one pass of the network over one example."""
        z_t = jax.ShapeDtypeStruct((1, *self.image_shape), jnp.float32)
        label = jax.ShapeDtypeStruct((1,), jnp.int32) if self.num_classes else None
        one = jax.ShapeDtypeStruct((1,), jnp.float32)

        def forward(params: Params, z_t: Array, logsnr_t: Array, label: Any) -> Any:
            return self.net.apply({"params": params}, z_t, logsnr_t, label)

        lowered = jax.jit(forward).lower(self.abstract_params(), z_t, one, label)
        return float((lowered.cost_analysis() or {}).get("flops", 0.0))

    def num_parameters(self) -> int:
        """How many numbers the network has."""
        return sum(leaf.size for leaf in jax.tree.leaves(self.abstract_params()))

    def denoiser(
        self,
        params: Params,
        label: Array | np.ndarray | None,
        *,
        dropout: Array | None = None,
        clip_at: float | None = None,
        clip_eps_at: float | None = None,
    ) -> Denoiser:
        """The network with these parameters; dropout is on if it gets a key."""
        label = jnp.asarray(label) if self.num_classes else None

        def net(z_t: Array, logsnr_t: PerExample) -> Array:
            output = self.net.apply(
                {"params": params},
                z_t,
                logsnr_t,
                label,
                train=dropout is not None,
                rngs=None if dropout is None else {"dropout": dropout},
            )
            assert isinstance(output, jax.Array)
            return output

        return diffusion.denoiser(net, self.output, clip_at, clip_eps_at)

    def start(self, index: Int[Array, " batch"], seed: Int[Array, ""]) -> Start:
        """The start of pictures by number: each depends on no other picture.

        The noise of number i comes from fold_in(key(seed), i), and its class is i
        modulo the number of classes.
        """
        keys = jax.vmap(partial(jax.random.fold_in, jax.random.key(seed)))(index)
        # Steps use fold_in(key, i) with i >= 1.
        z_1 = jax.vmap(
            lambda key: jax.random.normal(jax.random.fold_in(key, 0), self.image_shape)
        )(keys)
        return Start(z_1, keys, index % self.num_classes if self.num_classes else None)


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
      clip_at: Limit for x_hat.
      clip_eps_at: Limit for eps_hat.
    """

    model: Model
    predictor: samplers.Predictor
    stepper: Callable[[Float[Array, ""]], samplers.Stepper]
    variance: float
    clip_at: float | None
    clip_eps_at: float | None

    @partial(jax.jit, static_argnums=0)
    def start(self, index: Int[Array, " batch"], seed: Int[Array, ""]) -> Start:
        """See `Model.start`; compiled."""
        return self.model.start(index, seed)

    @partial(jax.jit, static_argnums=0)
    def draw(
        self,
        params: Params,
        start: Start,
        num_steps: Int[Array, ""],
        variance: Float[Array, ""] | None = None,
    ) -> Images:
        """Pictures, as in the data; compiled once for every number of steps."""
        x = samplers.sample(
            self._denoiser(params, start),
            start.z_1,
            num_steps=num_steps,
            **self._options(start, variance),
        )
        return self.model.from_x(x)

    @partial(jax.jit, static_argnums=(0, 3))
    def path(self, params: Params, start: Start, num_steps: int) -> Path:
        """What `draw` passes through; compiled for each number of steps."""
        path = samplers.sample_trajectory(
            self._denoiser(params, start),
            start.z_1,
            num_steps=num_steps,
            **self._options(start, None),
        )
        z_t = jnp.concatenate([start.z_1[None], path.z_s[:-1]])
        return Path(self.model.from_x(z_t), self.model.from_x(path.x_hat))

    def _denoiser(self, params: Params, start: Start) -> Denoiser:
        return self.model.denoiser(
            params, start.label, clip_at=self.clip_at, clip_eps_at=self.clip_eps_at
        )

    def _options(self, start: Start, variance: Array | None) -> dict[str, Any]:
        f = jnp.asarray(self.variance if variance is None else variance)
        return {
            "schedule": self.model.schedule,
            "stepper": self.stepper(f),
            "predictor": self.predictor,
            "keys": start.keys,
        }
