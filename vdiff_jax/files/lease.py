"""A lock in an object store: an object that its holder renews while it lives.

It is made, renewed and taken over by conditional writes, of which a store lets one
through: only if there is none, or if it is still the one that was read. A holder that
dies renews no more. Whoever comes then waits until one length of the lease has gone by
without a renewal, and takes it over. No clocks are compared. A holder that was cut off
for so long that another took over sees it at its next renewal, and stops.
"""

import contextlib
import json
import os
import pathlib
import socket
import sys
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from typing import Any

from vdiff_jax.files import kvstores
from vdiff_jax.files.place import StorePath

# Without a renewal for so long, a lease is nobody's.
SECONDS = 60.0
# It is renewed, and looked at by those who wait, this often in that time.
RENEWALS = 10
# Those of this process.
_HELD: "list[Lease]" = []
_NO_OBJECT = b"\x02"  # TensorStore's generation of what is not there


class Lease:
    """A lock that this process holds until it ends, or has not been heard of for long.

    Attributes:
      trouble: Why it is not held any more; empty while it is.
    """

    def __init__(self, path: StorePath):
        """Keeps its place; see `lease`."""
        self.path, self.trouble = path, ""
        self._store = _open(path)
        self._generation = b""
        self._count = 0
        self._token = uuid.uuid4().hex
        self._since, self._renewed_at = time.time(), time.monotonic()
        self._ended = threading.Event()
        self._renewing = threading.Lock()

    def keeps_others_out(self) -> bool:
        """False once another has taken it over, or removed it."""
        return not self.trouble

    def take(self) -> str:
        """Takes it; waits for one that may be a dead run's.

        Returns:
          Its holder, if that lives; else "".
        """
        if self._write(_NO_OBJECT):
            return ""
        generation, content = self._look()
        if content and not is_dead(content):
            generation, content, changed = self._watch(generation, content)
            if changed and content:
                return _holder(content)
        return "" if self._write(generation) else _holder(self._look()[1])

    def _watch(
        self, generation: bytes, content: dict[str, Any]
    ) -> tuple[bytes, dict[str, Any], bool]:
        """Waits until it is renewed or removed, or one length of it has gone by."""
        print(
            f"{self.path} is the lease of {_holder(content)}: waiting up to"
            f" {SECONDS:.0f} s to see if that run lives.",
            file=sys.stderr,
        )
        until = time.monotonic() + SECONDS
        while time.monotonic() < until:
            time.sleep(SECONDS / RENEWALS / 4)
            now, content = self._look()
            if now != generation:
                return now, content, True
        return generation, content, False

    def renew_until_ended(self) -> None:
        """Renews it again and again; for a thread of its own."""
        while not self.trouble and not self._ended.wait(SECONDS / RENEWALS):
            self._renew()

    def see(self) -> None:
        """Looks at once if it is still held, where that was not seen for too long.

        As after this process was suspended.
        """
        if not self.trouble and time.monotonic() - self._renewed_at > SECONDS / 2:
            self._renew()

    def _renew(self) -> None:
        with self._renewing:
            if self._ended.is_set():
                return
            try:
                if not self._write(self._generation) and not self._is_own():
                    content = self._look()[1]
                    self.trouble = (
                        f"{_holder(content)} has taken it over"
                        if content
                        else "it was removed"
                    )
            except Exception as error:
                # The store may be back in time: until then nobody else may write.
                if time.monotonic() - self._renewed_at > SECONDS:
                    self.trouble = f"it could not be renewed ({_line(error)})"

    def end(self) -> None:
        """Renews it no more, and removes it where it is still held."""
        self._ended.set()
        # A renewal under way has another generation when it is done.
        with self._renewing, contextlib.suppress(Exception):
            if not self.trouble:
                self._store.write(
                    self.path.name, None, if_equal=self._generation
                ).result()

    def _look(self) -> tuple[bytes, dict[str, Any]]:
        with _naming(self.path):
            read = self._store.read(self.path.name).result()
        content = json.loads(read.value) if read.state == "value" else {}
        return read.stamp.generation, content

    def _write(self, generation: bytes) -> bool:
        """Writes it if it is still of a generation; False if it is not."""
        self._count += 1
        content = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "machine": _machine(),
            "token": self._token,
            "seconds": SECONDS,
            "since": self._since,
            "renewal": self._count,
            "time": time.time(),
        }
        began = time.monotonic()
        with _naming(self.path):
            stamp = self._store.write(
                self.path.name, json.dumps(content).encode(), if_equal=generation
            ).result()
        if not stamp.generation:
            return False
        self._generation, self._renewed_at = stamp.generation, began
        return True

    def _is_own(self) -> bool:
        """True if a write went through whose answer was lost, so that it came twice."""
        generation, content = self._look()
        if content.get("token") != self._token:
            return False
        self._generation, self._renewed_at = generation, time.monotonic()
        return True


@contextlib.contextmanager
def lease(path: StorePath) -> Iterator[Lease | str]:
    """Holds a lease, renewed by a thread; it is removed at the end.

    Yields:
      The lease, or the host and the process that hold it.

    Raises:
      OSError: If it cannot be written.
    """
    held = Lease(path)
    if holder := held.take():
        yield holder
        return
    thread = threading.Thread(target=held.renew_until_ended, daemon=True)
    thread.start()
    _HELD.append(held)
    try:
        yield held
    finally:
        _HELD.remove(held)
        held.end()
        thread.join(timeout=SECONDS / RENEWALS)


def _open(path: StorePath) -> Any:
    import tensorstore  # here, because it takes a while

    parent = path.parent
    assert isinstance(parent, StorePath)
    with _naming(path):
        return tensorstore.KvStore.open(kvstores.spec(parent)).result()


def _holder(content: dict[str, Any]) -> str:
    return f"host {content.get('host', '?')}, pid {content.get('pid', '?')}"


def check(path: pathlib.Path) -> None:
    """Refuses to write to a folder whose lease this process had, and has lost.

    Raises:
      OSError: With what became of it.
    """
    for held in _HELD:
        if not path.is_relative_to(held.path.parent):
            continue
        held.see()
        if held.trouble:
            raise OSError(
                f"This run has lost its lease of {held.path.parent}: {held.trouble}."
                " It stops, and writes no more there; the same command goes on from the"
                " last checkpoint."
            )


def is_dead(content: Mapping[str, Any]) -> bool:
    """True for a holder that was a process of this machine, and is no more.

    Args:
      content: The object of its lease.
    """
    if not _machine() or content.get("machine") != _machine():
        return False
    return not pathlib.Path(f"/proc/{content['pid']}").exists()


def _machine() -> str:
    """The place where a number of a process is that of one process; "" if unknown."""
    try:
        boot = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


@contextlib.contextmanager
def _naming(path: StorePath) -> Iterator[None]:
    """Turns TensorStore's errors into `OSError` with the place and the reason."""
    try:
        yield
    except (ValueError, RuntimeError) as error:
        raise OSError(5, _line(error), str(path)) from error


def _line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text.partition(" [")[0].rstrip(".")[:200]
