"""The sampler as a file, run where neither this package nor flax is."""

import json
import subprocess
import sys

import jax
import numpy as np
import pytest
from jax import export

import tiny
from vdiff_jax import diffusion, samplers
from vdiff_jax.files import weights
from vdiff_jax.from_config.model import make_model
from vdiff_jax.from_config.sampler import make_sampler
from vdiff_jax.interop import stablehlo
from vdiff_jax.types import Condition

pytestmark = pytest.mark.slow

ALONE = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("vdiff_jax", "flax", "torch", "orbax"):
            raise ImportError(name)
sys.meta_path.insert(0, Block())
import jax, numpy as np
from jax import export
from safetensors.numpy import load_file
call = export.deserialize(bytearray(open("sampler.bin", "rb").read())).call
weights, inputs = load_file("weights.safetensors"), np.load("inputs.npz")
for size in (1, 3, 64):
    x = jax.jit(call)(weights, *(inputs[name][:size] for name in inputs.files))
    np.save(f"{size}.npy", np.asarray(x))
"""


@pytest.fixture(scope="module", params=["plain", "guided"])
def exported(request, tmp_path_factory):
    """A folder, what it was made of, and what is sampled without it."""
    config = tiny.config("sample")
    guided = request.param == "guided"
    if guided:
        config.model.num_classes, config.guide.steps = 10, 1
    model = make_model(config, guided=guided)
    leaves, tree = jax.tree.flatten(model.abstract_params())
    rng = np.random.default_rng(0)
    params = jax.tree.unflatten(
        tree, [rng.normal(scale=0.3, size=x.shape).astype(np.float32) for x in leaves]
    )
    sampler = make_sampler(config, model, "ddim")
    folder = tmp_path_factory.mktemp("stablehlo")
    stablehlo.write(folder, sampler, params, num_steps=4)
    return folder, sampler, params


def _conditions(model):
    """Labels and strengths of 64 pictures, for a model that takes both or none."""
    if not model.num_classes:
        return ()
    return (np.arange(64) % 10).astype(np.int32), np.linspace(0, 4, 64, dtype="f4")


def _direct(sampler, params, z, label, w):
    model = sampler.model

    @jax.jit
    def draw(params, z):
        denoise = model.denoiser(params, Condition(label, w=w))
        return samplers.sample(
            diffusion.limited(denoise, sampler.limits),
            z,
            schedule=model.schedule,
            num_steps=4,
        )

    return np.asarray(draw(params, z))


def test_it_runs_alone_and_draws_the_same_for_any_batch(exported):
    folder, sampler, params = exported
    model = sampler.model
    z = np.random.default_rng(1).normal(size=(64, *model.image_shape)).astype("f4")
    conditions = _conditions(model)
    inputs = zip("abc", (z, *conditions), strict=False)
    np.savez(folder / "inputs.npz", **dict(inputs))
    label, w = conditions or (None, None)
    subprocess.run([sys.executable, "-c", ALONE], cwd=folder, check=True)
    expected = _direct(sampler, params, z, label, w)
    assert (np.abs(expected) < 1).mean() > 0.2
    for size in (1, 3, 64):
        found = np.load(folder / f"{size}.npy")
        np.testing.assert_allclose(found, expected[:size], atol=1e-5)


def test_what_does_not_fit_is_refused_by_name(exported):
    folder, sampler, _ = exported
    code = bytearray((folder / stablehlo.CODE).read_bytes())
    tensors = weights.read(folder / stablehlo.WEIGHTS)
    conditions = _conditions(sampler.model)
    z = np.zeros((64, 5, *sampler.model.image_shape[1:]), np.float32)
    with pytest.raises(ValueError, match="shape"):
        export.deserialize(code).call(tensors, z, *conditions)


def test_the_code_is_small_and_says_nothing_of_this_machine(exported):
    folder = exported[0]
    data = (folder / stablehlo.CODE).read_bytes()
    assert b".py" in data  # where lines come from is kept,
    assert b"/vdiff_jax" not in data  # but not the folders
    assert b"/site-packages" not in data
    assert b"/home" not in data
    assert b"/tmp" not in data
    about = json.loads((folder / stablehlo.ABOUT).read_text())
    assert about["num_steps"] == 4
    assert about["platforms"] == ["cpu", "cuda"]
    assert about["weights_sha256"] == weights.sha256(folder / stablehlo.WEIGHTS)
    assert "6 months" in about["lifetime"]


def test_the_script_in_the_folder_draws_pictures(exported):
    folder, sampler, _ = exported
    script = folder / stablehlo.SCRIPT
    assert len(script.read_text().splitlines()) <= 12
    subprocess.run([sys.executable, script.name], cwd=folder, check=True)
    pictures = np.load(folder / "pictures.npy")
    assert pictures.shape == (16, *sampler.model.image_shape)
    assert pictures.dtype == np.uint8
    assert pictures.std() > 5
