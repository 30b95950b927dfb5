"""The compiled step, by counts that no clock disturbs: what made it fast stays."""

import collections
import re

import jax
import jax.numpy as jnp
import pytest

import devices
from configs import digits
from vdiff_jax.from_config.model import make_model
from vdiff_jax.from_config.sampler import make_sampler
from vdiff_jax.generation.sampler import request

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("optimized")]

# Passes of the network in one update: forward, and twice that for its gradient.
CONVOLUTIONS = {"train": 3, "distill": 5}
# Measured with jaxlib 0.10.2 on two CPU devices, and a tenth more.
MOST = {
    "train": {"dot": 200, "copy": 520, "fusion": 1700, "temporaries": 5_300_000},
    "distill": {"dot": 380, "copy": 550, "fusion": 2270, "temporaries": 5_300_000},
}


@pytest.fixture(scope="module", params=["train", "distill"])
def step(request):
    """A stage, the digits' network, and its compiled step."""
    config = devices.config(
        model__unet__channels=32, model__unet__num_blocks=2,
        model__unet__emb_channels=128, model__unet__groups=8, model__unet__head_dim=16,
    )  # fmt: skip
    bench = devices.Bench(config, request.param)
    return request.param, bench.model, bench.program


def test_a_step_convolves_no_more_than_its_passes_need(step):
    stage, model, compiled = step
    shapes = [leaf.shape for leaf in jax.tree.leaves(model.abstract_params())]
    kernels = sum(len(shape) == 4 and shape[:2] == (3, 3) for shape in shapes)
    found = re.findall(r" convolution\(.*", compiled.as_text())
    # The network's input has no gradient.
    assert len(found) == CONVOLUTIONS[stage] * kernels - 1
    # Any other order of dimensions may fall to a path that is 20 times slower.
    assert all("dim_labels=b01f_01io->b01f" in line for line in found)


def test_a_step_has_few_operations_and_little_scratch(step):
    stage, _, compiled = step
    # The places of gradients in their sum are copied too, a number each.
    operations = re.findall(r" = (?!s32\[\])\S+ ([a-z-]+)\(", compiled.as_text())
    counts = dict(collections.Counter(operations))
    counts["temporaries"] = compiled.memory_analysis().temp_size_in_bytes
    most = MOST[stage]
    assert {name: counts[name] for name in most} == {
        name: min(counts[name], bound) for name, bound in most.items()
    }


def test_gradients_are_cut_out_where_only_the_run_knows(step):
    """At constant places each array's update would be compiled by itself."""
    _, model, compiled = step
    text, arrays = compiled.as_text(), len(jax.tree.leaves(model.abstract_params()))
    assert text.count(" dynamic-slice(") >= arrays
    # Nor is a sum compiled for each place.
    assert len(re.findall(r"^%fused\S* \(.*\) -> s32\[\] \{", text, re.M)) < arrays / 2


def test_a_sampler_joins_no_more_than_the_skips_of_its_network():
    """A join of small arrays in each norm once made samples 2.5 times as slow."""
    config = digits.get_config()
    model = make_model(config)
    sampler, params = make_sampler(config, model), model.abstract_params()
    start = jax.eval_shape(sampler.start, jnp.arange(64), jnp.int32(0))
    draw = type(sampler).draw
    lowered = draw.lower(sampler, params, start, request(4))
    compiled = lowered.compile(devices.AS_FOR_USERS)
    # Of skips 3; the others are of the sinusoid and of the sampler's random numbers.
    assert compiled.as_text().count(" concatenate(") <= 7
