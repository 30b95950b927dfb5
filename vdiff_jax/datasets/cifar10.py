"""CIFAR-10 from its original archive, without TensorFlow Datasets.

Krizhevsky (2009), "Learning Multiple Layers of Features from Tiny Images". The archive,
cifar-10-python.tar.gz, holds Python pickles. A pickle can run any code, so these are
read by an unpickler that admits dictionaries, lists, strings, numbers and arrays only.
"""

import io
import pathlib
import pickle
import tarfile
import zlib
from collections.abc import Callable, Iterator
from typing import Any, Literal

import numpy as np

from vdiff_jax.datasets.source import Arrays

_FOLDER = "cifar-10-batches-py"
_FILES = {
    "train": [f"data_batch_{i}" for i in range(1, 6)],
    "test": ["test_batch"],
}
_DAMAGED = (
    AssertionError,
    EOFError,
    KeyError,
    OSError,
    tarfile.TarError,
    zlib.error,
)
# All that the pickles of the archive name, which Python 2 wrote.
_reconstruct: Any = np.zeros(1).__reduce__()[0]
_ADMITTED: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}


def cifar10(path: pathlib.Path, split: Literal["train", "test"]) -> Arrays:
    """The 50,000 images to train on, or the 10,000 of the test.

    Args:
      path: cifar-10-python.tar.gz, or a folder that holds it or its
        cifar-10-batches-py.
      split: "train" for the 50,000, "test" for the 10,000.

    Raises:
      ValueError: If the archive is missing, incomplete, or holds anything but arrays of
        images and labels.
    """
    images, labels = [], []
    for name, data in _read(path, split):
        batch = _unpickle(name, data)
        try:
            images.append(np.asarray(batch[b"data"], np.uint8).reshape(-1, 3, 32, 32))
            labels.append(np.asarray(batch[b"labels"], np.int32))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{name} is not a batch of CIFAR-10 ({error}).") from error
    together = np.concatenate(images).transpose(0, 2, 3, 1)
    return Arrays(np.ascontiguousarray(together), np.concatenate(labels))


def _read(path: pathlib.Path, split: str) -> Iterator[tuple[str, bytes]]:
    folders = [path / _FOLDER, path]
    archives = [path / "cifar-10-python.tar.gz", path]
    folder = next((f for f in folders if (f / _FILES[split][0]).is_file()), None)
    archive = next((f for f in archives if f.is_file()), None)
    if folder is not None:
        for name in _FILES[split]:
            yield str(folder / name), (folder / name).read_bytes()
        return
    if archive is None:
        raise ValueError(
            f"There is no cifar-10-python.tar.gz and no {_FOLDER} in {path}: fetch the"
            " archive from https://www.cs.toronto.edu/~kriz/cifar.html and name it in"
            " data.path."
        )
    try:
        with tarfile.open(archive) as tar:
            for name in _FILES[split]:
                file = tar.extractfile(f"{_FOLDER}/{name}")
                assert file is not None
                yield f"{archive}, {name}", file.read()
    except _DAMAGED as error:
        raise ValueError(f"{archive} is damaged or incomplete ({error}).") from error


def _unpickle(name: str, data: bytes) -> Any:
    try:
        return _Unpickler(io.BytesIO(data), encoding="bytes").load()
    except Exception as error:  # foreign bytes fail in many ways
        raise ValueError(f"{name} is not a batch of CIFAR-10 ({error}).") from error


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Callable[..., Any]:
        """The class or function of an admitted name.

        Raises:
          pickle.UnpicklingError: For any other name.
        """
        if (module, name) not in _ADMITTED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return _ADMITTED[module, name]
