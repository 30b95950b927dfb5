"""Diffusion transformers of diffusers, in and out, against diffusers."""

import dataclasses
import json
import shutil

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import torch

import launch
import tiny
import vdiff_jax
from dit_nets import random_net, save
from vdiff_jax import samplers, schedules
from vdiff_jax.from_config.model import make_model
from vdiff_jax.interop.diffusers import dit_names, read
from vdiff_jax.interop.diffusers.read import read_folder
from vdiff_jax.interop.diffusers.write import write_folder
from vdiff_jax.nets.dit import DiT
from vdiff_jax.types import Condition

pytestmark = [
    pytest.mark.diffusers,
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
LINEAR = tuple(schedules.logsnr_of_betas(schedules.linear_betas()).tolist())
KINDS = {
    "by default": {},
    "as the paper's code": {"norm_eps": 1e-6},
    "of patches of 4": {"patch_size": 4, "num_attention_heads": 3, "num_layers": 3},
    "of pixels": {"patch_size": 1, "in_channels": 1, "sample_size": 6},
    "with a variance": {"out_channels": 8},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save(random_net(), tmp_path_factory.mktemp("dit"))


def _ours(source, images, step, label):
    """The output of our network for images at a step of the chain."""
    model, dtype = source.fields["model"], images.dtype
    net = DiT(
        **model["dit"],
        out_channels=source.fields["data"]["channels"],
        num_classes=model["num_classes"],
        timesteps=LINEAR,
        dtype=dtype,
    )
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), source.params)
    inputs = (jnp.asarray(images), jnp.full(len(images), LINEAR[step], dtype))
    output = jax.jit(net.apply)({"params": params}, *inputs, Condition(label))
    return np.asarray(output)


def _theirs(net, images, step, label):
    label = np.where(label < 0, net.config.num_embeds_ada_norm, label)
    with torch.no_grad():
        output = net(
            torch.from_numpy(images.transpose(0, 3, 1, 2)),
            torch.full([len(images)], step),
            class_labels=torch.tensor(label),
        )
    channels = images.shape[-1]
    return output.sample.numpy().transpose(0, 2, 3, 1)[..., :channels]


def _images(net):
    size, channels = net.config.sample_size, net.config.in_channels
    return np.random.default_rng(0).normal(size=(3, size, size, channels))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_an_imported_transformer_is_the_same_function(kind, tmp_path):
    net = random_net(**KINDS[kind])
    source = read_folder(save(net, tmp_path))
    images, label = _images(net), np.array([3, 7, -1])
    for step in (0, 1, 500, 999):
        single = images.astype(np.float32)
        ours, theirs = (
            function(of, single, step, label)
            for function, of in ((_ours, source), (_theirs, net))
        )
        assert np.abs(ours - theirs).max() < 5e-5 * np.abs(theirs).max()
    with jax.enable_x64(True):
        ours = _ours(source, images, 0, label)
    theirs = _theirs(net.double(), images, 0, label)
    assert np.abs(ours - theirs).max() < 1e-10


@pytest.mark.parametrize("kind", ["by default", "of patches of 4"])
def test_every_tensor_comes_back_bit_for_bit(kind, tmp_path):
    net = random_net(**KINDS[kind])
    source = read_folder(save(net, tmp_path))
    dit = source.fields["model"]["dit"]
    back = dit_names.to_torch(source.params, dit["patch"], dit["depth"])
    theirs = {name: tensor.numpy() for name, tensor in net.state_dict().items()}
    assert back.keys() == theirs.keys()
    for name, tensor in back.items():
        np.testing.assert_array_equal(tensor, theirs[name])
        assert tensor.flags.c_contiguous


def test_the_fields_describe_the_network_and_its_chain(folder):
    scheduler = json.loads((folder / "scheduler/scheduler_config.json").read_text())
    fields = read_folder(folder).fields
    assert fields["model"] == {
        "net": "dit",
        "dit": {
            "patch": 2, "depth": 2, "features": 16, "num_heads": 2, "epsilon": 1e-5
        },
        "timesteps": "linear_beta",
        "output": "eps",
        "num_classes": 10,
    }  # fmt: skip
    assert fields["data"] == {"channels": 4, "image_size": 8}
    assert fields["diffusion"]["num_train_steps"] == scheduler["num_train_timesteps"]


def test_a_variance_is_left_out_with_a_line_that_says_so(tmp_path, capsys):
    net = random_net(out_channels=8)
    read_folder(save(net, tmp_path))
    assert "the last 4 of 8 channels" in capsys.readouterr().out


def test_the_folder_of_the_transformer_alone_will_do(folder):
    ours, whole = (
        jax.tree.leaves(read_folder(place).params)
        for place in (folder / "transformer", folder)
    )
    for leaf, other in zip(ours, whole, strict=True):
        np.testing.assert_array_equal(leaf, other)


def _changed(folder, tmp_path, changes, name="transformer/config.json"):
    """A copy of a folder with other fields in one of its files."""
    copy = shutil.copytree(folder, tmp_path / "copy")
    fields = json.loads((copy / name).read_text())
    (copy / name).write_text(json.dumps({**fields, **changes}))
    return copy


def test_a_folder_of_the_older_class_is_read(folder, tmp_path):
    """As the released ones, it has fields of other transformers, and no norm_eps."""
    of_others = {"cross_attention_dim": None, "num_vector_embeds": None}
    of_others |= {"only_cross_attention": False, "use_linear_projection": False}
    changes = {"_class_name": "Transformer2DModel", **of_others}
    copy = _changed(folder, tmp_path, changes)
    path = copy / "transformer" / "config.json"
    fields = json.loads(path.read_text())
    del fields["norm_eps"]
    path.write_text(json.dumps(fields))
    assert read_folder(copy).fields == read_folder(folder).fields


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"norm_type": "layer_norm"}, "norm_type='layer_norm'"),
        ({"norm_elementwise_affine": True}, "norm_elementwise_affine=True"),
        ({"attention_bias": False}, "attention_bias=False"),
        ({"activation_fn": "geglu"}, "activation_fn='geglu'"),
        ({"cross_attention_dim": 8}, "cross_attention_dim=8"),
        ({"num_embeds_ada_norm": None}, "num_embeds_ada_norm=None"),
        ({"sample_size": [8, 16]}, r"sample_size=\[8, 16\]"),
        ({"patch_size": 3}, "patch_size=3 .* does not divide"),
        ({"out_channels": 5}, "out_channels=5"),
        ({"new_field": 1}, "new_field"),
        ({"_class_name": "PixArtTransformer2DModel"}, "PixArtTransformer2DModel"),
        ({"num_layers": 3}, r"19 tensors are missing \(.*\), and 0 are"),
        ({"num_layers": 1}, "0 tensors are missing, and 19 are not used"),
        ({"attention_head_dim": 4}, "has shape"),
        ({"num_attention_heads": 3, "attention_head_dim": 6}, "must divide by"),
    ],
    ids=str,
)
def test_what_cannot_be_imported_is_refused_by_name(folder, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        read_folder(_changed(folder, tmp_path, changes))


def test_blocks_with_embeddings_of_their_own_are_refused(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    path = copy / "transformer" / read.WEIGHTS
    tensors = safetensors.numpy.load_file(path)
    name = "transformer_blocks.1.norm1.emb.timestep_embedder.linear_2.bias"
    tensors[name] = tensors[name] + 1e-6
    safetensors.numpy.save_file(tensors, path)
    with pytest.raises(ValueError, match=rf"{name} in .* differs from"):
        read_folder(copy)


MODELS = {
    "of v": {"model": {"output": "v"}},
    "of x": {"model": {"output": "x"}, "diffusion": {"schedule": "scaled_linear_beta"}},
    "of single betas": {
        "diffusion": {"schedule": "betas", "betas": (0.1, 0.3, 0.2, 0.4) * 2}
    },
    "of eps": {"model": {"output": "eps"}},
    "converted": {"model": {"output": "v", "computed_from": "eps"}},
    "conditioned on w": {"model": {"output": "v"}, "guide": {"steps": 1}},
    "of a short chain": {
        "diffusion": {"num_train_steps": 8, "beta_first": 0.01, "beta_last": 0.6}
    },
}
BATCH = 3


def _model(**changes):
    """A small transformer of latents, conditioned on the number of a step."""
    config = tiny.config("train")
    config.data.update({"image_size": 8, "channels": 4, "latent_scale": 0.5})
    config.diffusion.schedule = "linear_beta"
    sizes = {"depth": 2, "features": 16, "num_heads": 2}
    config.model.update({"net": "dit", "dit": sizes, "num_classes": 10})
    config.model.timesteps = "linear_beta"
    config.update(changes)
    if not changes.get("model", {}).get("timesteps"):
        config.model.timesteps = config.diffusion.schedule
    return make_model(config, guided=config.guide.steps > 0)


def _random(model):
    """Parameters of which none is zero."""
    rng = np.random.default_rng(0)

    def draw(leaf):
        scale = 0.3 if leaf.ndim == 1 else min(0.5, leaf.shape[-2] ** -0.5)
        return rng.normal(scale=scale, size=leaf.shape).astype(np.float32)

    return jax.tree.map(draw, model.abstract_params())


def _drawn(model, params, noise, num_steps, w):
    """The samples of our sampler."""
    weight = None if w is None else jnp.full(len(noise), w)
    condition = Condition(jnp.arange(len(noise)), w=weight)

    @jax.jit
    def draw(noise):
        return samplers.sample(
            model.denoiser(params, condition),
            noise,
            schedule=model.schedule,
            num_steps=num_steps,
        )

    return np.asarray(draw(jnp.asarray(noise)))


class _Identity(torch.nn.Module):
    """An autoencoder whose images are its latents, scaled so that none is clipped."""

    dtype, device = torch.float32, torch.device("cpu")

    def __init__(self, scale):
        super().__init__()
        self.config = type("Config", (), {"scaling_factor": scale})()

    def decode(self, latents):
        return type("Decoded", (), {"sample": latents})()


def _of_pipeline(folder, noise_of_seed, num_steps, vae=None):
    """What stock diffusers draws, without guidance: latents, with an `_Identity`."""
    pipeline = diffusers.DiTPipeline.from_pretrained(
        folder, **({} if vae is None else {"vae": vae})
    )
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline(
        class_labels=list(range(BATCH)),
        guidance_scale=1.0,
        generator=torch.Generator().manual_seed(noise_of_seed),
        num_inference_steps=num_steps,
        output_type="pt",
    ).images
    return images.numpy().transpose(0, 2, 3, 1)


def _noise(seed):
    """The noise that their pipeline draws."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn((BATCH, 4, 8, 8), generator=generator)
    return noise.numpy().transpose(0, 2, 3, 1)


@pytest.mark.slow
@pytest.mark.parametrize("kind", MODELS)
def test_their_pipeline_draws_our_latents(kind, tmp_path):
    model = _model(**MODELS[kind])
    params, w = _random(model), 1.5 if model.w_range else None
    for num_steps in (1, 2, 4, 8):
        folder = tmp_path / str(num_steps)
        write_folder(folder, model, params, num_steps=num_steps, clip=False, w=w)
        ours = _drawn(model, params, _noise(num_steps), num_steps, w)
        largest = np.abs(ours).max()
        scale = 1.5 * largest
        images = _of_pipeline(folder, num_steps, num_steps, _Identity(scale))
        theirs = scale * (2.0 * images - 1.0)
        # At t = 1 an error of eps is 157 times as large in x, and so is x.
        assert np.abs(ours - theirs).max() < 1e-4 * max(1.0, largest / 5.0)


@pytest.mark.parametrize("kind", ["of v", "conditioned on w"])
def test_what_is_exported_is_imported_bit_for_bit(kind, tmp_path):
    model = _model(**MODELS[kind])
    params, w = _random(model), 1.5 if model.w_range else None
    write_folder(tmp_path, model, params, num_steps=4, clip=False, w=w)
    back = read_folder(tmp_path)
    net, info = diffusers.DiTTransformer2DModel.from_pretrained(
        tmp_path / "transformer", output_loading_info=True
    )
    assert not any(info.values())
    theirs = net.state_dict()
    written = dit_names.to_torch(back.params, 2, 2)
    assert written.keys() == theirs.keys()
    for name, tensor in theirs.items():
        np.testing.assert_array_equal(written[name], tensor.numpy())
    changed = ("w_proj", "dense0") if w else ()
    kept = {k: v for k, v in params.items() if k not in changed}
    for name, module in kept.items():
        jax.tree.map(np.testing.assert_array_equal, back.params[name], module)
    model = back.fields["model"]
    assert model["dit"] == {
        "patch": 2, "depth": 2, "features": 16, "num_heads": 2, "epsilon": 1e-6
    }  # fmt: skip
    assert (model["output"], model["num_classes"]) == ("v", 10)


@pytest.mark.parametrize(
    ("diffusion", "expected"),
    [
        (
            {"schedule": "linear_beta", "beta_last": 0.03},
            {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.03},
        ),
        (
            {"schedule": "scaled_linear_beta", "beta_first": 0.00085},
            {"beta_schedule": "scaled_linear", "beta_start": 0.00085},
        ),
        ({"schedule": "squared_cosine_beta"}, {}),
    ],
    ids=str,
)
def test_the_chain_is_written_and_read(diffusion, expected, tmp_path):
    model = _model(diffusion=diffusion)
    write_folder(tmp_path, model, _random(model), num_steps=4, clip=False, w=None)
    scheduler = json.loads((tmp_path / "scheduler/scheduler_config.json").read_text())
    assert expected.items() <= scheduler.items()
    assert ("trained_betas" in scheduler) == (not expected)
    back = schedules.betas_of(**read_folder(tmp_path).fields["diffusion"])
    logsnr = schedules.logsnr_of_betas(back)
    np.testing.assert_allclose(logsnr, model.net.timesteps, rtol=1e-6, atol=1e-8)


def _vae():
    torch.manual_seed(0)
    return diffusers.AutoencoderKL(
        block_out_channels=(8,), norm_num_groups=4, latent_channels=4,
        scaling_factor=0.5,
    )  # fmt: skip


def test_an_autoencoder_beside_makes_the_folder_whole(tmp_path):
    vae = _vae()
    vae.save_pretrained(tmp_path / "autoencoder")
    model = _model()
    params = _random(model)
    folder = tmp_path / "folder"
    names = [f"class {i}, {i}" for i in range(10)]
    write_folder(
        folder,
        model,
        params,
        num_steps=2,
        clip=False,
        w=None,
        class_names=names,
        vae=tmp_path / "autoencoder",
    )
    images = _of_pipeline(folder, 3, 2)
    x = _drawn(model, params, _noise(3), 2, None)
    with torch.no_grad():
        latents = torch.from_numpy((x / 0.5).transpose(0, 3, 1, 2))
        expected = vae.decode(latents).sample.numpy().transpose(0, 2, 3, 1)
    expected = (expected / 2 + 0.5).clip(0, 1)
    assert expected.std() > 0.01
    np.testing.assert_allclose(images, expected, atol=1e-4)
    pipeline = diffusers.DiTPipeline.from_pretrained(folder)
    assert pipeline.get_label_ids(["class 3", "7"]) == [3, 7]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"_class_name": "VQModel"}, "is of a VQModel"),
        ({"_class_name": "AutoencoderKL"}, "scaling_factor=0.18215, .*scale=0.5"),
        (None, "must be the folder of an AutoencoderKL"),
    ],
    ids=str,
)
def test_another_autoencoder_is_refused(config, message, tmp_path):
    model, vae = _model(), tmp_path / "vae"
    if config is not None:
        vae.mkdir()
        (vae / "config.json").write_text(json.dumps(config))
    options = {"num_steps": 2, "clip": False, "w": None, "vae": vae}
    with pytest.raises(ValueError, match=message):
        write_folder(tmp_path / "out", model, {}, **options)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({"model": {"output": "both"}}, {}, "predicts 'both'"),
        ({"model": {"dtype": "bfloat16"}}, {}, "bfloat16"),
        ({"model": {"num_classes": 0}}, {}, "model.num_classes=0"),
        ({"guide": {"steps": 1}}, {}, "set export.w"),
        ({"diffusion": {"schedule": "cosine"}}, {}, "diffusion.schedule.* is not the"),
        ({}, {"num_steps": 16}, "16 steps do not divide the 1000"),
        ({}, {"clip": True}, "sample.clip='x'"),
        ({"data": {"latent_shift": 0.1}}, {}, "data.latent_shift=0.1, .*safetensors"),
    ],
    ids=str,
)
def test_what_cannot_be_exact_is_refused_with_the_reason(
    changes, options, message, tmp_path
):
    if changes.get("diffusion"):
        changes = {**changes, "model": {"timesteps": "linear_beta"}}
    model = _model(**changes)
    options = {"num_steps": 4, "clip": False, "w": None, **options}
    with pytest.raises(ValueError, match=message):
        write_folder(tmp_path / "out", model, {}, **options)
    assert not (tmp_path / "out").exists()


def test_what_our_networks_have_more_is_refused(tmp_path):
    model = _model()
    for change, message in (
        ({"timesteps": ()}, "model.timesteps=''"),
        ({"mlp_ratio": 2}, "a ratio of 2"),
    ):
        other = dataclasses.replace(model, net=model.net.clone(**change))
        with pytest.raises(ValueError, match=message):
            write_folder(tmp_path / "o", other, {}, num_steps=4, clip=False, w=None)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A transformer of the digits and its student of 2 steps, exported."""
    workdir = tmp_path_factory.mktemp("workdir")
    for stage in ("train", "distill", "export"):
        config = tiny.config(stage)
        sizes = {"patch": 2, "depth": 1, "features": 16, "num_heads": 2}
        config.update(
            {
                "model": {
                    "net": "dit", "dit": sizes, "num_classes": 10,
                    "timesteps": "linear_beta",
                },
                "diffusion": {
                    "schedule": "linear_beta", "num_train_steps": 8,
                    "beta_first": 0.01, "beta_last": 0.6,
                },
                "distill": {"start_steps": 4, "end_steps": 2, "learning_rate": 1e-2},
                "train": {"learning_rate": 1e-2, "dropout": 0.1},
                "export": {"steps": 2, "formats": ("safetensors", "diffusers")},
                "sample": {"clip": "none"},
            }
        )  # fmt: skip
        launch.launch(config, workdir)
    return workdir


@pytest.mark.slow
def test_a_student_of_the_stages_is_the_same_in_both_formats(workdir):
    export = workdir / "export" / "distilled-2step"
    ours = vdiff_jax.load(export / "safetensors" / "model.safetensors")
    theirs = vdiff_jax.load(export / "diffusers")
    options = {"labels": [1, 2, 3], "seed": 3}
    images = ours.sample(3, **options).astype(int)
    assert images.std() > 10
    others = theirs.sample(3, steps=2, **options).astype(int)
    assert np.abs(images - others).max() <= 1
    card = (export / "diffusers" / "README.md").read_text()
    assert "DiTPipeline" in card
    assert "class_labels=[0, 1, 2, 3]" in card
    index = json.loads((export / "diffusers" / "model_index.json").read_text())
    assert list(index["id2label"].values()) == list(map(str, range(10)))


@pytest.mark.slow
def test_an_imported_transformer_is_a_teacher_that_can_be_guided(workdir, tmp_path):
    source = workdir / "export" / "distilled-2step" / "diffusers"
    config = tiny.config("import", source={"path": str(source)})
    config.data.update({"image_size": 0, "channels": 0})
    launch.launch(config, tmp_path)
    fields = json.loads((tmp_path / "imported.json").read_text())
    assert fields["train"]["label_dropout"] > 0
    config = tiny.config("sample")
    config.sample.update({"labels": (1, 2), "num": 2, "w": (2.0,), "clip": "none"})
    launch.launch(config, tmp_path)
    assert len(list((tmp_path / "sample").glob("0*.png"))) == 2
