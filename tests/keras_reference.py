"""The oracle of the tests: Keras's models, with weights that make a strong test.

OpenFace and VGG-Face are those of `weights_conversion.keras_models`, ResNet-50 and MobileNet those of
`keras.applications`; none shares code with fer_jax.
"""

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any
from unittest import mock

import jax
import keras
import numpy as np
from keras import layers, ops

from weights_conversion import keras_models
from weights_conversion.keras_models import tensor_name

Variables = dict[str, dict[str, dict[str, np.ndarray]]]
lrn = keras_models.local_response_normalization


@contextlib.contextmanager
def zero_kernels() -> Iterator[None]:
    """Models built inside start from zero kernels, for `calibrate` to fill: a fraction of the time.

    Keras compiles a program for every kernel shape that it draws: 17 seconds for OpenFace.
    """

    def zeros(self: keras.Initializer, shape: tuple[int, ...], dtype: str | None = None) -> Any:
        return ops.zeros(shape, dtype)

    with mock.patch.object(keras.initializers.VarianceScaling, "__call__", zeros):
        yield


def openface(image_size: int = 96) -> keras.Model:
    """OpenFace under Keras's automatic names, which restart; kernels are zero until `calibrate`."""
    keras.utils.clear_session()
    with zero_kernels():
        return keras_models.build("openface", image_size)


def vggface(image_size: int = 224) -> keras.Model:
    """VGG-Face under Keras's automatic names, which restart; kernels are zero until `calibrate`."""
    keras.utils.clear_session()
    with zero_kernels():
        return keras_models.build("vggface", image_size)


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
                weight.assign(_draw(rng, tensor_name(layer, weight), weight.shape))

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
            tensor = tensor_name(layer, weight)
            collection = "batch_stats" if tensor.startswith("moving_") else "params"
            variables[collection].setdefault(layer.name, {})[tensor] = np.asarray(weight)
    return variables
