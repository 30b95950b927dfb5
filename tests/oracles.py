"""Data whose denoiser and whose probability flow are known in closed form."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special

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


@dataclasses.dataclass(frozen=True)
class MixtureData:
    """Every pixel by itself is drawn from a mixture of two normals."""

    means: tuple[float, float] = (-0.7, 0.4)
    stds: tuple[float, float] = (0.1, 0.2)
    weights: tuple[float, float] = (0.4, 0.6)

    def sample(self, rng, shape):
        """Pixels drawn from the data."""
        which = rng.choice(2, size=shape, p=self.weights)
        return rng.normal(np.take(self.means, which), np.take(self.stds, which))

    def denoise(self, z_t, logsnr_t):
        """The posterior mean of x, as a Prediction."""
        logsnr = expand_like(logsnr_t, z_t)
        alpha, sigma = alpha_sigma(logsnr)
        x_hats, logits = [], []
        for mean, std, weight in zip(self.means, self.stds, self.weights, strict=True):
            spread = jnp.sqrt((alpha * std) ** 2 + sigma**2)
            score = (z_t - alpha * mean) / spread
            x_hats.append(mean + alpha * std**2 / spread * score)
            logits.append(math.log(weight) - jnp.log(spread) - 0.5 * score**2)
        shares = jax.nn.softmax(jnp.stack(logits), axis=0)
        x_hat = (shares * jnp.stack(x_hats)).sum(axis=0)
        return predict(x_hat, z_t, logsnr_t, "x")

    def flow(self, z_t, logsnr_t, logsnr_s):
        """Where the probability-flow ODE takes z_t: in one dimension it keeps ranks."""
        z_t = np.asarray(z_t, np.float64)
        ranks = self._cumulative(z_t, float(logsnr_t))
        low, high = np.full(z_t.shape, -9.0), np.full(z_t.shape, 9.0)
        for _ in range(60):
            middle = 0.5 * (low + high)
            below = self._cumulative(middle, float(logsnr_s)) < ranks
            low, high = np.where(below, middle, low), np.where(below, high, middle)
        return low

    def _cumulative(self, z, logsnr):
        alpha, sigma = np.sqrt(scipy.special.expit([logsnr, -logsnr]))
        spreads = np.hypot(alpha * np.array(self.stds), sigma)
        scores = (z[..., None] - alpha * np.array(self.means)) / spreads
        return scipy.special.ndtr(scores) @ np.array(self.weights)
