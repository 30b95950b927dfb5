"""Conditional networks of diffusers, in and out, against diffusers."""

import dataclasses
import json
import pathlib
import re
import shutil

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import torch

from conditional_nets import (
    CLASSES,
    KINDS,
    TOKENS,
    WIDTH,
    random,
    random_net,
    save,
    scheduler,
)
from configs import import_model
from vdiff_jax import samplers, schedules
from vdiff_jax.codec import Latents
from vdiff_jax.from_config.defaults import defaults
from vdiff_jax.from_config.model import make_model
from vdiff_jax.interop.diffusers import conditional_unet, model_card
from vdiff_jax.interop.diffusers.folder import WEIGHTS
from vdiff_jax.interop.diffusers.read import read_folder
from vdiff_jax.interop.diffusers.write import write_folder
from vdiff_jax.interop.diffusers.write_conditional import OF_TEACHER
from vdiff_jax.interop.imported_model import abstract_params
from vdiff_jax.loaded import load
from vdiff_jax.stages.import_model import STAGE
from vdiff_jax.types import Condition
from vdiff_jax.workdir.imported import with_fields
from vdiff_jax.workdir.layout import Project

pytestmark = [
    pytest.mark.diffusers,
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
TABLE = random(CLASSES + 1, WIDTH).astype(np.float32)
CONTEXT = random(2, TOKENS, WIDTH)
MASK = np.array([[1, 1, 0, 1, 0], [1, 0, 0, 0, 1]], bool)
W = np.array([0.5, 3.0])


def _folder(kind, path, **options):
    table = TABLE if kind == "of a class" else None
    return save(random_net(**KINDS[kind]), path, table=table, **options)


def _model(source):
    """The model of an imported network, as the command makes it."""
    config = defaults("sample")
    config.data.update({"image_size": 0, "channels": 0})
    config = with_fields(config, source.fields)
    return make_model(config, guided="guide" in source.fields)


def _condition(net, label):
    has_context = net.context_tokens > 0
    return Condition(
        label=jnp.array(label) if net.num_classes else None,
        context=jnp.asarray(CONTEXT) if has_context else None,
        mask=jnp.asarray(MASK) if has_context else None,
        w=jnp.asarray(W) if net.w_features else None,
    )


def _ours(source, dtype, images, step, label):
    """What our network predicts from images at a step of the chain."""
    net = _model(source).net.clone(dtype=dtype)
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), source.params)
    logsnr = jnp.full(len(images), net.timesteps[step], dtype)
    condition = jax.tree.map(
        lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x,
        _condition(net, label),
    )
    run = jax.jit(net.apply)
    return np.asarray(run({"params": params}, jnp.asarray(images), logsnr, condition))


def _waves(w, features):
    """The sinusoid that pipelines of diffusers make of a guidance weight."""
    half = features // 2
    angles = 1000 * w[:, None] * 1e4 ** (-np.arange(half) / (half - 1))
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)


def _theirs(net, images, step, label):
    dtype = torch.from_numpy(images).dtype
    inputs = {"encoder_hidden_states": torch.from_numpy(CONTEXT).to(dtype)}
    if net.config.num_class_embeds:
        inputs["class_labels"] = torch.tensor(label)
    if net.config.time_cond_proj_dim:
        waves = _waves(W, net.config.time_cond_proj_dim)
        inputs["timestep_cond"] = torch.from_numpy(waves).to(dtype)
    if net.config.attention_head_dim == 1:
        inputs["encoder_hidden_states"] = torch.from_numpy(TABLE[label, None]).to(dtype)
    else:
        inputs["encoder_attention_mask"] = torch.from_numpy(MASK)
    with torch.no_grad():
        output = net(
            torch.from_numpy(images.transpose(0, 3, 1, 2)), torch.tensor(step), **inputs
        )
    return output.sample.numpy().transpose(0, 2, 3, 1)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_an_imported_network_is_the_same_function(kind, tmp_path):
    net, source = random_net(**KINDS[kind]), read_folder(_folder(kind, tmp_path))
    images, label = random(2, 16, 16, 3), [3, 7]
    for step in (0, 500, 999):
        ours = _ours(source, np.float32, images.astype(np.float32), step, label)
        theirs = _theirs(net, images.astype(np.float32), step, label)
        assert np.abs(ours - theirs).max() < 5e-5 * np.abs(theirs).max()
    with jax.enable_x64(True):
        ours = _ours(source, np.float64, images, 0, label)
    theirs = _theirs(net.double(), images, 0, label)
    assert np.abs(ours - theirs).max() < 1e-10


PUBLISHED = {
    "of ImageNet": (
        {
            "sample_size": 64, "in_channels": 3, "out_channels": 3,
            "block_out_channels": (192, 384, 576, 960), "attention_head_dim": 1,
            "down_block_types": ("DownBlock2D", *("CrossAttnDownBlock2D",) * 3),
            "up_block_types": (*("CrossAttnUpBlock2D",) * 3, "UpBlock2D"),
            "cross_attention_dim": 512,
        },
        400_920_579,
    ),
    "Stable Diffusion 1.5": ({"cross_attention_dim": 768}, 859_520_964),
    "Stable Diffusion 2.1": (
        {
            "cross_attention_dim": 1024, "attention_head_dim": (5, 10, 20, 20),
            "use_linear_projection": True,
        },
        865_910_724,
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", PUBLISHED)
def test_published_networks_have_as_many_parameters_as_ours(kind):
    config, count = PUBLISHED[kind]
    with torch.device("meta"):
        theirs = diffusers.UNet2DConditionModel(**config)
    assert sum(x.numel() for x in theirs.parameters()) == count
    nowhere = pathlib.Path("nowhere")
    net = conditional_unet.net_of(config, nowhere / "config.json", nowhere)
    params = abstract_params(net, net.out_channels)
    ours = {k: v for k, v in params.items() if k not in conditional_unet.OURS}
    assert sum(x.size for x in jax.tree.leaves(ours)) == count
    assert params["null_context"].shape == (77, config["cross_attention_dim"])


def _same(one, other):
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        np.testing.assert_array_equal(tensor, other[name])


@pytest.mark.parametrize(
    "kind", ["of a class", "of a text", "with matrices", "conditioned on w"]
)
def test_what_is_read_is_written_tensor_for_tensor(kind, tmp_path):
    null = None if kind == "of a class" else random(TOKENS, WIDTH).astype(np.float32)
    mask = None if null is None else np.array([1, 1, 0, 0, 0], np.float32)
    path = _folder(kind, tmp_path / "theirs", null=null, mask=mask)
    source = read_folder(path)
    back = tmp_path / "ours"
    model = _model(source)
    write_folder(back, model, source.params, num_steps=4, clip=False, w=None)
    for name in (f"unet/{WEIGHTS}", "null_context.safetensors"):
        if (path / name).exists():
            _same(*(safetensors.numpy.load_file(x / name) for x in (path, back)))
    again = read_folder(back)
    jax.tree.map(np.testing.assert_array_equal, again.params, source.params)
    assert again.fields == source.fields
    assert again.can_be_guided


def test_a_folder_of_theirs_has_every_tensor_and_nothing_else(tmp_path):
    """Their loader would leave a missing tensor random, and say nothing."""
    source = read_folder(_folder("of levels that differ", tmp_path / "theirs"))
    back = tmp_path / "ours"
    model = _model(source)
    write_folder(back, model, source.params, num_steps=1, clip=False, w=None)
    net, info = diffusers.UNet2DConditionModel.from_pretrained(
        back / "unet", output_loading_info=True
    )
    assert not any(info.values())
    theirs = random_net(**KINDS["of levels that differ"]).config
    for name in set(theirs) - {"_use_default_values", "upcast_attention"}:
        if not name.startswith("_"):
            same = [
                list(x[name]) if isinstance(x[name], tuple) else x[name]
                for x in (theirs, net.config)
            ]
            assert same[0] == same[1], name


def test_a_table_of_classes_is_what_the_network_attends_to(tmp_path):
    source = read_folder(_folder("of a class", tmp_path))
    assert source.can_be_guided
    np.testing.assert_array_equal(source.params["class_context"], TABLE)
    assert source.fields["model"]["num_classes"] == CLASSES
    model = _model(source)
    assert model.context_shape is None
    assert model.num_classes == CLASSES
    assert "class_emb" not in model.abstract_params()


def test_a_text_encoder_says_how_many_vectors_there_are(tmp_path):
    path = _folder("of a text", tmp_path)
    assert _model(read_folder(path)).context_shape == (TOKENS, WIDTH)
    shutil.rmtree(path / "text_encoder")
    source = read_folder(path)
    assert _model(source).context_shape == (77, WIDTH)
    assert not source.can_be_guided
    assert (source.params["null_context"] == 0).all()
    assert (source.params["null_mask"] == 1).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"addition_embed_type": "text_time"}, "addition_embed_type='text_time'"),
        ({"addition_time_embed_dim": 256}, "addition_time_embed_dim=256"),
        ({"class_embed_type": "timestep"}, "class_embed_type='timestep'"),
        ({"conv_in_kernel": 1}, "conv_in_kernel=1"),
        ({"conv_out_kernel": 1}, "conv_out_kernel=1"),
        ({"dual_cross_attention": True}, "dual_cross_attention=True"),
        ({"only_cross_attention": True}, "only_cross_attention=True"),
        ({"resnet_skip_time_act": True}, "resnet_skip_time_act=True"),
        ({"resnet_out_scale_factor": 2.0}, r"resnet_out_scale_factor=2\.0"),
        ({"encoder_hid_dim": 64}, "encoder_hid_dim=64"),
        ({"encoder_hid_dim_type": "text_proj"}, "encoder_hid_dim_type='text_proj'"),
        ({"cross_attention_norm": "layer_norm"}, "cross_attention_norm='layer_norm'"),
        ({"attention_type": "gated"}, "attention_type='gated'"),
        ({"mid_block_type": "UNetMidBlock2D"}, "mid_block_type='UNetMidBlock2D'"),
        ({"mid_block_only_cross_attention": True}, "mid_block_only_cross_attention"),
        ({"time_embedding_type": "fourier"}, "time_embedding_type='fourier'"),
        ({"time_embedding_act_fn": "silu"}, "time_embedding_act_fn='silu'"),
        ({"timestep_post_act": "silu"}, "timestep_post_act='silu'"),
        ({"projection_class_embeddings_input_dim": 8}, "embeddings_input_dim=8"),
        ({"class_embeddings_concat": True}, "class_embeddings_concat=True"),
        ({"reverse_transformer_layers_per_block": [1, 1]}, "reverse_transformer"),
        ({"act_fn": "gelu"}, "act_fn='gelu'"),
        ({"resnet_time_scale_shift": "spatial"}, "resnet_time_scale_shift='spatial'"),
        ({"cross_attention_dim": [12, 24]}, r"cross_attention_dim=\[12, 24\]"),
        ({"transformer_layers_per_block": [[1], [1]]}, "transformer_layers_per_block"),
        ({"norm_num_groups": None}, "norm_num_groups=None"),
        ({"attention_head_dim": 5}, "attention_head_dim=5"),
        ({"attention_head_dim": [1, 2, 4]}, r"attention_head_dim=\[1, 2, 4\]"),
        ({"down_block_types": ["DownBlock2D", "AttnDownBlock2D"]}, "AttnDownBlock2D"),
        ({"up_block_types": ["SimpleCrossAttnUpBlock2D", "UpBlock2D"]}, "SimpleCross"),
        ({"out_channels": 6}, "learns a variance"),
        ({"sample_size": [16, 32]}, "square"),
        ({"new_field": 1}, "new_field"),
        ({"layers_per_block": 2}, r"missing \(.*\), and 0 are"),
        ({"time_cond_proj_dim": 8}, r"1 tensors are missing \(time_embedding.cond_pr"),
        ({"cross_attention_dim": 24}, "has shape"),
    ],
    ids=str,
)
def test_what_cannot_be_imported_is_refused_by_name(changes, message, folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    path = copy / "unet" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(ValueError, match=message):
        read_folder(copy)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return _folder("of a text", tmp_path_factory.mktemp("text"))


@pytest.mark.parametrize(
    ("name", "tensors", "message"),
    [
        ("null_context", {"context": np.zeros((4, WIDTH))}, r"has shape \(4, 12\)"),
        ("null_context", {"embeddings": np.zeros(3)}, "must have a context"),
        (
            "null_context",
            {"context": np.zeros((TOKENS, WIDTH)), "mask": np.zeros(TOKENS)},
            "must have a 1",
        ),
        ("class_embedder", {"rows": np.zeros((3, WIDTH))}, "must have the table"),
        ("class_embedder", {"weight": np.zeros((3, 7))}, r"has shape \(3, 7\)"),
    ],
)
def test_what_lies_beside_the_network_must_fit_it(
    name, tensors, message, folder, tmp_path
):
    copy = shutil.copytree(folder, tmp_path / "copy")
    safetensors.numpy.save_file(tensors, copy / f"{name}.safetensors")
    with pytest.raises(ValueError, match=message):
        read_folder(copy)


def test_a_pickle_is_refused_with_the_line_that_converts_it(folder, tmp_path):
    (tmp_path / "model.ckpt").touch()
    with pytest.raises(ValueError, match=r"torch\.load\('model\.ckpt', weights_only"):
        read_folder(tmp_path / "model.ckpt")
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / "unet" / WEIGHTS).rename(copy / "unet" / "diffusion_pytorch_model.bin")
    with pytest.raises(ValueError, match="pickles"):
        read_folder(copy)


BATCH = 2


def _noise():
    return random(BATCH, 16, 16, 3).astype(np.float32)


def _draw(model, params, condition, num_steps):
    """Our samples, by DDIM."""
    denoise = model.denoiser(params, condition)

    @jax.jit
    def draw(noise):
        return samplers.sample(
            denoise, noise, schedule=model.schedule, num_steps=num_steps
        )

    return np.asarray(draw(jnp.asarray(_noise())))


def _their_draw(net, num_steps, context, **options):
    """Samples of their scheduler, without a pipeline."""
    steps = scheduler()
    steps.set_timesteps(num_steps)
    x = torch.from_numpy(_noise().transpose(0, 3, 1, 2))
    with torch.no_grad():
        for t in steps.timesteps:
            output = net(x, t, torch.from_numpy(context), **options).sample
            x = steps.step(output, t, x).prev_sample
    return x.numpy().transpose(0, 2, 3, 1)


@pytest.mark.slow
@pytest.mark.parametrize("num_steps", [1, 4, 10])
def test_their_scheduler_draws_our_samples(num_steps, tmp_path):
    net, source = (
        random_net(**KINDS["of a text"]),
        read_folder(_folder("of a text", tmp_path)),
    )
    context = CONTEXT.astype(np.float32)
    condition = Condition(context=jnp.asarray(context))
    ours = _draw(_model(source), source.params, condition, num_steps)
    theirs = _their_draw(net, num_steps, context)
    np.testing.assert_allclose(ours, theirs, atol=2e-5 * np.abs(theirs).max())


def _student(tmp_path, kind="conditioned on w"):
    """A network that takes w, as a distilled student would be."""
    source = read_folder(_folder(kind, tmp_path / "theirs"))
    return _model(source), source.params


def test_the_embedding_of_w_is_that_of_their_pipelines(tmp_path):
    pytest.importorskip("transformers")
    embed = diffusers.StableDiffusionPipeline.get_guidance_scale_embedding
    theirs = embed(None, torch.from_numpy(W), 8, torch.float64)
    np.testing.assert_allclose(_waves(W, 8), theirs.numpy(), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("w", [None, 3.0])
def test_the_stock_pipeline_draws_the_samples_of_a_student(w, tmp_path):
    """With w as an input, or folded in; without a tokenizer, from embeddings."""
    pytest.importorskip("transformers")
    model, params = _student(tmp_path)
    folder = tmp_path / "ours"
    write_folder(folder, model, params, num_steps=4, clip=False, w=w)
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(
        folder, **dict.fromkeys(OF_TEACHER)
    )
    assert (pipeline.unet.config.time_cond_proj_dim is None) == (w is not None)
    context = CONTEXT.astype(np.float32)
    for num_steps in (4, 2, 1):
        images = pipeline(
            prompt_embeds=torch.from_numpy(context),
            latents=torch.from_numpy(_noise().transpose(0, 3, 1, 2)),
            num_inference_steps=num_steps,
            guidance_scale=1.0 if w else 4.0,
            output_type="latent",
        ).images
        condition = Condition(context=jnp.asarray(context), w=jnp.full(BATCH, 3.0))
        ours = _draw(model, params, condition, num_steps)
        theirs = images.numpy().transpose(0, 2, 3, 1)
        np.testing.assert_allclose(ours, theirs, atol=2e-5 * np.abs(theirs).max())


@pytest.mark.slow
@pytest.mark.parametrize("takes_w", [False, True])
def test_the_script_of_the_card_draws_the_samples_of_a_class(takes_w, tmp_path):
    options = {"time_cond_proj_dim": 8} if takes_w else {}
    net = random_net(**KINDS["of a class"], **options)
    source = read_folder(save(net, tmp_path / "theirs", table=TABLE))
    model, folder = _model(source), tmp_path / "ours"
    write_folder(folder, model, source.params, num_steps=4, clip=False, w=None)
    assert {x.name for x in folder.iterdir()} == {
        "unet", "scheduler", "class_embedder.safetensors"
    }  # fmt: skip
    card = model_card.conditional(model, "distilled", "progressive", 4, None, [])
    (script,) = re.findall("```python\n(.*?)```", card, re.DOTALL)
    script = script.replace("path/of/this/folder", str(folder))
    assert script.count("\n") <= 19
    noise = torch.from_numpy(_noise().transpose(0, 3, 1, 2))
    variables = {"randn": lambda *shape, generator: noise}
    exec(script.replace("torch.randn(", "randn("), variables)
    theirs = variables["x"].numpy().transpose(0, 2, 3, 1)
    w = jnp.full(BATCH, 1.0) if takes_w else None
    ours = _draw(model, source.params, Condition(jnp.array([0, 1]), w=w), 4)
    np.testing.assert_allclose(ours, theirs, atol=2e-5 * np.abs(theirs).max())


def test_the_scheduler_of_a_student_is_that_chain_by_its_name(tmp_path):
    model, params = _student(tmp_path)
    folder = tmp_path / "ours"
    write_folder(folder, model, params, num_steps=4, clip=False, w=None)
    path = folder / "scheduler" / "scheduler_config.json"
    written = json.loads(path.read_text())
    assert written["beta_schedule"] == "scaled_linear"
    assert (written["beta_start"], written["beta_end"]) == (0.00085, 0.012)
    assert written["timestep_spacing"] == "trailing"
    assert not written["clip_sample"]
    assert written["set_alpha_to_one"]
    betas = schedules.ending_in_noise(schedules.scaled_linear_betas())
    other = dataclasses.replace(
        model,
        schedule=schedules.from_betas(betas),
        net=model.net.clone(timesteps=tuple(schedules.logsnr_of_betas(betas).tolist())),
    )
    write_folder(folder, other, params, num_steps=4, clip=False, w=None)
    written = json.loads(path.read_text())
    np.testing.assert_allclose(written["trained_betas"], betas, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (lambda m: {"schedule": schedules.cosine()}, {}, "is not the chain"),
        (lambda m: {"net": m.net.clone(timesteps=())}, {}, "model.timesteps"),
        (lambda m: {}, {"num_steps": 3}, "does not divide the 1000"),
        (lambda m: {}, {"clip": True}, "sample.clip='none'"),
        (
            lambda m: {"codec": Latents(3, 0.5, 0.1)},
            {},
            "data.latent_shift=0.1, .*safetensors",
        ),
        (lambda m: {"output": "both"}, {}, "predicts 'both'"),
        (lambda m: {"takes_noise": True}, {}, "takes noise"),
        (lambda m: {"net": m.net.clone(patch=2)}, {}, "no patches"),
        (lambda m: {"net": m.net.clone(w_scale=10.0)}, {}, "set export.w"),
        (lambda m: {"net": m.net.clone(num_classes=3)}, {}, "classes beside"),
        (lambda m: {"net": m.net.clone(mid_depth=0)}, {}, "its middle"),
        (lambda m: {"net": m.net.clone(mid_heads=1)}, {}, "its middle"),
        (
            lambda m: {
                "net": m.net.clone(
                    levels=tuple(
                        dataclasses.replace(l, resample_in_block=True)
                        for l in m.net.levels
                    )
                )
            },
            {},
            "resample",
        ),
        (
            lambda m: {
                "net": m.net.clone(
                    levels=tuple(dataclasses.replace(l, depth=0) for l in m.net.levels)
                )
            },
            {},
            "sees no context",
        ),
    ],
)
def test_what_cannot_be_exact_is_refused_with_the_reason(
    change, options, message, student, tmp_path
):
    model = dataclasses.replace(student, **change(student))
    options = {"num_steps": 4, "clip": False, "w": None, **options}
    with pytest.raises(ValueError, match=message):
        write_folder(tmp_path / "out", model, {}, **options)
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    return _student(tmp_path_factory.mktemp("student"))[0]


def test_a_student_of_w_is_loaded_with_its_w_and_is_no_base_model(tmp_path):
    path = _folder("conditioned on w", tmp_path / "theirs")
    loaded = load(path)
    assert loaded.trained.takes_w
    assert loaded.trained.model.net.w_features == 8
    with pytest.raises(ValueError, match="takes a guidance weight"):
        _import(path, tmp_path / "workdir")


def _import(path, workdir):
    config = import_model.get_config("import")
    config.source.path = str(path)
    STAGE.run(Project(config, workdir))
    return workdir


@pytest.mark.parametrize("with_null", [False, True])
def test_a_model_can_be_guided_if_its_null_context_came_with_it(
    with_null, tmp_path, capsys
):
    null = random(TOKENS, WIDTH).astype(np.float32) if with_null else None
    path = _folder("of a text", tmp_path / "theirs", null=null)
    workdir = _import(path, tmp_path / "workdir")
    printed = capsys.readouterr().out
    assert ("without a null context" in printed) != with_null
    fields = json.loads((workdir / "imported.json").read_text())
    assert (fields["train"]["label_dropout"] > 0) == with_null
