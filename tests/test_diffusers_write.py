"""Students in stock diffusers, against our sampler."""

import dataclasses
import json

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import tiny
from vdiff_jax import diffusion, samplers, schedules
from vdiff_jax.codec import Latents
from vdiff_jax.from_config.model import make_model
from vdiff_jax.interop.diffusers import names
from vdiff_jax.interop.diffusers.read import read_folder
from vdiff_jax.interop.diffusers.write import check_writable, write_folder
from vdiff_jax.interop.diffusers.write_unet import sub_betas
from vdiff_jax.nets.unet import UNet
from vdiff_jax.types import Condition

pytestmark = [
    pytest.mark.diffusers,
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
BATCH = 8
NETS = {
    "ours": {"attention_resolutions": (8,)},
    "with classes": {"num_classes": 10, "emb_channels": 24},
    "of DDPM": {"style": "ddpm", "resample_in_block": False, "output": "x"},
    "of ADM, told w": {"style": "adm", "num_classes": 10, "guided": True},
}


def _model(guided=False, **options):
    config = tiny.config("train")
    config.data.update({"image_size": 16, "channels": 3})
    unet = {"multipliers": (1, 2), "patch": 1, "emb_channels": 40}
    of_unet = options.keys() & config.model.unet.keys()
    unet |= {name: options.pop(name) for name in of_unet}
    config.update({"model": {"unet": unet, **options}})
    config.guide.steps = 1
    return make_model(config, guided=guided)


def _random(model):
    """Parameters of which none is zero, so that much of x_hat is beyond [-1, 1]."""
    leaves, tree = jax.tree.flatten(model.abstract_params())
    rng = np.random.default_rng(0)
    scales = [
        0.5 if leaf.ndim == 1 else 1.5 * leaf.shape[-2] ** -0.5 for leaf in leaves
    ]
    values = [
        rng.normal(scale=min(scale, 0.5), size=leaf.shape).astype(np.float32)
        for scale, leaf in zip(scales, leaves, strict=True)
    ]
    return jax.tree.unflatten(tree, values)


def _noise(num_steps):
    return np.random.default_rng(num_steps).normal(size=(BATCH, 16, 16, 3))


def _ours(model, params, num_steps, clip, w):
    label = jnp.arange(BATCH) % 10 if model.num_classes else None
    strength = None if w is None else jnp.full(BATCH, w)
    denoise = model.denoiser(params, Condition(label, w=strength))
    limits = [lambda p, z, l: diffusion.clip(p, z, l, 1.0)] if clip else []
    noise = jnp.asarray(_noise(num_steps), jnp.float32)

    @jax.jit
    def draw(noise):
        return samplers.sample(
            diffusion.limited(denoise, limits),
            noise,
            schedule=model.schedule,
            num_steps=num_steps,
        )

    return np.asarray(draw(noise))


def _theirs(folder, num_steps, classes):
    pipeline = diffusers.DiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    noise = _noise(num_steps).astype(np.float32).transpose(0, 3, 1, 2)
    options = {"class_labels": list(range(BATCH))} if classes else {}
    images = pipeline(
        batch_size=BATCH,
        num_inference_steps=num_steps,
        latents=torch.from_numpy(noise),
        output_type="np",
        **options,
    ).images
    return 2.0 * images - 1.0


@pytest.mark.slow
@pytest.mark.parametrize("kind", NETS)
def test_their_pipeline_draws_our_pictures(kind, tmp_path):
    model = _model(**NETS[kind])
    params, w = _random(model), 1.5 if model.w_range else None
    for num_steps in (1, 2, 4, 8):
        folder = tmp_path / str(num_steps)
        write_folder(folder, model, params, num_steps=num_steps, clip=True, w=w)
        ours = _ours(model, params, num_steps, True, w)
        theirs = _theirs(folder, num_steps, model.num_classes > 0)
        assert 0.02 < (np.abs(ours) == 1).mean() < 0.98  # there is something to clip
        assert np.abs(ours - theirs).max() < 5e-5
        pixels = [np.rint(127.5 * (x + 1)).astype(int) for x in (ours, theirs)]
        assert (pixels[0] != pixels[1]).mean() <= 0.002


@pytest.mark.slow
@pytest.mark.parametrize("kind", NETS)
def test_what_is_exported_is_imported_bit_for_bit(kind, tmp_path):
    model = _model(**NETS[kind])
    params, w = _random(model), 1.5 if model.w_range else None
    write_folder(tmp_path, model, params, num_steps=4, clip=True, w=w)
    back = read_folder(tmp_path)
    written = names.to_torch(back.params)
    pipeline = diffusers.DiffusionPipeline.from_pretrained(tmp_path)
    theirs = pipeline.unet.state_dict()
    assert written.keys() == theirs.keys()
    for name, tensor in theirs.items():
        np.testing.assert_array_equal(written[name], tensor.numpy())
    kept = {k: v for k, v in params.items() if k not in ("class_emb", "w_proj")}
    for name, module in kept.items():
        jax.tree.map(np.testing.assert_array_equal, back.params[name], module)


def test_a_loaded_folder_has_every_tensor_and_nothing_else(tmp_path):
    """Their loader would leave a missing tensor random, and say nothing."""
    model = _model(**NETS["with classes"])
    write_folder(tmp_path, model, _random(model), num_steps=2, clip=False, w=None)
    net, info = diffusers.UNet2DModel.from_pretrained(
        tmp_path / "unet", output_loading_info=True
    )
    assert not any(info.values())
    assert net.config.num_train_timesteps == 6


def test_without_clipping_the_scheduler_does_not_clip(tmp_path):
    model = _model()
    params = _random(model)
    write_folder(tmp_path, model, params, num_steps=2, clip=False, w=None)
    ours = _ours(model, params, 2, False, None)
    assert np.abs(ours).max() > 1
    theirs = _theirs(tmp_path, 2, False)
    np.testing.assert_allclose(theirs, ours.clip(-1, 1), atol=5e-5)


@pytest.mark.parametrize("logsnr_min", [-20.0, -38.0])
def test_three_betas_make_one_step_in_float32(logsnr_min):
    """Their float32 product is alpha^2, even where one beta would round to 1."""
    schedule = schedules.cosine(logsnr_min=logsnr_min)
    logsnr = np.asarray(schedule(jnp.arange(1, 9) / 8))
    betas = sub_betas(logsnr)
    assert betas.dtype == np.float32
    assert (betas < 1).all()
    found = torch.cumprod(1 - torch.from_numpy(betas), 0).numpy()[2::3]
    expected = 1 / (1 + np.exp(-logsnr.astype(np.float64)))
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"output": "both"}, "predicts 'both'"),
        ({"output": "eps"}, "finetune it to v"),
        ({"patch": 2}, "model.unet.patch=2"),
        ({"dtype": "bfloat16"}, "bfloat16"),
        ({"num_classes": 10, "guided": True}, "set export.w"),
        ({"computed_from": "eps"}, r"predicts 'eps'.*\(model\.computed_from=''"),
    ],
    ids=str,
)
def test_what_cannot_be_exact_is_refused_with_the_reason(options, message, tmp_path):
    model = _model(**options)
    with pytest.raises(ValueError, match=message):
        write_folder(tmp_path / "out", model, {}, num_steps=4, clip=True, w=None)
    assert not (tmp_path / "out").exists()


def _with_levels(net, **changes):
    """Its first level is another."""
    first = dataclasses.replace(net.levels[0], **changes)
    return net.clone(levels=(first, *net.levels[1:]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda net: {"codec": Latents(3, 0.18)}, "its data are latents"),
        (lambda net: {"net": _with_levels(net, num_blocks=2)}, "numbers of bl"),
        (lambda net: {"net": _with_levels(net, num_heads=2)}, "one size for all"),
        (
            lambda net: {
                "net": _with_levels(
                    net.clone(levels=(*net.levels, net.levels[-1])),
                    num_heads=1,
                    resample_in_block=False,
                )
            },
            "only some of its levels",
        ),
        (
            lambda net: {
                "net": net.clone(
                    style=dataclasses.replace(net.style, film=False, mid_norm=False)
                )
            },
            "has no norm",
        ),
    ],
)
def test_networks_that_diffusers_does_not_have_are_refused(change, message):
    model = _model(attention_resolutions=(8,))
    with pytest.raises(ValueError, match=message):
        check_writable(
            dataclasses.replace(model, **change(model.net)),
            num_steps=4,
            clip=True,
            w=None,
        )


def test_files_say_what_they_need(tmp_path):
    model = _model()
    write_folder(tmp_path, model, _random(model), num_steps=1, clip=True, w=None)
    config = json.loads((tmp_path / "unet" / "config.json").read_text())
    assert config["time_embedding_dim"] == 40 == model.net.emb_features
    assert isinstance(model.net, UNet)
    scheduler = json.loads((tmp_path / "scheduler/scheduler_config.json").read_text())
    np.testing.assert_allclose(
        scheduler["trained_betas"], [0.446713299, 0.999938965, 0.999938965], rtol=1e-8
    )
