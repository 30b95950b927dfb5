import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from oracles import GaussianData, MixtureData
from vdiff_jax import diffusion
from vdiff_jax.guidance import (
    NO_CLASS,
    Guidance,
    classifier_free,
    describe,
    guided,
    left_out,
    null,
    rescaled,
)
from vdiff_jax.types import Condition

pytestmark = pytest.mark.usefixtures("strict_dtypes")

LOGSNR = jnp.array([-6.0, -1.0, 0.0, 2.0, 5.0])
W = jnp.array([0.0, 0.3, 1.0, 4.0, 10.0])
CLASSES = GaussianData(-0.6, 0.2), GaussianData(0.6, 0.2)
EVERYTHING = MixtureData((-0.6, 0.6), (0.2, 0.2), (0.5, 0.5))


def _denoiser_of(condition):
    """The exact denoiser of two classes, or of their mixture."""

    def denoise(z_t, logsnr_t):
        told = [data.denoise(z_t, logsnr_t).x for data in (*CLASSES, EVERYTHING)]
        which = diffusion.expand_like(condition.label, z_t)
        x = jnp.where(which == NO_CLASS, told[2], jnp.where(which, told[1], told[0]))
        return diffusion.predict(x, z_t, logsnr_t, "x")

    return denoise


@pytest.fixture
def z_t():
    return jax.random.normal(jax.random.key(0), (5, 4, 4, 2))


def test_guiding_one_form_guides_all(z_t):
    conditional, unconditional = (
        diffusion.predict(out, z_t, LOGSNR, "v")
        for out in jax.random.normal(jax.random.key(1), (2, *z_t.shape))
    )
    found = guided(conditional, unconditional, W)
    for kind in ("x", "eps", "v"):
        other = diffusion.predict(getattr(found, kind), z_t, LOGSNR, kind)
        for a, b in zip(found, other, strict=True):
            scale = jnp.abs(a).max()
            np.testing.assert_allclose(a / scale, b / scale, atol=1e-5)


def test_without_strength_it_is_the_conditional_prediction(z_t):
    classes = Condition(jnp.array([0, 1, 1, 0, 1]))
    plain = _denoiser_of(classes)(z_t, LOGSNR)
    found = classifier_free(_denoiser_of, classes, jnp.zeros(5), Guidance())(
        z_t, LOGSNR
    )
    assert all(bool((a == b).all()) for a, b in zip(found, plain, strict=True))


def test_both_halves_go_through_one_call_and_find_their_examples(z_t):
    classes, shapes = Condition(jnp.array([0, 1, 1, 0, 1])), []

    def watched(condition):
        denoise = _denoiser_of(condition)

        def call(z_t, logsnr_t):
            shapes.append(z_t.shape)
            return denoise(z_t, logsnr_t)

        return call

    found = classifier_free(watched, classes, W, Guidance())(z_t, LOGSNR)
    assert shapes == [(10, 4, 4, 2)]
    told = _denoiser_of(classes)(z_t, LOGSNR).x
    untold = EVERYTHING.denoise(z_t, LOGSNR).x
    w = diffusion.expand_like(W, z_t)
    np.testing.assert_allclose(found.x, told + w * (told - untold), atol=2e-5)


def test_guidance_goes_away_from_the_other_class(z_t):
    """The more, the stronger: what the other class would say is subtracted."""
    classes = Condition(jnp.ones(5, jnp.int32))
    means = [
        classifier_free(_denoiser_of, classes, jnp.full(5, w), Guidance())(
            z_t, LOGSNR
        ).x
        for w in (0.0, 0.5, 2.0)
    ]
    assert all(bool((b >= a - 1e-5).all()) for a, b in itertools.pairwise(means))
    assert float((means[2] - means[0]).max()) > 0.5


@pytest.mark.parametrize("mask", [None, jnp.array([[True, False], [True, True]])])
def test_a_condition_that_is_left_out_says_nothing(mask):
    condition = Condition(jnp.array([3, 4]), jnp.ones((2, 2, 5)), mask, jnp.ones(2))
    nothing = null(condition)
    assert not nothing.mask.any()
    assert (nothing.label == NO_CLASS).all()
    first, second = (left_out(condition, jnp.array(which)) for which in (
        [True, False], [False, True]
    ))  # fmt: skip
    assert first.label.tolist() == [NO_CLASS, 4]
    assert second.label.tolist() == [3, NO_CLASS]
    kept = jnp.ones((2, 2), bool) if mask is None else mask
    np.testing.assert_array_equal(first.mask, kept.at[0].set(False))
    np.testing.assert_array_equal(second.mask, kept.at[1].set(False))
    for each in (nothing, first, second):
        np.testing.assert_array_equal(each.w, condition.w)
    assert left_out(Condition(), jnp.array([True])) == Condition()


def test_outside_of_its_interval_guidance_is_off(z_t):
    classes = Condition(jnp.array([0, 1, 1, 0, 1]))
    some = Guidance(logsnr_min=-1.0, logsnr_max=2.0)
    plain = _denoiser_of(classes)(z_t, LOGSNR).x
    always = classifier_free(_denoiser_of, classes, W + 1.0, Guidance())(z_t, LOGSNR).x
    found = classifier_free(_denoiser_of, classes, W + 1.0, some)(z_t, LOGSNR).x
    on = np.array([False, True, True, True, False])
    np.testing.assert_array_equal(found[on], always[on])
    np.testing.assert_array_equal(found[~on], plain[~on])


@pytest.mark.parametrize("phi", [0.0, 0.5, 1.0])
def test_rescaling_takes_back_the_contrast(z_t, phi):
    conditional, strong = (
        diffusion.predict(scale * z_t[::-1], z_t, LOGSNR, "v") for scale in (1.0, 3.0)
    )
    found = rescaled(strong, conditional, z_t, LOGSNR, phi)
    ratio = found.v.std(axis=(1, 2, 3)) / conditional.v.std(axis=(1, 2, 3))
    np.testing.assert_allclose(ratio, phi + 3.0 * (1.0 - phi), rtol=1e-5)
    again = diffusion.predict(found.v, z_t, LOGSNR, "v")
    np.testing.assert_allclose(found.x, again.x, atol=1e-5)


def test_people_read_both_conventions():
    assert describe(0.3) == "w = 0.3, guidance scale 1.3"
    assert describe(0.0) == "w = 0, guidance scale 1"
