"""The paper's checkpoints: files written as flax wrote them, and hostile ones."""

import importlib
import pathlib
import pickle
import struct

import flax.serialization
import jax
import jax.numpy as jnp
import msgpack
import numpy as np
import pytest
from flax import traverse_util

import launch
import tiny
from configs import import_model
from vdiff_jax.distillation.role import BASE
from vdiff_jax.from_config.model import make_model
from vdiff_jax.interop import paper_checkpoints
from vdiff_jax.nets.serialization import describe, fields_of
from vdiff_jax.nets.unet import Level, UNet
from vdiff_jax.types import Condition
from vdiff_jax.workdir import imported, layout
from vdiff_jax.workdir.parameters import load_params


def _net(**options):
    return UNet(
        **{"levels": (Level(features=32, num_blocks=2, num_heads=2),
                      Level(features=64, num_blocks=2)),
           "out_channels": 3, "emb_features": 24, "mid_heads": 4, **options}
    )  # fmt: skip


def _random(net):
    label = jnp.zeros(1, jnp.int32) if net.num_classes else None
    shapes = jax.eval_shape(
        net.init,
        jax.random.key(0),
        jnp.zeros((1, 8, 8, 3)),
        jnp.zeros(1),
        Condition(label),
    )["params"]
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: rng.normal(scale=0.2, size=leaf.shape).astype(np.float32), shapes
    )


def _as_released(params, num_steps=8):
    """A training state as the paper's code saved it: norms of another shape."""
    leaves = {
        path: x.reshape(1, 1, 1, -1) if path[-2].startswith("norm") else x
        for path, x in traverse_util.flatten_dict(params).items()
    }
    tree = traverse_util.unflatten_dict(leaves)
    state = {"grad_ema": tree, "grad_sq_ema": tree}
    return {
        "step": 7,
        "optimizer": {"target": tree, "state": {"step": 7, "param_states": state}},
        "ema_params": tree,
        "num_sample_steps": np.int32(num_steps),
    }


def _write(path, state):
    path.write_bytes(flax.serialization.msgpack_serialize(state))
    return path


@pytest.mark.parametrize(
    ("options", "output", "num_classes"),
    [
        ({}, "x", 0),
        ({"num_classes": 5}, "x", 5),
        ({"out_channels": 6}, "both", 0),
        ({"levels": tuple(Level(features=32, num_blocks=1, resample_in_block=False)
                          for _ in range(2))}, "x", 0),
    ],
    ids=["plain", "classes", "both", "resampling convolutions"],
)  # fmt: skip
def test_the_network_is_found_from_its_parameters(
    tmp_path, options, output, num_classes
):
    net = _net(**options)
    params = _random(net)
    found = paper_checkpoints.read(
        _write(tmp_path / "file", _as_released(params)), "x", 8
    )
    assert found.num_steps == 8
    assert found.fields["model"]["output"] == output
    assert found.fields["model"]["num_classes"] == num_classes
    again = UNet(
        **fields_of(found.fields["model"]["unet"]["layout"]),
        out_channels=net.out_channels,
        num_classes=num_classes,
    )
    jax.tree.map(np.testing.assert_array_equal, found.params, params)
    z_t, logsnr_t = jnp.ones((2, 8, 8, 3)), jnp.array([-3.0, 2.0])
    label = jnp.array([0, 4]) if num_classes else None
    ours, theirs = (
        jax.jit(each.apply)({"params": values}, z_t, logsnr_t, Condition(label))
        for each, values in ((again, found.params), (net, params))
    )
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cifar10", "imagenet64", "lsun_bedroom128"])
def test_the_papers_networks_are_those_of_the_configs(name):
    config = importlib.import_module(f"configs.{name}").get_config()
    model = make_model(config)
    found = paper_checkpoints.network(model.abstract_params(), pathlib.Path("file"))
    assert describe(found) == describe(model.net)
    assert found.num_classes == model.num_classes


def test_a_base_model_has_no_number_of_steps(tmp_path):
    state = _as_released(_random(_net()))
    del state["num_sample_steps"]
    assert (
        paper_checkpoints.read(_write(tmp_path / "file", state), "x", 32).num_steps == 0
    )


@pytest.mark.slow
def test_the_stage_makes_it_a_teacher_whose_steps_its_students_halve(tmp_path):
    params, workdir = _random(_net()), tmp_path / "workdir"
    file = _write(tmp_path / "file", _as_released(params, num_steps=16))
    config = import_model.get_config("import")
    config.source.path = str(file)
    config.data.image_size = 8
    launch.launch(config, workdir)
    config = imported.resolved(tiny.config("distill", data={"channels": 3}), workdir)
    assert config.distill.start_steps == 16
    assert config.train.label_dropout == 0.0  # nobody knows
    found = load_params(make_model(config), layout.folder_of(workdir, BASE))
    jax.tree.map(np.testing.assert_array_equal, found, params)


def test_the_optimizer_is_never_made_into_arrays(tmp_path, monkeypatch):
    made, read = [], np.frombuffer
    path = _write(tmp_path / "file", _as_released(_random(_net())))
    monkeypatch.setattr(
        np, "frombuffer", lambda *args: [made.append(1), read(*args)][1]
    )
    found = paper_checkpoints.read(path, "x", 8)
    assert len(made) == len(jax.tree.leaves(found.params)) + 1


def test_an_array_that_was_cut_up_is_joined(tmp_path, monkeypatch):
    params = _random(_net())
    monkeypatch.setattr(flax.serialization, "MAX_CHUNK_SIZE", 512)
    path = _write(tmp_path / "file", _as_released(params))
    assert paper_checkpoints.CHUNKED.encode() in path.read_bytes()
    found = paper_checkpoints.read(path, "x", 8)
    jax.tree.map(np.testing.assert_array_equal, found.params, params)


def _array(shape, dtype, data):
    packed = msgpack.packb((shape, dtype, data))
    return msgpack.ExtType(paper_checkpoints.ARRAY, packed)


def _with_kernel(value):
    return {"ema_params": {"conv_in": {"kernel": value}}}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (pickle.dumps({"ema_params": {}}), "damaged, or no checkpoint"),
        (b"", "damaged, or no checkpoint"),
        (msgpack.packb({"ema_params": {}}) + b"x", "more in it than one dictionary"),
        (msgpack.packb({"params": {}}), "no 'ema_params'"),
        (msgpack.packb(_with_kernel(msgpack.ExtType(77, b"x"))), "unknown type 77"),
        (msgpack.packb(_with_kernel(_array((2,), "object", b"1234"))), "'object'"),
        (msgpack.packb(_with_kernel(_array((9,), "float32", b"1234"))), "reshape"),
        (msgpack.packb(_with_kernel(_array((-1,), "float32", b"1234"))), "shape"),
        (msgpack.packb(_with_kernel(_array((1,), "int32", b"1234"))),
         r"conv_in/kernel .* is no array of float32, but a int32"),
        (msgpack.packb(_with_kernel("text")), "is no array of float32, but a str"),
        (msgpack.packb(_with_kernel(_array((1,), "float32", b"1234"))),
         "not those of a U-Net of the paper"),
        (struct.pack("<Q", 0x81) + b"\xa1" * 9, "damaged, or no checkpoint"),
    ],
    ids=range(12),
)  # fmt: skip
def test_a_hostile_file_is_refused_by_name(tmp_path, content, message):
    path = tmp_path / "cifar_8"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        paper_checkpoints.read(path, "x", 8)
    assert "cifar_8" in str(error.value)


def test_a_file_that_ends_early_is_refused(tmp_path):
    path = _write(tmp_path / "file", _as_released(_random(_net())))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="damaged, or no checkpoint"):
        paper_checkpoints.read(path, "x", 8)


def test_deep_nesting_is_refused(tmp_path):
    node = {"x": 1}
    for _ in range(300):
        node = {"x": node}
    path = tmp_path / "file"
    path.write_bytes(msgpack.packb({"ema_params": node}))
    with pytest.raises(ValueError, match="no array of float32, but a dict"):
        paper_checkpoints.read(path, "x", 8)


def test_there_must_be_a_file(tmp_path):
    with pytest.raises(ValueError, match="There is no file"):
        paper_checkpoints.read(tmp_path / "none", "x", 8)
