"""Where a run begins or goes on from, and which examples its updates take."""

import pathlib
from typing import Any

import jax
import jax.numpy as jnp

from vdiff_jax import parallel
from vdiff_jax.datasets.shuffle import batch_indices
from vdiff_jax.training import checkpoints
from vdiff_jax.training.run import Run, Tools
from vdiff_jax.training.step import TrainState, init_state


def begin(
    tools: Tools, run: Run, at_most: int | None = None
) -> tuple[TrainState, dict[str, Any]]:
    """The state that a run goes on from, and the info of its checkpoint.

    Args:
      tools: Everything that the stage's runs share.
      run: This run.
      at_most: Takes no checkpoint of a later step.

    Raises:
      ValueError: If the checkpoint is of another teacher or other data.
    """
    folder = run.checkpoints
    restored = checkpoints.restore(
        folder, tools.abstract_state, tools.shardings, at_most=at_most
    )
    if restored is not None:
        _check_origin(restored[1], info_of(tools, run, 0), folder)
        return restored
    # The step donates its state, so the state must not share buffers with a teacher.
    networks = jax.tree.map(jnp.copy, run.start())
    state = init_state(networks.main, tools.optimizer, networks.auxiliary)
    info = {"seconds": 0.0, "skipped": 0, "last": {}}
    return parallel.put(state, tools.shardings), info


def info_of(tools: Tools, run: Run, step: int) -> dict[str, Any]:
    """The origin of a state, for its checkpoint."""
    length = tools.feeder.length
    epoch, position = divmod(step * tools.batch_size, length)
    return {
        "run": run.name,
        **run.facts,
        "config": tools.config,
        "data": {
            "examples": length,
            "sha256_of_sample": tools.data_sha256,
            "epoch": epoch,
            "position": position,
        },
    }


def _check_origin(
    info: dict[str, Any], now: dict[str, Any], folder: pathlib.Path
) -> None:
    """Refuses to go on with another teacher or with other data."""
    data, data_now = info["data"], now["data"]
    # Version 0.1 recorded no hash of the data.
    data = {"sha256_of_sample": data_now["sha256_of_sample"], **data}
    for name, before, after in (
        ("teacher_sha256", info.get("teacher_sha256"), now.get("teacher_sha256")),
        ("number of examples", data["examples"], data_now["examples"]),
        ("data set", data["sha256_of_sample"], data_now["sha256_of_sample"]),
    ):
        if before != after:
            raise ValueError(
                f"The run in {folder} was begun with another {name}: {before} there,"
                f" {after} now. Bring it back, or use another --workdir."
            )


def examples_of(tools: Tools, run: Run, step: int) -> list[int]:
    """The numbers of the examples in the batch of one update, row by row.

    Args:
      tools: Everything that the stage's runs share.
      run: This run.
      step: The update, from 1.
    """
    return batch_indices(
        step - 1,
        batch_size=tools.batch_size,
        length=tools.feeder.length,
        seed=run.order_seed,
    )
