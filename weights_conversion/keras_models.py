"""The four backbones in Keras 3, on any of its backends, built independently of fer_jax.

OpenFace and VGG-Face follow the builders of deepface (2021): `deepface/basemodels/OpenFace.py` (nn4.small2)
and `deepface/basemodels/VGGFace.py`, each without its last layer (the L2 normalisation, the softmax), layers
created in the same order, so that Keras's automatic names (`activation_7`, `zero_padding2d_3`) agree.
deepface leaves VGG-Face's convolutions without names; here they are the VGG-Face authors': conv1_1 ... fc8.
ResNet-50 and MobileNet are those of `keras.applications`.
"""

from collections.abc import Callable, Sequence
from typing import Any

import keras
from keras import layers, ops

Function = Callable[[Any], Any]
Step = Callable[[Function, str], Function]  # what a layer without weights is made of: function and name


def lambda_layer(function: Function, name: str) -> Function:
    """`function` as a layer of its own, whose output can be asked for by name."""
    return layers.Lambda(function, name=name)


def operations(function: Function, name: str) -> Function:
    """`function` as the operations of Keras that it calls: a saved model may hold those, and no code."""
    return function


def build(
    name: str,
    image_size: int,
    alpha: float = 1.0,
    *,
    inputs: Any = None,
    step: Step = lambda_layer,
    lrn: Function | None = None,
) -> keras.Model:
    """A backbone without head, with random weights.

    Args:
      name: as in `fer_jax.models.BACKBONES`.
      alpha: MobileNet's width multiplier.
      inputs: a Keras tensor [N, image_size, image_size, 3] to build upon, None for an input of its own.
        The paddings of deepface's OpenFace fit 96 only; at 224 VGG-Face has 2622 outputs.
      step: what OpenFace's layers without weights are made of, those that Keras has no layer for.
      lrn: OpenFace's local response normalisation, None for that of this file.
    """
    shape = (image_size, image_size, 3)
    inputs = keras.Input(shape) if inputs is None else inputs
    if name == "openface":
        return _openface(inputs, step, lrn or local_response_normalization)
    if name == "vggface":
        return _vggface(inputs)
    options = {"input_tensor": inputs, "input_shape": shape, "weights": None, "include_top": False}
    if name == "resnet50":
        return keras.applications.ResNet50(**options)
    return keras.applications.MobileNet(alpha=alpha, **options)


def local_response_normalization(x: Any) -> Any:
    """Local response normalisation over channels, with the defaults and the formula of `tf.nn.lrn`.

    Args:
      x: float [N, H, W, C].

    Returns:
      [N, H, W, C]: x / (1 + 1e-4 * (sum of x^2 over the 11 channels around))^0.75.
    """
    channels, radius = x.shape[-1], 5
    padded = ops.pad(ops.square(x), [(0, 0)] * 3 + [(radius, radius)])
    window = sum(padded[..., shift : shift + channels] for shift in range(2 * radius + 1))
    return x / ops.power(1.0 + 1e-4 * window, 0.75)


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


def _inception(x: Any, block: str, step: Step) -> Any:
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
        y = step(ops.square, f"power2_{block}")(x)
        y = layers.AveragePooling2D(3, strides=3)(y)
        y = step(lambda mean: mean * 9, f"mult9_{block}")(y)
        y = step(ops.sqrt, f"sqrt_{block}")(y)
    if pool_filters is not None:
        y = _conv_bn_relu(y, f"{prefix}_pool_conv", f"{prefix}_pool_bn", pool_filters)
    branches.append(layers.ZeroPadding2D(pool_padding)(y))

    if one is not None:
        branches.append(_conv_bn_relu(x, f"{prefix}_1x1_conv", f"{prefix}_1x1_bn", one))
    return layers.Concatenate(axis=3)(branches)


def _openface(inputs: Any, step: Step, lrn: Function) -> keras.Model:
    x = layers.ZeroPadding2D(3)(inputs)
    x = _conv_bn_relu(x, "conv1", "bn1", 64, 7, stride=2)
    x = layers.ZeroPadding2D(1)(x)
    x = layers.MaxPooling2D(3, strides=2)(x)
    x = step(lrn, "lrn_1")(x)
    x = _conv_bn_relu(x, "conv2", "bn2", 64)
    x = layers.ZeroPadding2D(1)(x)
    x = _conv_bn_relu(x, "conv3", "bn3", 192, 3)
    x = step(lrn, "lrn_2")(x)
    x = layers.ZeroPadding2D(1)(x)
    x = layers.MaxPooling2D(3, strides=2)(x)
    for block in _INCEPTION:
        x = _inception(x, block, step)
    x = layers.AveragePooling2D(3, strides=1)(x)
    x = layers.Flatten()(x)
    return _model(inputs, layers.Dense(128, name="dense_layer")(x))


def _vggface(inputs: Any) -> keras.Model:
    x = inputs
    for stage, (filters, depth) in enumerate([(64, 2), (128, 2), (256, 3), (512, 3), (512, 3)], start=1):
        for index in range(1, depth + 1):
            x = layers.ZeroPadding2D(1)(x)
            x = layers.Conv2D(filters, 3, activation="relu", name=f"conv{stage}_{index}")(x)
        x = layers.MaxPooling2D(2, strides=2)(x)
    for name, size in (("fc6", 7), ("fc7", 1)):
        x = layers.Conv2D(4096, size, activation="relu", name=name)(x)
        x = layers.Dropout(0.5)(x)
    x = layers.Conv2D(2622, 1, name="fc8")(x)
    return _model(inputs, layers.Flatten()(x))


def _model(inputs: Any, outputs: Any) -> keras.Model:
    return keras.Model(keras.utils.get_source_inputs(inputs), outputs)


def classifier(
    backbone: keras.Model, classes: int, pooling: str, batch_norm: bool = True, hidden: Sequence[int] = ()
) -> keras.Model:
    """Backbone and head, as `fer_jax.models.classifier.Head` has it, with the softmax.

    The head's layers bear its names behind "head_", so that none is a backbone's.
    """
    pool = layers.GlobalAveragePooling2D if pooling == "avg" else layers.Flatten
    x = pool(name="head_pool")(backbone.output)
    if batch_norm:
        x = layers.BatchNormalization(name="head_batch_normalization")(x)
    for i, units in enumerate(hidden):
        x = layers.Dense(units, activation="relu", name=f"head_dense_{i}" if i else "head_dense")(x)
    outputs = layers.Dense(classes, activation="softmax", dtype="float32", name="head_predictions")(x)
    return keras.Model(backbone.inputs, outputs)


def tensor_name(layer: keras.Layer, weight: keras.Variable) -> str:
    """The weight's name as Keras 1 and 2 wrote it; Keras 3 calls a depthwise kernel plain `kernel`."""
    if isinstance(layer, layers.DepthwiseConv2D) and weight.name == "kernel":
        return "depthwise_kernel"
    return str(weight.name)
