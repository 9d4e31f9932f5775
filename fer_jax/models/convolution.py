"""Two-dimensional convolutions of NHWC images, in the form that is fast on the device at hand.

On CPU XLA's own convolution reaches a fraction of what its matrix product does, so there a convolution is
made of products, or of shifted multiply-adds, where that is faster. benchmarks/README.md has the figures.
"""

import functools
import math
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from fer_jax.models import tracing

# Below this many channels a Winograd convolution's sixteen products are too thin to be quick.
_WINOGRAD_CHANNELS = 32
_WINOGRAD_BYTES = 1e9  # of patches and products at a time; larger batches are worked on in parts
# Names of the jitted functions below. The cut keeps them whole, so that of a layer only its input can cross,
# not the shifted copies that a form makes of it.
KEPT_WHOLE = frozenset({"pixel_products", "winograd", "strided_product", "shifted_multiply_adds"})


def convolve(x: jax.Array, kernel: jax.Array, strides: int, padding: str) -> jax.Array:
    """Keras's Conv2D without bias: x [N, H, W, C] with a kernel [k, k, C, filters].

    Args:
      padding: "valid" or "same" (as TensorFlow pads: the odd row or column at the end).
    """
    size, channels = kernel.shape[0], x.shape[-1]
    if size == 1:
        x = x[:, ::strides, ::strides]
        # On CPU a dot is 1.3-5 times faster than XLA's 1x1 convolution, forward and backward.
        return pixel_products(x, kernel[0, 0]) if on_cpu() else library_convolution(x, kernel, 1, "valid")
    if not on_cpu() or x.dtype.itemsize < 4:  # sums of parts in bfloat16 would lose too much
        return library_convolution(x, kernel, strides, padding)
    if size == 3 and strides == 1 and channels >= _WINOGRAD_CHANNELS:
        return winograd(x, kernel, padding=padding)
    if size == 3 and strides == 2 and channels <= 4:
        return strided_product(x, kernel, padding=padding)
    return _convolution(_padded(x, size, strides, padding), kernel, strides)


def convolve_depthwise(x: jax.Array, kernel: jax.Array, strides: int, padding: str) -> jax.Array:
    """Keras's DepthwiseConv2D without bias: x [N, H, W, C] with a kernel [k, k, C, 1]; padding as above.

    `strides` is at most k.
    """
    if on_cpu():
        return shifted_multiply_adds(x, kernel, strides=strides, padding=padding)
    channels = x.shape[-1]
    return library_convolution(x, kernel.reshape(*kernel.shape[:2], 1, channels), strides, padding, channels)


def on_cpu() -> bool:
    """Whether to trace what is fast on CPU; `lax.platform_dependent` would trace both ways, twice as long."""
    return jax.default_backend() == "cpu" and not tracing.LIBRARY_ONLY.get()


def library_convolution(
    x: jax.Array, kernel: jax.Array, strides: int, padding: str, groups: int = 1
) -> jax.Array:
    """XLA's convolution of x [N, H, W, C] with a kernel [k, k, C / groups, filters]."""
    return lax.conv_general_dilated(
        x,
        kernel,
        (strides, strides),
        padding.upper(),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


# The library's convolution with a gradient of products, which on CPU takes as long as the library's or less:
# a tenth for x of a 5x5 kernel of stride 2.
@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _convolution(x: jax.Array, kernel: jax.Array, strides: int) -> jax.Array:
    return library_convolution(x, kernel, strides, "valid")


def _convolution_forward(x: jax.Array, kernel: jax.Array, strides: int) -> tuple[jax.Array, Any]:
    return _convolution(x, kernel, strides), (x, kernel)


def _convolution_backward(
    strides: int, saved: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, kernel = saved
    size = kernel.shape[0]
    rows: list[list[jax.Array]] = [[] for _ in range(size)]
    for i, _, window in windows(x, size, strides):
        rows[i].append(window)
    patches = [jnp.concatenate(row, -1) for row in rows]
    places = gradient.reshape(-1, gradient.shape[-1])
    of_kernel = jnp.stack([patch.reshape(-1, patch.shape[-1]).T @ places for patch in patches])
    parts = {(i, j): pixel_products(gradient, kernel[i, j].T) for i in range(size) for j in range(size)}
    return sum_of_windows(parts, strides, x.shape), of_kernel.reshape(kernel.shape)


_convolution.defvjp(_convolution_forward, _convolution_backward)


def windows(x: jax.Array, size: int, strides: int) -> Iterator[tuple[int, int, jax.Array]]:
    """For each place i, j of a window: what stands there, over all windows, [N, height, width, C]."""
    height, width = ((side - size) // strides * strides + 1 for side in x.shape[1:3])
    for i in range(size):
        for j in range(size):
            yield i, j, x[:, i : i + height : strides, j : j + width : strides]


def sum_of_windows(
    parts: Mapping[tuple[int, int], jax.Array], strides: int, shape: Sequence[int]
) -> jax.Array:
    """The transpose of `windows`: [N, H, W, C] of `shape`, the sum of what each place of a window gives."""

    def residue(row: int, column: int, height: int, width: int) -> jax.Array:
        total = jnp.zeros((shape[0], height, width, shape[3]), next(iter(parts.values())).dtype)
        for (i, j), part in parts.items():
            if (i % strides, j % strides) == (row, column):
                total += _place(part, i // strides, j // strides, height, width)
        return total

    return _interleaved(residue, strides, shape)


def _interleaved(
    residue: Callable[[int, int, int, int], jax.Array], strides: int, shape: Sequence[int]
) -> jax.Array:
    """[N, H, W, C] of `shape` from images [N, height, width, C] of every stride-th row and column of it.

    A padding between elements, which would do the same, is slow on CPU.

    Args:
      residue: (row, column, height, width) to the image that begins at that row and column.
    """
    height, width = (-(-side // strides) for side in shape[1:3])
    rows = [
        jnp.stack([residue(row, column, height, width) for column in range(strides)], 3)
        for row in range(strides)
    ]
    whole = jnp.stack(rows, 2).reshape(shape[0], height * strides, width * strides, shape[3])
    return whole[:, : shape[1], : shape[2]]


def _place(x: jax.Array, top: int, left: int, height: int, width: int) -> jax.Array:
    """`x` [N, h, w, C] in zeros [N, height, width, C], from row `top` and column `left` on."""
    bottom, right = height - top - x.shape[1], width - left - x.shape[2]
    return jnp.pad(x, ((0, 0), (top, bottom), (left, right), (0, 0)))


@functools.partial(jax.jit, static_argnames=("strides", "padding"))
def shifted_multiply_adds(x: jax.Array, kernel: jax.Array, *, strides: int, padding: str) -> jax.Array:
    """A depthwise convolution of x [N, H, W, C] with a kernel [k, k, C, 1].

    XLA's grouped convolution is 12-20 times slower on CPU. Sums are of float32 at least.
    """
    exact = jnp.promote_types(x.dtype, jnp.float32)
    padded = _padded(x, kernel.shape[0], strides, padding).astype(exact)
    return _multiply_adds(padded, kernel.astype(exact), strides).astype(x.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _multiply_adds(x: jax.Array, kernel: jax.Array, strides: int) -> jax.Array:
    products = [window * kernel[i, j, :, 0] for i, j, window in windows(x, kernel.shape[0], strides)]
    return functools.reduce(operator.add, products)


def _multiply_adds_forward(x: jax.Array, kernel: jax.Array, strides: int) -> tuple[jax.Array, Any]:
    return _multiply_adds(x, kernel, strides), (x, kernel)


def _multiply_adds_backward(
    strides: int, saved: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Autodiff keeps every shifted copy of x, and sums each of the kernel's places in a pass of its own: that
    takes 2.7 times as long as one pass for all places along the width and their sums afterwards."""
    x, kernel = saved
    size = kernel.shape[0]
    products = tuple(window * gradient for _, _, window in windows(x, size, strides))
    zeros = tuple(jnp.zeros((), x.dtype) for _ in products)
    lines = lax.reduce(products, zeros, lambda a, b: tuple(map(operator.add, a, b)), (2,))
    sums = jnp.stack([line.sum((0, 1)) for line in lines])
    return _spread(gradient, kernel, strides, x.shape), sums.reshape(kernel.shape)


def _spread(gradient: jax.Array, kernel: jax.Array, strides: int, shape: Sequence[int]) -> jax.Array:
    """The transpose of `_multiply_adds` in x, of `shape`.

    It reads a padded gradient: XLA writes that down, where it would compute anew whatever makes the gradient
    for each place of a window that `sum_of_windows` places.
    """
    size = kernel.shape[0]
    margin = (size - 1) // strides
    bottom, right = (-(-shape[side] // strides) - gradient.shape[side] for side in (1, 2))
    padded = jnp.pad(gradient, ((0, 0), (margin, bottom), (margin, right), (0, 0)))

    def residue(row: int, column: int, height: int, width: int) -> jax.Array:
        terms = []
        for i in range(row, size, strides):
            for j in range(column, size, strides):
                top, left = margin - i // strides, margin - j // strides
                terms.append(padded[:, top : top + height, left : left + width] * kernel[i, j, :, 0])
        return functools.reduce(operator.add, terms)

    return _interleaved(residue, strides, shape)


_multiply_adds.defvjp(_multiply_adds_forward, _multiply_adds_backward)


@functools.partial(jax.jit, static_argnames="padding")
def winograd(x: jax.Array, kernel: jax.Array, *, padding: str) -> jax.Array:
    """A 3x3 convolution of stride 1, by F(2x2, 3x3) of Lavin and Gray (arXiv:1509.09308).

    For each 2x2 tile of the output 16 products of channels instead of 36, each a matrix product over all
    tiles. The output differs from XLA's convolution by about 5e-7 of its norm.

    Args:
      x: float32 [N, H, W, C].
      kernel: float32 [3, 3, C, filters].

    Returns:
      float32 [N, H, W, filters], two less in height and width where `padding` is "valid".
    """
    x = _padded(x, 3, 1, padding)
    place_bytes = 16 * (x.shape[3] + kernel.shape[3])  # 16 of 4 bytes for a tile of four places
    images = max(1, x.shape[0])  # an empty batch is a part too
    parts = min(images, math.ceil(images * math.prod(x.shape[1:3]) * place_bytes / _WINOGRAD_BYTES))
    size = math.ceil(images / parts)
    done = [_winograd(x[i : i + size], kernel) for i in range(0, images, size)]
    return done[0] if len(done) == 1 else jnp.concatenate(done)


@jax.jit  # so that parts of one shape are traced once: VGG-Face's first layers have several at 224 pixels
def _winograd(x: jax.Array, kernel: jax.Array) -> jax.Array:
    batch, height, width, channels = x.shape
    rows, columns = (height - 1) // 2, (width - 1) // 2  # of tiles
    x = jnp.pad(x, ((0, 0), (0, 2 * rows + 2 - height), (0, 2 * columns + 2 - width), (0, 0)))

    def places(i: int, j: int) -> jax.Array:
        """What stands at i, j of each 4x4 patch of the input."""
        end = (batch, i + 2 * rows - 1, j + 2 * columns - 1, channels)
        return lax.slice(x, (0, i, j, 0), end, (1, 2, 2, 1)).reshape(-1, channels)

    patches = _both_ways(_transform_input, [[places(i, j) for j in range(4)] for i in range(4)])
    kernels = _both_ways(_transform_kernel, [[kernel[i, j] for j in range(3)] for i in range(3)])
    products = [[patches[i][j] @ kernels[i][j] for j in range(4)] for i in range(4)]
    tiles = _both_ways(_transform_output, products)
    shape = (batch, rows, columns, kernel.shape[3])
    lines = [jnp.stack([tile.reshape(shape) for tile in line], 3) for line in tiles]
    whole = jnp.stack(lines, 2).reshape(batch, 2 * rows, 2 * columns, kernel.shape[3])
    return whole[:, : height - 2, : width - 2]


_Parts = Sequence[jax.Array]


# The matrices B, G and A of the paper's section 4.1.
def _transform_input(d: _Parts) -> _Parts:
    return d[0] - d[2], d[1] + d[2], d[2] - d[1], d[1] - d[3]


def _transform_kernel(g: _Parts) -> _Parts:
    return g[0], (g[0] + g[1] + g[2]) * 0.5, (g[0] - g[1] + g[2]) * 0.5, g[2]


def _transform_output(m: _Parts) -> _Parts:
    return m[0] + m[1] + m[2], m[1] - m[2] - m[3]


def _both_ways(transform: Callable[[_Parts], _Parts], grid: Sequence[_Parts]) -> list[_Parts]:
    """`transform` along the columns of a grid, then along its rows."""
    columns = [transform(column) for column in zip(*grid, strict=True)]
    return [transform(row) for row in zip(*columns, strict=True)]


@functools.partial(jax.jit, static_argnames="padding")
def strided_product(x: jax.Array, kernel: jax.Array, *, padding: str) -> jax.Array:
    """A 3x3 convolution of stride 2 as one product.

    Each 2x2 square of pixels becomes one pixel of four times the channels; on those the kernel, with a row
    and a column of zeros, is a 2x2 one of stride 1. With MobileNet's three channels it is twice as fast.
    """
    x = _padded(x, 3, 2, padding)
    batch, height, width, channels = x.shape
    rows, columns, filters = (height - 1) // 2, (width - 1) // 2, kernel.shape[3]
    x = jnp.pad(x, ((0, 0), (0, 2 * rows + 2 - height), (0, 2 * columns + 2 - width), (0, 0)))
    squares = x.reshape(batch, rows + 1, 2, columns + 1, 2, channels).transpose(0, 1, 3, 2, 4, 5)
    squares = squares.reshape(batch, rows + 1, columns + 1, 4 * channels)
    kernel = jnp.pad(kernel, ((0, 1), (0, 1), (0, 0), (0, 0)))
    kernel = kernel.reshape(2, 2, 2, 2, channels, filters).transpose(0, 2, 1, 3, 4, 5)
    patches = [squares[:, i : i + rows, j : j + columns] for i in range(2) for j in range(2)]
    return pixel_products(jnp.concatenate(patches, -1), kernel.reshape(16 * channels, filters))


@jax.jit
def pixel_products(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """x [N, H, W, C] times kernel [C, filters], as matrices.

    XLA on CPU copies a transposed image for the kernel's gradient otherwise, which takes thrice the product.
    """
    return (x.reshape(-1, x.shape[-1]) @ kernel).reshape(*x.shape[:-1], kernel.shape[-1])


def _padded(x: jax.Array, size: int, strides: int, padding: str) -> jax.Array:
    if padding == "valid":
        return x
    pads = lax.padtype_to_pads(x.shape[1:3], (size, size), (strides, strides), "SAME")
    return jnp.pad(x, ((0, 0), *pads, (0, 0)))
