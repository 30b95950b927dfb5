"""Data sets of TensorFlow Datasets, read by random access and without TensorFlow."""

import pathlib
import re
from collections.abc import Sequence
from typing import Any

from vdiff_jax.files.copies import kept_on_this_machine
from vdiff_jax.files.place import is_in_store


class TfdsFiles:
    """The encoded images of a prepared data set, and their labels if it has some."""

    def __init__(self, name: str, split: str, folder: pathlib.Path):
        """Opens `split` of the data set `name` prepared under `folder`.

        Args:
          name: Name of the data set, with its version if it matters.
          split: A split of TFDS, which may be a slice.
          folder: TFDS's `data_dir`.

        Raises:
          ValueError: If it was not prepared as ArrayRecord, with the command to do so;
            or if its examples have no `image`.
        """
        from tensorflow_datasets.proto import tf_example_pb2

        self._name, self._split, self._folder = name, split, folder
        self._records = _records(name, split, _on_this_machine(name, folder))
        # Parsed here, which takes a sixth of the time that TFDS takes, and decoded by
        # our own decoder, which treats all sources alike.
        Example = tf_example_pb2.Example  # pyright: ignore[reportAttributeAccessIssue]
        self._parse = Example.FromString
        features = self._features(self._records[0])
        if "image" not in features or not features["image"].bytes_list.value:
            raise ValueError(
                f"{name!r} has no images: its features are {sorted(features)}."
            )
        self._has_labels = (
            "label" in features and len(features["label"].int64_list.value) == 1
        )

    def __len__(self) -> int:
        """Number of examples."""
        return len(self._records)

    def read(self, index: int) -> tuple[bytes, int | None]:
        """The bytes of an image, and its label or None."""
        return self.read_many([index])[0]

    def read_many(self, indices: Sequence[int]) -> list[tuple[bytes, int | None]]:
        """Bytes and labels of many images: faster than one by one."""
        records = self._records.__getitems__(indices)
        return [self._image(self._features(record)) for record in records]

    def _features(self, record: bytes) -> Any:
        return self._parse(record).features.feature

    def _image(self, features: Any) -> tuple[bytes, int | None]:
        label = features["label"].int64_list.value[0] if self._has_labels else None
        return features["image"].bytes_list.value[0], label

    def name(self, index: int) -> str:
        """The name of an example: data set, split and number."""
        return f"{self._name}, {self._split}, example {index}"

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickles the arguments only: another process opens the data set anew."""
        return TfdsFiles, (self._name, self._split, self._folder)


def _on_this_machine(name: str, folder: pathlib.Path) -> pathlib.Path:
    """The folder, or that of a copy of the data set: ArrayRecord reads disks."""
    if not is_in_store(folder):
        return folder
    return kept_on_this_machine(folder / re.split("[/:]", name)[0]).parent


def _records(name: str, split: str, folder: pathlib.Path) -> Any:
    """The serialized examples of a split, by random access."""
    import tensorflow_datasets as tfds

    make_builder: Any = tfds.builder
    splits: Any = ()
    try:
        builder = make_builder(name, data_dir=folder)
        splits = builder.info.splits
        raw = tfds.decode.DeserializeMethod.RAW_BYTES
        return builder.as_data_source(split, deserialize_method=raw)
    except (
        AssertionError,
        AttributeError,
        ImportError,
        OSError,
        NotImplementedError,
        ValueError,
    ) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        if "Unknown split" in reason and splits:
            raise ValueError(
                f"{name!r} has the splits {sorted(splits)}, not {split!r}: set"
                " data.train_split and data.test_split."
            ) from error
        raise ValueError(
            f"{name!r} is not prepared as ArrayRecord in {folder}. Prepare it once,"
            f" where TensorFlow is installed: tfds build {name}"
            f" --file_format=array_record --data_dir={folder} ({reason})"
        ) from error
