"""The replay of one update, to find where its numbers stopped being finite."""

from collections.abc import Sequence
from contextlib import closing

import jax

from vdiff_jax.datasets.source import Source, name_of
from vdiff_jax.files.atomic import write_text
from vdiff_jax.from_config.data import make_source
from vdiff_jax.progress import Bar
from vdiff_jax.stages import Stage
from vdiff_jax.training.calls import Calls
from vdiff_jax.training.nonfinite import Origin, origins
from vdiff_jax.training.origin import begin, examples_of
from vdiff_jax.training.run import Run, Tools
from vdiff_jax.training.step import TrainState
from vdiff_jax.workdir.layout import Project

# More would hide the first ones, which matter.
MOST_ORIGINS, MOST_EXAMPLES = 10, 8


def run(project: Project, stages: Sequence[Stage], step: int) -> None:
    """Repeats the updates from the last checkpoint before `step`, then that one slowly.

    Prints the operations whose results were not finite first, and the examples they
    came from; the same goes to `nonfinite/<step>.txt`.

    Args:
      project: The config and its folder.
      stages: The stages that the command chose; of them, the first that trains and is
        not finished is replayed, or the last that trains.
      step: The update, from 1.

    Raises:
      ValueError: If there is no such step in the run that is under way, or the workdir
        has another config.
    """
    if jax.process_count() > 1:
        raise ValueError("--replay works on one host: start it without the others.")
    tools, under_way = _under_way(project, stages)
    if not 1 <= step <= under_way.num_updates:
        raise ValueError(
            f"--replay {step}: {under_way.name} has steps 1 to {under_way.num_updates}."
        )
    state, _ = begin(tools, under_way, at_most=step - 1)
    state = _advance(tools, under_way, state, step - 1)
    with closing(tools.feeder.feeds([(step - 1, 1)], under_way.order_seed)) as feeds:
        feed = next(feeds)
    first = origins(tools.plain_step, state, feed, under_way.job)
    examples = examples_of(tools, under_way, step)
    source = make_source(project.config, "train")

    lines = [f"{under_way.name}, step {step}:"]
    if not first:
        lines.append("Loss and gradient are finite this time.")
    for origin in first[:MOST_ORIGINS]:
        lines += [str(origin), *_named(origin, examples, source)]
    if len(first) > MOST_ORIGINS:
        lines.append(f"and {len(first) - MOST_ORIGINS} more")
    text = "\n".join(lines) + "\n"
    print(text, end="")
    write_text(under_way.folder / "nonfinite" / f"{step:08d}.txt", text)


def _under_way(project: Project, stages: Sequence[Stage]) -> tuple[Tools, Run]:
    """The run that the first unfinished stage, or the last, is not done with."""
    training = [stage for stage in stages if stage.under_way is not None]
    if not training:
        raise ValueError("--replay needs a stage that trains: train, guide or distill.")
    unfinished = [stage for stage in training if not stage.is_finished(project)]
    stage = (unfinished or training[-1:])[0]
    stage.check(project)
    stage.claim(project)
    assert stage.under_way is not None
    return stage.under_way(project)


def _advance(tools: Tools, run: Run, state: TrainState, step: int) -> TrainState:
    """The state before the update in question."""
    first = int(state.step)
    calls = Calls(first, step, tools.loop.steps_per_call)
    with (
        closing(tools.feeder.feeds(calls, run.order_seed)) as feeds,
        Bar("repeat", step, unit="updates", done=first) as bar,
    ):
        for (_, steps), feed in zip(calls, feeds, strict=True):
            state, metrics = tools.train_step(state, feed, run.job)
            jax.block_until_ready(metrics)
            bar.update(steps)
    return state


def _named(origin: Origin, examples: list[int], source: Source) -> list[str]:
    """A line on the examples of an operation, if its result has a row for each."""
    rows = origin.rows
    if origin.shape[:1] != (len(examples),) or len(rows) == len(examples):
        return []
    names = [name_of(source, examples[row]) for row in rows[:MOST_EXAMPLES]]
    more = f" and {len(rows) - MOST_EXAMPLES} more" if len(rows) > MOST_EXAMPLES else ""
    return [f"    at {', '.join(names)}{more}"]
