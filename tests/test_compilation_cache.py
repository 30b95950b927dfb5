"""Programs that are compiled once are found again, by any later process."""

import os
import subprocess
import sys

import jax
import pytest

from vdiff_jax import compilation_cache
from vdiff_jax.files.cache import cache

PROGRAM = """
import logging, sys
import jax, jax.numpy as jnp
from vdiff_jax import compilation_cache
compilation_cache.LEAST_SECONDS = 0.0
print(compilation_cache.use())
hits = []
jax.monitoring.register_event_listener(lambda event, **_: hits.append(event))
print(jax.jit(lambda x: jnp.tanh(x) @ x.T)(jnp.ones((8, 8)))[0, 0])
print(sum(event.endswith("/cache_hits") for event in hits), "found")
"""


def _start(home, **env):
    kept = {k: v for k, v in os.environ.items() if not k.startswith("JAX_")}
    env = {**kept, "XDG_CACHE_HOME": str(home), **env}
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(
        command, env=env, capture_output=True, text=True, check=True, timeout=300
    )
    assert "Warning" not in done.stderr
    where, value, found = done.stdout.splitlines()
    return where, value, int(found.split()[0])


@pytest.mark.slow
def test_a_later_process_finds_what_an_earlier_one_compiled(tmp_path):
    where, value, found = _start(tmp_path)
    assert found == 0
    assert str(tmp_path / "vdiff_jax" / "compiled") in where
    _, again, found = _start(tmp_path)
    assert again == value
    assert found > 0


@pytest.mark.slow
def test_what_was_left_half_written_is_compiled_and_kept_again(tmp_path):
    where, value, _ = _start(tmp_path)
    folder = next((tmp_path / "vdiff_jax" / "compiled").iterdir())
    assert str(folder) in where
    program, *others = sorted(folder.glob("*-cache"))
    whole = program.read_bytes()
    # As a kill, or a full disk, leaves it: part of the program, and no time.
    program.write_bytes(whole[: len(whole) // 2])
    program.with_name(program.name.removesuffix("-cache") + "-atime").unlink()
    _, again, _ = _start(tmp_path)
    assert again == value
    assert sorted(folder.glob("*-cache")) == [program, *others]
    assert len(program.read_bytes()) > len(whole) // 2
    _, _, found = _start(tmp_path)
    assert found == len([program, *others])


@pytest.mark.slow
def test_a_folder_that_jax_was_given_is_used(tmp_path):
    own = tmp_path / "own"
    where, _, _ = _start(tmp_path / "home", JAX_COMPILATION_CACHE_DIR=str(own))
    assert str(own) in where
    assert not (tmp_path / "home").exists()


def test_a_home_that_cannot_be_written_is_named(monkeypatch, tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(file))
    before = jax.config.values["jax_compilation_cache_dir"]
    jax.config.update("jax_compilation_cache_dir", None)
    try:
        assert "are not kept" in compilation_cache.use()
        assert jax.config.values["jax_compilation_cache_dir"] is None
    finally:
        jax.config.update("jax_compilation_cache_dir", before)


def test_another_cpu_has_another_folder(monkeypatch):
    ours = compilation_cache._folder()
    monkeypatch.setattr(compilation_cache, "_cpu_features", lambda: "flags: none")
    assert compilation_cache._folder() != ours
    assert compilation_cache._folder().parent == ours.parent
    assert ours.is_relative_to(cache())


@pytest.mark.parametrize(
    ("variables", "folder"),
    [
        ({}, "home/.cache/vdiff_jax"),
        ({"XDG_CACHE_HOME": "xdg"}, "xdg/vdiff_jax"),
        ({"XDG_CACHE_HOME": "xdg", "VDIFF_JAX_CACHE": "own"}, "own"),
    ],
)
def test_one_folder_of_the_user_has_all_that_is_kept(
    monkeypatch, tmp_path, variables, folder
):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("XDG_CACHE_HOME", "VDIFF_JAX_CACHE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, str(tmp_path / value))
    assert cache() == tmp_path / folder
    assert compilation_cache._folder().parent == tmp_path / folder / "compiled"
