"""Networks of others, and bare functions, in the place of one of ours."""

from collections.abc import Callable
from typing import Any, Literal

import flax.linen as nn
from jaxtyping import Array

from vdiff_jax.types import Denoiser, Network, Params


class Converted(nn.Module):
    """Computes x, eps or v from what the network inside says; adds no parameters.

    As a denoiser it is the network inside, to rounding: but what it is trained to say,
    and how errors of the weights weigh, are those of the new output. From eps to v the
    noise is divided by alpha, which is 5e-5 at the end of the cosine schedule.

    Attributes:
      net: The network inside, (examples, noise levels, conditions, train=) -> what it
        says; conditions that are None are left out.
      denoiser_of: Makes a denoiser of the network; with it, what the network takes and
        says may follow any convention.
      says: What this says.
    """

    net: nn.Module
    denoiser_of: Callable[[Network], Denoiser]
    says: Literal["x", "eps", "v"]

    def setup(self) -> None:
        """Makes the parameters those of the network inside, by the same names."""
        nn.share_scope(self, self.net)

    def __call__(
        self,
        z_t: Array,
        logsnr_t: Array,
        *conditions: Array | None,
        train: bool = False,
    ) -> Array:
        """Takes what a network of ours takes."""
        known = [condition for condition in conditions if condition is not None]

        def network(examples: Array, levels: Array) -> Array:
            return self.net(examples, levels, *known, train=train)

        return getattr(self.denoiser_of(network)(z_t, logsnr_t), self.says)


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
