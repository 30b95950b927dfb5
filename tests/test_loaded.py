"""The door for Python users draws what the command draws."""

import pathlib
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest

import launch
import tiny
import vdiff_jax
from configs import import_model
from vdiff_jax import diffusion, samplers
from vdiff_jax.distillation.role import BASE, student

pytestmark = pytest.mark.slow
ONE_STEP = (
    pathlib.Path(__file__).parents[1] / "data/pretrained/digits-1step.safetensors"
)


def _of_command(workdir, **sample):
    """The images that the sample stage writes."""
    config = tiny.config("sample", sample={**tiny.TINY["sample"], **sample})
    launch.launch(config, workdir)
    paths = sorted((workdir / "sample").glob("0*.png"))
    return np.stack([np.asarray(PIL.Image.open(path)) for path in paths])[..., None]


def test_a_file_draws_what_the_command_draws_of_it(tmp_path):
    images = vdiff_jax.load(ONE_STEP).sample(5, seed=3)
    assert images.dtype == np.uint8
    command = _of_command(tmp_path, from_file=str(ONE_STEP), num=5, seed=3)
    np.testing.assert_array_equal(images, command)


@pytest.mark.parametrize(
    ("folder", "role", "asked", "sample"),
    [
        (".", student(1), {}, {"steps": 1}),
        ("distill/0002", student(2), {}, {"steps": 2}),
        ("train", BASE, {"steps": 4}, {"steps": 4, "model": "base"}),
        ("distill/0002", student(2), {"eta": 0.5}, {"steps": 2, "eta": 0.5}),
        (
            "train",
            BASE,
            {"steps": 2, "sampler": "dpmpp_2m"},
            {"steps": 2, "model": "base", "sampler": "dpmpp_2m"},
        ),
    ],
)
def test_a_workdir_and_the_folders_of_its_runs_draw_what_the_command_draws(
    project, tmp_path, folder, role, asked, sample
):
    workdir = shutil.copytree(project, tmp_path / "project")
    model = vdiff_jax.load(str(workdir / folder))
    assert model.trained.role == role
    np.testing.assert_array_equal(
        model.sample(5, **asked), _of_command(workdir, **sample)
    )


@pytest.mark.parametrize("sampler", ["dpmpp_2m", "heun"])
def test_fresh_noise_is_of_ddim_alone(sampler, project):
    model = vdiff_jax.load(project / "train")
    images = [model.sample(2, steps=3, sampler=sampler, eta=eta) for eta in (0.0, 0.8)]
    np.testing.assert_array_equal(*images)


def test_an_image_depends_on_its_seed_and_number_alone():
    model = vdiff_jax.load(ONE_STEP)
    images = model.sample(7, seed=1)
    np.testing.assert_array_equal(model.sample(3, seed=1), images[:3])
    np.testing.assert_array_equal(model.sample(7, seed=1, batch_size=2), images)
    assert (model.sample(7, seed=2) != images).any(axis=(1, 2, 3)).all()


def test_its_parts_make_the_same_images():
    model = vdiff_jax.load(ONE_STEP)
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(0), i))(jnp.arange(4))
    z_1 = jax.vmap(
        lambda key: jax.random.normal(jax.random.fold_in(key, 0), (8, 8, 1))
    )(keys)
    x = samplers.sample(model.denoiser(), z_1, schedule=model.schedule, num_steps=1)
    images = diffusion.to_pixels(jnp.clip(x, -1.0, 1.0))
    np.testing.assert_allclose(
        np.asarray(images, int), np.asarray(model.sample(4), int), atol=1
    )


def test_it_says_what_it_is():
    text = repr(vdiff_jax.load(ONE_STEP))
    for fact in ("student of 1 step", "predicts v", "8 x 8 x 1", "249,668 parameters"):
        assert fact in text
    assert "digits-1step.safetensors" in text


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"num": 0}, r"sample\.num=0 must be"),
        ({"steps": -1}, r"sample\.steps=-1 must be"),
        ({"labels": (3,)}, r"sample\.labels=\(3,\) does not fit: this model"),
        ({"w": 1.0}, r"sample\.w=\(1\.0,\) needs a model that is conditioned"),
        ({"sampler": "euler"}, r"sample\.sampler='euler' must be"),
        ({"eta": 2.0}, r"sample\.eta=2\.0 must be"),
        ({"batch_size": 0}, r"sample\.batch_size=0 must be"),
    ],
)
def test_what_it_cannot_draw_is_refused(asked, message):
    with pytest.raises(ValueError, match=message):
        vdiff_jax.load(ONE_STEP).sample(**{"num": 1, **asked})


def test_what_is_no_model_is_refused(tmp_path):
    with pytest.raises(ValueError, match="There is no model in"):
        vdiff_jax.load(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="There is no file"):
        vdiff_jax.load(tmp_path / "none.safetensors")


def test_the_package_is_imported_without_jax():
    program = "import vdiff_jax, sys; assert 'jax' not in sys.modules; vdiff_jax.load"
    subprocess.run([sys.executable, "-c", program], check=True)
    assert vdiff_jax.__version__ == "0.2.0"


@pytest.mark.diffusers
def test_a_folder_of_diffusers_draws_what_its_import_draws(tmp_path):
    pytest.importorskip("diffusers")
    from diffusers_nets import KINDS, random_net, save

    folder = save(random_net(**KINDS["by default"]), tmp_path / "pipeline")
    images = vdiff_jax.load(folder).sample(2, steps=3)
    config = import_model.get_config("import")
    config.source.path = str(folder)
    launch.launch(config, tmp_path / "imported")
    imported = vdiff_jax.load(tmp_path / "imported").sample(2, steps=3)
    np.testing.assert_array_equal(images, imported)


@pytest.mark.diffusers
def test_a_folder_of_diffusers_may_have_all_its_files_at_its_root(tmp_path):
    """As google/ddpm-cifar10-32: its config.json is not that of a workdir."""
    diffusers = pytest.importorskip("diffusers")
    from diffusers_nets import KINDS, random_net, save

    net = random_net(**KINDS["by default"])
    pipeline = save(net, tmp_path / "pipeline")
    net.save_pretrained(tmp_path / "root")
    diffusers.DDIMScheduler().save_pretrained(tmp_path / "root")
    images = vdiff_jax.load(pipeline).sample(2, steps=2)
    found = vdiff_jax.load(tmp_path / "root").sample(2, steps=2)
    np.testing.assert_array_equal(found, images)
