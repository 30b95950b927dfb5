"""An .npz file, written in one pass: not compressed, so that it can be mapped."""

import dataclasses
import pathlib
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from vdiff_jax.files.atomic import replacing

_BLOCK_BYTES = 2**20


@dataclasses.dataclass(frozen=True)
class Stream:
    """An array that is never in memory as a whole.

    Attributes:
      shape: Its shape.
      dtype: Its type.
      blocks: Its bytes, in order.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    blocks: Iterable[bytes]


def stream_of_file(file: Any, shape: tuple[int, ...], dtype: np.dtype) -> Stream:
    """The array whose bare values a file of bytes begins with."""

    def blocks() -> Iterator[bytes]:
        left = int(np.prod(shape)) * dtype.itemsize
        file.seek(0)
        while left and (block := file.read(min(left, _BLOCK_BYTES))):
            left -= len(block)
            yield block
        if left:
            raise OSError(f"{file.name} lacks its last {left:,} bytes")

    return Stream(shape, dtype, blocks())


def write_npz(path: pathlib.Path, arrays: Mapping[str, np.ndarray | Stream]) -> None:
    """Writes a file, whole or not at all; its bytes depend on the arrays alone.

    Raises:
      OSError: If it cannot be written.
    """
    with (
        replacing(path) as half,
        zipfile.ZipFile(half, "w", zipfile.ZIP_STORED) as archive,
    ):
        for name, array in arrays.items():
            member = zipfile.ZipInfo(f"{name}.npy")  # of 1980, whenever this is
            member.external_attr = 0o600 << 16
            with archive.open(member, "w", force_zip64=True) as file:
                if isinstance(array, Stream):
                    _write_stream(file, array)
                else:
                    np.lib.format.write_array(file, array, allow_pickle=False)


def _write_stream(file: Any, array: Stream) -> None:
    header = {
        "descr": np.lib.format.dtype_to_descr(array.dtype),
        "fortran_order": False,
        "shape": array.shape,
    }
    np.lib.format.write_array_header_1_0(file, header)
    for block in array.blocks:
        file.write(block)
