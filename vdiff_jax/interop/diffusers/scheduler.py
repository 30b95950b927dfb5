"""The noise schedule of a scheduler of diffusers, as a section `diffusion`."""

import pathlib
from typing import Any

from vdiff_jax import schedules
from vdiff_jax.interop.diffusers.folder import read_json

OUTPUTS = {"epsilon": "eps", "v_prediction": "v", "sample": "x"}
CHAINS = {
    "linear": "linear_beta",
    "scaled_linear": "scaled_linear_beta",
    "squaredcos_cap_v2": "squared_cosine_beta",
}
SCHEDULERS = (
    "DDPMScheduler", "DDIMScheduler", "PNDMScheduler", "DPMSolverMultistepScheduler",
)  # fmt: skip


def read_scheduler(path: pathlib.Path) -> tuple[dict[str, Any], str]:
    """The `diffusion` section for a scheduler, and the output of its network.

    Raises:
      ValueError: If something is missing or not supported, with its name.
    """
    scheduler = read_json(path)
    if scheduler.get("_class_name") not in SCHEDULERS:
        raise ValueError(
            f"{path} is of a {scheduler.get('_class_name')!r}; only the noise schedules"
            f" of {', '.join(SCHEDULERS)} can be imported."
        )
    prediction = scheduler.get("prediction_type", "epsilon")
    if prediction not in OUTPUTS:
        raise ValueError(f"prediction_type={prediction!r} in {path} is not supported.")
    chain: dict[str, Any] = {
        "num_train_steps": scheduler.get("num_train_timesteps", 1000),
        "beta_first": scheduler.get("beta_start", 1e-4),
        "beta_last": scheduler.get("beta_end", 0.02),
        "betas": (),
    }
    kind = scheduler.get("beta_schedule", "linear")
    betas = scheduler.get("trained_betas")
    if betas is not None:
        chain |= {"schedule": "betas", "betas": tuple(map(float, betas))}
        chain["num_train_steps"] = len(betas)
    elif kind in CHAINS:
        chain["schedule"] = CHAINS[kind]
    else:
        raise ValueError(
            f"beta_schedule={kind!r} in {path} is not supported; only"
            f" {', '.join(CHAINS)} can be imported."
        )
    if scheduler.get("rescale_betas_zero_snr", False):
        ended = schedules.ending_in_noise(schedules.betas_of(**chain))
        chain |= {"schedule": "betas", "betas": tuple(map(float, ended))}
    return chain, OUTPUTS[prediction]
