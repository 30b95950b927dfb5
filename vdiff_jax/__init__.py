"""Progressive distillation of diffusion models in JAX.

Nothing is re-exported: write `from vdiff_jax import samplers`, and only what that
module needs is imported.
"""

__version__ = "0.1.0"
