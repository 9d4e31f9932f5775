"""Keras's Adam and cross-entropy, against Keras itself."""

import jax
import jax.numpy as jnp
import keras
import numpy as np
import optax
from sklearn.utils.class_weight import compute_class_weight

from fer_jax.optimizer import balanced_class_weights, categorical_crossentropy, keras_adam


def test_adam_moves_as_keras_s_does_for_gradients_of_every_size():
    rng = np.random.default_rng(0)
    start = rng.normal(size=64).astype(np.float32)
    scales = np.logspace(-10, 1, 64)
    variable, reference = keras.Variable(start), keras.optimizers.Adam(1e-3)
    reference.build([variable])
    optimizer = keras_adam(1e-3)
    ours, state = jnp.asarray(start), optimizer.init(jnp.asarray(start))
    other, other_state = ours, optax.adam(1e-3, eps=1e-7).init(ours)
    for _ in range(20):
        gradient = (rng.normal(size=64) * scales).astype(np.float32)
        reference.apply([keras.ops.convert_to_tensor(gradient)], [variable])
        updates, state = optimizer.update(jnp.asarray(gradient), state)
        ours = optax.apply_updates(ours, updates)
        updates, other_state = optax.adam(1e-3, eps=1e-7).update(jnp.asarray(gradient), other_state)
        other = optax.apply_updates(other, updates)
    moved = np.asarray(variable) - start
    np.testing.assert_allclose(ours - start, moved, rtol=1e-3, atol=3e-7)
    assert np.abs((np.asarray(other) - start) - moved).max() > 1e-4, "optax.adam is told apart"


def test_crossentropy_is_keras_s_and_clips_at_16_12():
    logits = np.random.default_rng(1).normal(size=(8, 7)).astype(np.float32) * 4
    logits[0] = [60, 0, 0, 0, 0, 0, 0]
    labels = np.array([1, 0, 1, 2, 3, 4, 5, 6])
    expected = keras.losses.sparse_categorical_crossentropy(labels, jax.nn.softmax(logits))
    ours = categorical_crossentropy(jnp.asarray(logits), jnp.asarray(labels))
    np.testing.assert_allclose(ours, expected, rtol=1e-5)
    np.testing.assert_allclose(ours[0], 16.118, atol=1e-3)


def test_balanced_class_weights_are_scikit_learn_s():
    labels = np.array([0] * 5 + [1] * 2 + [3] * 9)
    expected = compute_class_weight("balanced", classes=np.array([0, 1, 3]), y=labels) * 3 / 4
    weights = balanced_class_weights(labels, 4)
    np.testing.assert_allclose(weights[[0, 1, 3]], expected, rtol=1e-6)
    assert weights[2] == 0
