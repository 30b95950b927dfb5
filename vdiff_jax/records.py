"""What a run leaves for people: metrics, a progress bar, grids of pictures, JSON.

Of several hosts only one writes; the others call the same functions in vain.
"""

import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import PIL.Image
import tensorboardX
import tqdm
from jaxtyping import Num, UInt8

from vdiff_jax import parallel


class Records:
    """Metrics of one run, to `metrics.jsonl`, to TensorBoard and to a progress bar."""

    def __init__(
        self,
        folder: pathlib.Path,
        *,
        name: str,
        done: int,
        num_updates: int,
        batch_size: int,
    ):
        """Opens the files in `folder`, dropping what was logged beyond step `done`."""
        self._metrics = folder / "metrics.jsonl"
        self._samples = folder / "samples"
        self._batch_size = batch_size
        self._folder, self._identity = folder, None
        self._board = None
        if parallel.is_main():
            folder.mkdir(parents=True, exist_ok=True)
            self._identity = _identity(folder)
            _drop_later_lines(self._metrics, done)
            self._board = tensorboardX.SummaryWriter(
                str(folder / "tensorboard"), purge_step=done + 1
            )
        self._bar = tqdm.tqdm(
            desc=name,
            initial=done * batch_size,
            total=num_updates * batch_size,
            unit=" images",
            unit_scale=True,
            dynamic_ncols=True,
            disable=not parallel.is_main(),
        )

    def advance(self, updates: int) -> None:
        """Moves the progress bar."""
        self._bar.update(updates * self._batch_size)

    def check_folder(self) -> None:
        """Refuses to go on where the folder is not the one that was opened.

        Others would make it again, and leave half a run in it.

        Raises:
          FileNotFoundError: If it was removed or replaced.
        """
        if self._identity not in (None, _identity(self._folder)):
            raise FileNotFoundError(f"{self._folder} was removed while in use.")

    def say(self, text: str) -> None:
        """Prints a line above the progress bar."""
        if parallel.is_main():
            tqdm.tqdm.write(text)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Logs one line of metrics."""
        if self._board is None:
            return
        self.check_folder()
        with self._metrics.open("a") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")
        for name, value in values.items():
            self._board.add_scalar(name, value, step)
        if "loss" in values:
            self._bar.set_postfix(_shown(values), refresh=False)

    def grid(self, step: int, images: UInt8[np.ndarray, " n h w c"]) -> None:
        """Saves a square of samples as `samples/<step>.png`."""
        if self._board is None:
            return
        grid = tile(images, columns=int(np.ceil(np.sqrt(len(images)))))
        save_image(self._samples / f"{step:08d}.png", enlarge(grid))
        self._board.add_image("samples", grid, step, dataformats="HWC")

    def __enter__(self) -> "Records":
        """Nothing is opened that was not open."""
        return self

    def __exit__(self, *error: object) -> None:
        """Closes the bar and the TensorBoard file."""
        self._bar.close()
        if self._board is not None:
            self._board.close()


def _identity(folder: pathlib.Path) -> tuple[int, int] | None:
    """What tells a folder from another of the same name."""
    try:
        found = folder.stat()
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


def _shown(values: Mapping[str, float]) -> dict[str, str]:
    """What the progress bar says beside images and time left."""
    names = {
        "loss": ("loss", ".4g"),
        "updates_per_second": ("updates/s", ".3g"),
        "device_memory_gib": ("GiB", ".1f"),
        "model_flops_utilization": ("MFU", ".1%"),
    }
    return {
        short: format(values[name], form)
        for name, (short, form) in names.items()
        if name in values
    }


def _drop_later_lines(path: pathlib.Path, step: int) -> None:
    """A resumed run logs the steps after its checkpoint again."""
    if path.exists():
        # A killed run, or a full disk, leaves half a line.
        lines = path.read_text(errors="replace").splitlines(keepends=True)
        whole = [line for line in lines if line.endswith("}\n")]
        kept = [line for line in whole if json.loads(line)["step"] <= step]
        write_text(path, "".join(kept))


def to_show(
    images: Num[np.ndarray, " n h w channels"],
) -> UInt8[np.ndarray, " n h w c"]:
    """Pictures as they are; of latents up to three channels, in false colours."""
    if images.dtype == np.uint8:
        return images
    images = images[..., : 3 if images.shape[-1] >= 3 else 1]
    low, high = images.min(axis=(0, 1, 2)), images.max(axis=(0, 1, 2))
    return np.round(255 * (images - low) / np.maximum(high - low, 1e-6)).astype(
        np.uint8
    )


def tile(
    images: UInt8[np.ndarray, " n h w c"], columns: int, gap: int = 1
) -> UInt8[np.ndarray, " height width c"]:
    """Lays images out row by row on a white sheet, `gap` pixels apart."""
    count, height, width, channels = images.shape
    rows = -(-count // columns)
    sheet = np.full(
        (rows * (height + gap) - gap, columns * (width + gap) - gap, channels),
        255,
        np.uint8,
    )
    for i, image in enumerate(images):
        top, left = i // columns * (height + gap), i % columns * (width + gap)
        sheet[top : top + height, left : left + width] = image
    return sheet


def enlarge(
    image: UInt8[np.ndarray, " h w c"], at_least: int = 512
) -> UInt8[np.ndarray, " height width c"]:
    """Repeats pixels by the smallest whole factor that reaches `at_least` in height."""
    factor = max(1, -(-at_least // image.shape[0]))
    return image.repeat(factor, axis=0).repeat(factor, axis=1)


def save_image(path: pathlib.Path, image: UInt8[np.ndarray, " h w c"]) -> None:
    """Writes a PNG: grey for one channel, RGB for three."""
    if not parallel.is_main():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(path)


def write_json(path: pathlib.Path, value: Any) -> None:
    """Writes JSON so that a reader sees the old file or the new one, never half."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def write_text(path: pathlib.Path, text: str) -> None:
    """Replaces a file at once."""
    if not parallel.is_main():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
