import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdiff_jax import checkpoints, parallel, training

OPTIMIZER = training.make_optimizer(grad_clip=1.0, weight_decay=0.0)


def _params(seed=0, width=3):
    a, b = jax.random.normal(jax.random.key(seed), (2, width, 2))
    return {"one": {"kernel": a}, "two": {"kernel": b}}


def _everywhere():
    return parallel.replicated(parallel.data_mesh())


def _saved(folder, state, info):
    with checkpoints.open_folder(folder) as manager:
        checkpoints.save(manager, state, info)


def test_what_is_saved_comes_back_bit_for_bit_on_the_devices_at_hand(tmp_path):
    state = training.init_state(_params(), OPTIMIZER)._replace(
        step=jnp.int32(12), ema_params=_params(1)
    )
    _saved(tmp_path, state, {"seconds": 1.5})
    with checkpoints.open_folder(tmp_path) as manager:
        found, info = checkpoints.restore(
            manager, jax.eval_shape(lambda: state), _everywhere()
        )
    assert info == {"seconds": 1.5}
    jax.tree.map(np.testing.assert_array_equal, found, state)
    assert jax.tree.structure(found) == jax.tree.structure(state)
    assert found.params["one"]["kernel"].sharding == _everywhere()
    assert checkpoints.latest_step(tmp_path) == 12


def test_a_teacher_is_read_without_its_optimizer(tmp_path):
    state = training.init_state(_params(), OPTIMIZER)._replace(ema_params=_params(1))
    _saved(tmp_path, state, {})
    found = checkpoints.restore_ema(
        tmp_path, jax.eval_shape(lambda: _params()), _everywhere()
    )
    jax.tree.map(np.testing.assert_array_equal, found, _params(1))


def test_a_teacher_of_another_architecture_is_refused_by_name(tmp_path):
    _saved(tmp_path, training.init_state(_params(), OPTIMIZER), {})
    wide = jax.eval_shape(lambda: _params(width=5))
    with pytest.raises(ValueError, match=r"one.*\(3, 2\) there and \(5, 2\)"):
        checkpoints.restore_ema(tmp_path, wide, _everywhere())
    more = jax.eval_shape(lambda: {**_params(), "three": jnp.zeros(1)})
    with pytest.raises(ValueError, match=r"three.*none there"):
        checkpoints.restore_ema(tmp_path, more, _everywhere())
    with pytest.raises(ValueError, match="No checkpoint"):
        checkpoints.restore_ema(tmp_path / "empty", wide, _everywhere())


def test_the_fingerprint_is_of_the_values_in_the_order_of_names():
    params = _params()
    swapped = dict(reversed(list(params.items())))
    fingerprint = checkpoints.params_sha256(params)
    assert checkpoints.params_sha256(swapped) == fingerprint
    changed = jax.tree.map(lambda leaf: leaf.at[0, 0].add(1e-6), params)
    assert checkpoints.params_sha256(changed) != fingerprint
    traded = {"one": params["two"], "two": params["one"]}
    assert checkpoints.params_sha256(traded) != fingerprint
