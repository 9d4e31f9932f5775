"""Keras's Adam, its categorical cross-entropy and its class weights."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

# keras.config.epsilon(): probabilities are clipped to [1e-7, 1 - 1e-7], so a loss is at most 16.12.
KERAS_EPSILON = 1e-7


@flax.struct.dataclass
class KerasAdamState:
    """Steps taken, and the moving averages of gradients and of their squares."""

    count: jax.Array
    momentum: Any
    velocity: Any


def keras_adam(
    learning_rate: float, beta_1: float = 0.9, beta_2: float = 0.999, epsilon: float = 1e-7
) -> optax.GradientTransformation:
    """Adam as Keras has it: -lr * sqrt(1 - b2^t) / (1 - b1^t) * m / (sqrt(v) + epsilon).

    The epsilon meets the uncorrected v (keras/src/optimizers/adam.py); in `optax.adam` it meets the
    corrected one, which moves weights of tiny gradients further.
    """

    def init(params: Any) -> KerasAdamState:
        zeros = jax.tree.map(jnp.zeros_like, params)
        return KerasAdamState(jnp.zeros((), jnp.int32), zeros, jax.tree.map(jnp.zeros_like, params))

    def update(gradients: Any, state: KerasAdamState, params: Any = None) -> tuple[Any, KerasAdamState]:
        count = state.count + 1
        t = count.astype(jnp.float32)
        rate = learning_rate * jnp.sqrt(1 - jnp.power(beta_2, t)) / (1 - jnp.power(beta_1, t))
        momentum = jax.tree.map(lambda m, g: m + (g - m) * (1 - beta_1), state.momentum, gradients)
        velocity = jax.tree.map(lambda v, g: v + (g * g - v) * (1 - beta_2), state.velocity, gradients)
        updates = jax.tree.map(lambda m, v: -rate * m / (jnp.sqrt(v) + epsilon), momentum, velocity)
        return updates, KerasAdamState(count, momentum, velocity)

    return optax.GradientTransformation(init, update)


def categorical_crossentropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Keras's cross-entropy on softmax probabilities, clipped (keras/src/backend/jax/nn.py).

    Args:
      logits: float32 [N, classes].
      labels: integer [N].

    Returns:
      float32 [N], in nats.
    """
    probabilities = jnp.clip(jax.nn.softmax(logits), KERAS_EPSILON, 1 - KERAS_EPSILON)
    return -jnp.log(jnp.take_along_axis(probabilities, labels[:, None], axis=-1)[:, 0])


def balanced_class_weights(labels: np.ndarray, classes: int) -> np.ndarray:
    """float32 [classes]: N / (classes * count); 0 for a class without images.

    scikit-learn's "balanced", where every class has images.
    """
    counts = np.bincount(labels, minlength=classes)
    weights = np.zeros(classes, np.float32)
    np.divide(len(labels), classes * counts, out=weights, where=counts > 0, casting="unsafe")
    return weights
