"""The training step: the same for training, distillation and whatever comes later.

They differ in the loss only, a function (params, batch, draws, *loss_args) -> one value
per example. Anything that changes from run to run but must not be compiled in, such as
a teacher's parameters, travels in a `Job`.
"""

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Float, Int, Key, PyTree

from vdiff_jax.losses import Draws, draw
from vdiff_jax.types import Batch, Feed, Params, PerExample, Scalar


class Job(NamedTuple):
    """Arguments of the compiled step that stay the same for the length of a run.

    Attributes:
      key: Root of all randomness; step n uses fold_in(key, n).
      num_updates: Length of the run, over which the learning rate is laid out.
      loss_args: Passed on to the loss: nothing, or the teacher and its student's N.
    """

    key: Key[Array, ""]
    num_updates: Int[Array, ""]
    loss_args: tuple = ()


class TrainState(NamedTuple):
    """Everything that an update changes. `step` counts updates, applied or skipped."""

    step: Array
    params: Params
    ema_params: Params
    opt_state: PyTree


Loss: TypeAlias = Callable[..., PerExample]
Metrics: TypeAlias = dict[str, Array]
# (params, batch, draws, loss_args) -> mean loss and its gradient.
Gradient: TypeAlias = Callable[[Params, Batch, Draws, tuple], tuple[Scalar, Params]]
TrainStep: TypeAlias = Callable[[TrainState, Batch, Job], tuple[TrainState, Metrics]]
LearningRate: TypeAlias = Callable[[Int[Array, ""], Int[Array, ""]], Scalar]
Decay: TypeAlias = Literal["constant", "linear", "cosine"]


def init_state(params: Params, optimizer: optax.GradientTransformation) -> TrainState:
    """A state before its first update. The EMA starts at the parameters."""
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        ema_params=jax.tree.map(jnp.copy, params),
        opt_state=optimizer.init(params),
    )


def make_optimizer(
    *, grad_clip: float, weight_decay: float, b1: float = 0.9, b2: float = 0.999
) -> optax.GradientTransformation:
    """Adam with decoupled weight decay, up to the learning rate.

    Args:
      grad_clip: Gradients are scaled down to at most this global norm; 0 for never.
      weight_decay: Relative to the learning rate, on all parameters.
      b1: Decay of Adam's first moment.
      b2: Decay of Adam's second moment.
    """
    return optax.chain(
        # `identity` has the same state, so that a run may go on with the other.
        optax.clip_by_global_norm(grad_clip) if grad_clip else optax.identity(),
        optax.scale_by_adam(b1=b1, b2=b2),
        optax.add_decayed_weights(weight_decay),
    )


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

    Args:
      ema_params: The average so far.
      params: The new parameters.
      decay: Share of the old average, in [0, 1]; 0 gives a copy of `params`.
    """
    return optax.incremental_update(params, ema_params, step_size=1.0 - decay)


def make_train_step(
    loss: Loss,
    optimizer: optax.GradientTransformation,
    learning_rate: LearningRate,
    *,
    ema_decay: float,
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
      loss: (params, batch, draws, *loss_args) -> one value per example.
      optimizer: Everything but the learning rate.
      learning_rate: (step, num_updates) -> rate.
      ema_decay: Decay of the moving average of the parameters, in [0, 1].
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
    draw_all = functools.partial(
        draw, stratified=stratified, flip=flip, noise_offset=noise_offset
    )

    @spread
    def gradient(
        params: Params, batch: Batch, draws: Draws, loss_args: tuple
    ) -> tuple[Scalar, Params]:
        return jax.value_and_grad(
            lambda params: loss(params, batch, draws, *loss_args).mean()
        )(params)

    def train_step(
        state: TrainState, batch: Batch, job: Job
    ) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(job.key, state.step)
        draws = _draw_rows(key, batch, axis_name, draw_all)
        if grad_accum_steps == 1:
            value, grads = gradient(state.params, batch, draws, job.loss_args)
        else:
            value, grads = _mean_over_parts(
                lambda batch, draws: gradient(
                    state.params, batch, draws, job.loss_args
                ),
                *_parts(batch, draws, grad_accum_steps),
            )
        if axis_name is not None:
            value, grads = lax.pmean((value, grads), axis_name)
        norm = optax.tree.norm(grads)
        rate = learning_rate(state.step, job.num_updates)

        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = jax.tree.map(lambda p, u: p - rate * u, state.params, updates)
        ema_params = update_ema(state.ema_params, params, ema_decay)
        step = state.step + 1

        finite = jnp.isfinite(value) & jnp.isfinite(norm)
        state = jax.tree.map(
            lambda new, old: jnp.where(finite, new, old),
            TrainState(step, params, ema_params, opt_state),
            state._replace(step=step),
        )
        return state, {"loss": value, "grad_norm": norm, "learning_rate": rate}

    return train_step


def _draw_rows(
    key: Key[Array, ""],
    batch: Batch,
    axis_name: str | None,
    draw_all: Callable[..., Draws],
) -> Draws:
    """Draws of global shape; under `pmap`, the rows of this device."""
    rows, *event = batch.image.shape
    if axis_name is None:
        return draw_all(key, (rows, *event))
    device = lax.axis_index(axis_name)
    draws = draw_all(key, (rows * lax.axis_size(axis_name), *event))
    return draws.map_rows(
        lambda values: lax.dynamic_slice_in_dim(values, device * rows, rows),
        dropout=jax.random.fold_in(draws.dropout, device),
    )


def _parts(batch: Batch, draws: Draws, count: int) -> tuple[Batch, Draws]:
    """Parts of a batch along a new first axis, each with rows of every device."""

    def divide(rows: Array) -> Array:
        return rows.reshape(-1, count, *rows.shape[1:]).swapaxes(0, 1)

    keys = jax.random.split(draws.dropout, count)
    return jax.tree.map(divide, batch), draws.map_rows(divide, dropout=keys)


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


def make_eval_step(loss: Loss) -> Callable[[Params, Batch, Job], Float[Array, " b"]]:
    """A function for the loss of each example; times are spread evenly over a batch."""

    def eval_step(params: Params, batch: Batch, job: Job) -> Float[Array, " b"]:
        draws = draw(job.key, batch.image.shape, stratified=True)
        return loss(params, batch, draws, *job.loss_args)

    return eval_step
