import hashlib
import subprocess
import sys

import numpy as np
import pytest

from fer_jax.data import faces
from fer_jax.errors import InputError


@pytest.fixture(scope="module")
def drawn():
    return faces.draw(3000, seed=3)


def test_draw_gives_grey_48x48_images_and_labels(drawn):
    images, labels = drawn
    assert images.shape == (3000, 48, 48)
    assert images.dtype == np.uint8
    assert labels.shape == (3000,)
    assert labels.dtype == np.int32


def test_classes_are_as_unequal_as_in_fer2013(drawn):
    _, labels = drawn
    # 3000 / 35887 of 4953, 547, 5121, 8989, 6077, 4002, 6198, by largest remainder
    assert np.bincount(labels).tolist() == [414, 46, 428, 751, 508, 335, 518]
    assert sum(count for count, _ in faces.PROTOTYPES.values()) == 35_887


@pytest.mark.parametrize("count", [1, 2, 33, 35_887])
def test_counts_of_the_classes_add_up(count):
    labels = faces._labels(np.random.default_rng(0), count)
    assert len(labels) == count
    if count == 35_887:
        assert np.bincount(labels).tolist() == [size for size, _ in faces.PROTOTYPES.values()]


def test_classes_are_mixed_in_order(drawn):
    _, labels = drawn
    assert len(np.unique(labels[:100])) >= 6


def test_the_same_seed_gives_the_same_faces_in_another_process():
    code = (
        "import hashlib; from fer_jax.data import faces; i, l = faces.draw(100, 7); "
        "print(hashlib.sha256(i.tobytes() + l.tobytes()).hexdigest())"
    )
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    images, labels = faces.draw(100, 7)
    assert there.stdout.strip() == hashlib.sha256(images.tobytes() + labels.tobytes()).hexdigest()


def test_another_seed_gives_other_faces():
    assert not np.array_equal(faces.draw(40, 0)[0], faces.draw(40, 1)[0])


def test_no_face_occurs_twice_and_none_is_blank(drawn):
    images, _ = drawn
    assert len(np.unique(images.reshape(len(images), -1), axis=0)) == len(images)
    assert images.reshape(len(images), -1).std(1).min() > 5


def test_linear_classifier_on_pixels_learns_something_but_not_everything(drawn):
    from sklearn.linear_model import RidgeClassifier

    images, labels = drawn
    pixels = images.reshape(len(images), -1) / np.float32(255)
    score = RidgeClassifier(alpha=300).fit(pixels[:2400], labels[:2400]).score(pixels[2400:], labels[2400:])
    most_common = np.bincount(labels[2400:]).max() / 600
    assert most_common + 0.1 < score < 0.85


@pytest.mark.parametrize(
    ("unit", "rows"),
    [*((unit, "upper") for unit in (1, 2, 4, 5, 7)), *((unit, "lower") for unit in (12, 15, 16, 20, 23))],
)
def test_an_action_unit_changes_its_part_of_the_face_and_no_other(unit, rows):
    rng = np.random.default_rng(0)
    still = {**faces._person(rng, 20), **faces._view(rng, 20), "roll": np.zeros((20, 1, 1), np.float32)}
    still |= {f"au{u}": np.zeros((20, 1, 1), np.float32) for u in faces.ACTION_UNITS}
    rest = faces._paint(still, np.random.default_rng(1)).astype(int)
    moved = faces._paint(still | {f"au{unit}": np.ones((20, 1, 1), np.float32)}, np.random.default_rng(1))
    change = np.abs(moved - rest).mean((0, 2))
    upper, lower = change[:24].sum(), change[24:].sum()
    mine, others = (upper, lower) if rows == "upper" else (lower, upper)
    assert mine > 1
    assert others < 0.25 * mine


def test_every_emotion_shows_the_action_units_of_its_prototype():
    labels = np.repeat(np.arange(7, dtype=np.int32), 200)
    strengths = faces._expression(np.random.default_rng(0), labels)
    for label, (_, units) in enumerate(faces.PROTOTYPES.values()):
        for unit in faces.ACTION_UNITS:
            mean = strengths[f"au{unit}"][labels == label].mean()
            assert mean > 0.4 if unit in units else mean < 0.1


@pytest.mark.parametrize(("count", "seed", "named"), [(0, 0, "count"), (-3, 0, "count"), (5, -1, "seed")])
def test_bad_arguments_are_named(count, seed, named):
    with pytest.raises(InputError, match=named):
        faces.draw(count, seed)
