"""A network with all that is needed to use it: as a denoiser, and to draw images."""

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Key

from vdiff_jax import diffusion
from vdiff_jax.codec import Codec
from vdiff_jax.guidance import PLAIN, Guidance, classifier_free, with_mask
from vdiff_jax.nets.attention import portable
from vdiff_jax.types import (
    NOTHING,
    Condition,
    Denoiser,
    Params,
    PerExample,
    Schedule,
)


@dataclasses.dataclass(frozen=True)
class Model:
    """A network with all that is needed to use it as a denoiser.

    Attributes:
      net: flax module, (z_t, logsnr_t, condition, train=) -> output; with `noise=`
        where it takes noise. The condition has the parts that it is made for.
      output: The quantity that it predicts.
      schedule: log-SNR of time.
      image_shape: [height, width, channels] of the data.
      num_classes: 0 for an unconditional model.
      codec: How its data become x, and x becomes data.
      w_range: The least and the largest guidance weight that the network itself
        imitates. Without it, guidance evaluates the network twice.
      takes_noise: True for a student that takes fresh noise beside z_t in each step.
      context_shape: [tokens, width] of the context; None for a model without one.
    """

    net: nn.Module
    output: diffusion.Output
    schedule: Schedule
    image_shape: tuple[int, int, int]
    num_classes: int
    codec: Codec
    w_range: tuple[float, float] | None = None
    takes_noise: bool = False
    context_shape: tuple[int, int] | None = None

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
        """Floating-point operations of one pass of the network over one example.

        Counted for the CPU, whatever runs it: the plugins of GPUs and TPUs cannot
        count, and a fused kernel is a black box. 0 where JAX may not use the CPU.
        """
        try:
            cpu = jax.local_devices(backend="cpu")[0]
        except RuntimeError:  # JAX_PLATFORMS leaves it out
            return 0.0

        def forward(params: Params, *inputs: Any) -> Any:
            return self.net.apply({"params": params}, *inputs, **self._extra())

        inputs = jax.eval_shape(self._example)
        with jax.default_device(cpu), portable():
            lowered = jax.jit(forward).lower(self.abstract_params(), *inputs)
        return float((lowered.cost_analysis() or {}).get("flops", 0.0))

    def num_parameters(self) -> int:
        """The count of all numbers in its parameters."""
        return sum(leaf.size for leaf in jax.tree.leaves(self.abstract_params()))

    def denoiser(
        self,
        params: Params,
        condition: Condition = NOTHING,
        *,
        noise: Array | None = None,
        dropout: Array | None = None,
        guidance: Guidance = PLAIN,
    ) -> Denoiser:
        """The network with these parameters, guided where the condition has a w.

        Args:
          params: Parameters of the network.
          condition: The condition of each example; parts that the model is not made
            for are ignored. A network that takes w is given 0 where there is none.
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
        w, condition = condition.w, self._read(condition)
        if self.w_range is not None:

            def guided_net(z_t: Array, logsnr_t: PerExample) -> Array:
                given = jnp.zeros_like(logsnr_t) if w is None else jnp.asarray(w)
                w_t = guidance.weight_at(given, logsnr_t)
                return self._apply(
                    params, dropout, extra, z_t, logsnr_t, condition._replace(w=w_t)
                )

            return diffusion.denoiser(guided_net, self.output)

        def denoiser_of(condition: Condition) -> Denoiser:
            def net(z_t: Array, logsnr_t: PerExample) -> Array:
                return self._apply(params, dropout, extra, z_t, logsnr_t, condition)

            return diffusion.denoiser(net, self.output)

        if w is None:
            return denoiser_of(condition)
        if condition == NOTHING:
            raise ValueError(
                "Guidance needs a model that is conditioned on a class or a context,"
                " and this one is not (model.num_classes=0)."
            )
        return classifier_free(denoiser_of, condition, jnp.asarray(w), guidance)

    def _read(self, condition: Condition) -> Condition:
        """The parts that the network is made for, without w.

        Raises:
          ValueError: If one of them is missing, or a context has another shape.
        """
        label, context, mask, _ = condition
        if self.num_classes and label is None:
            raise ValueError("This model is conditioned on a class: give it labels.")
        label = jnp.asarray(label) if self.num_classes else None
        if self.context_shape is None:
            return Condition(label)
        if context is None or context.shape[1:] != self.context_shape:
            raise ValueError(
                "This model is conditioned on a context of shape"
                f" {self.context_shape}, and got"
                f" {None if context is None else context.shape[1:]}."
            )
        if mask is not None and mask.shape != context.shape[:2]:
            raise ValueError(
                f"The mask has shape {mask.shape}, and its context {context.shape}: it"
                " must have a value for each vector of the context."
            )
        context = jnp.asarray(context)
        mask = None if mask is None else jnp.asarray(mask)
        return with_mask(Condition(label, context, mask))

    def _apply(
        self,
        params: Params,
        dropout: Array | None,
        extra: dict[str, Any],
        *inputs: Any,
    ) -> Array:
        output = self.net.apply(
            {"params": params},
            *inputs,
            **extra,
            train=dropout is not None,
            rngs=None if dropout is None else {"dropout": dropout},
        )
        assert isinstance(output, jax.Array)
        return output

    def _example(self) -> tuple[Any, ...]:
        """Inputs of the network, of one example."""
        z_t, one = jnp.zeros((1, *self.image_shape)), jnp.zeros(1)
        condition = Condition(jnp.zeros(1, jnp.int32) if self.num_classes else None)
        if self.context_shape is not None:
            context = jnp.zeros((1, *self.context_shape))
            condition = with_mask(condition._replace(context=context))
        if self.w_range is not None:
            condition = condition._replace(w=one)
        return z_t, one, condition

    def _extra(self) -> dict[str, Any]:
        """Inputs by name, of one example."""
        return {"noise": jnp.zeros((1, *self.image_shape))} if self.takes_noise else {}


def with_null_context(
    params: Params,
    context: Float[np.ndarray, " tokens width"],
    mask: Bool[np.ndarray, " tokens"],
) -> Params:
    """Parameters with another null context, for a network that is given contexts.

    Args:
      params: The network's parameters.
      context: What stands in the place of a context that is left out.
      mask: True for its vectors that count.
    """
    of = {"null_context": context, "null_mask": mask}
    places = {name: params[name].sharding for name in of}
    own = {
        name: jax.device_put(jnp.asarray(value, jnp.float32), places[name])
        for name, value in of.items()
    }
    return {**params, **own}


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
