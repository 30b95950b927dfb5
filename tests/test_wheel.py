"""The wheel has all that a user needs who has no repository."""

import os
import pathlib
import shutil
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow
ROOT = pathlib.Path(__file__).parents[1]
PROGRAM = """
import pathlib, sys
import vdiff_jax

site, weights = sys.argv[1:]
assert pathlib.Path(vdiff_jax.__file__).is_relative_to(site), vdiff_jax.__file__
model = vdiff_jax.load(weights)
assert model.sample(2).shape == (2, 8, 8, 1)
from vdiff_jax.evaluation import page
assert "</html>" in page.render(page.Content(title="empty"))
assert not {"configs", "launch", "tests"} & set(sys.modules)
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder with the package of the wheel, and nothing else of the repository."""
    folder = tmp_path_factory.mktemp("wheel")
    # A copy: what an earlier build left in the repository would get into the wheel.
    shutil.copytree(ROOT / "vdiff_jax", folder / "source" / "vdiff_jax")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / "source")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    build = [*pip, "wheel", "--no-deps", "--wheel-dir", str(folder)]
    subprocess.run([*build, str(folder / "source")], check=True)
    (wheel,) = folder.glob("vdiff_jax-*.whl")
    install = [*pip, "install", "--no-deps", "--target", str(folder / "site")]
    subprocess.run([*install, str(wheel)], check=True)
    return folder / "site"


def _run(site, *words):
    # Of the environment only the packages that the wheel depends on.
    environment = {**os.environ, "PYTHONPATH": str(site)}
    command = [sys.executable, *words]
    return subprocess.run(
        command, cwd=site.parent, env=environment, capture_output=True, text=True
    )


def test_a_model_is_loaded_and_the_page_drawn_outside_of_the_repository(site):
    weights = ROOT / "data" / "pretrained" / "digits-1step.safetensors"
    done = _run(site, "-c", PROGRAM, str(site), str(weights))
    assert done.returncode == 0, done.stderr


def test_the_command_that_prepares_images_is_there(site):
    done = _run(site, "-m", "vdiff_jax.datasets.prepare", "--help")
    assert done.returncode == 0, done.stderr
    assert "python -m vdiff_jax.datasets.prepare photos/" in done.stdout
