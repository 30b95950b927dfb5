import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vdiff_jax import parallel
from vdiff_jax.losses import Draws, draw
from vdiff_jax.training.step import (
    Job,
    Networks,
    init_state,
    make_eval_step,
    make_learning_rate,
    make_optimizer,
    make_train_step,
    many_updates,
    update_ema,
)
from vdiff_jax.types import Batch, Condition, Feed


def _job(num_updates=100, seed=0, **options):
    return Job(jax.random.key(seed), jnp.int32(num_updates), **options)


def _batch(size=8, seed=0):
    image = jax.random.normal(jax.random.key(seed), (size, 2, 2, 1))
    return Batch(image, Condition(jnp.zeros(size, jnp.int32)))


def _linear_loss(networks, batch, draws: Draws, given):
    """Predicts noisy pixels from pixels: its optimum is w = 1, b = 0."""
    del given
    target = batch.image + 0.1 * draws.eps(batch.image.shape[1:])
    error = networks.main["w"] * batch.image + networks.main["b"] - target
    return {"loss": jnp.square(error).mean(axis=(1, 2, 3))}


def _params():
    return {"w": jnp.array(0.0), "b": jnp.array(2.0)}


def _optimizer(**options):
    return make_optimizer(**{"grad_clip": 1.0, "weight_decay": 0.0} | options)


def _rate(peak=0.05):
    return make_learning_rate(peak, warmup_steps=0, decay="constant")


def _step(loss=_linear_loss, optimizer=None, rate=None, **options):
    return make_train_step(
        loss, optimizer or _optimizer(), rate or _rate(), **{"ema_decay": 0.9} | options
    )


def _state(optimizer=None):
    return init_state(_params(), optimizer or _optimizer())


def _feed(batches):
    return Feed(jax.tree.map(lambda *leaves: jnp.stack(leaves), *batches))


def test_training_finds_the_optimum():
    state, _ = jax.jit(many_updates(_step()))(
        _state(),
        _feed([_batch(seed=i) for i in range(300)]),
        _job(),
    )
    assert float(state.params["w"]) == pytest.approx(1.0, abs=0.1)
    assert float(state.params["b"]) == pytest.approx(0.0, abs=0.1)
    assert int(state.step) == 300


def test_the_ema_starts_at_the_parameters_and_forgets_geometrically():
    state = _state()
    np.testing.assert_array_equal(state.ema_params["b"], state.params["b"])
    ema = {"w": jnp.array(0.0)}
    for _ in range(10):
        ema = update_ema(ema, {"w": jnp.array(1.0)}, 0.9)
    assert float(ema["w"]) == pytest.approx(1 - 0.9**10)
    copy = update_ema({"w": jnp.array(3.0)}, {"w": jnp.array(0.1)}, 0.0)
    assert float(copy["w"]) == np.float32(0.1)


def test_what_no_update_changes_is_its_own_average():
    """As a mean of itself it would move by a rounding in each update."""
    params = {"in": {"w": jnp.linspace(0.1, 2.0, 9)}}
    params["null_context"] = params["in"]["w"]
    ema = params
    for _ in range(5):
        ema = update_ema(ema, params, 0.9)
    np.testing.assert_array_equal(ema["null_context"], params["null_context"])
    assert (ema["in"]["w"] != params["in"]["w"]).any()


@pytest.mark.parametrize("decay", ["constant", "linear", "cosine"])
def test_the_learning_rate_warms_up_and_anneals(decay):
    rate = make_learning_rate(0.5, warmup_steps=10, decay=decay)
    at = [float(rate(jnp.int32(i), jnp.int32(110))) for i in range(110)]
    assert 0 < at[0] < 0.06
    assert np.all(np.diff(at[:11]) > 0)
    assert at[10] == pytest.approx(0.5)
    middle, end = {
        "constant": (0.5, 0.5), "linear": (0.25, 0.005), "cosine": (0.25, 0.00012)
    }[decay]  # fmt: skip
    assert at[60] == pytest.approx(middle, rel=1e-3)
    assert at[-1] == pytest.approx(end, rel=0.3)


def test_linear_decay_without_warm_up_is_the_one_of_optax():
    ours = make_learning_rate(1e-3, warmup_steps=0, decay="linear")
    theirs = optax.linear_schedule(1e-3, 0.0, 50)
    for step in (0, 1, 25, 49):
        assert float(ours(jnp.int32(step), jnp.int32(50))) == pytest.approx(
            float(theirs(step))
        )
    with pytest.raises(ValueError, match="Unknown decay"):
        make_learning_rate.__wrapped__(1e-3, warmup_steps=0, decay="exp")


def test_the_optimizer_is_adamw_on_clipped_gradients():
    optimizer = _optimizer(weight_decay=0.3)
    reference = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(0.05, weight_decay=0.3)
    )
    step = jax.jit(_step(optimizer=optimizer))
    state = init_state(_params(), optimizer)
    params, opt_state = _params(), reference.init(_params())
    for i in range(5):
        grads = jax.grad(
            lambda p, i=i: _linear_loss(
                Networks(p), _batch(seed=i), draw(
                    jax.random.fold_in(_job().key, i), 8), None
            )["loss"].mean()
        )(params)  # fmt: skip
        updates, opt_state = reference.update(grads, opt_state, params)
        params = optax.apply_updates(params, updates)
        state, metrics = step(state, _batch(seed=i), _job())
        assert float(metrics["grad_norm"]) == pytest.approx(
            float(optax.tree.norm(grads)), rel=1e-5
        )
    assert float(state.params["w"]) == pytest.approx(float(params["w"]), rel=1e-5)
    assert float(state.params["b"]) == pytest.approx(float(params["b"]), rel=1e-5)


def test_many_updates_in_one_call_are_the_same_updates():
    batches = [_batch(seed=i) for i in range(4)]
    one_by_one = _state()
    for batch in batches:
        one_by_one, _ = jax.jit(_step())(one_by_one, batch, _job())
    together, metrics = jax.jit(many_updates(_step()))(_state(), _feed(batches), _job())
    assert metrics["loss"].shape == (4,)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), one_by_one, together
    )


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf])
def test_an_update_that_is_not_finite_changes_nothing_but_the_step(bad):
    state, batch = _state(), _batch()
    broken = batch._replace(image=batch.image.at[3, 0, 0, 0].set(bad))
    after, metrics = jax.jit(_step())(state, broken, _job())
    assert not np.isfinite(float(metrics["loss"]))
    assert int(after.step) == 1
    jax.tree.map(
        np.testing.assert_array_equal, after._replace(step=0), state._replace(step=0)
    )


def test_devices_do_not_change_the_result():
    """One device, two under jit, and two under pmap: gradients averaged, then clipped.

    The gradient is larger than the clip, and differs between the two halves.
    """
    batch = _batch()
    batch = batch._replace(image=batch.image * jnp.arange(8.0)[:, None, None, None])
    options = {"stratified": True, "flip": True, "ema_decay": 0.5}

    def loss_of(networks, batch, draws, given):
        error = _linear_loss(networks, batch, draws, given)["loss"]
        return {"loss": error * (0.5 + draws.u)}

    alone, _ = jax.jit(_step(loss_of, **options))(_state(), batch, _job())

    mesh = parallel.make_mesh()
    assert mesh.size == 2
    everywhere = parallel.put(_state(), parallel.replicated(mesh))
    halves = parallel.put(batch, parallel.split(mesh))
    under_jit, _ = jax.jit(_step(loss_of, **options))(everywhere, halves, _job())

    mapped = jax.pmap(
        _step(loss_of, axis_name="device", **options),
        axis_name="device",
        in_axes=(None, 0, None),
    )
    stacked = jax.tree.map(lambda leaf: leaf.reshape(2, 4, *leaf.shape[1:]), batch)
    under_pmap, _ = mapped(_state(), stacked, _job())

    for found in (under_jit, jax.tree.map(lambda leaf: leaf[0], under_pmap)):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), found, alone
        )


def test_a_step_depends_on_seed_and_step_alone():
    step = jax.jit(_step())
    first, _ = step(_state(), _batch(), _job())
    again, _ = step(_state(), _batch(), _job())
    other, _ = step(_state(), _batch(), _job(seed=1))
    later, _ = step(_state()._replace(step=jnp.int32(7)), _batch(), _job())
    moments = [float(s.opt_state[1].mu["b"]) for s in (first, again, other, later)]
    assert moments[0] == moments[1]
    assert len(set(moments)) == 3


def test_a_job_can_change_without_compiling_again():
    def loss(networks, batch, draws, given):
        del draws
        target = given.teacher["w"] / given.num_steps
        error = jnp.square(networks.main["w"] - target)
        return {"loss": error * jnp.ones(batch.image.shape[0])}

    step = jax.jit(_step(loss))
    for num_steps in (8, 4, 2, 1):
        teacher = {"w": jnp.array(float(num_steps))}
        job = _job(
            num_updates=num_steps * 10,
            teacher=teacher,
            num_steps=jnp.int32(num_steps),
        )
        step(_state(), _batch(), job)
    assert step._cache_size() == 1


def _two_networks_loss(networks, batch, draws, given):
    """The main network's optimum is 3, the auxiliary's -1; neither sees the other."""
    del draws, given
    main, auxiliary = networks.main["w"], networks.auxiliary["w"]
    ones = jnp.ones(len(batch.image))
    main_error, auxiliary_error = jnp.square(main - 3.0), jnp.square(auxiliary + 1.0)
    loss = (main_error + 1e6 * auxiliary_error) * ones
    return {"loss": loss, "main_error": main_error * ones}


def test_an_auxiliary_network_is_trained_beside_the_main_one_and_has_no_ema():
    optimizer = _optimizer()
    state = init_state({"w": jnp.zeros(())}, optimizer, {"w": jnp.zeros(())})
    step = _step(_two_networks_loss, optimizer, ema_decay=0.0)
    run = jax.jit(many_updates(step))
    state, metrics = run(state, _feed([_batch()] * 400), _job())
    assert float(state.params["w"]) == pytest.approx(3.0, abs=0.05)
    assert float(state.auxiliary.params["w"]) == pytest.approx(-1.0, abs=0.05)
    assert float(state.ema_params["w"]) == float(state.params["w"])
    assert float(metrics["main_error"][-1]) < 0.01
    assert float(metrics["main_error"][0]) == 9.0


def test_each_network_has_its_own_learning_rate_and_its_own_clipping():
    """Clipped together, the auxiliary's gradient would leave the other's nothing.

    Adam's first update is the rate whatever the gradient's size, so it is plain
    gradient descent that shows the clipping.
    """
    optimizer = optax.clip_by_global_norm(1.0)
    state = init_state({"w": jnp.zeros(())}, optimizer, {"w": jnp.zeros(())})
    step = _step(
        _two_networks_loss,
        optimizer,
        _rate(0.25),
        auxiliary_learning_rate=_rate(0.5),
    )
    state, _ = jax.jit(step)(state, _batch(), _job())
    assert float(state.params["w"]) == pytest.approx(0.25)
    assert float(state.auxiliary.params["w"]) == pytest.approx(-0.5)


@pytest.mark.parametrize("part", ["main", "auxiliary"])
def test_neither_network_moves_where_one_of_both_gradients_is_not_finite(part):
    def loss(networks, batch, draws, given):
        values = _two_networks_loss(networks, batch, draws, given)
        # The square root's gradient at 0 is infinite, its value is not.
        bad = jnp.sqrt(getattr(networks, part)["w"])
        return {"loss": values["loss"] + bad}

    optimizer = _optimizer()
    before = init_state({"w": jnp.zeros(())}, optimizer, {"w": jnp.zeros(())})
    after, metrics = jax.jit(_step(loss, optimizer))(before, _batch(), _job())
    assert np.isfinite(float(metrics["loss"]))
    assert not np.isfinite(float(metrics["grad_norm"]))
    jax.tree.map(
        np.testing.assert_array_equal, after._replace(step=0), before._replace(step=0)
    )


def test_a_loss_is_given_the_ema_and_how_far_the_run_is():
    def loss(networks, batch, draws, given):
        del draws
        ones = jnp.ones(len(batch.image))
        return {
            "loss": jnp.square(networks.main["w"] - 1.0) * ones,
            "ema": given.ema["w"] * ones,
            "progress": given.progress * ones,
        }

    state = init_state({"w": jnp.zeros(())}, _optimizer())
    run = jax.jit(many_updates(_step(loss, ema_decay=0.5)))
    state, metrics = run(state, _feed([_batch()] * 4), _job(num_updates=8))
    np.testing.assert_allclose(metrics["progress"], [0.0, 0.125, 0.25, 0.375])
    # Adam takes steps of about the rate; the average lags behind by half of each.
    np.testing.assert_allclose(metrics["ema"][:2], [0.0, 0.025], rtol=1e-3)
    assert float(metrics["ema"][3]) < float(state.ema_params["w"])


def test_a_batch_that_does_not_divide_is_refused():
    with pytest.raises(ValueError, match="batch_size=7 does not divide over 2"):
        parallel.check_batch_size(7, parallel.make_mesh())


def test_held_out_loss_uses_the_same_draws_every_time():
    eval_step = jax.jit(make_eval_step(_linear_loss))
    networks = Networks(_params())
    first = eval_step(networks, _batch(), _job())["loss"]
    again = eval_step(networks, _batch(), _job())["loss"]
    np.testing.assert_array_equal(first, again)
    assert first.shape == (8,)
