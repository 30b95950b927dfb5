"""The folder of the user's for what can be made again."""

import os
import pathlib


def cache() -> pathlib.Path:
    """The user's folder for what is made again if it is lost.

    It has copies of what lies in stores, listings of folders and compiled programs; it
    is $VDIFF_JAX_CACHE or, without it, `vdiff_jax` in $XDG_CACHE_HOME or ~/.cache.
    """
    if name := os.environ.get("VDIFF_JAX_CACHE"):
        return pathlib.Path(name).expanduser()
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return pathlib.Path(home).expanduser() / "vdiff_jax"
