import jax
import jax.numpy as jnp
import numpy as np
import pytest

from oracles import GaussianData
from vdiff_jax import diffusion, losses, schedules

LOGSNR = jnp.array([-8.0, -2.0, -0.1, 0.3, 1.7, 8.0])


def _mse(a, b):
    return np.asarray(jnp.square(a - b).mean(axis=(1, 2, 3)))


@pytest.mark.parametrize("kind", ["x", "eps", "v", "both"])
def test_weights_mean_what_they_say_for_every_output(kind):
    x, eps, out = jax.random.normal(jax.random.key(0), (3, len(LOGSNR), 4, 4, 2))
    if kind == "both":
        out = jnp.concatenate([out, out[..., ::-1]], axis=-1)
    z_t = diffusion.diffuse(x, eps, LOGSNR)
    found = diffusion.predict(out, z_t, LOGSNR, kind)
    v = diffusion.velocity(x, eps, LOGSNR)
    x_mse, eps_mse = _mse(found.x, x), _mse(found.eps, eps)

    stated = {
        losses.constant: x_mse,
        losses.snr: eps_mse,
        losses.snr_trunc: np.maximum(x_mse, eps_mse),
        losses.snr_plus_one: x_mse + eps_mse,
        losses.min_snr(3.0): np.minimum(eps_mse, 3.0 * x_mse),
    }
    for weight, expected in stated.items():
        error = losses.weighted_v_error(found.v, v, LOGSNR, weight)
        np.testing.assert_allclose(error, expected, rtol=2e-3)


def test_weights_stay_bounded_where_the_snr_does_not():
    ends = jnp.array([-20.0, 20.0])
    for weight in (losses.constant, losses.snr, losses.snr_trunc, losses.snr_plus_one):
        assert jnp.all((weight(ends) >= 0) & (weight(ends) <= 1))


@pytest.mark.parametrize("num_steps", [1, 2, 3, 1000])
def test_step_indices_are_uniform_from_1_to_n(num_steps):
    u = jnp.append((jnp.arange(6000) + 0.5) / 6000, jnp.float32(1 - 2**-24))
    i = np.asarray(losses.step_index(u, num_steps))
    assert i.min() == 1
    assert i.max() == num_steps
    counts = np.bincount(i.astype(int))[1:]
    assert counts.max() - counts.min() <= 2


def test_stratified_times_are_spread_and_uniform():
    draws = losses.draw(jax.random.key(3), 64, stratified=True)
    assert len(np.unique(np.floor(np.asarray(draws.u) * 64))) == 64
    first = [
        float(losses.draw(jax.random.key(k), 4, stratified=True).u[0])
        for k in range(200)
    ]
    assert np.mean(first) == pytest.approx(0.5, abs=0.06)


def test_what_one_update_draws_is_independent_of_each_other():
    draws = losses.draw(jax.random.key(0), 4000)
    uniform = [draws.u, *(draws.uniform(name) for name in ("mirror", "label", "w"))]
    for values in uniform:
        assert values.mean() == pytest.approx(0.5, abs=0.03)
    others = [*draws.eps((2,)).T, draws.normal("n", ())]
    of_both = np.corrcoef([*uniform, *others])
    assert np.abs(of_both - np.eye(len(of_both))).max() < 0.06
    # Nor is an example's of its neighbour's, or of the next step's.
    later = losses.draw(jax.random.key(1), 4000)
    for u, v in ((draws.u[1:], draws.u[:-1]), (draws.u, later.u)):
        assert abs(np.corrcoef(u, v)[0, 1]) < 0.06


@pytest.mark.parametrize("stratified", [False, True])
def test_a_part_of_a_batch_draws_what_the_whole_draws_there(stratified):
    key = jax.random.key(5)
    whole = losses.draw(key, 8, stratified=stratified)
    part = losses.draw(key, 2, stratified=stratified, first=4, of=8)
    np.testing.assert_array_equal(part.u, whole.u[4:6])
    for name in ("label", "w"):
        np.testing.assert_array_equal(part.uniform(name), whole.uniform(name)[4:6])
    np.testing.assert_array_equal(part.eps((3, 2)), whole.eps((3, 2))[4:6])


def test_mirror_flips_the_width_of_the_chosen():
    x = jnp.arange(12.0).reshape(2, 2, 3, 1)
    found = losses.mirror(x, jnp.array([True, False]))
    np.testing.assert_array_equal(found[0], np.fliplr(x[0]))
    np.testing.assert_array_equal(found[1], x[1])


@pytest.mark.parametrize("num_steps", [None, 4])
def test_the_exact_denoiser_has_the_least_loss(num_steps):
    data = GaussianData(mean=0.2, std=0.6)
    draws = losses.draw(jax.random.key(0), 32_768, stratified=True)
    x = 0.2 + 0.6 * jax.random.normal(jax.random.key(1), (32_768, 2, 2, 1))

    def loss(shift):
        def denoise(z_t, logsnr_t):
            v = data.denoise(z_t, logsnr_t).v + shift
            return diffusion.predict(v, z_t, logsnr_t, "v")

        return losses.denoising_loss(
            denoise,
            x,
            draws,
            schedule=schedules.cosine(),
            weight=losses.snr_plus_one,
            num_steps=num_steps,
        ).mean()

    assert loss(0.0) < loss(0.05)
    assert loss(0.0) < loss(-0.05)
    assert float(jax.grad(loss)(0.0)) == pytest.approx(0.0, abs=0.02)


def test_a_noise_offset_is_shared_by_a_channel_and_independent_of_the_rest():
    plain, moved = (
        np.asarray(losses.draw(jax.random.key(0), 500, noise_offset=c).eps((8, 8, 3)))
        for c in (0.0, 0.5)
    )
    offset = (moved - plain).reshape(500, 64, 3)
    np.testing.assert_allclose(offset, offset[:, :1].repeat(64, 1), atol=1e-5)
    shared = offset[:, 0]
    assert shared.std() == pytest.approx(0.5, rel=0.06)
    others = plain.mean(axis=(1, 2)), shared[:, ::-1]
    for other in others:
        pairs = np.corrcoef(shared[:, 0], other[:, 0])
        assert abs(pairs[0, 1]) < 0.15
