"""Keras on TensorFlow: tf.function, and XLA where that is faster."""

import functools
import os
from typing import Any

os.environ["KERAS_BACKEND"] = "tensorflow"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import tensorflow as tf

from benchmarks.peers import keras_work
from benchmarks.work import Run, Work, random_crops, random_labels, repeated

LAYOUT = "NHWC"
_WAYS = {"tf.function": False, "tf.function jit_compile": True}


def describe() -> dict[str, str]:
    """Device and versions in words."""
    device = (tf.config.list_physical_devices("GPU") or tf.config.list_physical_devices("CPU"))[0]
    name = tf.config.experimental.get_device_details(device).get("device_name", device.device_type.lower())
    return {"device": name, "versions": f"keras {keras.__version__}, tensorflow {tf.__version__}"}


def peak_memory() -> int | None:
    """Bytes; None on CPU."""
    if not tf.config.list_physical_devices("GPU"):
        return None
    return int(tf.config.experimental.get_memory_info("GPU:0")["peak"])


def forget_peak() -> None:
    """Starts `peak_memory` again."""
    if tf.config.list_physical_devices("GPU"):
        tf.config.experimental.reset_memory_stats("GPU:0")


def variants(work: Work) -> dict[str, Run]:
    """With and without XLA."""
    rng = np.random.default_rng(0)
    if work.phase == "matmul":
        a = tf.cast(rng.standard_normal((work.image_size,) * 2, np.float32), work.dtype)
        return _ways(tf.matmul, a, a)
    if work.phase == "predict":
        return _predicting(keras_work.deepface_emotion(), random_crops(work))
    # tf.nn.lrn is what deepface calls; it takes no bfloat16 on CPU.
    lrn = functools.partial(tf.nn.lrn, alpha=1e-4, beta=0.75) if work.dtype == "float32" else None
    model = keras_work.prepare(work, lrn)
    shape = (work.batch_size, work.image_size, work.image_size, 3)
    images = tf.constant(rng.random(shape, np.float32))
    if not work.trains:
        return _ways(functools.partial(model, training=False), tf.cast(images, work.dtype))
    labels = tf.constant(random_labels(work, rng))
    optimizer = keras.optimizers.Adam(1e-4)
    optimizer.build(model.trainable_variables)

    def step(images: Any, labels: Any) -> Any:
        with tf.GradientTape() as tape:
            outputs = model(images, training=True)
            loss = tf.reduce_mean(keras.losses.sparse_categorical_crossentropy(labels, outputs))
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
        return loss

    return _ways(step, images, labels)


def _predicting(model: keras.Model, crops: np.ndarray) -> dict[str, Run]:
    """As deepface calls it (eagerly for one face, `predict_on_batch` for more), and in faster ways."""
    calls = {
        name: tf.function(functools.partial(model, training=False), jit_compile=jit)
        for name, jit in _WAYS.items()
    }
    calls |= {"eager": functools.partial(model, training=False), "predict_on_batch": model.predict_on_batch}

    def whole(call: Any) -> Any:
        return np.asarray(call(crops.astype(np.float32)[..., None]))

    return {name: repeated(functools.partial(whole, call), lambda _: None) for name, call in calls.items()}


def _ways(function: Any, *arguments: Any) -> dict[str, Run]:
    calls = {name: tf.function(function, jit_compile=jit) for name, jit in _WAYS.items()}
    return {name: repeated(functools.partial(call, *arguments), _wait) for name, call in calls.items()}


def _wait(_: Any) -> None:
    # For all that a step does, its new weights too. To fetch a number of the result instead took some 0.5 ms
    # of eager operations on two cores, which latencies at batch 1 would show; this takes 0.03 ms.
    tf.test.experimental.sync_devices()
