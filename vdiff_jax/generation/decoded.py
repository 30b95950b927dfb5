"""A source of latents as the images that they stand for."""

from collections.abc import Sequence

import numpy as np

from vdiff_jax.codec import Autoencoder
from vdiff_jax.datasets.source import Example, Source, name_of, read_many


class Decoded:
    """A source whose examples are those of another, decoded.

    Attributes:
      latents: The other source.
      labels: Those of the other source, or None.
      needs_workers: False: decoding is done on the devices.
      is_costly: True: what is small enough is better held than decoded again.
    """

    needs_workers = False
    is_costly = True

    def __init__(self, source: Source, codec: Autoencoder):
        """Decodes nothing yet.

        Args:
          source: Latents, or moments, whose means are decoded.
          codec: Their autoencoder.
        """
        self.latents, self._codec = source, codec
        self.labels: np.ndarray | None = getattr(source, "labels", None)

    def __len__(self) -> int:
        """Number of examples."""
        return len(self.latents)

    def __getitem__(self, index: int) -> Example:
        """One example."""
        return {name: rows[0] for name, rows in self.__getitems__([index]).items()}

    def __getitems__(self, indices: Sequence[int]) -> Example:
        """Many examples, stacked."""
        many = read_many(self.latents, indices)
        if isinstance(many, list):
            many = {n: np.stack([each[n] for each in many]) for n in many[0]}
        latents = np.asarray(many["image"], np.float32)
        means = latents[..., : self._codec.latents.channels]
        return {**many, "image": self._codec.to_images(means)}

    def name(self, index: int) -> str:
        """The name of an example in the other source."""
        return name_of(self.latents, index)
