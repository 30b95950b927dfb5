import itertools
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from scipy.special import expit, xlogy

from oracles import GaussianData, MixtureData
from vdiff_jax import diffusion, likelihood

WIDTH = 1.0 / 127.5  # of a grey value


class GreyData:
    """Every pixel by itself is one of a few greys, with known chances."""

    greys = np.array([0, 100, 101, 180, 255])
    chances = np.array([0.1, 0.2, 0.25, 0.4, 0.05])

    def sample(self, rng, shape):
        """Images, and -log2 of their chances, per pixel."""
        which = rng.choice(len(self.greys), size=shape, p=self.chances)
        image = jnp.asarray(self.greys[which], jnp.uint8)
        return image, -np.log2(self.chances[which]).mean(axis=(1, 2, 3))

    def denoise(self, z_t, logsnr_t):
        """The posterior mean of x, as a Prediction."""
        alpha, sigma = diffusion.alpha_sigma(diffusion.expand_like(logsnr_t, z_t))
        xs = [float(grey) / 127.5 - 1.0 for grey in self.greys]
        scores = jnp.stack([(z_t - alpha * x) / sigma for x in xs], axis=-1)
        logs = jnp.stack([jnp.full_like(z_t, math.log(p)) for p in self.chances], -1)
        shares = jax.nn.softmax(logs - 0.5 * scores**2, axis=-1)
        x_hat = sum(shares[..., i] * x for i, x in enumerate(xs))
        return diffusion.predict(x_hat, z_t, logsnr_t, "x")


class CorrelatedData:
    """x ~ N(0, covariance) over the pixels of an example, [batch, pixels]."""

    def __init__(self, pixels):
        mixing = np.random.default_rng(0).normal(size=(pixels, pixels))
        self.covariance = 0.2 * mixing @ mixing.T / pixels + 0.01 * np.eye(pixels)

    def denoise(self, z_t, logsnr_t):
        """The posterior mean of x, as a Prediction."""
        variances, axes = np.linalg.eigh(self.covariance)
        variances = jnp.asarray(variances[None], jnp.float32)
        axes = jnp.asarray(axes, jnp.float32)
        alpha, sigma = diffusion.alpha_sigma(diffusion.expand_like(logsnr_t, z_t))
        gain = alpha * variances / (alpha**2 * variances + sigma**2)
        return diffusion.predict(((z_t @ axes) * gain) @ axes.T, z_t, logsnr_t, "x")

    def bits(self, x):
        """-log2 p(x), per pixel."""
        normal = scipy.stats.multivariate_normal(cov=self.covariance)
        return -normal.logpdf(x) / x.shape[1] / math.log(2.0)


def _over_keys(bits, count):
    """What `bits` gives for each of `count` keys, compiled."""
    return jax.jit(jax.vmap(bits))(jax.random.split(jax.random.key(0), count))


def _normal_image(data, shape):
    """An image of normal pixels, and -log2 of their chances, per pixel."""
    x = data.mean + data.std * jax.random.normal(jax.random.key(5), shape)
    image = diffusion.to_pixels(x)
    ends = (np.asarray(image)[..., None] + np.array([-0.5, 0.5])) / 127.5 - 1.0
    chances = np.diff(scipy.stats.norm.cdf(ends, data.mean, data.std), axis=-1)
    return image, -np.log2(chances).mean(axis=(1, 2, 3, 4))


def _divergence(mean_q, std_q, mean_p, std_p):
    """KL(q || p) of normals, in bits per pixel."""
    nats = np.log(std_p / std_q) - 0.5
    nats += (std_q**2 + (mean_q - mean_p) ** 2) / (2.0 * std_p**2)
    return nats.mean(axis=(1, 2, 3)) / math.log(2.0)


def _told_by(logsnr, x, data):
    """What z tells of x: KL(q(z | x) || p(z)), in bits per pixel."""
    alpha, sigma = np.sqrt(expit([logsnr, -logsnr]))
    spread = np.hypot(alpha * data.std, sigma)
    return _divergence(alpha * np.asarray(x), sigma, alpha * data.mean, spread)


def test_the_bound_is_exact_where_the_denoiser_knows_the_greys():
    data = GreyData()
    image, exact = data.sample(np.random.default_rng(0), (3, 16, 16, 1))
    bits = partial(
        likelihood.variational_bits, data.denoise, image, logsnr_max=15.0, num_times=768
    )
    found = jax.jit(bits)(jax.random.key(0))
    np.testing.assert_allclose(found, exact, atol=0.06)


def test_the_diffusion_term_is_what_the_two_ends_differ_by():
    data = GaussianData(mean=0.3, std=0.5)
    x = jax.random.uniform(jax.random.key(1), (4, 8, 8, 3), minval=-1.0)
    exact = _told_by(13.3, x, data) - _told_by(-20.0, x, data)
    spreads = []
    for num_times in (1, 16):
        bits = partial(likelihood.diffusion_bits, data.denoise, x, num_times=num_times)
        found = _over_keys(bits, 960 // num_times)
        error = found.std(axis=0) / math.sqrt(len(found))
        assert np.all(error < 0.01 * exact)
        assert np.all(np.abs(found.mean(axis=0) - exact) < 4.0 * error)
        spreads.append(found.std(axis=0))
    # Measured: 7. Times drawn independently would gain a factor of 4.
    assert np.all(spreads[0] > 5.5 * spreads[1])


@pytest.mark.parametrize("logsnr_1", [-20.0, -6.0, 1.0])
def test_the_prior_is_the_divergence_from_standard_noise(logsnr_1):
    x = jax.random.normal(jax.random.key(0), (3, 4, 4, 1))
    alpha, sigma = np.sqrt(expit([logsnr_1, -logsnr_1]))
    found = likelihood.prior_bits(x, logsnr_1)
    exact = _divergence(alpha * np.asarray(x), sigma, 0.0, 1.0)
    np.testing.assert_allclose(found, exact, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("logsnr_0", [4.0, 10.0, 13.3])
def test_the_reconstruction_is_the_entropy_of_a_grey_given_z_0(logsnr_0):
    # All greys alike often: log2(256) + h(z_0 given the grey) - h(z_0).
    image = jnp.broadcast_to(jnp.arange(256, dtype=jnp.uint8)[None], (100, 256))
    noise = math.exp(-0.5 * logsnr_0) / WIDTH
    z_0 = np.linspace(-10.0 * noise, 255.0 + 10.0 * noise, 20_001)
    p = scipy.stats.norm.pdf(z_0[:, None], np.arange(256)[None], noise).mean(axis=1)
    lost = scipy.stats.norm.entropy(scale=noise) + np.trapezoid(xlogy(p, p), z_0)

    found = likelihood.reconstruction_bits(image, jax.random.key(0), logsnr_0)
    exact = 8.0 + lost / math.log(2.0)
    assert float(found.mean()) == pytest.approx(exact, abs=0.015)


def test_noise_without_signal_leaves_all_eight_bits_open():
    image = jnp.array([[0, 99, 255]], jnp.uint8)
    found = likelihood.reconstruction_bits(image, jax.random.key(0), -30.0)
    assert float(found[0]) == pytest.approx(8.0, abs=1e-4)


@pytest.mark.usefixtures("strict_dtypes")
@pytest.mark.parametrize(("logsnr_max", "above"), [(12.0, 0.03), (13.3, 0.56)])
def test_the_bound_of_a_smooth_density_is_as_far_above_as_stated(logsnr_max, above):
    data, logsnr_min = GaussianData(mean=0.1, std=0.2), 1.0
    image, exact = _normal_image(data, (4, 16, 16, 3))
    bits = partial(
        likelihood.variational_bits,
        data.denoise,
        image,
        logsnr_min=logsnr_min,
        logsnr_max=logsnr_max,
        num_times=512,
    )
    found = jax.jit(bits)(jax.random.key(0))

    x = np.asarray(diffusion.from_pixels(image))
    alpha, sigma = np.sqrt(expit([logsnr_min, -logsnr_min]))
    prior = _divergence(alpha * x, sigma, 0.0, 1.0)
    too_early = prior - _told_by(logsnr_min, x, data)  # for z_1 to be standard noise
    np.testing.assert_allclose(found, exact + above + too_early, atol=0.06)


def test_the_discrete_bound_falls_to_the_continuous():
    data, x = GaussianData(mean=0.1, std=0.2), jnp.full((4, 16, 16, 1), 0.2)

    def bits(num_steps):
        return likelihood.diffusion_bits(
            data.denoise, x, jax.random.key(0), num_steps=num_steps, num_times=512
        ).mean()

    continuous, *discrete = jax.jit(lambda: [bits(n) for n in (None, 256, 512)])()
    above = [float(bits - continuous) for bits in discrete]
    assert above[0] > above[1] > 0.0
    assert above[0] / above[1] == pytest.approx(2.0, rel=0.1)  # as 1 / T


def test_the_discrete_bound_sums_the_divergences_of_its_steps():
    x = jax.random.normal(jax.random.key(0), (2, 16, 16, 3))
    edges = np.linspace(-3.0, 2.0, 5)

    def nothing(z_t, logsnr_t):
        asked = jnp.isclose(logsnr_t[:, None], edges[None, :-1], atol=1e-5).any(axis=1)
        x_hat = jnp.where(diffusion.expand_like(asked, z_t), 0.0 * z_t, jnp.nan)
        return diffusion.predict(x_hat, z_t, logsnr_t, "x")

    exact = 0.0
    for logsnr_t, logsnr_s in itertools.pairwise(edges):
        fresh = 1.0 - math.exp(logsnr_t - logsnr_s)
        alpha_s, sigma_s = np.sqrt(expit([logsnr_s, -logsnr_s]))
        # From one z_t, the eps of x and that of 0 are (alpha_t / sigma_t) x apart.
        mean, std = alpha_s * fresh * np.asarray(x), sigma_s * math.sqrt(fresh)
        exact += _divergence(mean, std, 0.0, std)
    found = jax.jit(
        partial(
            likelihood.diffusion_bits,
            nothing,
            x,
            logsnr_min=-3.0,
            logsnr_max=2.0,
            num_steps=4,
            num_times=64,
        )
    )(jax.random.key(0))
    np.testing.assert_allclose(found, exact, rtol=0.02)


def test_a_biased_denoiser_has_a_worse_bound():
    # A bias of v costs half its square times alpha^2, whose integral is 13.3.
    data = GaussianData(mean=0.1, std=0.2)
    x = data.mean + data.std * jax.random.normal(jax.random.key(5), (4, 16, 16, 3))

    def bits(bias):
        def denoise(z_t, logsnr_t):
            v = data.denoise(z_t, logsnr_t).v + bias
            return diffusion.predict(v, z_t, logsnr_t, "v")

        return likelihood.diffusion_bits(
            denoise, x, jax.random.key(0), num_times=128
        ).mean()

    exact, *worse = jax.jit(jax.vmap(bits))(jnp.array([0.0, 0.5, -0.5]))
    cost = 0.5 * 0.5**2 * 13.3 / math.log(2.0)
    assert [float(bits - exact) for bits in worse] == pytest.approx(
        [cost, cost], rel=0.03
    )


def test_the_flow_gives_the_density_of_a_mixture_with_order_four():
    data = MixtureData()
    x = data.sample(np.random.default_rng(0), (4, 8, 8, 1))
    density = sum(
        weight * scipy.stats.norm.pdf(x, mean, std)
        for mean, std, weight in zip(data.means, data.stds, data.weights, strict=True)
    )
    exact = -np.log2(density).mean(axis=(1, 2, 3))

    # Pixels by themselves have a diagonal Jacobian, whose trace any signs give.
    signs = jax.random.rademacher(jax.random.key(0), x.shape, jnp.float32)
    x = jnp.asarray(x, jnp.float32)
    coarse, fine, finest = (
        np.abs(
            jax.jit(partial(likelihood.density_bits, data.denoise, num_steps=n))(
                x, signs
            )
            - exact
        )
        for n in (8, 16, 32)
    )
    assert math.log2(coarse.mean() / fine.mean()) == pytest.approx(4.0, abs=0.6)
    assert np.all(finest < 2e-4)


def test_the_density_is_that_of_z_0_in_units_of_x():
    data = GaussianData(mean=0.3, std=0.5)
    x = jnp.linspace(-1.0, 1.0, 12).reshape(3, 4)
    spread = math.sqrt(data.std**2 + math.exp(-1.0))  # of z_0 / alpha_0
    exact = -scipy.stats.norm.logpdf(x, data.mean, spread).mean(axis=1) / math.log(2.0)
    found = likelihood.density_bits(data.denoise, x, jnp.ones_like(x), logsnr_max=1.0)
    np.testing.assert_allclose(found, exact, atol=1e-4)


def test_the_probe_estimates_the_trace_of_correlated_data():
    data = CorrelatedData(8)
    x = np.random.default_rng(0).multivariate_normal(np.zeros(8), data.covariance, 3)
    exact, x = data.bits(x), jnp.asarray(x, jnp.float32)

    def bits(probe):
        probe = jnp.broadcast_to(probe[None], x.shape)
        return likelihood.density_bits(data.denoise, x, probe)

    every_sign = 1.0 - 2.0 * ((np.arange(256)[:, None] >> np.arange(8)) & 1)
    found = jax.jit(jax.vmap(bits))(jnp.asarray(every_sign, jnp.float32))
    assert found.std(axis=0).min() > 0.1
    np.testing.assert_allclose(found.mean(axis=0), exact, atol=1e-3)


@pytest.mark.usefixtures("strict_dtypes")
def test_flow_bits_count_the_greys():
    data = GaussianData(mean=0.1, std=0.3)
    image, exact = _normal_image(data, (3, 8, 8, 3))
    found = _over_keys(lambda key: likelihood.flow_bits(data.denoise, image, key), 16)
    # An offset of 7 bits, for a grey value of 2 / 256, would be wrong by 0.006.
    np.testing.assert_allclose(found.mean(axis=0), exact, atol=1e-3)


def test_the_probe_of_flow_bits_is_unbiased():
    data = CorrelatedData(16)
    image = jnp.full((1, 16), 130, jnp.uint8)
    exact = data.bits(np.asarray(diffusion.from_pixels(image))) + math.log2(127.5)
    found = _over_keys(lambda key: likelihood.flow_bits(data.denoise, image, key), 200)
    error = found.std() / math.sqrt(len(found))
    assert error < 0.03
    assert abs(float(found.mean() - exact)) < 4.0 * error


def test_dequantized_pixels_fill_their_cells():
    image = jnp.broadcast_to(jnp.array([0, 7, 255], jnp.uint8)[None], (4000, 3))
    x = likelihood.dequantize(image, jax.random.key(0))
    away = np.asarray((x - diffusion.from_pixels(image)) / WIDTH, np.float64)
    cells = scipy.stats.uniform(-0.5, 1.0)
    assert scipy.stats.kstest(away.ravel(), cells.cdf).pvalue > 0.01
    assert np.abs(away).max() < 0.501


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"logsnr_min": 14.0}, "logsnr_min must be below logsnr_max, got 14.0 and"),
        ({"num_steps": 0}, "num_steps must be at least 1, got 0"),
    ],
)
def test_mistakes_are_refused(options, message):
    image, key = jnp.zeros((2, 4), jnp.uint8), jax.random.key(0)
    for bits in (likelihood.variational_bits, likelihood.flow_bits):
        with pytest.raises(ValueError, match=message):
            bits(GaussianData().denoise, image, key, **options)
    with pytest.raises(ValueError, match="num_times must be at least 1, got -1"):
        likelihood.variational_bits(GaussianData().denoise, image, key, num_times=-1)


def test_floats_are_not_taken_for_pixels():
    x, key = jnp.zeros((2, 4)), jax.random.key(0)
    for refuses in (
        lambda: likelihood.dequantize.__wrapped__(x, key),
        lambda: likelihood.reconstruction_bits.__wrapped__(x, key, 13.3),
    ):
        with pytest.raises(ValueError, match=r"uint8 from 0 to 255, got float32"):
            refuses()
