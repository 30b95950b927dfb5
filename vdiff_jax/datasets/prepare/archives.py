"""Inputs of `prepare`: a folder, a zip, a tar or LSUN's LMDB.

Nothing is unpacked by name.
"""

import bz2
import contextlib
import gzip
import hashlib
import lzma
import os
import pathlib
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable

from vdiff_jax.datasets.keyed_lmdb import KeyedLmdb
from vdiff_jax.datasets.listing import LeftOut, Listing, list_folder
from vdiff_jax.datasets.lmdb_file import is_lmdb
from vdiff_jax.datasets.names import from_bytes, to_bytes
from vdiff_jax.datasets.prepare.content import (
    Stamp,
    sample_of_bytes,
    sample_of_file,
    stamp_of_archive,
    stamp_of_files,
)
from vdiff_jax.datasets.prepare.members import Members, from_folder_of
from vdiff_jax.files.atomic import replacing

# More than any image; a member that claims to be larger is not read into memory.
MAX_FILE_BYTES = 2**30
MAX_LINK_BYTES = 4096

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
    """Encoded images by name, and what lies beside them.

    Attributes:
      listing: Names of the images, with forward slashes, and of what is left out.
    """

    listing: Listing

    def read(self, name: str) -> bytes:
        """The bytes of an image.

        Raises:
          OSError: If the file cannot be read.
          ValueError: If the archive is damaged there, or the image is too large.
        """
        ...

    def beside(self, name: str, most: int) -> bytes | None:
        """The beginning of any other file, or all for -1; None if it is not there."""
        ...

    def stamp(self) -> Stamp:
        """The sizes and times of what is read, by which a change is seen at once."""
        ...

    def identity(self, name: str) -> bytes:
        """The size of an image and a sample of its bytes, or its checksum.

        Raises:
          OSError: If the file cannot be read.
          ValueError: If the archive is damaged there.
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
      OSError: If it cannot be read.
    """
    if is_lmdb(path):
        return _LmdbInput(path)
    if path.is_dir():
        return _FolderInput(path)
    if not path.exists():
        raise ValueError(f"{path} is not a folder, a zip or a tar: nothing is there.")
    path.open("rb").close()  # what comes next does not tell of a lack of permission
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
        self.listing = list_folder(path)
        self._path = os.fsencode(path)

    def read(self, name: str) -> bytes:
        with open(os.path.join(self._path, to_bytes(name)), "rb") as file:
            return file.read()

    def beside(self, name: str, most: int) -> bytes | None:
        path = os.path.join(self._path, to_bytes(name))
        if not os.path.isfile(path):
            return None
        with open(path, "rb") as file:
            return file.read(most)

    def stamp(self) -> Stamp:
        return stamp_of_files(self._path, self.listing.images)

    def identity(self, name: str) -> bytes:
        return sample_of_file(os.path.join(self._path, to_bytes(name)))

    def close(self) -> None:
        pass


class _LmdbInput:
    def __init__(self, path: pathlib.Path):
        images = KeyedLmdb.open(path)
        if images is None:
            raise ValueError(
                f"{path} is no LMDB of images by any key, as LSUN's are. What `prepare`"
                ' wrote is read as it is, with data.source = "lmdb".'
            )
        self._images, self._file = images, path / "data.mdb"
        names = map(images.name, range(len(images)))
        # In the order of their bytes, which is that of the LMDB.
        self._index = {name: i for i, name in enumerate(names)}
        self.listing = Listing(list(self._index), LeftOut(), [])

    def read(self, name: str) -> bytes:
        return self._images.read(self._index[name])[0]

    def beside(self, name: str, most: int) -> bytes | None:
        del name, most
        return None

    def stamp(self) -> Stamp:
        return stamp_of_archive(self._file)

    def identity(self, name: str) -> bytes:
        return sample_of_bytes(self.read(name))

    def close(self) -> None:
        pass


class _ZipInput:
    def __init__(self, path: pathlib.Path):
        self._path = path
        self._zip = zipfile.ZipFile(path)
        with _closed_on_error(self):
            members = Members(path)
            for member in self._zip.infolist():
                name = member.filename.replace("\\", "/")  # as Windows has written
                kind = stat.S_IFMT(member.external_attr >> 16)
                if member.is_dir():
                    continue
                if stat.S_ISLNK(kind):
                    is_path = member.file_size <= MAX_LINK_BYTES
                    target = from_bytes(self._zip.read(member)) if is_path else ""
                    members.link(name, from_folder_of(name, target))
                elif kind in (0, stat.S_IFREG):
                    members.file(name, member)
                else:
                    members.other(name)
            self._members, self.listing = members.sorted_out()

    def read(self, name: str) -> bytes:
        _check_size(self._members[name].file_size)
        try:
            return self._zip.read(self._members[name])
        except _DAMAGED as error:
            raise ValueError(f"is damaged in the archive ({error})") from error

    def beside(self, name: str, most: int) -> bytes | None:
        return _start(self, name, most) if name in self._members else None

    def stamp(self) -> Stamp:
        return stamp_of_archive(self._path)

    def identity(self, name: str) -> bytes:
        member = self._members[name]
        return f"{member.file_size} {member.CRC}".encode()

    def close(self) -> None:
        self._zip.close()


class _TarInput:
    def __init__(self, path: pathlib.Path, scratch: pathlib.Path):
        self._path = path
        # Names as UTF-8 whatever the locale.
        self._tar = tarfile.open(  # noqa: SIM115
            _plain_tar(path, scratch),
            "r:",
            encoding="utf-8",
            errors="surrogateescape",
        )
        with _closed_on_error(self):
            members = Members(path)
            for member in self._tar.getmembers():
                if member.isfile():
                    members.file(member.name, member)
                elif member.islnk():
                    members.link(member.name, member.linkname)
                elif member.issym():
                    target = from_folder_of(member.name, member.linkname)
                    members.link(member.name, target)
                elif not member.isdir():
                    members.other(member.name)
            self._members, self.listing = members.sorted_out()

    def read(self, name: str) -> bytes:
        _check_size(self._members[name].size)
        file = self._tar.extractfile(self._members[name])
        assert file is not None  # only directories and devices have none
        try:
            return file.read()
        except _DAMAGED as error:
            raise ValueError(f"is damaged in the archive ({error})") from error

    def beside(self, name: str, most: int) -> bytes | None:
        return _start(self, name, most) if name in self._members else None

    def stamp(self) -> Stamp:
        return stamp_of_archive(self._path)

    def identity(self, name: str) -> bytes:
        return sample_of_bytes(self.read(name))

    def close(self) -> None:
        self._tar.close()


def _plain_tar(path: pathlib.Path, scratch: pathlib.Path) -> pathlib.Path:
    """The path itself or, if it is compressed, a decompressed copy of it."""
    try:
        with tarfile.open(path, "r:"):
            return path
    except tarfile.ReadError:
        pass
    plain = scratch / f"decompressed-{_key(path)}.tar"
    if not plain.exists():
        with (
            _decompressed(path) as source,
            replacing(plain) as half,
            half.open("wb") as target,
        ):
            shutil.copyfileobj(source, target, 2**20)
    return plain


def _key(path: pathlib.Path) -> str:
    """The archive that a decompressed copy is of, by its time, its size and a sample.

    All of these formats end with checksums, which are in the sample.
    """
    facts = f"{path.stat().st_mtime_ns} ".encode() + sample_of_file(path)
    return hashlib.sha256(facts).hexdigest()[:16]


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


def _start(archive: Input, name: str, most: int) -> bytes:
    """The first bytes of a member; all, if `most` is below 0."""
    content = archive.read(name)
    return content if most < 0 else content[:most]


def _check_size(size: int) -> None:
    if size > MAX_FILE_BYTES:
        raise ValueError(f"has {size:,} bytes, more than {MAX_FILE_BYTES:,}")
