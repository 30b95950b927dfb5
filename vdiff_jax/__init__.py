"""Diffusion models turned into samplers of 1 to 8 steps, in JAX.

`load` opens a finished model. Nothing else is re-exported: write `from vdiff_jax import
samplers`, and only what that module needs is imported.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vdiff_jax.loaded import load as load

__version__ = "0.2.0"


def __getattr__(name: str) -> Any:
    """Imports `load` when it is asked for: worker processes need no JAX."""
    if name == "load":
        from vdiff_jax.loaded import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
