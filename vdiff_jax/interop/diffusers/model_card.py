"""The README of an exported folder."""

from typing import Any

from vdiff_jax.interop.diffusers import dit_write
from vdiff_jax.model import Model
from vdiff_jax.nets.dit import DiT

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
    height, width, channels = model.image_shape
    steps = f"{num_steps} step{'s' if num_steps > 1 else ''}"
    arguments = f"num_inference_steps={num_steps}, "
    if model.num_classes:
        labels = [i % model.num_classes for i in range(4)]
        arguments += f"class_labels={labels}, "
    guidance = f"\n\nGuidance of {weight} is folded in." if weight else ""
    text = DIT if isinstance(dit_write.inside(model)[0], DiT) else DIFFUSERS
    return text.format(
        steps=steps,
        origin=ORIGINS[kind].format(
            method=(method or "").replace("_", "-"), paper=PAPERS.get(method or "", "")
        ),
        steps_number=num_steps,
        height=height,
        width=width,
        channels=channels,
        classes=f", of {model.num_classes} classes" if model.num_classes else "",
        arguments=arguments,
        guidance=guidance,
        numbers=_table(measured),
    )


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
