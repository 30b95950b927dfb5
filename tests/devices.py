"""Trains some steps in several ways and prints, as JSON, what came out.

Run by test_parallel.py with 1 and with 8 virtual devices: python devices.py 8
"""

import functools
import hashlib
import json
import re
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from configs import digits
from vdiff_jax import parallel
from vdiff_jax.datasets.device_feed import batch_of
from vdiff_jax.datasets.shuffle import batch_indices
from vdiff_jax.distillation.methods import METHODS
from vdiff_jax.from_config.choices import section_of
from vdiff_jax.from_config.data import has_images, make_feeder, make_source
from vdiff_jax.from_config.losses import distill_loss, guide_loss, train_loss
from vdiff_jax.from_config.model import make_model
from vdiff_jax.from_config.sampler import make_sampler
from vdiff_jax.from_config.step import (
    compiled_train_step,
    learning_rate_of,
    optimizer_of,
)
from vdiff_jax.generation.sampler import request
from vdiff_jax.training.step import Job, init_state, make_train_step

STEPS, BATCH_SIZE, SEED = 20, 32, (0, 0)
# What XLA_FLAGS of the tests turns off, for those that look into programs.
AS_FOR_USERS = {"xla_cpu_use_fusion_emitters": True}
MATCHING_STEPS = 6  # of four networks, of which none of the code is optimised


def config(**changes):
    made = digits.get_config()
    made.update(
        {
            "model": {
                "unet": {
                    "channels": 8, "num_blocks": 1, "emb_channels": 64, "groups": 4,
                    "head_dim": 8,
                },
            },
            "train": {"batch_size": BATCH_SIZE, "warmup_steps": 0, "steps": STEPS},
            "distill": {"batch_size": BATCH_SIZE, "warmup_steps": 0},
        }
    )  # fmt: skip
    for field, value in changes.items():
        *sections, name = field.split("__")
        change = {name: value}
        for section in reversed(sections):
            change = {section: change}
        made.update(change)
    return made


def small(**changes):
    """With the network below: for what does not depend on the network."""
    return config(model__net="devices:make_net", **changes)


class Net(nn.Module):
    """Quick to compile, with an array that is large enough to be split."""

    out_channels: int

    @nn.compact
    def __call__(self, z_t, logsnr_t, label=None, *, train=False):
        del label, train
        shift = nn.Dense(16)(logsnr_t[:, None] / 20.0)
        h = nn.swish(nn.Conv(16, (3, 3))(z_t) + shift[:, None, None])
        h = nn.swish(nn.Conv(16, (3, 3))(h))
        return nn.Conv(self.out_channels, (3, 3))(h)


def make_net(out_channels, num_classes):
    del num_classes
    return Net(out_channels)


class Bench:
    """A model, its step and its data, on all devices."""

    def __init__(self, config, stage="train", guided=False, steps=STEPS):
        self.config, self.section = config, section_of(config, stage)
        self.steps = steps
        self.model = make_model(config, guided=guided or stage == "guide")
        self.mesh = parallel.make_mesh(config.parallel.fsdp)
        source = make_source(config, "train")
        self.feeder = make_feeder(config, source, self.section, self.mesh)
        self.optimizer = optimizer_of(self.section)
        auxiliary = None
        if stage == "distill" and METHODS[config.distill.method].auxiliary:
            auxiliary = self.params(2)
        self.start = init_state(self.params(0), self.optimizer, auxiliary)
        self.shardings = parallel.state_shardings(
            jax.eval_shape(lambda: self.start), self.mesh
        )
        self.loss = train_loss(config, self.model, train=True)
        teacher = ()
        if stage == "distill":
            self.loss = distill_loss(config, self.model, self.model)
            places = self.shardings.params
            teacher = (parallel.put(self.params(1), places), jnp.int32(4))
        if stage == "guide":
            base = make_model(config)
            self.loss = guide_loss(config, base, self.model)
            places = parallel.state_shardings(base.abstract_params(), self.mesh)
            teacher = (parallel.put(self.params(1, base), places),)
        self.step = compiled_train_step(
            config, self.section, self.loss, self.feeder, self.mesh, self.shardings
        )
        codec = self.model.codec.params() if has_images(source) else None
        self.job = Job(jax.random.key(7), jnp.int32(STEPS), *teacher, codec=codec)

    def params(self, seed, model=None):
        """Parameters of which none is zero, as those of a new block would be."""
        abstract = (model or self.model).abstract_params()
        leaves, tree = jax.tree.flatten(abstract)
        rng = np.random.default_rng(seed)
        values = [
            rng.normal(scale=leaf.shape[-1] ** -0.5, size=leaf.shape) for leaf in leaves
        ]
        params = jax.tree.unflatten(tree, [jnp.asarray(v, jnp.float32) for v in values])
        if "null_mask" in params:
            params["null_mask"] = jnp.ones_like(params["null_mask"])
        return params

    @functools.cached_property
    def compiled(self):
        return self._lowered().compile()

    @functools.cached_property
    def program(self):
        """The step as it is compiled for users."""
        return self._lowered().compile(AS_FOR_USERS)

    def _lowered(self):
        feed = next(iter(self.feeds()))
        return self.step.lower(self.new_state(), feed, self.job)

    def new_state(self):
        copy = jax.tree.map(jnp.copy, self.start)  # the step writes over its state
        return parallel.put(copy, self.shardings)

    def feeds(self):
        return self.feeder.feeds([(i, 2) for i in range(0, self.steps, 2)], SEED)

    def run(self):
        """The losses, a hash of the batches, and the last parameters."""
        state, losses = self.new_state(), []
        digest = hashlib.sha256()
        read = jax.jit(lambda feed: jax.lax.map(
            lambda item: self.feeder.read(feed.data, item), feed.items
        ))  # fmt: skip
        for feed in self.feeds():
            for leaf in jax.tree.leaves(read(feed)):
                digest.update(np.ascontiguousarray(parallel.fetch(leaf)))
            state, metrics = self.compiled(state, feed, self.job)
            losses += parallel.fetch(metrics["loss"]).tolist()
        return said(losses, digest, state)


def said(losses, digest, state):
    largest = max(jax.tree.leaves(state.params), key=lambda leaf: leaf.size)
    return {
        "losses": losses,
        "batches": digest.hexdigest(),
        "norm": float(optax.tree.norm(state.params)),
        "auxiliary_norm": float(optax.tree.norm(state.networks.auxiliary)),
        "whole": largest.sharding.is_fully_replicated,
        "bytes_here": largest.addressable_shards[0].data.nbytes / largest.nbytes,
    }  # fmt: skip


@functools.cache
def pmapped(bench):
    """The same pure step."""
    return jax.pmap(
        make_train_step(
            bench.loss,
            bench.optimizer,
            learning_rate_of(bench.section),
            ema_decay=bench.section.ema_decay,
            stratified=bench.section.stratified_times,
            flip=bench.config.data.flip,
            axis_name="batch",
        ),
        axis_name="batch",
        in_axes=(0, 0, None),
    )


def under_pmap(bench):
    """What `Bench.run` says, with the rows of each device given to it."""
    devices, step = jax.device_count(), pmapped(bench)
    source = make_source(bench.config, "train")
    state = jax.tree.map(
        lambda leaf: jnp.broadcast_to(leaf, (devices, *leaf.shape)), bench.start
    )
    losses, digest = [], hashlib.sha256()
    for i in range(bench.steps):
        rows = batch_indices(i, batch_size=BATCH_SIZE, length=len(source), seed=SEED)
        examples = [source[row] for row in rows]
        batch = batch_of(
            {name: np.stack([each[name] for each in examples]) for name in examples[0]}
        )
        digest.update(batch.image)
        parts = jax.tree.map(
            lambda leaf: leaf.reshape(devices, -1, *leaf.shape[1:]), batch
        )
        state, metrics = step(state, parts, bench.job)
        losses.append(float(metrics["loss"][0]))
    first = jax.tree.map(lambda leaf: leaf[0], state)
    return said(losses, digest, first)


def matching(run=Bench.run, **changes):
    """Moment matching of 4 steps and of 1, by one compiled step."""
    changes = {"distill__method": "moment_matching", **changes}
    bench = Bench(small(**changes), "distill", steps=MATCHING_STEPS)
    told = {}
    for num_steps in (4, 1):
        bench.job = bench.job._replace(num_steps=jnp.int32(num_steps))
        told[num_steps] = run(bench)
    return told


def pictures(bench, batch_size):
    """Pictures 0 to 47 of one seed, drawn in batches."""
    sampler = make_sampler(bench.config, bench.model)
    params = parallel.put(bench.params(3), parallel.replicated(bench.mesh))
    made = []
    for first in range(0, 48, batch_size):
        index = np.arange(first, first + batch_size)
        index = parallel.put(index, parallel.split(bench.mesh))
        start = sampler.start(index, np.int32(5))
        made.append(np.asarray(sampler.draw(params, start, request(4))))
    return np.concatenate(made).ravel().tolist()


def program(bench):
    """What the compiled step of the HLO says of traffic and memory."""
    text = bench.program.as_text()
    traffic = []
    for line in text.splitlines():
        found = re.search(
            r"= (.*?) (all-reduce|all-gather|reduce-scatter|all-to-all"
            r"|collective-permute)(?:-start)?\(",
            line,
        )
        if found:
            shapes, name = found.groups()
            traffic.append((name, sum(_sizes(shapes))))
    constants = [
        max(_sizes(line.split(" constant(")[0]), default=0)
        for line in text.splitlines()
        if " constant(" in line
    ]
    memory = bench.program.memory_analysis()
    aliases = re.findall(r"input_output_alias=\{(.*?)\}, entry", text)
    return {
        "traffic": traffic,
        "parameters": sum(p.size for p in jax.tree.leaves(bench.start.params)),
        "largest_constant": max(constants),
        "state_leaves": len(jax.tree.leaves(bench.start)),
        "state_bytes": sum(leaf.nbytes for leaf in jax.tree.leaves(bench.start)),
        "aliased_leaves": "".join(aliases).count("alias"),
        "aliased_bytes": memory.alias_size_in_bytes,
        "output_bytes": memory.output_size_in_bytes,
    }


def _sizes(shapes):
    for dims in re.findall(r"[a-z]+\d+\[([\d,]*)\]", shapes):
        yield int(np.prod([int(n) for n in dims.split(",") if n]))


def main(devices):
    jax.config.update("jax_num_cpu_devices", devices)
    jax.config.update("jax_disable_most_optimizations", True)
    plain = Bench(config())
    told = {"plain": plain.run(), "pictures": pictures(plain, 48)}
    told["small"] = Bench(small()).run()
    told["matching"] = {"plain": matching()}
    if devices > 1:
        told["matching"] |= {
            "pmap": matching(under_pmap),
            "fsdp": matching(parallel__fsdp=2),
            "accumulated": matching(distill__grad_accum_steps=4),
        }
    if devices > 1:
        told |= {
            "pictures_by_16": pictures(plain, 16),
            "fsdp": Bench(small(parallel__fsdp=2)).run(),
            "remat": Bench(config(parallel__remat=True)).run(),
            "bfloat16": Bench(config(model__dtype="bfloat16")).run(),
            "pmap": under_pmap(Bench(small())),
            "accumulated": Bench(small(train__grad_accum_steps=4)).run(),
            "streamed": Bench(small(data__on_device="never")).run(),
        }
        jax.config.update("jax_disable_most_optimizations", False)
        told["train_program"] = program(Bench(config()))
        told["distill_program"] = program(Bench(small(), "distill"))
    print(json.dumps(told))


if __name__ == "__main__":
    main(int(sys.argv[1]))
