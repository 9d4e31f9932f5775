"""The four backbones in Keras 3, on any of its backends, built independently of fer_jax.

OpenFace and VGG-Face follow the builders of deepface (2021): `deepface/basemodels/OpenFace.py` (nn4.small2)
and `deepface/basemodels/VGGFace.py`, each without its last layer (the L2 normalisation, the softmax), layers
created in the same order, so that Keras's automatic names (`activation_7`, `zero_padding2d_3`) agree.
deepface leaves VGG-Face's convolutions without names; here they are the VGG-Face authors': conv1_1 ... fc8.
ResNet-50 and MobileNet are those of `keras.applications`.
"""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import layers, ops

from benchmarks.work import CLASSES, Work, he_normal


def build(name: str, image_size: int, alpha: float = 1.0, lrn: Callable[[Any], Any] | None = None) -> Any:
    """A backbone without head, with random weights.

    Args:
      name: as in `fer_jax.models.BACKBONES`.
      alpha: MobileNet's width multiplier.
      lrn: OpenFace's local response normalisation, None for that of this file.
    """
    if name == "openface":
        return openface(image_size, lrn or local_response_normalization)
    if name == "vggface":
        return vggface(image_size)
    shape = (image_size, image_size, 3)
    if name == "resnet50":
        return keras.applications.ResNet50(input_shape=shape, weights=None, include_top=False)
    return keras.applications.MobileNet(input_shape=shape, alpha=alpha, weights=None, include_top=False)


def local_response_normalization(
    x: Any, depth_radius: int = 5, bias: float = 1.0, alpha: float = 1e-4, beta: float = 0.75
) -> Any:
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


def openface(image_size: int = 96, lrn: Callable[[Any], Any] = local_response_normalization) -> keras.Model:
    """OpenFace nn4.small2 of deepface up to `dense_layer` (128 numbers, not normalised).

    Restarts Keras's automatic layer names.

    Args:
      image_size: height and width of the input; the paddings of deepface fit 96 only.
      lrn: the local response normalisation.
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


def vggface(image_size: int = 224) -> keras.Model:
    """VGG-Face of deepface up to `flatten` (2622 numbers, no softmax).

    Restarts Keras's automatic layer names.

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


def classifier(backbone: keras.Model, name: str, classes: int, trainable: str) -> keras.Model:
    """Backbone and head, as `fer_jax.models.classifier` has it, with the softmax.

    Args:
      trainable: "last_4" or "all" of the backbone's layers; the head always is.
    """
    if trainable == "last_4":
        for layer in backbone.layers[:-4]:
            layer.trainable = False
    x = backbone.outputs[0]  # a Sequential has no `output` before it is called
    x = layers.GlobalAveragePooling2D()(x) if name in ("resnet50", "mobilenet") else layers.Flatten()(x)
    x = layers.BatchNormalization(name="head_batch_normalization")(x)
    outputs = layers.Dense(classes, activation="softmax", dtype="float32", name="predictions")(x)
    return keras.Model(backbone.inputs[0], outputs)


def deepface_emotion() -> keras.Model:
    """deepface's network for emotions (`deepface/models/demography/Emotion.py`), with random weights.

    From grey [N, 48, 48, 1] of 0..255 to probabilities [N, 7].
    """
    model = keras.Sequential([keras.Input((48, 48, 1))])
    model.add(layers.Conv2D(64, 5, activation="relu"))
    model.add(layers.MaxPooling2D(5, strides=2))
    for filters in (64, 128):
        for _ in range(2):
            model.add(layers.Conv2D(filters, 3, activation="relu"))
        model.add(layers.AveragePooling2D(3, strides=2))
    model.add(layers.Flatten())
    for _ in range(2):
        model.add(layers.Dense(1024, activation="relu"))
        model.add(layers.Dropout(0.2))
    model.add(layers.Dense(CLASSES, activation="softmax"))
    return model


def prepare(work: Work, lrn: Callable[[Any], Any] | None = None) -> keras.Model:
    """The model that does the work: backbone alone for "forward", else the classifier.

    Sets Keras's dtype policy: bfloat16 for inference, mixed_bfloat16 for steps.
    """
    mixed = "mixed_" if work.trains and work.dtype != "float32" else ""
    keras.config.set_dtype_policy(mixed + work.dtype)
    backbone = build(work.backbone, work.image_size, work.alpha, lrn)
    rng = np.random.default_rng(0)
    for weight in backbone.weights:
        if "kernel" in weight.name:
            weight.assign(he_normal(rng, weight.shape))
    if work.phase == "forward":
        return backbone
    trainable = "all" if work.phase == "full_step" else "last_4"
    return classifier(backbone, work.backbone, CLASSES, trainable)
