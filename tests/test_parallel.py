"""The same answer on 1 device, on 8, on 4 x 2, and under pmap."""

import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from vdiff_jax import losses, parallel
from vdiff_jax.training.gradient import spread
from vdiff_jax.training.step import Given, Networks
from vdiff_jax.types import Batch

pytestmark = pytest.mark.slow
HERE = pathlib.Path(__file__).parent


@pytest.fixture(scope="module")
def told():
    """What tests/devices.py says with 1 and with 8 virtual devices."""
    children = {
        devices: subprocess.Popen(
            [sys.executable, HERE / "devices.py", str(devices)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={
                "PYTHONPATH": str(HERE.parent),
                "PATH": "/usr/bin:/bin",
                "XLA_FLAGS": os.environ["XLA_FLAGS"],
            },
        )
        for devices in (1, 8)
    }
    said = {}
    for devices, child in children.items():
        out, errors = child.communicate(timeout=500)
        assert child.returncode == 0, errors[-3000:]
        said[devices] = json.loads(out.splitlines()[-1])
    alone = {
        f"alone_{name}": said[1][name] for name in ("pictures", "matching", "small")
    }
    return {"alone": said[1]["plain"], **alone, **said[8]}


# Each with the run on one device that it should be like: of the U-Net, or of the small
# network where the way does not look into it.
ALONE = {
    "plain": "alone",
    "remat": "alone",
    "small": "alone_small",
    "fsdp": "alone_small",
    "pmap": "alone_small",
    "accumulated": "alone_small",
    "streamed": "alone_small",
}


@pytest.mark.parametrize("way", ["plain", "fsdp", "pmap", "accumulated"])
@pytest.mark.parametrize("num_steps", ["4", "1"])
def test_a_student_and_the_network_beside_it_are_the_same_in_every_way(
    told, num_steps, way
):
    """Of moment matching, whose losses of many steps and of one differ."""
    found = told["matching"][way][num_steps]
    expected = told["alone_matching"]["plain"][num_steps]
    assert expected["auxiliary_norm"] > 0
    np.testing.assert_allclose(found["losses"][0], expected["losses"][0], rtol=2e-6)
    np.testing.assert_allclose(found["losses"], expected["losses"], rtol=2e-4)
    for network in ("norm", "auxiliary_norm"):
        np.testing.assert_allclose(found[network], expected[network], rtol=1e-5)


@pytest.mark.parametrize("way", ALONE)
def test_twenty_steps_have_the_same_losses_in_every_way(told, way):
    """To the rounding of float32, which 20 steps of Adam enlarge."""
    expected = told[ALONE[way]]
    assert len(expected["losses"]) == 20
    np.testing.assert_allclose(told[way]["losses"][0], expected["losses"][0], rtol=2e-6)
    np.testing.assert_allclose(told[way]["losses"], expected["losses"], rtol=2e-4)
    np.testing.assert_allclose(told[way]["norm"], expected["norm"], rtol=1e-5)


@pytest.mark.parametrize("way", [way for way in ALONE if way != "pmap"])
def test_the_batches_are_the_same_bit_for_bit(told, way):
    assert told[way]["batches"] == told[ALONE[way]]["batches"]


def test_a_data_set_on_the_device_or_from_the_host_trains_to_the_same_bits(told):
    assert told["streamed"]["losses"] == told["small"]["losses"]
    assert told["streamed"]["norm"] == told["small"]["norm"]


def test_bfloat16_changes_the_losses_by_its_rounding(told):
    half, full = (np.array(told[way]["losses"]) for way in ("bfloat16", "alone"))
    assert (half != full).all()
    np.testing.assert_allclose(half, full, rtol=0.05)


def test_a_state_is_whole_everywhere_or_split_over_fsdp(told):
    assert told["plain"]["whole"]
    assert not told["fsdp"]["whole"]
    assert told["fsdp"]["bytes_here"] == 0.5


def test_a_picture_is_the_same_for_every_batch_size_and_device_count(told):
    alone = np.array(told["alone_pictures"])
    assert alone.std() > 20
    for other in ("pictures", "pictures_by_16"):
        error = np.abs(np.array(told[other]) - alone)
        assert error.max() <= 1  # the rounding to a pixel
        assert (error > 0).mean() < 0.01


@pytest.mark.parametrize("stage", ["train", "distill"])
def test_the_step_sends_the_gradient_once_and_nothing_else_of_its_size(told, stage):
    program = told[f"{stage}_program"]
    large = [(name, size) for name, size in program["traffic"] if size > 1000]
    assert [name for name, _ in large] == ["all-reduce"]
    # The gradient, and the loss that travels with it.
    assert program["parameters"] <= large[0][1] <= program["parameters"] + 10


@pytest.mark.parametrize("stage", ["train", "distill"])
def test_the_step_writes_the_new_state_over_the_old(told, stage):
    program = told[f"{stage}_program"]
    assert program["aliased_leaves"] == program["state_leaves"]
    assert program["aliased_bytes"] >= program["state_bytes"]
    # What is not written over the state is metrics, and where each leaf lies.
    beside = 8 * (program["state_leaves"] + 100)
    assert program["output_bytes"] - program["aliased_bytes"] < beside


@pytest.mark.parametrize("stage", ["train", "distill"])
def test_neither_data_nor_teacher_are_constants_of_the_program(told, stage):
    assert told[f"{stage}_program"]["largest_constant"] < 100


def test_every_device_drops_out_for_itself():
    """Were the masks the same, the mean of squares would be the square of the mean."""

    def gradient(networks, batch, draws, given):
        mask = jax.random.uniform(draws.dropout, (64,))
        return {}, Networks({"mask": mask, "square": jnp.square(mask)})

    shared = spread(parallel.make_mesh())(gradient)
    draws = losses.draw(jax.random.key(0), 4)
    batch = Batch(np.zeros((4, 1, 1, 1), np.uint8))
    _, means = jax.jit(shared)(
        Networks({}), batch, draws, Given({}, {}, None, jnp.zeros(()))
    )
    variance = means.main["square"] - jnp.square(means.main["mask"])
    assert float(variance.mean()) > 0.02


def test_large_arrays_are_split_along_their_largest_axis_that_divides():
    mesh = parallel.make_mesh(2)
    shapes = {
        "kernel": (3, 3, 32, 64), "odd": (3, 5, 7, 301), "bias": (64,), "count": ()
    }  # fmt: skip
    tree = {k: jax.ShapeDtypeStruct(v, np.float32) for k, v in shapes.items()}
    found = {k: v.spec for k, v in parallel.state_shardings(tree, mesh).items()}
    assert found == {
        "kernel": PartitionSpec(None, None, None, "fsdp"),
        "odd": PartitionSpec(),
        "bias": PartitionSpec(),
        "count": PartitionSpec(),
    }
    whole = parallel.state_shardings(tree, parallel.make_mesh())
    assert {place.spec for place in whole.values()} == {PartitionSpec()}


def test_meshes_and_batches_that_do_not_divide_are_refused_with_both_numbers():
    with pytest.raises(ValueError, match=r"fsdp=3 does not divide the 2 devices"):
        parallel.make_mesh(3)
    mesh = parallel.make_mesh()
    with pytest.raises(ValueError, match="batch_size=7 does not divide over 2 devices"):
        parallel.check_batch_size(7, mesh)
    with pytest.raises(
        ValueError,
        match=r"batch_size=6 .* 2 devices x grad_accum_steps=4.*multiple of 8",
    ):
        parallel.check_batch_size(6, mesh, 4)
    with pytest.raises(ValueError, match="at least 1, got 0"):
        parallel.check_batch_size(6, mesh, 0)


@pytest.mark.parametrize(
    ("batch_sizes", "environment", "devices"),
    [
        ((8, 12), {}, 4),
        ((7, 8), {}, 1),
        ((64,), {}, 8),
        ((8, 12), {"JAX_NUM_CPU_DEVICES": "3"}, 3),
        ((8,), {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}, 2),
    ],
)
def test_a_cpu_has_as_many_devices_as_cores_that_divide_the_batches(
    batch_sizes, environment, devices
):
    program = f"""
import jax
from vdiff_jax import parallel
parallel._cores = lambda: 24
parallel.use_cores({batch_sizes})
print(jax.device_count())
"""
    told = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"JAX_PLATFORMS": "cpu"} | environment,
        capture_output=True,
        check=True,
        text=True,
    )
    assert int(told.stdout) == devices


def test_hosts_that_cannot_be_joined_are_told_what_to_say(monkeypatch):
    def fail(*arguments, **options):
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr(jax.distributed, "initialize", fail)
    with pytest.raises(ValueError, match=r"--coordinator=HOST:PORT, --num_processes"):
        parallel.start()
