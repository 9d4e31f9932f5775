"""Keras 3: a `.keras` file of layers and operations of Keras alone, which any of its backends loads."""

import os
from pathlib import Path
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "jax")  # Keras's own default is TensorFlow

import keras
import numpy as np

from fer_jax.data import preprocessing
from fer_jax.saved_model import SavedModel, Spec
from weights_conversion import keras_models
from weights_conversion.formats import named_tensors

# Factor and offset of each scaling.
RESCALING: dict[str, tuple[float, Any]] = {
    "unit": (1 / 255, 0.0),
    "tf": (1 / 127.5, -1.0),
    "caffe": (1.0, [-mean for mean in preprocessing.IMAGENET_MEANS_BGR]),
}


def write(saved: SavedModel, metadata: dict[str, str], path: Path) -> None:
    """Builds the model in Keras, gives it the weights and saves it."""
    model = build(saved.spec)
    tensors = named_tensors(saved.variables)
    for layer in model.layers:
        for weight in layer.weights:
            weight.assign(tensors[f"{layer.name}/{keras_models.tensor_name(layer, weight)}"])
    model.save(path)


def build(spec: Spec) -> keras.Model:
    """The model with Keras's own initial weights: images of 0..255 to probabilities."""
    images = keras.Input((spec.image_size, spec.image_size, 3), name="images")
    x = keras.ops.flip(images, axis=-1) if spec.scaling == "caffe" else images
    x = keras.layers.Rescaling(*RESCALING[spec.scaling], name="scaling")(x)
    backbone = keras_models.build(
        spec.backbone, spec.image_size, spec.alpha, inputs=x, step=keras_models.operations
    )
    head = spec.pooling, spec.batch_norm, spec.hidden
    return keras_models.classifier(backbone, len(spec.class_names), *head)


def predict(path: Path, images: np.ndarray) -> np.ndarray:
    """By Keras, on the backend it is set to."""
    return np.asarray(keras.saving.load_model(path).predict(images, verbose=0))
