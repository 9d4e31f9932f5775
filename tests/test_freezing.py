"""Which layers learn, and that nothing is kept or moved for those that do not."""

import jax
import jax.numpy as jnp
import optax
import pytest

from fer_jax import freezing
from fer_jax.errors import InputError
from fer_jax.optimizer import keras_adam

NAMES = ("conv1", "bn1", "conv2", "bn2", "flatten")


@pytest.mark.parametrize(
    ("mode", "options", "expected"),
    [
        ("last", {"last": 2}, {"bn2", "flatten"}),
        ("last", {"last": 0}, set()),
        ("all", {}, set()),
        ("none", {}, set(NAMES)),
        ("layers", {"layers": ("conv1", "bn1")}, {"conv2", "bn2", "flatten"}),
    ],
)
def test_modes_choose_the_layers_that_learn(mode, options, expected):
    assert freezing.learning_layers(NAMES, mode, **options) == expected


@pytest.mark.parametrize(
    ("mode", "options", "words"),
    [
        ("some", {}, "unknown 'some'"),
        ("last", {"last": 6}, "0 to 5"),
        ("last", {"last": -1}, "0 to 5"),
        ("layers", {"layers": ("conv9",)}, "conv9"),
        ("layers", {"layers": ()}, "no layer named"),
    ],
)
def test_what_cannot_be_frozen_is_refused(mode, options, words):
    with pytest.raises(InputError, match=words):
        freezing.learning_layers(NAMES, mode, **options)


def params():
    layer = {"kernel": jnp.ones((3, 2)), "bias": jnp.zeros(2)}
    return {"backbone": {"conv1": layer, "conv2": layer}, "head": {"predictions": layer}}


def test_every_leaf_has_a_label_and_the_head_always_learns():
    labels = freezing.labels(params(), frozenset({"conv2"}))
    assert jax.tree.structure(labels) == jax.tree.structure(params())
    assert set(jax.tree.leaves(labels["backbone"]["conv1"])) == {"frozen"}
    assert set(jax.tree.leaves([labels["backbone"]["conv2"], labels["head"]])) == {"learning"}


def test_the_optimizer_state_holds_no_array_for_a_frozen_leaf():
    optimizer = freezing.partition(keras_adam(1e-3), params(), frozenset({"conv2"}))
    arrays = [leaf for leaf in jax.tree.leaves(optimizer.init(params())) if leaf.ndim]
    learning = 2 * sum(
        leaf.size for leaf in jax.tree.leaves([params()["head"], params()["backbone"]["conv2"]])
    )
    assert sum(leaf.size for leaf in arrays) == learning


def test_updates_move_the_learning_leaves_and_no_other():
    optimizer = freezing.partition(keras_adam(1e-3), params(), frozenset({"conv2"}))
    gradients = jax.tree.map(jnp.ones_like, params())
    updates, _ = optimizer.update(gradients, optimizer.init(params()), params())
    moved = optax.apply_updates(params(), updates)
    frozen = moved["backbone"]["conv1"]["kernel"]
    assert (frozen == params()["backbone"]["conv1"]["kernel"]).all()
    assert (moved["backbone"]["conv2"]["kernel"] < 1).all()
    assert (moved["head"]["predictions"]["kernel"] < 1).all()
