"""The sampler as a file, run where neither this package nor flax is."""

import json
import subprocess
import sys

import jax
import numpy as np
import pytest
from jax import export

import tiny
import tiny_autoencoder
from vdiff_jax import diffusion, samplers
from vdiff_jax.files import weights
from vdiff_jax.from_config.model import make_model
from vdiff_jax.from_config.sampler import make_sampler
from vdiff_jax.interop import stablehlo
from vdiff_jax.interop.model_file import tensors_of
from vdiff_jax.nets import attention
from vdiff_jax.types import Condition

pytestmark = pytest.mark.slow

ALONE = """
import os, sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("vdiff_jax", "flax", "torch", "orbax"):
            raise ImportError(name)
sys.meta_path.insert(0, Block())
import jax, numpy as np
from jax import export
from safetensors.numpy import load_file
call = export.deserialize(bytearray(open("sampler.bin", "rb").read())).call
inputs, weights = np.load("inputs.npz"), load_file("weights.safetensors")
if os.path.exists("autoencoder.safetensors"):
    weights |= load_file("autoencoder.safetensors")
for size in (1, 3, 64):
    x = jax.jit(call)(weights, *(inputs[name][:size] for name in inputs.files))
    np.save(f"{size}.npy", np.asarray(x))
"""


TOKENS, WIDTH = 3, 6
# Whether it takes classes and w, a context and w, and the autoencoder that decodes.
KINDS = {
    "plain": (False, False, None),
    "guided": (True, False, None),
    "of a text, decoded": (False, True, (tiny_autoencoder.NET, {})),
    "decoded by a codebook": (
        False, False, (tiny_autoencoder.CODEBOOK, tiny_autoencoder.OF_CODEBOOK)
    ),
}  # fmt: skip


@pytest.fixture(scope="module", params=KINDS)
def exported(request, tmp_path_factory):
    """A folder, what it was made of, and what is sampled without it."""
    config = tiny.config("sample")
    of_class, of_text, decoder = KINDS[request.param]
    guided = of_class or of_text
    if of_class:
        config.model.num_classes = 10
    if of_text:
        config.model.unet.update({"context_tokens": TOKENS, "context_features": WIDTH})
    if guided:
        config.guide.steps = 1
    if decoder:
        net, changes = decoder
        folder = tmp_path_factory.mktemp("vae") / "vae"
        tiny_autoencoder.write(folder, net, **changes)
        data = {"autoencoder": str(folder), "image_size": 8, "channels": 2}
        config.data.update(data)
    model = make_model(config, guided=guided)
    leaves, tree = jax.tree.flatten(model.abstract_params())
    rng = np.random.default_rng(0)
    params = jax.tree.unflatten(
        tree, [rng.normal(scale=0.3, size=x.shape).astype(np.float32) for x in leaves]
    )
    sampler = make_sampler(config, model, "ddim")
    folder = tmp_path_factory.mktemp("stablehlo")
    stablehlo.write(folder, sampler, params, num_steps=4, decode=decoder is not None)
    return folder, sampler, params


def _condition(model):
    """What 64 images are conditioned on; of one in four, the text is left out."""
    label = (np.arange(64) % 10).astype(np.int32) if model.num_classes else None
    context = mask = None
    if model.context_shape:
        rng = np.random.default_rng(2)
        context = rng.normal(size=(64, TOKENS, WIDTH)).astype("f4")
        mask = np.arange(64)[:, None] % 4 > np.arange(TOKENS)
    w = np.linspace(0, 4, 64, dtype="f4") if model.w_range else None
    return Condition(label, context, mask, w)


def _arguments(model):
    z = np.random.default_rng(1).normal(size=(64, *model.image_shape)).astype("f4")
    return z, *(part for part in _condition(model) if part is not None)


def _direct(sampler, params):
    """x or latents without decoding."""
    model = sampler.model

    @jax.jit
    def draw(params, z):
        denoise = model.denoiser(params, _condition(model))
        x = samplers.sample(
            diffusion.limited(denoise, sampler.limits),
            z,
            schedule=model.schedule,
            num_steps=4,
        )
        return x if model.codec.bounded else model.codec.from_x(x)

    return np.asarray(draw(params, _arguments(model)[0]))


def test_it_runs_alone_and_draws_the_same_for_any_batch(exported):
    folder, sampler, params = exported
    codec = sampler.model.codec
    inputs = zip("abcde", _arguments(sampler.model), strict=False)
    np.savez(folder / "inputs.npz", **dict(inputs))
    subprocess.run([sys.executable, "-c", ALONE], cwd=folder, check=True)
    expected = _direct(sampler, params)
    if codec.bounded:
        assert (np.abs(expected) < 1).mean() > 0.2
    else:
        expected = codec.to_images(expected)
        assert expected.std() > 5
    for size in (1, 3, 64):
        found = np.load(folder / f"{size}.npy")
        assert found.dtype == expected.dtype
        if codec.bounded:
            np.testing.assert_allclose(found, expected[:size], atol=1e-5)
            continue
        error = np.abs(found.astype(int) - expected[:size])
        assert found.shape == expected[:size].shape
        assert (error > 1).mean() < 0.01  # another code is another patch
        assert (error > 0).mean() < 0.02


def test_the_weights_beside_the_network_are_those_that_decode(exported):
    folder, sampler, _ = exported
    about = json.loads((folder / stablehlo.ABOUT).read_text())
    path = folder / stablehlo.DECODER
    if sampler.model.codec.bounded:
        assert not path.exists()
        assert about["returns"] == "x in [-1, 1], as z"
        return
    assert about["returns"].startswith("uint8 images")
    assert about["autoencoder_sha256"] == weights.sha256(path)
    tensors, own = weights.read(path), weights.read(folder / stablehlo.WEIGHTS)
    assert not tensors.keys() & own.keys()
    parts = {name.split("/")[1] for name in tensors}
    codebook = {"quantize"} if sampler.model.codec.net.codebook else set()
    assert parts == {"decoder", "post_quant_conv", *codebook}
    assert all(name.startswith("autoencoder/") for name in tensors)


def test_the_arguments_are_described(exported):
    folder, sampler, _ = exported
    about = json.loads((folder / stablehlo.ABOUT).read_text())
    model, of_text = sampler.model, sampler.model.context_shape is not None
    assert about["z"] == ["batch", *model.image_shape]
    assert about["label"] == ("int32 [batch]" if model.num_classes else None)
    assert about["context"] == ("float32 [batch, 3, 6]" if of_text else None)
    assert about["mask"] == ("bool [batch, 3]" if of_text else None)
    assert about["w"] == ("float32 [batch]" if model.w_range else None)


def test_a_model_without_a_decoder_is_not_written_with_one(tmp_path):
    config = tiny.small("sample")
    for scale in (0.0, 0.5):  # of pixels, of latents
        config.data.latent_scale = scale
        sampler = make_sampler(config, make_model(config), "ddim")
        with pytest.raises(ValueError, match=r"set data\.autoencoder to its folder"):
            stablehlo.write(tmp_path / "out", sampler, {}, num_steps=4, decode=True)
    assert not (tmp_path / "out").exists()


def test_what_does_not_fit_is_refused_by_name(exported):
    folder, sampler, _ = exported
    code = bytearray((folder / stablehlo.CODE).read_bytes())
    tensors = {}
    for path in folder.glob("*.safetensors"):
        tensors |= weights.read(path)
    _, *conditions = _arguments(sampler.model)
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


def test_no_kernel_of_the_gpu_that_it_was_written_on_is_in_the_code(monkeypatch):
    config = tiny.config("sample", model={"dtype": "bfloat16"})
    sampler = make_sampler(config, model := make_model(config), "ddim")
    tensors = tensors_of(model.init(jax.random.key(0)))
    monkeypatch.setattr(attention, "compute_capability", lambda: (9, 0))
    assert b"cudnn" not in stablehlo.code(sampler, tensors, num_steps=2)


def test_the_script_in_the_folder_draws_pictures(exported):
    folder, sampler, _ = exported
    script = folder / stablehlo.SCRIPT
    of_text = sampler.model.context_shape is not None
    assert len(script.read_text().splitlines()) <= 12 + 2 * of_text
    subprocess.run([sys.executable, script.name], cwd=folder, check=True)
    pictures = np.load(folder / "images.npy")
    height, width, channels = sampler.model.image_shape
    if not sampler.model.codec.bounded:
        height, width, channels = 2 * height, 2 * width, 1
    assert pictures.shape == (16, height, width, channels)
    assert pictures.dtype == np.uint8
    assert pictures.std() > 5
