"""The README of an exported folder."""

from typing import Any

from vdiff_jax.interop.diffusers.writable import unconverted
from vdiff_jax.model import Model
from vdiff_jax.nets.dit import DiT
from vdiff_jax.nets.unet import UNet

DIFFUSERS = """---
library_name: diffusers
pipeline_tag: unconditional-image-generation
---

# A sampler of {steps}

{origin} Images of {height} x {width} x {channels}{classes}.

```python
import torch
from diffusers import DiffusionPipeline

pipeline = DiffusionPipeline.from_pretrained("path/of/this/folder")
generator = torch.Generator().manual_seed(0)
images = pipeline(batch_size=4, {arguments}generator=generator).images
```

It needs no code of its own. The network is conditioned on time by a learned table, and
the scheduler has three betas for each step, so that float32 gives the images of the
sampler that it was trained for. `num_inference_steps` is {steps_number}, or a divisor
of it; with any other number the images are not those of this model.{guidance}
{numbers}"""

TEXT = """---
library_name: diffusers
pipeline_tag: text-to-image
---

# A sampler of {steps}

{origin} Its context has {tokens} vectors of {width}.

```python
from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel

teacher, student = "path/of/its/teacher", "path/of/this/folder"
pipeline = StableDiffusionPipeline.from_pretrained(
    teacher,
    unet=UNet2DConditionModel.from_pretrained(student, subfolder="unet"),
    scheduler=DDIMScheduler.from_pretrained(student, subfolder="scheduler"),
)
images = pipeline(
    "a text", num_inference_steps={steps_number}, guidance_scale={scale}
).images
```

It needs no code of its own: all parts but the network and the scheduler are those of
its teacher. `num_inference_steps` is {steps_number}, or a divisor of it; with any other
number the images are not those of this model.{guidance}
{numbers}"""

CLASS = """---
library_name: diffusers
pipeline_tag: unconditional-image-generation
---

# A sampler of {steps}

{origin} Latents or images of {height} x {width} x {channels}, of {classes} classes.

```python
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from safetensors.torch import load_file

folder, labels = "path/of/this/folder", torch.tensor([0, 1])
unet = UNet2DConditionModel.from_pretrained(folder, subfolder="unet")
scheduler = DDIMScheduler.from_pretrained(folder, subfolder="scheduler")
context = load_file(folder + "/class_embedder.safetensors")["weight"][labels, None]
generator = torch.Generator().manual_seed(0)
x = torch.randn(len(labels), {channels}, {height}, {width}, generator=generator)
scheduler.set_timesteps({steps_number}){embedding}
with torch.no_grad():
    for t in scheduler.timesteps:
        output = unet(x, t, context{argument}).sample
        x = scheduler.step(output, t, x).prev_sample
```

No pipeline of diffusers embeds a class as a context, so this script does. The steps are
{steps_number}, or a divisor of it; with any other number the images are not those of
this model.{guidance}
{numbers}"""

EMBEDDING = """
w, half = 1.0, {features} // 2  # the guidance weight
angles = 1000.0 * w * 10000.0 ** (-torch.arange(half) / (half - 1))
waves = torch.cat([angles.sin(), angles.cos()]).expand(len(labels), -1)"""


DIT = """---
library_name: diffusers
pipeline_tag: unconditional-image-generation
---

# A sampler of {steps}

{origin} Latents of {height} x {width} x {channels}{classes}.

```python
import torch
from diffusers import AutoencoderKL, DiTPipeline

vae = AutoencoderKL.from_pretrained("path/of/the/autoencoder")
pipeline = DiTPipeline.from_pretrained("path/of/this/folder", vae=vae)
generator = torch.Generator().manual_seed(0)
images = pipeline({arguments}guidance_scale=1.0, generator=generator).images
```

It needs no code of its own; where this folder has a `vae`, leave out `vae=`. The
network is conditioned on the number of a step of the chain, and DDIM with trailing
steps visits the times of the sampler that it was trained for, for
`num_inference_steps={steps_number}` or another divisor of the steps of the chain. A
`guidance_scale` above 1 evaluates the network twice; the pipeline then takes class 1000
for none, which is right for 1,000 classes alone.{guidance}
{numbers}"""

ORIGINS = {
    "base": "A diffusion model, trained with vdiff_jax.",
    "guided": "A diffusion model with guidance folded in, trained with vdiff_jax.",
    "distilled": "A diffusion model, made a sampler of few steps by {method}\n"
    "distillation{paper} with vdiff_jax.",
}
# Of other methods only the name is given.
PAPERS = {"progressive": " (Salimans & Ho, ICLR 2022)"}


def diffusers(
    model: Model,
    kind: str,
    method: str | None,
    num_steps: int,
    weight: str | None,
    measured: list[dict[str, Any]],
) -> str:
    """The card of a pipeline.

    Args:
      model: The model that was exported.
      kind: base, guided or distilled.
      method: The method of a student; None for any other model.
      num_steps: Steps of its sampler.
      weight: The guidance weight that is folded in, in words; None without guidance.
      measured: Rows of the evaluation.
    """
    arguments = f"num_inference_steps={num_steps}, "
    if model.num_classes:
        labels = [i % model.num_classes for i in range(4)]
        arguments += f"class_labels={labels}, "
    text = DIT if isinstance(unconverted(model).net, DiT) else DIFFUSERS
    return text.format(
        **_facts(model, kind, method, num_steps, measured),
        classes=f", of {model.num_classes} classes" if model.num_classes else "",
        arguments=arguments,
        guidance=f"\n\nGuidance of {weight} is folded in." if weight else "",
    )


def conditional(
    model: Model,
    kind: str,
    method: str | None,
    num_steps: int,
    weight: str | None,
    measured: list[dict[str, Any]],
) -> str:
    """The card of a network that attends to a context, or to its class.

    Args:
      model: The model that was exported.
      kind: base, guided or distilled.
      method: The method of a student; None for any other model.
      num_steps: Steps of its sampler.
      weight: The guidance weight that is folded in, in words; None for none.
      measured: Rows of the evaluation.
    """
    takes_w = model.w_range is not None and weight is None
    guidance = ""
    if weight:
        guidance = f"\n\nGuidance of {weight} is folded in."
    elif model.w_range is not None:
        low, high = model.w_range
        guidance = (
            f"\n\nIt learned guidance weights w from {low:g} to {high:g}; a guidance"
            " scale is 1 + w."
        )
    facts = _facts(model, kind, method, num_steps, measured)
    facts["guidance"] = guidance
    if model.context_shape is None:
        net = unconverted(model).net
        assert isinstance(net, UNet)
        embedding = EMBEDDING.format(features=net.w_features) if takes_w else ""
        argument = ", timestep_cond=waves" if takes_w else ""
        return CLASS.format(
            **facts, classes=model.num_classes, embedding=embedding, argument=argument
        )
    facts["tokens"], facts["width"] = model.context_shape
    # Above 1, a network that is not conditioned on w would be evaluated twice.
    scale = 1.0 + model.w_range[1] if model.w_range and takes_w else 1.0
    return TEXT.format(**facts, scale=scale)


def _facts(
    model: Model,
    kind: str,
    method: str | None,
    num_steps: int,
    measured: list[dict[str, Any]],
) -> dict[str, Any]:
    """What every card has."""
    height, width, channels = model.image_shape
    return {
        "steps": f"{num_steps} step{'s' if num_steps > 1 else ''}",
        "origin": ORIGINS[kind].format(
            method=(method or "").replace("_", "-"), paper=PAPERS.get(method or "", "")
        ),
        "steps_number": num_steps,
        "height": height,
        "width": width,
        "channels": channels,
        "numbers": _table(measured),
    }


def _table(measured: list[dict[str, Any]]) -> str:
    if not measured:
        return ""
    rows = [
        f"| {row['metric']} | {row['value']:.4g} | {row['num_images']} |"
        for row in measured
        if row["value"] is not None  # it was no number
    ]
    head = ["", "| metric | value | samples of each seed |", "| --- | --- | --- |"]
    return "\n".join([*head, *rows, ""])
