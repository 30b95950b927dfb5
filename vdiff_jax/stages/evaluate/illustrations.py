"""The images of the page that measuring does not need."""

from collections.abc import Sequence

import numpy as np

from vdiff_jax import parallel
from vdiff_jax.distillation.role import BASE, Role, count, name_among
from vdiff_jax.evaluation.measurement import Measurement, by_method
from vdiff_jax.evaluation.page import Strip, Trajectory
from vdiff_jax.from_config.choices import Config
from vdiff_jax.generation.conditions import conditioned
from vdiff_jax.generation.sampler import Sampler, Start, request
from vdiff_jax.generation.trajectories import columns_of, interpolation, trajectory
from vdiff_jax.stages.evaluate.bench import Bench

PATHS = 4  # trajectories of each model
COLUMNS = 12
BASE_STEPS, STUDENT_STEPS = 16, 4  # of trajectories
ROWS = 4  # of interpolations
FRAMES = 9


class Illustrations:
    """Trajectories and interpolations, by the base and by students."""

    def __init__(self, config: Config, bench: Bench, rows: Sequence[Measurement]):
        """Finds the students of each method, by their number of steps."""
        self._models, self._seed = bench.models, config.evaluate.seed
        self._condition_of = bench.condition_of
        self._base_steps = min(BASE_STEPS, config.evaluate.reference_steps)
        self._roles = {row.role for row in rows}
        self._methods = [
            sorted({row.role for row in of_method}, key=lambda role: role.num_steps)
            for of_method in by_method(rows)
        ]

    def trajectories(self) -> list[Trajectory]:
        """Trajectories of the base, and of a student of a few steps of each method."""
        drawn = [self._trajectory(BASE, self._base_steps)]
        for students in self._methods:
            few = min(students, key=lambda s: abs(s.num_steps - STUDENT_STEPS))
            drawn.append(self._trajectory(few, few.num_steps))
        return drawn

    def _trajectory(self, role: Role, steps: int) -> Trajectory:
        sampler = self._models.sampler(role, role.sampler)
        start = self._start(sampler, PATHS)
        path = trajectory(sampler, self._models.params(role), start, steps)
        shown = columns_of(steps, most=COLUMNS)
        z_t, x_hat = (part[shown].swapaxes(0, 1) for part in path)
        times = (steps - shown) / steps
        return Trajectory(
            label=self._label(role, steps),
            columns=[f"t = {time:.3g}" for time in times],
            x_hat=x_hat,
            z=z_t,
        )

    def interpolations(self) -> list[Strip]:
        """Images between noises, by each method's student of the fewest steps.

        Without students they are the base's.
        """
        if not self._methods:
            return self._interpolations(BASE, self._base_steps)
        fewest = [students[0] for students in self._methods]
        return [
            strip
            for role in fewest
            for strip in self._interpolations(role, role.num_steps)
        ]

    def _interpolations(self, role: Role, steps: int) -> list[Strip]:
        model = f"{self._label(role, steps)}: " if len(self._methods) > 1 else ""
        sampler = self._models.sampler(role, role.sampler)
        rows = interpolation(
            sampler,
            self._models.params(role),
            self._start(sampler, 2 * ROWS),
            request=request(steps),
            frames=FRAMES,
        )
        return [
            Strip(label=f"{model}noise {2 * i} to {2 * i + 1}", images=row)
            for i, row in enumerate(rows)
        ]

    def _label(self, role: Role, steps: int) -> str:
        return f"{name_among(role, self._roles)}, {count(steps)}"

    def _start(self, sampler: Sampler, num: int) -> Start:
        place, index = parallel.replicated(parallel.make_mesh()), np.arange(num)
        start = sampler.start(parallel.put(index, place), np.int32(self._seed))
        return conditioned(start, self._condition_of, index, place)
