"""Data as x, and x as data."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdiff_jax import losses
from vdiff_jax.codec import Codec, Latents, Pixels


def test_pixels_are_bounded_and_latents_are_not():
    assert isinstance(Pixels(), Codec)
    assert isinstance(Latents(4, 0.2), Codec)
    assert Pixels.bounded
    assert not Latents.bounded


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_latents_are_shifted_and_scaled_and_come_back(dtype):
    codec = Latents(2, 0.5, shift=3.0)
    latents = np.random.default_rng(0).normal(size=(3, 4, 4, 2)).astype(dtype)
    x = codec.to_x(jnp.asarray(latents))
    assert x.dtype == jnp.float32
    np.testing.assert_allclose(
        x, 0.5 * (latents - 3.0), rtol=2e-3 if dtype == np.float16 else 1e-6, atol=1e-6
    )
    np.testing.assert_allclose(codec.from_x(x), latents, rtol=1e-5, atol=1e-5)


def test_moments_are_drawn_from_or_give_their_mean():
    """A fresh draw has the mean and the variance that the moments state."""
    codec, count = Latents(1, 2.0), 4000
    mean, log_variance = 0.3, np.log(0.04)
    moments = jnp.broadcast_to(jnp.array([mean, log_variance]), (count, 2, 2, 2))
    np.testing.assert_allclose(codec.to_x(moments), 2.0 * mean, rtol=1e-6)
    draws = losses.draw(jax.random.key(0), count)
    x = codec.to_x(moments, normal=lambda shape: draws.normal("latent", shape))
    assert x.shape == (count, 2, 2, 1)
    assert float(x.mean()) == pytest.approx(2.0 * mean, abs=0.02)
    assert float(x.std()) == pytest.approx(2.0 * 0.2, abs=0.01)
