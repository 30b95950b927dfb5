"""The losses that the stages train on."""

import functools

import jax.numpy as jnp

from vdiff_jax import losses
from vdiff_jax.distillation import teacher_step
from vdiff_jax.distillation.guided import imitation_loss
from vdiff_jax.distillation.method import Course, Denoisers, Phase, Setting
from vdiff_jax.distillation.methods import METHODS
from vdiff_jax.distillation.teacher_step import MakeTeacherStep
from vdiff_jax.from_config.choices import Config, number, section_of
from vdiff_jax.from_config.model import w_range
from vdiff_jax.guidance import Guidance, left_out
from vdiff_jax.model import Model
from vdiff_jax.training.step import Given, Loss, Networks, Values
from vdiff_jax.types import Batch, Denoiser, Examples, Params, PerExample

# Adjusted DDIM hurts students of fewer steps; see `distillation.teacher_step`.
LEAST_STEPS_ADJUSTED = 4


def loss_weight(name: str) -> losses.Weight:
    """A loss weight from its name; `min_snr:5` is min-SNR with gamma 5."""
    plain = {
        "constant": losses.constant,
        "snr": losses.snr,
        "snr_trunc": losses.snr_trunc,
        "snr_plus_one": losses.snr_plus_one,
    }
    if name in plain:
        return plain[name]
    kind, _, gamma = name.partition(":")
    if kind == "min_snr" and gamma and number("loss weight", gamma) > 0.0:
        return losses.min_snr(number("loss weight", gamma))
    raise ValueError(
        f"Unknown loss weight {name!r}; choose from {(*plain, 'min_snr:GAMMA')}."
    )


def train_loss(config: Config, model: Model, *, train: bool) -> Loss:
    """The loss of the base model.

    Args:
      config: The whole config.
      model: The network.
      train: True to leave out features and conditions, as in training.
    """
    weigh = loss_weight(section_of(config, "train").weight)
    num_steps = config.train.num_steps or None

    def loss(
        networks: Networks, batch: Batch, draws: losses.Draws, given: Given
    ) -> Values:
        x = _x_of(model, batch, draws, given)
        dropout = draws.dropout if train and config.train.dropout > 0 else None
        condition = batch.condition
        if train:
            # The name is that of its first kind of condition: it makes the numbers.
            dropped = draws.uniform("label") < config.train.label_dropout
            condition = left_out(condition, dropped)
        error = losses.denoising_loss(
            model.denoiser(networks.main, condition, dropout=dropout),
            x,
            draws,
            schedule=model.schedule,
            weight=weigh,
            num_steps=num_steps,
        )
        return {"loss": error}

    return loss


def guide_loss(config: Config, teacher: Model, student: Model) -> Loss:
    """The loss of the student that imitates guidance.

    Args:
      config: The whole config.
      teacher: The network without w.
      student: The network that takes w.
    """
    weigh = loss_weight(section_of(config, "guide").weight)
    guidance = Guidance(rescale=config.guide.rescale)

    def loss(
        networks: Networks, batch: Batch, draws: losses.Draws, given: Given
    ) -> Values:
        condition = batch.condition._replace(w=_guidance_weight(config, draws))
        error = imitation_loss(
            student.denoiser(networks.main, condition),
            teacher.denoiser(given.teacher, condition, guidance=guidance),
            _x_of(student, batch, draws, given),
            draws,
            schedule=student.schedule,
            weight=weigh,
        )
        return {"loss": error}

    return loss


def distill_loss(config: Config, teacher: Model, student: Model) -> Loss:
    """The loss of a student, by the method of the section `distill`.

    Args:
      config: The whole config.
      teacher: The network of the teacher, and of an auxiliary network.
      student: The network of the student, which may take noise.
    """
    section = section_of(config, "distill")
    method, weigh = METHODS[section.method], loss_weight(section.weight)
    teacher_steps = tuple(section.teacher_steps)
    step_of = teacher_step_of(section.teacher_step)

    def loss(
        networks: Networks, batch: Batch, draws: losses.Draws, given: Given
    ) -> Values:
        assert given.num_steps is not None
        w = None if student.w_range is None else _guidance_weight(config, draws)
        condition = batch.condition._replace(w=w)
        x = _x_of(student, batch, draws, given)
        noise = draws.normal("input", x.shape[1:]) if student.takes_noise else None

        def denoiser(model: Model, params: Params) -> Denoiser:
            own = noise if model.takes_noise else None
            return model.denoiser(params, condition, noise=own)

        auxiliary = networks.auxiliary
        return method.loss(
            Denoisers(
                student=denoiser(student, networks.main),
                teacher=denoiser(teacher, given.teacher),
                ema=denoiser(student, given.ema),
                auxiliary=denoiser(teacher, auxiliary) if method.auxiliary else None,
            ),
            x,
            draws,
            Setting(
                student.schedule,
                weigh,
                given.num_steps,
                given.progress,
                teacher_steps,
                step_of,
                student.takes_noise,
            ),
        )

    return loss


def teacher_step_of(text: str) -> MakeTeacherStep:
    """The kind of a teacher's steps from its name.

    Args:
      text: `ddim`, `heun`, or `addim:SHARE` with a share of the squared error in [0, 1]
        that counts as variance. That helps students of 4 steps and more, and hurts
        those of fewer, whose teacher takes ddim.
    """
    kind, _, share = text.partition(":")
    if text in ("ddim", "heun"):
        return lambda x, num_steps: getattr(teacher_step, text)
    if kind == "addim" and 0.0 <= number("distill.teacher_step", share) <= 1.0:
        size = float(share)
        return lambda x, num_steps: teacher_step.adjusted(
            x, jnp.where(jnp.asarray(num_steps) < LEAST_STEPS_ADJUSTED, 0.0, size)
        )
    raise ValueError(
        f"distill.teacher_step={text!r} must be ddim, heun, or addim:SHARE with SHARE"
        " in [0, 1]."
    )


def phases_of(config: Config) -> list[Phase]:
    """The runs of the method of the section `distill`.

    Raises:
      ValueError: If the method has none for these numbers of steps.
    """
    section = config.distill
    course = Course(*(section[name] for name in Course._fields))
    return METHODS[section.method].phases(course)


def _x_of(model: Model, batch: Batch, draws: losses.Draws, given: Given) -> Examples:
    """The data of a batch as x; of moments, a fresh draw."""
    normal = functools.partial(draws.normal, "latent")
    return model.codec.to_x(jnp.asarray(batch.image), given.codec, normal)


def _guidance_weight(config: Config, draws: losses.Draws) -> PerExample:
    """The w of each example, uniform over the range."""
    low, high = w_range(config)
    return low + (high - low) * draws.uniform("w")
