"""Keras's layers in Flax Linen, with Keras's semantics and Keras's names for layers and tensors.

Images are NHWC float32 or bfloat16. A layer that holds no variables is a module too, so that every Keras
layer has its name in the traced model: freezing counts layers, and parity tests look at their outputs.
"""

import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any

import flax.errors
import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from fer_jax.models import tracing
from fer_jax.models.convolution import convolve, convolve_depthwise, on_cpu, sum_of_windows, windows

Padding = int | tuple[tuple[int, int], tuple[int, int]]
LRN_ALPHA, LRN_BETA = 1e-4, 0.75
GLOROT = nn.initializers.glorot_uniform()
# Marks, in the traced program, a value that is about to be mixed with those of the batch's other images.
BATCH_MIXING = "batch_mixing"


class Function(nn.Module):
    """A layer without variables: `function` under a Keras name."""

    function: Callable[[Any], jax.Array]

    @nn.compact
    def __call__(self, x: Any) -> jax.Array:
        return self.function(x)


def _parameter(module: nn.Module, name: str, initialiser: Callable[..., Any], shape: tuple[int, ...]) -> Any:
    """`module.param`, without tracing the initialiser where the tensor is there: a quarter of a trace."""
    if tracing.SHAPES_ALONE.get():
        module.put_variable("params", name, jnp.zeros(shape))
    if module.has_variable("params", name):
        value: Any = module.get_variable("params", name)
        if value.shape != shape:
            raise flax.errors.ScopeParamShapeError(name, "/".join(module.path), value.shape, shape)
        return value
    return module.param(name, initialiser, shape)


class Conv2D(nn.Module):
    """keras.layers.Conv2D: kernel [k, k, in, filters], optional bias, `padding` "valid" or "same"."""

    filters: int
    kernel_size: int
    strides: int = 1
    padding: str = "valid"
    use_bias: bool = True
    activation: Callable[[jax.Array], jax.Array] | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (self.kernel_size, self.kernel_size, x.shape[-1], self.filters)
        kernel = _parameter(self, "kernel", GLOROT, shape)
        x = convolve(x, kernel, self.strides, self.padding)
        if self.use_bias:
            x = x + _parameter(self, "bias", nn.initializers.zeros, (self.filters,))
        return x if self.activation is None else self.activation(x)


class DepthwiseConv2D(nn.Module):
    """keras.layers.DepthwiseConv2D without bias: depthwise_kernel [k, k, channels, 1]."""

    kernel_size: int
    strides: int = 1
    padding: str = "valid"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (self.kernel_size, self.kernel_size, x.shape[-1], 1)
        kernel = _parameter(self, "depthwise_kernel", GLOROT, shape)
        return convolve_depthwise(x, kernel, self.strides, self.padding)


class Dense(nn.Module):
    """keras.layers.Dense: kernel [in, units] and bias."""

    units: int
    activation: Callable[[jax.Array], jax.Array] | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = _parameter(self, "kernel", GLOROT, (x.shape[-1], self.units))
        x = x @ kernel + _parameter(self, "bias", nn.initializers.zeros, (self.units,))
        return x if self.activation is None else self.activation(x)


class BatchNormalization(nn.Module):
    """keras.layers.BatchNormalization over the last axis.

    Where it `learns`, the batch's mean and biased variance normalise, and the moving ones follow with
    `momentum` (Keras 3; tf_keras stores the unbiased variance). Otherwise the moving ones normalise
    and stay: a frozen layer of Keras runs in inference mode during training too.
    """

    epsilon: float = 1e-3
    momentum: float = 0.99
    learns: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (x.shape[-1],)
        gamma = _parameter(self, "gamma", nn.initializers.ones, shape)
        beta = _parameter(self, "beta", nn.initializers.zeros, shape)
        moving_mean = self.variable("batch_stats", "moving_mean", jnp.zeros, shape)
        moving_variance = self.variable("batch_stats", "moving_variance", jnp.ones, shape)
        if self.learns:
            x = checkpoint_name(x, BATCH_MIXING)
            normalised, mean, variance = _normalise_by_batch(x, gamma, beta, self.epsilon)
            if not self.is_initializing():
                moving_mean.value = self._follow(moving_mean.value, mean)
                moving_variance.value = self._follow(moving_variance.value, variance)
            return normalised
        return _normalise(x, gamma, beta, moving_mean.value, moving_variance.value, self.epsilon)

    def _follow(self, moving: jax.Array, batch: jax.Array) -> jax.Array:
        return moving * self.momentum + batch * (1.0 - self.momentum)


def _normalise(
    x: jax.Array, gamma: jax.Array, beta: jax.Array, mean: jax.Array, variance: jax.Array, epsilon: float
) -> jax.Array:
    scale = gamma * lax.rsqrt(variance + epsilon)
    return x * scale.astype(x.dtype) + (beta - mean * scale).astype(x.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _normalise_by_batch(
    x: jax.Array, gamma: jax.Array, beta: jax.Array, epsilon: float
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """x [..., C] normalised by its mean and biased variance over all other axes, and these, [C] each."""
    axes = tuple(range(x.ndim - 1))
    exact = at_least_float32(x)
    mean, variance = jnp.mean(exact, axes), jnp.var(exact, axes)
    return _normalise(x, gamma, beta, mean, variance, epsilon), mean, variance


def _by_batch_forward(
    x: jax.Array, gamma: jax.Array, beta: jax.Array, epsilon: float
) -> tuple[tuple[jax.Array, jax.Array, jax.Array], Any]:
    normalised, mean, variance = _normalise_by_batch(x, gamma, beta, epsilon)
    return (normalised, mean, variance), (x, gamma, mean, variance)


def _by_batch_backward(epsilon: float, saved: Any, gradients: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
    """Ioffe and Szegedy (arXiv:1502.03167), section 3: two sums over the batch, where autodiff takes four."""
    x, gamma, mean, variance = saved
    gradient, of_mean, of_variance = gradients
    axes, count = tuple(range(x.ndim - 1)), x.size // x.shape[-1]
    exact, centred = at_least_float32(gradient), at_least_float32(x) - mean
    inverse = lax.rsqrt(variance + epsilon)
    scale = gamma * inverse
    total, along = jnp.sum(exact, axes), inverse * jnp.sum(exact * centred, axes)
    slope = (2 * of_variance - scale * inverse * along) / count
    of_x = (exact * scale + centred * slope + (of_mean - scale * total) / count).astype(x.dtype)
    return of_x, along.astype(gamma.dtype), total.astype(gamma.dtype)


_normalise_by_batch.defvjp(_by_batch_forward, _by_batch_backward)


def at_least_float32(x: jax.Array) -> jax.Array:
    """bfloat16 as float32, for sums; other types as they are."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def relu(name: str) -> Function:
    """keras.layers.ReLU / Activation("relu"); the gradient at 0 is 0, as in Keras."""
    return Function(nn.relu, name=name)


def relu6(name: str) -> Function:
    """keras.layers.ReLU(6.0); the gradient at 0 and at 6 is 0, as in Keras."""
    return Function(nn.relu6, name=name)


def add(name: str) -> Function:
    """keras.layers.Add of two inputs."""
    return Function(lambda xs: xs[0] + xs[1], name=name)


def zero_padding(padding: Padding, name: str) -> Function:
    """keras.layers.ZeroPadding2D: `padding` on every side, or ((top, bottom), (left, right))."""
    return Function(lambda x: zero_pad(x, padding), name=name)


def max_pooling(size: int, strides: int, name: str) -> Function:
    """keras.layers.MaxPooling2D with "valid" padding."""

    def pool(x: jax.Array) -> jax.Array:
        if on_cpu():
            return _shifted_maximum(x, size, strides)
        return nn.max_pool(x, window_shape=(size, size), strides=(strides, strides))

    return Function(pool, name=name)


# On CPU XLA's pooling has a gradient seven times slower than autodiff's of shifted maxima, which recomputes
# each within the next: by hand, a full step of OpenFace is 1.4 times faster again (39 → 55 images/s). Values
# that tie share the gradient evenly, where XLA's pooling gives it to the first. After a ReLU most ties are
# at 0, where the ReLU passes no gradient on.
@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _shifted_maximum(x: jax.Array, size: int, strides: int) -> jax.Array:
    return functools.reduce(jnp.maximum, (window for _, _, window in windows(x, size, strides)))


def _maximum_forward(x: jax.Array, size: int, strides: int) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    maximum = _shifted_maximum(x, size, strides)
    return maximum, (x, maximum)


def _maximum_backward(
    size: int, strides: int, saved: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array]:
    x, maximum = saved
    highest = {(i, j): window == maximum for i, j, window in windows(x, size, strides)}
    shared = gradient / sum(place.astype(gradient.dtype) for place in highest.values())
    parts = {place: jnp.where(mask, shared, 0.0) for place, mask in highest.items()}
    return (sum_of_windows(parts, strides, x.shape),)


_shifted_maximum.defvjp(_maximum_forward, _maximum_backward)


def average_pooling(size: int, strides: int, name: str) -> Function:
    """keras.layers.AveragePooling2D with "valid" padding."""

    def pool(x: jax.Array) -> jax.Array:
        return nn.avg_pool(x, window_shape=(size, size), strides=(strides, strides))

    return Function(pool, name=name)


def global_average_pooling(name: str) -> Function:
    """keras.layers.GlobalAveragePooling2D: [N, H, W, C] to [N, C]."""
    return Function(lambda x: jnp.mean(x, axis=(1, 2)), name=name)


def flatten(name: str) -> Function:
    """keras.layers.Flatten: [N, ...] to [N, features], row-major."""
    return Function(lambda x: x.reshape(x.shape[0], -1), name=name)


def softmax(name: str) -> Function:
    """keras.layers.Activation("softmax") over the last axis."""
    return Function(nn.softmax, name=name)


def dropout(rate: float, train: bool, name: str) -> nn.Dropout:
    """keras.layers.Dropout: active whenever `train`, whether or not its neighbours are frozen."""
    return nn.Dropout(rate, deterministic=not train, name=name)


@jax.custom_vjp
def local_response_normalization(x: jax.Array) -> jax.Array:
    """tf.nn.lrn(x, alpha=1e-4, beta=0.75) with its default depth_radius 5 and bias 1 (OpenFace)."""
    return x / _power(_lrn_energy(x))


def _lrn_energy(x: jax.Array) -> jax.Array:
    return 1.0 + LRN_ALPHA * _sum_over_neighbours(lax.square(x))


def _power(energy: jax.Array) -> jax.Array:
    root = jnp.sqrt(energy)
    return root * jnp.sqrt(root)  # energy ** 0.75, several times faster than a power


def _sum_over_neighbours(x: jax.Array) -> jax.Array:
    """Each channel's sum over the channels at most 5 away."""
    channels = x.shape[-1]
    padded = jnp.pad(x, ((0, 0),) * 3 + ((5, 5),))
    return functools.reduce(operator.add, (padded[..., i : i + channels] for i in range(11)))


# The derivative by hand: autodiff of the shifted sums is several times slower on CPU.
# d/dx_i of sum_j g_j x_j e_j^-b = g_i e_i^-b - 2 a b x_i * sum over neighbours j of g_j x_j e_j^-(b+1).
def _lrn_forward(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    return local_response_normalization(x), x


def _lrn_backward(x: jax.Array, gradient: jax.Array) -> tuple[jax.Array]:
    energy = _lrn_energy(x)
    direct = gradient / _power(energy)
    return (direct - 2 * LRN_ALPHA * LRN_BETA * x * _sum_over_neighbours(direct * x / energy),)


local_response_normalization.defvjp(_lrn_forward, _lrn_backward)


def safe_sqrt(x: jax.Array) -> jax.Array:
    """sqrt of x >= 0 whose gradient at 0 is 0, not NaN."""
    positive = x > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, x, 1.0)), 0.0)


def zero_pad(x: jax.Array, padding: Padding) -> jax.Array:
    """Pads height and width of [N, H, W, C] with zeros."""
    height, width = ((padding, padding),) * 2 if isinstance(padding, int) else padding
    return jnp.pad(x, ((0, 0), height, width, (0, 0)))


def run(layers: Sequence[nn.Module], x: Any) -> Any:
    """One layer after the other."""
    for layer in layers:
        x = layer(x)
    return x


def parallel(branches: Sequence[Sequence[nn.Module]], x: jax.Array) -> list[jax.Array]:
    """Every branch applied to `x`, in the order that Keras gives the layers.

    Keras sorts layers by their depth below the output, and within a depth by the branch: so branches
    end together, and take turns before that (keras/src/ops/function.py, `map_graph`).
    """
    outputs = [x] * len(branches)
    longest = max(map(len, branches))
    for step in range(longest):
        for i, branch in enumerate(branches):
            position = step - (longest - len(branch))
            if position >= 0:
                outputs[i] = branch[position](outputs[i])
    return outputs
