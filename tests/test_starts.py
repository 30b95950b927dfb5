"""Pictures in place of noise: encoded, or with noise added."""

import numpy as np
import PIL.Image
import pytest

import launch
import tiny
import vdiff_jax
from vdiff_jax.datasets import digits as data

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def project(small_project):
    """What holds here holds whatever the network."""
    return small_project


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Five digits, in an .npy and as PNG files."""
    folder = tmp_path_factory.mktemp("pictures")
    source = data.digits("test")
    images = np.stack([source[i]["image"] for i in range(5)])
    np.save(folder / "digits.npy", images)
    for i, image in enumerate(images):
        PIL.Image.fromarray(image[..., 0]).save(folder / f"{i}.png")
    return folder, images.astype(int)


def _drawn(project, tmp_path, **sample):
    config = tiny.small("sample")
    config.sample.update({"model": "base", **sample})
    (tmp_path / "train").symlink_to(project / "train")
    (tmp_path / "config.json").write_bytes((project / "config.json").read_bytes())
    launch.launch(config, tmp_path)
    return np.stack(
        [
            np.asarray(PIL.Image.open(path), int)[..., None]
            for path in sorted((tmp_path / "sample").glob("0*.png"))
        ]
    )


@pytest.mark.parametrize("kind", ["npy", "folder"])
def test_pictures_are_encoded_and_decoded_to_themselves(
    project, pictures, tmp_path, kind
):
    folder, images = pictures
    path = folder / "digits.npy" if kind == "npy" else folder
    found = _drawn(project, tmp_path, image=str(path), steps=256, encode_steps=256)
    # The last step goes to x_hat, which for so short a training is not the picture.
    near = np.abs(found - images).mean()
    assert near < 0.5 * np.abs(found - images[::-1]).mean()


def test_a_student_that_was_distilled_to_encode_does(
    project, pictures, tmp_path, capsys
):
    folder, _ = pictures
    distill = {**tiny.TINY["distill"], "method": "encode"}
    config = tiny.small("distill", distill=distill)
    config.distill.teacher = str(project / "train")
    launch.launch(config, tmp_path)
    student = tmp_path / "distill_encode" / "0004"
    assert (student / "result.json").exists()
    assert not (student / "samples").exists()  # it draws nothing from noise
    found = _drawn(
        project, tmp_path, image=str(folder / "digits.npy"), steps=4, encode_steps=4
    )
    assert found.shape == (5, 8, 8, 1)
    assert f"encoding in 4 steps with {student}" in capsys.readouterr().out
    with pytest.raises(ValueError, match="makes noise of images: it draws none"):
        vdiff_jax.load(student).sample(1)


def test_the_less_noise_the_nearer_to_the_picture(project, pictures, tmp_path):
    folder, images = pictures
    distances = []
    for from_t in (0.0625, 0.5, 0.9375):
        place = tmp_path / str(from_t)
        place.mkdir()
        found = _drawn(
            project, place, image=str(folder / "digits.npy"), steps=16, from_t=from_t
        )
        distances.append(np.abs(found - images).mean())
    assert distances[0] < distances[1] < distances[2]


def test_each_picture_has_noise_of_its_own(project, pictures, tmp_path):
    _, images = pictures
    np.save(tmp_path / "same.npy", images[[0] * 5].astype(np.uint8))
    same = str(tmp_path / "same.npy")
    found = _drawn(project, tmp_path, image=same, steps=2, from_t=0.5)
    assert all(np.abs(found[0] - other).mean() > 1 for other in found[1:])


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        ({"image": "nowhere.png"}, "nowhere.png"),
        ({"from_t": 0.5, "steps": 2}, "set sample.image"),
        ({"from_t": 0.3, "steps": 2, "image": "x.npy"}, "one of the times i / "),
        ({"from_t": 0.0, "image": "x.npy"}, "a number above 0 and up to 1"),
    ],
)
def test_what_cannot_be_started_from_is_refused(project, tmp_path, sample, message):
    with pytest.raises(ValueError, match=message):
        _drawn(project, tmp_path, **sample)


def test_pictures_of_another_size_are_refused(project, tmp_path):
    np.save(tmp_path / "large.npy", np.zeros((2, 9, 9, 1), np.uint8))
    with pytest.raises(ValueError, match=r"uint8 of shape \(2, 9, 9, 1\)"):
        _drawn(project, tmp_path, image=str(tmp_path / "large.npy"))
