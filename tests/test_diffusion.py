from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdiff_jax import diffusion

LOGSNR = jnp.array([-19.0, -6.0, -0.5, 0.0, 2.0, 9.0, 19.0])
KINDS = ("x", "eps", "v", "both")


def _example(seed=0):
    x, eps = jax.random.normal(jax.random.key(seed), (2, len(LOGSNR), 4, 4, 3))
    return jnp.clip(x, -1.0, 1.0), eps


def _as_output(kind, x, eps):
    v = diffusion.velocity(x, eps, LOGSNR)
    both = jnp.concatenate([x, eps], axis=-1)
    return {"x": x, "eps": eps, "v": v, "both": both}[kind]


@pytest.mark.usefixtures("strict_dtypes")
def test_signal_and_noise_keep_the_variance():
    alpha, sigma = diffusion.alpha_sigma(LOGSNR)
    np.testing.assert_allclose(alpha**2 + sigma**2, 1.0, rtol=1e-6)
    np.testing.assert_allclose(2 * np.log(alpha / sigma), LOGSNR, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_a_perfect_output_of_any_kind_predicts_x_eps_and_v(kind):
    x, eps = _example()
    z_t = diffusion.diffuse(x, eps, LOGSNR)
    found = diffusion.predict(_as_output(kind, x, eps), z_t, LOGSNR, kind)

    alpha, sigma = diffusion.alpha_sigma(diffusion.expand_like(LOGSNR, x))
    # What a float32 z_t can tell of x is limited by alpha, of eps by sigma.
    assert jnp.all(jnp.abs(found.x - x) < 2e-6 / alpha)
    assert jnp.all(jnp.abs(found.eps - eps) < 2e-6 / sigma)
    v = diffusion.velocity(x, eps, LOGSNR)
    assert jnp.all(jnp.abs(found.v - v) < 2e-6 / jnp.minimum(alpha, sigma))


@pytest.mark.parametrize("kind", KINDS)
def test_any_output_gives_predictions_that_describe_the_same_z_t(kind):
    x, eps = _example(1)
    z_t = diffusion.diffuse(x, eps, LOGSNR)
    wrong = _as_output(kind, *_example(2))
    found = diffusion.predict(wrong, z_t, LOGSNR, kind)
    again = diffusion.diffuse(found.x, found.eps, LOGSNR)
    np.testing.assert_allclose(again, z_t, atol=1e-2, rtol=1e-4)
    middle = slice(1, -1)  # where neither alpha nor sigma is tiny
    np.testing.assert_allclose(again[middle], z_t[middle], atol=2e-5)
    np.testing.assert_allclose(
        diffusion.velocity(found.x, found.eps, LOGSNR)[middle],
        found.v[middle],
        rtol=1e-3,
        atol=1e-4,
    )


def test_both_trusts_eps_in_the_light_and_x_in_the_dark():
    z_t = jnp.ones((2, 1, 1, 1))
    logsnr = jnp.array([18.0, -18.0])
    output = jnp.broadcast_to(jnp.array([0.25, 0.5]), (2, 1, 1, 2))
    found = diffusion.predict(output, z_t, logsnr, "both")
    assert found.eps[0, 0, 0, 0] == pytest.approx(0.5, abs=1e-3)
    assert found.x[1, 0, 0, 0] == pytest.approx(0.25, abs=1e-3)


def test_clipping_moves_x_and_the_noise_with_it():
    x, eps = _example()
    z_t = diffusion.diffuse(3.0 * x, eps, LOGSNR)

    def net(z_t, logsnr_t):
        return 3.0 * x

    free = diffusion.denoiser(net, "x")(z_t, LOGSNR)
    limit = partial(diffusion.clip, limit=0.8)
    clipped = diffusion.limited(diffusion.denoiser(net, "x"), [limit])(z_t, LOGSNR)
    assert jnp.abs(free.x).max() > 2.9
    assert jnp.abs(clipped.x).max() == pytest.approx(0.8)
    middle = slice(1, -1)
    again = diffusion.diffuse(clipped.x, clipped.eps, LOGSNR)
    np.testing.assert_allclose(again[middle], z_t[middle], atol=2e-5)


def test_a_dynamic_threshold_scales_what_leaves_the_range_and_nothing_else():
    z_t = jax.random.normal(jax.random.key(0), (2, 10, 10, 1))
    logsnr_t = jnp.array([0.0, 1.0])
    ramp = jnp.linspace(-1.0, 1.0, 100).reshape(10, 10, 1)
    x = jnp.stack([0.9 * ramp, 4.0 * ramp])
    found = diffusion.threshold(
        diffusion.predict(x, z_t, logsnr_t, "x"), z_t, logsnr_t, share=0.75
    )
    np.testing.assert_allclose(found.x[0], x[0], atol=1e-6)
    # A quarter of the second is at the bounds, and the rest is as before but for scale.
    inside = np.asarray(jnp.abs(found.x[1]) < 1.0 - 1e-6)
    assert inside.mean() == pytest.approx(0.75, abs=0.02)
    ratio = np.asarray(found.x[1])[inside] / np.asarray(x[1])[inside]
    np.testing.assert_allclose(ratio, 1.0 / 3.0, rtol=0.02)
    again = diffusion.diffuse(found.x, found.eps, logsnr_t)
    np.testing.assert_allclose(again, z_t, atol=1e-5)


def test_diffuse_has_the_stated_mean_and_variance():
    eps = jax.random.normal(jax.random.key(0), (1, 200_000))
    z_t = diffusion.diffuse(jnp.full_like(eps, 0.7), eps, jnp.array([1.0]))
    assert float(z_t.mean()) == pytest.approx(0.7 * np.sqrt(1 / (1 + np.exp(-1))), 0.01)
    assert float(z_t.var()) == pytest.approx(1 / (1 + np.exp(1)), rel=0.02)


@pytest.mark.parametrize("num_steps", [1, 16, 4096])
def test_angles_between_neighbouring_times_are_even_on_the_cosine_schedule(num_steps):
    from vdiff_jax.schedules import cosine

    t = jnp.arange(num_steps, 0, -1, dtype=jnp.float32) / num_steps
    logsnr_t, logsnr_s = cosine()(t), cosine()(t - 1 / num_steps)
    sine, cos = diffusion.sin_cos_between(logsnr_t, logsnr_s)
    angle = (np.pi / 2 - 2 * np.arctan(np.exp(-10.0))) / num_steps
    np.testing.assert_allclose(sine, np.sin(angle), rtol=3e-3)
    np.testing.assert_allclose(cos, np.cos(angle), atol=1e-6)


def test_pixels_survive_the_round_trip_and_are_rounded():
    pixels = jnp.arange(256, dtype=jnp.uint8)
    x = diffusion.from_pixels(pixels)
    assert x.min() == -1.0
    assert x.max() == 1.0
    np.testing.assert_array_equal(diffusion.to_pixels(x), pixels)
    np.testing.assert_array_equal(diffusion.to_pixels(x + 0.4 / 127.5), pixels)
    assert diffusion.to_pixels(jnp.float32(9.0)) == 255


def test_wrong_shapes_and_kinds_are_refused():
    x = jnp.zeros((2, 4))
    with pytest.raises(ValueError, match="Unknown output 'noise'"):
        diffusion.predict.__wrapped__(x, x, jnp.zeros(2), "noise")
    with pytest.raises(ValueError, match="one value per example"):
        diffusion.expand_like(jnp.zeros(3), x)


def test_the_clipped_sampler_clips_both_estimates_and_leaves_them_in_disagreement():
    z_t = jax.random.normal(jax.random.key(0), (len(LOGSNR), 4))
    clipped = diffusion.limited(
        diffusion.denoiser(lambda z_t, logsnr_t: 3.0 * jnp.sin(5.0 * z_t), "x"),
        [partial(diffusion.clip, limit=1.2), partial(diffusion.clip_eps, limit=1.2)],
    )(z_t, LOGSNR)
    for part in (clipped.x, clipped.eps):
        assert float(jnp.abs(part).max()) == pytest.approx(1.2)
    # v is what a step by x and eps turns by.
    alpha, sigma = diffusion.alpha_sigma(diffusion.expand_like(LOGSNR, z_t))
    rebuilt = alpha * clipped.x + sigma * clipped.eps
    np.testing.assert_allclose(
        alpha * rebuilt - sigma * clipped.v, clipped.x, atol=1e-5
    )
    assert float(jnp.abs(rebuilt - z_t).max()) > 0.1
