"""The whole sampler as one file of code, that runs without this package.

`jax.export` writes the compiled form of a function, StableHLO, for any batch size and
several platforms. Weights are arguments, in a file of their own, so the code is small.
"""

import contextlib
import importlib.metadata
import json
import pathlib
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax import export
from jaxtyping import Array

from vdiff_jax import diffusion, samplers
from vdiff_jax.files import weights
from vdiff_jax.generation.sampler import Sampler
from vdiff_jax.interop.model_file import params_of, tensors_of
from vdiff_jax.model import Model
from vdiff_jax.types import Condition, Params

PLATFORMS = ("cpu", "cuda")
CODE, WEIGHTS = "sampler.bin", "weights.safetensors"
ABOUT, SCRIPT = "sampler.json", "run.py"
# Of StableHLO's promise: openxla/stablehlo, docs/compatibility.md.
LIFETIME = (
    "jax reads code that is up to 6 months old: this is a file to deploy, not to keep."
    " Keep the safetensors file, and export again."
)
EXAMPLE = """# Draws 16 images; needs jax, flatbuffers and safetensors.
import jax
import numpy as np
from jax import export
from safetensors.numpy import load_file

sampler = export.deserialize(bytearray(open("sampler.bin", "rb").read()))
weights = load_file("weights.safetensors")
z = np.random.default_rng(0).normal(size=(16, {shape})).astype(np.float32)
x = np.asarray(jax.jit(sampler.call)(weights, z{conditions}))
{save}
"""
SAVE = """\
x = np.rint((x + 1) * 127.5).clip(0, 255).astype(np.uint8)  # it was in [-1, 1]
np.save("pictures.npy", x)"""
SAVE_LATENTS = 'np.save("latents.npy", x)'


def write(
    folder: pathlib.Path, sampler: Sampler, params: Params, *, num_steps: int
) -> None:
    """Writes the code, the weights, their description, and a script that runs them.

    The code maps (weights, z, label, w) to x in [-1, 1], without label or w if the
    model does not take them. Weights are by name, z is standard normal noise [batch,
    height, width, channels], label int32 [batch], w float32 [batch].

    Args:
      folder: The folder to write; made if it is not there.
      sampler: A deterministic sampler.
      params: Parameters of its model.
      num_steps: N.

    Raises:
      ValueError: If flatbuffers is not installed.
    """
    try:
        importlib.metadata.version("flatbuffers")
    except importlib.metadata.PackageNotFoundError as error:
        raise ValueError(
            "The export of StableHLO needs flatbuffers: pip install 'vdiff_jax[export]'"
        ) from error
    model = sampler.model
    tensors = {
        name: np.asarray(x, np.float32) for name, x in tensors_of(params).items()
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CODE).write_bytes(code(sampler, tensors, num_steps))
    weights.write(folder / WEIGHTS, tensors, {"format": "np"})
    about = {
        "num_steps": num_steps,
        "z": ["batch", *model.image_shape],
        "label": "int32 [batch]" if model.num_classes else None,
        "w": "float32 [batch]" if model.w_range else None,
        "returns": "x in [-1, 1], as z" if model.codec.bounded else "latents, as z",
        "platforms": PLATFORMS,
        "weights_sha256": weights.sha256(folder / WEIGHTS),
        "code_sha256": weights.sha256(folder / CODE),
        "jax": importlib.metadata.version("jax"),
        "lifetime": LIFETIME,
    }
    (folder / ABOUT).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
    (folder / SCRIPT).write_text(script(model), encoding="utf-8")


def check_writable(model: Model) -> None:
    """Refuses a model that needs more than its first noise, a class and w.

    Raises:
      ValueError: If it is one.
    """
    if model.takes_noise:
        raise ValueError(
            "This student cannot be exported to stablehlo: it takes noise beside z_t in"
            " each step (distill.noise_input). Leave stablehlo out of export.formats."
        )
    if model.context_shape is not None:
        raise ValueError(
            "This model cannot be exported to stablehlo: it takes a context, such as"
            " the embedding of a text. Leave stablehlo out of export.formats."
        )


def code(sampler: Sampler, tensors: dict[str, np.ndarray], num_steps: int) -> bytes:
    """The sampler as serialized StableHLO.

    Args:
      sampler: A deterministic sampler.
      tensors: Parameters of its model by name; only their shapes and types are used.
      num_steps: N.
    """
    model = sampler.model
    (batch,) = export.symbolic_shape("batch")

    def draw(weights: dict[str, Array], z: Array, *conditions: Array) -> Array:
        condition = _condition(model, conditions)
        params = params_of(weights)
        denoise = model.denoiser(params, condition, guidance=sampler.guidance)
        x = samplers.sample(
            diffusion.limited(denoise, sampler.limits),
            z,
            schedule=model.schedule,
            num_steps=num_steps,
        )
        return x if model.codec.bounded else model.codec.from_x(x)

    arguments = [
        {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in tensors.items()},
        jax.ShapeDtypeStruct((batch, *model.image_shape), jnp.float32),
    ]
    if model.num_classes:
        arguments.append(jax.ShapeDtypeStruct((batch,), jnp.int32))
    if model.w_range:
        arguments.append(jax.ShapeDtypeStruct((batch,), jnp.float32))
    with _without_paths():
        exported = export.export(jax.jit(draw), platforms=PLATFORMS)(*arguments)
    return bytes(exported.serialize())


def script(model: Model) -> str:
    """About ten lines of Python that draw images from the folder they are in."""
    conditions = ""
    if model.num_classes:
        conditions += f", (np.arange(16) % {model.num_classes}).astype(np.int32)"
    if model.w_range:
        conditions += ", np.ones(16, np.float32)"
    shape = ", ".join(map(str, model.image_shape))
    save = SAVE if model.codec.bounded else SAVE_LATENTS
    return EXAMPLE.format(shape=shape, conditions=conditions, save=save)


def _condition(model: Model, parts: tuple[Array, ...]) -> Condition:
    """Label and w, of which a model may take either, both or none."""
    label = parts[0] if model.num_classes else None
    return Condition(label, w=parts[-1] if model.w_range else None)


@contextlib.contextmanager
def _without_paths() -> Iterator[None]:
    """Keeps folders of this machine out of the code."""
    name = "jax_hlo_source_file_canonicalization_regex"
    before = getattr(jax.config, name)
    jax.config.update(name, ".*/")
    try:
        yield
    finally:
        jax.config.update(name, before)
