"""Data sets of TensorFlow Datasets, read by random access and without TensorFlow."""

import pathlib
from typing import Any

from vdiff_jax.datasets.source import Source


class TfdsImages:
    """A prepared data set whose features include `image` and, perhaps, `label`."""

    def __init__(self, name: str, split: str, folder: pathlib.Path):
        """Opens `split` of the data set `name` prepared under `folder`.

        Raises:
          ValueError: If it was not prepared as ArrayRecord, with the command to do so.
        """
        import tensorflow_datasets as tfds

        try:
            source: Any = tfds.data_source(
                name, split=split, data_dir=folder, download=False
            )
        except (
            AssertionError,
            ImportError,
            OSError,
            NotImplementedError,
            ValueError,
        ) as error:
            raise ValueError(
                f"{name!r} is not prepared in {folder}. Prepare it once, where"
                " TensorFlow is installed: tfds build"
                f" {name} --file_format=array_record --data_dir={folder}"
                f" ({str(error).splitlines()[0] if str(error) else type(error)})"
            ) from error
        self._source: Source = source

    def __len__(self) -> int:
        """Number of examples."""
        return len(self._source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """One example."""
        example = self._source[index]
        return {"image": example["image"], "label": example.get("label", 0)}
