"""Convolutions made of products are the library's convolutions."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from fer_jax.models import convolution


def random(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def relative(a, b):
    return float(jnp.linalg.norm(a - b) / jnp.linalg.norm(b))


@pytest.mark.parametrize(("height", "width"), [(6, 6), (7, 6), (9, 11), (3, 3)])
def test_winograd_is_the_convolution_at_odd_and_even_sizes(height, width):
    x, kernel = random(0, 2, height, width, 32), random(1, 3, 3, 32, 5)
    expected = convolution.library_convolution(x, kernel, 1, "valid")
    assert convolution.winograd(x, kernel, padding="valid").shape == expected.shape
    assert relative(convolution.winograd(x, kernel, padding="valid"), expected) < 2e-6


@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize(("size", "strides", "channels"), [(1, 1, 32), (3, 1, 32), (3, 2, 3), (5, 1, 8)])
def test_no_images_give_none(size, strides, channels, padding):
    x, kernel = random(0, 0, 9, 9, channels), random(1, size, size, channels, 5)
    expected = convolution.library_convolution(x, kernel, strides, padding)
    assert convolution.convolve(x, kernel, strides, padding).shape == expected.shape


def assert_same_gradients(ours, theirs, x, kernel):
    """Of the convolutions `ours` and `theirs`, functions of x and kernel."""

    def gradients(convolve):
        return jax.jit(jax.grad(lambda *args: jnp.sum(jnp.sin(convolve(*args))), (0, 1)))(x, kernel)

    for gradient, expected in zip(gradients(ours), gradients(theirs), strict=True):
        assert gradient.shape == expected.shape
        assert relative(gradient, expected) < 1e-5


def test_winograd_has_the_gradients_of_the_convolution():
    assert_same_gradients(
        lambda x, k: convolution.winograd(x, k, padding="valid"),
        lambda x, k: convolution.library_convolution(x, k, 1, "valid"),
        random(0, 2, 7, 8, 32),
        random(1, 3, 3, 32, 5),
    )


@pytest.mark.parametrize(("size", "channels"), [(1, 32), (3, 3), (3, 32), (5, 8), (7, 3)])
@pytest.mark.parametrize("strides", [1, 2])
@pytest.mark.parametrize(("side", "padding"), [(9, "same"), (10, "valid")])
def test_every_form_has_the_gradients_of_the_convolution(size, strides, channels, side, padding):
    assert_same_gradients(
        lambda x, k: convolution.convolve(x, k, strides, padding),
        lambda x, k: convolution.library_convolution(x, k, strides, padding),
        random(0, 2, side, side - 1, channels),
        random(1, size, size, channels, 4),
    )


@pytest.mark.parametrize("size", [3, 5])
@pytest.mark.parametrize("strides", [1, 2])
@pytest.mark.parametrize(("side", "padding"), [(9, "same"), (10, "same"), (10, "valid")])
def test_a_depthwise_convolution_and_its_gradients_are_the_library_s(size, strides, side, padding):
    x, kernel = random(0, 2, side, side - 1, 6), random(1, size, size, 6, 1)

    def ours(x, k):
        return convolution.convolve_depthwise(x, k, strides, padding)

    def theirs(x, k):
        return convolution.library_convolution(x, k.reshape(size, size, 1, 6), strides, padding, 6)

    assert relative(ours(x, kernel), theirs(x, kernel)) < 2e-6
    assert_same_gradients(ours, theirs, x, kernel)


@pytest.mark.parametrize("size", [1, 3, 5])
@pytest.mark.parametrize("strides", [1, 2])
@pytest.mark.parametrize("padding", ["valid", "same"])
@pytest.mark.parametrize("channels", [3, 32])
@pytest.mark.parametrize("side", [9, 10])
def test_every_form_is_the_convolution(size, strides, padding, channels, side):
    x, kernel = random(0, 2, side, side, channels), random(1, size, size, channels, 4)
    expected = convolution.library_convolution(x, kernel, strides, padding)
    result = convolution.convolve(x, kernel, strides, padding)
    assert result.shape == expected.shape
    assert relative(result, expected) < 2e-6


def test_on_cpu_common_kernels_are_products_and_elsewhere_the_library_is_asked(monkeypatch):
    def primitives(x, kernel, strides):
        traced = jax.make_jaxpr(lambda x, k: convolution.convolve(x, k, strides, "same"))(x, kernel)
        return str(traced)

    cases = [
        (random(0, 1, 8, 8, 32), random(1, 3, 3, 32, 4), 1),
        (random(0, 1, 8, 8, 3), random(1, 3, 3, 3, 4), 2),
    ]
    for case in cases:
        assert lax.conv_general_dilated_p.name not in primitives(*case)
    monkeypatch.setattr(convolution, "on_cpu", lambda: False)
    for case in cases:
        assert lax.conv_general_dilated_p.name in primitives(*case)


@pytest.mark.parametrize(
    ("convolve", "size", "filters"),
    [
        (convolution.convolve, 1, 4),
        (convolution.convolve, 3, 4),
        (convolution.convolve, 7, 4),
        (convolution.convolve_depthwise, 3, 1),
    ],
)
@pytest.mark.parametrize("strides", [1, 2])
def test_bfloat16_loses_no_more_than_its_rounding_forward_and_backward(convolve, size, filters, strides):
    x, kernel = random(0, 2, 16, 15, 32), random(1, size, size, 32, filters)
    low = [array.astype(jnp.bfloat16) for array in (x, kernel)]
    exact = [array.astype(jnp.float32) for array in low]

    def output_and_gradients(*args):
        output, pull = jax.vjp(lambda x, k: convolve(x, k, strides, "same"), *args)
        return output, *pull(jnp.ones_like(output))

    for ours, expected in zip(output_and_gradients(*low), output_and_gradients(*exact), strict=True):
        assert ours.dtype == jnp.bfloat16
        assert relative(ours.astype(jnp.float32), expected) < 2**-8  # bfloat16 has 8 bits
