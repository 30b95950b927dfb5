"""A disk that is full."""

import contextlib
import resource


@contextlib.contextmanager
def full_disk():
    """No file grows beyond ten bytes, of which the system says no more than that."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
