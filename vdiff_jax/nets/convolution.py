"""The 3x3 convolution, with a gradient that is fast on every device."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array


def conv3x3(
    features: int,
    *,
    name: str,
    strides: int = 1,
    zero_init: bool = False,
    dtype: DTypeLike = jnp.float32,
) -> nn.Conv:
    """A flax convolution over 3x3 pixels, zero-padded to the size of its input."""
    init = nn.initializers.zeros if zero_init else nn.initializers.lecun_normal()
    return nn.Conv(
        features,
        (3, 3),
        strides=strides,
        kernel_init=init,
        dtype=dtype,
        conv_general_dilated=_by_platform if strides == 1 else None,
        name=name,
    )


def _by_platform(lhs: Array, rhs: Array, strides, padding, **options) -> Array:
    """`lax.conv_general_dilated`, restricted to what `conv3x3` asks of it."""
    del strides, padding, options
    return lax.platform_dependent(lhs, rhs, cpu=convolve_on_cpu, default=_convolve)


def _convolve(x: Array, kernel: Array) -> Array:
    return lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


@jax.custom_vjp
def convolve_on_cpu(x: Array, kernel: Array) -> Array:
    """A convolution whose gradient is a convolution and a matrix product.

    XLA's own gradient with respect to the kernel is a convolution whose window is the
    image. On a CPU (jaxlib 0.10.2) it falls, in many programs, to a path that is 20
    times slower.
    """
    return _convolve(x, kernel)


def _forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return _convolve(x, kernel), (x, kernel)


def _backward(saved: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    x, kernel = saved
    dx = _convolve(dy, kernel[::-1, ::-1].swapaxes(2, 3))
    _, height, width, channels = x.shape
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    neighbours = jnp.concatenate(
        [padded[:, i : i + height, j : j + width] for i in range(3) for j in range(3)],
        axis=-1,
    )
    features = dy.shape[-1]
    dk = neighbours.reshape(-1, 9 * channels).T @ dy.reshape(-1, features)
    return dx, dk.reshape(kernel.shape)


convolve_on_cpu.defvjp(_forward, _backward)
