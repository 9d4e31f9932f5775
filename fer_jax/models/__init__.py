"""The four backbones, and what can be told of them without running them.

module = build("openface")
variables = module.init(jax.random.key(0), jnp.zeros((1, 96, 96, 3)))
embeddings = module.apply(variables, images)  # inference mode
"""

import dataclasses
import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from fer_jax.errors import InputError
from fer_jax.models import tracing
from fer_jax.models.mobilenet import MobileNet
from fer_jax.models.openface import OpenFace
from fer_jax.models.resnet50 import ResNet50
from fer_jax.models.vggface import VGGFace

# The batch of traces that compute nothing, of layers and of the cut: the paper's, since JAX keeps what it
# traced, and a run whose batches are as large finds its programs half made.
TRIAL_BATCH = 32

BACKBONES: dict[str, type[nn.Module]] = {
    "openface": OpenFace,
    "vggface": VGGFace,
    "resnet50": ResNet50,
    "mobilenet": MobileNet,
}


def build(
    name: str,
    *,
    alpha: float = 1.0,
    image_size: int | None = None,
    include_top: bool = False,
) -> Any:
    """Makes a backbone without head.

    Args:
      name: one of `BACKBONES`.
      alpha: MobileNet's width multiplier; 1.0 for every other backbone.
      image_size: height and width of the images in pixels; None for the backbone's own (96 for
        OpenFace, 224 for the others).
      include_top: keep the layer or layers that transfer leaves out (classifier, softmax, L2 norm).

    Returns:
      The Flax module. `module.apply(variables, images)` maps float32 [N, size, size, 3] images, already
      scaled, to the output in inference mode.

    Raises:
      InputError: an unknown name, an alpha or a size that the backbone does not have.
    """
    if name not in BACKBONES:
        raise InputError(f"backbone: unknown name {name!r}, expected one of {', '.join(BACKBONES)}")
    arguments: dict[str, Any] = {"include_top": include_top}
    if name == "mobilenet":
        if not 1 / 32 <= alpha <= 32:
            raise InputError(f"alpha: {alpha}, expected {1 / 32}, below which no filters are left, to 32")
        arguments["alpha"] = alpha
    elif alpha != 1.0:
        raise InputError(f"alpha: {name} has no width multiplier, expected 1.0, got {alpha}")
    if image_size:
        _check_image_size(name, image_size)
        arguments["image_size"] = image_size
    return BACKBONES[name](**arguments)


def _check_image_size(name: str, size: int) -> None:
    problem = {
        "openface": size != 96 and "expected 96",
        "vggface": size < 224 and "expected at least 224",
        "resnet50": size < 32 and "expected at least 32",
        "mobilenet": (size < 32 or size % 2 == 1) and "expected an even number, at least 32",
    }[name]
    if problem:
        raise InputError(f"image_size: {name} cannot take {size}, {problem}")


@dataclasses.dataclass(frozen=True)
class Layer:
    """One Keras layer of a traced module: its output shape for one image and its tensors' shapes."""

    name: str
    output_shape: tuple[int, ...]
    tensors: dict[str, tuple[int, ...]]

    @property
    def parameters(self) -> int:
        """Number of weights, moving statistics included, as Keras's `count_params` counts them."""
        return sum(math.prod(shape) for shape in self.tensors.values())

    @property
    def learnable(self) -> int:
        """Number of weights that a gradient reaches."""
        return sum(math.prod(shape) for name, shape in self.tensors.items() if not name.startswith("moving_"))

    @property
    def flops(self) -> int:
        """Floating-point operations for one image: 2 per multiply-add of a convolution or dense layer.

        Activations, pooling and normalisation are not counted.
        """
        for name, shape in self.tensors.items():
            if name == "kernel":
                places = math.prod(self.output_shape[:-1])
                return 2 * places * math.prod(shape)
            if name == "depthwise_kernel":
                return 2 * math.prod(self.output_shape) * math.prod(shape[:2])
        return 0


def abstract_variables(module: Any) -> Any:
    """The backbone's variables as a tree of `jax.ShapeDtypeStruct`; nothing is computed."""
    return _traced(module.clone(learning=frozenset()))[1]


def variables_for(module: Any, x: jax.ShapeDtypeStruct) -> Any:
    """The variables of any module, for an input like `x`, as a tree of `jax.ShapeDtypeStruct`."""

    def init(x: Any) -> Any:  # a function of its own: JAX keeps what it traced of one
        return module.init(jax.random.key(0), x)

    with tracing.shapes_alone():
        return jax.eval_shape(init, x)


@functools.cache
def _traced(module: Any) -> tuple[dict[str, tuple[int, ...]], Any]:
    """Output shapes for one image, by layer in the order of the calls, and the shapes of the variables."""
    outputs: dict[str, tuple[int, ...]] = {}

    def record(next_function: Any, args: Any, kwargs: Any, context: Any) -> Any:
        result = next_function(*args, **kwargs)
        if len(context.module.path) == 1 and context.method_name == "__call__":
            outputs[context.module.name] = result.shape[1:]
        return result

    images = jax.ShapeDtypeStruct((TRIAL_BATCH, module.image_size, module.image_size, 3), jnp.float32)
    with nn.intercept_methods(record):
        return outputs, variables_for(module, images)


def trace_layers(module: Any) -> tuple[Layer, ...]:
    """The module's layers in Keras's order, the input layer left out; nothing is computed."""
    outputs, variables = _traced(module.clone(learning=frozenset()))
    tensors: dict[str, dict[str, tuple[int, ...]]] = {name: {} for name in outputs}
    for collection in variables.values():
        for layer, leaves in collection.items():
            tensors[layer] |= {name: leaf.shape for name, leaf in leaves.items()}
    return tuple(Layer(name, shape, tensors[name]) for name, shape in outputs.items())


def layer_names(module: Any) -> tuple[str, ...]:
    """Names of the module's layers in Keras's order, the input layer left out."""
    return tuple(layer.name for layer in trace_layers(module))
