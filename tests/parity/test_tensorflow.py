"""Single operations against TensorFlow's, on which deepface and the paper's code run."""

import jax
import jax.numpy as jnp
import keras_reference
import numpy as np
import optax
import pytest

from fer_jax.data import preprocessing
from fer_jax.models import layers
from fer_jax.optimizer import keras_adam

tf = pytest.importorskip("tensorflow", reason="needs the extra `parity`: TensorFlow is not installed")

pytestmark = pytest.mark.parity


@pytest.mark.parametrize("size", [96, 224, 32, 47])
def test_resize_is_tf_image_resize(size):
    faces = np.random.default_rng(0).integers(0, 256, (3, 48, 48, 1)).astype(np.float32)
    expected = tf.image.resize(faces, (size, size)).numpy()
    np.testing.assert_allclose(preprocessing.resize(jnp.asarray(faces), size), expected, atol=1e-3)


@pytest.mark.parametrize("scale", [1, 30, 1000])
def test_lrn_and_its_gradient_are_tf_nn_lrn_s(scale):
    rng = np.random.default_rng(1)
    x = (scale * rng.normal(size=(2, 5, 5, 64))).astype(np.float32)
    cotangent = rng.normal(size=x.shape).astype(np.float32)
    with tf.GradientTape() as tape:
        tape.watch(watched := tf.constant(x))
        expected = tf.nn.lrn(watched, alpha=1e-4, beta=0.75)
    expected_gradient = tape.gradient(expected, watched, cotangent).numpy()
    for lrn in (layers.local_response_normalization, keras_reference.lrn):
        ours, pullback = jax.vjp(lrn, jnp.asarray(x))
        np.testing.assert_allclose(ours, expected.numpy(), rtol=1e-5)
        (gradient,) = pullback(jnp.asarray(cotangent))
        assert np.linalg.norm(gradient - expected_gradient) <= 1e-5 * np.linalg.norm(expected_gradient)


def test_adam_moves_as_tf_keras_s_does_for_gradients_of_every_size():
    rng = np.random.default_rng(2)
    start = rng.normal(size=64).astype(np.float32)
    variable, theirs = tf.Variable(start), tf.keras.optimizers.Adam(1e-3)
    optimizer = keras_adam(1e-3)
    ours, state = jnp.asarray(start), optimizer.init(jnp.asarray(start))
    for _ in range(20):
        gradient = (rng.normal(size=64) * np.logspace(-10, 1, 64)).astype(np.float32)
        theirs.apply_gradients([(tf.constant(gradient), variable)])
        updates, state = optimizer.update(jnp.asarray(gradient), state)
        ours = optax.apply_updates(ours, updates)
    np.testing.assert_allclose(ours - start, variable.numpy() - start, rtol=1e-3, atol=3e-7)
