"""The whole sampler as one file of code, that runs without this package.

`jax.export` writes the compiled form of a function, StableHLO, for any batch size and
several platforms. Weights are arguments, in a file of their own, so the code is small.
The decoder of a model of latents may be in the code, with weights in a second file.
"""

import contextlib
import importlib.metadata
import json
import pathlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export, lax
from jax.typing import DTypeLike
from jaxtyping import Array

from vdiff_jax import diffusion, samplers
from vdiff_jax.codec import Autoencoder, Codec
from vdiff_jax.files import weights
from vdiff_jax.generation.sampler import Sampler
from vdiff_jax.interop.model_file import params_of, tensors_of
from vdiff_jax.model import Model
from vdiff_jax.nets.attention import portable
from vdiff_jax.nets.autoencoder import OF_DECODER
from vdiff_jax.types import Condition, Params

PLATFORMS = ("cpu", "cuda")
CODE, WEIGHTS = "sampler.bin", "weights.safetensors"
DECODER = "autoencoder.safetensors"
# Before the names of the decoder's weights, beside those of the network.
PREFIX = "autoencoder/"
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
weights = {weights}
z = np.random.default_rng(0).normal(size=(16, {shape})).astype(np.float32)
{context}x = np.asarray(jax.jit(sampler.call)(weights, z{conditions}))
{save}
"""
CONTEXT = """\
context = np.zeros((16, {tokens}, {width}), np.float32)  # put yours here,
mask = np.ones((16, {tokens}), bool)  # True where a vector counts
"""
SAVE = """\
x = np.rint((x + 1) * 127.5).clip(0, 255).astype(np.uint8)  # it was in [-1, 1]
np.save("images.npy", x)"""
SAVE_LATENTS = 'np.save("latents.npy", x)'
SAVE_DECODED = 'np.save("images.npy", x)  # uint8, as a PNG has them'


def write(
    folder: pathlib.Path,
    sampler: Sampler,
    params: Params,
    *,
    num_steps: int,
    decode: bool = False,
) -> None:
    """Writes the code, the weights, their description, and a script that runs them.

    The code maps (weights, z, label, context, mask, w) to x in [-1, 1] or to latents,
    without what the model does not take. Weights are by name, z is standard normal
    noise [batch, height, width, channels], label int32 [batch], context float32 [batch,
    tokens, width], mask bool [batch, tokens], w float32 [batch].

    Args:
      folder: The folder to write; made if it is not there.
      sampler: A deterministic sampler.
      params: Parameters of its model.
      num_steps: N.
      decode: If true, the code maps to uint8 images, by the model's autoencoder; its
        weights are in a second file, and come with the others.

    Raises:
      ValueError: If flatbuffers is not installed, or nothing decodes.
    """
    try:
        importlib.metadata.version("flatbuffers")
    except importlib.metadata.PackageNotFoundError as error:
        raise ValueError(
            "The export of StableHLO needs flatbuffers: pip install 'vdiff_jax[export]'"
        ) from error
    check_writable(sampler.model, decode=decode)
    files = {WEIGHTS: _float32(tensors_of(params))}
    if decode:
        files[DECODER] = _of_decoder(sampler.model.codec)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: x for each in files.values() for name, x in each.items()}
    (folder / CODE).write_bytes(code(sampler, tensors, num_steps, decode=decode))
    for name, each in files.items():
        weights.write(folder / name, each, {"format": "np"})
    about = _about(sampler.model, folder, num_steps, decode)
    (folder / ABOUT).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
    text = script(sampler.model, decode=decode)
    (folder / SCRIPT).write_text(text, encoding="utf-8")


def check_writable(model: Model, *, decode: bool = False) -> None:
    """Refuses a model that needs noise in each step, or has nothing that decodes.

    Args:
      model: The model.
      decode: If true, it is to be written with its decoder.

    Raises:
      ValueError: If it is one.
    """
    if model.takes_noise:
        raise ValueError(
            "This student cannot be exported to stablehlo: it takes noise beside z_t in"
            " each step (distill.noise_input). Leave stablehlo out of export.formats."
        )
    if decode and not isinstance(model.codec, Autoencoder):
        raise ValueError(
            "export.decode=True needs a model of latents with an autoencoder: set"
            " data.autoencoder to its folder, or leave export.decode out."
        )


def code(
    sampler: Sampler,
    tensors: dict[str, np.ndarray],
    num_steps: int,
    *,
    decode: bool = False,
) -> bytes:
    """The sampler as serialized StableHLO.

    Args:
      sampler: A deterministic sampler.
      tensors: Parameters of its model by name, and those of its decoder; only their
        shapes and types are used.
      num_steps: N.
      decode: If true, it gives uint8 images, decoded one after the other.
    """
    model = sampler.model
    (batch,) = export.symbolic_shape("batch")

    def draw(weights: dict[str, Array], z: Array, *conditions: Array) -> Array:
        condition = _condition(model, conditions)
        own = {name: x for name, x in weights.items() if not name.startswith(PREFIX)}
        denoise = model.denoiser(params_of(own), condition, guidance=sampler.guidance)
        x = samplers.sample(
            diffusion.limited(denoise, sampler.limits),
            z,
            schedule=model.schedule,
            num_steps=num_steps,
        )
        if model.codec.bounded:
            return x
        latents = model.codec.from_x(x)
        return _decoded(model.codec, weights, latents) if decode else latents

    arguments = [
        {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in tensors.items()},
        jax.ShapeDtypeStruct((batch, *model.image_shape), jnp.float32),
        *(
            jax.ShapeDtypeStruct((batch, *x.shape), x.dtype)
            for x in jax.tree.leaves(_example(model))
        ),
    ]
    with _without_paths(), portable():
        exported = export.export(jax.jit(draw), platforms=PLATFORMS)(*arguments)
    return bytes(exported.serialize())


def script(model: Model, *, decode: bool = False) -> str:
    """About ten lines of Python that draw images from the folder they are in."""
    conditions = context = ""
    if model.num_classes:
        conditions += f", (np.arange(16) % {model.num_classes}).astype(np.int32)"
    if model.context_shape is not None:
        tokens, width = model.context_shape
        context = CONTEXT.format(tokens=tokens, width=width)
        conditions += ", context, mask"
    if model.w_range:
        conditions += ", np.ones(16, np.float32)"
    files = f'load_file("{WEIGHTS}")'
    if decode:
        files += f' | load_file("{DECODER}")'
    undecoded = SAVE if model.codec.bounded else SAVE_LATENTS
    return EXAMPLE.format(
        weights=files,
        shape=", ".join(map(str, model.image_shape)),
        context=context,
        conditions=conditions,
        save=SAVE_DECODED if decode else undecoded,
    )


def _about(
    model: Model, folder: pathlib.Path, num_steps: int, decode: bool
) -> dict[str, Any]:
    """The description of the files in a folder."""
    conditions = {
        name: None if part is None else _described(part)
        for name, part in _example(model)._asdict().items()
    }
    returns = "x in [-1, 1], as z" if model.codec.bounded else "latents, as z"
    if decode:
        returns = "uint8 images, [batch, height, width, channels]"
    return {
        "num_steps": num_steps,
        "z": ["batch", *model.image_shape],
        **conditions,
        "returns": returns,
        "platforms": PLATFORMS,
        "weights_sha256": weights.sha256(folder / WEIGHTS),
        **({"autoencoder_sha256": weights.sha256(folder / DECODER)} if decode else {}),
        "code_sha256": weights.sha256(folder / CODE),
        "jax": importlib.metadata.version("jax"),
        "lifetime": LIFETIME,
    }


def _described(part: jax.ShapeDtypeStruct) -> str:
    return f"{part.dtype} [{', '.join(map(str, ('batch', *part.shape)))}]"


def _example(model: Model) -> Condition:
    """Shapes and types of what one example is conditioned on; of w if it takes that."""

    def part(dtype: DTypeLike, *shape: int) -> Any:
        return jax.ShapeDtypeStruct(shape, dtype)

    example = Condition(
        label=part(jnp.int32) if model.num_classes else None,
        w=part(jnp.float32) if model.w_range else None,
    )
    if model.context_shape is None:
        return example
    return example._replace(
        context=part(jnp.float32, *model.context_shape),
        mask=part(jnp.bool_, model.context_shape[0]),
    )


def _condition(model: Model, parts: tuple[Array, ...]) -> Condition:
    """The arguments beside weights and z, in their places."""
    tree = jax.tree.structure(_example(model))
    return jax.tree.unflatten(tree, parts)


def _of_decoder(codec: Codec) -> dict[str, np.ndarray]:
    """The weights that decode, by name; from the file, of which no device has need."""
    assert isinstance(codec, Autoencoder)
    params = {name: x for name, x in codec.read().items() if name in OF_DECODER}
    return {PREFIX + name: x for name, x in _float32(tensors_of(params)).items()}


def _float32(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: np.asarray(x, np.float32) for name, x in tensors.items()}


def _decoded(codec: Codec, weights: dict[str, Array], latents: Array) -> Array:
    """Images of latents, one after the other: the memory is that of one."""
    assert isinstance(codec, Autoencoder)
    tensors = {
        name.removeprefix(PREFIX): x
        for name, x in weights.items()
        if name.startswith(PREFIX)
    }
    params = params_of(tensors)
    return lax.map(lambda latent: codec.decode(params, latent[None])[0], latents)


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
