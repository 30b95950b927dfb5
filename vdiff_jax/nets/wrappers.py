"""Networks of others, and bare functions, in the place of one of ours."""

from collections.abc import Callable
from typing import Any, Literal

import flax.linen as nn
from jaxtyping import Array

from vdiff_jax.types import NOTHING, Condition, Denoiser, Network, Params


class Converted(nn.Module):
    """A network that predicts x, eps or v by way of another; adds no parameters.

    As a denoiser it is the network inside, to rounding. But it is trained for the new
    output, and errors of the weights weigh as that output makes them. From eps to v the
    noise is divided by alpha, which is 5e-5 at the end of the cosine schedule.

    Attributes:
      net: The network inside, (examples, noise levels, condition, train=) -> its
        prediction.
      denoiser_of: Makes a denoiser of the network inside, whose inputs and predictions
        may follow any convention.
      output: The quantity that this network predicts.
    """

    net: nn.Module
    denoiser_of: Callable[[Network], Denoiser]
    output: Literal["x", "eps", "v"]

    def setup(self) -> None:
        """Makes the parameters those of the network inside, by the same names."""
        nn.share_scope(self, self.net)

    def __call__(
        self,
        z_t: Array,
        logsnr_t: Array,
        condition: Condition = NOTHING,
        *,
        train: bool = False,
    ) -> Array:
        """Predicts, from the arguments of one of our networks."""

        def network(examples: Array, levels: Array) -> Array:
            return self.net(examples, levels, condition, train=train)

        return getattr(self.denoiser_of(network)(z_t, logsnr_t), self.output)


class Positional(nn.Module):
    """A network of the user's own, which takes the parts of a condition one by one.

    Attributes:
      own: That network, (examples, noise levels, *parts, train=) -> output. The
        parts are the label, then a context and its mask, then w, each if there is one.
      label_always: Gives a label of None where there is none.
    """

    own: nn.Module
    label_always: bool

    def setup(self) -> None:
        """Makes the parameters those of the network inside, by the same names."""
        nn.share_scope(self, self.own)

    def __call__(
        self,
        z_t: Array,
        logsnr_t: Array,
        condition: Condition = NOTHING,
        *,
        train: bool = False,
    ) -> Array:
        """Calls the network with the parts of the condition."""
        label, *others = condition
        parts: list[Any] = [part for part in others if part is not None]
        if self.label_always or label is not None:
            parts = [label, *parts]
        return self.own(z_t, logsnr_t, *parts, train=train)


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
        """Calls the function with its parameters and these inputs."""
        del train
        params = self.param("function", lambda key: self.start())
        return self.function(params, *inputs)
