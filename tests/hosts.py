"""One of several hosts: prints the labels that it reads. Run by test_device_feed.py."""

import json
import sys

import jax
import numpy as np

from vdiff_jax import parallel
from vdiff_jax.datasets.device_feed import Resident, Streamed
from vdiff_jax.datasets.source import Arrays


def main(address: str, host: int, length: int, batch_size: int, steps: int) -> None:
    jax.config.update("jax_num_cpu_devices", 2)
    jax.distributed.initialize(address, num_processes=2, process_id=host)
    mesh = parallel.make_mesh()
    labels = np.arange(length, dtype=np.int32)
    source = Arrays(np.zeros((length, 1, 1, 1), np.uint8), labels)
    calls, seed = [(step, 1) for step in range(steps)], (0,)

    here, sums = [], []
    total = jax.jit(lambda values: values.sum())
    for feed in Streamed(source, batch_size, mesh, 0).feeds(calls, seed):
        label = feed.items.condition.label
        assert label.shape == (1, batch_size)
        here.append([int(v) for s in label.addressable_shards for v in s.data.ravel()])
        sums.append(int(total(label)))

    on_device = Resident(source, batch_size=batch_size, mesh=mesh, num_workers=0)
    read = jax.jit(
        lambda feed: on_device.read(feed.data, first(feed.items)).condition.label
    )
    resident_here = []
    for feed in on_device.feeds(calls, seed):
        label = read(feed)
        shards = [v for s in label.addressable_shards for v in np.ravel(s.data)]
        resident_here.append([int(v) for v in shards])
    print(json.dumps({"here": here, "resident": resident_here, "sums": sums}))


def first(items):
    return jax.tree.map(lambda values: values[0], items)


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
