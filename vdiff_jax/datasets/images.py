"""Encoded pictures -> uint8 arrays of one size: the only place that decodes.

Whatever a file holds becomes grey or RGB, 8 bits: see `decode`. `Fit` then brings it
to the size of the model.
"""

import contextlib
import dataclasses
import io
from collections.abc import Iterator, Sequence
from typing import Literal, Protocol, TypeAlias, get_args, runtime_checkable

import numpy as np
import PIL.Image
import PIL.ImageOps
import PIL.JpegImagePlugin
import PIL.PngImagePlugin
import PIL.WebPImagePlugin  # by itself Pillow does not look for a named format

from vdiff_jax.datasets.source import Example

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
# Named, so that no other of Pillow's many decoders sees a foreign file.
FORMATS = ("JPEG", "PNG", "WEBP")

Resize: TypeAlias = Literal["area", "bilinear", "lanczos", "pad"]

# Pillow's filters are antialiased: their support grows with the reduction.
_FILTERS = {
    "area": PIL.Image.Resampling.BOX,
    "bilinear": PIL.Image.Resampling.BILINEAR,
    "lanczos": PIL.Image.Resampling.LANCZOS,
}


def decode(data: bytes) -> PIL.Image.Image:
    """The picture in a JPEG, PNG or WebP file, in mode L or RGB.

    It is turned as its EXIF says. 1-bit pictures become grey, palettes and CMYK become
    RGB, 16-bit grey is rounded to 8 bits, transparency is laid over white, and of an
    animation the first frame is taken.

    Raises:
      ValueError: If it cannot be read: damaged, cut off, another format, or more than
        179 million pixels, which is what Pillow takes for a decompression bomb.
    """
    try:
        picture = PIL.Image.open(io.BytesIO(data), formats=FORMATS)
        picture.load()
        PIL.ImageOps.exif_transpose(picture, in_place=True)
        return _grey_or_rgb(picture)
    except Exception as error:  # decoders of foreign bytes fail in many ways
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        if isinstance(error, PIL.UnidentifiedImageError):
            reason = "it is empty" if not data else "it begins like none of these"
        raise ValueError(f"cannot be read as JPEG, PNG or WebP ({reason})") from error


def _grey_or_rgb(picture: PIL.Image.Image) -> PIL.Image.Image:
    if picture.mode.startswith("I"):  # 16 bits; `convert` would clip them to 255
        levels = np.asarray(picture).astype(np.float64) / 257.0
        return PIL.Image.fromarray(np.rint(levels).astype(np.uint8))
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        white = PIL.Image.new("RGBA", picture.size, "white")
        return PIL.Image.alpha_composite(white, picture).convert("RGB")
    if picture.mode in ("L", "RGB"):
        return picture
    return picture.convert("L" if picture.mode == "1" else "RGB")


@dataclasses.dataclass(frozen=True)
class Fit:
    """Brings pictures to one shape.

    Attributes:
      size: Height and width of the result.
      channels: 1 or 3. Grey becomes RGB, and RGB becomes grey by its luma.
      resize: `area`, `bilinear` or `lanczos` resize the largest square in the centre,
        antialiased; `pad` puts the picture in the middle of black. A picture that has
        the size already is never changed.

    Raises:
      ValueError: If a value is none of these.
    """

    size: int
    channels: int
    resize: Resize = "area"

    def __post_init__(self) -> None:
        """Checks the values."""
        if self.size < 1:
            raise ValueError(f"The image size must be at least 1, got {self.size}.")
        if self.channels not in (1, 3):
            raise ValueError(f"Pictures have 1 or 3 channels, not {self.channels}.")
        if self.resize not in get_args(Resize):
            raise ValueError(
                f"Unknown resize {self.resize!r}; choose from {get_args(Resize)}."
            )

    def __call__(self, picture: PIL.Image.Image) -> np.ndarray:
        """The picture as uint8, [size, size, channels].

        Raises:
          ValueError: If it is larger than the size it shall be padded to.
        """
        picture = self._resized(picture)
        mode = "L" if self.channels == 1 else "RGB"
        array = np.asarray(picture if picture.mode == mode else picture.convert(mode))
        return array.reshape(self.size, self.size, self.channels)

    def _resized(self, picture: PIL.Image.Image) -> PIL.Image.Image:
        width, height = picture.size
        if (width, height) == (self.size, self.size):
            return picture
        if self.resize == "pad":
            if max(width, height) > self.size:
                raise ValueError(
                    f"is {width}x{height} and cannot be padded to {self.size}"
                )
            sheet = PIL.Image.new(picture.mode, (self.size, self.size))
            sheet.paste(picture, ((self.size - width) // 2, (self.size - height) // 2))
            return sheet
        side = min(width, height)
        left, top = (width - side) // 2, (height - side) // 2
        return picture.resize(
            (self.size, self.size),
            _FILTERS[self.resize],
            box=(left, top, left + side, top + side),
        )


@runtime_checkable
class Files(Protocol):
    """Random access to encoded pictures.

    It may also have `labels` and `classes`, as a source; and `read_many(indices)`, if
    it reads many at once faster than one by one.
    """

    def __len__(self) -> int:
        """Number of pictures."""
        ...

    def read(self, index: int) -> tuple[bytes, int | None]:
        """The bytes of a file, and its label if it has one."""
        ...

    def name(self, index: int) -> str:
        """What the file is called."""
        ...


class Pictures:
    """A source that reads, decodes and fits."""

    def __init__(self, files: Files, fit: Fit):
        """Args: where the bytes come from, and the shape they are brought to."""
        self._files, self._fit = files, fit
        self.labels: np.ndarray | None = getattr(files, "labels", None)
        self.classes: tuple[str, ...] | None = getattr(files, "classes", None)

    def __len__(self) -> int:
        """Number of pictures."""
        return len(self._files)

    def __getitem__(self, index: int) -> Example:
        """One picture.

        Raises:
          ValueError: Naming the file, if it cannot be read.
        """
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Example]:
        """Many pictures: first read, then decoded, which is faster than in turn."""
        read_many = getattr(self._files, "read_many", self._read_many)
        examples = []
        for index, file in zip(indices, read_many(indices), strict=True):
            with self._naming(index):
                examples.append(self._example(*file))
        return examples

    def _read_many(self, indices: Sequence[int]) -> list[tuple[bytes, int | None]]:
        files = []
        for index in indices:
            with self._naming(index):
                files.append(self._files.read(index))
        return files

    def _example(self, data: bytes, label: int | None) -> Example:
        image = self._fit(decode(data))
        return {"image": image} if label is None else {"image": image, "label": label}

    @contextlib.contextmanager
    def _naming(self, index: int) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError) as error:
            raise ValueError(
                f"{self.name(index)}: {error}. Repair or remove it; `python -m"
                " vdiff_jax.datasets.prepare` leaves such files out."
            ) from error

    def name(self, index: int) -> str:
        """The name of the file."""
        return self._files.name(index)
