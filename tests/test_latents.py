"""Models of latents, from images or latents to images again."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest

import launch
import tiny
import tiny_autoencoder
import vdiff_jax
from vdiff_jax.codec import AT_ONCE, Codec
from vdiff_jax.datasets.prepare.task import Task
from vdiff_jax.datasets.prepare.work import prepare
from vdiff_jax.from_config.check import check
from vdiff_jax.from_config.data import make_images
from vdiff_jax.from_config.model import make_codec


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_autoencoder.write(tmp_path_factory.mktemp("vae") / "vae")[0]


@pytest.fixture(scope="module")
def codec(folder):
    return make_codec(_config("train", folder))


def _config(stage, folder, **data):
    made = tiny.small(stage)
    made.data.update({"autoencoder": str(folder), "image_size": 4, "channels": 2})
    made.data.update(data)
    return made


def _images(num):
    return np.random.default_rng(0).integers(0, 256, (num, 8, 8, 1), np.uint8)


def test_images_are_encoded_to_moments_and_decoded_to_images(codec):
    assert isinstance(codec, Codec)
    moments = codec.of_images(_images(3))
    assert moments.shape == (3, 4, 4, 4)
    mean = codec.to_x(jnp.asarray(moments))
    np.testing.assert_allclose(mean, 0.5 * moments[..., :2], rtol=1e-6)
    images = codec.to_images(np.asarray(codec.from_x(mean)))
    assert images.dtype == np.uint8
    assert images.shape == (3, 8, 8, 1)
    assert images.std() > 0


def test_an_image_does_not_depend_on_its_part(codec):
    images = _images(AT_ONCE + 3)
    together = codec.of_images(images)
    alone = np.concatenate([codec.of_images(image[None]) for image in images[-4:]])
    np.testing.assert_allclose(together[-4:], alone, atol=1e-4)
    steps = codec.to_images(together[..., :2].reshape(1, len(images), 4, 4, 2))
    assert steps.shape == (1, len(images), 8, 8, 1)


def test_images_in_a_step_are_those_that_were_encoded_before(codec):
    images = _images(5)
    x = jax.jit(lambda params, data: codec.to_x(data, params))(codec.params(), images)
    expected = codec.to_x(jnp.asarray(codec.of_images(images)))
    np.testing.assert_allclose(x, expected, atol=1e-4)


@pytest.fixture(scope="module")
def workdir(folder, tmp_path_factory):
    """A base model and students of latents, from images that are encoded on the way."""
    workdir = tmp_path_factory.mktemp("latents") / "digits"
    config = _config("train,distill,sample,evaluate,export", folder)
    config.distill.start_steps = 2
    config.evaluate.update(
        {"features": ("pixels",), "likelihood_num": 0, "steps": (1,)}
    )
    config.export.update({"steps": 1, "formats": ("safetensors",)})
    config.sample.steps = 1
    launch.launch(config, workdir)
    return workdir


@pytest.mark.slow
def test_everything_downstream_shows_images(workdir):
    samples = sorted((workdir / "sample").glob("*.png"))
    assert len(samples) == 5
    for path in (samples[0], *(workdir / "train" / "samples").glob("*.png")):
        with PIL.Image.open(path) as image:
            assert image.mode == "L"
    with PIL.Image.open(samples[0]) as image:
        assert image.size == (8, 8)
    rows = json.loads((workdir / "evaluate" / "ladder.json").read_text())
    assert {row["metric"] for row in rows} >= {"frechet_pixels"}
    assert (workdir / "evaluate" / "report.html").exists()


@pytest.mark.slow
def test_a_file_of_a_model_of_latents_draws_images(workdir, folder):
    (path,) = (workdir / "export").rglob("*.safetensors")
    model = vdiff_jax.load(path)
    images = model.sample(3, seed=0)
    assert images.shape == (3, 8, 8, 1)
    assert images.dtype == np.uint8


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_stored_moments_train_as_the_images_that_they_are_of(
    folder, codec, tmp_path, dtype
):
    """A step draws the same latents whether it encodes itself or not."""
    for stored in ("images", dtype):
        data = {"source": "npz", "path": str(tmp_path), "train_split": stored}
        data |= {"test_split": stored, "flip": False}
        array = _images(40)
        if stored != "images":
            array = codec.of_images(array).astype(dtype)
        np.savez(tmp_path / f"{stored}.npz", images=array)
        launch.launch(_config("train", folder, **data), tmp_path / "runs" / stored)
    first, second = (
        json.loads((tmp_path / "runs" / name / "train" / "result.json").read_text())
        for name in ("images", dtype)
    )
    assert second["loss"] == pytest.approx(
        first["loss"], rel=1e-3 if dtype == "float16" else 1e-5
    )
    assert second["loss"] != first["loss"] or dtype == "float32"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"channels": 3}, r"data\.channels=3, but the latents of data\.autoencoder"),
        ({"latent_scale": 0.2}, r"latent_scale=0\.2, but scaling_factor=0\.5"),
        ({"latent_shift": 1.0}, r"data\.latent_shift=1\.0, but that of"),
        ({"autoencoder": "nowhere"}, r"data\.autoencoder='nowhere'"),
        ({"image_size": 5}, r"has shape \(8, 8, 1\), but data\.image_size"),
    ],
)
def test_what_does_not_fit_the_autoencoder_is_refused(
    folder, tmp_path, changes, message
):
    with pytest.raises(ValueError, match=message):
        launch.launch(_config("train", folder, **changes), tmp_path / "workdir")


def test_inception_sees_the_images_and_not_the_latents(folder):
    config = _config("evaluate", folder)
    config.evaluate.update({"features": ("inception",), "inception_weights": "x.pth"})
    config.evaluate.likelihood_num = 0
    check(config)
    config.data.update({"autoencoder": "", "image_size": 8})
    with pytest.raises(ValueError, match="and these have 2 channels"):
        check(config)


def test_latents_have_no_bits_per_dimension(folder):
    config = _config("evaluate", folder)
    config.evaluate.likelihood_num = 8
    with pytest.raises(ValueError, match=r"likelihood_num=8: .* one of latents"):
        check(config)


def test_latents_are_evaluated_with_a_decoder_only(tmp_path):
    config = tiny.small("evaluate")
    config.data.latent_scale = 0.2
    with pytest.raises(ValueError, match=r"set data\.autoencoder to the folder"):
        launch.launch(config, tmp_path / "workdir")


@pytest.mark.slow
def test_without_its_autoencoder_a_file_draws_latents(
    workdir, folder, tmp_path, capsys
):
    (path,) = (workdir / "export").rglob("*.safetensors")
    hidden = folder.with_name("hidden")
    folder.rename(hidden)
    try:
        latents = vdiff_jax.load(path).sample(3, seed=0)
    finally:
        hidden.rename(folder)
    assert latents.shape == (3, 4, 4, 2)
    assert latents.dtype == np.float32
    assert "draws latents, unless data.autoencoder" in capsys.readouterr().err


@pytest.mark.slow
def test_the_reconstruction_is_measured_beside_the_models(workdir):
    facts = json.loads((workdir / "evaluate" / "reference.json").read_text())
    assert "autoencoder" in facts[0]
    (values,) = (each["reconstruction"] for each in facts if "reconstruction" in each)
    rows = json.loads((workdir / "evaluate" / "ladder.json").read_text())
    assert values.keys() >= {row["metric"] for row in rows}
    # A random autoencoder loses much.
    assert values["frechet_pixels"] > 3 * facts[0]["floor"]["frechet_pixels"]
    page = (workdir / "evaluate" / "report.html").read_text()
    assert "real images, encoded and decoded" in page


@pytest.mark.slow
def test_latents_are_compared_with_their_images_or_decoded(folder, codec, tmp_path):
    images = _images(40)
    latents = codec.of_images(images)
    for name, array in (("images", images), ("latents", latents)):
        (tmp_path / name).mkdir()
        for split in ("train", "test"):
            np.savez(tmp_path / name / f"{split}.npz", images=array)
    stored = {"source": "npz", "path": str(tmp_path / "latents"), "flip": False}
    distances = {}
    for images_of in ("", str(tmp_path / "images")):
        config = _config("train,evaluate", folder, **stored)
        config.evaluate.update(
            {"features": ("pixels",), "likelihood_num": 0, "steps": (1,), "num": 24}
        )
        config.evaluate.images = images_of
        name = "images" if images_of else "decoded"
        launch.launch(config, tmp_path / name)
        facts = json.loads(
            (tmp_path / name / "evaluate" / "reference.json").read_text()
        )
        assert any("reconstruction" in each for each in facts) == bool(images_of)
        rows = json.loads((tmp_path / name / "evaluate" / "ladder.json").read_text())
        distances[name] = rows[0]["value"]
    assert distances["images"] != distances["decoded"]


@pytest.mark.parametrize("format", ["npz", "lmdb"])
def test_images_that_were_prepared_are_taken_for_what_they_are(
    folder, tmp_path, format
):
    photos = tmp_path / "photos"
    for i, split in enumerate(("train", "test")):
        (photos / split).mkdir(parents=True)
        PIL.Image.fromarray(_images(2)[i, ..., 0]).save(photos / split / "0.png")
    config = _config("train,evaluate", folder)
    prepare(Task(photos, tmp_path / "out", (8,), format, ("train", "test"), channels=1))
    for path in (photos, tmp_path / "out"):
        config.evaluate.images = str(path)
        for i, split in enumerate(("train", "test")):
            image = make_images(config, split)[0]["image"]
            np.testing.assert_array_equal(image, _images(2)[i])
