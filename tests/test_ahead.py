"""The step is compiled while checkpoints and data are read."""

import threading
import time

import jax
import jax.numpy as jnp
import pytest

import launch
import tiny
from vdiff_jax import parallel
from vdiff_jax.datasets import device_feed
from vdiff_jax.from_config.data import make_feeder, make_source
from vdiff_jax.training import ahead


def test_a_call_finds_what_was_compiled_ahead():
    traced = []

    @jax.jit
    def step(state, images):
        time.sleep(0.3)
        traced.append(None)
        return state + images.sum()

    placed = parallel.replicated(parallel.make_mesh())
    state = jax.ShapeDtypeStruct((3,), jnp.float32, sharding=placed)
    images = jax.ShapeDtypeStruct((2,), jnp.float32)
    with ahead.compiling(step, state, images) as wait:
        wait()
        assert len(traced) == 1
        state = parallel.put(jnp.zeros(3), placed)
        assert step(state, jnp.ones(2)).tolist() == [2.0] * 3
    assert len(traced) == 1


def test_an_error_is_left_to_the_call():
    @jax.jit
    def step(state):
        raise ValueError("wrong")

    with ahead.compiling(step, jnp.zeros(3)) as wait:
        wait()
        with pytest.raises(ValueError, match="wrong"):
            step(jnp.zeros(3))


@pytest.mark.parametrize("on_device", ["always", "never"])
@pytest.mark.parametrize("steps", [1, 3])
def test_the_feed_is_what_it_was_to_be(on_device, steps):
    config = tiny.small("train")
    config.data.on_device = on_device
    feeder = make_feeder(
        config, make_source(config, "train"), config.train, parallel.make_mesh()
    )
    (feed,) = feeder.feeds([(0, steps)], seed=(0,))

    def facts(value):
        sharding = getattr(value, "sharding", None)
        return value.shape, jnp.dtype(value.dtype), sharding

    assert jax.tree.map(facts, feeder.abstract(steps)) == jax.tree.map(facts, feed)


@pytest.mark.slow
def test_data_are_read_while_the_step_is_compiled(monkeypatch, tmp_path):
    compile_ahead, read_all, done = ahead._compile, device_feed.read_all, []
    compiled = threading.Event()

    def compile_and_tell(*arguments):
        compile_ahead(*arguments)
        compiled.set()

    def read_afterwards(*arguments):
        done.append(compiled.wait(timeout=120))
        return read_all(*arguments)

    monkeypatch.setattr(ahead, "_compile", compile_and_tell)
    monkeypatch.setattr(device_feed, "read_all", read_afterwards)
    launch.launch(tiny.small("train"), tmp_path)
    assert done == [True]
