"""An S3 server on this machine, for tests: moto's, in a process of its own."""

import contextlib
import http.client
import http.server
import itertools
import os
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator

from tests.faults.runs import free_address

BUCKET = "bucket"
_REFUSALS = {
    403: "<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>",
    503: "<Error><Code>SlowDown</Code><Message>Please slow down</Message></Error>",
}
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


@contextlib.contextmanager
def front(url: str, refused: Callable[[int], int]) -> Iterator[str]:
    """Yields the address of a server before another, which refuses some requests.

    Args:
      url: The other's address.
      refused: The number of a request, from 0 -> the status to answer with; 0 asks the
        other.
    """
    numbers = itertools.count()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            length = int(self.headers.get("Content-Length", 0))
            body = self.rfile.read(length)
            if status := refused(next(numbers)):
                self.send(status, [], _REFUSALS[status].encode())
                return
            behind = http.client.HTTPConnection(url.removeprefix("http://"))
            behind.request(self.command, self.path, body, dict(self.headers))
            answer = behind.getresponse()
            self.send(answer.status, answer.getheaders(), answer.read())
            behind.close()

        def send(
            self, status: int, headers: list[tuple[str, str]], body: bytes
        ) -> None:
            self.send_response_only(status)
            length = str(len(body))
            for name, value in headers:
                if name.lower() == "content-length" and self.command == "HEAD":
                    length = value
                elif name.lower() not in ("content-length", "connection"):
                    self.send_header(name, value)
            self.send_header("Content-Length", length)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = answer

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


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
