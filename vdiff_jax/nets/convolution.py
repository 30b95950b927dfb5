"""The 3x3 convolution, with a gradient that is fast on every device."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array

_ORDER = ("NHWC", "HWIO", "NHWC")


def conv3x3(
    features: int,
    *,
    name: str,
    strides: int = 1,
    pad_both_sides: bool = False,
    zero_init: bool = False,
    dtype: DTypeLike = jnp.float32,
) -> nn.Conv:
    """A flax convolution over 3x3 pixels, zero-padded to the size of its input.

    Args:
      features: Output channels.
      name: Name of the module.
      strides: 1, or 2 to halve the image.
      pad_both_sides: Pad an image of even size at all four sides when halving it; else
        only at the right and the bottom: the same size, other numbers.
      zero_init: Start with a kernel of zeros.
      dtype: Type that it computes in.
    """
    init = nn.initializers.zeros if zero_init else nn.initializers.lecun_normal()
    return nn.Conv(
        features,
        (3, 3),
        strides=strides,
        padding=((1, 1), (1, 1)) if pad_both_sides else "SAME",
        kernel_init=init,
        dtype=dtype,
        conv_general_dilated=_by_platform if strides == 1 else None,
        name=name,
    )


def _by_platform(lhs: Array, rhs: Array, strides, padding, **options) -> Array:
    """`lax.conv_general_dilated`, restricted to the arguments that `conv3x3` passes."""
    del strides, padding, options
    return convolve(lhs, rhs)


# Under `jit` it is traced once for all layers of a shape.
@jax.jit
def convolve(x: Array, kernel: Array) -> Array:
    """The convolution, as each platform is fast at its gradient."""
    return lax.platform_dependent(x, kernel, cpu=convolve_on_cpu, default=_convolve)


def _convolve(x: Array, kernel: Array) -> Array:
    return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=_ORDER)


@jax.custom_vjp
def convolve_on_cpu(x: Array, kernel: Array) -> Array:
    """A convolution whose gradients are convolutions as XLA likes them on a CPU.

    XLA's own are the same convolutions with their dimensions in another order. Inside a
    loop, as in a step of many updates, they fall to a path that is 20 times slower
    (jaxlib 0.10.2); in this order they never do.
    """
    return _convolve(x, kernel)


def _forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return _convolve(x, kernel), (x, kernel)


def _backward(saved: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    x, kernel = saved
    dx = _convolve(dy, kernel[::-1, ::-1].swapaxes(2, 3))
    # The sum over images and pixels: each channel of x is an "image" whose "channels"
    # are the images of the batch, and dy is a "kernel" as large as an image.
    images, window = x.transpose(3, 1, 2, 0), dy.transpose(1, 2, 0, 3)
    dk = lax.conv_general_dilated(
        images, window, (1, 1), ((1, 1), (1, 1)), dimension_numbers=_ORDER
    )
    return dx, dk.transpose(1, 2, 0, 3)


convolve_on_cpu.defvjp(_forward, _backward)
