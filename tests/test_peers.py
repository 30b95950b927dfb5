"""The peers of the speed benchmark compute what this project computes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import tiny
from benchmarks.peers import diffusers as diffusers_peer
from benchmarks.peers import pytorch, unet
from configs import cifar10, digits
from vdiff_jax import diffusion, losses, samplers
from vdiff_jax.from_config.losses import distill_loss, train_loss
from vdiff_jax.from_config.model import make_model
from vdiff_jax.from_config.sampler import make_sampler
from vdiff_jax.nets.unet import Level, UNet
from vdiff_jax.training.step import Given, Networks
from vdiff_jax.types import Batch, Condition

SIZE = 8
NETS = {
    "blocks": {
        "levels": (
            Level(features=8, num_blocks=1),
            Level(features=16, num_blocks=1, num_heads=2),
        ),
        "mid_heads": 4,
    },
    "convolutions": {
        "levels": (
            Level(features=8, num_blocks=1, num_heads=2, resample_in_block=False),
            Level(features=12, num_blocks=1, resample_in_block=False),
            Level(features=12, num_blocks=1),
        ),
        "logsnr_input": "linear",
    },
    "patches": {
        "levels": (Level(features=16, num_blocks=2, num_heads=2),),
        "patch": 2,
        "num_classes": 3,
        "logsnr_input": "sigmoid",
    },
}


def _tensor(array):
    return torch.from_numpy(np.array(array))


def _nchw(images):
    return _tensor(images).permute(0, 3, 1, 2)


def _random(shapes):
    """Parameters away from the zeros and ones that hide mistakes."""
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        values = 0.2 * rng.normal(size=leaf.shape)
        return (values + (path[-1].key == "scale")).astype(np.float32)

    return jax.tree.map_with_path(draw, shapes)


@pytest.mark.parametrize("options", NETS.values(), ids=NETS)
def test_the_unet_of_pytorch_is_ours(options):
    net = UNet(out_channels=3, emb_features=16, groups=4, **options)
    z_t = jax.random.normal(jax.random.key(1), (3, SIZE, SIZE, 3))
    logsnr_t = jnp.array([-3.0, 5.0, 19.0])
    label = jnp.array([0, 2, 1]) if net.num_classes else None
    shapes = jax.eval_shape(
        net.init, jax.random.key(0), z_t, logsnr_t, Condition(label)
    )
    params = _random(shapes["params"])
    expected = jax.jit(net.apply)({"params": params}, z_t, logsnr_t, Condition(label))

    peer = unet.UNet(net, in_channels=3).to(memory_format=torch.channels_last)
    unet.load_flax(peer, params)
    with torch.inference_mode():
        found = peer(
            _nchw(z_t),
            _tensor(logsnr_t),
            None if label is None else _tensor(label),
        )

    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert unet.num_parameters(peer) == count
    np.testing.assert_allclose(found.permute(0, 2, 3, 1), expected, atol=1e-4)


@pytest.fixture(scope="module")
def pair():
    """A tiny config, our model with parameters, and PyTorch's with the same."""
    config = tiny.config("train")
    config.update({"data": {"flip": True}, "model": {"num_classes": 10}})
    model = make_model(config)
    params = _random(model.abstract_params())
    return config, model, params, _peer_of(model, params)


def _peer_of(model, params):
    peer = unet.UNet(model.net, in_channels=model.image_shape[-1]).eval()
    unet.load_flax(peer, params)
    return peer.to(memory_format=torch.channels_last)


def _batch(model, batch_size=16):
    rng = np.random.default_rng(1)
    image = rng.integers(0, 256, (batch_size, *model.image_shape), np.uint8)
    label = rng.integers(0, 10, batch_size).astype(np.int32)
    return Batch(image, Condition(label))


def _for_both(model):
    """Images, draws and classes for us, and the same for PyTorch."""
    batch = _batch(model)
    draws = losses.draw(jax.random.key(0), len(batch.image))
    flip = draws.uniform("mirror") < 0.5
    theirs = pytorch.Draws(
        _tensor(draws.u), _nchw(draws.eps(model.image_shape)), _tensor(flip)
    )
    x = pytorch.from_pixels(_tensor(batch.image))
    ours = batch._replace(image=losses.mirror(jnp.asarray(batch.image), flip))
    return (ours, draws), (x, theirs, _tensor(batch.condition.label))


def test_the_training_loss_of_pytorch_is_ours(pair):
    config, model, params, peer = pair
    ours, theirs = _for_both(model)
    expected = jax.jit(train_loss(config, model, train=False))(
        Networks(params), *ours, Given(None, None, None, jnp.zeros(()))
    )

    schedule = pytorch.Cosine(-20.0, 20.0)
    with torch.no_grad():
        found = pytorch.denoising_loss(peer, *theirs, schedule)

    np.testing.assert_allclose(found, expected["loss"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("num_steps", [1, 4])
def test_the_distillation_loss_of_pytorch_is_ours(pair, num_steps):
    config, model, params, peer = pair
    teacher_params = jax.tree.map(lambda p: 0.9 * p, params)
    ours, (x, theirs, label) = _for_both(model)
    given = Given(teacher_params, params, jnp.int32(num_steps), jnp.zeros(()))
    expected = jax.jit(distill_loss(config, model, model))(
        Networks(params), *ours, given
    )

    teacher, schedule = _peer_of(model, teacher_params), pytorch.Cosine(-20.0, 20.0)
    with torch.no_grad():
        found = pytorch.distillation_loss(
            peer, teacher, x, theirs, label, schedule, num_steps
        )

    np.testing.assert_allclose(found, expected["loss"], rtol=1e-4, atol=1e-4)


def test_the_samples_of_pytorch_are_ours(pair):
    config, model, params, peer = pair
    start = make_sampler(config, model).start(jnp.arange(16), jnp.int32(0))
    expected = samplers.sample(
        diffusion.limited(
            model.denoiser(params, start.condition),
            [functools.partial(diffusion.clip, limit=1.0)],
        ),
        start.z_1,
        schedule=model.schedule,
        num_steps=4,
    )

    label = _tensor(start.condition.label)
    step = functools.partial(pytorch.ddim_step, peer, label=label)
    times = pytorch.grid(pytorch.Cosine(-20.0, 20.0), 4, "cpu")
    with torch.inference_mode():
        x = pytorch.ddim(step, _nchw(start.z_1), times)

    assert np.mean(np.abs(expected) < 0.99) > 0.1  # else clipping hides mistakes
    np.testing.assert_allclose(x.permute(0, 2, 3, 1), expected, atol=1e-3)
    off = pytorch.to_pixels(x).numpy() != model.codec.from_x(expected)
    assert np.mean(off) < 0.01


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_update_of_pytorch_changes_every_parameter_and_its_average(dtype):
    config = tiny.config("train", model=dict(tiny.TINY["model"], dtype=dtype))
    config.update({"train": {"dropout": 0.1, "ema_decay": 0.5}})
    model = make_model(config)
    step = pytorch.train_step(config, model, compile=False)
    batch = _tensor(_batch(model).image)
    before = {name: p.detach().clone() for name, p in step.net.named_parameters()}

    for _ in range(4):  # what starts at zero lets gradients through later
        step(batch, None)

    for name, average in step.companion.named_parameters():
        after = step.net.get_parameter(name).detach()
        assert not torch.equal(after, before[name]), name
        assert not torch.equal(after, average), name
        assert not torch.equal(before[name], average), name


def test_an_update_of_a_student_leaves_its_teacher(pair):
    config, model, params, _ = pair
    step = pytorch.distill_step(config, model, compile=False, num_steps=4)
    unet.load_flax(step.net, params)
    unet.load_flax(step.companion, params)
    batch = _batch(model)

    step(_tensor(batch.image), _tensor(batch.condition.label))

    pairs = zip(step.net.parameters(), step.companion.parameters(), strict=True)
    assert all(not torch.equal(student, teacher) for student, teacher in pairs)
    assert torch.equal(
        step.companion.conv_in.weight, _peer_of(model, params).conv_in.weight
    )


def test_the_sampler_of_pytorch_returns_pictures(pair):
    config, model, params, _ = pair
    draw = pytorch.sampler(config, model, compile=False, num_steps=2, batch_size=5)
    unet.load_flax(draw.net, params)
    pictures = draw()
    assert pictures.dtype == torch.uint8
    assert pictures.shape == (5, *model.image_shape)
    assert pictures.float().std() > 10.0


@pytest.mark.parametrize(
    "change",
    [
        {"model": {"output": "x"}},
        {"diffusion": {"schedule": "linear_beta"}},
        {"train": {"weight": "snr"}},
        {"train": {"num_steps": 8}},
        {"sample": {"sampler": "heun"}},
    ],
)
def test_what_the_peers_do_not_cover_is_refused(change):
    config = tiny.config("train")
    config.update(change)
    with pytest.raises(ValueError, match="cover"):
        pytorch.train_step(config, make_model(config), compile=False)


def _sized(size):
    config = {"digits": digits, "cifar4m": cifar10}[size].get_config("train")
    if size == "cifar4m":
        config.update(
            {"model": {"unet": {"channels": 64, "head_dim": 64, "emb_channels": 256}}}
        )
    return config


@pytest.mark.parametrize("size", ["digits", "cifar4m"])
def test_the_network_of_diffusers_is_as_large_as_ours(size):
    pytest.importorskip("diffusers")
    count = unet.num_parameters(diffusers_peer.network(size))
    assert count == pytest.approx(make_model(_sized(size)).num_parameters(), rel=0.1)


def test_the_pipeline_of_diffusers_returns_pictures():
    pytest.importorskip("diffusers")
    run = diffusers_peer.pipeline("digits", compile=False, num_steps=3, batch_size=5)
    pictures = run()
    assert pictures.shape == (5, 8, 8, 1)
    assert pictures.min() >= 0.0
    assert pictures.max() <= 1.0
