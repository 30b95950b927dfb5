"""Trains models of latents and of contexts, and draws from them; prints what came out.

Run by test_latents_runs.py: python latent_devices.py FOLDER 8, or on each of two hosts
python latent_devices.py FOLDER 4 ADDRESS NUMBER, with the data of tiny_latents.py.
"""

import functools
import json
import pathlib
import sys

import jax
import numpy as np
import pytest

import tiny_latents
from devices import BATCH_SIZE, Bench, under_pmap
from vdiff_jax import parallel
from vdiff_jax.from_config.data import make_source
from vdiff_jax.from_config.sampler import make_sampler
from vdiff_jax.generation.batches import draw, start_of_seed
from vdiff_jax.generation.conditions import of_source
from vdiff_jax.generation.sampler import request

OF_NET = {"net": "devices:make_net"}
PLAIN, SPLIT = {}, {"parallel": {"fsdp": 2}}
IN_PARTS, STREAMED = (
    {"train": {"grad_accum_steps": 4}},
    {"data": {"on_device": "never"}},
)
MATCHING = {"distill": {"method": "moment_matching"}}


def bench(folder, kind, stage="train", **changes):
    config = tiny_latents.config("train", kind, folder)
    if kind != "texts":
        config.model.update(OF_NET)
    for section in (config.train, config.guide, config.distill):
        section.update({"batch_size": BATCH_SIZE, "warmup_steps": 0})
    config.train.stratified_times = True
    config.update(changes)
    return Bench(config, stage, guided=stage == "distill")


def of_each(of):
    """What one device does, eight, and two hosts."""
    return {
        "images": of("images").run(),
        "texts": of("texts").run(),
        "drawn": drawn(of("texts", "distill"), 48),
    }


def of_one(of):
    """What one device does, and eight."""
    return {
        "moments": of("moments").run(),
        "guide": of("texts", "guide").run(),
        "progressive": of("texts", "distill").run(),
        "matching": of("texts", "distill", **MATCHING).run(),
    }


def of_many(of):
    """What only many devices can do otherwise."""
    ways = {"fsdp": SPLIT, "accumulated": IN_PARTS, "streamed": STREAMED}
    told = {
        f"{kind} {way}": of(kind, **changes).run()
        for kind in ("images", "texts")
        for way, changes in ways.items()
    }
    return told | {
        "guide fsdp": of("texts", "guide", **SPLIT).run(),
        "matching fsdp": of("texts", "distill", **MATCHING, **SPLIT).run(),
        "texts pmap": under_pmap(of("texts")),
        "drawn by 16": drawn(of("texts", "distill"), 16),
    }


def drawn(bench, batch_size):
    """Images 3 to 45 of one seed, of contexts and guided, decoded."""
    sampler = make_sampler(bench.config, bench.model)
    params = parallel.put(bench.params(3), parallel.replicated(bench.mesh))
    contexts = of_source(make_source(bench.config, "test"))
    images = draw(
        sampler,
        params,
        range(3, 45),
        request=request(4, w=1.5),
        batch_size=batch_size,
        start_of=start_of_seed(sampler, 5, contexts),
    ).images
    assert images.dtype == np.uint8
    assert images.shape == (42, 8, 8, 1)
    return images.ravel().tolist()


def main(folder, count, address="", host="0"):
    jax.config.update("jax_num_cpu_devices", int(count))
    jax.config.update("jax_disable_most_optimizations", True)
    if address:
        jax.distributed.initialize(address, num_processes=2, process_id=int(host))
    of = functools.partial(bench, pathlib.Path(folder))
    told = {}
    if not address:
        told["u_net"] = of("texts").run()
    if not address and jax.device_count() > 1:
        told["u_net fsdp"] = of("texts", **SPLIT).run()
    with pytest.MonkeyPatch.context() as patch:
        tiny_latents.use_small_net(patch)
        told |= of_each(of)
        if not address:
            told |= of_one(of)
        if not address and jax.device_count() > 1:
            told |= of_many(of)
    print(json.dumps(told))


if __name__ == "__main__":
    main(*sys.argv[1:])
