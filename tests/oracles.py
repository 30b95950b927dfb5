"""Data whose denoiser and whose probability flow are known in closed form."""

import dataclasses

import jax.numpy as jnp

from vdiff_jax.diffusion import alpha_sigma, expand_like, predict


@dataclasses.dataclass(frozen=True)
class GaussianData:
    """x ~ N(mean, std^2) in every pixel; std 0 is a single point."""

    mean: float = 0.3
    std: float = 0.5

    def spread(self, logsnr):
        """Standard deviation of z at a log-SNR."""
        alpha, sigma = alpha_sigma(logsnr)
        return jnp.sqrt((alpha * self.std) ** 2 + sigma**2)

    def denoise(self, z_t, logsnr_t):
        """The posterior mean of x, as a Prediction."""
        alpha, _ = alpha_sigma(expand_like(logsnr_t, z_t))
        spread = self.spread(expand_like(logsnr_t, z_t))
        gain = alpha * self.std**2 / spread**2
        x_hat = self.mean + gain * (z_t - alpha * self.mean)
        return predict(x_hat, z_t, logsnr_t, "x")

    def flow(self, z_t, logsnr_t, logsnr_s):
        """Where the probability-flow ODE takes z_t: its standard score is constant."""
        score = (z_t - alpha_sigma(logsnr_t)[0] * self.mean) / self.spread(logsnr_t)
        return alpha_sigma(logsnr_s)[0] * self.mean + self.spread(logsnr_s) * score
