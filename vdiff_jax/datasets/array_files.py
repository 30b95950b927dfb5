"""Files of arrays, .npz and .npy, mapped into memory. Pickles are never read."""

import os
import pathlib
import struct
import zipfile
import zlib

import numpy as np

from vdiff_jax.files.copies import kept_on_this_machine

# Names and labels of a hundred shards, read into memory, would come to as much as those
# of one file.
MAPPED_FROM_BYTES = 2**16
# What NumPy and the standard library raise for files that are damaged, encrypted or
# compressed in an unknown way.
_UNREADABLE = (
    EOFError,
    KeyError,
    NotImplementedError,
    OSError,
    RuntimeError,
    ValueError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
)


def map_arrays(path: pathlib.Path) -> dict[str, np.ndarray]:
    """The arrays of a file by name, mapped where they are large and not compressed.

    That of an .npy file is `images`, beside which labels may lie in <name>_labels.npy.

    Raises:
      ValueError: If there is no such file, or it cannot be read as arrays.
    """
    try:
        return (
            _map_npy(path)
            if path.suffix == ".npy"
            else _map_npz(kept_on_this_machine(path))
        )
    except FileNotFoundError:
        raise ValueError(f"There is no file {path}.") from None
    except _UNREADABLE as error:
        raise ValueError(f"{path} cannot be read as arrays ({error}).") from error


def check_whole(path: pathlib.Path) -> None:
    """Reads an .npz file once, and compares its checksums.

    Raises:
      ValueError: If there is no such file, or it is damaged.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except _UNREADABLE as error:
        raise ValueError(f"{path} cannot be read as arrays ({error}).") from error
    if damaged is not None:
        raise ValueError(f"{path} is damaged in {damaged}.")


def _map_npy(path: pathlib.Path) -> dict[str, np.ndarray]:
    """The array of an .npy file, and labels from <name>_labels.npy if it is there."""
    place = kept_on_this_machine(path)
    arrays = {"images": np.load(place, mmap_mode="r", allow_pickle=False)}
    labels = path.with_name(f"{path.stem}_labels.npy")
    if labels.is_file():
        arrays["labels"] = np.load(kept_on_this_machine(labels), allow_pickle=False)
    return arrays


def _map_npz(path: pathlib.Path) -> dict[str, np.ndarray]:
    """The arrays of an .npz file, mapped where they are stored uncompressed.

    `np.load` reads the members of an .npz whole, whatever its `mmap_mode`.
    """
    arrays = {}
    with zipfile.ZipFile(path) as archive, np.load(path, allow_pickle=False) as loaded:
        for member in archive.infolist():
            if not member.filename.endswith(".npy"):
                continue
            name = member.filename.removesuffix(".npy")
            large = member.file_size > MAPPED_FROM_BYTES
            if large and member.compress_type == zipfile.ZIP_STORED:
                arrays[name] = _map_member(path, member)
            else:
                arrays[name] = loaded[name]
    return arrays


def _map_member(path: pathlib.Path, member: zipfile.ZipInfo) -> np.ndarray:
    with path.open("rb") as file:
        # The local header repeats the name and has an extra field of its own length.
        file.seek(member.header_offset + 26)
        name_length, extra_length = struct.unpack("<HH", file.read(4))
        file.seek(name_length + extra_length, os.SEEK_CUR)
        version = np.lib.format.read_magic(file)
        read = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }[version]
        shape, fortran, dtype = read(file)
        if dtype.hasobject:
            raise ValueError(f"array {member.filename} holds Python objects")
        order = "F" if fortran else "C"
        return np.memmap(path, dtype, "r", file.tell(), shape, order)
