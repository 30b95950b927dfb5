"""Inputs of `prepare`: a folder, a zip or a tar. Nothing is unpacked by name."""

import bz2
import contextlib
import gzip
import lzma
import pathlib
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable

from vdiff_jax.datasets.folder import images_among, list_images
from vdiff_jax.files.atomic import replacing

# More than any image; a member that claims to be larger is not read into memory.
MAX_FILE_BYTES = 2**30

# Errors of the standard library for archives and members that are damaged, cut off,
# encrypted or compressed in an unknown way; OSError and ValueError beside these.
_DAMAGED = (
    EOFError,
    NotImplementedError,
    RuntimeError,
    lzma.LZMAError,
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
)


@runtime_checkable
class Input(Protocol):
    """Encoded images by name.

    Attributes:
      names: Names of the images, with forward slashes, by code point.
    """

    names: list[str]

    def read(self, name: str) -> bytes:
        """The bytes of an image.

        Raises:
          OSError: If the file cannot be read.
          ValueError: If the archive is damaged there, or the image is too large.
        """
        ...

    def close(self) -> None:
        """Closes the archive."""
        ...


def open_input(path: pathlib.Path, scratch: pathlib.Path) -> Input:
    """Opens a folder, a .zip or a .tar (also compressed), and lists its images.

    Args:
      path: The folder or archive.
      scratch: A folder for the time of the work; a compressed tar, which can only be
        read from its start, is decompressed there.

    Raises:
      ValueError: If it is none of these, has no images, or has a member with an
        unsafe name.
    """
    if path.is_dir():
        return _FolderInput(path)
    try:
        if zipfile.is_zipfile(path):
            return _ZipInput(path)
        if path.is_file() and tarfile.is_tarfile(path):
            return _TarInput(path, scratch)
    except _DAMAGED as error:
        raise ValueError(f"{path} is damaged or cut off ({error}).") from error
    raise ValueError(f"{path} is not a folder, a zip or a tar that can be read.")


class _FolderInput:
    def __init__(self, path: pathlib.Path):
        self.names = list_images(path)
        self._path = path

    def read(self, name: str) -> bytes:
        return (self._path / name).read_bytes()

    def close(self) -> None:
        pass


class _ZipInput:
    def __init__(self, path: pathlib.Path):
        self._zip = zipfile.ZipFile(path)
        self._members = {
            member.filename: member
            for member in self._zip.infolist()
            if not member.is_dir() and not stat.S_ISLNK(member.external_attr >> 16)
        }
        with _closed_on_error(self):
            self.names = _safe(path, list(self._members))

    def read(self, name: str) -> bytes:
        _check_size(self._members[name].file_size)
        try:
            return self._zip.read(name)
        except _DAMAGED as error:
            raise ValueError(f"is damaged in the archive ({error})") from error

    def close(self) -> None:
        self._zip.close()


class _TarInput:
    def __init__(self, path: pathlib.Path, scratch: pathlib.Path):
        self._tar = tarfile.open(_plain_tar(path, scratch), "r:")  # noqa: SIM115
        with _closed_on_error(self):
            self._members = {m.name: m for m in self._tar.getmembers() if m.isfile()}
            self.names = _safe(path, list(self._members))

    def read(self, name: str) -> bytes:
        _check_size(self._members[name].size)
        file = self._tar.extractfile(self._members[name])
        assert file is not None  # only directories and devices have none
        try:
            return file.read()
        except _DAMAGED as error:
            raise ValueError(f"is damaged in the archive ({error})") from error

    def close(self) -> None:
        self._tar.close()


def _plain_tar(path: pathlib.Path, scratch: pathlib.Path) -> pathlib.Path:
    """The path itself or, if it is compressed, a decompressed copy of it."""
    try:
        with tarfile.open(path, "r:"):
            return path
    except tarfile.ReadError:
        pass
    plain = scratch / "decompressed.tar"
    if not plain.exists():
        with (
            _decompressed(path) as source,
            replacing(plain) as half,
            half.open("wb") as target,
        ):
            shutil.copyfileobj(source, target, 2**20)
    return plain


def _decompressed(path: pathlib.Path) -> Any:
    with path.open("rb") as file:
        start = file.read(6)
    for magic, module in ((b"\x1f\x8b", gzip), (b"BZh", bz2), (b"\xfd7zXZ\0", lzma)):
        if start.startswith(magic):
            return module.open(path)
    raise ValueError(f"{path} is compressed in a way that is not known here.")


@contextlib.contextmanager
def _closed_on_error(archive: Any) -> Iterator[None]:
    try:
        yield
    except BaseException:
        archive.close()
        raise


def _safe(path: pathlib.Path, names: list[str]) -> list[str]:
    """The images among the members, none of which may point out of the archive."""
    for name in names:
        parts = pathlib.PurePosixPath(name).parts
        if ".." in parts or name.startswith("/") or "\\" in name:
            raise ValueError(
                f"{path} has a member with the unsafe name {name!r}: such an archive is"
                " damaged or hostile, and is not read."
            )
    return images_among(names, str(path))


def _check_size(size: int) -> None:
    if size > MAX_FILE_BYTES:
        raise ValueError(f"has {size:,} bytes, more than {MAX_FILE_BYTES:,}")
