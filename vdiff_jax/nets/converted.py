"""A network whose output is turned into another kind, exactly."""

import flax.linen as nn
from jaxtyping import Array

from vdiff_jax.diffusion import Output, predict


class Converted(nn.Module):
    """Computes x, eps or v from what the network inside says; adds no parameters.

    As a denoiser it is the network inside, to rounding: but what it is trained to say,
    and how errors of the weights weigh, are those of the new output. From eps to v the
    noise is divided by alpha, which is 5e-5 at the end of the cosine schedule.

    Attributes:
      net: The network inside.
      source: What it says.
      target: What this says: x, eps or v.
    """

    net: nn.Module
    source: Output
    target: Output

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
        """Takes what the network inside takes."""
        output = self.net(z_t, logsnr_t, *conditions, train=train)
        return getattr(predict(output, z_t, logsnr_t, self.source), self.target)
