"""A backbone with a head of fully connected layers for the emotions."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax

from fer_jax.errors import InputError
from fer_jax.models import layers
from fer_jax.models.naming import AutomaticNames

# Flattening the 7x7 maps of ResNet-50 and MobileNet would give a head of 700,000 weights.
AUTO_POOLING = {"openface": "none", "vggface": "none", "resnet50": "avg", "mobilenet": "avg"}
POOLINGS = {"avg": layers.global_average_pooling, "none": layers.flatten}


class Head(nn.Module):
    """Pool or flatten, batch normalisation, dense layers: features [N, ...] to logits [N, classes].

    Attributes:
      classes: number of classes.
      pooling: "avg" (global average) or "none" (flatten).
      batch_norm: normalise the flat features; this layer always learns.
      hidden: units of dense layers with ReLU before the last.
      dropout: rate before each dense layer.
    """

    classes: int
    pooling: str = "none"
    batch_norm: bool = True
    hidden: Sequence[int] = ()
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        auto = AutomaticNames()
        x = POOLINGS[self.pooling]("pool")(x)
        if self.batch_norm:
            x = layers.BatchNormalization(learns=train, name="batch_normalization")(x)
        for units in self.hidden:
            x = layers.dropout(self.dropout, train, auto("dropout"))(x)
            x = nn.relu(layers.Dense(units, name=auto("dense"))(x))
        x = layers.dropout(self.dropout, train, auto("dropout"))(x)
        return layers.Dense(self.classes, name="predictions")(x)


class Classifier(nn.Module):
    """Backbone and head: float32 images [N, size, size, 3], already scaled, to logits [N, classes].

    Of images and backbone in bfloat16 the head is still in float32.
    """

    backbone: Any
    head: Head

    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        return self.head(layers.at_least_float32(self.backbone(x, train)), train)


def resolve_pooling(pooling: str, backbone: str) -> str:
    """The head's pooling for "auto": global average for ResNet-50 and MobileNet, else none.

    Raises:
      InputError: an unknown word, or "avg" for a backbone whose features are no maps.
    """
    if pooling == "auto":
        return AUTO_POOLING[backbone]
    if pooling not in POOLINGS:
        raise InputError(f"head.pooling: unknown {pooling!r}, expected auto, avg or none")
    if pooling == "avg" and AUTO_POOLING[backbone] == "none":
        raise InputError(f"head.pooling: {backbone} gives a vector, expected auto or none, got avg")
    return pooling
