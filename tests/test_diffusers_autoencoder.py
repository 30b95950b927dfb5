"""Autoencoders of diffusers, against diffusers, and what is refused."""

import json
import re
import shutil

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import torch

from diffusers_nets import AUTOENCODERS, random_autoencoder
from vdiff_jax.interop.diffusers import names
from vdiff_jax.interop.diffusers.autoencoder import read_autoencoder
from vdiff_jax.interop.diffusers.folder import WEIGHTS

pytestmark = [
    pytest.mark.diffusers,
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The folder of each kind of autoencoder."""
    root = tmp_path_factory.mktemp("autoencoders")
    for i, kind in enumerate(AUTOENCODERS):
        random_autoencoder(kind).save_pretrained(root / str(i))
    return {kind: root / str(i) for i, kind in enumerate(AUTOENCODERS)}


def _theirs(net, method, x):
    with torch.no_grad():
        x = torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2)))
        result = getattr(net, method)(x)
    if method == "decode":
        result = result.sample
    elif isinstance(net, diffusers.VQModel):
        result = result.latents
    else:
        latents = result.latent_dist
        result = torch.cat([latents.mean, latents.logvar], dim=1)
    return result.numpy().transpose(0, 2, 3, 1)


def _error(imported, theirs, method, dtype):
    """The largest error relative to the largest value, over images of 16 x 24."""
    net = imported.net.clone(dtype=dtype)
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), imported.params)
    height, width, channels = {
        "encode": (16, 24, net.image_channels),
        "decode": (16 // net.factor, 24 // net.factor, net.latent_channels),
    }[method]
    x = np.random.default_rng(0).normal(size=(2, height, width, channels)).astype(dtype)
    apply = jax.jit(lambda params, x: net.apply({"params": params}, x, method=method))
    ours, expected = apply(params, jnp.asarray(x)), _theirs(theirs, method, x)
    assert ours.dtype == dtype
    assert ours.shape == expected.shape
    return np.abs(ours - expected).max() / np.abs(expected).max()


@pytest.mark.slow
@pytest.mark.parametrize("method", ["encode", "decode"])
@pytest.mark.parametrize("kind", AUTOENCODERS)
def test_an_imported_autoencoder_is_the_same_function(kind, method, folders):
    theirs, imported = random_autoencoder(kind), read_autoencoder(folders[kind])
    coarse = _error(imported, theirs, method, np.float32)
    with jax.enable_x64(True):
        fine = _error(imported, theirs.double(), method, np.float64)
    print(f"{coarse:.1e} in float32, {fine:.1e} in float64")
    assert coarse < 5e-5
    assert fine < 1e-10


@pytest.mark.parametrize("kind", AUTOENCODERS)
def test_every_tensor_comes_back_bit_for_bit(kind, folders):
    back = names.to_torch(read_autoencoder(folders[kind]).params)
    theirs = random_autoencoder(kind).state_dict()
    assert back.keys() == theirs.keys()
    for name, tensor in theirs.items():
        np.testing.assert_array_equal(back[name], tensor.numpy())


def _changed(folder, tmp_path, changes, without=()):
    """A copy of a folder with other fields in its config."""
    copy = shutil.copytree(folder, tmp_path / "copy")
    fields = {**json.loads((copy / "config.json").read_text()), **changes}
    fields = {name: x for name, x in fields.items() if name not in without}
    (copy / "config.json").write_text(json.dumps(fields))
    return copy


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"act_fn": "gelu"}, "act_fn='gelu'"),
        ({"latents_mean": [0.0] * 4}, "latents_mean="),
        ({"latents_std": [1.0] * 4}, "latents_std="),
        (
            {"down_block_types": ["DownEncoderBlock2D", "AttnDownEncoderBlock2D"]},
            "down_block_types in .* has 'AttnDownEncoderBlock2D'",
        ),
        (
            {"up_block_types": ["UpDecoderBlock2D", "AttnUpDecoderBlock2D"]},
            "up_block_types in .* has 'AttnUpDecoderBlock2D'",
        ),
        ({"up_block_types": ["UpDecoderBlock2D"]}, "up_block_types in .* has 1 entr"),
        ({"norm_num_groups": 3}, "norm_num_groups=3 in .* does not divide 16"),
        ({"out_channels": 1}, "in_channels=3 and out_channels=1"),
        ({"new_field": 1}, "new_field"),
        ({"num_vq_embeddings": 8}, "num_vq_embeddings"),
        ({"_class_name": "AutoencoderTiny"}, "AutoencoderTiny"),
        ({"layers_per_block": 2}, r"missing \(.*\), and 0 are"),
        ({"mid_block_add_attention": False}, r"20 are not used \(decoder"),
        ({"use_quant_conv": False}, r"2 are not used \(quant_conv"),
        ({"latent_channels": 3}, "has shape"),
        ({"scaling_factor": -1.0}, "scaling_factor=-1.0 in .* above 0"),
    ],
    ids=str,
)
def test_what_cannot_be_imported_is_refused_by_name(
    folders, tmp_path, changes, message
):
    copy = _changed(folders["of Gaussians"], tmp_path, changes)
    with pytest.raises(ValueError, match=message):
        read_autoencoder(copy)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"norm_type": "spatial"}, "norm_type='spatial'"),
        ({"lookup_from_codebook": True}, "lookup_from_codebook=True"),
        ({"num_vq_embeddings": 64}, "quantize.embedding.weight in .* has shape"),
        ({"shift_factor": 0.1}, "shift_factor"),
    ],
    ids=str,
)
def test_codes_of_other_kinds_are_refused_by_name(folders, tmp_path, changes, message):
    copy = _changed(folders["of codes"], tmp_path, changes)
    with pytest.raises(ValueError, match=message):
        read_autoencoder(copy)


@pytest.mark.parametrize("upcast", [True, False])
def test_what_does_not_change_the_numbers_is_not_refused(folders, tmp_path, upcast):
    changes = {"force_upcast": upcast, "sample_size": [512, 256], "act_fn": "swish"}
    copy = _changed(folders["of Gaussians"], tmp_path, changes)
    whole = read_autoencoder(folders["of Gaussians"])
    assert read_autoencoder(copy)._replace(folder=whole.folder).net == whole.net


def test_the_scale_is_that_of_the_file(folders):
    shifted = read_autoencoder(folders["shifted, without outer maps"])
    assert (shifted.scale, shifted.shift) == (1.5, 0.06)
    assert read_autoencoder(folders["shifted, without outer maps"], 1.5).scale == 1.5
    assert read_autoencoder(folders["of codes"]).shift == 0.0
    with pytest.raises(ValueError, match=r"latent_scale=2.0, but scaling_factor=1.5"):
        read_autoencoder(folders["shifted, without outer maps"], 2.0)


@pytest.mark.parametrize("kind", ["of Gaussians", "of codes"])
def test_a_scale_that_the_file_lacks_has_to_be_given(folders, tmp_path, kind):
    copy = _changed(folders[kind], tmp_path, {}, without=["scaling_factor"])
    with pytest.raises(ValueError, match=r"config.json has no .* set data.latent_scal"):
        read_autoencoder(copy)
    for scale in (-1.0, float("nan")):
        with pytest.raises(ValueError, match=rf"latent_scale={scale} must be above"):
            read_autoencoder(copy, scale)
    assert read_autoencoder(copy, 0.25).scale == 0.25


@pytest.mark.parametrize("part", ["vae", "vqvae"])
def test_the_folder_of_a_pipeline_will_do(folders, tmp_path, part):
    shutil.copytree(folders["of codes"], tmp_path / part)
    alone, whole = (
        read_autoencoder(folder) for folder in (folders["of codes"], tmp_path)
    )
    jax.tree.map(np.testing.assert_array_equal, whole.params, alone.params)
    assert whole.net == alone.net
    assert whole.sha256 == alone.sha256
    assert whole.folder == tmp_path / part
    with pytest.raises(ValueError, match=r"no .*config\.json"):
        read_autoencoder(tmp_path / "elsewhere")


def test_old_names_of_attention_are_read(folders, tmp_path):
    folder = folders["of Gaussians"]
    copy = shutil.copytree(folder, tmp_path / "copy")
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tensors = {}
    for name, tensor in safetensors.numpy.load_file(folder / WEIGHTS).items():
        for new, before in old.items():
            name = name.replace(new, before)
        tensors[name] = tensor
    safetensors.numpy.save_file(tensors, copy / WEIGHTS)
    jax.tree.map(
        np.testing.assert_array_equal,
        read_autoencoder(copy).params,
        read_autoencoder(folder).params,
    )


def test_variants_and_parts_are_read(folders, tmp_path):
    whole = read_autoencoder(folders["of codes"])
    net = random_autoencoder("of codes")
    net.save_pretrained(tmp_path / "parts", max_shard_size="60KB")
    assert len(list((tmp_path / "parts").glob("*.safetensors"))) > 1
    parts = read_autoencoder(tmp_path / "parts")
    jax.tree.map(np.testing.assert_array_equal, parts.params, whole.params)
    assert len(parts.sha256) == 64
    assert parts.sha256 != whole.sha256
    net.to(torch.bfloat16).save_pretrained(tmp_path / "coarse", variant="bf16")
    coarse = jax.tree.leaves(read_autoencoder(tmp_path / "coarse").params)
    for rounded, exact in zip(coarse, jax.tree.leaves(whole.params), strict=True):
        assert rounded.dtype == np.float32
        np.testing.assert_array_equal(
            rounded, torch.from_numpy(np.array(exact)).bfloat16().float().numpy()
        )


@pytest.mark.parametrize("name", ["diffusion_pytorch_model.bin", "model.ckpt", "x.pt"])
def test_pickles_are_refused_with_the_line_that_converts_them(folders, tmp_path, name):
    copy = shutil.copytree(folders["of codes"], tmp_path / "copy")
    state = random_autoencoder("of codes").state_dict()
    torch.save(state, copy / name)
    assert read_autoencoder(copy).scale  # what is beside the weights does no harm
    weights = (copy / WEIGHTS).read_bytes()
    (copy / WEIGHTS).unlink()
    with pytest.raises(ValueError, match=r"pickles .*weights_only=True") as error:
        read_autoencoder(copy)
    with pytest.raises(ValueError, match="pickles"):
        read_autoencoder(copy / name)
    # The line works.
    program = re.search(r'python -c "(.*)"', str(error.value))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(copy)
        exec(program[1])
    assert safetensors.numpy.load(weights).keys() == state.keys()
    assert read_autoencoder(copy).net.codebook.num == 32
