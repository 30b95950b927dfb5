"""The one loop: updates on batches, with logs, samples and checkpoints."""

import contextlib
import enum
import math
import signal
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool

from vdiff_jax import parallel
from vdiff_jax.files.atomic import write_json
from vdiff_jax.files.fingerprints import named_leaves, params_sha256
from vdiff_jax.generation.conditions import conditioned
from vdiff_jax.generation.grids import to_show
from vdiff_jax.training import checkpoints
from vdiff_jax.training.ahead import compiling_first_call
from vdiff_jax.training.calls import Calls
from vdiff_jax.training.interrupts import InterruptedRunError, Interrupts
from vdiff_jax.training.lines import HELD_OUT
from vdiff_jax.training.origin import begin, examples_of, info_of
from vdiff_jax.training.records import Records
from vdiff_jax.training.run import Run, Tools
from vdiff_jax.training.step import Metrics, Networks, TrainState
from vdiff_jax.training.throughput import Throughput
from vdiff_jax.types import Feed, Params

# More updates that are left out are counted, but not reported with their examples.
MOST_REPORTS = 100
# A first call that takes longer than this is spoken of when it is done.
SECONDS_OF_SILENCE = 5.0


class Vote(enum.IntEnum):
    """The wish of a host at a call; of all hosts' votes the highest is granted."""

    NOTHING = 0
    SAVE = 1
    # To save and end, by the number of the signal that asked for it.
    INTERRUPT = signal.SIGINT
    TERMINATE = signal.SIGTERM


class Due(NamedTuple):
    """What is to be done between two calls."""

    evaluate: bool
    draw: bool
    save: bool


class NonFiniteError(RuntimeError):
    """Training met a loss, a gradient or an EMA that is not finite."""


def fit(tools: Tools, run: Run) -> Params:
    """Trains to the end of the run, from its last checkpoint if there is one.

    Args:
      tools: Everything that the stage's runs share.
      run: This run.

    Returns:
      The EMA parameters.

    Raises:
      NonFiniteError: If a loss is not finite, unless `on_nonfinite` is skip; or the EMA
        is not.
      InterruptedRunError: If the process was asked to end; everything is saved.
      ValueError: If the checkpoint is of another teacher or other data.
      DamagedError: If there were checkpoints, and none is sound.
    """
    options = tools.loop
    with Interrupts() as interrupts, compiling_first_call(tools, run) as wait:
        state, info = begin(tools, run)
        with (
            checkpoints.open_folder(
                run.checkpoints,
                keep=options.keep_checkpoints,
                keep_every=options.keep_every_steps,
                keep_best=options.keep_best,
            ) as saved,
            Records(
                run.folder,
                name=run.name,
                done=int(state.step),
                num_updates=run.num_updates,
                batch_size=tools.batch_size,
                wandb_project=tools.wandb_project,
            ) as records,
        ):
            loop = _Loop(tools, run, saved, records, interrupts, info, wait)
            if loop.ask() <= Vote.SAVE:  # else it was asked to end before it began
                state = loop.run(state)
        tools.profile.stop()
        if int(state.step) == run.num_updates:
            content = loop.result(state)  # by all: an EMA may be spread over the hosts
            if parallel.is_main():
                write_json(run.result, content)
        ended_by = max(loop.granted, loop.ask())
        interrupts.answered = ended_by > Vote.SAVE
    if ended_by > Vote.SAVE:
        step = int(state.step)
        raise InterruptedRunError(
            ended_by,
            f"{run.name}: ended by {signal.Signals(ended_by).name}"
            f" {f'and saved at step {step}' if step else 'before its first update'};"
            " the same command goes on from there.",
        )
    return state.ema_params


class _Loop:
    """The state of a run of the loop, beside the train state.

    Attributes:
      granted: The vote that was granted at the last call.
    """

    def __init__(
        self,
        tools: Tools,
        run: Run,
        saved: checkpoints.Open,
        records: Records,
        interrupts: Interrupts,
        info: dict[str, Any],
        wait_for_program: Callable[[], None],
    ):
        self._tools, self._run = tools, run
        self._saved, self._records = saved, records
        self._interrupts, self._wait_for_program = interrupts, wait_for_program
        self._seconds_before = info["seconds"]
        self._skipped = info["skipped"]
        self._last: dict[str, float] = info["last"]
        self._began = self._saved_at = time.monotonic()
        self._values: list[dict[str, np.ndarray]] = []
        self._first_call_at: float | None = None
        self._first_is_read = False
        self._throughput = Throughput(tools.batch_size, tools.flops_per_image)
        self.granted = Vote.NOTHING

    def run(self, state: TrainState) -> TrainState:
        """Dispatches call after call; reads the metrics of one while the next runs."""
        run, options = self._run, self._tools.loop
        calls = Calls(int(state.step), run.num_updates, options.steps_per_call)
        waiting = None
        with contextlib.closing(
            self._tools.feeder.feeds(calls, run.order_seed)
        ) as feeds:
            for (first, steps), feed in zip(calls, feeds, strict=True):
                state, metrics = self._call(state, feed, steps)
                vote = parallel.highest(self._vote(), self._tools.mesh)
                self.granted = Vote.NOTHING
                if waiting is not None:
                    self.granted = self._read(*waiting)
                waiting = (first, steps, metrics, vote)
                due = self._due(first, first + steps)
                if any(due):
                    # State leaves the device: first make sure that it is sound.
                    self.granted = max(self.granted, self._read(*waiting))
                    waiting = None
                    self._look(state, due)
                if self.granted > Vote.SAVE:
                    break
        return state

    def _due(self, first: int, done: int) -> Due:
        """What is due after the updates from `first` to `done`; all after the last."""
        if done == self._run.num_updates:
            return Due(evaluate=True, draw=True, save=True)
        options = self._tools.loop
        return Due(
            evaluate=_crosses(first, done, options.eval_every_steps),
            draw=_crosses(first, done, options.sample_every_steps),
            save=_crosses(first, done, options.checkpoint_every_steps)
            or self.granted >= Vote.SAVE,
        )

    def result(self, state: TrainState) -> dict[str, Any]:
        """The content of result.json."""
        images_per_second = self._throughput.measures()["images_per_second"]
        return {
            "step": int(state.step),
            "params_sha256": params_sha256(state.ema_params),
            "seconds": round(self._seconds(), 3),
            "images_per_second": round(images_per_second, 1),
            "skipped": self._skipped,
            **self._last,
            **self._run.facts,
        }

    def _call(
        self, state: TrainState, feed: Feed, steps: int
    ) -> tuple[TrainState, Metrics]:
        """Dispatches some updates; prints that it compiles them where it has to."""
        tools = self._tools
        began, new = time.monotonic(), steps not in tools.compiled
        if new:
            self._records.say(f"{self._run.name}: compiling {steps} updates to a call")
            self._wait_for_program()
        with tools.profile.trace(self._run.folder, steps, counts=not new) as watched:
            state, metrics = tools.train_step(state, feed, self._run.job)
            watched.append(metrics)
        if new:
            tools.compiled.add(steps)
            seconds = time.monotonic() - began
            updates = "1 update is" if steps == 1 else f"{steps} updates are"
            self._records.say(
                f"{self._run.name}: compiled in {seconds:.1f} s; {updates} under way"
            )
        if self._first_call_at is None:
            self._first_call_at = time.monotonic()
        return state, metrics

    def ask(self) -> Vote:
        """The highest vote of all hosts now; waits for their answers."""
        return Vote(int(parallel.highest(self._vote(), self._tools.mesh)))

    def _vote(self) -> Vote:
        """The vote of this host."""
        preempted = parallel.preempted()
        if self._interrupts.signal:
            return Vote(self._interrupts.signal)
        if preempted:
            return Vote.TERMINATE
        minutes = self._tools.loop.checkpoint_every_minutes
        if minutes and time.monotonic() - self._saved_at > 60 * minutes:
            self._saved_at = time.monotonic()
            return Vote.SAVE
        return Vote.NOTHING

    def _read(self, first: int, steps: int, metrics: Metrics, vote: Any) -> Vote:
        """Waits for a call to end, and logs it; returns the highest vote."""
        values = {name: np.asarray(value) for name, value in metrics.items()}
        self._say_how_long_it_took(steps)
        self._throughput.add(steps)
        self._records.advance(steps)
        self._check_finite(first, values)
        norms = _mean_of_finite("grad_norm", values.pop("grad_norm"))
        rate = float(values.pop("learning_rate")[-1])
        self._values.append(values)
        done = first + steps
        if _crosses(first, done, self._tools.loop.log_every_steps):
            means = self._means()
            self._last |= means
            self._records.scalars(
                done,
                {
                    **means,
                    **norms,
                    "learning_rate": rate,
                    **self._throughput.measures(),
                    "skipped": self._skipped,
                },
            )
        return Vote(int(vote))

    def _means(self) -> dict[str, float]:
        """Means of the loss and its metrics since they were last asked for."""
        names = self._values[0]
        means = [
            _mean_of_finite(name, np.concatenate([each[name] for each in self._values]))
            for name in names
        ]
        self._values.clear()
        return {name: mean for each in means for name, mean in each.items()}

    def _say_how_long_it_took(self, steps: int) -> None:
        """Prints the time of the first call, if that was long enough to wonder."""
        if self._first_is_read or self._first_call_at is None:
            return
        self._first_is_read = True
        seconds = time.monotonic() - self._first_call_at
        if seconds >= SECONDS_OF_SILENCE:
            self._records.say(
                f"{self._run.name}: the first call, of {steps} updates, took"
                f" {seconds:.0f} s"
            )

    def _check_finite(self, first: int, values: dict[str, np.ndarray]) -> None:
        """Counts the updates that were left out, or stops at the first of them."""
        finite = np.isfinite(values["loss"]) & np.isfinite(values["grad_norm"])
        if finite.all():
            return
        for at in np.flatnonzero(~finite).tolist():
            name = "grad_norm" if np.isfinite(values["loss"][at]) else "loss"
            self._report(first + at + 1, name, float(values[name][at]))
        self._skipped += int((~finite).sum())

    def _report(self, step: int, name: str, value: float) -> None:
        """Notes an update that was left out, or stops, as `on_nonfinite` chooses."""
        if self._skipped >= MOST_REPORTS:
            return
        path = self._run.folder / "nonfinite" / f"{step:08d}.json"
        examples = examples_of(self._tools, self._run, step)
        if parallel.is_main():
            report = {"run": self._run.name, "step": step, name: str(value)}
            write_json(path, {**report, "examples": examples})
        trouble = f"{self._run.name}: {name} is {value} at step {step}"
        if self._tools.loop.on_nonfinite == "skip":
            self._records.say(f"{trouble}; the update is left out, see {path}")
            return
        raise NonFiniteError(
            f"{trouble}; stopped. The examples of its batch are in {path}, and"
            f" --replay {step} finds where it began. {self._last_good()} Lower the"
            " learning rate, or set on_nonfinite=skip to leave such updates out."
        )

    def _check_ema_finite(self, step: int, ema_params: Params) -> None:
        """Stops before anything of an EMA that is not finite is drawn or saved."""
        finite = [(name, _all_finite(leaf)) for name, leaf in named_leaves(ema_params)]
        wrong = [name for name, all_finite in finite if not all_finite]
        if not wrong:
            return
        raise NonFiniteError(
            f"{self._run.name}: {wrong[0]} of the EMA is not finite at step {step}"
            f" ({len(wrong)} of {len(finite)} arrays); stopped, and nothing of it was"
            f" saved. {self._last_good()} Lower the learning rate."
        )

    def _last_good(self) -> str:
        """A sentence on the newest checkpoint."""
        last = self._saved.manager.latest_step()
        return (
            f"The last good checkpoint is"
            f" {'none' if last is None else f'that of step {last}'} in"
            f" {self._run.folder}."
        )

    def _look(self, state: TrainState, due: Due) -> None:
        """Held-out loss, samples and a checkpoint, where they are due."""
        step, tools = int(state.step), self._tools
        self._check_ema_finite(step, state.ema_params)
        held_out_loss = None
        draw = due.draw and self._run.samples is not None
        if due.evaluate or draw:
            ema_params = parallel.gather(state.ema_params, tools.mesh)
            if due.evaluate and tools.held_out:
                networks = state.networks._replace(main=ema_params)
                held_out = self._held_out(networks)
                held_out_loss = held_out["held_out_loss"]
                self._last |= held_out
                self._records.scalars(step, held_out)
            if draw:
                images = self._samples(ema_params)
                self._records.grid(step, to_show(images))
        if due.save or self.granted >= Vote.SAVE:
            self._records.check_folder()
            self._records.flush()
            info = {
                "seconds": self._seconds(),
                "skipped": self._skipped,
                "last": self._last,
                **info_of(tools, self._run, step),
            }
            checkpoints.save(self._saved, state, info, held_out_loss)
            self._saved_at = time.monotonic()
        self._throughput.pause()

    def _samples(self, ema_params: Params) -> np.ndarray:
        """64 images, always from the same noise."""
        mesh = self._tools.mesh
        sharding = parallel.replicated(mesh) if 64 % mesh.size else parallel.split(mesh)
        index, sampler = np.arange(64), self._tools.sampler
        start = sampler.start(parallel.put(index, sharding), np.int32(0))
        start = conditioned(start, self._tools.condition_of, index, sharding)
        assert self._run.samples is not None
        data = parallel.fetch(sampler.draw(ema_params, start, self._run.samples))
        return sampler.model.codec.to_images(data)

    def _held_out(self, networks: Networks) -> dict[str, float]:
        """Means of the loss and its metrics over the held-out examples."""
        values = [
            self._tools.eval_step(
                networks,
                batch,
                self._run.job._replace(key=jax.random.fold_in(jax.random.key(0), i)),
            )
            for i, batch in enumerate(self._tools.held_out)
        ]
        return {
            f"{HELD_OUT}{name}": float(
                np.mean([np.asarray(each[name]).mean() for each in values])
            )
            for name in values[0]
        }

    def _seconds(self) -> float:
        return self._seconds_before + time.monotonic() - self._began


@jax.jit
def _all_finite(leaf: Array) -> Bool[Array, ""]:
    return jnp.isfinite(leaf).all()


def _mean_of_finite(name: str, values: np.ndarray) -> dict[str, float]:
    """The metric, or nothing where no value is finite."""
    finite = values[np.isfinite(values)]
    return {name: float(finite.mean())} if len(finite) else {}


def _crosses(first: int, last: int, every: int) -> bool:
    """True if a multiple of `every` lies in (first, last]; 0 means never."""
    return every > 0 and math.floor(last / every) > math.floor(first / every)
