"""The floating-point operations that a piece of work takes."""

import math
from collections.abc import Sequence

from benchmarks.work import Work
from fer_jax.models import Layer
from fer_jax.models.classifier import AUTO_POOLING


def head_inputs(backbone: str, layers: Sequence[Layer]) -> int:
    """How many numbers the head reads of a backbone with these layers."""
    shape = layers[-1].output_shape
    return shape[-1] if AUTO_POOLING[backbone] == "avg" else math.prod(shape)


def operations(work: Work, layers: Sequence[Layer], head_weights: int, own_cut: bool) -> float:
    """Floating-point operations an image, 2 per multiply-add of convolutions and dense layers.

    A training step counts the forward pass, the weight gradient of each layer that learns, and the input
    gradient of each layer behind the first that learns; each of the three costs as much as the layer's
    forward pass. Normalisation, activations, pooling and the optimizer are not counted.

    Args:
      layers: the backbone's, in order.
      head_weights: of the head's dense layer, the bias left out.
      own_cut: tail steps and evaluation start behind the frozen part.
    """
    if work.phase == "matmul":
        return 2.0 * work.image_size**3
    learns = [layer.name in work.learning for layer in layers]
    start = learns.index(True) if True in learns else len(layers)
    if work.phase == "extraction":
        return float(sum(layer.flops for layer in layers[:start]))
    skipped = start if own_cut and work.phase in ("tail_step", "evaluate") else 0
    total = sum(layer.flops for layer in layers[skipped:])
    if work.phase == "forward":
        return float(total)
    head_forward = 2 * head_weights
    total += head_forward
    if work.trains:
        total += sum(layer.flops for layer, learning in zip(layers, learns, strict=True) if learning)
        first = next((i for i, layer in enumerate(layers) if learns[i] and layer.tensors), len(layers))
        total += sum(layer.flops for layer in layers[first + 1 :]) + 2 * head_forward
    return float(total)
