"""What holds for every file in configs/."""

import ast
import importlib
import inspect
import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest

import launch
import tiny_autoencoder
from vdiff_jax.files import weights
from vdiff_jax.from_config.check import check
from vdiff_jax.from_config.model import make_model
from vdiff_jax.from_config.sampler import variance_interpolation
from vdiff_jax.interop.diffusers import conditional_unet
from vdiff_jax.nets.serialization import describe
from vdiff_jax.nets.wrappers import Converted
from vdiff_jax.workdir.layout import Project

CONFIGS = sorted(
    path.stem
    for path in (pathlib.Path(__file__).parents[1] / "configs").glob("*.py")
    if path.stem not in ("__init__", "defaults", "paper", "import_model")
)


def _config(name, stage="all"):
    return importlib.import_module(f"configs.{name}").get_config(stage)


def test_the_data_sets_are_there():
    assert {
        "cars64",
        "celebahq256",
        "cifar10",
        "cifar10_guided",
        "digits",
        "digits_guided",
        "fashion_mnist",
        "folder",
        "imagenet64",
        "imagenet64_guided",
        "cin256",
        "dit256",
        "lsun_bedroom128",
        "lsun_church128",
    } <= set(CONFIGS)


# Of latents, with the autoencoders that they are published with.
OF_LATENTS = {
    "cin256": {
        "_class_name": "VQModel", "latent_channels": 3, "num_vq_embeddings": 8192,
        "vq_embed_dim": 3, "block_out_channels": [128, 256, 512],
        "down_block_types": ["DownEncoderBlock2D"] * 3,
        "up_block_types": ["UpDecoderBlock2D"] * 3, "layers_per_block": 2,
        "scaling_factor": 1.0,
    },
    "dit256": {
        "_class_name": "AutoencoderKL", "latent_channels": 4,
        "block_out_channels": [128, 256, 512, 512],
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4, "layers_per_block": 2,
        "scaling_factor": 0.18215,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", CONFIGS)
def test_every_config_dry_runs_every_stage(name, capsys, tmp_path):
    stages = ("all",)
    if name == "digits":
        stages = ("all", "train", "distill", "sample", "evaluate")
    if name == "digits_guided":
        stages = ("all", "train", "guide", "distill", "sample", "evaluate")
    for stage in stages:
        config = _config(name, stage)
        if config.distill.start == "progressive":
            # Students that go on from those of another config; it says so at once.
            with pytest.raises(ValueError, match="distill it first with"):
                launch.launch(config, tmp_path / "new", dry_run=True)
            config.distill.start = "previous"
        counted = {"parameters"}
        if name in OF_LATENTS:
            channels, scale = config.data.channels, config.data.latent_scale
            folder, _ = tiny_autoencoder.write(
                tmp_path / "vae", latent_channels=channels, scaling_factor=scale
            )
            config.data.autoencoder = str(folder)
            counted |= {"autoencoder_parameters"}
        launch.launch(config, tmp_path / "new", dry_run=True)
        said = json.loads(capsys.readouterr().out)
        assert set(said) == {"config", *counted, "devices", "run"}
        assert said["config"]["model"]["output"] == "v"
        planned = {entry["stage"] for entry in said["run"]}
        everything = {"train", "distill", "evaluate"}
        assert config.guide.steps or not ("_guided" in name or name in OF_LATENTS)
        everything |= {"guide"} if config.guide.steps else set()
        assert planned == (everything if stage == "all" else {stage})
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("name", CONFIGS)
def test_every_config_says_its_command_and_its_result(name):
    text = importlib.import_module(f"configs.{name}").__doc__
    assert f"--config configs/{name}.py" in text
    assert "Result" in text


@pytest.mark.parametrize("name", CONFIGS)
def test_every_config_shows_what_a_reader_of_the_paper_looks_for(name):
    module = ast.parse(inspect.getsource(importlib.import_module(f"configs.{name}")))
    (changes,) = [
        ast.literal_eval(call.args[0])
        for call in ast.walk(module)
        if isinstance(call, ast.Call) and ast.unparse(call.func) == "config.update"
    ]
    trained = {"steps", "batch_size", "learning_rate", "ema_decay", "weight"}
    if changes.keys() <= {"distill", "sample"}:  # other students of a config beside it
        own = {"method", "students", "start", "updates", *trained} - {"steps"}
        assert own <= changes["distill"].keys()
        return
    assert "schedule" in changes["diffusion"]
    assert trained <= changes["train"].keys()
    assert {"start_steps", "updates", *trained} - {"steps"} <= changes["distill"].keys()
    assert "guide" not in changes or trained <= changes["guide"].keys()


@pytest.mark.parametrize("name", CONFIGS)
def test_every_config_refuses_a_field_it_does_not_have(name):
    config = _config(name)
    with pytest.raises(KeyError, match="stepz"):
        config.update({"train": {"stepz": 1}})
    with pytest.raises(ValueError, match="stage='trian' must be one of all, train"):
        launch.launch(_config(name, "trian"), pathlib.Path("nowhere"))


@pytest.mark.parametrize(
    ("name", "output", "parameters"),
    [
        ("cifar10", "x", 60_004_099),
        ("cifar10", "v", 60_004_099),
        ("imagenet64", "both", 295_905_222),
        ("lsun_bedroom128", "both", 139_578_502),
        ("lsun_church128", "both", 139_578_502),
    ],
)
def test_the_papers_networks_have_the_papers_sizes(name, output, parameters):
    config = _config(name)
    config.model.output = output
    assert make_model(config).num_parameters() == parameters


@pytest.mark.parametrize(
    ("name", "parameters", "of_autoencoder"),
    [
        # The U-Net, and the table of the classes and of none.
        ("cin256", 400_920_579 + 1001 * 512, 55_322_782),
        # Published, without the fixed embedding of places and the learned variance.
        ("dit256", 675_129_632 - 256 * 1152 - 16 * 1153, 83_653_863),
    ],
)
def test_published_models_of_latents_have_their_sizes(
    name, parameters, of_autoencoder, tmp_path
):
    """By the command, which reads what the autoencoder is, and none of its weights."""
    (tmp_path / "config.json").write_text(json.dumps(OF_LATENTS[name]))
    command = f"launch.py --config {name}:train --dry_run --workdir {tmp_path / 'new'}"
    command += f" --config.data.autoencoder={tmp_path}"
    run = subprocess.run(
        [sys.executable, *command.split()],
        cwd=pathlib.Path(__file__).parents[1],
        capture_output=True,
        check=True,
        text=True,
    )
    printed = json.loads(run.stdout)
    assert printed["parameters"] == parameters
    assert printed["autoencoder_parameters"] == of_autoencoder
    text = importlib.import_module(f"configs.{name}").__doc__
    for number in (parameters, of_autoencoder):
        assert f"{number:,}" in text


def _unet_of_imagenet(tmp_path):
    """Their config of the U-Net of latent diffusion on ImageNet, as a network."""
    down, up = ["CrossAttnDownBlock2D"] * 3, ["CrossAttnUpBlock2D"] * 3
    content = {
        "_class_name": "UNet2DConditionModel", "sample_size": 64, "in_channels": 3,
        "out_channels": 3, "block_out_channels": [192, 384, 576, 960],
        "layers_per_block": 2, "down_block_types": ["DownBlock2D", *down],
        "up_block_types": [*up, "UpBlock2D"], "cross_attention_dim": 512,
        "attention_head_dim": 1,
    }  # fmt: skip
    table = {"weight": np.zeros((1001, 512), np.float32)}
    weights.write(tmp_path / conditional_unet.CLASS_TABLE, table, {})
    return conditional_unet.net_of(content, tmp_path / "config.json", tmp_path)


def test_the_layout_of_latent_diffusion_is_that_of_the_published_config(tmp_path):
    net, config = _unet_of_imagenet(tmp_path), _config("cin256")
    assert describe(net) == config.model.unet.layout
    ours = make_model(config).net
    assert isinstance(ours, Converted)
    own = {"dropout": 0.0, "timesteps": ours.net.timesteps}
    assert ours.net.clone(parent=None) == net.clone(**own, parent=None)
    # The golden values of reference implementations, at steps 0 and 999.
    assert ours.net.timesteps[0] == pytest.approx(6.50078904, abs=1e-6)
    assert ours.net.timesteps[999] == pytest.approx(-8.85740280, abs=1e-6)


def test_ladders_have_the_papers_stages():
    from vdiff_jax.stages import distill

    plan = distill.plan(Project(_config("cifar10"), pathlib.Path("nowhere")))
    assert [entry["num_steps"] for entry in plan] == [2**k for k in range(12, -1, -1)]
    assert sum(entry["updates"] for entry in plan) == 750_000


@pytest.mark.parametrize(
    ("section", "field", "value", "message"),
    [
        ("model", "output", "noise", "model.output='noise' must be one of x, eps"),
        ("model", "computed_from", "noise", "model.computed_from='noise' must be one"),
        ("model", "dtype", "float16", "model.dtype='float16' must be one of float32"),
        ("unet", "groups", 5, "unet.groups=5 does not divide the 32 channels"),
        ("unet", "head_dim", 5, "unet.head_dim=5 does not divide the 32 channels"),
        ("unet", "logsnr_input", "t", "model.unet.logsnr_input='t' must be one of"),
        ("unet", "patch", 3, "does not divide by 3"),
        ("model", "net", "no.such:net", "model.net='no.such:net' is neither"),
        ("diffusion", "schedule", "cubic", "diffusion.schedule='cubic' must be one"),
        ("data", "source", "pics", "data.source='pics' must be folder, lmdb"),
        ("data", "on_device", "maybe", "data.on_device='maybe' must be one of auto"),
        ("data", "held_out_fraction", 1.5, "n=1.5 must be a number from 0 to below 1"),
        ("data", "latent_scale", -1.0, "scale=-1.0 must be a number of at least 0"),
        ("train", "num_steps", -1, "num_steps=-1 must be a whole number of at least 0"),
        ("train", "label_dropout", 1.0, "=1.0 must be a number from 0 to below 1"),
        ("train", "weight", "min_snr", "train.weight='min_snr' must be constant, snr"),
        ("train", "decay", "exp", "train.decay='exp' must be one of constant, linear"),
        ("train", "on_nonfinite", "cry", "train.on_nonfinite='cry' must be one of st"),
        ("distill", "start_steps", 100, "start_steps=100 does not arrive"),
        ("distill", "updates", "many", "distill.updates='many' must be a number above"),
        ("sample", "sampler", "euler", "sample.sampler='euler' must be one of auto"),
        ("sample", "steps", 0, "sample.steps=0 must be a whole number of at least 1"),
        ("sample", "model", "best", "sample.model='best' must be one of auto, base"),
    ],
)
def test_mistakes_are_refused_with_their_value(section, field, value, message):
    config, change = _config("digits"), {field: value}
    if section == "unet":
        section, change = "model", {"unet": change}
    config.update({section: change})
    with pytest.raises(ValueError, match=message):
        check(config)


@pytest.mark.parametrize(
    ("section", "field", "value", "message"),
    [
        (
            "data",
            "image_size",
            16,
            r"data\.image_size and data\.channels ask for \(16, 16",
        ),
        ("train", "batch_size", 7, "batch_size=7 does not divide over 2 devices"),
    ],
)
def test_what_only_data_and_devices_show_is_refused_by_the_stage(
    section, field, value, message, tmp_path
):
    config = _config("digits", "train")
    config.update({section: {field: value}})
    with pytest.raises(ValueError, match=message):
        launch.launch(config, tmp_path)
    assert not list(tmp_path.glob("*/checkpoints"))


def test_an_ancestral_sampler_reads_its_variance():
    assert variance_interpolation("small") == 0.0
    assert variance_interpolation("medium:0.3") == 0.3
    assert variance_interpolation("large") == 1.0
    for wrong in ("medium", "medium:2", "medium:x", "big"):
        with pytest.raises(ValueError, match=r"sample\.variance|not a number"):
            variance_interpolation(wrong)
