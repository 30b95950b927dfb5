"""Conventions of others: round trips, and their samplers against ours."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdiff_jax import samplers, schedules
from vdiff_jax.diffusion import predict
from vdiff_jax.interop import conventions

SCHEDULE = schedules.cosine(-8.0, 12.0)
TABLE = schedules.logsnr_of_betas(schedules.linear_betas())


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def _denoise(z_t, logsnr_t):
    """Any smooth v will do."""
    v = jnp.sin(z_t + 0.3 * logsnr_t[:, None]) + 0.2 * z_t
    return predict(v, z_t, logsnr_t, "v")


def _noise(n=5):
    return jnp.asarray(np.random.default_rng(0).normal(size=(n, 3)))


@pytest.mark.parametrize(
    ("there", "back"),
    [
        (conventions.as_edm, conventions.from_edm),
        (conventions.as_v_diffusion, conventions.from_v_diffusion),
        (conventions.as_flow, conventions.from_flow),
    ],
)
def test_there_and_back_is_the_same_denoiser(there, back):
    logsnr = jnp.array([-8.0, -2.0, 0.0, 3.0, 9.0])
    z_t = _noise()
    for ours, again in zip(
        _denoise(z_t, logsnr), back(there(_denoise))(z_t, logsnr), strict=True
    ):
        np.testing.assert_allclose(again, ours, atol=1e-10)


@pytest.mark.parametrize("k", [0, 7, 500, 999])
def test_a_ddpm_is_asked_for_the_number_of_its_step(k):
    z_t, asked = _noise(1), []

    def network(z_t, number):
        asked.append(number)
        return conventions.as_ddpm(_denoise, TABLE)(z_t, number)

    logsnr = jnp.array([TABLE[k]])
    found = conventions.from_ddpm(network, TABLE)(z_t, logsnr)
    np.testing.assert_allclose(asked[0], [k], atol=1e-9)
    np.testing.assert_allclose(found.x, _denoise(z_t, logsnr).x, atol=1e-9)


def test_between_two_steps_it_is_asked_for_a_fraction():
    asked = []
    logsnr = jnp.array([0.25 * TABLE[10] + 0.75 * TABLE[11], 50.0, -50.0])
    conventions.from_ddpm(lambda z, k: [asked.append(k), z][1], TABLE)(
        _noise(3), logsnr
    )
    np.testing.assert_allclose(asked[0], [10.75, 0.0, 999.0], atol=1e-9)


@pytest.mark.parametrize("num_steps", [1, 2, 4, 8])
def test_their_samplers_take_our_steps(num_steps):
    """Euler in sigma, Euler of the flow, and DDIM in t are one sampler: ours."""
    z_1 = _noise()
    ours = samplers.sample(_denoise, z_1, schedule=SCHEDULE, num_steps=num_steps)
    found = []

    edm = conventions.as_edm(_denoise)
    levels = conventions.noise_levels(SCHEDULE, num_steps, "edm")
    y = z_1 * jnp.sqrt(1 + levels[0] ** 2)
    for s, r in itertools.pairwise(levels):
        x = edm(y, jnp.full(5, s))
        y = y + (y - x) / s * (r - s)
    found.append(y)

    flow = conventions.as_flow(_denoise)
    levels = conventions.noise_levels(SCHEDULE, num_steps, "flow")
    q = levels[0]
    y = z_1 * jnp.sqrt((1 - q) ** 2 + q**2)
    for q, r in itertools.pairwise(levels):
        y = y + (r - q) * flow(y, jnp.full(5, q))
    found.append(y)

    velocity = conventions.as_v_diffusion(_denoise)
    levels = conventions.noise_levels(SCHEDULE, num_steps, "v_diffusion")
    y = z_1
    for t, r in itertools.pairwise(levels):
        v = velocity(y, jnp.full(5, t))
        alpha, sigma = jnp.cos(jnp.pi * t / 2), jnp.sin(jnp.pi * t / 2)
        x, eps = alpha * y - sigma * v, sigma * y + alpha * v
        y = jnp.cos(jnp.pi * r / 2) * x + jnp.sin(jnp.pi * r / 2) * eps
    found.append(y)
    for each in found:
        np.testing.assert_allclose(each, ours, atol=2e-6)


def test_a_ddpm_has_no_grid_of_ours():
    with pytest.raises(ValueError, match="as_ddpm"):
        conventions.noise_levels(SCHEDULE, 4, "ddpm")


def test_images_of_torch_go_in_and_out_without_a_copy_of_our_own():
    torch = pytest.importorskip("torch")
    images = torch.arange(2 * 3 * 4 * 5.0).reshape(2, 3, 4, 5)
    shapes = []
    function = conventions.in_nchw(lambda x, s: [shapes.append(x.shape), 2 * x][1])
    found = torch.from_dlpack(function(images, torch.ones(2)))
    assert shapes == [(2, 4, 5, 3)]
    assert torch.equal(found, 2 * images)
