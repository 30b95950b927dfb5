"""Training, distillation and sampling in plain PyTorch, as its users write them.

Each job is made from the project's own config and model and does the project's work,
with the habits that make PyTorch fast: `channels_last`, fused attention, AdamW and
moving averages over all parameters at once, nothing read back to the host, and
`torch.compile` of everything around the network too. Covered is what the benchmark
asks for: v-prediction under the cosine schedule with truncated-SNR weights.
"""

import copy
import dataclasses
import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.peers.unet import UNet, num_parameters
from vdiff_jax.from_config.choices import section_of
from vdiff_jax.model import Model

Config = Any  # an `ml_collections.ConfigDict`
Network = Callable[[Tensor, Tensor, Tensor | None], Tensor]


class Time(NamedTuple):
    """Signal scale, noise scale and log-SNR at a time."""

    alpha: Tensor
    sigma: Tensor
    logsnr: Tensor


class Cosine:
    """The cosine schedule between two log-SNRs: an angle that is linear in time."""

    def __init__(self, logsnr_min: float, logsnr_max: float):
        self._first = math.atan(math.exp(-0.5 * logsnr_max))
        self._last = math.atan(math.exp(0.5 * logsnr_min))
        self._span = 0.5 * math.pi - self._first - self._last

    def __call__(self, t: Tensor) -> Time:
        """The scales and the log-SNR at `t` in [0, 1]."""
        alpha = torch.sin(self._span * (1.0 - t) + self._last)
        sigma = torch.sin(self._span * t + self._first)
        return Time(alpha, sigma, 2.0 * (alpha.log() - sigma.log()))

    def ending_in_data(self, t: Tensor) -> Time:
        """The same, but no noise at t = 0."""
        alpha, sigma, logsnr = self(t)
        at_data = t <= 0.0
        return Time(
            torch.where(at_data, 1.0, alpha),
            torch.where(at_data, 0.0, sigma),
            torch.where(at_data, math.inf, logsnr),
        )


class Draws(NamedTuple):
    """All that is random in one update but dropout; `flip` is None for no mirroring."""

    u: Tensor
    eps: Tensor
    flip: Tensor | None


def draw(x: Tensor, *, stratified: bool, flip: bool) -> Draws:
    """The draws for a batch, on its device.

    Args:
      x: The batch.
      stratified: True to spread the times evenly over [0, 1].
      flip: True to mirror half of the examples.
    """
    batch = len(x)
    if stratified:
        spread = torch.arange(batch, device=x.device) / batch
        u = (torch.rand((), device=x.device) + spread) % 1.0
    else:
        u = torch.rand(batch, device=x.device)
    mirrored = torch.rand(batch, device=x.device) < 0.5 if flip else None
    return Draws(u, torch.randn_like(x), mirrored)


def from_pixels(images: Tensor) -> Tensor:
    """Pixels of NHWC images to [-1, 1], as a channels-last NCHW tensor."""
    return images.permute(0, 3, 1, 2).float() / 127.5 - 1.0


def to_pixels(x: Tensor) -> Tensor:
    """The inverse, rounded and clamped."""
    pixels = ((x + 1.0) * 127.5).round().clamp(0.0, 255.0)
    return pixels.to(torch.uint8).permute(0, 2, 3, 1)


def denoising_loss(
    net: Network, x: Tensor, draws: Draws, label: Tensor | None, schedule: Cosine
) -> Tensor:
    """Loss of each example at a random time.

    Args:
      net: The network, (z_t, logsnr_t, label) -> v.
      x: NCHW, in [-1, 1].
      draws: The random numbers of the update.
      label: The classes; None if there are none.
      schedule: The noise schedule.
    """
    x = _mirrored(x, draws.flip)
    time = schedule(draws.u)
    alpha, sigma = _per_image(time.alpha), _per_image(time.sigma)
    v_hat = net(alpha * x + sigma * draws.eps, time.logsnr, label)
    return _weighted_error(v_hat, alpha * draws.eps - sigma * x, time)


def distillation_loss(
    student: Network,
    teacher: Network,
    x: Tensor,
    draws: Draws,
    label: Tensor | None,
    schedule: Cosine,
    num_steps: int,
) -> Tensor:
    """Loss of each example of a student of `num_steps` steps.

    Salimans & Ho (2022), arXiv:2202.00512, Algorithm 2: the target is the x for which
    one DDIM step lands where two steps of the teacher do.

    Args:
      student: The network, (z_t, logsnr_t, label) -> v.
      teacher: The same, of twice the steps.
      x: NCHW, in [-1, 1].
      draws: The random numbers of the update.
      label: The classes; None if there are none.
      schedule: The noise schedule.
      num_steps: N.
    """
    x = _mirrored(x, draws.flip)
    i = (torch.floor(draws.u * num_steps) + 1.0).clamp(max=num_steps)
    time = schedule(i / num_steps)
    middle = schedule((i - 0.5) / num_steps)
    end = schedule.ending_in_data((i - 1.0) / num_steps)
    alpha, sigma = _per_image(time.alpha), _per_image(time.sigma)
    z_t = alpha * x + sigma * draws.eps
    with torch.no_grad():
        z_mid = _unclipped_step(teacher(z_t, time.logsnr, label), z_t, time, middle)
        z_s = _unclipped_step(teacher(z_mid, middle.logsnr, label), z_mid, middle, end)
        ratio = _per_image(end.sigma) / sigma
        x_target = (z_s - ratio * z_t) / (_per_image(end.alpha) - ratio * alpha)
        v = (alpha * z_t - x_target) / sigma
    return _weighted_error(student(z_t, time.logsnr, label), v, time)


def ddim_step(
    net: Network, z_t: Tensor, t: Time, s: Time, label: Tensor | None
) -> Tensor:
    """One step of DDIM from t to s; x_hat is clipped to [-1, 1].

    Args:
      net: The network, (z_t, logsnr_t, label) -> v.
      z_t: The noisy images.
      t: The time of z_t.
      s: The time to step to.
      label: The classes; None if there are none.
    """
    v_hat = net(z_t, t.logsnr.expand(len(z_t)), label)
    x_hat = (t.alpha * z_t - t.sigma * v_hat).clamp(-1.0, 1.0)
    eps_hat = (z_t - t.alpha * x_hat) / t.sigma
    return s.alpha * x_hat + s.sigma * eps_hat


def ddim(step: Callable[..., Tensor], z_1: Tensor, times: list[Time]) -> Tensor:
    """Goes through `times`, from noise to data.

    Args:
      step: (z_t, t, s) -> z_s.
      z_1: The noise.
      times: The times, from 1 down to 0.
    """
    z_t = z_1
    for t, s in itertools.pairwise(times):
        z_t = step(z_t, t, s)
    return z_t


def _unclipped_step(v_hat: Tensor, z_t: Tensor, t: Time, s: Time) -> Tensor:
    """One step of DDIM, of which each example has its own times."""
    alpha_t, sigma_t = _per_image(t.alpha), _per_image(t.sigma)
    x_hat = alpha_t * z_t - sigma_t * v_hat
    eps_hat = sigma_t * z_t + alpha_t * v_hat
    return _per_image(s.alpha) * x_hat + _per_image(s.sigma) * eps_hat


def _weighted_error(v_hat: Tensor, v: Tensor, time: Time) -> Tensor:
    """Truncated SNR: max(SNR, 1) on the error of x."""
    weight = torch.maximum(time.alpha, time.sigma) ** 2
    return weight * (v_hat - v).square().mean(dim=(1, 2, 3))


def _mirrored(x: Tensor, flip: Tensor | None) -> Tensor:
    return x if flip is None else torch.where(_per_image(flip), x.flip(3), x)


def _per_image(values: Tensor) -> Tensor:
    return values[:, None, None, None]


@dataclasses.dataclass(frozen=True)
class Step:
    """One update: loss, gradient, clipping, AdamW and, for a base model, the average.

    Attributes:
      net: The network being trained.
      companion: The moving average of a base model, or the teacher of a student.
      loss: (images, label) -> mean loss.
      update: Uses up the gradients.
    """

    net: UNet
    companion: UNet
    loss: Callable[[Tensor, Tensor | None], Tensor]
    update: Callable[[], None]

    def __call__(self, images: Tensor, label: Tensor | None) -> None:
        """Takes uint8 NHWC images on the network's device, and their classes."""
        self.loss(images, label).backward()
        self.update()


def train_step(
    config: Config, model: Model, *, compile: bool, device: str = "cpu"
) -> Step:
    """A function that makes one update of the base model, from fresh parameters.

    Args:
      config: The whole config.
      model: The model that the config describes.
      compile: True for `torch.compile`.
      device: A device of PyTorch.

    Raises:
      ValueError: If the config asks for something that is not covered here.
    """
    net = _network(config, model, device).train()
    ema = copy.deepcopy(net).requires_grad_(False)
    denoise, schedule = _autocast(net, config, device), _schedule(config)
    section, flip = section_of(config, "train"), config.data.flip

    def loss(images: Tensor, label: Tensor | None) -> Tensor:
        x = from_pixels(images)
        draws = draw(x, stratified=section.stratified_times, flip=flip)
        return denoising_loss(denoise, x, draws, label, schedule).mean()

    return Step(net, ema, _compiled(loss, compile), _update(net, section, ema))


def distill_step(
    config: Config, model: Model, *, compile: bool, device: str = "cpu", num_steps: int
) -> Step:
    """A function that makes one update of a student, at first a copy of its teacher.

    Args:
      config: The whole config.
      model: The model that the config describes.
      compile: True for `torch.compile`.
      device: A device of PyTorch.
      num_steps: N.

    Raises:
      ValueError: If the config asks for something that is not covered here.
    """
    net = _network(config, model, device).eval()  # without dropout, as ours
    teacher = copy.deepcopy(net).requires_grad_(False)
    student, guide = (_autocast(each, config, device) for each in (net, teacher))
    section, flip = section_of(config, "distill"), config.data.flip
    schedule = _schedule(config)

    def loss(images: Tensor, label: Tensor | None) -> Tensor:
        x = from_pixels(images)
        draws = draw(x, stratified=section.stratified_times, flip=flip)
        return distillation_loss(
            student, guide, x, draws, label, schedule, num_steps
        ).mean()

    return Step(net, teacher, _compiled(loss, compile), _update(net, section))


@dataclasses.dataclass(frozen=True)
class Sampler:
    """Draws a batch by DDIM: a loop in Python, in inference mode.

    Attributes:
      net: The network.
      step: (z_t, t, s) -> z_s.
      times: The times of the loop, from noise to data.
      shape: The shape of z_1.
    """

    net: UNet
    step: Callable[[Tensor, Time, Time], Tensor]
    times: list[Time]
    shape: tuple[int, int, int, int]

    @torch.inference_mode()
    def __call__(self) -> Tensor:
        """Returns uint8 NHWC images on the network's device."""
        z_1 = torch.randn(self.shape, device=self.times[0].alpha.device)
        z_1 = z_1.to(memory_format=torch.channels_last)
        return to_pixels(ddim(self.step, z_1, self.times))


def sampler(
    config: Config,
    model: Model,
    *,
    compile: bool,
    device: str = "cpu",
    num_steps: int,
    batch_size: int,
) -> Sampler:
    """A function that draws a batch; the classes, if there are any, take turns.

    Args:
      config: The whole config.
      model: The model that the config describes.
      compile: True for `torch.compile`.
      device: A device of PyTorch.
      num_steps: N.
      batch_size: Images of a batch.

    Raises:
      ValueError: If the config asks for something that is not covered here.
    """
    net = _network(config, model, device).eval().requires_grad_(False)
    denoise = _autocast(net, config, device)
    label = None
    if model.num_classes:
        label = torch.arange(batch_size, device=device) % model.num_classes

    def step(z_t: Tensor, t: Time, s: Time) -> Tensor:
        return ddim_step(denoise, z_t, t, s, label)

    height, width, channels = model.image_shape
    return Sampler(
        net,
        _compiled(step, compile),
        grid(_schedule(config), num_steps, device),
        (batch_size, channels, height, width),
    )


def grid(schedule: Cosine, num_steps: int, device: str) -> list[Time]:
    """The times i / num_steps from 1 down to 0, where there is no noise.

    Args:
      schedule: The noise schedule.
      num_steps: N.
      device: A device of PyTorch.
    """
    t = torch.arange(num_steps, -1, -1, device=device) / num_steps
    return [Time(*values) for values in zip(*schedule.ending_in_data(t), strict=True)]


COVERED = {
    "model.net": "unet",
    "model.output": "v",
    "diffusion.schedule": "cosine",
    "data.latent_scale": 0.0,
    "parallel.remat": False,
    "train.weight": "snr_trunc",
    "train.num_steps": 0,
    "loop.grad_accum_steps": 1,
    "distill.weight": "snr_trunc",
    "distill.ema_decay": 0.0,
    "sample.sampler": "auto",  # which is ddim
    "sample.eta": 0.0,
    "sample.clip": "auto",
}


def _network(config: Config, model: Model, device: str) -> UNet:
    for field, value in COVERED.items():
        section, name = field.split(".")
        trains = section in ("train", "distill")
        fields = section_of(config, section) if trains else config[section]
        if fields[name] != value:
            raise ValueError(
                f"The peers cover {field}={value!r} alone, and it is {fields[name]!r}."
            )
    net = UNet(model.net, in_channels=model.image_shape[-1])
    if num_parameters(net) != model.num_parameters():
        raise ValueError(
            f"The network of PyTorch has {num_parameters(net)} parameters, ours"
            f" {model.num_parameters()}."
        )
    if device == "cuda":
        # XLA too takes tensor cores for float32.
        torch.set_float32_matmul_precision("high")
    return net.to(device, memory_format=torch.channels_last)


def _schedule(config: Config) -> Cosine:
    return Cosine(config.diffusion.logsnr_min, config.diffusion.logsnr_max)


def _autocast(net: UNet, config: Config, device: str) -> Network:
    """The network, computing in the config's dtype; its output is float32."""
    half = config.model.dtype == "bfloat16"

    def denoise(z_t: Tensor, logsnr_t: Tensor, label: Tensor | None) -> Tensor:
        with torch.autocast(device, torch.bfloat16, enabled=half):
            return net(z_t, logsnr_t, label).float()

    return denoise


def _compiled(function: Any, compile: bool) -> Any:
    # On a CPU max-autotune, freezing and compiling the optimizer too were no faster;
    # cpp_wrapper, which few know, gains 3 % on the digits. fullgraph: what cannot be
    # compiled, or was too often, is an error and not slow without a word.
    return torch.compile(function, fullgraph=True) if compile else function


def _update(net: UNet, section: Config, ema: UNet | None = None) -> Callable[[], None]:
    """Clips gradients, and moves parameters and their average."""
    params = list(net.parameters())
    averages = [] if ema is None else list(ema.parameters())
    optimizer = torch.optim.AdamW(
        params,
        lr=section.learning_rate,
        weight_decay=section.weight_decay,
        fused=True,
    )

    def update() -> None:
        nn.utils.clip_grad_norm_(params, section.grad_clip or math.inf, foreach=True)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if averages:
            torch._foreach_lerp_(averages, params, 1.0 - section.ema_decay)

    return update
