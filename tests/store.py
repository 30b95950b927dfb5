"""An S3 server on this machine, for tests: moto's, in a process of its own."""

import contextlib
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator

from tests.faults.runs import free_address

BUCKET = "bucket"
# Of nobody: the server takes any.
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "of-the-tests",
    "AWS_SECRET_ACCESS_KEY": "of-the-tests",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}


@contextlib.contextmanager
def server() -> Iterator[dict[str, str]]:
    """Yields the environment of a client of a new server, which has one bucket."""
    address = free_address()
    host, port = address.split(":")
    process = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", host, "-p", port],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        url = f"http://{address}"
        _wait_for(url, process)
        request = urllib.request.Request(f"{url}/{BUCKET}", method="PUT")
        with urllib.request.urlopen(request):
            pass
        yield {**CREDENTIALS, "AWS_ENDPOINT_URL": url}
    finally:
        process.kill()
        process.wait()


def _wait_for(url: str, process: subprocess.Popen) -> None:
    end = time.monotonic() + 60
    while time.monotonic() < end and process.poll() is None:
        with contextlib.suppress(urllib.error.URLError):
            urllib.request.urlopen(url).close()
            return
        time.sleep(0.05)
    raise RuntimeError("moto's server has not started")


def main() -> int:
    """Runs a command with a server beside it, as `python -m tests.store COMMAND`."""
    with server() as environment:
        return subprocess.call(sys.argv[1:], env={**os.environ, **environment})


if __name__ == "__main__":
    sys.exit(main())
