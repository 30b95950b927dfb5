"""Files of weights as numpy arrays: safetensors, and those that torch wrote.

Neither reader runs code from the file: torch's unpickler is restricted to tensors and
plain containers, and the safetensors format holds nothing else.
"""

import hashlib
import pathlib
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from vdiff_jax.files.atomic import replacing, write_bytes
from vdiff_jax.files.copies import kept_on_this_machine

Tensors = dict[str, np.ndarray]


def read(path: pathlib.Path) -> Tensors:
    """Reads a state dict.

    Args:
      path: A `.pth` or `.pt` file of torch, with the state dict itself or with one
        under "state_dict"; or a `.safetensors` file.

    Returns:
      Each tensor under its name in the file, in the layout of the file. Bfloat16, which
      numpy does not have, becomes float32.

    Raises:
      ValueError: If there is no such file, its suffix is unknown, or it is damaged or
        holds anything but tensors.
    """
    readers: dict[str, Callable[[pathlib.Path], Tensors]] = {
        ".pth": _read_torch,
        ".pt": _read_torch,
        ".safetensors": _read_safetensors,
    }
    if path.suffix not in readers:
        raise ValueError(
            f"{path} is of no known kind; weights are read from {', '.join(readers)}."
        )
    _check_is_file(path)
    return readers[path.suffix](kept_on_this_machine(path))


def write(path: pathlib.Path, tensors: Tensors, metadata: dict[str, str]) -> None:
    """Writes a `.safetensors` file, whole or not at all, and opens it again.

    The bytes depend on the tensors and the metadata alone if that has one entry; of
    several, safetensors would choose the order anew in each process.

    Args:
      path: The file; its folder is made.
      tensors: Arrays by name.
      metadata: Texts by name.

    Raises:
      OSError: If it cannot be written; an older file then stays.
    """
    # safetensors 0.8.0 writes other arrays than C-contiguous ones wrongly, without an
    # error.
    contiguous = {name: np.ascontiguousarray(x) for name, x in tensors.items()}
    try:
        with replacing(path) as half:
            # `save_file` would let nobody but the owner read it.
            write_bytes(half, safetensors.numpy.save(contiguous, metadata))
            _check_holds(half, contiguous)
    except (OSError, safetensors.SafetensorError) as error:
        raise OSError(f"{path} could not be written: {error}.") from error


def metadata(path: pathlib.Path) -> dict[str, str]:
    """The texts in a `.safetensors` file.

    Raises:
      ValueError: If there is no such file, or it is damaged.
    """
    _check_is_file(path)
    try:
        with safetensors.safe_open(
            kept_on_this_machine(path), framework="numpy"
        ) as file:
            return dict(file.metadata() or {})
    except safetensors.SafetensorError as error:
        raise _unreadable(path) from error


def sha256(path: pathlib.Path) -> str:
    """The SHA-256 of a file's bytes, as 64 hexadecimal digits.

    Raises:
      ValueError: If there is no such file.
    """
    _check_is_file(path)
    with kept_on_this_machine(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_holds(path: pathlib.Path, tensors: Tensors) -> None:
    """Refuses a file that does not list every tensor, or does not hold the smallest."""
    with safetensors.safe_open(path, framework="numpy") as file:
        names = list(file.keys())  # noqa: SIM118: it is no dictionary
        listed = {name: tuple(file.get_slice(name).get_shape()) for name in names}
        if listed != {name: x.shape for name, x in tensors.items()}:
            raise OSError("opened again, it does not have all tensors")
        smallest = min(tensors, key=lambda name: tensors[name].size, default=None)
        if smallest is not None:
            file.get_tensor(smallest)


def _read_torch(path: pathlib.Path) -> Tensors:
    import torch  # here, because it takes seconds

    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (MemoryError, PermissionError):
        raise
    except Exception as error:  # of pickle, zipfile and torch, whose words mislead
        raise _unreadable(path) from error
    if isinstance(content, dict):
        content = content.get("state_dict", content)
    if not isinstance(content, dict):
        raise ValueError(
            f"{path} holds a {type(content).__name__}, not a state dict. Save"
            " `module.state_dict()`."
        )
    for name, value in content.items():
        if not isinstance(value, torch.Tensor):
            raise ValueError(
                f"{name!r} in {path} is a {type(value).__name__}, not a tensor. Save"
                " `module.state_dict()` alone, or under 'state_dict'."
            )
    tensors = {str(name): tensor.detach() for name, tensor in content.items()}
    return {
        name: (x.float() if x.dtype is torch.bfloat16 else x).numpy()
        for name, x in tensors.items()
    }


def _read_safetensors(path: pathlib.Path) -> Tensors:
    try:
        tensors = safetensors.numpy.load_file(path)
    except safetensors.SafetensorError as error:
        raise _unreadable(path) from error
    except AttributeError as error:  # numpy has no such type
        raise ValueError(
            f"{path} has tensors of a type that is not read, such as float8 ({error})."
            " Convert them to bfloat16."
        ) from error
    return {
        # JAX's name: importing it teaches numpy the one that safetensors asks for.
        name: x.astype(np.float32) if x.dtype == jnp.bfloat16 else x
        for name, x in tensors.items()
    }


def _check_is_file(path: pathlib.Path) -> None:
    if not path.is_file():
        raise ValueError(f"There is no file {path}. Fetch it, or give its place.")


def _unreadable(path: pathlib.Path) -> ValueError:
    return ValueError(
        f"{path} is damaged, or holds more than tensors. Fetch it again; or, if you"
        " trust it, load it with what wrote it and save its state dict alone."
    )
