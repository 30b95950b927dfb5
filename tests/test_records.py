import json
import sys
import time

import numpy as np
import PIL.Image
import pytest

from vdiff_jax.generation.grids import enlarge, save_image, tile
from vdiff_jax.training import records


def _lines(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def _open(folder, done=0, wandb_project=""):
    return records.Records(
        folder,
        name="test",
        done=done,
        num_updates=10,
        batch_size=2,
        wandb_project=wandb_project,
    )


def test_a_resumed_run_does_not_log_a_step_twice(tmp_path):
    with _open(tmp_path) as log:
        for step in (2, 4, 6):
            log.advance(2)
            log.scalars(step, {"loss": 1.0 / step})
    with _open(tmp_path, done=4) as log:
        log.scalars(6, {"loss": 9.0})
    assert [line["step"] for line in _lines(tmp_path)] == [2, 4, 6]
    assert _lines(tmp_path)[-1]["loss"] == 9.0
    assert any((tmp_path / "tensorboard").iterdir())


def test_the_curves_of_a_loss_are_all_that_is_not_of_the_loop(tmp_path):
    assert records.curves_of_loss(tmp_path) == {"loss": ([], [])}
    with _open(tmp_path) as log:
        names = ("grad_norm", "learning_rate", "images_per_second", "skipped")
        of_the_loop = dict.fromkeys(names, 1.0)
        log.scalars(2, {"gap": -0.5, "loss": 4.0, **of_the_loop})
        log.scalars(2, {"held_out_loss": 5.0, "held_out_gap": 0.25})
        log.scalars(4, {"gap": float("nan"), "loss": 3.0, **of_the_loop})
    curves = records.curves_of_loss(tmp_path)
    assert [*curves] == ["loss", "gap"]
    assert curves["loss"] == ([(2, 4.0), (4, 3.0)], [(2, 5.0)])
    assert curves["gap"] == ([(2, -0.5)], [(2, 0.25)])


@pytest.mark.parametrize("channels", [1, 3])
def test_a_grid_holds_every_image_in_its_place(tmp_path, channels):
    images = np.stack([np.full((4, 4, channels), 10 * i, np.uint8) for i in range(5)])
    sheet = tile(images, columns=3)
    assert sheet.shape == (9, 14, channels)
    assert (sheet[5:9, 5:9] == 40).all()
    assert (sheet[5:9, 10:] == 255).all()

    path = tmp_path / "folder" / "grid.png"
    save_image(path, enlarge(sheet, at_least=18))
    read = np.asarray(PIL.Image.open(path)).reshape(18, 28, channels)
    np.testing.assert_array_equal(read[::2, ::2], sheet)


def test_metrics_and_samples_go_to_weights_and_biases_too(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    images = np.zeros((4, 8, 8, 1), np.uint8)
    for done in (0, 2):  # a resumed run is the same run
        with _open(tmp_path, done=done, wandb_project="digits") as log:
            log.scalars(done + 2, {"loss": 0.5 + done})
            log.grid(done + 2, images)
    identities = set()
    for path in (tmp_path / "wandb").glob("offline-run-*/run-*.wandb"):
        identities.add(path.stem)
        # A process of its own writes the file, on a busy machine after the run's end.
        deadline = time.monotonic() + 30
        while b"samples" not in path.read_bytes() and time.monotonic() < deadline:
            time.sleep(0.1)
        content = path.read_bytes()
        assert b"loss" in content
        assert b"samples" in content
    assert len(identities) == 1


def test_weights_and_biases_must_be_installed(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ValueError, match=r"pip install 'vdiff_jax\[wandb\]'"):
        _open(tmp_path, wandb_project="digits")
