"""Folders of diffusers, against diffusers."""

import json
import shutil

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import torch

from diffusers_nets import KINDS, random_net, save
from vdiff_jax import schedules
from vdiff_jax.interop.diffusers import names, read
from vdiff_jax.interop.diffusers.read import read_folder
from vdiff_jax.nets.serialization import fields_of
from vdiff_jax.nets.unet import UNet
from vdiff_jax.types import Condition

pytestmark = [
    pytest.mark.diffusers,
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
LINEAR = tuple(schedules.logsnr_of_betas(schedules.linear_betas()).tolist())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save(random_net(**KINDS["of DDPM"]), tmp_path_factory.mktemp("ddpm"))


def _net(found, dtype):
    model = found.fields["model"]
    return UNet(
        **fields_of(model["unet"]["layout"]),
        out_channels=3,
        num_classes=model["num_classes"],
        timesteps=LINEAR,
        dtype=dtype,
    )


def _says(found, dtype, images, step, label):
    """What our network says of images at a step of the chain."""
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), found.params)
    logsnr = jnp.full(len(images), LINEAR[step], dtype)
    inputs = (
        jnp.asarray(images),
        logsnr,
        Condition(None if label is None else jnp.array(label)),
    )
    return np.asarray(jax.jit(_net(found, dtype).apply)({"params": params}, *inputs))


def _they_say(net, images, step, label):
    with torch.no_grad():
        said = net(
            torch.from_numpy(images.transpose(0, 3, 1, 2)),
            torch.tensor(step),
            class_labels=None if label is None else torch.tensor(label),
        )
    return said.sample.numpy().transpose(0, 2, 3, 1)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_an_imported_network_is_the_same_function(kind, tmp_path):
    net = random_net(**KINDS[kind])
    found = read_folder(save(net, tmp_path))
    label = [3, 7] if net.config.num_class_embeds else None
    images = np.random.default_rng(0).normal(size=(2, 16, 16, 3))
    for step in (0, 1, 500, 999) if kind in ("of DDPM", "of ADM") else ():
        ours = _says(found, np.float32, images.astype(np.float32), step, label)
        theirs = _they_say(net, images.astype(np.float32), step, label)
        assert np.abs(ours - theirs).max() < 2e-5 * np.abs(theirs).max()
    with jax.enable_x64(True):
        ours = _says(found, np.float64, images, 0, label)
    theirs = _they_say(net.double(), images, 0, label)
    assert np.abs(ours - theirs).max() < 1e-12


@pytest.mark.parametrize("kind", ["of ADM", "of three levels", "with a table of times"])
def test_every_tensor_comes_back_bit_for_bit(kind, tmp_path):
    net = random_net(**KINDS[kind])
    back = names.to_torch(read_folder(save(net, tmp_path)).params)
    theirs = {name: tensor.numpy() for name, tensor in net.state_dict().items()}
    assert back.keys() == theirs.keys()
    for name, tensor in back.items():
        np.testing.assert_array_equal(tensor, theirs[name])
        assert tensor.flags.c_contiguous


def test_old_folders_and_old_names_are_read(folder, tmp_path):
    old_names = {
        "to_q": "query",
        "to_k": "key",
        "to_v": "value",
        "to_out.0": "proj_attn",
    }
    weights = folder / "unet" / read.WEIGHTS
    tensors = {}
    for name, tensor in safetensors.numpy.load_file(weights).items():
        for new, old in old_names.items():
            name = name.replace(new, old)
        tensors[name] = tensor
    safetensors.numpy.save_file(tensors, tmp_path / read.WEIGHTS)
    config = json.loads((folder / "unet" / "config.json").read_text())
    old = {name: config[name] for name in config if name != "attn_norm_num_groups"}
    (tmp_path / "config.json").write_text(json.dumps(old))
    shutil.copy(folder / "scheduler" / "scheduler_config.json", tmp_path)
    jax.tree.map(
        np.testing.assert_array_equal,
        read_folder(tmp_path).params,
        read_folder(folder).params,
    )


@pytest.mark.parametrize(
    ("options", "output"),
    [
        ({}, "eps"),
        ({"prediction_type": "v_prediction", "beta_schedule": "scaled_linear"}, "v"),
        ({"prediction_type": "sample", "beta_schedule": "squaredcos_cap_v2"}, "x"),
        ({"beta_start": 2e-4, "beta_end": 0.01, "num_train_timesteps": 50}, "eps"),
        ({"trained_betas": [0.1, 0.2, 0.9]}, "eps"),
        ({"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}, "v"),
    ],
)
def test_the_chain_of_the_scheduler_is_ours(folder, tmp_path, options, output):
    scheduler = diffusers.DDIMScheduler(**options)
    copy = shutil.copytree(folder, tmp_path / "copy")
    scheduler.save_pretrained(copy / "scheduler")
    fields = read_folder(copy).fields
    assert fields["model"]["output"] == output
    chain = fields["diffusion"]
    alpha_squared = 1 / (
        1 + np.exp(-schedules.logsnr_of_betas(schedules.betas_of(**chain)))
    )
    # Theirs is a product in float32; ours does not end in nothing.
    np.testing.assert_allclose(
        alpha_squared, scheduler.alphas_cumprod.numpy(), rtol=2e-5, atol=3e-9
    )


def _changed(folder, tmp_path, name, changes):
    """A copy of a folder with other fields in one of its files."""
    copy = shutil.copytree(folder, tmp_path / "copy")
    fields = json.loads((copy / name).read_text())
    (copy / name).write_text(json.dumps({**fields, **changes}))
    return copy


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"time_embedding_type": "fourier"}, "time_embedding_type='fourier'"),
        ({"class_embed_type": "timestep"}, "class_embed_type='timestep'"),
        ({"act_fn": "gelu"}, "act_fn='gelu'"),
        ({"resnet_time_scale_shift": "spatial"}, "resnet_time_scale_shift='spatial'"),
        ({"down_block_types": ["DownBlock2D", "AttnSkipDownBlock2D"]}, "AttnSkipDown"),
        ({"up_block_types": ["AttnUpBlock2D", "KUpBlock2D"]}, "KUpBlock2D"),
        ({"attn_norm_num_groups": 4}, "attn_norm_num_groups=4"),
        ({"attention_head_dim": 5}, "attention_head_dim=5"),
        ({"out_channels": 6}, "learns a variance"),
        ({"sample_size": [16, 32]}, "square"),
        ({"new_field": 1}, "new_field"),
        ({"_class_name": "UNetMotionModel"}, "UNetMotionModel"),
        ({"layers_per_block": 2}, r"missing \(.*\), and 0 are"),
        ({"add_attention": False}, r"0 tensors are missing, and 10 are not used \(mid"),
        ({"block_out_channels": [16, 48]}, "has shape"),
    ],
    ids=str,
)
def test_what_cannot_be_imported_is_refused_by_name(folder, tmp_path, changes, message):
    copy = _changed(folder, tmp_path, "unet/config.json", changes)
    with pytest.raises(ValueError, match=message):
        read_folder(copy)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"_class_name": "EulerDiscreteScheduler"}, "EulerDiscreteScheduler"),
        ({"beta_schedule": "sigmoid"}, "beta_schedule='sigmoid'"),
        ({"prediction_type": "flow"}, "prediction_type='flow'"),
    ],
)
def test_schedulers_that_are_not_ours_are_refused(folder, tmp_path, changes, message):
    copy = _changed(folder, tmp_path, "scheduler/scheduler_config.json", changes)
    with pytest.raises(ValueError, match=message):
        read_folder(copy)


def _params(folder):
    return jax.tree.leaves(read_folder(folder).params)


def test_missing_files_are_named(folder, tmp_path):
    with pytest.raises(ValueError, match=r"no .*config\.json"):
        read_folder(tmp_path)
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / "unet" / read.WEIGHTS).unlink()
    with pytest.raises(ValueError, match=r"There is no .* in .*: fetch it") as error:
        read_folder(copy)
    assert "pickle" not in str(error.value)
    (copy / "unet" / "diffusion_pytorch_model.ema.safetensors").touch()
    with pytest.raises(ValueError, match=r"but diffusion_pytorch_model.ema.saf"):
        read_folder(copy)
    (copy / "unet" / "diffusion_pytorch_model.bin").touch()
    with pytest.raises(ValueError, match="Files of pickles"):
        read_folder(copy)


def test_the_folder_of_the_network_alone_will_do(folder):
    for ours, whole in zip(_params(folder / "unet"), _params(folder), strict=True):
        np.testing.assert_array_equal(ours, whole)
    assert read_folder(folder / "unet").fields == read_folder(folder).fields


@pytest.mark.parametrize("variant", ["fp16", "bf16"])
def test_a_variant_of_fewer_bits_is_read(folder, tmp_path, variant):
    dtype = torch.float16 if variant == "fp16" else torch.bfloat16
    net = random_net(**KINDS["of DDPM"]).to(dtype)
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / "unet" / read.WEIGHTS).unlink()
    net.save_pretrained(copy / "unet", variant=variant)
    for ours, whole in zip(_params(copy), _params(folder), strict=True):
        assert ours.dtype == np.float32
        rounded = torch.from_numpy(np.array(whole)).to(dtype).float().numpy()
        np.testing.assert_array_equal(ours, rounded)


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_weights_in_parts_are_read_by_their_index(folder, tmp_path, variant):
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / "unet" / read.WEIGHTS).unlink()
    net = random_net(**KINDS["of DDPM"])
    net.save_pretrained(copy / "unet", variant=variant, max_shard_size="60KB")
    parts = sorted((copy / "unet").glob("*.safetensors"))
    assert len(parts) > 1
    for ours, whole in zip(_params(copy), _params(folder), strict=True):
        np.testing.assert_array_equal(ours, whole)
    parts[0].unlink()
    with pytest.raises(ValueError, match=rf"There is no file .*{parts[0].name}"):
        read_folder(copy)


@pytest.mark.parametrize("name", [3, None, "w.bin", "../w.safetensors"])
def test_an_index_names_files_of_safetensors_beside_it(folder, tmp_path, name):
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / "unet" / read.WEIGHTS).unlink()
    index = copy / "unet" / f"{read.WEIGHTS}.index.json"
    index.write_text(json.dumps({"weight_map": {"a": name, "b": "w.safetensors"}}))
    message = rf"index\.json names '{name}', which is no \.safetensors file beside it"
    with pytest.raises(ValueError, match=message):
        read_folder(copy)
