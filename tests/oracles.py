"""Data whose denoiser and whose flow are known, and chance whose means are exact."""

import dataclasses
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special

from vdiff_jax.diffusion import alpha_sigma, expand_like, predict
from vdiff_jax.losses import Draws


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

    def posterior(self, z_t, logsnr_t, noise):
        """Draws from p(x | z_t) with standard normal noise, as a Prediction."""
        logsnr = expand_like(logsnr_t, z_t)
        deviation = self.std * alpha_sigma(logsnr)[1] / self.spread(logsnr)
        x = self.denoise(z_t, logsnr_t).x + deviation * noise
        return predict(x, z_t, logsnr_t, "x")

    def flow(self, z_t, logsnr_t, logsnr_s):
        """Where the probability-flow ODE takes z_t: its standard score is constant."""
        score = (z_t - alpha_sigma(logsnr_t)[0] * self.mean) / self.spread(logsnr_t)
        return alpha_sigma(logsnr_s)[0] * self.mean + self.spread(logsnr_s) * score

    def jump(self, z_t, logsnr_t, logsnr_s):
        """The prediction whose one DDIM step to s is the flow's."""
        logsnr_t_, logsnr_s_ = (expand_like(l, z_t) for l in (logsnr_t, logsnr_s))
        angle_t, angle_s = (jnp.arctan(jnp.exp(-l / 2)) for l in (logsnr_t_, logsnr_s_))
        angle = angle_t - angle_s
        z_s = self.flow(z_t, logsnr_t_, logsnr_s_)
        v = (jnp.cos(angle) * z_t - z_s) / jnp.sin(angle)
        return predict(v, z_t, logsnr_t, "v")


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

    def posterior(self, key, z_t, logsnr_t):
        """Draws from p(x | z_t), as a Prediction."""
        logsnr = expand_like(logsnr_t, z_t)
        alpha, _ = alpha_sigma(logsnr)
        xs, logits = [], []
        of_part, of_noise = jax.random.split(key)
        noise = jax.random.normal(of_noise, z_t.shape)
        for mean, std, weight in zip(self.means, self.stds, self.weights, strict=True):
            part = GaussianData(mean, std)
            spread = part.spread(logsnr)
            xs.append(part.posterior(z_t, logsnr_t, noise).x)
            score = (z_t - alpha * mean) / spread
            logits.append(math.log(weight) - jnp.log(spread) - 0.5 * score**2)
        second = jax.random.bernoulli(of_part, jax.nn.sigmoid(logits[1] - logits[0]))
        return predict(jnp.where(second, xs[1], xs[0]), z_t, logsnr_t, "x")

    def distance(self, z, logsnr):
        """Largest difference of the distributions of these z and of z at a log-SNR."""
        z = np.sort(np.asarray(z, np.float64), axis=None)
        ranks = (np.arange(z.size) + 0.5) / z.size
        return np.abs(self._cumulative(z, float(logsnr)) - ranks).max()

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


# A column of signs for each thing that is drawn; their means are 0 and their squares 1,
# and no two of them are correlated.
_DRAWN = ("x", "eps", "noise", "input")
_SIGNS = np.array(list(itertools.product((-1.0, 1.0), repeat=len(_DRAWN))))


@dataclasses.dataclass(frozen=True)
class Signs(Draws):
    """Draws whose normals are signs in all combinations: a two-level design.

    The mean over a batch of what is linear or quadratic in them is its expectation.

    Attributes:
      share: The value of every uniform draw but u.
    """

    share: float = 0.0

    def uniform(self, name):
        del name
        return jnp.full(self.u.shape, self.share)

    def normal(self, name, shape):
        column = jnp.asarray(_SIGNS[:, _DRAWN.index(name)])
        return jnp.broadcast_to(column.reshape(-1, *(1,) * len(shape)), (16, *shape))


def signs(i, num_steps, share=0.0):
    """The draws for which t = i / num_steps in every example."""
    keys = jax.random.split(jax.random.key(0), 16)
    return Signs(jnp.full(16, (i - 0.5) / num_steps), keys, share=share)
