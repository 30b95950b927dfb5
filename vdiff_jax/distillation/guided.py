"""Distillation of guided models: guidance in one evaluation, and other ladders.

Meng et al. (2023), arXiv:2210.03142.
"""

import jax.numpy as jnp
from jaxtyping import Array, Int

from vdiff_jax.diffusion import diffuse
from vdiff_jax.distillation.method import Method, halving
from vdiff_jax.distillation.progressive import Times, halving_loss
from vdiff_jax.losses import Draws, Weight, step_index, weighted_v_error
from vdiff_jax.types import Denoiser, Examples, PerExample, Schedule


def decoding_stochastically(u: PerExample, num_steps: int | Int[Array, ""]) -> Times:
    """Steps of 2 / N towards the data, as `samplers.stochastic_step` takes them.

    The teacher makes two jumps of 1 / N, for which it was trained as a sampler of 2 N
    steps. From t = 1 / N only one is left. Meng et al. (2023), arXiv:2210.03142; their
    Algorithm 3 was not at hand: these are the jumps that their sampler makes.
    """
    i = step_index(u, num_steps)
    mid, s = jnp.where(i > 1.0, i - 1.0, i), jnp.maximum(i - 2.0, 0.0)
    return Times(i / num_steps, mid / num_steps, s / num_steps)


def encoding(u: PerExample, num_steps: int | Int[Array, ""]) -> Times:
    """Steps of 1 / N towards the noise: the reverse of `decoding`."""
    i = step_index(u, num_steps) - 1.0
    return Times(i / num_steps, (i + 0.5) / num_steps, (i + 1.0) / num_steps)


def imitation_loss(
    student: Denoiser,
    teacher: Denoiser,
    x: Examples,
    draws: Draws,
    *,
    schedule: Schedule,
    weight: Weight,
) -> PerExample:
    """The loss of a student that imitates its teacher's prediction at every t.

    With a guided teacher and a student conditioned on w, it is the first stage of Meng
    et al. (2023), arXiv:2210.03142: guidance in one evaluation.

    Args:
      student: The network being trained, unclipped.
      teacher: The teacher, unclipped.
      x: Clean examples in [-1, 1].
      draws: The chance of this update.
      schedule: log-SNR of time, shared by student and teacher.
      weight: One of the weights in `losses`.
    """
    logsnr_t = schedule(draws.u)
    z_t = diffuse(x, draws.eps(x.shape[1:]), logsnr_t)
    v = teacher(z_t, logsnr_t).v
    return weighted_v_error(student(z_t, logsnr_t).v, v, logsnr_t, weight)


STOCHASTIC = Method(
    loss=halving_loss(decoding_stochastically), phases=halving, sampler="stochastic"
)
ENCODE = Method(loss=halving_loss(encoding), phases=halving, draws=False)
