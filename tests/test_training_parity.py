"""Twenty training steps beside Keras: same weights, same batches, the last four layers and the head learn."""

import jax
import jax.numpy as jnp
import keras
import keras_reference
import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import default
from fer_jax import epochs, forward, initialisation, train
from fer_jax.data import preprocessing
from fer_jax.initialisation import Init
from fer_jax.runs import Lane

# Adam moves by the sign of a small gradient. At 1e-3 rounding, which differs between processors, grows past
# the tolerances within 20 steps for some initial heads; at 3e-4 it stays 20 times below them.
STEPS, BATCHES, BATCH, LEARNING_RATE = 20, 4, 16, 3e-4
# Pixels: small enough for a quick test, large enough that the last maps hold more than one place.
SIZES = {"mobilenet": 96, "resnet50": 64}
BUILDERS = {
    "mobilenet": lambda: keras.applications.MobileNet(
        input_shape=(96, 96, 3), alpha=0.25, weights=None, include_top=False
    ),
    "resnet50": lambda: keras.applications.ResNet50(input_shape=(64, 64, 3), weights=None, include_top=False),
}


def config_of(backbone: str) -> ConfigDict:
    config = default.get_config()
    config.backbone, config.image_size, config.init = backbone, SIZES[backbone], "pretrained"
    config.alpha = 0.25 if backbone == "mobilenet" else 1.0
    config.optimizer.learning_rate = (LEARNING_RATE,)
    return config


def keras_classifier(backbone: str, images: np.ndarray) -> keras.Model:
    """The paper's transfer as a Keras user writes it: frozen base, pooling, batch norm, dense softmax."""
    keras.utils.clear_session()
    keras.utils.set_random_seed(0)  # the head's kernel
    with keras_reference.zero_kernels():
        base = BUILDERS[backbone]()
    keras_reference.calibrate(base, images, seed=1)
    for layer in base.layers[:-4]:
        layer.trainable = False
    x = keras.layers.GlobalAveragePooling2D(name="pool")(base.output)
    x = keras.layers.BatchNormalization(name="batch_normalization")(x)
    return keras.Model(base.input, keras.layers.Dense(7, activation="softmax", name="predictions")(x))


def variables_of(model: keras.Model):
    tree = keras_reference.to_variables(model)
    head = ("batch_normalization", "predictions")
    return {
        part: {
            "backbone": {name: layer for name, layer in layers.items() if name not in head},
            "head": {name: layer for name, layer in layers.items() if name in head},
        }
        for part, layers in tree.items()
    }


@pytest.fixture(scope="module")
def monkeypatch():
    with pytest.MonkeyPatch.context() as patch:
        yield patch


@pytest.fixture(scope="module", params=SIZES)
def both(request, monkeypatch):
    """Losses of every step, and all variables before and after, of Keras and of ours."""
    backbone = request.param
    config = config_of(backbone)
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 7, BATCHES * BATCH)
    # A class shifts the mean grey a little, so that there is something to learn.
    faces = np.clip(rng.normal(100 + 12 * labels[:, None, None], 40, (len(labels), 48, 48)), 0, 255).astype(
        np.uint8
    )
    scaling = preprocessing.resolve_scaling("auto", backbone)
    images = np.asarray(preprocessing.prepare(jnp.asarray(faces), SIZES[backbone], scaling))

    reference = keras_classifier(backbone, images[:BATCH])
    before = jax.tree.map(np.array, variables_of(reference))
    reference.compile(keras.optimizers.Adam(LEARNING_RATE), "sparse_categorical_crossentropy")
    batches = [np.arange(BATCH) + i % BATCHES * BATCH for i in range(STEPS)]
    expected = [float(reference.train_on_batch(images[b], labels[b])) for b in batches]

    model, learning = initialisation.build_classifier(config, Init("pretrained", ""), 7)
    config.features.reuse = False  # the whole pass in every step
    whole = forward.hoist_frozen_part(config, model, **before, learning=learning, faces=faces)
    monkeypatch.setattr(initialisation, "with_head", lambda variables, *_: jax.tree.map(jnp.array, variables))
    lanes, weights = [Lane(0, LEARNING_RATE)], np.ones(7, np.float32)
    device, state = train.place(config, model, before, learning, whole, labels, weights, lanes)
    losses = []
    for batch in batches:
        calls = device.train(state, epochs.empty_metrics(1), batch[None], 0, BATCH)
        ((state, metrics, _),) = calls
        losses.append(epochs.values(metrics)["loss"][0])
    state = jax.tree.map(lambda x: x[0], state)
    after = {"params": state.params, "batch_stats": state.batch_stats}
    return (
        expected,
        np.array(losses),
        before,
        variables_of(reference),
        jax.tree.map(np.asarray, after),
        learning,
    )


def test_the_loss_is_keras_s_at_every_step_and_falls(both):
    expected, losses, *_ = both
    np.testing.assert_allclose(losses, expected, rtol=1e-4)
    assert losses[-BATCHES:].mean() < 0.8 * losses[:BATCHES].mean()


def test_frozen_leaves_and_statistics_do_not_move_by_a_bit(both):
    _, _, before, _, after, learning = both
    frozen = 0
    for part in ("params", "batch_stats"):
        for layer, tensors in before[part]["backbone"].items():
            for tensor, value in tensors.items():
                same = np.array_equal(value, after[part]["backbone"][layer][tensor])
                assert same == (layer not in learning), f"{layer}/{tensor}"
                frozen += same
    assert frozen > 100


def test_learning_statistics_and_weights_equal_keras_s(both):
    *_, expected, after, learning = both
    for part, tolerance in (("batch_stats", 1e-5), ("params", 1e-4)):
        learned = {name: tensors for name, tensors in expected[part]["backbone"].items() if name in learning}
        pairs = [(learned, after[part]["backbone"]), (expected[part]["head"], after[part]["head"])]
        for wanted, got in pairs:
            for layer, tensors in wanted.items():
                for tensor, value in tensors.items():
                    difference = np.linalg.norm(got[layer][tensor] - value) / np.linalg.norm(value)
                    assert difference <= tolerance, f"{layer}/{tensor}: {difference}"
