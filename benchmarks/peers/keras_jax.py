"""Keras on JAX: its stateless functions under one jit, its state donated."""

import functools
import os
from collections.abc import Callable
from typing import Any

os.environ["KERAS_BACKEND"] = "jax"

import jax
import jax.numpy as jnp
import keras
import numpy as np

from benchmarks.peers import keras_work
from benchmarks.work import Run, Work, jax_peak_memory, random_crops, random_labels, repeated
from fer_jax import compilation

LAYOUT = "NHWC"
peak_memory = jax_peak_memory
_JITS: dict[str, Callable[..., Any]] = {"jit": jax.jit, "jit with our options": compilation.jit}


def describe() -> dict[str, str]:
    """Device and versions in words."""
    versions = f"keras {keras.__version__}, jax {jax.__version__}"
    return {"device": jax.devices()[0].device_kind, "versions": versions}


def variants(work: Work) -> dict[str, Run]:
    """jit by itself, and with the compiler's options that ours are compiled with."""
    rng = np.random.default_rng(0)
    if work.phase == "matmul":
        a = jnp.asarray(rng.standard_normal((work.image_size,) * 2, np.float32), work.dtype)
        return _ways(jnp.matmul, a, a)
    if work.phase == "predict":
        model, crops = keras_work.deepface_emotion(), random_crops(work)
        return {name: _predicting(model, crops, jit) for name, jit in _JITS.items()}
    model = keras_work.prepare(work)
    images = jnp.asarray(rng.random((work.batch_size, work.image_size, work.image_size, 3), np.float32))
    if work.trains:
        labels = jnp.asarray(random_labels(work, rng))
        return {name: _steps(model, images, labels, jit) for name, jit in _JITS.items()}
    forward, state = _inference(model)
    return _ways(forward, *state, images.astype(work.dtype))


def _ways(function: Callable[..., Any], *arguments: Any) -> dict[str, Run]:
    return {
        name: repeated(functools.partial(jit(function), *arguments), jax.block_until_ready)
        for name, jit in _JITS.items()
    }


def _inference(model: keras.Model) -> tuple[Callable[..., Any], tuple[list[jax.Array], list[jax.Array]]]:
    """The forward pass, and the variables that it takes before the images."""

    def forward(*arguments: Any) -> Any:
        return model.stateless_call(*arguments, training=False)[0]

    return forward, (_values(model.trainable_variables), _values(model.non_trainable_variables))


def _predicting(model: keras.Model, crops: np.ndarray, jit: Callable[..., Any]) -> Run:
    forward, state = _inference(model)
    compiled = jit(forward)

    def whole() -> Any:
        return np.asarray(compiled(*state, crops.astype(np.float32)[..., None]))

    return repeated(whole, lambda _: None)


def _values(variables: Any) -> list[jax.Array]:
    return [variable.value for variable in variables]


def _steps(model: keras.Model, images: jax.Array, labels: jax.Array, jit: Callable[..., Any]) -> Run:
    optimizer = keras.optimizers.Adam(1e-4)
    optimizer.build(model.trainable_variables)

    def loss_of(trainable: Any, rest: Any) -> Any:
        outputs, rest = model.stateless_call(trainable, rest, images, training=True)
        return keras.losses.sparse_categorical_crossentropy(labels, outputs).mean(), rest

    @functools.partial(jit, donate_argnums=(0, 1, 2))
    def step(trainable: Any, rest: Any, optimizer_state: Any) -> Any:
        gradients, rest = jax.grad(loss_of, has_aux=True)(trainable, rest)
        trainable, optimizer_state = optimizer.stateless_apply(optimizer_state, gradients, trainable)
        return trainable, rest, optimizer_state

    # Copies: the model keeps its own, which donation would otherwise take away.
    state = jax.tree.map(
        jnp.copy,
        tuple(map(_values, (model.trainable_variables, model.non_trainable_variables, optimizer.variables))),
    )

    def run(batches: int) -> None:
        nonlocal state
        for _ in range(batches):
            state = step(*state)
        jax.block_until_ready(state)

    return run
