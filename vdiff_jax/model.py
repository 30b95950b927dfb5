"""A network with all that is needed to use it: as a denoiser, and to draw images."""

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, Num

from vdiff_jax import diffusion
from vdiff_jax.guidance import PLAIN, Guidance, classifier_free
from vdiff_jax.types import (
    Denoiser,
    Params,
    PerExample,
    Schedule,
)


@dataclasses.dataclass(frozen=True)
class Model:
    """A network with all that is needed to use it as a denoiser.

    Attributes:
      net: flax module, (z_t, logsnr_t, label, train=) -> output; with (z_t, logsnr_t,
        label, w, train=) where there is a `w_range`, and `noise=` where it takes noise.
      output: The quantity that it predicts.
      schedule: log-SNR of time.
      image_shape: [height, width, channels] of the data.
      num_classes: 0 for an unconditional model.
      latent_scale: 0 if the data are images; else they are latents, and x is this times
        them.
      w_range: The least and the largest guidance weight that the network itself
        imitates. Without it, guidance evaluates the network twice.
      takes_noise: True for a student that takes fresh noise beside z_t in each step.
    """

    net: nn.Module
    output: diffusion.Output
    schedule: Schedule
    image_shape: tuple[int, int, int]
    num_classes: int
    latent_scale: float
    w_range: tuple[float, float] | None = None
    takes_noise: bool = False

    def to_x(self, image: Num[Array, " *shape"]) -> Float[Array, " *shape"]:
        """The data as x: pixels to [-1, 1], latents scaled."""
        if self.latent_scale:
            return self.latent_scale * image
        return diffusion.from_pixels(image)

    def from_x(self, x: Float[Array, " *shape"]) -> Num[Array, " *shape"]:
        """The data that the model means: uint8 pixels, or latents before scaling."""
        return x / self.latent_scale if self.latent_scale else diffusion.to_pixels(x)

    def init(self, key: Key[Array, ""]) -> Params:
        """Fresh parameters."""
        # In one program: run by themselves, its hundreds of operations take longer.
        return jax.jit(self.net.init)(key, *self._example(), **self._extra())["params"]

    def abstract_params(self) -> Params:
        """Shapes of the parameters; nothing is allocated, and it is traced once."""
        return self._abstract_params

    @functools.cached_property
    def _abstract_params(self) -> Params:
        return jax.eval_shape(self.init, jax.random.key(0))

    def forward_flops(self) -> float:
        """Floating-point operations of one pass of the network over one example."""
        z_t = jax.ShapeDtypeStruct((1, *self.image_shape), jnp.float32)
        one = jax.ShapeDtypeStruct((1,), jnp.float32)
        label = jax.ShapeDtypeStruct((1,), jnp.int32)

        def forward(params: Params, *inputs: Any) -> Any:
            return self.net.apply({"params": params}, *inputs, **self._extra())

        inputs = (z_t, one, *self._conditions(label, one))
        lowered = jax.jit(forward).lower(self.abstract_params(), *inputs)
        return float((lowered.cost_analysis() or {}).get("flops", 0.0))

    def num_parameters(self) -> int:
        """The count of all numbers in its parameters."""
        return sum(leaf.size for leaf in jax.tree.leaves(self.abstract_params()))

    def denoiser(
        self,
        params: Params,
        label: Array | np.ndarray | None,
        w: Array | None = None,
        *,
        noise: Array | None = None,
        dropout: Array | None = None,
        guidance: Guidance = PLAIN,
    ) -> Denoiser:
        """The network with these parameters, guided where there is a w.

        Args:
          params: Parameters of the network.
          label: The class of each example; ignored if the model is unconditional.
          w: The guidance weight of each example. None is no guidance; a network that
            takes w is then given 0.
          noise: Standard normal, of the shape of z_t, for a network that takes it.
          dropout: A key; without it, there is no dropout.
          guidance: Rescaling, and the interval of guidance.

        Raises:
          ValueError: If guidance is asked of an unconditional model, or a network that
            takes noise has none.
        """
        if self.takes_noise and noise is None:
            raise ValueError("This student takes noise beside z_t in each step.")
        extra = {"noise": noise} if self.takes_noise else {}
        label = None if label is None else jnp.asarray(label)
        if self.w_range is not None:
            assert label is not None
            w = jnp.zeros(label.shape) if w is None else w

            def guided_net(z_t: Array, logsnr_t: PerExample) -> Array:
                w_t = guidance.weight_at(w, logsnr_t)
                return self._apply(params, dropout, extra, z_t, logsnr_t, label, w_t)

            return diffusion.denoiser(guided_net, self.output)

        def denoiser_of(label: Array | None) -> Denoiser:
            def net(z_t: Array, logsnr_t: PerExample) -> Array:
                return self._apply(params, dropout, extra, z_t, logsnr_t, label)

            return diffusion.denoiser(net, self.output)

        if w is None:
            return denoiser_of(label)
        if label is None or not self.num_classes:
            raise ValueError(
                "Guidance needs a model that is conditioned on a class, and this one is"
                " not (model.num_classes=0)."
            )
        return classifier_free(denoiser_of, label, w, guidance)

    def _apply(
        self,
        params: Params,
        dropout: Array | None,
        extra: dict[str, Any],
        *inputs: Any,
    ) -> Array:
        z_t, logsnr_t, label, *w = inputs
        output = self.net.apply(
            {"params": params},
            z_t,
            logsnr_t,
            label if self.num_classes else None,
            *w,
            **extra,
            train=dropout is not None,
            rngs=None if dropout is None else {"dropout": dropout},
        )
        assert isinstance(output, jax.Array)
        return output

    def _example(self) -> tuple[Any, ...]:
        """Inputs of the network, of one example."""
        z_t, one = jnp.zeros((1, *self.image_shape)), jnp.zeros(1)
        return z_t, one, *self._conditions(jnp.zeros(1, jnp.int32), one)

    def _extra(self) -> dict[str, Any]:
        """Inputs by name, of one example."""
        return {"noise": jnp.zeros((1, *self.image_shape))} if self.takes_noise else {}

    def _conditions(self, label: Any, w: Any) -> tuple[Any, ...]:
        """The inputs beside z_t and its log-SNR: the class, w, both, or neither."""
        label = label if self.num_classes else None
        return (label,) if self.w_range is None else (label, w)


def with_weights_of(student: Model, teacher_params: Params, seed: int) -> Params:
    """Parameters of a student that begins as its teacher, or near it if it takes noise.

    Args:
      student: The network that takes w, or noise.
      teacher_params: Parameters of the same network without.
      seed: The seed of the weights that the teacher does not have.

    Raises:
      ValueError: If the teacher has other weights than the student has place for.
    """
    flatten = flax.traverse_util.flatten_dict
    inherited = flatten(teacher_params)
    names = flatten(student.abstract_params()).keys()
    if names == inherited.keys():
        return teacher_params
    if not inherited.keys() <= names:
        missing = sorted("/".join(name) for name in inherited.keys() - names)
        raise ValueError(
            f"The student has no place for its teacher's weights {missing}: a network"
            " of your own must be the teacher's, and more."
        )
    own = flatten(student.init(jax.random.key(seed)))
    return flax.traverse_util.unflatten_dict({**own, **inherited})
