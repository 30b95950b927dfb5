"""The one loop: batches in, updates, and what people and the next run need out."""

import dataclasses
import math
import pathlib
import time
from collections.abc import Callable
from contextlib import closing
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from vdiff_jax import build, checkpoints, parallel, training
from vdiff_jax.build import Config
from vdiff_jax.datasets.feeds import Feeder
from vdiff_jax.datasets.loader import load
from vdiff_jax.records import Records, to_show, write_json
from vdiff_jax.stages import workdir as places
from vdiff_jax.types import Params


class NonFiniteError(RuntimeError):
    """Training met a loss or a gradient that is not a number."""


@dataclasses.dataclass(frozen=True)
class Tools:
    """What is built, and compiled, once for all the runs of a stage.

    Attributes:
      section: The config's `train` or `distill`.
      train_step: The compiled step, (state, feed, job) -> (state, metrics).
      eval_step: The compiled held-out loss.
      sampler: See `build.sampler`.
      optimizer: Up to the learning rate.
      abstract_state: Shapes of the state, to restore into.
      feeder: Feeds the step with the training split.
      held_out: Some batches of the held-out split.
      mesh: The devices.
    """

    section: Config
    train_step: Callable[..., tuple[training.TrainState, training.Metrics]]
    eval_step: Callable[..., Any]
    sampler: build.Sampler
    optimizer: optax.GradientTransformation
    abstract_state: training.TrainState
    feeder: Feeder
    held_out: list[training.Batch]
    mesh: Mesh


@dataclasses.dataclass(frozen=True)
class Run:
    """One run of the loop.

    Attributes:
      name: Shown in the progress bar.
      folder: Where everything is written.
      job: Key, length and loss arguments.
      num_updates: The length, as the host knows it.
      order_seed: Decides the order of the data.
      sample_steps: Of the sampler of the grids.
      facts: Goes into result.json: where the run came from.
    """

    name: str
    folder: pathlib.Path
    job: training.Job
    num_updates: int
    order_seed: tuple[int, ...]
    sample_steps: int
    facts: dict[str, Any]


def make_tools(
    config: Config,
    section: Config,
    model: build.Model,
    loss: training.Loss,
    eval_loss: training.Loss,
) -> Tools:
    """Builds and checks everything that a stage's runs share."""
    mesh = parallel.data_mesh()
    parallel.check_batch_size(section.batch_size, mesh)
    if section.on_nonfinite not in ("stop", "skip"):
        raise ValueError(
            f"on_nonfinite={section.on_nonfinite!r} is unknown; choose stop or skip."
        )
    optimizer = build.optimizer(section)
    feeder = build.feeder(config, section, mesh)
    return Tools(
        section=section,
        train_step=build.train_step(config, section, loss, feeder),
        eval_step=jax.jit(training.make_eval_step(eval_loss)),
        sampler=build.sampler(config, model),
        optimizer=optimizer,
        abstract_state=jax.eval_shape(
            lambda: training.init_state(model.init(jax.random.key(0)), optimizer)
        ),
        feeder=feeder,
        held_out=_held_out(config, section.batch_size, mesh),
        mesh=mesh,
    )


def _held_out(config: Config, batch_size: int, mesh: Mesh) -> list[training.Batch]:
    """The first pictures of the held-out split, in whole batches of wrapped order."""
    if not config.data.held_out:
        return []
    pictures = build.source(config, "test")
    calls = -(-min(config.data.held_out, len(pictures)) // batch_size)
    stacks = load(
        pictures,
        batch_size=batch_size,
        seed=(0,),
        calls=[(call, 1) for call in range(calls)],
        num_workers=config.data.workers,
        rows=parallel.local_rows(batch_size, mesh),
    )
    return [
        parallel.put_rows(
            training.Batch(stack["image"][0], stack["label"][0]),
            parallel.split(mesh),
            batch_size,
        )
        for stack in stacks
    ]


def fit(tools: Tools, run: Run, start: Callable[[], Params]) -> Params:
    """Trains to the end of the run, from its last checkpoint if there is one.

    Args:
      tools: What the stage's runs share.
      run: This run.
      start: Makes the parameters of step 0; called only for a new run.

    Returns:
      The EMA parameters.

    Raises:
      NonFiniteError: If a loss is not finite and the config says to stop.
    """
    with checkpoints.open_folder(
        places.checkpoint_folder(run.folder), keep=tools.section.keep_checkpoints
    ) as manager:
        state, info = _begin(tools, manager, start)
        with Records(
            run.folder,
            name=run.name,
            done=int(state.step),
            num_updates=run.num_updates,
            batch_size=tools.section.batch_size,
        ) as records:
            loop = _Loop(tools, run, manager, records, info)
            state = loop.run(state)
    write_json(run.folder / "result.json", loop.result(state))
    return state.ema_params


def _begin(
    tools: Tools, manager: Any, start: Callable[[], Params]
) -> tuple[training.TrainState, dict[str, Any]]:
    everywhere = parallel.replicated(tools.mesh)
    if manager.latest_step() is not None:
        return checkpoints.restore(manager, tools.abstract_state, everywhere)
    # The step donates its state, so the state must not share buffers with a teacher.
    params = jax.tree.map(jnp.copy, start())
    state = training.init_state(params, tools.optimizer)
    return parallel.put(state, everywhere), {"seconds": 0.0, "skipped": 0, "last": {}}


class _Loop:
    """The loop's few moving parts."""

    def __init__(
        self,
        tools: Tools,
        run: Run,
        manager: Any,
        records: Records,
        info: dict[str, Any],
    ):
        self._tools, self._run = tools, run
        self._manager, self._records = manager, records
        self._seconds_before = info["seconds"]
        self._skipped = info["skipped"]
        self._last: dict[str, float] = info["last"]
        self._began = time.monotonic()
        self._losses: list[np.ndarray] = []
        self._throughput = _Throughput(tools.section.batch_size)

    def run(self, state: training.TrainState) -> training.TrainState:
        """Dispatches call after call; reads the metrics of one while the next runs."""
        section, run = self._tools.section, self._run
        calls = _calls(int(state.step), run.num_updates, section.steps_per_call)
        waiting = None
        with closing(self._tools.feeder.feeds(calls, run.order_seed)) as feeds:
            for (first, steps), feed in zip(calls, feeds, strict=True):
                state, metrics = self._tools.train_step(state, feed, run.job)
                if waiting is not None:
                    self._read(*waiting)
                waiting = (first, steps, metrics)
                done = first + steps
                last = done == run.num_updates
                due = [
                    last or _crosses(first, done, section[f"{event}_every_steps"])
                    for event in ("eval", "sample", "checkpoint")
                ]
                if any(due):
                    # State leaves the device: first make sure that it is sound.
                    self._read(*waiting)
                    waiting = None
                    self._look(state, *due)
        if waiting is not None:
            self._read(*waiting)
        return state

    def result(self, state: training.TrainState) -> dict[str, Any]:
        """What result.json says."""
        return {
            "step": int(state.step),
            "params_sha256": checkpoints.params_sha256(state.ema_params),
            "seconds": round(self._seconds(), 3),
            "images_per_second": round(self._throughput.images_per_second(), 1),
            "skipped": self._skipped,
            **self._last,
            **self._run.facts,
        }

    def _read(self, first: int, steps: int, metrics: training.Metrics) -> None:
        """Waits for a call to end, and logs it."""
        values = {name: np.asarray(value) for name, value in metrics.items()}
        self._throughput.add(steps)
        self._records.advance(steps)
        self._check_finite(first, values)
        self._losses.append(values["loss"])
        done = first + steps
        if _crosses(first, done, self._tools.section.log_every_steps):
            losses = np.concatenate(self._losses)
            self._losses.clear()
            self._last |= _mean_of_finite("loss", losses)
            self._records.scalars(
                done,
                {
                    **_mean_of_finite("loss", losses),
                    **_mean_of_finite("grad_norm", values["grad_norm"]),
                    "learning_rate": float(values["learning_rate"][-1]),
                    "images_per_second": self._throughput.images_per_second(),
                    "skipped": self._skipped,
                },
            )

    def _check_finite(self, first: int, values: dict[str, np.ndarray]) -> None:
        """Counts the updates that were left out, or stops at the first of them."""
        finite = np.isfinite(values["loss"]) & np.isfinite(values["grad_norm"])
        if finite.all():
            return
        if self._tools.section.on_nonfinite == "stop":
            at = int(np.argmin(finite))
            name = "grad_norm" if np.isfinite(values["loss"][at]) else "loss"
            saved = self._manager.latest_step()
            raise NonFiniteError(
                f"{self._run.name}: {name} is {values[name][at]} at step"
                f" {first + at + 1}; stopped. The last good checkpoint is"
                f" {'none' if saved is None else f'that of step {saved}'} in"
                f" {self._run.folder}. Lower the learning rate, or set"
                " on_nonfinite=skip to leave such updates out."
            )
        self._skipped += int((~finite).sum())

    def _look(
        self, state: training.TrainState, evaluate: bool, draw: bool, save: bool
    ) -> None:
        """Held-out loss, samples and a checkpoint, where they are due."""
        step = int(state.step)
        if evaluate and self._tools.held_out:
            self._last["held_out_loss"] = self._held_out_loss(state.ema_params)
            self._records.scalars(step, {"held_out_loss": self._last["held_out_loss"]})
        if draw:
            images = self._tools.sampler(
                state.ema_params, jnp.arange(64), self._run.sample_steps, 0
            )
            self._records.grid(step, to_show(np.asarray(images)))
        if save:
            info = {
                "seconds": self._seconds(),
                "skipped": self._skipped,
                "last": self._last,
            }
            checkpoints.save(self._manager, state, info)
        self._throughput.pause()

    def _held_out_loss(self, params: Params) -> float:
        losses = [
            self._tools.eval_step(
                params,
                batch,
                self._run.job._replace(key=jax.random.fold_in(jax.random.key(0), i)),
            )
            for i, batch in enumerate(self._tools.held_out)
        ]
        return float(np.mean([np.asarray(loss).mean() for loss in losses]))

    def _seconds(self) -> float:
        return self._seconds_before + time.monotonic() - self._began


class _Throughput:
    """Images per second of the updates alone: no compiling, evaluating or saving."""

    def __init__(self, batch_size: int):
        self._batch_size = batch_size
        self._images, self._seconds = 0, 0.0
        self._all_images, self._began = 0, time.monotonic()
        self._since: float | None = None

    def add(self, updates: int) -> None:
        """Counts updates that have just ended; the first after a pause do not count."""
        now = time.monotonic()
        self._all_images += updates * self._batch_size
        if self._since is not None:
            self._images += updates * self._batch_size
            self._seconds += now - self._since
        self._since = now

    def pause(self) -> None:
        """Leaves out the time until updates end again."""
        self._since = None

    def images_per_second(self) -> float:
        """The mean so far; of a run too short to count, with all that it waited for."""
        if self._seconds:
            return self._images / self._seconds
        return self._all_images / (time.monotonic() - self._began)


def _mean_of_finite(name: str, values: np.ndarray) -> dict[str, float]:
    """The metric, or nothing where no value is finite."""
    finite = values[np.isfinite(values)]
    return {name: float(finite.mean())} if len(finite) else {}


def _calls(first: int, last: int, steps_per_call: int) -> list[tuple[int, int]]:
    """(first step, steps) of each call, cut at multiples of `steps_per_call`.

    So a resumed run is cut where the run that was never stopped is.
    """
    calls = []
    while first < last:
        steps = min(steps_per_call - first % steps_per_call, last - first)
        calls.append((first, steps))
        first += steps
    return calls


def _crosses(first: int, last: int, every: int) -> bool:
    """Whether a multiple of `every` lies in (first, last]; 0 means never."""
    return every > 0 and math.floor(last / every) > math.floor(first / every)
