"""The members of an archive, by names in one form; links are resolved within it."""

import pathlib
import posixpath
from typing import Any

from vdiff_jax.datasets.listing import LeftOut, Listing, sort_out
from vdiff_jax.datasets.names import from_bytes, to_bytes

MOST_LINKS = 8


class Members:
    """Collects the members of an archive."""

    def __init__(self, path: pathlib.Path):
        """Begins with none.

        Args:
          path: The archive, for messages.
        """
        self._path = path
        self._files: dict[str, Any] = {}
        self._links: dict[str, str] = {}
        self._left_out = LeftOut()

    def file(self, name: str, member: Any) -> None:
        """Adds a file; a later one of the same name replaces it.

        Raises:
          ValueError: If the name leads out of the archive.
        """
        name = self._safe(name)
        if name in self._files or name in self._links:
            self._left_out.add("replaced by later members of the same name", name)
            self._links.pop(name, None)
        self._files[name] = member

    def link(self, name: str, target: str) -> None:
        """Adds a link to another member.

        Args:
          name: Name of the link.
          target: The name of that member, from the root of the archive.

        Raises:
          ValueError: If the name leads out of the archive.
        """
        self._links[self._safe(name)] = target

    def other(self, name: str) -> None:
        """Counts a member that is neither."""
        self._left_out.add("that are pipes, sockets or devices", _plain(name))

    def sorted_out(self) -> tuple[dict[str, Any], Listing]:
        """The members by name, links among them, and the listing of the images.

        Raises:
          ValueError: If there are no images.
        """
        files = dict(self._files)
        for link in self._links:
            member = self._target(link)
            if member is not None:
                files[link] = member
            elif link not in files:
                self._left_out.add("links to no file in the archive", link)
        return files, sort_out(files, str(self._path), self._left_out)

    def _target(self, name: str) -> Any:
        for _ in range(MOST_LINKS):
            if name not in self._links:
                return self._files.get(name)
            name = _plain(self._links[name])
        return None

    def _safe(self, name: str) -> str:
        """The name without `./`, refused if it points out of the archive."""
        if ".." in name.split("/") or name.startswith("/") or "\\" in name:
            raise ValueError(
                f"{self._path} has a member with the unsafe name {name!r}: such an"
                " archive is damaged or hostile, and is not read."
            )
        return _plain(name)


def from_folder_of(name: str, target: str) -> str:
    """The target of a symbolic link, from the root of the archive."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(name), target))


def _plain(name: str) -> str:
    """A name in the form that all are compared in."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    # As `from_bytes` gives it, for what an archive gives need not be of that form.
    return from_bytes(to_bytes("/".join(parts)))
