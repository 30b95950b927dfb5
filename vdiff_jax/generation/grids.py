"""Images laid out side by side, and written as PNG."""

import pathlib

import numpy as np
import PIL.Image
from jaxtyping import Num, UInt8

from vdiff_jax import parallel
from vdiff_jax.files.atomic import replacing


def to_show(
    images: Num[np.ndarray, " n h w channels"],
) -> UInt8[np.ndarray, " n h w c"]:
    """Images as they are; of latents up to three channels, in false colours."""
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
    """Lays images out row by row on a white sheet.

    Args:
      images: The images, all of one size.
      columns: Images in a row.
      gap: Pixels between two images.
    """
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
    """Writes a PNG, whole or not at all: grey for one channel, RGB for three."""
    if not parallel.is_main():
        return
    pixels = image[..., 0] if image.shape[-1] == 1 else image
    with replacing(path) as half:
        PIL.Image.fromarray(pixels).save(half, format="png")
