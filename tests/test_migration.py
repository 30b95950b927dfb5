"""What version 0.1 wrote opens and resumes; see old/README.md."""

import json
import pathlib
import tarfile

import jax
import numpy as np
import pytest
from jax import export

import launch
import tiny
import vdiff_jax
from vdiff_jax.distillation.role import BASE, student
from vdiff_jax.files import weights
from vdiff_jax.files.fingerprints import params_sha256
from vdiff_jax.interop import stablehlo
from vdiff_jax.workdir import layout
from vdiff_jax.workdir.layout import Project
from vdiff_jax.workdir.migration import SCHEMA, read_config
from vdiff_jax.workdir.trained import find

pytestmark = pytest.mark.slow
ARCHIVE = pathlib.Path(__file__).parent / "old" / "workdirs_0.1.tar.xz"


@pytest.fixture
def old(tmp_path):
    """The workdirs as they were written."""
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path


def _result(folder):
    return json.loads((folder / "result.json").read_text())


def _config(stage, **changes):
    train = {**tiny.TINY["train"], "steps": 4}
    return tiny.config(stage, train={**train, **changes})


@pytest.mark.parametrize(
    ("folder", "role"),
    [
        ("guided/train", "base model"),
        ("guided/guide", "guided model"),
        ("guided/distill/0001", "student of 1 step"),
        ("guided/distill_stochastic/0001", "stochastic student of 1 step"),
        ("whole/train", "base model"),
        ("finetuned/train", "base model"),
    ],
)
def test_every_finished_model_opens_with_the_parameters_it_had(old, folder, role):
    model = vdiff_jax.load(old / folder)
    assert role in repr(model)
    assert params_sha256(model.params) == _result(old / folder)["params_sha256"]
    assert model.sample(3, steps=2).shape == (3, 8, 8, 1)


def test_a_workdir_opens_at_its_student_of_the_fewest_steps(old):
    model = vdiff_jax.load(old / "guided")
    assert model.trained.role == student(1)
    assert model.trained.takes_w
    assert model.sample(2, w=1.0).shape == (2, 8, 8, 1)


@pytest.mark.parametrize("name", ["distilled-1step", "base-8step"])
def test_a_file_opens_with_the_parameters_of_its_run(old, name):
    folder = "distill/0001" if name.startswith("distilled") else "train"
    path = old / "guided/export" / name / "safetensors" / "model.safetensors"
    model = vdiff_jax.load(path)
    run = vdiff_jax.load(old / "guided" / folder)
    assert params_sha256(model.params) == _result(run.path)["params_sha256"]
    assert model.trained.role == run.trained.role
    np.testing.assert_array_equal(
        model.sample(2, seed=5, steps=1), run.sample(2, seed=5, steps=1)
    )


def test_a_whole_sampler_still_draws_what_its_student_draws(old):
    folder = old / "guided/export/distilled-1step/stablehlo"
    about = json.loads((folder / stablehlo.ABOUT).read_text())
    assert about["num_steps"] == 1
    sampler = export.deserialize(bytearray((folder / stablehlo.CODE).read_bytes()))
    z_1 = jax.random.normal(jax.random.key(0), (2, 8, 8, 1))
    label, w = np.array([3, 4], np.int32), np.ones(2, np.float32)
    x = sampler.call(weights.read(folder / stablehlo.WEIGHTS), z_1, label, w)
    model = vdiff_jax.load(old / "guided/distill/0001")
    x_hat = model.denoiser([3, 4], w=1.0)(z_1, model.schedule(jax.numpy.ones(2))).x
    np.testing.assert_allclose(x, np.clip(x_hat, -1.0, 1.0), atol=1e-4)


def test_a_stopped_run_goes_on_where_it_was(old, capsys):
    launch.launch(_config("train"), old / "stopped")
    result, whole = _result(old / "stopped/train"), _result(old / "whole/train")
    assert result["step"] == 4
    # Sums differ from one machine to another, and so does the last bit.
    for leaf, expected in zip(
        *(
            jax.tree.leaves(vdiff_jax.load(old / name / "train").params)
            for name in ("stopped", "whole")
        ),
        strict=True,
    ):
        np.testing.assert_allclose(leaf, expected, rtol=1e-4, atol=1e-5)
    # Random numbers are drawn otherwise since 0.2: the loss is of other noise.
    assert result["loss"] == pytest.approx(whole["loss"], rel=0.02)
    record = json.loads((old / "stopped/config.json").read_text())
    assert record["schema"] == SCHEMA


def test_a_finished_run_is_found_finished_and_another_config_refused(old, capsys):
    launch.launch(_config("train"), old / "whole")
    assert "train: finished" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"train\.learning_rate: 0\.001 there, 0\.01"):
        launch.launch(_config("train", learning_rate=0.01), old / "whole")


def test_students_are_distilled_from_an_old_base_model(old):
    distill = {**tiny.TINY["distill"], "start_steps": 2, "updates": "2"}
    config = tiny.config("distill", distill=distill, train={"steps": 4})
    launch.launch(config, old / "finetuned")
    role = student(1)
    trained = find(Project(config, old / "finetuned"), role)
    teacher = _result(layout.folder_of(old / "finetuned", BASE))["params_sha256"]
    assert _result(trained.folder)["teacher_sha256"] == teacher


def test_a_finetuned_base_is_one_that_trained_from_other_weights(old):
    config = read_config(old / "finetuned/config.json")
    assert config["stage"] == "train"
    assert config["train"]["init_from"] == "runs/whole/train"
    assert config["train"]["learning_rate"] == 1e-4
    assert "finetune" not in config


def test_a_workdir_of_a_later_version_is_refused(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"schema": SCHEMA + 1, "config": {}}))
    with pytest.raises(ValueError, match=f"of schema {SCHEMA + 1}.*knows up to"):
        launch.launch(_config("train"), tmp_path)
    path.write_text("{")
    with pytest.raises(ValueError, match="is damaged"):
        launch.launch(_config("train"), tmp_path)
