"""The folder of compiled programs that every later start of a command finds again."""

import hashlib
import pathlib
import platform

import filelock
import jax

from vdiff_jax.files.cache import cache

MOST_BYTES = 4 * 2**30
# What takes less to compile would take as long to read.
LEAST_SECONDS = 0.1
# JAX writes a program and then, in a second file, when it was used last; both under a
# lock.
PROGRAM, TIME, LOCK = "-cache", "-atime", ".lockfile"
LOCK_SECONDS = 10.0


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
            remove_halves(folder)
        except OSError as error:
            return f"compiled programs are not kept ({error})"
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_compilation_cache_max_size", MOST_BYTES)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", LEAST_SECONDS)
    where = jax.config.values["jax_compilation_cache_dir"]
    return f"compiled programs are kept in {where} (--nocompilation_cache: nowhere)"


def remove_halves(folder: pathlib.Path) -> None:
    """Removes programs that a kill or a full disk left half-written.

    JAX would neither read nor replace them, and could make no room for others.

    Args:
      folder: A bounded folder of compiled programs.

    Raises:
      OSError: If another process holds the folder's lock for long, or one cannot be
        removed.
    """
    with filelock.FileLock(folder / LOCK, timeout=LOCK_SECONDS):
        for program in folder.glob(f"*{PROGRAM}"):
            time = program.with_name(program.name.removesuffix(PROGRAM) + TIME)
            if not time.exists():
                program.unlink()


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
