"""A config is refused before the first stage begins, by field, value and remedy."""

import functools
import importlib
import math
import operator
import pathlib
import re

import pytest

import launch
import tiny
from configs import digits, import_model
from vdiff_jax.from_config import documentation
from vdiff_jax.from_config.check import check, traced
from vdiff_jax.from_config.fields import FIELDS, SECTIONS, STAGES, is_override
from vdiff_jax.from_config.moved import flat
from vdiff_jax.model import Model

# What is tried of every field, by the type of its default.
BAD = {
    int: (-1, 0),
    float: (-1.0, math.nan, math.inf),
    str: ("nonsense",),
    tuple: ((-1,), ("nonsense",)),
    bool: (),
}
NONE, PLACE = "0 is none, or never", "only the disk knows"
LEGITIMATE = {
    ("seed", 0): "a seed",
    ("sample.seed", 0): "a seed",
    ("evaluate.seed", 0): "a seed",
    ("wandb_project", "nonsense"): "only Weights & Biases knows",
    ("model.num_classes", 0): NONE,
    ("model.unet.context_features", 0): NONE,
    ("model.unet.context_tokens", 0): NONE,
    ("diffusion.logsnr_min", -1.0): "a log-SNR may be negative",
    ("diffusion.logsnr_max", -1.0): "a log-SNR may be negative",
    ("data.name", "nonsense"): "only TensorFlow Datasets knows",
    ("data.path", "nonsense"): PLACE,
    ("data.train_split", "nonsense"): PLACE,
    ("data.test_split", "nonsense"): PLACE,
    ("data.held_out", 0): NONE,
    ("data.workers", 0): NONE,
    ("loop.log_every_steps", 0): NONE,
    ("loop.eval_every_steps", 0): NONE,
    ("loop.sample_every_steps", 0): NONE,
    ("loop.checkpoint_every_steps", 0): NONE,
    ("loop.keep_every_steps", 0): NONE,
    ("loop.keep_best", 0): NONE,
    ("train.init_from", "nonsense"): PLACE,
    ("train.num_steps", 0): NONE,
    ("train.warmup_steps", 0): NONE,
    ("guide.steps", 0): NONE,
    ("guide.teacher", "nonsense"): PLACE,
    ("guide.warmup_steps", 0): NONE,
    ("distill.teacher", "nonsense"): PLACE,
    ("distill.warmup_steps", 0): NONE,
    ("source.path", "nonsense"): PLACE,
    ("sample.from_file", "nonsense"): PLACE,
    ("sample.context", "nonsense"): PLACE,
    ("sample.noise", "nonsense"): PLACE,
    ("sample.image", "nonsense"): PLACE,
    ("sample.interpolate", 0): NONE,
    ("evaluate.images", "nonsense"): PLACE,
    ("evaluate.inception_weights", "nonsense"): PLACE,
    ("evaluate.reference_num", 0): NONE,
    ("evaluate.likelihood_num", 0): NONE,
}


def _with(path, value, stage="all"):
    """The digits, where a stage can run, with one value changed."""
    config = digits.get_config(stage)
    if stage == "guide":
        config.update({"model": {"num_classes": 10}, "guide": {"steps": 1}})
    if stage == "import":
        config.source.path = "a/folder"
    check(config)
    _set(config, path, value)
    return config


def _set(config, path, value):
    *sections, name = path.split(".")
    functools.reduce(operator.getitem, sections, config)[name] = value


def _bad():
    for path, field in FIELDS.items():
        for value in BAD[type(field.default)]:
            yield path, value


def _refusal(config):
    with pytest.raises(ValueError) as error:  # noqa: PT011 (the caller reads it)
        check(config)
    return str(error.value)


def test_there_are_few_fields_and_each_is_its_own_default():
    assert len(FIELDS) <= 154
    for path, field in FIELDS.items():
        assert field.allowed.contains(field.default), path


def test_every_bad_value_is_refused_in_one_line_or_is_legitimate():
    legitimate = []
    for path, value in _bad():
        config = _with(path, value)
        if (path, value) in LEGITIMATE:
            check(config)
            legitimate.append((path, value))
            continue
        message = _refusal(config)
        assert message.startswith(f"{path}={value!r} "), message
        assert len(message) > len(f"{path}={value!r} ") + 10
        assert "\n" not in message
    assert legitimate == [bad for bad in _bad() if bad in LEGITIMATE]
    assert len(legitimate) == len(LEGITIMATE)


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_alike_refuses_a_bad_value(stage, tmp_path):
    for path, value in _bad():
        if path == "stage" or (path, value) in LEGITIMATE:
            continue
        if (stage, path, value) in (
            ("import", "data.image_size", 0),
            ("import", "data.channels", 0),
        ):
            continue  # as the model is
        if stage == "guide" and value == ("nonsense",) and "labels" in path:
            continue  # the name of a class, of which only the workdir knows
        config = _with(path, value, stage)
        with pytest.raises(ValueError, match=re.escape(f"{path}={value!r} ")):
            launch.launch(config, tmp_path, dry_run=True)
    assert not list(tmp_path.iterdir())


def test_a_value_of_one_stage_for_the_loop_is_checked_too():
    config = tiny.config("train", distill={"steps_per_call": 0})
    message = _refusal(config)
    assert message == "distill.steps_per_call=0 must be a whole number of at least 1."


def test_true_is_no_number_and_no_number_is_true():
    assert _refusal(_with("train.steps", True)).startswith("train.steps=True must")
    config = tiny.config("train")
    config.data.flip = False
    check(config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model.output": "both", "model.computed_from": "eps"}, "cannot be computed"),
        ({"model.convention": "edm"}, "of a network of your own"),
        ({"model.net": "no.such:net"}, "model.net='no.such:net' is neither"),
        ({"model.unet.groups": 5}, "model.unet.groups=5 does not divide the 32 ch"),
        ({"model.unet.head_dim": 5}, "head_dim=5 does not divide the 32 channels"),
        ({"model.unet.channels": 33}, "model.unet.channels=33 must be even"),
        ({"model.unet.patch": 3}, "data.image_size=8 does not divide by 3"),
        ({"model.unet.multipliers": (1,) * 4}, "does not divide by 16"),
        ({"diffusion.logsnr_min": 20.0}, "must be below diffusion.logsnr_max=20.0"),
        ({"diffusion.schedule": "betas"}, r"diffusion.betas=\(\) must be the betas"),
        ({"model.timesteps": "betas"}, r"diffusion.betas=\(\) must be the betas"),
        ({"data.image_size": 0}, "data.image_size=0 must"),
        ({"data.channels": 0}, "data.channels=0 must"),
        ({"data.source": "no.such:one"}, "data.source='no.such:one' is neither"),
        ({"data.source": "tfds"}, "data.name='' must be"),
        ({"data.latent_scale": 0.2, "sample.clip": "x"}, "sample.clip='x' keeps x in"),
        ({"data.latent_scale": 0.2}, "compares images"),
        (
            {"diffusion.schedule": "linear_beta", "train.num_steps": 2001},
            "train.num_steps=2001: num_steps=2001 is more than this schedule allows",
        ),
        (
            {"guide.w_range": (5.0, 4.0)},
            "guide.w_range=.* must be two numbers of at least 0, the first",
        ),
        ({"guide.w_features": 7}, "guide.w_features=7 must be even"),
        ({"guide.steps": 1}, "guide.steps=1 needs a model"),
        (
            {"guide.steps": 1, "model.num_classes": 10, "train.label_dropout": 0.0},
            "train.label_dropout=0.0 leaves out no class",
        ),
        ({"stage": "guide"}, "guide.steps=0 turns the guide stage off"),
        ({"distill.start_steps": 100}, "start_steps=100 does not arrive"),
        ({"distill.end_steps": 128}, "does not arrive at end_steps=128"),
        (
            {"diffusion.schedule": "linear_beta", "distill.start_steps": 2048},
            "distill.start_steps=2048: num_steps=2048 is more",
        ),
        ({"stage": "import"}, "source.path='' is empty"),
        ({"data.latent_shift": 0.5}, "data.latent_shift=0.5 is of latents, and these"),
        (
            {"export.decode": True, "stage": "import", "source.path": "a/folder"},
            r"export.decode=True is for stablehlo, and export.formats=\('safetensors'",
        ),
        ({"export.decode": True}, "export.decode=True .* set data.autoencoder to"),
        (
            {"export.formats": ("diffusers",), "sample.sampler": "stochastic"},
            "cannot be exported as diffusers",
        ),
        (
            {"export.formats": ("diffusers",), "sample.clip": "both:1.5"},
            "sample.clip='both:1.5' cannot be exported",
        ),
        ({"export.w": (1.0,)}, r"export.w=\(1.0,\), but without guide.steps"),
        ({"sample.w": (1.0,)}, r"sample.w=\(1.0,\) needs a model that is conditioned"),
        (
            {"sample.labels": (1,)},
            r"sample.labels=\(1,\) does not fit: this model knows no cl",
        ),
        (
            {"sample.labels": (1, 10), "model.num_classes": 10},
            r"sample.labels=\(1, 10\) must be from 0 to 9",
        ),
        (
            {"sample.image_labels": (10,), "model.num_classes": 10},
            r"sample.image_labels=\(10,\) must be from 0 to 9",
        ),
        (
            {"sample.image": "x.npy", "model.num_classes": 10},
            r"sample.image_labels=\(\) must be the classes",
        ),
        ({"sample.guidance_interval": (0.5, 0.2)}, "must be two times t, rising"),
        ({"sample.from_t": 0.3, "sample.image": "x"}, "one of the times i / sample.st"),
        ({"sample.from_t": 0.5}, "set sample.image"),
        ({"evaluate.w": (1.0,)}, r"evaluate.w=\(1.0,\) needs a model that is condi"),
        ({"evaluate.judge": True}, "evaluate.judge=True needs a model"),
        (
            {
                "evaluate.judge": True,
                "sample.context": "x.npz",
                "model.unet.context_features": 8,
                "model.unet.context_tokens": 3,
            },
            "evaluate.judge=True: the contexts of sample.context='x.npz' .* leave",
        ),
        (
            {"sample.trajectory": True, "sample.image": "x.npy"},
            "sample.trajectory=True starts from noise, and sample.image='x.npy' from",
        ),
        (
            {"sample.interpolate": 3, "sample.image": "x.npy", "sample.from_t": 0.5},
            "sample.interpolate=3 starts from noise, and sample.image='x.npy' from",
        ),
        (
            {"distill.method": "consistency", "distill.teacher_steps": (64, 8)},
            r"distill.teacher_steps=\(64, 8\) must not fall: set \(8, 64\)",
        ),
        ({"evaluate.features": ("inception",)}, "no FID: fetch https"),
        ({"evaluate.reference_stats": "x.npz"}, "set evaluate.inception_weights too"),
        (
            {"diffusion.schedule": "linear_beta", "evaluate.steps": (1, 2000)},
            "evaluate.steps=2000: num_steps=2000 is more",
        ),
    ],
    ids=str,
)
def test_fields_that_do_not_fit_each_other_are_refused(changes, message):
    config = digits.get_config()
    for path, value in changes.items():
        _set(config, path, value)
    with pytest.raises(ValueError, match=message):
        check(config)


@pytest.mark.parametrize(
    ("diffusion", "most"),
    [
        ({"schedule": "linear_beta"}, 999),
        ({"schedule": "squared_cosine_beta", "num_train_steps": 65}, 64),
        ({"schedule": "betas", "betas": (0.01,) * 65}, 64),
    ],
)
def test_a_consistency_teacher_takes_fewer_steps_than_its_chain_has(diffusion, most):
    config = digits.get_config("distill")
    config.diffusion.update(diffusion)
    first = 8 if most == 64 else 9 * 8
    config.distill.update(
        {"method": "consistency", "start_steps": 1024, "end_steps": 1, "updates": "4"}
    )
    config.distill.teacher_steps = (first, most // 8 * 8)
    check(config)
    config.distill.teacher_steps = (first, most // 8 * 8 + 8)
    message = f"at most at {most}, as the chain .* has {most + 1} steps: set fewer"
    with pytest.raises(ValueError, match=rf"distill\.teacher_steps=.* {message}"):
        check(config)
    config.stage = "sample"
    check(config)


def test_contexts_of_a_file_are_drawn_whether_or_not_there_is_a_judge():
    config = digits.get_config("sample")
    config.model.unet.update({"context_features": 8, "context_tokens": 3})
    config.evaluate.update({"judge": True, "likelihood_num": 0})
    config.sample.context = "x.npz"
    check(config)
    config.stage = "evaluate"
    assert "evaluate.judge=True: the contexts of sample.context" in _refusal(config)


def test_what_another_model_brings_is_asked_of_the_stages_that_run():
    # An imported chain of 50 steps, whose student of one step is sampled from.
    config = digits.get_config("sample")
    config.update(
        {
            "diffusion": {"schedule": "linear_beta", "num_train_steps": 50},
            "distill": {"start_steps": 1},
        }
    )
    check(config)
    config.stage = "distill"
    assert "start_steps=1 does not arrive" in _refusal(config)


def test_a_model_to_import_need_not_fit_the_network_of_the_config():
    config = import_model.get_config()
    config.source.path = "cifar_8"
    for size, channels in ((0, 0), (33, 0), (33, 3)):
        config.data.update({"image_size": size, "channels": channels})
        check(config)


def test_a_file_that_only_the_last_stage_reads_is_missed_before_the_first(tmp_path):
    config = tiny.config("all", evaluate={"inception_weights": "none.pth"})
    with pytest.raises(ValueError, match=r"none\.pth' must be a file; there is none"):
        launch.launch(config, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_network_is_traced_once_in_a_process(monkeypatch, tmp_path, capsys):
    init, calls = Model.init, []

    def counted(self, key):
        calls.append(self)
        return init(self, key)

    monkeypatch.setattr(Model, "init", counted)
    # A width that no other test has, so that it is new to this process.
    config = tiny.config("all", model={"unet": {"emb_channels": 20}})
    for _ in range(2):
        launch.launch(config, tmp_path, dry_run=True)
        assert len(calls) == 1
    config.update({"model": {"num_classes": 10}, "guide": {"steps": 1}})
    launch.launch(config, tmp_path, dry_run=True)
    assert len(calls) == 3  # the base model and the guided student
    assert len(traced(config)) == 2
    assert len(calls) == 3


def test_the_page_of_fields_is_up_to_date():
    page = pathlib.Path(__file__).parents[1] / "docs" / "config.md"
    assert page.read_text() == documentation.markdown()


def test_a_config_has_the_fields_of_the_table_and_no_others():
    named = ("cifar10", "digits", "imagenet64", "import_model")
    for name in named:
        config = importlib.import_module(f"configs.{name}").get_config()
        paths = {path for path, _ in flat(config.to_dict())}
        # A stage that trains may have its own of a field of `loop`.
        assert {path for path in paths if not is_override(path)} == FIELDS.keys()
    assert set(SECTIONS) == {"", *(path.rpartition(".")[0] for path in FIELDS)}
