"""An imported model: fields of a config that describe it, and its parameters."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from vdiff_jax.nets.unet import UNet
from vdiff_jax.types import Condition, Params


class Imported(NamedTuple):
    """A model of another project.

    Attributes:
      fields: Its fields of a config, by section: "model", "diffusion" and "data".
      params: Parameters of the network that these fields describe; None for a network
        of the user's own, which brings them.
      num_steps: Steps of the sampler that it was distilled for; 0 for a base model.
      can_be_guided: True if it came with what stands in the place of its condition
        where that is left out.
    """

    fields: dict[str, dict[str, Any]]
    params: Params | None
    num_steps: int = 0
    can_be_guided: bool = False


def abstract_params(net: UNet, channels: int) -> Params:
    """The shapes of a U-Net's parameters."""
    size = net.patch * 2 ** (len(net.levels) - 1)
    z_t, logsnr_t = jnp.zeros((1, size, size, channels)), jnp.zeros(1)
    context = (1, net.context_tokens, net.context_features)
    condition = Condition(
        label=jnp.zeros(1, jnp.int32) if net.num_classes else None,
        context=jnp.zeros(context) if net.context_tokens else None,
        w=jnp.zeros(1) if net.w_features else None,
    )
    inputs = (z_t, logsnr_t, condition)
    return jax.eval_shape(net.init, jax.random.key(0), *inputs)["params"]
