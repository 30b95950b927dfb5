"""A source whose every example is of the right kind, or is refused by name."""

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np

from vdiff_jax.datasets.contexts import Context
from vdiff_jax.datasets.source import Example, Source, name_of, read_many

Shape: TypeAlias = tuple[int, int, int]


class Checked:
    """A source's examples, each checked for its shape, type, label and context.

    Attributes:
      labels: int array of all labels, or None.
      null_context: The context of an example whose own is left out, or None; always
        None without a `context_shape`.
      needs_workers: As the source's.
      is_costly: As the source's.
    """

    def __init__(
        self,
        source: Source,
        *,
        num_classes: int,
        uint8_shape: Shape | None = None,
        float_shapes: Sequence[Shape] = (),
        context_shape: tuple[int, int] | None = None,
    ):
        """Checks what can be known at once: the first example, and the labels.

        All examples have the shape of the first one.

        Args:
          source: Any source.
          num_classes: Labels must be below it; 0 leaves labels alone.
          uint8_shape: [height, width, channels] that examples of uint8 may have; None
            refuses them.
          float_shapes: Shapes that examples of floats may have, such as those of
            latents and of their moments; none refuse them.
          context_shape: [tokens, width] of every context; None leaves contexts out.

        Raises:
          ValueError: If there are no examples, or for the reasons of `__getitems__`.
        """
        if not len(source):
            raise ValueError("The data set is empty.")
        self._source = source
        self._uint8_shapes = () if uint8_shape is None else (uint8_shape,)
        self._float_shapes = tuple(float_shapes)
        self._context_shape = context_shape
        self._num_classes = num_classes
        self.labels: np.ndarray | None = getattr(source, "labels", None)
        self.needs_workers: bool = getattr(source, "needs_workers", True)
        self.is_costly: bool = getattr(source, "is_costly", self.needs_workers)
        classes: Sequence[str] | None = getattr(source, "classes", None)
        if num_classes and classes is not None and len(classes) != num_classes:
            raise ValueError(
                f"The data has {len(classes)} classes, but model.num_classes is"
                f" {num_classes}."
            )
        if self.labels is not None:
            self._check_labels(self.labels, range(len(source)))
        first = self[0]["image"]
        # From here on, as the first.
        if first.dtype == np.uint8:
            self._float_shapes = ()
        else:
            self._uint8_shapes, self._float_shapes = (), (first.shape,)
        self.null_context: Context | None = None
        if context_shape is not None:
            self.null_context = getattr(source, "null_context", None)
        if self.null_context is not None:
            self._check_context(*self.null_context, "null_context of the data")

    def __len__(self) -> int:
        """Number of examples."""
        return len(self._source)

    def __getitem__(self, index: int) -> Example:
        """One example."""
        many = self.__getitems__([index])
        return {name: value[0] for name, value in many.items()}

    def __getitems__(self, indices: Sequence[int]) -> dict[str, np.ndarray]:
        """Many examples, stacked; labels are 0 where there are no classes.

        Float16 stays what it is, as half the bytes on the way to a device; other floats
        become float32. With a `context_shape`, there are contexts and masks.

        Raises:
          ValueError: Naming the example that has another shape or type, a label out of
            range, or no label or context where the model needs one.
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
        labels = self._checked_labels(labels, indices)
        checked = {"image": _half_or_single(images), "label": labels}
        return checked | self._checked_contexts(many, indices)

    def name(self, index: int) -> str:
        """The name of an example in the source."""
        return name_of(self._source, index)

    def _check_image(self, image: Any, index: int) -> None:
        image = np.asarray(image)
        shapes: tuple[Shape, ...] = ()
        if image.dtype == np.uint8:
            shapes = self._uint8_shapes
        elif image.dtype.kind == "f":
            shapes = self._float_shapes
        if not shapes:
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

    def _checked_contexts(
        self, many: list[Example] | Example, indices: Sequence[int]
    ) -> dict[str, np.ndarray]:
        if self._context_shape is None:
            return {}
        if isinstance(many, list):
            checked = [
                self._check_context(
                    example.get("context"), example.get("mask"), self.name(index)
                )
                for index, example in zip(indices, many, strict=True)
            ]
            context, mask = map(np.stack, zip(*checked, strict=True))
        else:
            context, mask = many.get("context"), many.get("mask")
            first, first_mask = (x if x is None else x[0] for x in (context, mask))
            self._check_context(first, first_mask, self.name(indices[0]))
            context = np.asarray(context)
            mask = np.ones(context.shape[:2]) if mask is None else np.asarray(mask)
        return {"context": _half_or_single(context), "mask": mask.astype(bool)}

    def _check_context(self, context: Any, mask: Any, name: str) -> Context:
        assert self._context_shape is not None
        tokens, width = self._context_shape
        if context is None:
            raise ValueError(
                f"{name} has no context, but the model is conditioned on one of"
                f" model.unet.context_tokens={tokens} and"
                f" model.unet.context_features={width}: prepare the data with --context"
                " (docs/data.md)."
            )
        context = np.asarray(context)
        if context.dtype.kind != "f" or context.ndim != 2:
            raise ValueError(
                f"{name} has a context of {context.dtype} and shape {context.shape}: it"
                f" must be floats of shape {self._context_shape}."
            )
        if context.shape[1] != width:
            raise ValueError(
                f"{name} has a context of width {context.shape[1]}, but"
                f" model.unet.context_features is {width}."
            )
        if context.shape[0] != tokens:
            raise ValueError(
                f"{name} has a context of {context.shape[0]} vectors, but"
                f" model.unet.context_tokens is {tokens}."
            )
        mask = np.ones(tokens, bool) if mask is None else np.asarray(mask)
        if mask.shape != (tokens,) or mask.dtype.kind not in "biu":
            raise ValueError(
                f"{name} has a mask of {mask.dtype} and shape {mask.shape}: it must be"
                f" bool, one for each of the {tokens} vectors of its context."
            )
        return Context(context, mask.astype(bool))

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


def _half_or_single(values: np.ndarray) -> np.ndarray:
    """The values; floats that are not float16 as float32."""
    if values.dtype.kind != "f" or values.dtype == np.float16:
        return values
    return values.astype(np.float32, copy=False)
