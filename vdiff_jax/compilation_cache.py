"""The folder of compiled programs that every later start of a command finds again."""

import hashlib
import pathlib
import platform

import jax

from vdiff_jax.files.cache import cache

MOST_BYTES = 4 * 2**30
# What takes less to compile would take as long to read.
LEAST_SECONDS = 0.1


def use() -> str:
    """Turns JAX's persistent compilation cache on; returns a line on where it lies.

    It is a folder of the user's, of at most 4 GiB, from which JAX removes what was used
    longest ago; several processes may use it at once. A folder that JAX was given
    already, as by JAX_COMPILATION_CACHE_DIR, stays as it is.
    """
    if not jax.config.values["jax_enable_compilation_cache"]:
        return "compiled programs are not kept (jax_enable_compilation_cache is off)"
    if not jax.config.values["jax_compilation_cache_dir"]:
        folder = _folder()
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            return f"compiled programs are not kept ({error})"
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_compilation_cache_max_size", MOST_BYTES)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", LEAST_SECONDS)
    where = jax.config.values["jax_compilation_cache_dir"]
    return f"compiled programs are kept in {where} (--nocompilation_cache: nowhere)"


def _folder() -> pathlib.Path:
    """A folder for this kind of machine, as code for one CPU may not run on another."""
    return cache() / "compiled" / _machine()


def _machine() -> str:
    kind = f"{platform.machine()} {platform.system()} {_cpu_features()}"
    return hashlib.sha256(kind.encode()).hexdigest()[:12]


def _cpu_features() -> str:
    """The instructions that the CPU has, where the system tells."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((x for x in lines if x.startswith(("flags", "Features"))), "")
