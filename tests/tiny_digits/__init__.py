"""The digits as a TFDS data set, prepared without TensorFlow or a network.

TFDS writes ArrayRecord without TensorFlow if pictures come to it as encoded bytes.
"""

import io

import PIL.Image
import tensorflow_datasets as tfds

from vdiff_jax.datasets.digits import digits


class TinyDigits(tfds.core.GeneratorBasedBuilder):
    """8x8 digits as PNG files."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = {
            "image": tfds.features.Image(shape=(8, 8, 1), encoding_format="png"),
            "label": tfds.features.ClassLabel(num_classes=10),
        }
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(features)
        )

    def _split_generators(self, dl_manager):
        del dl_manager
        return {split: self._examples(split) for split in ("train", "test")}

    def _generate_examples(self, split):
        return self._examples(split)

    def _examples(self, split):
        source = digits(split)
        for i in range(len(source)):
            file = io.BytesIO()
            PIL.Image.fromarray(source.images[i, ..., 0]).save(file, "PNG")
            yield i, {"image": file.getvalue(), "label": int(source.labels[i])}


def prepare(data_dir):
    TinyDigits(data_dir=data_dir, file_format="array_record").download_and_prepare()
