"""The models of `weights_conversion.keras_models` made ready for a piece of work, on any backend of Keras."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import layers

from benchmarks.work import CLASSES, Work, he_normal
from fer_jax.models.classifier import AUTO_POOLING
from weights_conversion import keras_models


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

    Args:
      lrn: see `keras_models.build`.
    """
    mixed = "mixed_" if work.trains and work.dtype != "float32" else ""
    keras.config.set_dtype_policy(mixed + work.dtype)
    backbone = keras_models.build(work.backbone, work.image_size, work.alpha, lrn=lrn)
    rng = np.random.default_rng(0)
    for weight in backbone.weights:
        if "kernel" in weight.name:
            weight.assign(he_normal(rng, weight.shape))
    if work.phase == "forward":
        return backbone
    if work.phase != "full_step":
        for layer in backbone.layers[:-4]:
            layer.trainable = False
    return keras_models.classifier(backbone, CLASSES, AUTO_POOLING[work.backbone])
