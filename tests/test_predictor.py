"""Predictions from Python: what goes in, what comes out, how often it compiles and how much it keeps."""

import logging
import os
from pathlib import Path

import jax
import numpy as np
import pytest
import small_model
from PIL import Image

import fer_jax
from configs import default
from fer_jax import forward, saved_model
from fer_jax.data import faces
from fer_jax.data.dataset import CLASS_NAMES
from fer_jax.errors import InputError
from fer_jax.predictor import _pictures

FACES = faces.draw(40)[0][:12]  # those from 1 on OpenCV detects


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return small_model.write(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def predictor(directory):
    return fer_jax.load(directory)


def percentages(predictions):
    return np.array([list(face.emotion.values()) for photo in predictions for face in photo.faces])


def test_predictions_are_those_of_the_forward_pass_in_training(predictor, directory):
    model = saved_model.load(directory)
    config = default.get_config()
    config.update(backbone="mobilenet", alpha=model.spec.alpha, image_size=32)
    logits, _ = forward.make_forward(config, model.spec.module())(**model.variables, faces=FACES)
    expected = jax.nn.softmax(logits)
    assert np.ptp(expected, axis=0).max() > 0.01  # faces differ
    np.testing.assert_allclose(predictor.probabilities(FACES), expected, atol=1e-6)
    found = predictor.predict(FACES, detector="none")
    np.testing.assert_allclose(percentages(found) / 100, expected, atol=1e-6)
    assert [photo.faces[0].dominant_emotion for photo in found] == [
        CLASS_NAMES[i] for i in expected.argmax(1)
    ]


def test_paths_arrays_and_images_of_a_photograph_give_the_same(predictor, tmp_path):
    path = tmp_path / "face.png"
    Image.fromarray(FACES[0]).save(path)
    rgb = np.stack([FACES[0]] * 3, -1)
    opaque = np.dstack([rgb, np.full((48, 48), 255, np.uint8)])
    deep = FACES[0].astype(np.uint16) * 257
    images = [path, str(path), FACES[0], rgb, opaque, deep, Image.open(path), Image.fromarray(rgb)]
    found = predictor.predict(images, detector="none")
    rows = percentages(found)
    assert [photo.name for photo in found[:3]] == [str(path), str(path), "image 2"]
    assert len(rows) == len(images)
    np.testing.assert_allclose(rows, rows[:1].repeat(len(rows), 0), atol=1e-4)


def test_a_photograph_of_colour_is_turned_grey_for_a_model_of_grey_and_kept_for_one_of_colour(
    predictor, tmp_path
):
    red = np.zeros((48, 48, 3), np.uint8)
    red[..., 0] = FACES[0]
    luma = np.asarray(Image.fromarray(red).convert("L"))
    grey = percentages(predictor.predict([red], detector="none"))
    np.testing.assert_allclose(grey[0], 100 * predictor.probabilities(luma[None])[0], atol=1e-4)
    of_colour = fer_jax.load(small_model.write(tmp_path, channels=3))
    found = percentages(of_colour.predict([red, FACES[0]], detector="none"))
    expected = of_colour.probabilities(np.stack([red, np.stack([FACES[0]] * 3, -1)]))
    np.testing.assert_allclose(found, 100 * expected, atol=1e-4)
    assert np.abs(found[0] - grey[0]).max() > 0.1
    with pytest.raises(InputError, match=r"expected uint8 \[N, 48, 48, 3\], got uint8 \[12, 48, 48\]"):
        of_colour.probabilities(FACES)


def test_larger_crops_are_shrunk_with_antialiasing(predictor):
    large = FACES[:1].repeat(5, 1).repeat(5, 2)
    expected = predictor.probabilities(FACES[:1])
    np.testing.assert_allclose(predictor.predict(large, detector="none")[0].faces[0].emotion["happy"],
                               100 * expected[0, 3], atol=2)  # fmt: skip
    stripes = np.zeros((480, 480), np.uint8)
    stripes[:, ::2] = 200
    flat = np.full((1, 48, 48), 100, np.uint8)
    found = percentages(predictor.predict([stripes], detector="none"))
    np.testing.assert_allclose(found, 100 * predictor.probabilities(flat), atol=3)


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (FACES[0].astype(np.float32), r"image 1: expected uint8 .*, got float32 \[48, 48\]"),
        (FACES[:2].transpose(1, 2, 0), r"image 1: expected uint8 .*, got uint8 \[48, 48, 2\]"),
        (np.zeros((0, 5), np.uint8), r"image 1: expected uint8 .*, got uint8 \[0, 5\]"),
        (7, "image 1: expected a path, an array or an image of Pillow's, got int"),
    ],
)
def test_what_is_no_image_is_refused_with_its_place(predictor, image, words):
    with pytest.raises(InputError, match=words):
        predictor.predict([FACES[0], image], detector="none")


@pytest.mark.parametrize("image", [FACES[0], np.zeros((9, 9, 3), np.uint8), "a.png", Path("a.png"),
                                   Image.fromarray(FACES[0])])  # fmt: skip
def test_a_single_image_is_not_taken_for_several(predictor, image):
    with pytest.raises(InputError, match="images: expected several"):
        predictor.predict(image)


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ({"margin": -0.1}, "margin"),
        ({"margin": 10}, "margin: expected 0 to 1"),
        ({"min_confidence": 1.1}, "min_confidence"),
        ({"batch_size": 0}, "batch_size"),
        ({"detector": "retina"}, "detector: unknown 'retina'"),
        ({"detector": "none.onnx"}, "detector: no such file"),
    ],
)
def test_options_out_of_range_are_refused(predictor, option, words):
    with pytest.raises(InputError, match=words):
        predictor.predict(FACES, **option)


@pytest.mark.parametrize("batch_size", [0, -1])
def test_probabilities_refuse_a_batch_of_no_size(predictor, batch_size):
    faces = np.zeros((3, predictor.spec.side, predictor.spec.side), np.uint8)
    with pytest.raises(InputError, match=f"batch_size: expected at least 1, got {batch_size}"):
        predictor.probabilities(faces, batch_size)


def test_what_cannot_be_read_and_what_has_no_face_is_told_in_its_place(predictor, tmp_path):
    empty = tmp_path / "empty.jpg"
    empty.touch()
    found = predictor.predict([empty, tmp_path / "none.jpg", np.zeros((200, 200), np.uint8), FACES[1]])
    assert [photo.error for photo in found] == [
        "empty file; expected an image",
        "cannot be read (No such file or directory); expected an image",
        "no face found",
        "",
    ]
    assert [len(photo.faces) for photo in found] == [0, 0, 0, 1]
    assert found[0].as_deepface() == [
        {
            "file": str(empty),
            "region": None,
            "face_confidence": 0.0,
            "emotion": {},
            "dominant_emotion": None,
            "model_sha256": predictor.sha256,
            "error": "empty file; expected an image",
        }
    ]


def test_the_region_is_in_pixels_of_the_photograph_also_where_it_was_shrunk(predictor):
    photo = np.full((300, 500), 110, np.uint8)
    photo[100:244, 200:344] = np.asarray(Image.fromarray(FACES[3]).resize((144, 144)))
    large = Image.fromarray(photo).resize((6000, 3600))
    small, found = predictor.predict([photo, large])
    region = found.faces[0].region
    for name in "xywh":
        assert abs(region[name] / 12 - small.faces[0].region[name]) < 15
    assert abs(region["x"] + region["w"] / 2 - 12 * 272) < 12 * 20


def test_faces_of_little_confidence_are_passed_over(predictor):
    certain = predictor.predict(FACES[1:4])
    assert all(0.5 < photo.faces[0].confidence < 1 for photo in certain)
    assert not any(photo.faces for photo in predictor.predict(FACES[1:4], min_confidence=1.0))


def test_batches_of_any_size_come_out_in_order_and_compile_three_programs(directory, caplog):
    predictor = fer_jax.load(directory)
    many = np.tile(FACES, (6, 1, 1))
    expected = np.tile(predictor.probabilities(FACES), (6, 1))
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        for count in (0, 1, 2, 7, 8, 9, 31, 32, 33, 64, 71):
            found = predictor.probabilities(many[:count])
            assert found.dtype == np.float32
            np.testing.assert_allclose(found, expected[:count], atol=1e-6)
    compiled = [r for r in caplog.records if r.getMessage().startswith("Compiling jit(forward)")]
    assert len(compiled) == 2  # 1 and 8; 32 was before
    assert predictor.probabilities(many, batch_size=5).shape == (72, 7)


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="needs /proc")
def test_memory_is_flat_over_ten_thousand_images(predictor):
    resident = []

    def images():
        rng = np.random.default_rng(0)
        for index in range(10_000):
            if index % 1000 == 0:
                resident.append(
                    int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
                )
            yield rng.integers(0, 256, (150, 150), np.uint8)  # 225 MB, all of them

    found = predictor.predict(images(), detector="none")
    assert len(found) == 10_000
    assert resident[-1] - resident[1] < 40e6


def test_more_faces_at_once_are_padded_to_the_next_of_few_sizes(predictor, monkeypatch):
    sizes = []

    def count(variables, images):
        sizes.append(len(images))
        return np.zeros((len(images), 7), np.float32)

    monkeypatch.setattr(predictor, "_forward", count)
    many = FACES[:1].repeat(700, 0)
    for faces_at_once, batch_size in ((40, 1024), (700, 600), (700, 32)):
        assert predictor.probabilities(many[:faces_at_once], batch_size).shape == (faces_at_once, 7)
    assert sizes == [128, 600, 128, *[32] * 22]


@pytest.mark.parametrize("size", [(0, 5), (5, 0), (0, 0)])
def test_an_image_without_pixels_is_refused_as_an_array_without_them_is(size):
    for image in (Image.new("RGB", size), np.zeros((size[1], size[0]), np.uint8)):
        with pytest.raises(InputError, match=r"^image 0: expected "):
            next(_pictures([image])).decode()
