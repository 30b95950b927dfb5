"""What the composition root makes of a config, where no stage shows it."""

import jax
import jax.numpy as jnp
import numpy as np

import tiny
from configs import digits
from vdiff_jax import losses
from vdiff_jax.from_config.losses import train_loss
from vdiff_jax.from_config.model import make_model, make_schedule
from vdiff_jax.from_config.sampler import make_guidance
from vdiff_jax.training.step import Given, Networks
from vdiff_jax.types import Batch, Condition


def _model(latent_scale):
    config = tiny.small("train")
    config.update(
        {
            "data": {"latent_scale": latent_scale},
            "sample": {"clip": "none" if latent_scale else "x"},
        }
    )
    return config, make_model(config)


def test_latents_are_seen_at_their_scale_and_given_back_as_they_were():
    latents = jax.random.normal(jax.random.key(0), (8, 8, 8, 1))

    def loss(latent_scale, latents):
        config, model = _model(latent_scale)
        draws = losses.draw(jax.random.key(1), len(latents))
        params = model.init(jax.random.key(2))
        batch = Batch(latents, Condition(np.zeros(8, np.int32)))
        values = train_loss(config, model, train=True)(
            Networks(params), batch, draws, Given(None, None, None, jnp.zeros(()))
        )
        return values["loss"]

    # Data four times as large, at a quarter of the scale, are the same to the model.
    np.testing.assert_array_equal(loss(0.25, 4.0 * latents), loss(1.0, latents))
    assert (loss(0.5, latents) != loss(1.0, latents)).any()
    _, model = _model(0.25)
    np.testing.assert_array_equal(
        model.codec.from_x(model.codec.to_x(latents)), latents
    )


def test_guidance_is_on_between_the_times_that_a_config_says():
    config = digits.get_config("sample")
    schedule, t = make_schedule(config), jax.numpy.linspace(0.0, 1.0, 9)
    for interval, on in (
        ((0.0, 1.0), np.full(9, 1.0)),
        ((0.25, 0.75), [0, 0, 1, 1, 1, 1, 1, 0, 0]),
        ((0.0, 0.5), [1, 1, 1, 1, 1, 0, 0, 0, 0]),
        ((0.5, 1.0), [0, 0, 0, 0, 1, 1, 1, 1, 1]),
    ):
        config.sample.guidance_interval = interval
        made = make_guidance(config, schedule)
        np.testing.assert_array_equal(
            made.weight_at(jax.numpy.ones(9), schedule(t)), on
        )


def test_a_step_at_an_end_of_the_interval_is_guided_however_it_is_rounded():
    config = digits.get_config("sample")
    config.sample.guidance_interval = (0.1, 0.7)
    schedule = make_schedule(config)
    made = make_guidance(config, schedule)

    def weight(i, num_steps):
        logsnr_t = jax.numpy.broadcast_to(schedule(i / num_steps), (1,))
        return made.weight_at(jax.numpy.ones(1), logsnr_t)[0]

    on = [1.0] * 7 + [0.0] * 3
    # As `path` and `draw` are compiled, where N is known and where it is not.
    for compiled in (jax.jit(weight, static_argnums=1), jax.jit(weight)):
        weights = [compiled(jax.numpy.int32(i), 10) for i in range(1, 11)]
        np.testing.assert_array_equal(weights, on)


def test_pictures_are_seen_from_minus_one_to_one():
    _, model = _model(0.0)
    pixels = jax.numpy.arange(256, dtype=np.uint8)
    x = model.codec.to_x(pixels)
    assert (x.min(), x.max()) == (-1.0, 1.0)
    np.testing.assert_array_equal(model.codec.from_x(x), pixels)
