import pathlib
import re
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import folder
from oracles import GaussianData
from vdiff_jax import losses, schedules
from vdiff_jax.distillation.method import Course, Denoisers, Setting
from vdiff_jax.from_config.data import make_source

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def _run_example(number):
    """The names that an example of the README leaves."""
    codes = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert len(codes) == 2
    scope = {}
    exec(codes[number], scope)
    return scope


@pytest.mark.slow
def test_the_first_example_draws_what_its_comment_says(monkeypatch):
    monkeypatch.chdir(ROOT)
    scope = _run_example(0)
    assert scope["images"].dtype == np.uint8
    assert scope["images"].shape == (16, 8, 8, 1)
    assert scope["images"].std() > 50  # digits, not grey


@pytest.mark.slow
def test_the_example_runs_as_it_stands():
    scope = _run_example(1)
    assert scope["loss"].shape == (8,)
    assert (scope["loss"] >= 0).all()
    assert scope["images"].shape == scope["x"].shape


def test_the_pages_it_names_are_there():
    for path in re.findall(r"\]\((?!http)(.*?)\)", README):
        assert (ROOT / path).is_file()


def test_the_pictures_it_shows_are_there():
    for path in re.findall(r"!\[.*?\]\((.*?)\)", README):
        assert (ROOT / path).is_file()


def test_the_source_of_the_docs_is_one(monkeypatch):
    text = (ROOT / "docs" / "data.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    module = types.ModuleType("my_data")
    exec(code, module.__dict__)
    monkeypatch.setitem(sys.modules, "my_data", module)
    config = folder.get_config()
    config.update(
        {
            "data": {"source": "my_data:make_source", "image_size": 32},
            "model": {"num_classes": 32},
        }
    )
    source = make_source(config, "train")
    assert len(source) > 900
    assert source[3]["image"].shape == (32, 32, 3)
    assert source[3]["label"] < 32


def test_the_method_that_contributing_shows_is_one():
    """A copy of the exact denoiser has nothing to learn, and another has."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    (code,) = re.findall(r"```python\n(from vdiff_jax.*?METHOD = .*?)```", text, re.S)
    shown = {}
    exec(code, shown)
    method = shown["METHOD"]
    assert [phase.num_steps for phase in method.phases(Course(8, 1, (4, 2)))] == [4, 2]
    exact, other = GaussianData().denoise, GaussianData(std=0.9).denoise
    draws = losses.draw(jax.random.key(0), 16)
    setting = Setting(schedules.cosine(), losses.snr_trunc, num_steps=4)
    for student, has_loss in ((exact, False), (other, True)):
        nets = Denoisers(student, exact, student)
        values = method.loss(nets, jnp.zeros((16, 2)), draws, setting)["loss"]
        assert (float(values.max()) > 1e-3) == has_loss
