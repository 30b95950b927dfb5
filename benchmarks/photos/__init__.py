"""A folder of JPEG files as a TFDS data set, for `benchmarks.data`.

TFDS writes ArrayRecord without TensorFlow if images come to it as encoded bytes.
"""

import pathlib
from collections.abc import Iterator
from typing import Any

import tensorflow_datasets as tfds

from vdiff_jax.datasets.folder import Folder

core: Any = tfds.core
features: Any = tfds.features


# Unregistered, it is read as a data set whose code is not at hand.
class Photos(core.GeneratorBasedBuilder, skip_registration=True):
    """The files as they are, and their classes."""

    VERSION = core.Version("1.0.0")
    folder: pathlib.Path
    size: int

    def _info(self) -> Any:
        shape, classes = (self.size, self.size, 3), len(Folder(self.folder).classes)
        return self.dataset_info_from_configs(
            features=features.FeaturesDict(
                {
                    "image": features.Image(shape=shape, encoding_format="jpeg"),
                    "label": features.ClassLabel(num_classes=classes),
                }
            )
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        del dl_manager
        return {"train": self._generate_examples()}

    def _generate_examples(self) -> Iterator[tuple[int, dict[str, Any]]]:
        files = Folder(self.folder)
        for i in range(len(files)):
            image, label = files.read(i)
            yield i, {"image": image, "label": label}


def prepare(folder: pathlib.Path, size: int, data_dir: pathlib.Path) -> None:
    """Writes the data set `photos`, split `train`.

    Args:
      folder: The folder of JPEG files, one folder for each class.
      size: Height and width of the images.
      data_dir: The folder to write to.
    """
    Photos.folder, Photos.size = folder, size
    builder = Photos(data_dir=data_dir, file_format="array_record")
    builder.download_and_prepare()
