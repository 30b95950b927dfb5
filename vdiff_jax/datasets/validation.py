"""A source whose every example is of the right kind, or is refused by name."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from vdiff_jax.datasets.source import Example, Source, name_of, read_many


class Checked:
    """A source's examples, each checked for its shape, type and label."""

    def __init__(
        self,
        source: Source,
        *,
        image_shape: tuple[int, int, int] | None,
        num_classes: int,
        latent_shapes: Sequence[tuple[int, int, int]] = (),
    ):
        """Checks what can be known at once: the first example, and the labels.

        Args:
          source: Any source.
          image_shape: [height, width, channels] of uint8; None if images do not fit.
          num_classes: Labels must be below it; 0 leaves labels alone.
          latent_shapes: The shapes that floats may have; none if floats do not fit.

        Raises:
          ValueError: If there are no examples, or for the reasons of `__getitems__`.
        """
        if not len(source):
            raise ValueError("The data set is empty.")
        self._source = source
        self._image_shape = image_shape
        self._num_classes = num_classes
        self._latent_shapes = [*latent_shapes]
        self.labels: np.ndarray | None = getattr(source, "labels", None)
        self.needs_workers: bool = getattr(source, "needs_workers", True)
        classes: Sequence[str] | None = getattr(source, "classes", None)
        if num_classes and classes is not None and len(classes) != num_classes:
            raise ValueError(
                f"The data has {len(classes)} classes, but model.num_classes is"
                f" {num_classes}."
            )
        if self.labels is not None:
            self._check_labels(self.labels, range(len(source)))
        self[0]

    def __len__(self) -> int:
        """Number of examples."""
        return len(self._source)

    def __getitem__(self, index: int) -> Example:
        """One example."""
        many = self.__getitems__([index])
        return {name: value[0] for name, value in many.items()}

    def __getitems__(self, indices: Sequence[int]) -> dict[str, np.ndarray]:
        """Many examples, stacked; labels are 0 where there are no classes.

        Raises:
          ValueError: Naming the example that has another shape or type, a label out of
            range, or no label where the model needs one.
        """
        many = read_many(self._source, indices)
        if isinstance(many, list):
            for index, example in zip(indices, many, strict=True):
                self._check_image(example.get("image"), index)
            labels = [example.get("label") for example in many]
            images = np.stack([example["image"] for example in many])
        else:
            images, labels = np.asarray(many.get("image")), many.get("label")
            self._check_image(images[0] if images.ndim else None, indices[0])
        # Half the bytes on the way to the device, if they are that few.
        if images.dtype.kind == "f" and images.dtype != np.float16:
            images = images.astype(np.float32, copy=False)
        return {"image": images, "label": self._checked_labels(labels, indices)}

    def name(self, index: int) -> str:
        """The name of an example in the source."""
        return name_of(self._source, index)

    def _check_image(self, image: Any, index: int) -> None:
        image = np.asarray(image)
        images = [self._image_shape] if self._image_shape is not None else []
        shapes = self._latent_shapes if image.dtype.kind == "f" else images
        if not (image.dtype == np.uint8 or image.dtype.kind == "f") or not shapes:
            raise ValueError(
                f"{self.name(index)} has an image of type {image.dtype}. Images are"
                " uint8, 0 to 255, with data.latent_scale=0; latents are floats, with"
                " their data.latent_scale (1 if they are scaled already) or"
                " data.autoencoder."
            )
        if image.shape not in shapes:
            raise ValueError(
                f"{self.name(index)} has shape {image.shape}, but data.image_size and"
                f" data.channels ask for {' or '.join(map(str, shapes))}."
            )

    def _checked_labels(self, labels: Any, indices: Sequence[int]) -> np.ndarray:
        missing = labels is None or any(label is None for label in labels)
        if missing and self._num_classes:
            raise ValueError(
                f"{self.name(indices[0])} has no label, but model.num_classes is"
                f" {self._num_classes}; 0 is for a model without classes."
            )
        if missing:
            return np.zeros(len(indices), np.int32)
        labels = np.asarray(labels, np.int32)
        self._check_labels(labels, indices)
        return labels

    def _check_labels(self, labels: np.ndarray, indices: Sequence[int]) -> None:
        wrong = (labels < 0) | (labels >= self._num_classes)
        if self._num_classes and wrong.any():
            at = int(np.argmax(wrong))
            raise ValueError(
                f"{self.name(indices[at])} has label {labels[at]}, but"
                f" model.num_classes={self._num_classes} admits 0 to"
                f" {self._num_classes - 1}."
            )
