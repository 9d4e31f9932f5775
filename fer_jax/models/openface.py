"""OpenFace nn4.small2 as deepface builds it (2021, deepface/basemodels/OpenFace.py).

The L2-normalising last layer is left out (paper: "the last layer left out"). Named layers bear
deepface's names, the others Keras's automatic ones.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from fer_jax.models import layers
from fer_jax.models.layers import Padding
from fer_jax.models.naming import AutomaticNames

Branch = list[nn.Module]


class Inception(NamedTuple):
    """An inception block. Without a 1x1 branch it halves the image: its convolutions have stride 2.

    Attributes:
      three: filters of the 3x3 branch, of the 1x1 convolution that reduces and of the 3x3 one.
      five: likewise of the 5x5 branch; () without one.
      pool: "max" or "l2".
      pooled: filters of the 1x1 convolution behind the pooling; 0 without one.
      padding: behind the pooling branch, to the shape of the others.
      one: filters of the 1x1 branch; 0 without one.
    """

    three: tuple[int, ...]
    five: tuple[int, ...]
    pool: str
    pooled: int
    padding: Padding
    one: int


INCEPTIONS = {
    "3a": Inception((96, 128), (16, 32), "max", 32, ((3, 4), (3, 4)), 64),
    "3b": Inception((96, 128), (32, 64), "l2", 64, 4, 64),
    "3c": Inception((128, 256), (32, 64), "max", 0, ((0, 1), (0, 1)), 0),
    "4a": Inception((96, 192), (32, 64), "l2", 128, 2, 256),
    "4e": Inception((160, 256), (64, 128), "max", 0, ((0, 1), (0, 1)), 0),
    "5a": Inception((96, 384), (), "l2", 96, 1, 256),
    "5b": Inception((96, 384), (), "max", 96, 1, 256),
}


class OpenFace(nn.Module):
    """OpenFace: float32 images [N, 96, 96, 3], scaled to 0..1, to embeddings [N, 128].

    Attributes:
      image_size: height and width of the images in pixels: 96, the only size at which the branches
        of every inception block meet in one shape.
      include_top: add the L2 normalisation (it has no weights).
      learning: names of the layers that learn when `train` is true.
    """

    image_size: int = 96
    include_top: bool = False
    learning: frozenset[str] = frozenset()

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        auto = AutomaticNames()

        def batch_norm(name: str) -> layers.BatchNormalization:
            return layers.BatchNormalization(1e-5, learns=train and name in self.learning, name=name)

        def relu() -> nn.Module:
            return layers.relu(auto("activation"))

        def pad(padding: Padding) -> nn.Module:
            return layers.zero_padding(padding, auto("zero_padding2d"))

        def max_pool() -> nn.Module:
            return layers.max_pooling(3, 2, auto("max_pooling2d"))

        def normalise(name: str) -> nn.Module:
            return layers.Function(layers.local_response_normalization, name=name)

        def reduce_then_convolve(block: str, size: int, widths: tuple[int, ...], strides: int) -> Branch:
            reduce, filters = widths
            name = f"inception_{block}_{size}x{size}"
            return [
                layers.Conv2D(reduce, 1, name=f"{name}_conv1"),
                batch_norm(f"{name}_bn1"),
                relu(),
                pad(size // 2),
                layers.Conv2D(filters, size, strides, name=f"{name}_conv2"),
                batch_norm(f"{name}_bn2"),
                relu(),
            ]

        def project(block: str, branch: str, filters: int) -> Branch:
            name = f"inception_{block}_{branch}"
            return [layers.Conv2D(filters, 1, name=f"{name}_conv"), batch_norm(f"{name}_bn"), relu()]

        def l2_pool(block: str) -> Branch:
            return [
                layers.Function(jnp.square, name=f"power2_{block}"),
                layers.average_pooling(3, 3, auto("average_pooling2d")),
                layers.Function(lambda x: x * 9, name=f"mult9_{block}"),
                layers.Function(layers.safe_sqrt, name=f"sqrt_{block}"),
            ]

        def join(branches: list[Branch], x: jax.Array) -> jax.Array:
            outputs = layers.parallel(branches, x)
            return layers.Function(lambda xs: jnp.concatenate(xs, -1), name=auto("concatenate"))(outputs)

        stem = [
            pad(3),
            layers.Conv2D(64, 7, strides=2, name="conv1"),
            batch_norm("bn1"),
            relu(),
            pad(1),
            max_pool(),
            normalise("lrn_1"),
            layers.Conv2D(64, 1, name="conv2"),
            batch_norm("bn2"),
            relu(),
            pad(1),
            layers.Conv2D(192, 3, name="conv3"),
            batch_norm("bn3"),
            relu(),
            normalise("lrn_2"),
            pad(1),
            max_pool(),
        ]
        x = layers.run(stem, x)
        # Branches are made one after the other, since Keras's automatic names count in that order.
        for block, (three, five, pool, pooled, padding, one) in INCEPTIONS.items():
            strides = 1 if one else 2
            branches = [
                reduce_then_convolve(block, size, widths, strides)
                for size, widths in ((3, three), (5, five))
                if widths
            ]
            pooling = l2_pool(block) if pool == "l2" else [max_pool()]
            projection = project(block, "pool", pooled) if pooled else []
            branches.append([*pooling, *projection, pad(padding)])
            if one:
                branches.append(project(block, "1x1", one))
            x = join(branches, x)
        x = layers.average_pooling(3, 1, auto("average_pooling2d"))(x)
        x = layers.flatten(auto("flatten"))(x)
        x = layers.Dense(128, name="dense_layer")(x)
        return layers.Function(_l2_normalize, name="norm_layer")(x) if self.include_top else x


def _l2_normalize(x: jax.Array) -> jax.Array:
    # keras.backend.l2_normalize: x * rsqrt(max(sum(x^2), 1e-12)).
    return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(jnp.square(x), -1, keepdims=True), 1e-12))
