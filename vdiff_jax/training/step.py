"""The training step: the same for training, distillation and whatever comes later.

They differ in the loss only, a function

    (networks, batch, draws, given) -> {"loss": one value per example, ...}

It is differentiated by `networks`: the one that the stage is for, and an auxiliary one
beside it, if its method trains one. What it reads and is never differentiated by is
`given`. Every other entry of its result is a metric. What changes from run to run but
must not be compiled in, such as a teacher's parameters, travels in a `Job`.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Int, Key, PyTree

from vdiff_jax.losses import Draws, draw, mirror
from vdiff_jax.nets.context import FIXED
from vdiff_jax.types import Batch, Feed, Params, PerExample, Scalar


class Job(NamedTuple):
    """Arguments of the compiled step that stay the same for the length of a run.

    Attributes:
      key: Root of all randomness; step n uses fold_in(key, n).
      num_updates: Length of the run, over which the learning rate is laid out.
      teacher: The teacher's parameters; None where nobody teaches.
      num_steps: The student's N; None for a network that is no student.
      codec: Parameters that encode the data; None for data that need none.
    """

    key: Key[Array, ""]
    num_updates: Int[Array, ""]
    teacher: Params = None
    num_steps: Int[Array, ""] | None = None
    codec: Params = None


class Networks(NamedTuple):
    """The parameters of the networks that a loss is differentiated by.

    Attributes:
      main: The network that the stage is for.
      auxiliary: One that a method trains beside it, and drops in the end; or None.
    """

    main: Params
    auxiliary: Params = None


class Given(NamedTuple):
    """Everything that a loss reads, and is not differentiated by.

    Attributes:
      teacher: The teacher's parameters; None where nobody teaches.
      ema: The EMA of the main network's parameters, before this update.
      num_steps: The student's N; None for a network that is no student.
      progress: Share of the run's updates that are done, in [0, 1].
      codec: Parameters that encode the data; None for data that need none.
    """

    teacher: Params
    ema: Params
    num_steps: Int[Array, ""] | None
    progress: Scalar
    codec: Params = None


class Auxiliary(NamedTuple):
    """The auxiliary network in the state: its parameters, and its optimizer's state."""

    params: Params
    opt_state: PyTree


class TrainState(NamedTuple):
    """Everything that an update changes. `step` counts updates, applied or skipped."""

    step: Array
    params: Params
    ema_params: Params
    opt_state: PyTree
    auxiliary: Auxiliary | None = None

    @property
    def networks(self) -> Networks:
        """The parameters that the loss is differentiated by."""
        auxiliary = None if self.auxiliary is None else self.auxiliary.params
        return Networks(self.params, auxiliary)


# The loss and other metrics: of each example, or their means.
Values: TypeAlias = dict[str, PerExample]
Metrics: TypeAlias = dict[str, Array]
Loss: TypeAlias = Callable[[Networks, Batch, Draws, Given], Values]
# Means of a loss's values over a batch, and the gradient of the loss.
Gradient: TypeAlias = Callable[
    [Networks, Batch, Draws, Given], tuple[Metrics, Networks]
]
TrainStep: TypeAlias = Callable[[TrainState, Batch, Job], tuple[TrainState, Metrics]]
LearningRate: TypeAlias = Callable[[Int[Array, ""], Int[Array, ""]], Scalar]
Decay: TypeAlias = Literal["constant", "linear", "cosine"]


def init_state(
    params: Params,
    optimizer: optax.GradientTransformation,
    auxiliary: Params = None,
) -> TrainState:
    """A state before its first update. The EMA starts at the parameters.

    Args:
      params: Parameters of the main network.
      optimizer: The optimizer of both networks, up to the learning rate.
      auxiliary: Parameters of the auxiliary network, if there is one.
    """
    beside = None
    if auxiliary is not None:
        beside = Auxiliary(auxiliary, optimizer.init(auxiliary))
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        ema_params=jax.tree.map(jnp.copy, params),
        opt_state=optimizer.init(params),
        auxiliary=beside,
    )


def make_optimizer(
    *, grad_clip: float, weight_decay: float, b1: float = 0.9, b2: float = 0.999
) -> optax.GradientTransformation:
    """Adam with decoupled weight decay, up to the learning rate.

    Args:
      grad_clip: Gradients are scaled down to at most this global norm; 0 for never.
      weight_decay: Relative to the learning rate, on all parameters but `FIXED`.
      b1: Decay of Adam's first moment.
      b2: Decay of Adam's second moment.
    """
    return optax.chain(
        # `identity` has the same state, so that a run may go on with the other.
        optax.clip_by_global_norm(grad_clip) if grad_clip else optax.identity(),
        optax.scale_by_adam(b1=b1, b2=b2),
        optax.stateless(_add_decayed_weights(weight_decay)),
    )


def _add_decayed_weights(
    weight_decay: float,
) -> Callable[[Params, Params | None], Params]:
    """Weight decay that leaves parameters alone that are a model's data.

    They have no gradient, so that nothing else would change them. `optax.masked` would
    have another state than checkpoints of earlier versions have.
    """

    def add(updates: Params, params: Params | None) -> Params:
        def decayed(path: tuple[Any, ...], update: Array, param: Array) -> Array:
            return update if _is_fixed(path) else update + weight_decay * param

        return jax.tree_util.tree_map_with_path(decayed, updates, params)

    return add


def make_learning_rate(peak: float, *, warmup_steps: int, decay: Decay) -> LearningRate:
    """A learning rate from the step and the length of the run, which may be traced.

    It rises linearly over `warmup_steps`, then stays (`constant`) or falls to zero at
    the end of the run along a line or half a cosine.

    Args:
      peak: The highest rate.
      warmup_steps: Updates until the peak, from 0 up.
      decay: "constant", "linear" or "cosine".

    Returns:
      (step, num_updates) -> rate.

    Raises:
      ValueError: If `decay` is unknown.
    """
    if decay not in get_args(Decay):
        raise ValueError(f"Unknown decay {decay!r}; choose from {get_args(Decay)}.")

    def learning_rate(step: Int[Array, ""], num_updates: Int[Array, ""]) -> Scalar:
        warmup = jnp.minimum(1.0, (step + 1) / (warmup_steps + 1))
        left = num_updates - warmup_steps
        progress = jnp.clip((step - warmup_steps) / jnp.maximum(left, 1), 0.0, 1.0)
        if decay == "linear":
            warmup *= 1.0 - progress
        if decay == "cosine":
            warmup *= 0.5 * (1.0 + jnp.cos(jnp.pi * progress))
        return peak * warmup

    return learning_rate


def update_ema(ema_params: Params, params: Params, decay: float) -> Params:
    """Takes one step of the exponential moving average.

    Parameters that are a model's data are their own average: computed, it would move by
    a rounding in each update, the same way each time.

    Args:
      ema_params: The average so far.
      params: The new parameters.
      decay: Share of the old average, in [0, 1]; 0 gives a copy of `params`.
    """
    average = optax.incremental_update(params, ema_params, step_size=1.0 - decay)
    return jax.tree_util.tree_map_with_path(
        lambda path, mean, param: param if _is_fixed(path) else mean, average, params
    )


def _is_fixed(path: tuple[Any, ...]) -> bool:
    """True for a parameter, by its place in the tree, that is a model's data."""
    return getattr(path[-1], "key", None) in FIXED


def make_train_step(
    loss: Loss,
    optimizer: optax.GradientTransformation,
    learning_rate: LearningRate,
    *,
    ema_decay: float,
    auxiliary_learning_rate: LearningRate | None = None,
    stratified: bool = False,
    flip: bool = False,
    noise_offset: float = 0.0,
    grad_accum_steps: int = 1,
    axis_name: str | None = None,
    spread: Callable[[Gradient], Gradient] = lambda gradient: gradient,
) -> TrainStep:
    """One update as a pure function (state, batch, job) -> (state, metrics).

    Run it under `jax.jit`, over a mesh if the batch is sharded, or under
    `jax.pmap(axis_name=...)`. Gradients are averaged over devices, then clipped. An
    update whose loss or gradient is not finite changes nothing but the step count.

    Args:
      loss: See the module.
      optimizer: Everything but the learning rate; for each network by itself, so that
        each has its own clipping.
      learning_rate: (step, num_updates) -> rate.
      ema_decay: Decay of the moving average of the parameters, in [0, 1].
      auxiliary_learning_rate: That of the auxiliary network; by default the same.
      stratified: Spread times evenly over the batch.
      flip: Mirror half of the images.
      noise_offset: Standard deviation of noise that is one number for each channel of
        an image, as in `losses.draw`; 0 for none.
      grad_accum_steps: Parts of the batch that are gone through one after the other,
        to need less memory. It changes the order of sums, and dropout's masks.
      axis_name: The mapped axis under `pmap`.
      spread: Shares the gradient of a batch out over devices, where that is not left to
        the compiler; `gradient.spread` makes it.
    """

    @spread
    def gradient(
        networks: Networks, batch: Batch, draws: Draws, given: Given
    ) -> tuple[Metrics, Networks]:
        def mean_loss(networks: Networks) -> tuple[Scalar, Metrics]:
            values = loss(networks, batch, draws, given)
            means = {name: value.mean() for name, value in values.items()}
            return means["loss"], means

        (_, means), grads = jax.value_and_grad(mean_loss, has_aux=True)(networks)
        return means, grads

    def train_step(
        state: TrainState, batch: Batch, job: Job
    ) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(job.key, state.step)
        draws = draw_rows(key, len(batch.image))
        if flip:
            batch = _mirrored(batch, draws)
        given = _given(state.ema_params, job, state.step / job.num_updates)
        if grad_accum_steps == 1:
            means, grads = gradient(state.networks, batch, draws, given)
        else:
            means, grads = _mean_over_parts(
                lambda batch, draws: gradient(state.networks, batch, draws, given),
                *_parts(batch, draws, grad_accum_steps),
            )
        if axis_name is not None:
            means, grads = lax.pmean((means, grads), axis_name)
        norm = optax.tree.norm(grads)
        rate = learning_rate(state.step, job.num_updates)

        params, opt_state = descend(grads.main, state.opt_state, state.params, rate)
        ema_params = update_ema(state.ema_params, params, ema_decay)
        auxiliary = None
        if state.auxiliary is not None:
            auxiliary = Auxiliary(
                *descend(
                    grads.auxiliary,
                    state.auxiliary.opt_state,
                    state.auxiliary.params,
                    (auxiliary_learning_rate or learning_rate)(
                        state.step, job.num_updates
                    ),
                )
            )
        step = state.step + 1

        finite = jnp.isfinite(means["loss"]) & jnp.isfinite(norm)
        state = jax.tree.map(
            lambda new, old: jnp.where(finite, new, old),
            TrainState(step, params, ema_params, opt_state, auxiliary),
            state._replace(step=step),
        )
        return state, {**means, "grad_norm": norm, "learning_rate": rate}

    def draw_rows(key: Key[Array, ""], rows: int) -> Draws:
        """The chance of a batch; under `pmap`, of this device's rows of it."""
        first, devices = 0, 1
        if axis_name is not None:
            first, devices = lax.axis_index(axis_name) * rows, lax.axis_size(axis_name)
        return draw(
            key,
            rows,
            stratified=stratified,
            noise_offset=noise_offset,
            first=first,
            of=devices * rows,
        )

    def descend(
        grads: Params, opt_state: PyTree, params: Params, rate: Scalar
    ) -> tuple[Params, PyTree]:
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return jax.tree.map(lambda p, u: p - rate * u, params, updates), opt_state

    return train_step


def _given(ema_params: Params, job: Job, progress: Any) -> Given:
    """The argument of a loss that it is not differentiated by."""
    return Given(job.teacher, ema_params, job.num_steps, progress, job.codec)


def _mirrored(batch: Batch, draws: Draws) -> Batch:
    """The batch with half of its images mirrored."""
    image = mirror(jnp.asarray(batch.image), draws.uniform("mirror") < 0.5)
    return batch._replace(image=image)


def _parts(batch: Batch, draws: Draws, count: int) -> tuple[Batch, Draws]:
    """Parts of a batch along a new first axis, each with rows of every device."""

    def divide(rows: Array) -> Array:
        return rows.reshape(-1, count, *rows.shape[1:]).swapaxes(0, 1)

    return jax.tree.map(divide, (batch, draws))


def _mean_over_parts(
    function: Callable[[Batch, Draws], Any], batches: Batch, draws: Draws
) -> Any:
    """The mean of a function's results for the parts, computed one after the other."""
    count = len(batches.image)

    def add(total: Any, part: tuple[Batch, Draws]) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, function(*part)), None

    first = jax.tree.map(lambda values: values[0], (batches, draws))
    zeros = jax.tree.map(jnp.zeros_like, jax.eval_shape(function, *first))
    total, _ = lax.scan(add, zeros, (batches, draws))
    return jax.tree.map(lambda value: value / count, total)


def many_updates(
    train_step: TrainStep, read: Callable[[Any, Any], Batch] | None = None
) -> Callable[[TrainState, Feed, Job], tuple[TrainState, Metrics]]:
    """A function that takes several updates in one call, and stacks their metrics.

    One dispatch for many updates keeps small models from waiting for Python.

    Args:
      train_step: One update.
      read: (feed.data, item) -> batch; by default the items are the batches.
    """

    def train_steps(
        state: TrainState, feed: Feed, job: Job
    ) -> tuple[TrainState, Metrics]:
        def update(state: TrainState, item: Any) -> tuple[TrainState, Metrics]:
            batch = read(feed.data, item) if read else item
            return train_step(state, batch, job)

        return lax.scan(update, state, feed.items)

    return train_steps


def make_eval_step(loss: Loss) -> Callable[[Networks, Batch, Job], Values]:
    """A function for the values of each example, as at the end of a run.

    Times are spread evenly over a batch. The main network has its EMA's parameters.
    """

    def eval_step(networks: Networks, batch: Batch, job: Job) -> Values:
        draws = draw(job.key, len(batch.image), stratified=True)
        return loss(networks, batch, draws, _given(networks.main, job, jnp.ones(())))

    return eval_step
