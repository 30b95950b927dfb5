import gc

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from vdiff_jax import parallel
from vdiff_jax.files.fingerprints import DamagedError, fingerprint, params_sha256
from vdiff_jax.training import checkpoints
from vdiff_jax.training.reading import check_readable, read_state
from vdiff_jax.training.step import init_state, make_optimizer

# Of a damaged checkpoint Orbax leaves the errors of other arrays unseen.
pytestmark = pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)
OPTIMIZER = make_optimizer(grad_clip=1.0, weight_decay=0.0)


def _params(seed=0, width=3):
    a, b = jax.random.normal(jax.random.key(seed), (2, width, 2))
    return {"one": {"kernel": a}, "two": {"kernel": b}}


def _state(step=12, seed=0):
    return init_state(_params(seed), OPTIMIZER)._replace(
        step=jnp.int32(step), ema_params=_params(seed + 1)
    )


def _abstract(state):
    return jax.eval_shape(lambda: state)


def _places(tree, fsdp=1):
    return parallel.state_shardings(_abstract(tree), parallel.make_mesh(fsdp))


def _save(folder, *states, info=None, held_out_losses=None, **kept):
    losses = held_out_losses or [None] * len(states)
    with checkpoints.open_folder(folder, **kept) as manager:
        for state, loss in zip(states, losses, strict=True):
            checkpoints.save(manager, state, info or {}, loss)


def _restore(folder, state=None, **options):
    state = state or _state()
    return checkpoints.restore(folder, _abstract(state), _places(state), **options)


def _same(found, expected):
    jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.fixture
def folder(tmp_path):
    yield tmp_path / "checkpoints"
    gc.collect()  # so that what is left of this test is not found in the next


def test_what_is_saved_comes_back_bit_for_bit_on_the_devices_at_hand(folder):
    state = _state()
    _save(folder, state, info={"seconds": 1.5})
    found, info = _restore(folder)
    assert info["seconds"] == 1.5
    _same(found, state)
    assert jax.tree.structure(found) == jax.tree.structure(state)
    everywhere = parallel.replicated(parallel.make_mesh())
    assert found.params["one"]["kernel"].sharding == everywhere
    assert checkpoints.latest_step(folder) == 12


def test_a_state_moves_from_one_mesh_to_another(folder):
    params = {"kernel": jax.random.normal(jax.random.key(0), (8, 256))}
    state = init_state(params, OPTIMIZER)._replace(step=jnp.int32(3))
    for fsdp, other in ((2, 1), (1, 2)):
        places = _places(state, fsdp)
        _save(folder / str(fsdp), parallel.put(state, places))
        elsewhere = _places(state, other)
        found, _ = checkpoints.restore(folder / str(fsdp), _abstract(state), elsewhere)
        _same(found, state)
        assert found.params["kernel"].sharding == elsewhere.params["kernel"]
        parts = {
            shard.data.shape for shard in found.params["kernel"].addressable_shards
        }
        assert parts == {(8, 256 // other)}


def test_a_teacher_is_read_without_its_optimizer(folder):
    _save(folder, _state())
    found = checkpoints.restore_ema(folder, _abstract(_params()), _places(_params()))
    _same(found, _state().ema_params)


def test_a_teacher_of_another_architecture_is_refused_by_name(folder):
    _save(folder, _state())
    wide = _params(width=5)
    with pytest.raises(ValueError, match=r"one.*\(3, 2\) there and \(5, 2\)"):
        checkpoints.restore_ema(folder, _abstract(wide), _places(wide))
    more = {**_params(), "three": jnp.zeros(1)}
    with pytest.raises(ValueError, match=r"three.*none there"):
        checkpoints.restore_ema(folder, _abstract(more), _places(more))
    with pytest.raises(ValueError, match="No checkpoint"):
        checkpoints.restore_ema(folder / "empty", _abstract(wide), _places(wide))


def test_a_state_of_another_optimizer_is_refused_and_left_where_it_is(folder):
    _save(folder, _state())
    other = _state()._replace(opt_state=(jnp.zeros(3),))
    with pytest.raises(ValueError, match="of another optimizer"):
        _restore(folder, other)
    wide = init_state(_params(width=5), OPTIMIZER)
    with pytest.raises(ValueError, match="of another architecture"):
        _restore(folder, wide)
    assert checkpoints.steps(folder) == [12]


def test_the_newest_the_regular_and_the_best_are_kept(folder):
    states = [_state(step) for step in range(1, 11)]
    losses = [9.0, 8.0, 1.0, 7.0, None, 2.0, 6.0, 5.0, 4.0, 3.0]
    _save(folder, *states, held_out_losses=losses, keep=2, keep_every=4, keep_best=2)
    assert checkpoints.steps(folder) == [3, 4, 6, 8, 9, 10]
    with pytest.raises(ValueError, match="at least 1, got 0"):
        _save(folder, keep=0)


def test_a_folder_without_checkpoints_has_nothing_to_restore(folder):
    assert _restore(folder) is None
    (folder / "7.orbax-checkpoint-tmp").mkdir(parents=True)  # of a killed first save
    assert _restore(folder) is None
    _save(folder, _state(9))
    assert [path.name for path in folder.iterdir()] == ["9"]


def test_earlier_checkpoints_can_be_asked_for(folder):
    _save(folder, _state(2, seed=1), _state(4, seed=2))
    found, _ = _restore(folder, at_most=3)
    _same(found, _state(2, seed=1))
    assert _restore(folder, at_most=1) is None


def _files(path):
    return sorted(file for file in path.rglob("*") if file.is_file())


def _truncate(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def _flip(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0x10
    file.write_bytes(bytes(content))


@pytest.mark.parametrize("damage", [_truncate, _flip, lambda file: file.unlink()])
def test_damage_to_any_file_is_survived_or_found(folder, damage, capsys):
    """Either the newest comes back as it was saved, or the one before it does."""
    before, newest = _state(2, seed=3), _state(4, seed=5)
    _save(folder, before, newest)
    names = [file.relative_to(folder) for file in _files(folder / "4")]
    found_out = 0
    for number, name in enumerate(names):
        copy = folder.parent / str(number) / "checkpoints"
        copy.mkdir(parents=True)
        for file in _files(folder):
            place = copy / file.relative_to(folder)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(file.read_bytes())
        damage(copy / name)
        found, _ = _restore(copy)
        if int(found.step) == 4:
            _same(found, newest)
            continue
        found_out += 1
        _same(found, before)
        assert checkpoints.steps(copy) == [2]
        assert (copy.parent / "damaged" / "4").is_dir()
        assert "/4 is damaged" in capsys.readouterr().err
        _save(copy, newest)  # and the run can go on
        assert checkpoints.steps(copy) == [2, 4]
    assert found_out > 4  # some files are not needed


def test_a_changed_value_is_found_by_the_name_of_its_array(folder):
    """What no file format finds: arrays that read well and are others."""
    state = _state()
    _save(folder, state)
    written = state.params["two"]["kernel"]
    state.params["two"]["kernel"] = written.at[1, 1].multiply(1.0 + 2**-23)
    other = folder.parent / "other" / "checkpoints"
    _save(other, state)
    (folder / "12" / "state").rename(folder / "12" / "gone")
    (other / "12" / "state").rename(folder / "12" / "state")
    with pytest.raises(DamagedError, match="No sound checkpoint is left"):
        _restore(folder)
    damaged = folder.parent / "damaged"
    with pytest.raises(
        DamagedError, match=r"params\['two'\].* not what was written \(1 of"
    ):
        read_state(damaged / "12", _abstract(state), _places(state))


def test_a_folder_whose_checkpoints_are_all_damaged_is_never_begun_anew(folder):
    _save(folder, _state(2), _state(4))
    for step in (2, 4):
        (folder / str(step) / "_CHECKPOINT_METADATA").unlink()
        (folder / str(step) / "state" / "_METADATA").unlink()
    for _ in range(2):
        with pytest.raises(DamagedError, match="To begin anew, remove"):
            _restore(folder)


def test_the_fingerprint_of_arrays_knows_their_bits_and_their_places():
    tree = {"a": jnp.arange(12.0).reshape(3, 4), "n": jnp.int32(3)}
    before = fingerprint(tree)
    assert before.keys() == {"['a']", "['n']"}
    for other in (
        tree["a"].at[2, 3].set(-11.0),
        tree["a"].at[0, 0].set(-0.0),
        tree["a"].at[1, 1].add(1e-6),
        tree["a"][::-1],
        tree["a"].reshape(4, 3).T.reshape(3, 4),
    ):
        assert fingerprint({"a": other})["['a']"] != before["['a']"]
    mesh = parallel.make_mesh(2)
    split = jax.device_put(jnp.arange(4096.0), parallel.split(mesh))
    assert fingerprint([split]) == fingerprint([jnp.arange(4096.0)])


def test_the_fingerprint_is_of_the_values_in_the_order_of_names():
    params = _params()
    swapped = dict(reversed(list(params.items())))
    sha256 = params_sha256(params)
    assert params_sha256(swapped) == sha256
    changed = jax.tree.map(lambda leaf: leaf.at[0, 0].add(1e-6), params)
    assert params_sha256(changed) != sha256
    traded = {"one": params["two"], "two": params["one"]}
    assert params_sha256(traded) != sha256


TREE = {"a": {"b.c": jnp.zeros((3, 2)), "d": jnp.ones(())}, "e": [jnp.ones(500), None]}


def _saved(tmp_path):
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "item", TREE)
    return tmp_path / "item"


def test_whatever_was_saved_is_seen(tmp_path):
    """Zeros, scalars, names with dots, lists, and what is None."""
    check_readable(_saved(tmp_path), TREE)


@pytest.mark.parametrize(
    ("change", "name"), [({"f": jnp.ones(2)}, "f"), ({"e": [1.0, 2.0]}, "e.1")]
)
def test_an_array_that_was_not_saved_is_named(tmp_path, change, name):
    more = jax.tree.map(jnp.asarray, {**TREE, **change})
    with pytest.raises(OSError, match=f"saved: {name} is not there"):
        check_readable(_saved(tmp_path), more)


def test_values_that_are_gone_do_not_count_as_saved(tmp_path):
    folder = _saved(tmp_path)
    for path in (folder / "d").iterdir():
        path.unlink()
    with pytest.raises(OSError, match="does not count as saved"):
        check_readable(folder, TREE)
