"""What an older command, config or file says is understood, and it is said where."""

import json
import pathlib
import subprocess
import sys

import pytest

from configs import celebahq256, digits, digits_guided
from vdiff_jax.command.parse import parse
from vdiff_jax.command.words import understand
from vdiff_jax.from_config.check import check
from vdiff_jax.from_config.choices import as_json, section_of
from vdiff_jax.from_config.defaults import defaults
from vdiff_jax.from_config.fields import FIELDS, TRAINING, is_override
from vdiff_jax.from_config.model import make_model
from vdiff_jax.from_config.moved import FINETUNE, OLD, current, flat, nested
from vdiff_jax.nets.layers import DDPM
from vdiff_jax.nets.serialization import fields_of

# Of the version before fields moved, as a workdir of the guided digits kept it.
OLDER = pathlib.Path(__file__).parent / "old" / "digits_config.json"
VALUES = {
    "distill.ladder": "stochastic",
    "finetune.source": "runs/x/train",
    "model.num_heads": 4,
    "sample.clip_value": 1.5,
    "sample.guidance_scale": (3.0,),
    "sample.threshold": 0.9,
    "source.kind": "released",
}


@pytest.mark.parametrize("path", OLD)
def test_every_old_field_is_a_current_one_and_says_so_in_one_line(path, capsys):
    config = defaults()
    value = VALUES.get(path, OLD[path])
    if path == "model.unet":
        value = '{"levels": [], "emb_features": 8}'
    config.update(nested({path: value}))
    assert all(
        name in FIELDS or is_override(name) for name, _ in flat(config.to_dict())
    )
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"config: {path} is ")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ({"model.channels": 64}, {"model.unet.channels": 64}),
        ({"model.num_heads": 2, "model.head_dim": 0}, {"model.unet.head_dim": 128}),
        ({"distill.ladder": "deterministic"}, {"distill.method": "progressive"}),
        ({"distill.ladder": "encode"}, {"distill.method": "encode"}),
        ({"train.weight": "v_mse"}, {"train.weight": "snr_plus_one"}),
        ({"guide.w_min": 1.0}, {"guide.w_range": (1.0, 4.0)}),
        ({"guide.w_min": 1.0, "guide.w_max": 2.0}, {"guide.w_range": (1.0, 2.0)}),
        ({"sample.clip": True}, {"sample.clip": "x"}),
        ({"sample.clip": False}, {"sample.clip": "none"}),
        ({"sample.clip": False, "sample.clip_value": 1.5}, {"sample.clip": "both:1.5"}),
        (
            {"sample.clip": True, "sample.threshold": 0.9},
            {"sample.clip": "dynamic:0.9"},
        ),
        ({"sample.guidance_scale": (1.0, 3.0)}, {"sample.w": (0.0, 2.0)}),
        ({"source.kind": "function", "source.path": "x"}, {"source.path": ""}),
        (
            {"finetune.source": "a/train", "finetune.steps": 7},
            {"train.init_from": "a/train", "train.steps": 7},
        ),
        ({"finetune.source": "", "finetune.steps": 7}, {"train.init_from": ""}),
        ({"stage": "finetune"}, {"stage": "train"}),
        ({"profile": 20}, {}),
    ],
    ids=str,
)
def test_what_an_old_field_meant_the_new_one_says(old, new):
    config = defaults()
    config.update(nested(old))
    changed = {
        path: value
        for path, value in flat(config.to_dict())
        if path not in FIELDS or value != FIELDS[path].default
    }
    expected = {
        path: value
        for path, value in new.items()
        if path not in FIELDS or value != FIELDS[path].default
    }
    assert changed == expected


def test_a_number_of_heads_that_no_size_tells_is_refused_with_what_to_set():
    with pytest.raises(ValueError, match=r"num_heads=2 is gone.*unet\.head_dim"):
        defaults().update({"model": {"num_heads": 2, "multipliers": (1, 2, 4)}})


def test_a_stage_may_have_a_field_of_the_loop_of_its_own():
    config = digits.get_config()
    config.update({"train": {"steps_per_call": 4, "sample_steps": 2}})
    check(config)
    assert config.loop.steps_per_call == section_of(config, "distill").steps_per_call
    assert section_of(config, "train").steps_per_call == 4
    assert section_of(config, "train").sample_steps == 2
    assert config.is_locked
    with pytest.raises(KeyError, match="steps_per_cal"):
        config.update({"train": {"steps_per_cal": 4}})
    with pytest.raises(KeyError, match="steps_per_call"):  # nothing to train there
        config.update({"sample": {"steps_per_call": 4}})


def test_the_config_of_an_older_workdir_is_that_of_today():
    older = json.loads(OLDER.read_text())["config"]
    now = json.loads(json.dumps(current(older)))
    ours = as_json(digits_guided.get_config())
    # Then the sampler and the clipping were named; today auto is the same for these.
    for field, named in (("sampler", "ddim"), ("clip", "x")):
        assert (now["sample"].pop(field), ours["sample"].pop(field)) == (named, "auto")
    for stage in TRAINING:
        now[stage] = {**now["loop"], **now[stage]}
        ours[stage] = {**ours["loop"], **ours[stage]}
    for config in (now, ours):
        # A student's grids are of its own steps, whatever this says.
        del config["loop"], config["distill"]["sample_steps"]
    assert now == ours


def test_what_is_of_today_stays_as_it_is():
    for config in (digits_guided.get_config(), celebahq256.get_config()):
        assert current(as_json(config)) == as_json(config)
    older = json.loads(OLDER.read_text())["config"]
    assert current(current(older)) == current(older)


def test_what_an_older_config_lacks_takes_the_value_that_it_had():
    older = json.loads(OLDER.read_text())["config"]
    whole = current(older)
    del older["model"]["convention"], older["source"], older["evaluate"]["judge"]
    del older["finetune"]
    now = current(older)
    assert now["model"] == whole["model"]
    assert now["source"] == {"path": "", "output": "x"}
    assert now["evaluate"]["judge"] is False


def test_a_config_that_finetuned_trained_with_its_values():
    older = json.loads(OLDER.read_text())["config"]
    older["finetune"] |= {"source": "a/train", "steps": 9, "grad_clip": 2.0}
    train = current(older)["train"]
    assert (train["init_from"], train["steps"], train["grad_clip"]) == ("a/train", 9, 2)
    assert train["label_dropout"] == older["train"]["label_dropout"]


def test_heads_of_an_older_file_are_its_heads_though_their_sizes_differ():
    older = json.loads(OLDER.read_text())["config"]
    older["model"] |= {
        "multipliers": [1, 2], "attention_resolutions": [4, 2], "style": "ddpm",
    }  # fmt: skip
    model = current({name: older[name] for name in ("model", "diffusion", "data")})
    shape = fields_of(model["model"]["unet"]["layout"])
    assert [level.num_heads for level in shape["levels"]] == [2, 2]
    assert [level.features for level in shape["levels"]] == [32, 64]
    assert shape["mid_heads"] == 2
    assert shape["style"] == DDPM


def test_a_part_of_an_older_config_stays_a_part():
    older = {
        "model": {"net": "unet", "unet": "{}", "patch": 1, "output": "eps"},
        "data": {"channels": 3, "image_size": 0},
        "train": {"label_dropout": 0.0},
        "guide": {"steps": 0},
    }
    model = {"net": "unet", "output": "eps", "unet": {"layout": "{}", "patch": 1}}
    assert current(older) == {**older, "model": model}
    assert older["model"]["unet"] == "{}"  # what was given is as it was


def test_the_heads_of_the_digits_are_as_many_as_they_were():
    config = digits.get_config()
    config.update({"model": {"num_heads": 2, "head_dim": 0}})
    assert make_model(config) is make_model(digits.get_config())


@pytest.mark.parametrize(
    ("words", "fields", "old"),
    [
        (["--config.train.steps=4"], {"train.steps": 4}, {}),
        (["--config.sample.from=x"], {"sample.from_file": "x"}, {}),
        (["--config.sample.from", "x"], {"sample.from_file": "x"}, {}),
        (["--config.sample.clip=none"], {"sample.clip": "none"}, {}),
        (["--config.sample.clip=False"], {}, {"sample.clip": False}),
        (["--noconfig.sample.clip"], {}, {"sample.clip": False}),
        (["--config.sample.clip", "--dry_run"], {}, {"sample.clip": True}),
        (
            ["--config.train.steps_per_call", "5", "--dry_run"],
            {"train.steps_per_call": 5},
            {},
        ),
        (["--config.distill.grad_clip=2"], {"distill.grad_clip": 2.0}, {}),
        (
            ["--config.guide.stratified_times"],
            {"guide.stratified_times": True},
            {},
        ),
        (
            ["--config.sample.guidance_scale=(2, 3)"],
            {},
            {"sample.guidance_scale": (2.0, 3.0)},
        ),
        (["--config.model.multipliers=2"], {}, {"model.multipliers": (2,)}),
        (
            ['--config.model.unet={"levels": []}'],
            {},
            {"model.unet": '{"levels": []}'},
        ),
    ],
    ids=str,
)
def test_fields_that_have_moved_are_set_apart(words, fields, old):
    command = understand(words)
    assert (command.fields, command.old) == (fields, old)
    assert command.flags.dry_run == ("--dry_run" in words)


@pytest.mark.parametrize(
    ("words", "train"),
    [
        (["--config=configs/digits.py:finetune", "--config.finetune.steps=7"], 7),
        (["--config", "configs/digits.py:finetune", "--config.train.steps=7"], 7),
        (["--config", "configs/digits.py:finetune", "--config.sample.steps=7"], None),
    ],
    ids=str,
)
def test_the_stage_finetune_is_training_with_its_defaults(words, train):
    command = parse(["launch.py", *words])
    assert command.config.stage == "train"
    expected = FINETUNE if train is None else {**FINETUNE, "steps": train}
    assert {name: command.config.train[name] for name in FINETUNE} == expected
    assert command.asked >= {f"train.{name}" for name in FINETUNE}


def test_a_misspelt_field_is_refused_with_the_nearest():
    message = r"no field train\.stepz; the nearest is train\.steps\."
    with pytest.raises(ValueError, match=message):
        understand(["--config=configs/digits.py", "--config.train.stepz=1"])
    with pytest.raises(KeyError, match=r"train\.stepz; the nearest is train\.steps"):
        digits.get_config().update({"train": {"stepz": 1}})
    with pytest.raises(KeyError, match="colour"):
        digits.get_config().update({"colour": {"sky": 1}})


def test_a_flag_of_another_type_is_refused_in_one_line():
    message = r"train.steps_per_call='x' must be a whole number of at least 1"
    with pytest.raises(ValueError, match=message):
        understand(["--config.train.steps_per_call=x"])


def test_the_command_understands_old_spellings_and_says_where_they_went(tmp_path):
    done = subprocess.run(
        [
            sys.executable, "launch.py", "--config=configs/digits.py:distill",
            "--config.distill.ladder=stochastic", "--config.model.num_heads=1",
            "--config.distill.steps_per_call=5", "--config.sample.clip_value=1.5",
            "--config.train.sample_steps=32", "--dry_run", f"--workdir={tmp_path}",
        ],
        capture_output=True,
        text=True,
        check=True,
    )  # fmt: skip
    config = json.loads(done.stdout)["config"]
    assert config["distill"]["method"] == "stochastic"
    assert config["distill"]["steps_per_call"] == 5
    assert config["loop"]["steps_per_call"] == 10
    assert config["train"]["sample_steps"] == 32
    assert config["model"]["unet"]["head_dim"] == 32
    assert config["sample"]["clip"] == "both:1.5"
    assert done.stderr.splitlines() == [
        "config: model.num_heads is now model.unet.head_dim; taken as"
        " model.unet.head_dim=32.",
        "config: distill.ladder is now distill.method; taken as"
        " distill.method='stochastic'.",
        "config: sample.clip_value is now sample.clip; taken as"
        " sample.clip='both:1.5'.",
    ]


def test_the_former_name_of_the_defaults_is_understood(capsys):
    from configs import paper

    assert as_json(paper.get_config("train")) == as_json(defaults("train"))
    assert "configs/defaults.py" in capsys.readouterr().err
