"""The oracle of the forward tests: OpenFace and VGG-Face built in Keras, independently of fer_jax.

Both follow the builders of deepface (2021): `deepface/basemodels/OpenFace.py` (nn4.small2) and
`deepface/basemodels/VGGFace.py`, each without its last layer (the L2 normalisation, the softmax), layers
created in the same order, so that Keras's automatic names (`activation_7`, `zero_padding2d_3`) agree.
deepface leaves VGG-Face's convolutions without names; here they are the VGG-Face authors': conv1_1 ... fc8.
ResNet-50 and MobileNet need no build of ours: `keras.applications` has them.
"""

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any
from unittest import mock

import jax
import keras
import numpy as np
from keras import layers, ops

Variables = dict[str, dict[str, dict[str, np.ndarray]]]


@contextlib.contextmanager
def zero_kernels() -> Iterator[None]:
    """Models built inside start from zero kernels, for `calibrate` to fill: a fraction of the time.

    Keras compiles a program for every kernel shape that it draws: 17 seconds for OpenFace.
    """

    def zeros(self: keras.Initializer, shape: tuple[int, ...], dtype: str | None = None) -> Any:
        return ops.zeros(shape, dtype)

    with mock.patch.object(keras.initializers.VarianceScaling, "__call__", zeros):
        yield


def lrn(x: Any, depth_radius: int = 5, bias: float = 1.0, alpha: float = 1e-4, beta: float = 0.75) -> Any:
    """Local response normalisation over channels, with the defaults and the formula of `tf.nn.lrn`.

    Args:
      x: float [N, H, W, C].

    Returns:
      [N, H, W, C]: x / (bias + alpha * (sum of x^2 over the 2 * depth_radius + 1 channels around))^beta.
    """
    channels = x.shape[-1]
    padded = ops.pad(ops.square(x), [(0, 0)] * 3 + [(depth_radius, depth_radius)])
    window = sum(padded[..., shift : shift + channels] for shift in range(2 * depth_radius + 1))
    return x / ops.power(bias + alpha * window, beta)


# block: 3x3 branch (reduced to, filters), 5x5 branch, pool branch (kind, filters, zero padding), 1x1 filters.
# Without 1x1 the block halves the image: its 3x3 and 5x5 have stride 2, its pool branch no convolution.
_INCEPTION: dict[
    str, tuple[tuple[int, int], tuple[int, int] | None, tuple[str, int | None, Any], int | None]
] = {
    "3a": ((96, 128), (16, 32), ("max", 32, ((3, 4), (3, 4))), 64),
    "3b": ((96, 128), (32, 64), ("l2", 64, 4), 64),
    "3c": ((128, 256), (32, 64), ("max", None, ((0, 1), (0, 1))), None),
    "4a": ((96, 192), (32, 64), ("l2", 128, 2), 256),
    "4e": ((160, 256), (64, 128), ("max", None, ((0, 1), (0, 1))), None),
    "5a": ((96, 384), None, ("l2", 96, 1), 256),
    "5b": ((96, 384), None, ("max", 96, 1), 256),
}


def _conv_bn_relu(x: Any, conv: str, bn: str, filters: int, size: int = 1, stride: int = 1) -> Any:
    x = layers.Conv2D(filters, size, strides=stride, name=conv)(x)
    return layers.Activation("relu")(layers.BatchNormalization(axis=3, epsilon=1e-5, name=bn)(x))


def _inception(x: Any, block: str) -> Any:
    three, five, (pool, pool_filters, pool_padding), one = _INCEPTION[block]
    prefix = f"inception_{block}"
    branches = []
    for size, widths in ((3, three), (5, five)):
        if widths is None:
            continue
        conv, bn = f"{prefix}_{size}x{size}_conv", f"{prefix}_{size}x{size}_bn"
        y = _conv_bn_relu(x, f"{conv}1", f"{bn}1", widths[0])
        y = layers.ZeroPadding2D(size // 2)(y)
        branches.append(_conv_bn_relu(y, f"{conv}2", f"{bn}2", widths[1], size, stride=1 if one else 2))

    if pool == "max":
        y = layers.MaxPooling2D(3, strides=2)(x)
    else:  # the L2 norm of each 3x3 window: sqrt(9 * mean of squares)
        y = layers.Lambda(ops.square, name=f"power2_{block}")(x)
        y = layers.AveragePooling2D(3, strides=3)(y)
        y = layers.Lambda(lambda mean: mean * 9, name=f"mult9_{block}")(y)
        y = layers.Lambda(ops.sqrt, name=f"sqrt_{block}")(y)
    if pool_filters is not None:
        y = _conv_bn_relu(y, f"{prefix}_pool_conv", f"{prefix}_pool_bn", pool_filters)
    branches.append(layers.ZeroPadding2D(pool_padding)(y))

    if one is not None:
        branches.append(_conv_bn_relu(x, f"{prefix}_1x1_conv", f"{prefix}_1x1_bn", one))
    return layers.Concatenate(axis=3)(branches)


@zero_kernels()
def openface(image_size: int = 96) -> keras.Model:
    """OpenFace nn4.small2 of deepface up to `dense_layer` (128 numbers, not normalised).

    Restarts Keras's automatic layer names. Kernels are zero until `calibrate`.

    Args:
      image_size: height and width of the input; the paddings of deepface fit 96 only.
    """
    keras.utils.clear_session()
    inputs = keras.Input((image_size, image_size, 3))
    x = layers.ZeroPadding2D(3)(inputs)
    x = _conv_bn_relu(x, "conv1", "bn1", 64, 7, stride=2)
    x = layers.ZeroPadding2D(1)(x)
    x = layers.MaxPooling2D(3, strides=2)(x)
    x = layers.Lambda(lrn, name="lrn_1")(x)
    x = _conv_bn_relu(x, "conv2", "bn2", 64)
    x = layers.ZeroPadding2D(1)(x)
    x = _conv_bn_relu(x, "conv3", "bn3", 192, 3)
    x = layers.Lambda(lrn, name="lrn_2")(x)
    x = layers.ZeroPadding2D(1)(x)
    x = layers.MaxPooling2D(3, strides=2)(x)
    for block in _INCEPTION:
        x = _inception(x, block)
    x = layers.AveragePooling2D(3, strides=1)(x)
    x = layers.Flatten()(x)
    return keras.Model(inputs, layers.Dense(128, name="dense_layer")(x))


@zero_kernels()
def vggface(image_size: int = 224) -> keras.Model:
    """VGG-Face of deepface up to `flatten` (2622 numbers, no softmax).

    Restarts Keras's automatic layer names. Kernels are zero until `calibrate`.

    Args:
      image_size: height and width of the input; at 224 `fc8` is 1x1 and the output has 2622 numbers.
    """
    keras.utils.clear_session()
    model = keras.Sequential([keras.Input((image_size, image_size, 3))])
    for stage, (filters, depth) in enumerate([(64, 2), (128, 2), (256, 3), (512, 3), (512, 3)], start=1):
        for index in range(1, depth + 1):
            model.add(layers.ZeroPadding2D(1))
            model.add(layers.Conv2D(filters, 3, activation="relu", name=f"conv{stage}_{index}"))
        model.add(layers.MaxPooling2D(2, strides=2))
    for name, size in (("fc6", 7), ("fc7", 1)):
        model.add(layers.Conv2D(4096, size, activation="relu", name=name))
        model.add(layers.Dropout(0.5))
    model.add(layers.Conv2D(2622, 1, name="fc8"))
    model.add(layers.Flatten())
    return model


def calibrate(model: keras.Model, images: np.ndarray, seed: int) -> None:
    """Gives `model`, in place, random weights under which activations keep their scale from layer to layer.

    Fresh weights make a weak test: with moving mean 0 and variance 1 MobileNet's features shrink to 1e-20.
    Here kernels are He normal (the initialiser that keeps the scale behind ReLU, He et al. 2015), biases
    small, and each batch norm's moving statistics are those of its inputs on `images`. Gamma and beta are
    around 2: a sixth of the values then falls below 0 and some 2 % above 6, so ReLU6 is in play at both ends,
    and float32 noise stays small: with 1 and 0, Keras itself is 1.4e-5 away from float64 at the end of
    MobileNet and ResNet-50 (random nets of that depth are chaotic), with 2 and 2 it is 1.9e-6.

    Args:
      model: of layers that hold kernels, biases or batch norm parameters.
      images: float32 [N, H, W, 3], scaled as the model expects; at least two different images.
      seed: of the draws.
    """
    rng = np.random.default_rng(seed)
    for layer in model.layers:
        for weight in layer.weights:
            if not weight.name.startswith("moving_"):
                weight.assign(_draw(rng, _tensor_name(layer, weight), weight.shape))

    norms = [layer for layer in model.layers if isinstance(layer, layers.BatchNormalization)]
    if not norms:
        return
    # One pass in training mode: each batch norm normalises by the statistics it stores, so the next ones see
    # the inputs they will see in inference mode.
    with contextlib.ExitStack() as stack:
        for norm in norms:
            stack.enter_context(mock.patch.object(norm, "momentum", 0.0))
        forward = jax.jit(lambda *arguments: model.stateless_call(*arguments, training=True)[1])
        measured = forward(*_values(model), images)
    for variable, value in zip(model.non_trainable_variables, measured, strict=True):
        variable.assign(value)


def make_epsilon_matter(model: keras.Model) -> None:
    """Gives each batch norm a moving variance as small as its epsilon, and the gamma that makes up for it.

    Beside variances of the usual size an epsilon of 1e-5 is lost in rounding: a wrong one would pass. For
    inference mode: the variances are no longer those of the inputs.
    """
    for layer in model.layers:
        if isinstance(layer, layers.BatchNormalization):
            variance = np.asarray(layer.moving_variance)
            shrink = np.sqrt(2 * layer.epsilon / (variance + layer.epsilon))
            layer.gamma.assign(layer.gamma * shrink)
            layer.moving_variance.assign(np.full_like(variance, layer.epsilon))


def layer_outputs(model: keras.Model, names: Iterable[str], images: np.ndarray) -> dict[str, np.ndarray]:
    """What the layers `names` give for float32 `images` [N, H, W, 3] in inference mode."""
    inner = keras.Model(model.inputs[0], {name: model.get_layer(name).output for name in names})
    forward = jax.jit(lambda *arguments: inner.stateless_call(*arguments, training=False)[0])
    return {name: np.asarray(output) for name, output in forward(*_values(inner), images).items()}


def _values(model: keras.Model) -> tuple[list[jax.Array], list[jax.Array]]:
    trainable, rest = model.trainable_variables, model.non_trainable_variables
    return [variable.value for variable in trainable], [variable.value for variable in rest]


def _draw(rng: np.random.Generator, tensor: str, shape: tuple[int, ...]) -> np.ndarray:
    standard = rng.standard_normal(shape, dtype=np.float32)
    if tensor == "gamma":
        return 2 + np.float32(0.2) * standard
    if tensor == "beta":
        return 2 + np.float32(0.2) * standard
    if tensor == "bias":
        return np.float32(0.1) * standard
    fan_in = np.prod(shape[:2]) if tensor == "depthwise_kernel" else np.prod(shape[:-1])
    return standard * np.float32(np.sqrt(2 / fan_in))


def to_variables(model: keras.Model) -> Variables:
    """A Keras model's weights under the names that fer_jax uses.

    Returns:
      {"params": {layer: {tensor: array}}, "batch_stats": {layer: {moving_mean, moving_variance}}}, float32;
      layers without weights are left out.
    """
    variables: Variables = {"params": {}, "batch_stats": {}}
    for layer in model.layers:
        for weight in layer.weights:
            tensor = _tensor_name(layer, weight)
            collection = "batch_stats" if tensor.startswith("moving_") else "params"
            variables[collection].setdefault(layer.name, {})[tensor] = np.asarray(weight)
    return variables


def _tensor_name(layer: keras.Layer, weight: keras.Variable) -> str:
    """The weight's name as Keras 1 and 2 wrote it; Keras 3 calls a depthwise kernel plain `kernel`."""
    if isinstance(layer, layers.DepthwiseConv2D) and weight.name == "kernel":
        return "depthwise_kernel"
    return weight.name
