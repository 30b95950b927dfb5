import jax
import jax.numpy as jnp
import pytest

from vdiff_jax.nets.unet import Level, UNet
from vdiff_jax.training.nonfinite import origins


def test_a_healthy_function_has_none_even_if_it_meets_infinity_on_the_way():
    def function(x):
        return 1.0 / (1.0 / (x - x)) + jnp.where(x > 0, x, jnp.log(x - x))

    assert origins(function, jnp.ones(3)) == []
    assert origins(lambda x: x, jnp.arange(3)) == []


def test_the_first_operation_is_named_with_its_line_and_its_rows():
    def function(x):
        y = jnp.sqrt(x) * 2.0  # here
        return (y + 1.0).sum()

    (found,) = origins(jax.jit(function), jnp.array([1.0, -4.0, 9.0, -1.0]))
    assert found.operation == "sqrt"
    assert found.rows == (1, 3)
    assert found.bad == 2
    line = function.__code__.co_firstlineno + 1
    assert f"test_nonfinite.py:{line}" in found.where
    assert "2 of 4 numbers" in str(found)
    assert "float32[4] up to 9" in str(found)


def test_what_was_bad_to_begin_with_has_no_origin_of_its_own():
    (found,) = origins(lambda x: x * 2.0, jnp.array([1.0, jnp.nan]))
    assert found.operation == "mul"


def test_all_independent_origins_are_found_in_their_order():
    def function(x):
        return jnp.log(x) + jnp.sqrt(x) + jnp.exp(x)

    found = origins(function, jnp.array([-1.0]))
    assert [origin.operation for origin in found] == ["log", "sqrt"]


@pytest.mark.parametrize("reverse", [False, True])
def test_loops_are_looked_into(reverse):
    def function(x):
        def body(carry, value):
            return carry + value, jnp.log(carry)

        return jax.lax.scan(body, 0.5, x, reverse=reverse)

    x = jnp.array([-1.0, 2.0, 0.0])
    expected = jax.jit(function)(x)
    found = origins(function, x)
    assert bool(jnp.isnan(expected[1]).any()) == bool(found)
    assert {origin.operation for origin in found} <= {"log"}


def test_conditions_are_looked_into():
    def function(which, x):
        return jax.lax.switch(which, [jnp.log, jnp.sqrt], x)

    for which, name in ((0, "log"), (1, "sqrt")):
        (found,) = origins(function, jnp.int32(which), jnp.array(-1.0))
        assert found.operation == name


@pytest.mark.slow
def test_a_network_is_named_by_its_module():
    level = Level(features=8, num_blocks=1)
    net = UNet(levels=(level,), out_channels=1, emb_features=8, groups=2)
    z_t, logsnr_t = jnp.ones((2, 4, 4, 1)), jnp.zeros(2)
    params = jax.jit(net.init)(jax.random.key(0), z_t, logsnr_t)["params"]
    params["mid.block_1"]["conv1"]["kernel"] *= jnp.inf

    def loss(params):
        return net.apply({"params": params}, z_t, logsnr_t).sum()

    found = origins(jax.jit(jax.value_and_grad(loss)), params)
    assert "mid.block_1" in found[0].where
