"""What reaches the step: the same batches from every source and by every way."""

import json
import pathlib
import socket
import subprocess
import sys

import jax
import numpy as np
import PIL.Image
import pytest

from vdiff_jax import parallel
from vdiff_jax.datasets import catalog
from vdiff_jax.datasets.device_feed import Resident, Streamed, size_in_bytes
from vdiff_jax.datasets.prepare.task import Task
from vdiff_jax.datasets.prepare.work import prepare
from vdiff_jax.datasets.source import Arrays, held_out_part
from vdiff_jax.datasets.validation import Checked

SIZE = 8


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """60 JPEG files of three classes in every size, and the same prepared."""
    root = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for i in range(60):
        path = root / "folder" / "train" / "abc"[i % 3] / f"{i:02d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        height, width = rng.integers(8, 30, 2)
        pixels = rng.integers(0, 256, (height, width, 3), np.uint8)
        PIL.Image.fromarray(pixels).save(path)
    for kind in ("lmdb", "npz"):
        prepare(Task(root / "folder", root / kind, (SIZE,), kind, splits=("train",)))
    return root


def _source(photos, kind, num_classes=3):
    source = catalog.open_source(
        kind,
        path=photos / kind,
        name="",
        split_name="train",
        split="train",
        image_shape=(SIZE, SIZE, 3),
        resize="area",
    )
    return Checked(source, num_classes=num_classes, uint8_shape=(SIZE, SIZE, 3))


def _batches(feeder, calls, seed=(0, 0)):
    """The batches of all steps, [steps, batch, ...], read as the compiled step does."""

    @jax.jit
    def read(feed):
        return jax.lax.map(lambda item: feeder.read(feed.data, item), feed.items)

    read_feeds = [read(feed) for feed in feeder.feeds(calls, seed)]
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *read_feeds)


def _streamed(source, batch_size=8, num_workers=0):
    return Streamed(source, batch_size, parallel.make_mesh(), num_workers)


def _resident(source, batch_size=8):
    mesh = parallel.make_mesh()
    return Resident(source, batch_size=batch_size, mesh=mesh, num_workers=0)


def _equal(batches, others):
    jax.tree.map(np.testing.assert_array_equal, batches, others)


@pytest.mark.parametrize("kind", ["folder", "lmdb", "npz"])
def test_every_source_gives_the_same_batches_streamed_or_resident(photos, kind):
    calls = [(step, 10) for step in range(0, 100, 10)]
    expected = _batches(_streamed(_source(photos, "folder")), calls)
    assert expected.image.shape == (100, 8, SIZE, SIZE, 3)
    source = _source(photos, kind)
    _equal(_batches(_streamed(source), calls), expected)
    _equal(_batches(_streamed(source, num_workers=2), calls), expected)
    _equal(_batches(_resident(source), calls), expected)


@pytest.mark.parametrize("make", [_streamed, _resident])
@pytest.mark.parametrize("stopped_after", [1, 7, 33])
def test_a_run_goes_on_with_the_batches_that_would_have_come(
    photos, make, stopped_after
):
    feeder = make(_source(photos, "npz"), batch_size=14)
    whole = _batches(feeder, [(0, 40)])
    resumed = _batches(feeder, [(stopped_after, 40 - stopped_after)])
    _equal(resumed, jax.tree.map(lambda leaf: leaf[stopped_after:], whole))


@pytest.mark.parametrize("make", [_streamed, _resident])
def test_batches_lie_split_over_the_devices(photos, make):
    feeder = make(_source(photos, "npz"))
    (feed,) = feeder.feeds([(0, 1)], (0,))
    item = jax.tree.map(lambda values: values[0], feed.items)
    batch = jax.jit(feeder.read)(feed.data, item)
    for leaf in jax.tree.leaves(batch):
        assert leaf.sharding.is_equivalent_to(
            parallel.split(parallel.make_mesh()), leaf.ndim
        )


def test_a_resident_set_is_indexed_with_no_work_on_the_host(photos):
    feeder = _resident(_source(photos, "npz"))
    (feed,) = feeder.feeds([(0, 50)], (0,))
    # What a call of 50 steps takes from the host is three numbers a step.
    assert sum(leaf.nbytes for leaf in jax.tree.leaves(feed.items)) == 50 * 3 * 4
    assert isinstance(feed.data.image, jax.Array)
    # No device talks to another to find its rows.
    item = jax.tree.map(lambda values: values[0], feed.items)
    hlo = jax.jit(feeder.read).lower(feed.data, item).compile().as_text()
    assert "gather" in hlo
    assert not any(op in hlo for op in ("all-gather", "all-reduce", "permute"))


@pytest.mark.slow
def test_two_hosts_read_disjoint_shards_that_are_the_epoch():
    length, batch_size, steps = 37, 8, 14  # three epochs and a bit: 111 of 112
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    line = [sys.executable, str(pathlib.Path(__file__).with_name("hosts.py")), address]
    numbers = [str(n) for n in (length, batch_size, steps)]
    hosts = [
        subprocess.Popen(
            [*line, str(host), *numbers],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for host in (0, 1)
    ]
    said = [host.communicate(timeout=120) for host in hosts]
    assert [host.returncode for host in hosts] == [0, 0], said
    one, other = (json.loads(out.splitlines()[-1]) for out, _ in said)

    labels = np.arange(length, dtype=np.int32)
    source = Arrays(np.zeros((length, 1, 1, 1), np.uint8), labels)
    expected = _batches(_streamed(source), [(0, steps)], seed=(0,)).condition.label
    for step in range(steps):
        assert len(one["here"][step]) == len(other["here"][step]) == batch_size // 2
    together = np.concatenate([one["here"], other["here"]], axis=1)
    np.testing.assert_array_equal(together, expected)
    stream = together.ravel()
    for epoch in range(3):
        seen = stream[epoch * length : (epoch + 1) * length]
        np.testing.assert_array_equal(np.sort(seen), labels)
    # The devices saw one array, and a resident set is the same on both.
    assert one["sums"] == other["sums"] == expected.sum(axis=1).tolist()
    assert one["resident"] == one["here"]
    assert other["resident"] == other["here"]


def test_parts_of_a_source_are_fed_too(photos):
    part = held_out_part(_source(photos, "lmdb"), 0.3, "test")
    batches = _batches(_resident(part, batch_size=len(part) // 2 * 2), [(0, 1)])
    assert np.isin(batches.condition.label, part.labels).all()
    assert size_in_bytes(part) == len(part) * SIZE * SIZE * 3
