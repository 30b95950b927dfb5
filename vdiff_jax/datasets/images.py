"""Encoded images -> uint8 arrays of one size: the only place that decodes.

`decode` turns every file into a grey or RGB image of 8 bits. `Fit` then brings it to
the size of the model.
"""

import contextlib
import dataclasses
import io
from collections.abc import Iterator, Sequence
from typing import Literal, Protocol, TypeAlias, get_args, runtime_checkable

import numpy as np
import PIL.ExifTags
import PIL.Image
import PIL.JpegImagePlugin
import PIL.PngImagePlugin
import PIL.WebPImagePlugin  # by itself Pillow does not look for a named format

from vdiff_jax.datasets.metadata import orientation, without_metadata
from vdiff_jax.datasets.source import Example

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
# Named, so that no other of Pillow's many decoders sees a foreign file.
FORMATS = ("JPEG", "PNG", "WEBP")

_REPAIR = (
    "Repair or remove it; `python -m vdiff_jax.datasets.prepare` leaves such files out."
)
_DO_NOT_PAD = "Set data.resize=area, or a larger data.image_size."

Resize: TypeAlias = Literal["area", "bilinear", "lanczos", "pad"]

# Pillow's filters are antialiased: their support grows with the reduction.
_FILTERS = {
    "area": PIL.Image.Resampling.BOX,
    "bilinear": PIL.Image.Resampling.BILINEAR,
    "lanczos": PIL.Image.Resampling.LANCZOS,
}


# Orientation -> what brings the image upright.
_UPRIGHT = {
    2: PIL.Image.Transpose.FLIP_LEFT_RIGHT,
    3: PIL.Image.Transpose.ROTATE_180,
    4: PIL.Image.Transpose.FLIP_TOP_BOTTOM,
    5: PIL.Image.Transpose.TRANSPOSE,
    6: PIL.Image.Transpose.ROTATE_270,
    7: PIL.Image.Transpose.TRANSVERSE,
    8: PIL.Image.Transpose.ROTATE_90,
}


def decode(data: bytes) -> PIL.Image.Image:
    """The image in a JPEG, PNG or WebP file, in mode L or RGB.

    It is turned by its EXIF orientation. 1-bit images become grey, palettes and CMYK
    become RGB, 16-bit grey is rounded to 8 bits, transparency is laid over white, and
    an animation gives its first frame. Pixels decide: damaged metadata are passed over.

    Raises:
      ValueError: If it cannot be read: damaged, cut off, another format, or more than
        179 million pixels, which Pillow takes for a decompression bomb.
    """
    try:
        image = _loaded(data)
        turn = _UPRIGHT.get(_orientation(image, data))
        return _grey_or_rgb(image if turn is None else image.transpose(turn))
    except Exception as error:  # decoders of foreign bytes fail in many ways
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        if isinstance(error, PIL.UnidentifiedImageError):
            reason = "it is empty" if not data else "it begins like none of these"
        raise ValueError(f"cannot be read as JPEG, PNG or WebP ({reason})") from error


def _loaded(data: bytes) -> PIL.Image.Image:
    """The image as Pillow reads it or, if it does not, as it reads the pixels alone."""
    try:
        return _opened(data)
    except PIL.Image.DecompressionBombError:
        raise
    except Exception:
        bare = without_metadata(data)
        if bare == data:
            raise
        return _opened(bare)


def _opened(data: bytes) -> PIL.Image.Image:
    image = PIL.Image.open(io.BytesIO(data), formats=FORMATS)
    image.load()
    return image


def _orientation(image: PIL.Image.Image, data: bytes) -> int:
    """The orientation that Pillow reads or, if it cannot, that can be made out."""
    try:
        of_exif = image.getexif().get(PIL.ExifTags.Base.Orientation)
    except Exception:  # as above
        of_exif = None
    return of_exif if isinstance(of_exif, int) else orientation(data)


def _grey_or_rgb(image: PIL.Image.Image) -> PIL.Image.Image:
    if image.mode.startswith("I"):  # 16 bits; `convert` would clip them to 255
        levels = np.asarray(image).astype(np.float64) / 257.0
        return PIL.Image.fromarray(np.rint(levels).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = PIL.Image.new("RGBA", image.size, "white")
        return PIL.Image.alpha_composite(white, image).convert("RGB")
    if image.mode in ("L", "RGB"):
        return image
    return image.convert("L" if image.mode == "1" else "RGB")


@dataclasses.dataclass(frozen=True)
class Fit:
    """A function that brings images to one shape.

    Attributes:
      size: Height and width of the result.
      channels: 1 or 3. Grey becomes RGB, and RGB becomes grey by its luma.
      resize: `area`, `bilinear` or `lanczos` resize the largest square in the centre,
        antialiased; `pad` puts the image in the middle of black. An image that has
        the size already is never changed.

    Raises:
      ValueError: If a value is out of range.
    """

    size: int
    channels: int
    resize: Resize = "area"

    def __post_init__(self) -> None:
        """Checks the values."""
        if self.size < 1:
            raise ValueError(f"The image size must be at least 1, got {self.size}.")
        if self.channels not in (1, 3):
            raise ValueError(f"Images have 1 or 3 channels, not {self.channels}.")
        if self.resize not in get_args(Resize):
            raise ValueError(
                f"Unknown resize {self.resize!r}; choose from {get_args(Resize)}."
            )

    def __call__(self, image: PIL.Image.Image) -> np.ndarray:
        """The image as uint8, [size, size, channels].

        Raises:
          ValueError: If it is larger than the size to pad it to.
        """
        image = self._resized(image)
        mode = "L" if self.channels == 1 else "RGB"
        array = np.asarray(image if image.mode == mode else image.convert(mode))
        return array.reshape(self.size, self.size, self.channels)

    def _resized(self, image: PIL.Image.Image) -> PIL.Image.Image:
        width, height = image.size
        if (width, height) == (self.size, self.size):
            return image
        if self.resize == "pad":
            if max(width, height) > self.size:
                raise ValueError(
                    f"is {width}x{height} and cannot be padded to {self.size}"
                )
            sheet = PIL.Image.new(image.mode, (self.size, self.size))
            sheet.paste(image, ((self.size - width) // 2, (self.size - height) // 2))
            return sheet
        side = min(width, height)
        left, top = (width - side) // 2, (height - side) // 2
        return image.resize(
            (self.size, self.size),
            _FILTERS[self.resize],
            box=(left, top, left + side, top + side),
        )


@runtime_checkable
class Files(Protocol):
    """Random access to encoded images.

    It may also have `labels` and `classes`, as a source; and `read_many(indices)`, if
    it reads many at once faster than one by one.
    """

    def __len__(self) -> int:
        """Number of images."""
        ...

    def read(self, index: int) -> tuple[bytes, int | None]:
        """The bytes of a file, and its label if it has one."""
        ...

    def name(self, index: int) -> str:
        """The name of a file, for messages."""
        ...


class Images:
    """A source of images that are read from files, decoded and brought to one shape."""

    def __init__(self, files: Files, fit: Fit):
        """Keeps its parts; nothing is read.

        Args:
          files: The encoded images.
          fit: The shape that they are brought to.
        """
        self._files, self._fit = files, fit
        self.labels: np.ndarray | None = getattr(files, "labels", None)
        self.classes: tuple[str, ...] | None = getattr(files, "classes", None)

    def __len__(self) -> int:
        """Number of images."""
        return len(self._files)

    def __getitem__(self, index: int) -> Example:
        """One image.

        Raises:
          ValueError: Naming the file, if it cannot be read.
        """
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Example]:
        """Many images: first read, then decoded, which is faster than in turn."""
        read_many = getattr(self._files, "read_many", self._read_many)
        examples = []
        for index, file in zip(indices, read_many(indices), strict=True):
            examples.append(self._example(index, *file))
        return examples

    def _read_many(self, indices: Sequence[int]) -> list[tuple[bytes, int | None]]:
        files = []
        for index in indices:
            with self._naming(index, _REPAIR):
                files.append(self._files.read(index))
        return files

    def _example(self, index: int, data: bytes, label: int | None) -> Example:
        with self._naming(index, _REPAIR):
            decoded = decode(data)
        with self._naming(index, _DO_NOT_PAD):
            image = self._fit(decoded)
        return {"image": image} if label is None else {"image": image, "label": label}

    @contextlib.contextmanager
    def _naming(self, index: int, remedy: str) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError) as error:
            raise ValueError(f"{self.name(index)}: {error}. {remedy}") from error

    def name(self, index: int) -> str:
        """The name of the file."""
        return self._files.name(index)
