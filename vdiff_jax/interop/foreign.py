"""A network of another convention, or a bare function, in the place of ours."""

from collections.abc import Callable
from typing import Any, Literal

import flax.linen as nn
from jaxtyping import Array

from vdiff_jax.interop import adapters
from vdiff_jax.nets.layers import Table
from vdiff_jax.types import Denoiser, Params


class Function(nn.Module):
    """A function of parameters and inputs as a flax module, which learns them.

    Attributes:
      function: (params, *inputs) -> output.
      start: Makes the parameters that it begins with.
    """

    function: Callable[..., Array]
    start: Callable[[], Params]

    @nn.compact
    def __call__(self, *inputs: Any, train: bool = False) -> Array:
        """Takes what the function takes after its parameters."""
        del train
        params = self.param("function", lambda key: self.start())
        return self.function(params, *inputs)


class Foreign(nn.Module):
    """Computes x, eps or v from a network that follows another convention.

    Attributes:
      net: (examples, noise levels, label, train=) -> what the convention says; without
        label if it knows no classes.
      convention: Of `adapters`.
      table: Of the steps of a DDPM.
      says: What this says: x, eps or v.
    """

    net: nn.Module
    convention: adapters.Convention
    table: Table
    says: Literal["x", "eps", "v"]

    def setup(self) -> None:
        """Makes the parameters those of the network inside, by the same names."""
        nn.share_scope(self, self.net)

    def __call__(
        self,
        z_t: Array,
        logsnr_t: Array,
        label: Array | None = None,
        *,
        train: bool = False,
    ) -> Array:
        """Takes what a network of ours takes."""
        conditions = () if label is None else (label,)

        def function(examples: Array, levels: Array) -> Array:
            return self.net(examples, levels, *conditions, train=train)

        return getattr(self._denoiser(function)(z_t, logsnr_t), self.says)

    def _denoiser(self, function: adapters.Function) -> Denoiser:
        if self.convention == "ddpm":
            return adapters.from_ddpm(function, self.table)
        return {
            "edm": adapters.from_edm,
            "v_diffusion": adapters.from_v_diffusion,
            "flow": adapters.from_flow,
        }[self.convention](function)
