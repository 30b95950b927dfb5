"""The students that come with the repository."""

import json
import pathlib
import subprocess
import sys

import jax
import numpy as np
import PIL.Image
import pytest

import launch
import vdiff_jax
from configs import cifar10_small, digits
from vdiff_jax.from_config.data import make_source
from vdiff_jax.interop import model_file
from vdiff_jax.workdir import imported

pytestmark = pytest.mark.slow
PLACE = pathlib.Path(__file__).parents[1] / "data" / "pretrained"
FILES = {"base": 0, "4step": 4, "2step": 2, "1step": 1}


def _real():
    source = make_source(digits.get_config(), "train")
    return np.stack([source[i]["image"] for i in range(len(source))])


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_small_and_says_what_was_measured(name):
    path = PLACE / f"digits-{name}.safetensors"
    about = model_file.read_about(path)
    assert path.stat().st_size < 1.3e6
    assert about.num_steps == FILES[name]
    assert about.facts["params_sha256"]
    (distance,) = [
        row for row in about.facts["measured"] if row["metric"] == "frechet_classifier"
    ]
    readme = (PLACE / "README.md").read_text()
    assert f"{distance['value']:.1f}" in readme
    assert about.facts["config_sha256"][:12] in readme


def test_the_command_of_the_readme_draws(tmp_path):
    command = [
        sys.executable, "launch.py", "--config", "configs/digits.py:sample",
        f"--config.sample.from={PLACE / 'digits-1step.safetensors'}",
        f"--workdir={tmp_path}", "--config.sample.num=4",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "4 images in 1 steps" in done.stdout
    assert len(list((tmp_path / "sample").glob("0*.png"))) == 4


@pytest.mark.parametrize("name", ["4step", "2step", "1step"])
def test_what_a_student_draws_is_as_near_to_digits_as_digits_are(name, tmp_path):
    config = digits.get_config("sample")
    config.sample.update(
        {"from_file": str(PLACE / f"digits-{name}.safetensors"), "num": 100}
    )
    launch.launch(config, tmp_path)
    drawn = [
        np.asarray(PIL.Image.open(tmp_path / "sample" / f"{i:06d}.png"), float)
        for i in range(100)
    ]
    real = _real()[..., 0].astype(float).reshape(-1, 64)

    def nearest(pictures, others):
        squares = ((pictures[:, None] - others[None]) ** 2).mean(axis=2)
        return np.sqrt(np.median(squares.min(axis=1)))

    ours = nearest(np.reshape(drawn, (100, 64)), real)
    theirs = nearest(real[:100], real[100:])
    shuffled = np.random.default_rng(0).permuted(real[:100], axis=1)
    assert ours < 1.3 * theirs < nearest(shuffled, real)


@pytest.mark.parametrize(
    ("name", "num_steps", "steps"),
    [
        ("cifar10_gpu-8step", 8, 8),
        ("cifar10_small-base", 0, 16),
        *((f"cifar10_small-{n}step", n, n) for n in (8, 4, 2, 1)),
    ],
)
def test_photographs_are_drawn_by_class_and_each_class_is_another(
    name, num_steps, steps
):
    path = PLACE / f"{name}.safetensors"
    about = model_file.read_about(path)
    assert about.num_steps == num_steps
    assert about.facts["params_sha256"]
    model = vdiff_jax.load(path)
    draws = [
        model.sample(8, seed=0, labels=[label] * 8, w=0.5, steps=steps)
        for label in (0, 6, 8)
    ]
    assert draws[0].shape == (8, 32, 32, 3)
    aeroplane, frog, ship = (
        images.astype(float).mean(axis=(0, 1, 2)) for images in draws
    )
    # Of the same noise: there is more blue in the sky and at sea.
    assert aeroplane[2] - aeroplane[0] > frog[2] - frog[0] + 10
    assert ship[2] - ship[0] > frog[2] - frog[0] + 10


def test_the_base_of_photographs_is_a_teacher_for_students_of_ones_own(tmp_path):
    path = PLACE / "cifar10_small-base.safetensors"
    config = cifar10_small.get_config("import")
    config.source.path = str(path)
    launch.launch(config, tmp_path)
    in_workdir, in_file = vdiff_jax.load(tmp_path), vdiff_jax.load(path)
    for ours, theirs in zip(
        jax.tree.leaves(in_workdir.params), jax.tree.leaves(in_file.params), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)
    # That the file has no guidance of its own says nothing of what is made of it.
    assert imported.resolved(config, tmp_path).guide.steps == config.guide.steps > 0
    fields = json.loads((tmp_path / imported.FILE).read_text())
    fields["guide"] = {"steps": 0}  # as it was written once
    (tmp_path / imported.FILE).write_text(json.dumps(fields))
    assert imported.resolved(config, tmp_path).guide.steps == config.guide.steps
