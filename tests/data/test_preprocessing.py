"""Resize, scaling and augmentation, against Keras and against arithmetic."""

import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest
from ml_collections import ConfigDict

from fer_jax.data import preprocessing
from fer_jax.errors import InputError

FACES = np.random.default_rng(0).integers(0, 256, (3, 48, 48), dtype=np.uint8)


def augment(**options):
    return ConfigDict({"flip": False, "rotation": 0.0, "shift": 0.0, "contrast": 0.0} | options)


@pytest.mark.parametrize("size", [96, 224, 32])
def test_resize_is_bilinear_with_half_pixel_centres_and_no_antialiasing(size):
    images = FACES[..., None].astype(np.float32)
    ours = np.asarray(preprocessing.resize(jnp.asarray(images), size))
    place = np.clip((np.arange(size) + 0.5) * 48 / size - 0.5, 0, 47)
    low = np.minimum(place.astype(int), 46)
    part = (place - low)[:, None]
    rows = images[:, low] * (1 - part[..., None]) + images[:, low + 1] * part[..., None]
    expected = rows[:, :, low] * (1 - part) + rows[:, :, low + 1] * part
    np.testing.assert_allclose(ours, expected, atol=1e-3)


@pytest.mark.parametrize(("scaling", "mode"), [("tf", "tf"), ("caffe", "caffe")])
def test_scaling_is_keras_s_of_that_name(scaling, mode):
    images = np.random.default_rng(1).uniform(0, 255, (2, 4, 4, 3)).astype(np.float32)
    package = keras.applications.mobilenet if mode == "tf" else keras.applications.resnet50
    expected = package.preprocess_input(images.copy())
    np.testing.assert_allclose(preprocessing.scale(jnp.asarray(images), scaling), expected, atol=1e-4)


def test_prepare_repeats_grey_and_scales_to_the_unit_range():
    images = preprocessing.prepare(jnp.asarray(FACES), 48, "unit")
    assert images.shape == (3, 48, 48, 3)
    assert images.dtype == jnp.float32
    np.testing.assert_allclose(images, np.repeat(FACES[..., None] / 255, 3, -1), atol=1e-6)


def test_prepare_keeps_the_channels_of_colour_and_equal_ones_give_what_grey_gives():
    colour = np.random.default_rng(4).integers(0, 256, (2, 20, 20, 3), np.uint8)
    images = preprocessing.prepare(jnp.asarray(colour), 20, "caffe")
    np.testing.assert_allclose(images, colour[..., ::-1] - np.array([103.939, 116.779, 123.68]), atol=1e-4)
    equal = jnp.repeat(jnp.asarray(FACES)[..., None], 3, -1)
    for scaling in ("unit", "tf", "caffe"):
        np.testing.assert_array_equal(
            preprocessing.prepare(equal, 96, scaling), preprocessing.prepare(jnp.asarray(FACES), 96, scaling)
        )


def test_a_view_of_colour_moves_all_channels_alike_and_keeps_the_mean_of_each():
    colour = np.stack([FACES, np.clip(FACES, 100, 150), FACES[::-1]], -1)
    for options in (augment(flip=True, rotation=0.1, shift=0.1), augment(contrast=0.3)):
        views = preprocessing.augmented(jax.random.key(3), jnp.asarray(colour), options)
        assert views.shape == colour.shape
        for channel in range(3):
            grey = preprocessing.augmented(jax.random.key(3), jnp.asarray(colour[..., channel]), options)
            np.testing.assert_allclose(views[..., channel], grey, atol=1e-3)


def test_auto_is_the_backbone_s_own_scaling_and_unknown_ones_are_refused():
    names = ("openface", "vggface", "resnet50", "mobilenet")
    assert [preprocessing.resolve_scaling("auto", name) for name in names] == ["unit", "unit", "caffe", "tf"]
    with pytest.raises(InputError, match=r"data\.scaling"):
        preprocessing.resolve_scaling("log", "openface")


def test_without_any_augmentation_faces_stay_as_they_are():
    views = preprocessing.augmented(jax.random.key(0), jnp.asarray(FACES), augment())
    np.testing.assert_allclose(views, FACES, atol=1e-3)
    assert not preprocessing.augments(augment())


def test_flip_mirrors_about_half_of_the_faces_and_leaves_the_others():
    faces = jnp.asarray(np.repeat(FACES[:1], 64, 0))
    views = np.asarray(preprocessing.augmented(jax.random.key(0), faces, augment(flip=True)))
    mirrored = np.abs(views - FACES[:1, :, ::-1]).max((1, 2)) < 1e-3
    same = np.abs(views - FACES[:1]).max((1, 2)) < 1e-3
    assert (mirrored ^ same).all()
    assert 20 < mirrored.sum() < 44


def test_shift_and_rotation_stay_within_their_limits():
    face = np.zeros((48, 48), np.uint8)
    face[22:26, 22:26] = 200
    faces = jnp.asarray(np.repeat(face[None], 32, 0))
    y, x = np.mgrid[:48, :48] - 23.5

    def centres(views):
        mass = views.sum((1, 2))
        return np.stack([(views * y).sum((1, 2)) / mass, (views * x).sum((1, 2)) / mass], -1)

    shifted = np.asarray(preprocessing.augmented(jax.random.key(1), faces, augment(shift=0.1)))
    distance = np.abs(centres(shifted))
    assert distance.max() <= 4.8 + 0.1
    assert distance.max() > 3
    turned = np.asarray(preprocessing.augmented(jax.random.key(1), faces, augment(rotation=0.1)))
    assert np.abs(centres(turned)).max() < 0.1
    assert np.abs(turned - face).max() > 20


def test_contrast_keeps_the_mean_and_changes_the_spread():
    faces = jnp.asarray(np.clip(FACES, 100, 150))
    views = np.asarray(preprocessing.augmented(jax.random.key(2), faces, augment(contrast=0.5)))
    ratio = views.std((1, 2)) / np.asarray(faces).std((1, 2))
    np.testing.assert_allclose(views.mean((1, 2)), np.asarray(faces).mean((1, 2)), atol=0.1)
    assert ((ratio > 0.49) & (ratio < 1.51)).all()
    assert np.ptp(ratio) > 0.05


def test_views_depend_on_the_key_alone():
    options = augment(flip=True, rotation=0.1, shift=0.1, contrast=0.2)
    first, again, other = (
        preprocessing.augmented(jax.random.key(key), jnp.asarray(FACES), options) for key in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert np.abs(np.asarray(first) - np.asarray(other)).max() > 1
