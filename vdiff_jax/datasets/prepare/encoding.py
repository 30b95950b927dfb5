"""How `prepare` encodes what its workers have decoded, with an autoencoder."""

import collections
import dataclasses
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from vdiff_jax.datasets.names import mirrored

DTYPES = ("float16", "float32")
# As a file of this size is easy to copy, and a few hundred hold millions of latents.
SHARD_BYTES = 2**28

Named = list[tuple[str, tuple[bytes, ...]]]


@runtime_checkable
class Encoder(Protocol):
    """The encoding half of an autoencoder, on all devices.

    Attributes:
      about: {"path", "sha256", "scale", "shift", "channels", "factor"}: the folder and
        the hash of the weights; x of a diffusion model is scale * (latent - shift);
        channels of a latent; size of an image over that of its latent.
      image_channels: Channels of an image.
      encoded_channels: Channels of what `encode` gives: those of a latent or, for the
        mean and then the logarithm of the variance, twice as many.
    """

    about: dict[str, Any]
    image_channels: int
    encoded_channels: int

    def encode(self, images: np.ndarray) -> Callable[[], np.ndarray]:
        """Begins to encode images, and does not wait.

        Args:
          images: uint8, [images, size, size, channels].

        Returns:
          A function that waits: float32, [images, size / factor, size / factor,
          encoded_channels].
        """
        ...


@dataclasses.dataclass(frozen=True)
class Encoding:
    """What is made of images beside resizing them.

    Attributes:
      encoder: The encoder.
      dtype: One of `DTYPES`, in which latents are stored.
      mirror: If true, a mirrored copy of each image follows it: image i has the numbers
        2 i and 2 i + 1.
      contexts: File of contexts (given_contexts.py), or None.
      shard_bytes: The most bytes of latents in a file.
    """

    encoder: Encoder
    dtype: str = "float16"
    mirror: bool = False
    contexts: pathlib.Path | None = None
    shard_bytes: int = SHARD_BYTES

    @property
    def copies(self) -> int:
        """Latents of each image."""
        return 2 if self.mirror else 1

    def names(self, names: Sequence[str]) -> list[str]:
        """The name of each latent, from those of the images."""
        if not self.mirror:
            return list(names)
        return [each for name in names for each in (name, mirrored(name))]

    def latent_sizes(self, sizes: Sequence[int]) -> list[int]:
        """Heights and widths of the latents of images of these."""
        return [size // self.encoder.about["factor"] for size in sizes]

    def check(self, sizes: Sequence[int], channels: int, format: str) -> None:
        """Refuses images that the autoencoder does not take.

        Args:
          sizes: Heights and widths of the images.
          channels: Their channels.
          format: How the output is stored.

        Raises:
          ValueError: In one line.
        """
        factor, path = self.encoder.about["factor"], self.encoder.about["path"]
        if other := [size for size in sizes if size % factor]:
            raise ValueError(
                f"--size={other[0]} does not divide by {factor}, as images for the"
                f" autoencoder of {path} must: use"
                f" {max(round(other[0] / factor), 1) * factor}."
            )
        if channels != self.encoder.image_channels:
            raise ValueError(
                f"--channels={channels}, but the autoencoder of {path} takes images of"
                f" {self.encoder.image_channels} channels."
            )
        if self.dtype not in DTYPES:
            raise ValueError(f"--dtype={self.dtype} must be one of {DTYPES}.")
        if format != "npz":
            raise ValueError(
                f"--format={format} holds images; with --encode latents are stored as"
                " npz: leave --format out."
            )


def encoded(
    decoded: Iterable[tuple[Any, Named]], encoding: Encoding, shapes: Sequence[Any]
) -> Iterator[tuple[Any, list[tuple[bytes, ...]]]]:
    """Chunks in their order, with the latents in the place of the pixels.

    The devices are at work on a chunk while the one before is written.

    Args:
      decoded: Anything of a chunk, and its images by name: for each its pixels at each
        size.
      encoding: How to encode.
      shapes: [height, width, channels] of the images at each size.

    Yields:
      What came with the chunk, and its latents in the same form; mirrored copies follow
      their images.

    Raises:
      ValueError: Naming an image whose latent is not finite, or beyond the dtype.
    """
    waiting: collections.deque[tuple[Any, list[str], list[Any]]] = collections.deque()
    for of_chunk, images in decoded:
        names = encoding.names([name for name, _ in images])
        begun = []
        for k, shape in enumerate(shapes if images else ()):
            pixels = _stacked([of_sizes[k] for _, of_sizes in images], shape)
            begun.append(encoding.encoder.encode(_copied(pixels, encoding)))
        waiting.append((of_chunk, names, begun))
        if len(waiting) > 1:
            yield _ended(*waiting.popleft(), encoding)
    while waiting:
        yield _ended(*waiting.popleft(), encoding)


def _stacked(pixels: Sequence[bytes], shape: tuple[int, int, int]) -> np.ndarray:
    return np.frombuffer(b"".join(pixels), np.uint8).reshape(len(pixels), *shape)


def _copied(images: np.ndarray, encoding: Encoding) -> np.ndarray:
    if not encoding.mirror:
        return images
    pairs = np.stack([images, images[:, :, ::-1]], axis=1)
    return pairs.reshape(-1, *images.shape[1:])


def _ended(
    of_chunk: Any,
    names: list[str],
    begun: Sequence[Callable[[], np.ndarray]],
    encoding: Encoding,
) -> tuple[Any, list[tuple[bytes, ...]]]:
    of_sizes = [_stored(latents(), names, encoding.dtype) for latents in begun]
    latents = zip(*of_sizes, strict=True)
    return of_chunk, [tuple(x.tobytes() for x in each) for each in latents]


def _stored(latents: np.ndarray, names: Sequence[str], dtype: str) -> np.ndarray:
    largest = np.abs(latents).reshape(len(latents), -1).max(axis=1)
    wrong = ~(largest <= np.finfo(dtype).max)
    if wrong.any():
        at = int(np.argmax(wrong))
        name, value = names[at], largest[at]
        if not np.isfinite(value):
            raise ValueError(
                f"{name} is encoded to a latent that is not finite: take it away, or"
                " use another autoencoder."
            )
        raise ValueError(
            f"{name} is encoded to a latent of {value:.4g}, beyond {dtype}: use --dtype"
            " float32."
        )
    return latents.astype(np.dtype(dtype).newbyteorder("<"))
