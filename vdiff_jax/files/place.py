"""Places by name: paths of this machine, and of object stores (s3://, gs://).

All other modules go on with the API of `pathlib.Path`, whatever lies behind it. A store
has objects and no folders: a folder is there as long as an object lies below it. It is
reached through fsspec, whose filesystems Orbax's paths (`etils.epath`) use as well.
"""

import contextlib
import datetime
import errno
import functools
import importlib
import io
import os
import pathlib
import re
import shutil
import sys
from collections.abc import Collection, Generator, Iterator
from typing import Any

# What each scheme needs beside us, and the extra that installs it.
PACKAGES = {"s3": "s3fs", "gs": "gcsfs"}
# The object that Orbax writes last into a checkpoint in a store.
COMMITTED = "commit_success.txt"
_URL = re.compile(r"(s3|gs)://")
# What neither a glob nor a URL takes for more than it is.
_PLAIN = re.compile(r"(s3|gs)://[a-z0-9][a-z0-9._-]+(/[A-Za-z0-9_.+=@,-]+)*")
# Requests that fail are sent again by botocore this often, with pauses, before an error
# is one. What s3fs adds to it comes to a minute at most.
_S3 = {
    "use_listings_cache": False,  # another process may write
    "config_kwargs": {
        "connect_timeout": 10,
        "read_timeout": 60,
        "retries": {"max_attempts": 4, "mode": "standard"},
    },
}
_GS = {"use_listings_cache": False}


def path_of(text: str | os.PathLike[str]) -> pathlib.Path:
    """The path of a text: of an object store for s3:// and gs://, else of this machine.

    Raises:
      ValueError: If it is a URL with other characters than `_PLAIN` has.
    """
    name = os.fspath(text)
    if not _URL.match(name):
        return pathlib.Path(name)
    name = name.rstrip("/")
    if not _PLAIN.fullmatch(name) or {"..", "."} & set(name.split("/")):
        raise ValueError(
            f"{name!r} is no place in an object store that we can use: write"
            " s3://bucket/folder or gs://bucket/folder, of letters, digits and any of"
            " _.+=@,- between slashes."
        )
    return StorePath(name)


def is_in_store(path: pathlib.Path) -> bool:
    """True for a path of an object store."""
    return isinstance(path, StorePath)


def check_reachable(path: pathlib.Path, field: str) -> None:
    """Refuses a place in a store that cannot be listed; others pass.

    Args:
      path: The place; nothing need lie there.
      field: The flag or the field that names it, for the message.

    Raises:
      ValueError: In one line, with the reason and the remedy.
    """
    if not isinstance(path, StorePath):
        return
    try:
        next(path.iterdir(), None)
    except OSError as error:
        hints = {
            errno.ENOENT: "make the bucket, or write its name as it is",
            errno.EACCES: "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or whatever"
            " your credentials are, for an account that may list, read and write it",
        }
        if path.scheme == "gs" and error.errno == errno.EACCES:
            hints[errno.EACCES] = (
                "set GOOGLE_APPLICATION_CREDENTIALS, or `gcloud auth"
                " application-default login`, for an account that may list, read and"
                " write it"
            )
        remedy = hints.get(
            error.errno or 0, "see that the store is there (AWS_ENDPOINT_URL)"
        )
        raise ValueError(
            f"{field}={str(path)!r} cannot be used: {error.strerror}; {remedy}."
        ) from error


class StorePath(type(pathlib.Path())):
    """A path in an object store.

    By type it is a `pathlib.Path`, whose parts are /, the scheme, the bucket and the
    rest; as text it is a URL. Every method that asks or changes something goes to the
    store. Each object is written in one request, so that it is there whole or not.
    """

    if sys.version_info >= (3, 12):

        def __init__(self, *parts: str | os.PathLike[str]):
            """Takes a URL, or parts of which the first is one."""
            super().__init__(*_rooted(parts))

    else:

        def __new__(cls, *parts: str | os.PathLike[str]) -> "StorePath":
            """Takes a URL, or parts of which the first is one."""
            return super().__new__(cls, *_rooted(parts))

    @property
    def scheme(self) -> str:
        """The scheme: s3 or gs."""
        return self.parts[1]

    def __str__(self) -> str:
        """The URL."""
        if self.parts[:1] == ("/",):
            return f"{self.parts[1]}://{'/'.join(self.parts[2:])}"
        return "/".join(self.parts) or "."  # relative to another

    def __fspath__(self) -> str:
        """The URL."""
        return str(self)

    def __repr__(self) -> str:
        """The URL."""
        return f"StorePath({str(self)!r})"

    def _ask(self, name: str, *arguments: Any, **options: Any) -> Any:
        """Calls a method of the filesystem.

        Raises:
          OSError: With the place and the reason, for whatever goes wrong.
        """
        with _naming(self):
            system = _filesystem(self.scheme)
            return getattr(system, name)(*arguments, **options)

    def exists(self, **_: Any) -> bool:
        """True if there is an object, or one below."""
        return self._kind() != ""

    def is_file(self, **_: Any) -> bool:
        """True if there is an object."""
        return self._kind() == "file"

    def is_dir(self, **_: Any) -> bool:
        """True if there is an object below."""
        return self._kind() == "directory"

    def _kind(self) -> str:
        try:
            return self._ask("info", str(self))["type"]
        except FileNotFoundError:
            return ""

    def stat(self, **_: Any) -> os.stat_result:
        """The size of an object and the time at which it was written.

        Both are 0 for what has objects below it, as a store has no folders.
        """
        info = self._ask("info", str(self))
        size, written = info.get("size") or 0, info.get("LastModified")
        written = written or info.get("updated")
        if isinstance(written, str):
            written = datetime.datetime.fromisoformat(written)
        time = written.timestamp() if written else 0.0
        whole = (0, 0, 0, 1, 0, 0, size, *[int(time)] * 3)
        return os.stat_result(whole, {"st_mtime": time})

    def _names(self) -> Iterator[str]:
        try:
            below = self._ask("ls", str(self), detail=False)
        except FileNotFoundError:
            if len(self.parts) <= 3 or not self._ask("exists", str(self.parents[-3])):
                raise
            return
        names = (name.rstrip("/").rpartition("/")[2] for name in below)
        # Some tools leave an empty object in the place of a folder.
        yield from (name for name in names if name and name != self.name)

    def is_symlink(self) -> bool:
        """False: stores have none."""
        return False

    def iterdir(self) -> "Generator[StorePath, None, None]":
        """What lies directly below; nothing, if nothing does."""
        return (self / name for name in self._names())

    def glob(self, pattern: str, **_: Any) -> "Generator[StorePath, None, None]":
        """What lies below and fits a pattern."""
        for name in self._ask("glob", f"{self}/{pattern}"):
            yield type(self)(f"{self.scheme}://{name}")

    def rglob(self, pattern: str, **_: Any) -> "Generator[StorePath, None, None]":
        """The objects anywhere below whose names fit a pattern."""
        for name in self._ask("find", str(self)):
            path = type(self)(f"{self.scheme}://{name}")
            if path.match(pattern):
                yield path

    def read_bytes(self) -> bytes:
        """The bytes of an object."""
        return self._ask("cat_file", str(self))

    def read_text(
        self, encoding: str | None = None, errors: str | None = None, **_: Any
    ) -> str:
        """The text of an object."""
        return self.read_bytes().decode(encoding or "utf-8", errors or "strict")

    def write_bytes(self, data: Any) -> int:
        """Makes or replaces an object, in one request."""
        self._ask("pipe_file", str(self), bytes(data))
        return len(data)

    def write_text(
        self,
        data: str,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
    ) -> int:
        """Makes or replaces an object, in one request."""
        data = data if newline is None else data.replace("\n", newline)
        return self.write_bytes(data.encode(encoding or "utf-8", errors or "strict"))

    def open(self, mode: str = "r", *_: Any, encoding: Any = None, **__: Any) -> Any:
        """The content of an object, to read; objects are written whole."""
        if set(mode) - set("rbt"):
            raise io.UnsupportedOperation(f"{self}: an object is written whole")
        content = self.read_bytes()
        if "b" in mode:
            return io.BytesIO(content)
        return io.StringIO(content.decode(encoding or "utf-8"))

    def mkdir(self, *_: Any, **__: Any) -> None:
        """Does nothing: folders are there with what is in them."""

    def unlink(self, missing_ok: bool = False) -> None:
        """Removes an object."""
        if not missing_ok and not self.is_file():
            raise FileNotFoundError(errno.ENOENT, "There is no object", str(self))
        with contextlib.suppress(FileNotFoundError):
            self._ask("rm_file", str(self))

    def rmtree(self) -> None:
        """Removes all objects below; those that mark a result first."""
        for path in reversed(in_order(self.rglob("*"), self)):
            path.unlink(missing_ok=True)

    def rename(self, target: str | os.PathLike[str]) -> "StorePath":
        """Copies what is there and then removes it; those that mark a result last."""
        new = type(self)(target)
        if self.is_file():
            self._ask("cp_file", str(self), str(new))
            self.unlink(missing_ok=True)
            return new
        for path in in_order(self.rglob("*"), self):
            self._ask("cp_file", str(path), str(new / path.relative_to(self)))
        self.rmtree()
        return new

    def resolve(self, strict: bool = False) -> "StorePath":
        """The path itself."""
        return self

    def absolute(self) -> "StorePath":
        """The path itself."""
        return self

    def expanduser(self) -> "StorePath":
        """The path itself."""
        return self

    def upload(
        self, local: pathlib.Path, left_out: Collection[pathlib.Path] = ()
    ) -> None:
        """Puts a file here, in one request, or a folder; what marks a result last.

        Args:
          local: The file or folder.
          left_out: Files of the folder that stay on this machine.
        """
        if not local.is_dir():
            self._ask("put_file", str(local), str(self))
            return
        files = {path for path in local.rglob("*") if path.is_file()}
        for path in in_order(files.difference(left_out), local):
            target = self.joinpath(*path.relative_to(local).parts)
            self._ask("put_file", str(path), str(target))

    def download(self, local: pathlib.Path) -> None:
        """Copies an object, or all below, to a file or folder of this machine."""
        if self.is_file():
            local.parent.mkdir(parents=True, exist_ok=True)
            self._ask("get_file", str(self), str(local))
            return
        local.mkdir(parents=True, exist_ok=True)
        for path in self.rglob("*"):
            path.download(local.joinpath(*path.relative_to(self).parts))

    def version(self) -> str:
        """A text that changes when the object does, or one below."""
        if self.is_file():
            infos = {str(self): self._ask("info", str(self))}
        else:
            infos = self._ask("find", str(self), detail=True)
        names = ("ETag", "etag", "generation", "size")
        return str([(k, *map(v.get, names)) for k, v in sorted(infos.items())])


def in_order(paths: Any, folder: pathlib.Path) -> list[Any]:
    """Files of a folder in the order to write them: what marks a result comes last.

    These are JSON files, those of the folder itself after all others, and Orbax's mark
    of a checkpoint.
    """

    def marks(path: pathlib.Path) -> tuple[int, int]:
        depth = len(path.relative_to(folder).parts)
        is_mark = path.name == COMMITTED or path.suffix == ".json"
        return (-depth if is_mark else -1000, depth)

    return sorted(paths, key=marks)


def remove_tree(path: pathlib.Path) -> None:
    """Removes a folder with all in it; one that is not there, or resists, stays."""
    if isinstance(path, StorePath):
        path.rmtree()
    else:
        shutil.rmtree(path, ignore_errors=True)


def _rooted(parts: tuple[Any, ...]) -> tuple[Any, ...]:
    """Parts of which the first is no URL, but a path that begins with the scheme."""
    if not parts:
        return parts
    first = os.fspath(parts[0])
    return (_URL.sub(r"/\1/", first, count=1), *parts[1:])


@functools.cache
def _filesystem(scheme: str) -> Any:
    """The filesystem of a scheme, the same that Orbax's paths use.

    Raises:
      ValueError: If its package is not installed.
    """
    # Else epath goes to TensorFlow, where that is installed, which has no s3.
    os.environ.setdefault("EPATH_USE_TF", "0")
    try:
        fsspec = importlib.import_module("fsspec")
        importlib.import_module(PACKAGES[scheme])
    except ImportError as error:
        raise ValueError(
            f"{scheme}:// needs {PACKAGES[scheme]}, which is not installed: pip install"
            f" 'vdiff_jax[{scheme}]'."
        ) from error
    settings = fsspec.config.conf
    settings["s3"] = {**_S3, **settings.get("s3", {})}
    settings["gcs"] = {**_GS, **settings.get("gcs", {})}
    return fsspec.filesystem(scheme)


@contextlib.contextmanager
def _naming(path: StorePath) -> Iterator[None]:
    """Turns the many errors of a store into `OSError` with the place and the reason."""
    try:
        yield
    except (ValueError, NotImplementedError):
        raise
    except Exception as error:
        reason = " ".join(str(error).split()).rstrip(".")[:200] or type(error).__name__
        number = errno.EIO
        if isinstance(error, FileNotFoundError):
            number = errno.ENOENT
            reason = reason if "bucket" in reason else "There is no such object"
        elif isinstance(error, PermissionError) or "credentials" in reason.lower():
            number = errno.EACCES
        raise OSError(number, reason, str(path)) from error
